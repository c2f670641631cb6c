"""A ledger of the version before: migrated in place, interrupted anywhere, and still used by that version (J08)."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from collections.abc import Generator
from pathlib import Path

import pytest

from x402kit.errors import ConfigError
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.ledger.sqlite_schema import VERSION, migrate
from x402kit.model import Account, Balance, Hold

BEFORE = (Path(__file__).parent / "support" / "ledger_1.sql").read_text()
PAYER = Account.of("eip155:8453", "0xa", "0xPayer")
OLD_COLUMNS = (
    "payment_id, state, fingerprint, credential, resource, network, asset, pay_to, payer, amount, valid_until,"
    " created_at, deadline, confirmations, owner, lease_until, attempts, reference, intent, wallet, nonce, block,"
    " block_hash, log_index, final, settled_at, served_at, next_check, status, headers, body, kept_until,"
    " body_digest, reason, spent"
)
"""What that version reads and writes; it names them all."""


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return _before(tmp_path / "before.db")


def _before(path: Path) -> Path:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(BEFORE)
    return path


@contextlib.contextmanager
def beside(path: Path) -> Generator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as connection:
        yield connection


async def test_J08_a_ledger_of_the_version_before_goes_on(before: Path) -> None:
    store = SQLiteStore(before)
    await store.start()
    served, settled, claimed = [await store.get(f"first{name}") for name in ("served", "settled", "claimed")]
    assert served is not None
    assert settled is not None
    assert claimed is not None
    assert (served.state, served.body, served.captured, served.request_id) == ("served", b"goods", 0, "")
    assert (await store.secret())[:2] == b"\x01\x02"
    assert await store.verify() == []  # what was served before the books began is no fault
    assert await store.totals() == {}
    assert await store.move("firstsettled", "serve", captured=40)
    assert await store.balance(PAYER) == Balance(60)
    assert await store.verify() == []
    await store.close()


async def test_J08_the_version_before_may_go_on_beside_this_one(before: Path) -> None:
    store = SQLiteStore(before)
    await store.start()
    await store.deposit(PAYER, 100, "k")
    with beside(before) as old:
        row = old.execute(f"SELECT {OLD_COLUMNS} FROM claims WHERE payment_id = 'firstclaimed'").fetchone()
        marks = ", ".join("?" * len(row))
        old.execute(
            f"INSERT INTO claims ({OLD_COLUMNS}) SELECT {marks} WHERE 1 ON CONFLICT (payment_id)"
            " DO UPDATE SET state = excluded.state WHERE claims.state = 'failed'",
            ("second", *row[1:]),
        )
        old.execute("UPDATE claims SET state = 'settled' WHERE payment_id = 'second' AND state IN ('claimed')")
        old.execute("UPDATE claims SET state = 'served', lease_until = 0 WHERE payment_id = 'second'")
        old.execute("UPDATE claims SET final = 1, reason = 'reversed' WHERE payment_id = 'second'")
        for statement in BEFORE.split(";\n"):  # as it does at each start
            if statement.startswith("CREATE"):
                kind = " ".join(statement.split()[:2])
                old.execute(statement.replace(kind, f"{kind} IF NOT EXISTS", 1))
    assert await store.verify() == []
    assert await store.balance(PAYER) == Balance(100)  # it is not in the books, and so nothing is taken back
    await store.write_off("second")
    assert await store.balance(PAYER) == Balance(100)
    await store.reserve(Hold("h", *PAYER, 30, "me", 1, 2))
    assert await store.verify() == []
    await store.close()


def _migrate_and_die(path: Path, statements: int) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    left = statements

    def seen(_: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    connection.set_trace_callback(seen)
    migrate(connection)
    os._exit(0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_J08_a_migration_killed_at_any_statement_is_run_again(tmp_path: Path) -> None:
    for statements in range(100):
        path = _before(tmp_path / "killed.db")
        child = os.fork()
        if child == 0:
            _migrate_and_die(path, statements)
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222  # it ends at once
        store = SQLiteStore(path)
        await store.start()
        assert await store.get("firstserved") is not None
        assert await store.move("firstsettled", "serve", captured=1)
        assert (await store.balance(PAYER)).available == 99
        assert await store.verify() == []
        await store.close()
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        raise AssertionError("it was never done")
    assert statements > 30


async def test_J08_the_next_version_may_run_beside_and_the_one_after_it_may_not(before: Path) -> None:
    for version, goes in ((VERSION, True), (VERSION + 1, True), (VERSION + 2, False)):
        store = SQLiteStore(before)
        await store.start()
        await store.close()
        with beside(before) as other:
            other.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (version,))
        if goes:
            await store.start()
            await store.close()
            with beside(before) as other:
                assert other.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == (version,)
        else:
            with pytest.raises(ConfigError, match="newer version"):
                await store.start()
