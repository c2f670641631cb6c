"""What is PostgreSQL's own: connections that break, servers that stop, roles, migrations, races between machines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from tests.support.postgres import LIMITED_ROLE, PostgresServer, query
from tests.test_store import ALICE, FAR, hold, new_claim, settle
from x402kit.errors import (
    ConfigError,
    InsufficientBalance,
    LedgerUnreachable,
    PaymentUsed,
    ProofUsed,
    RailUnavailable,
    TooManyRequests,
)
from x402kit.ledger import postgres_base
from x402kit.ledger.open import store_of
from x402kit.ledger.postgres import PostgresStore
from x402kit.ledger.postgres_reach import fault_of
from x402kit.ledger.postgres_schema import LATEST, MIGRATIONS, Migration
from x402kit.model import Account, Spend


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    made = PostgresStore(database, lease_seconds=0.3, busy_seconds=2)
    await made.start()
    yield made
    await made.close()


@asynccontextmanager
async def opened(dsn: str, **options: Any) -> AsyncGenerator[PostgresStore]:
    store = PostgresStore(dsn, **options)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def second(database: str, store: PostgresStore) -> AsyncIterator[PostgresStore]:
    """As from another machine."""
    made = PostgresStore(database, lease_seconds=0.3, busy_seconds=2)
    await made.start()
    yield made
    await made.close()


async def test_J02_a_commit_is_on_disk_whatever_the_database_says(database: str) -> None:
    name = database.rpartition("/")[2]
    query(database, f"ALTER DATABASE {name} SET synchronous_commit = off")
    query(database, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    store = PostgresStore(database)
    await store.start()
    asked = "SELECT current_setting('synchronous_commit'), current_setting('transaction_isolation')"
    assert await store._read(asked) == [("on", "read committed")]  # pyright: ignore[reportPrivateUsage]
    await store.close()


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
async def test_C10_two_machines_race_on_one_balance_at_any_default_isolation(database: str, level: str) -> None:
    query(database, f"ALTER DATABASE {database.rpartition('/')[2]} SET default_transaction_isolation = '{level}'")
    stores = [PostgresStore(database) for _ in range(2)]
    for store in stores:
        await store.start()
    for number in range(20):
        account = Account("racer", str(number))
        await stores[0].deposit(account, 10, str(number))
        made = await asyncio.gather(
            *[s.reserve(hold(f"{number}-{i}", 8, account=account)) for i, s in enumerate(stores)],
            return_exceptions=True,
        )
        assert sorted(type(one).__name__ for one in made) == ["Hold", "InsufficientBalance"]
        assert await stores[1].balance(account) == (2, 8)
    assert await stores[0].verify() == []
    for store in stores:
        await store.close()


async def test_F01_one_proof_at_two_machines_is_spent_once(store: PostgresStore, second: PostgresStore) -> None:
    await store.deposit(ALICE, 10_000, "d")
    for number in range(30):
        spend = Spend(f"proof {number}", FAR)
        made = await asyncio.gather(
            *[s.reserve(hold(f"{number}-{i}"), spend) for i, s in enumerate((store, second))], return_exceptions=True
        )
        assert sorted(type(one).__name__ for one in made) == ["Hold", "ProofUsed"]
    assert await store.balance(ALICE) == (7000, 3000)


async def test_C06_one_hold_id_at_two_machines_is_one_hold(store: PostgresStore, second: PostgresStore) -> None:
    await store.deposit(ALICE, 10_000, "d")
    bob = ALICE._replace(owner="bob")
    await store.deposit(bob, 10_000, "e")
    for number in range(30):
        one, other = await asyncio.gather(
            store.reserve(hold(str(number), holder="one"), Spend(f"a{number}", FAR)),
            second.reserve(
                hold(str(number), holder="two", account=bob if number % 2 else ALICE), Spend(f"b{number}", FAR)
            ),
        )
        assert one._replace(lease_until=0) == other._replace(lease_until=0)
        # The proof of who came second is not spent.
        spent = [await store.proof_spent(f"{name}{number}") for name in "ab"]
        assert spent == ([True, False] if one.holder == "one" else [False, True])
    assert await store.verify() == []


async def test_E01_one_deposit_key_at_two_machines_is_one_deposit(store: PostgresStore, second: PostgresStore) -> None:
    for number in range(30):
        one, other = await asyncio.gather(store.deposit(ALICE, 5, str(number)), second.deposit(ALICE, 5, str(number)))
        assert one == other
    with pytest.raises(PaymentUsed):
        await second.deposit(ALICE._replace(owner="bob"), 5, "0")
    assert await store.balance(ALICE) == (150, 0)


async def test_accounts_in_any_order_never_wait_in_a_circle(database: str) -> None:
    # Nobody breaks a circle here: where there is one, its moves wait until they have waited for too long (503).
    query(database, f"ALTER DATABASE {database.rpartition('/')[2]} SET deadlock_timeout = '1h'")
    accounts = [Account("deposits", str(number)) for number in range(20)]
    async with opened(database, busy_seconds=30) as store, opened(database, busy_seconds=30) as second:
        for turn in range(10):
            await asyncio.gather(
                *[store.deposit(account, 7, f"a{turn}{account.asset}") for account in accounts],
                *[second.deposit(account, 7, f"b{turn}{account.asset}") for account in reversed(accounts)],
            )
        assert [await store.balance(account) for account in accounts] == [(140, 0)] * 20


async def test_E11_eight_first_requests_of_an_unknown_payer(store: PostgresStore, second: PostgresStore) -> None:
    asked = [s.reserve(hold(str(n), account=Account("new", "x"))) for n in range(4) for s in (store, second)]
    made = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in made} == {InsufficientBalance}
    deposits = [s.deposit(Account("new", "x"), 1, f"{n}{id(s)}") for n in range(4) for s in (store, second)]
    await asyncio.gather(*deposits)
    assert await store.balance(Account("new", "x")) == (8, 0)


async def test_F01_a_proof_is_not_spent_where_the_balance_is_too_low(store: PostgresStore) -> None:
    with pytest.raises(InsufficientBalance) as raised:
        await store.reserve(hold("1"), Spend("p", FAR))
    assert (raised.value.available, raised.value.needed) == (0, 100)
    await store.deposit(ALICE, 200, "d")
    await store.reserve(hold("1"), Spend("p", FAR))
    with pytest.raises(ProofUsed):
        await store.reserve(hold("2"), Spend("p", FAR))


async def test_E06_a_hold_is_kept_alive_while_the_loop_is_busy_and_expires_when_nobody_is(
    store: PostgresStore, second: PostgresStore
) -> None:
    await store.deposit(ALICE, 1000, "d")
    await store.reserve(hold("1"))
    time.sleep(0.7)  # noqa: ASYNC251  # more than two leases, and the loop does nothing
    assert await second.expire(10) == []
    store._held["holds"].clear()  # pyright: ignore[reportPrivateUsage]
    await asyncio.sleep(0.4)
    ended = await asyncio.gather(store.expire(10), second.expire(10))
    assert sorted(len(part) for part in ended) == [0, 1]
    assert await store.balance(ALICE) == (1000, 0)


async def test_J07_a_lease_that_ends_too_late_was_given_before_the_clock_went_back(
    store: PostgresStore, second: PostgresStore, database: str
) -> None:
    await settle(store, new_claim())
    store._held["claims"].clear()  # pyright: ignore[reportPrivateUsage]
    query(database, "UPDATE x402kit.claims SET lease_until = lease_until + 3600000")
    assert await second.take("p", "settled", "b") is not None


async def test_C02_two_machines_do_not_take_one_nonce(store: PostgresStore, second: PostgresStore) -> None:
    asked = [s.take_nonce("w", f"{n}", 5) for n in range(20) for s in (store, second)]
    assert sorted(await asyncio.gather(*asked)) == list(range(5, 45))


async def test_K04_at_its_limit_the_store_refuses_new_claims_and_keeps_the_live_ones(database: str) -> None:
    store = PostgresStore(database, max_claims=3)
    await store.start()
    for number in range(3):
        await settle(store, new_claim(f"p{number}", payer=str(number)))
    with pytest.raises(TooManyRequests):
        await store.claim(new_claim("one more"))
    assert (await store.claim(new_claim("p0", owner="b"))).owner == "a"
    await store.move("p1", "serve", "a", final=1)
    assert await store.prune(FAR + 3601) == 1
    await settle(store, new_claim("the last place"))
    with pytest.raises(TooManyRequests):
        await store.claim(new_claim("one more"))
    await store.close()


async def test_the_app_needs_no_right_to_change_the_log(store: PostgresStore, database: str) -> None:
    """docs/postgresql.md: a role that can add entries, and neither change nor delete one."""
    await store.deposit(ALICE, 5, "before")
    query(database, LIMITED_ROLE)
    app = database.replace("postgres@", "app@")
    limited = PostgresStore(app)
    await limited.start()
    await limited.deposit(ALICE, 1000, "d")
    await limited.reserve(hold("1"), Spend("p", FAR))
    await limited.capture("1", 10)
    await settle(limited, new_claim())
    assert await limited.move("p", "serve", "a", captured=1)
    assert await limited.rebuild() == 2
    assert await limited.verify() == []
    assert "/" in await limited.place()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        query(app, "UPDATE x402kit.entries SET available = 7")
    await limited.close()


async def test_E12_what_is_wrong_is_found_and_the_balances_come_back_from_the_log(
    store: PostgresStore, database: str
) -> None:
    await store.deposit(ALICE, 1000, "d")
    await store.reserve(hold("1"))
    before = query(database, "SELECT * FROM x402kit.accounts ORDER BY owner")
    query(database, "UPDATE x402kit.accounts SET available = 5, held = 7, seq = 3")
    assert {fault.what for fault in await store.verify()} == {
        "available is not the log's",
        "held is not the log's",
        "held is not what open holds add up to",
        "an entry is missing",
    }
    query(database, "DELETE FROM x402kit.accounts")
    assert await store.rebuild() == 1
    assert query(database, "SELECT * FROM x402kit.accounts ORDER BY owner") == before
    assert await store.verify() == []
    query(database, "UPDATE x402kit.entries SET balance = balance + 1, key = 'x:1' WHERE type = 'reserve'")
    assert {fault.what for fault in await store.verify()} == {
        "an entry is not what the rules write",
        "a running balance is not the sum before it",
        "a hold has no entry of its amount",
        "a reserve has neither hold nor end",
    }


async def test_E01_a_key_that_two_entries_have_is_found_where_its_index_let_it_pass(
    store: PostgresStore, database: str
) -> None:
    for key in "ab":
        await store.deposit(ALICE, 10, key)
    query(database, "DROP INDEX x402kit.entries_key")
    query(database, "UPDATE x402kit.entries SET key = 'deposit:a'")
    assert await store.verify() == [("two entries have the same key", *ALICE, 1, 2)]


_NEXT = Migration(LATEST + 1, ("ALTER TABLE x402kit.claims ADD COLUMN note text NOT NULL DEFAULT ''",))
_BROKEN = _NEXT._replace(statements=(*_NEXT.statements, "ALTER TABLE x402kit.nothing ADD COLUMN x int"))


async def test_J08_a_migration_that_breaks_off_leaves_nothing_and_can_be_run_again(
    store: PostgresStore, database: str
) -> None:
    await store.claim(new_claim())
    connection = await psycopg.AsyncConnection.connect(database, autocommit=True)
    with pytest.raises(psycopg.errors.UndefinedTable):
        await postgres_base._migrate(connection, (*MIGRATIONS, _BROKEN))  # pyright: ignore[reportPrivateUsage]
    assert query(database, "SELECT value FROM x402kit.meta WHERE key = 'schema'") == [(b"%d" % LATEST,)]
    assert query(database, "SELECT 1 FROM information_schema.columns WHERE column_name = 'note'") == []
    for _ in range(2):
        await postgres_base._migrate(connection, (*MIGRATIONS, _NEXT))  # pyright: ignore[reportPrivateUsage]
    # The version before goes on beside it, and starts beside it.
    assert await store.move("p", "confirm", "a")
    old = PostgresStore(database)
    await old.start()
    await settle(old, new_claim("q"))
    await old.close()
    only_newer = _NEXT._replace(number=LATEST + 2, statements=(), oldest=LATEST + 1)
    await postgres_base._migrate(connection, (*MIGRATIONS, _NEXT, only_newer))  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(ConfigError, match=f"schema {LATEST + 2}"):
        await old.start()
    await connection.close()


async def test_J08_who_starts_beside_a_migration_waits_for_it_however_long_it_takes(database: str) -> None:
    lock = postgres_base._MIGRATING  # pyright: ignore[reportPrivateUsage]
    with psycopg.connect(database) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (lock,))
        store = PostgresStore(database, busy_seconds=0.5)
        starting = asyncio.create_task(store.start())
        await asyncio.sleep(1)
        assert not starting.done()
    await starting
    limits = await store._read("SELECT current_setting('lock_timeout')")  # pyright: ignore[reportPrivateUsage]
    assert limits == [("500ms",)]
    await store.close()


async def test_J08_who_waited_for_a_migration_that_is_too_new_does_not_start(database: str) -> None:
    async with opened(database):
        pass
    query(database, "UPDATE x402kit.meta SET value = '1' WHERE key = 'schema'")
    lock = postgres_base._MIGRATING  # pyright: ignore[reportPrivateUsage]
    with psycopg.connect(database) as newer:
        newer.execute("SELECT pg_advisory_xact_lock(%s)", (lock,))
        newer.execute("UPDATE x402kit.meta SET value = %s WHERE key LIKE 'schema%%'", (b"%d" % (LATEST + 1),))
        starting = asyncio.create_task(PostgresStore(database).start())
        await asyncio.sleep(0.5)
        assert not starting.done()
    with pytest.raises(ConfigError, match=f"schema {LATEST + 1}"):
        await starting


async def test_J08_J04_a_migration_that_finds_a_table_in_use_makes_no_payment_wait(database: str) -> None:
    """It gives up within its limit, and the next start makes it."""
    async with opened(database):
        pass
    query(database, "UPDATE x402kit.meta SET value = '1' WHERE key = 'schema'")
    query(database, "DROP TABLE x402kit.invoices")
    store = PostgresStore(database, busy_seconds=0.5)
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE x402kit.meta IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(LedgerUnreachable):
            await store.start()
    await store.start()
    await store.close()


async def test_I11_an_address_with_a_password_is_never_shown(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for dsn in (
        postgres.dsn("nothing").replace("postgres@", "postgres:sesame@"),
        "postgresql://postgres:sesame@127.0.0.1:1/x",
    ):
        store = PostgresStore(dsn, busy_seconds=0.3)
        with pytest.raises(ConfigError, match="can't be") as raised:
            await store.start()
        assert "sesame" not in f"{raised.value} {raised.value.__cause__}"
        assert "sesame" not in repr(store)
    with pytest.raises(ConfigError) as raised:
        PostgresStore("postgresql://a:sesame@h/d?unknown_option=1")
    assert "sesame" not in str(raised.value)
    assert "sesame" not in caplog.text


ROLES = """
    CREATE ROLE teller LOGIN PASSWORD 'right'; CREATE ROLE idle NOLOGIN; CREATE ROLE barred LOGIN;
