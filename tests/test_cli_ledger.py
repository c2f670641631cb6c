"""`x402kit ledger`: what it finds, what it mends, and that balances made anew are the same to the byte (E12)."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Result, on_terminal, run
from tests.support.postgres import PostgresServer, query
from x402kit.cli import main
from x402kit.errors import ConfigError, RailUnavailable
from x402kit.ledger.open import store_of
from x402kit.ledger.port import Store
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Account, Claim, Hold, Spend
from x402kit.networks.assets import DEFAULTS

BASE, SEPOLIA = "eip155:8453", "eip155:84532"
USDC = DEFAULTS[BASE]
WALLET = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
OTHER = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
FAR = 4_000_000_000
READER = """
    DO $$ BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
    GRANT USAGE ON SCHEMA x402kit TO reader;
    GRANT SELECT ON ALL TABLES IN SCHEMA x402kit TO reader;
"""
"""docs/postgresql.md: enough for reports."""


def account(wallet: str = WALLET, network: str = BASE) -> Account:
    return Account.of(network, DEFAULTS[network].address, wallet)


def hold(name: str, owner: Account, amount: int) -> Hold:
    return Hold(name, *owner, amount, holder="h", created_at=1, deadline=FAR, resource="chat", request_id=f"req-{name}")


async def fill(store: Store) -> None:
    """Every kind of entry that a day brings: a top-up, calls, one that goes on, what a payment left."""
    mine, theirs = account(), account(OTHER, SEPOLIA)
    await store.deposit(mine, 5_000_000, "by hand", reference="0xaa")
    await store.deposit(theirs, 70, "also")
    for number, cost in enumerate((1_200, 0, 3_000)):
        await store.reserve(hold(f"c{number}", mine, 3_000), Spend(f"proof{number}", FAR))
        await store.capture(f"c{number}", cost, holder="h")
    await store.reserve(hold("v", mine, 500))
    await store.void("v", holder="h")
    await store.reserve(hold("open", mine, 40_000))
    claim = Claim(
        *("paid", "claimed", b"f" * 32, b"c" * 32, "chat", BASE, USDC.address, OTHER, WALLET), 10_000, FAR, 1, FAR
    )
    await store.claim(claim._replace(owner="o"))
    await store.move("paid", "intend", "o", reference="0xbb", intent=b"raw")
    await store.move("paid", "confirm", "o", block=7)
    await store.move("paid", "serve", "o", captured=2_500)


AVAILABLE = 5_000_000 - 1_200 - 3_000 - 40_000 + 7_500


@dataclass(frozen=True)
class Books:
    """A ledger with a day's business in it. ``query`` speaks to the database behind the store's back."""

    place: str
    query: Callable[[str], list[tuple[Any, ...]]]
    accounts: str

    def balances(self) -> list[tuple[Any, ...]]:
        return self.query(f"SELECT * FROM {self.accounts} ORDER BY owner, asset")


@pytest.fixture(params=["sqlite", "postgres"])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> Books:
    if request.param == "postgres":
        dsn: str = request.getfixturevalue("database")
        made = Books(dsn, lambda text: query(dsn, text), "x402kit.accounts")
    else:
        path = str(tmp_path / "payments.db")

        def ask(text: str) -> list[tuple[Any, ...]]:
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                return connection.execute(text).fetchall()
            finally:
                connection.close()

        made = Books(path, ask, "accounts")

    async def begin() -> None:
        store = store_of(made.place)
        await store.start()
        await fill(store)
        await store.close()

    asyncio.run(begin())
    return made


Ledger = Callable[..., Result]


@pytest.fixture
def ledger(capsys: pytest.CaptureFixture[str]) -> Ledger:
    """The command in this process; standard output is no terminal here."""

    def command(*arguments: str) -> Result:
        capsys.readouterr()
        try:
            status = main(["ledger", *arguments])
        except SystemExit as e:
            status = int(str(e.code))  # argparse's
        said = capsys.readouterr()
        return Result(status, said.out, said.err)

    return command


def document(done: Result) -> Any:
    assert done.err == ""
    return json.loads(done.out)


def test_a_sound_ledger_is_found_so(books: Books, ledger: Ledger) -> None:
    done = ledger("verify", books.place)
    assert (done.status, document(done)) == (0, {"ok": True, "empty": False, "faults": []})


@pytest.mark.parametrize(
    ("column", "fault"),
    [("available", {"available is not the log's"}), ("held", {"held is not the log's", "held is not what open holds"})],
)
def test_E12_a_balance_changed_by_hand_is_found_and_mended_to_the_byte(
    books: Books, column: str, fault: set[str], ledger: Ledger
) -> None:
    before = books.balances()
    books.query(f"UPDATE {books.accounts} SET {column} = {column} + 1 WHERE owner = '{account().owner}'")
    done = ledger("verify", books.place)
    told = document(done)
    assert (done.status, told["ok"]) == (1, False)
    assert all(any(found["what"].startswith(what) for found in told["faults"]) for what in fault)
    wrong = told["faults"][0]
    assert (wrong["owner"], wrong["asset"]) == account()
    assert wrong["found"] == wrong["expected"] + 1
    done = ledger("rebuild", books.place)
    assert (done.status, document(done)) == (0, {"accounts": 2})
    assert books.balances() == before
    assert ledger("verify", books.place).status == 0


def test_E12_all_balances_lost_come_back_from_the_log(books: Books, ledger: Ledger) -> None:
    before = books.balances()
    books.query(f"UPDATE {books.accounts} SET available = 0, held = 0")
    assert ledger("verify", books.place).status == 1
    assert ledger("rebuild", books.place).status == 0
    assert books.balances() == before
    assert before


def test_totals_sum_to_zero(books: Books, ledger: Ledger) -> None:
    done = ledger("totals", books.place)
    told = document(done)
    assert (done.status, told["ok"], set(told["assets"])) == (0, True, {account().asset, account(OTHER, SEPOLIA).asset})
    assert told["assets"][account().asset] == {
        "external": -5_010_000,
        "available": AVAILABLE,
        "held": 40_000,
        "revenue": 1_200 + 3_000 + 2_500,
        "suspense": 0,
        "holds": 40_000,
        "payouts": 0,
    }


def test_a_statement_has_the_entries_in_order_and_the_balance(books: Books, ledger: Ledger) -> None:
    for name in (WALLET, WALLET.lower(), f"{BASE}:{WALLET}"):
        done = ledger("statement", name, books.place)
        (told,) = document(done)["accounts"]
        assert (done.status, told["available"], told["held"]) == (0, AVAILABLE, 40_000)
    types = [entry["type"] for entry in told["entries"]]
    assert types == ["deposit", *["reserve", "capture"] * 3, "reserve", "void", "reserve", "payment"]
    assert sum(entry["available"] for entry in told["entries"]) == AVAILABLE
    (told,) = document(ledger("statement", "--limit", "3", WALLET, books.place))["accounts"]
    assert [entry["type"] for entry in told["entries"]] == types[-3:]


def test_on_a_terminal_it_is_for_people(books: Books) -> None:
    shown = on_terminal("ledger", "statement", WALLET, books.place).out
    assert "2001" not in shown
    assert f"eip155:8453:{WALLET.lower()} in USDC on base (eip155:8453)" in shown
    assert "deposit         5.000000" in shown
    assert "chat req-c0" in shown
    assert "now: 4.963300 USDC available, 0.040000 USDC held" in shown
    shown = on_terminal("ledger", "totals", books.place).out
    assert "came in, less what went back          5.010000 USDC" in shown
    assert "It sums to zero." in shown
    assert "Everything adds up." in on_terminal("ledger", "verify", books.place).out
    books.query(f"UPDATE {books.accounts} SET available = 1 WHERE owner = '{account().owner}'")
    done = on_terminal("ledger", "verify", books.place)
    assert done.status == 1
    assert f"{account().owner} in {account().asset}: {AVAILABLE} expected, 1 found" in done.out
    assert "1 fault(s)." in done.out
    assert "2 account(s) made anew from the log." in on_terminal("ledger", "rebuild", books.place).out


def test_an_account_that_is_not_there(books: Books, ledger: Ledger) -> None:
    for name in ("0x" + "11" * 20, f"eip155:1:{WALLET}", "nobody"):
        done = ledger("statement", name, books.place)
        assert (done.status, json.loads(done.out)) == (1, {"accounts": []})
        assert f"nothing is in the books of {name}" in done.err


@pytest.mark.parametrize("place", ["mysql://seller:word@db/shop", "sqlite:///payments.db", "postgresq://db/shop"])
def test_a_mistyped_address_is_no_file_and_is_not_shown(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ledger", "verify", place]) == 2
    assert "word" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match="postgresql://"):
        store_of(place)
    assert not list(tmp_path.iterdir())


def test_the_ledger_comes_from_the_environment_too(books: Books, tmp_path: Path) -> None:
    done = run("ledger", "verify", env={"X402KIT_LEDGER": books.place})
    assert document(done)["empty"] is False


def test_a_pager_of_more_than_a_page(tmp_path: Path, ledger: Ledger) -> None:
    async def many() -> None:
        store = SQLiteStore(tmp_path / "many.db")
        await store.start()
        await asyncio.gather(*[store.deposit(account(), 1, f"d{number}") for number in range(450)])
        await store.close()

    asyncio.run(many())
    done = ledger("statement", WALLET, str(tmp_path / "many.db"), "--limit", "1000")
    (told,) = document(done)["accounts"]
    assert [entry["balance"] for entry in told["entries"]] == list(range(1, 451))


# What is no ledger


def test_a_name_without_a_ledger_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    missing = tmp_path / "typo.db"
    done = ledger("verify", str(missing))
    assert (done.status, done.out, missing.exists()) == (2, "", False)
    assert "there is no ledger at" in done.err
    monkeypatch.delenv("X402KIT_LEDGER", raising=False)
    monkeypatch.chdir(tmp_path)
    assert "'payments.db'" in ledger("verify").err


def test_a_file_that_is_something_else_stays_as_it_is(tmp_path: Path, ledger: Ledger) -> None:
    text, other = tmp_path / "notes.db", tmp_path / "jobs.db"
    text.write_text("not a database at all, but longer than the header of one" * 10)
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE jobs (id TEXT)")
    connection.commit()
    connection.close()
    for path, why in ((text, "can't be read as a ledger"), (other, "is no ledger")):
        before = path.read_bytes()
        done = ledger("rebuild", str(path))
        assert (done.status, path.read_bytes() == before) == (2, True)
        assert why in done.err


def test_J03_a_damaged_file_is_told_as_that_and_not_as_busy(tmp_path: Path, ledger: Ledger) -> None:
    """Asked again it is as damaged."""
    place = tmp_path / "payments.db"

    async def many() -> None:
        store = SQLiteStore(place)
        await store.start()
        await asyncio.gather(*[store.deposit(account(), 1, f"d{number}", reference="x" * 200) for number in range(99)])
        await store.close()

    asyncio.run(many())
    with sqlite3.connect(place) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'entries'").fetchone()
    connection.close()
    with place.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\x55" * 4096)
    for asked in (("verify",), ("totals",), ("rebuild",), ("statement", WALLET)):
        done = ledger(*asked, str(place))
        assert (done.status, done.out) == (2, "")
        assert "can't be read as a ledger: database disk image is malformed" in done.err


def test_J04_a_file_that_somebody_locks_is_busy(tmp_path: Path, ledger: Ledger) -> None:
    place = tmp_path / "payments.db"

    async def make() -> None:
        store = SQLiteStore(place)
        await store.start()
        await store.close()

    asyncio.run(make())
    blocker = sqlite3.connect(place, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    done = ledger("verify", str(place))
    assert (done.status, done.out) == (6, "")
    assert "locked" in done.err
    blocker.close()


def test_a_place_that_can_not_be_looked_at_is_no_crash(ledger: Ledger) -> None:
    done = ledger("verify", "x" * 300)  # the system's own limit is 255
    assert (done.status, done.out) == (2, "")
    assert "can't be read as a ledger" in done.err


def test_a_file_of_somebody_elses_schema_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "other.db"
    connection = sqlite3.connect(place, isolation_level=None)
    connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
    connection.execute("INSERT INTO meta VALUES ('schema', 'v2')")
    connection.execute("CREATE TABLE claims (id TEXT)")
    connection.close()
    done = run("ledger", "verify", str(place))
    assert (done.status, done.out) == (2, "")
    assert "can't be opened" in done.err


def test_money_of_lightning_is_told_in_satoshi(tmp_path: Path) -> None:
    network, payment_hash, place = "bip122:000000000019d6689c085ae165831e93", "ab" * 32, str(tmp_path / "sat.db")

    async def fill() -> None:
        store = SQLiteStore(place)
        await store.start()
        await store.deposit(Account.of(network, "btc", payment_hash), 30_931, "by hand")
        await store.close()

    asyncio.run(fill())
    assert f"sat on lightning ({network})" in on_terminal("ledger", "totals", place).out
    shown = on_terminal("ledger", "statement", payment_hash, place).out
    assert f"{network}:{payment_hash} in sat on lightning" in shown
    assert "now: 30.931 sat available, 0.000 sat held" in shown


def test_a_database_out_of_reach_does_not_tell_its_password(ledger: Ledger) -> None:
    done = ledger("verify", "postgresql://me:hunter2@127.0.0.1:9/none")
    assert (done.status, done.out) == (6, "")
    assert "can't be reached: nobody listens there" in done.err
    assert "hunter2" not in done.err


@pytest.mark.parametrize(
    "place", ["postgresql://me:hunter2@127.0.0.1:many/none", "postgresql://me:hunter2@127.0.0.1/none?speed=1"]
)
def test_a_databases_malformed_address_is_the_commands_fault(place: str, ledger: Ledger) -> None:
    done = ledger("verify", place)
    assert (done.status, done.out) == (2, "")
    assert "hunter2" not in done.err


def test_without_the_databases_package_no_faults_are_told_of() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None; from x402kit.cli import main;"
        " sys.exit(main(['ledger', 'verify', 'postgresql://h/d']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "x402kit-asgi[postgres]" in done.stderr


def test_E12_totals_of_a_log_that_lost_an_asset_are_told_all_the_same(books: Books, ledger: Ledger) -> None:
    before = document(ledger("totals", books.place))["assets"]
    books.query("UPDATE {} SET asset = 'lost' WHERE state = 'open'".format(books.accounts.replace("accounts", "holds")))
    done = ledger("totals", books.place)
    told = document(done)["assets"]
    (asset,) = [name for name in before if before[name]["holds"]]
    assert told[asset] == {**before[asset], "holds": 0}
    assert told["lost"] == {**dict.fromkeys(before[asset], 0), "holds": before[asset]["holds"]}
    assert ledger("verify", books.place).status == 1


def test_a_database_that_is_not_there_is_no_ledger(postgres: PostgresServer, ledger: Ledger) -> None:
    done = ledger("verify", postgres.dsn("nothing"))
    assert (done.status, done.out) == (2, "")
    assert "there is no such database" in done.err


def test_a_role_that_only_reads_can_verify_and_is_told_that_it_may_not_rebuild(database: str, ledger: Ledger) -> None:
    async def made() -> None:
        store = store_of(database)
        await store.start()
        await fill(store)
        await store.close()

    asyncio.run(made())
    query(database, READER)
    reader = database.replace("postgres@", "reader@")
    for asked in (("verify",), ("totals",), ("statement", WALLET)):
        assert ledger(*asked, reader).status == 0
    done = ledger("rebuild", reader)
    assert (done.status, done.out) == (2, "")
    assert "permission denied for table accounts" in done.err
    query(database, "REVOKE SELECT ON x402kit.payouts FROM reader")
    assert ledger("verify", reader).status == 2


def test_a_new_ledger_is_empty(tmp_path: Path, ledger: Ledger) -> None:
    async def made() -> None:
        store = SQLiteStore(tmp_path / "new.db")
        await store.start()
        await store.close()

    asyncio.run(made())
    assert document(ledger("verify", str(tmp_path / "new.db")))["empty"] is True
    assert "Nothing is in the log yet." in on_terminal("ledger", "verify", str(tmp_path / "new.db")).out


@pytest.mark.parametrize("wrong", ["0", "-1", "many", "1.5", "99999999"])
def test_a_limit_that_is_no_number(wrong: str, ledger: Ledger) -> None:
    assert ledger("statement", WALLET, f"--limit={wrong}").status == 2


# Beside a running server


async def test_it_runs_beside_a_server_that_moves_money(tmp_path: Path) -> None:
    path = str(tmp_path / "payments.db")
    store = SQLiteStore(path)
    await store.start()
    await store.deposit(account(), 10_000_000, "all")
    over = asyncio.Event()
    served = 0

    async def serve(who: int) -> None:
        nonlocal served
        while not over.is_set():
            name = f"{who}-{served}"
            await store.reserve(hold(name, account(), 10))
            await store.capture(name, 7, holder="h")
            served += 1

    servers = [asyncio.create_task(serve(number)) for number in range(4)]
    for what in ("verify", "rebuild", "totals", "verify"):
        done = await asyncio.to_thread(run, "ledger", what, path)
        assert (done.status, done.err) == (0, ""), what
    over.set()
    await asyncio.gather(*servers)
    assert served > 10
    assert (await store.balance(account())).available == 10_000_000 - 7 * served
    assert await store.verify() == []
    await store.close()


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, books: Books) -> None:
    async def gone(store: Store) -> list[Any]:
        raise RailUnavailable("the database went away")

    monkeypatch.setattr(type(store_of(books.place)), "verify", gone)
    assert main(["ledger", "verify", books.place]) == 6


def test_2_a_statement_without_its_account_says_what_is_missing(tmp_path: Path) -> None:
    place = tmp_path / "payments.db"
    asyncio.run(_made(place))
    for given in ((str(place),), (str(place), WALLET), ("postgresql://nobody@localhost/x",)):
        done = run("ledger", "statement", *given)
        assert (done.status, done.out) == (2, "")
        assert "is a ledger, and no account: x402kit ledger statement ACCOUNT [LEDGER]" in done.err


async def _made(place: Path) -> None:
    store = SQLiteStore(place)
    await store.start()
    await store.close()