"""
HBA = """
    host all barred 127.0.0.1/32 reject
    host all teller 127.0.0.1/32 scram-sha-256
    host all all 127.0.0.1/32 trust
"""


@pytest.fixture(scope="module")
def strict() -> Generator[PostgresServer]:
    """A server that asks one role for its password, and does not let another in."""
    with PostgresServer() as server:
        query(server.dsn(), ROLES)
        (server.data / "pg_hba.conf").write_text(HBA)
        server.stop()
        yield server.start()


@pytest.mark.parametrize(
    ("user", "database", "cause"),
    [
        ("postgres:sesame", "nothing", "there is no such database"),
        ("teller:sesame", "postgres", "the password is wrong"),
        ("teller", "postgres", "or there is none"),
        ("ghost:sesame", "postgres", "there is no such role"),
        ("idle:sesame", "postgres", "may not log in"),
        ("barred:sesame", "postgres", "pg_hba.conf"),
    ],
)
async def test_I11_a_start_that_is_refused_says_why_at_once_and_not_the_password(
    strict: PostgresServer, user: str, database: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="can't be opened") as raised:
        await PostgresStore(strict.dsn(database, user)).start()
    assert cause in str(raised.value)
    assert type(raised.value) is ConfigError
    assert time.monotonic() - started < 3  # a second try would fail as well
    assert not {"sesame", user.partition(":")[0], str(strict.port)} & set(str(raised.value).split())
    assert "sesame" not in caplog.text


@pytest.mark.parametrize(
    ("place", "cause"),
    [
        ("127.0.0.1:1/x", "nobody listens there"),
        ("localhost:1/x", "nobody listens there"),
        ("no-such-host.invalid/x", "its host's name is not found"),
    ],
)
async def test_I11_a_start_that_reaches_nobody_says_why_and_not_the_password(
    place: str, cause: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        if host.endswith(".invalid"):  # no question leaves this machine
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(LedgerUnreachable) as raised:
        await PostgresStore(f"postgresql://teller:sesame@{place}", busy_seconds=0.3).start()
    assert str(raised.value) == f"the ledger's database can't be reached: {cause}"
    assert "sesame" not in caplog.text


async def test_a_start_beside_the_servers_own_waits_for_it() -> None:
    with PostgresServer() as server:
        store = PostgresStore(server.create())
        server.stop()
        starting = asyncio.create_task(store.start())
        await asyncio.to_thread(server.start)
        await starting
        await store.close()


async def test_a_server_that_goes_and_comes_is_told_of_once_each(caplog: pytest.LogCaptureFixture) -> None:
    with PostgresServer() as server:
        store = PostgresStore(server.create(), lease_seconds=0.3, busy_seconds=0.5)
        await store.start()
        await store.claim(new_claim("1"))  # its lease is kept alive from another thread
        await asyncio.to_thread(server.stop)
        for _ in range(3):
            with pytest.raises(RailUnavailable):
                await store.get("1")
        await asyncio.to_thread(server.start)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(RailUnavailable):
                await store.get("1")
                break
        for _ in range(400):
            if "leases are kept alive again" in caplog.text:
                break
            await asyncio.sleep(0.05)
        await store.close()
    told = [record for record in caplog.records if record.name in ("x402kit.ledger", "psycopg.pool")]
    warned = [record.getMessage() for record in told if record.levelno >= logging.WARNING]
    assert [text.partition(":")[0] for text in warned if "leases" not in text] == [
        "the ledger's database can't be reached",
        "the ledger's database is reached again",
    ]
    assert [text.partition(":")[0] for text in warned if "leases" in text] == [
        "leases could not be kept alive",
        "leases are kept alive again",
    ]


async def test_I11_a_host_that_can_not_be_one_is_no_crash() -> None:
    with pytest.raises(ConfigError, match="can't be opened: its host's name") as raised:
        await PostgresStore("postgresql://teller:sesame@db..example/x").start()
    assert "sesame" not in str(raised.value)


def test_a_state_of_postgresqls_own_goes_before_its_words() -> None:
    assert fault_of(psycopg.errors.lookup("28P01")("der Kennwort-Test ging schief")).said.startswith("the password")
    assert fault_of(psycopg.errors.lookup("57P03")("the password")).wrong is False
    assert fault_of(psycopg.OperationalError("something else")).said == "the connection does not come about"


def test_a_store_can_be_opened_in_another_loop(database: str) -> None:
    store = PostgresStore(database)

    async def once(number: int) -> None:
        await store.start()
        await store.claim(new_claim(str(number), payer=str(number)))

    for number in range(2):
        asyncio.run(once(number))

    async def end() -> None:
        await store.start()
        assert await store.get("0") is not None
        await store.close()

    asyncio.run(end())


def test_what_was_under_way_in_a_loop_that_is_gone_is_free_for_others(database: str) -> None:
    store = PostgresStore(database, lease_seconds=0.3)

    async def begin() -> None:
        await store.start()
        await store.claim(new_claim())

    async def go_on() -> None:
        await store.start()
        await asyncio.sleep(0.7)  # more than two leases
        async with opened(database) as second:
            assert await second.take("p", "claimed", "b") is not None
        await store.close()

    asyncio.run(begin())
    asyncio.run(go_on())


def test_without_the_package_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from x402kit.ledger.open import store_of\n"
        "try: store_of('postgresql://h/d')\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtra")
    assert "x402kit-asgi[postgres]" in done.stdout


def test_a_ledger_is_known_by_its_address(database: str) -> None:
    assert isinstance(store_of(database), PostgresStore)
    assert isinstance(store_of(database.replace("postgresql", "postgres")), PostgresStore)
    store = store_of(database)
    assert store_of(store) is store


async def test_what_a_cancelled_caller_reserved_goes_back(store: PostgresStore) -> None:
    await store.deposit(ALICE, 1000, "d")
    task = asyncio.ensure_future(store.reserve(hold("1")))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.2)
    assert await store.balance(ALICE) == (1000, 0)


async def test_a_caller_that_is_cancelled_while_the_store_closes_is_cancelled(database: str) -> None:
    async with opened(database) as store:
        await store.deposit(ALICE, 1000, "d")
        reserving = asyncio.create_task(store.reserve(hold("1")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        reserving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reserving
        await closing
