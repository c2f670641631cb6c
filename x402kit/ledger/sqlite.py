"""The embedded store: one SQLite file, WAL, ``synchronous=FULL``, group commit; several processes may share it.

Leases run on the machine's monotonic clock, which all its processes share and no clock change moves (J07); a reboot
is seen by the boot id, and frees them. A file on a network file system and a process that forked after opening are
refused (J06).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from ..errors import ConfigError, RailUnavailable, TooManyRequests
from ..model import Claim
from .files import boot_id, lock_memory, refuse_network_file_system
from .rules import MOVES, OPEN
from .worker import Worker

__all__ = ["SQLiteStore"]

T = TypeVar("T")
_COLUMNS: Final = Claim._fields
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM claims"
_SELECT_ONE: Final = f"{_SELECT} WHERE payment_id = ?"
_INTEGERS: Final = frozenset(name for name, kind in get_type_hints(Claim).items() if kind is int)
_BLOBS: Final = frozenset(("fingerprint", "credential", "intent", "headers", "body", "body_digest"))
_OPEN_SQL: Final = "('" + "','".join(OPEN) + "')"


def _column(name: str) -> str:
    if name == "payment_id":
        return "payment_id TEXT NOT NULL UNIQUE"
    if name == "body":
        return "body BLOB"
    if name == "amount":
        return "amount INTEGER NOT NULL CHECK (amount > 0)"
    kind = "INTEGER" if name in _INTEGERS else "BLOB" if name in _BLOBS else "TEXT"
    return f"{name} {kind} NOT NULL"


_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    f"CREATE TABLE IF NOT EXISTS claims (id INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(map(_column, _COLUMNS))})",
    f"CREATE INDEX IF NOT EXISTS claims_open ON claims (payer) WHERE state IN {_OPEN_SQL}",
    "CREATE INDEX IF NOT EXISTS claims_watched ON claims (next_check) WHERE final = 0 AND state <> 'failed'",
    "CREATE INDEX IF NOT EXISTS claims_unserved ON claims (deadline) WHERE state = 'settled'",
    "CREATE INDEX IF NOT EXISTS claims_kept ON claims (kept_until) WHERE body IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS claims_forgotten ON claims (valid_until)",
    "CREATE TABLE IF NOT EXISTS nonces (wallet TEXT NOT NULL, nonce INTEGER NOT NULL, holder TEXT NOT NULL,"
    " free INTEGER NOT NULL, PRIMARY KEY (wallet, nonce)) WITHOUT ROWID",
)
"""Each statement can be run again (J08). Rows of ``nonces`` below the wallet's highest are kept while they are free."""

_MARGIN: Final = 3600
"""Seconds for which a claim outlives its authorization: our clock and the chain's are not one (C07)."""
_INSERT: Final = (
    f"INSERT INTO claims ({', '.join(_COLUMNS)})"
    f" SELECT {', '.join('?' * len(_COLUMNS))}"
    " WHERE (ifnull((SELECT max(id) FROM claims) - (SELECT min(id) FROM claims), 0) < ?"
    " OR (SELECT count(*) FROM claims) < ?)"
    f" AND (SELECT count(*) FROM claims WHERE payer = ? AND state IN {_OPEN_SQL}) < ?"
    " ON CONFLICT (payment_id) DO UPDATE SET "
    + ", ".join(f"{c} = excluded.{c}" for c in _COLUMNS if c != "payment_id")
    + " WHERE claims.state = 'failed' AND claims.spent = 0"
)


class SQLiteStore:
    """Claims in a SQLite file (``":memory:"`` for one process alone). Nothing is opened before ``start``."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lease_seconds: float = 15,
        max_claims: int = 5_000_000,
        max_open_per_payer: int = 256,
        busy_seconds: float = 5,
    ) -> None:
        self.path = os.fspath(path)
        self._lease_ms = int(lease_seconds * 1000)
        self._max_claims = max_claims
        self._max_open = max_open_per_payer
        self._busy_seconds = busy_seconds
        self._pid = 0
        self._held: set[str] = set()
        self._next_beat = 0
        self._writer: Worker | None = None
        self._reader: Worker | None = None
        self._memory_lock: object = None

    @property
    def lease_seconds(self) -> float:
        """How long a claim stays with a process that no longer says that it is alive."""
        return self._lease_ms / 1000

    async def start(self) -> None:
        if self._writer is not None:
            return
        memory = self.path == ":memory:"
        if memory:
            self._memory_lock = lock_memory()
        else:
            refuse_network_file_system(self.path)
        self._pid = os.getpid()
        self._writer = Worker(self._open, every=self._lease_ms / 3000, tick=self._beat)
        try:
            self._writer.start()
        except (sqlite3.Error, OSError) as e:
            self._writer = None
            raise ConfigError(f"the ledger {self.path!r} can't be opened: {e}") from e
        self._reader = self._writer
        if not memory:
            self._reader = Worker(self._connect, transactions=False)
            self._reader.start()

    async def close(self) -> None:
        if self._writer is not None and self._held:
            held = [tuple(key.split(" ", 1)) for key in self._held]
            self._held.clear()
            sql = "UPDATE claims SET lease_until = 0 WHERE owner = ? AND payment_id = ?"
            with contextlib.suppress(RailUnavailable):  # the leases end by themselves
                await self._write(lambda c: c.executemany(sql, held).rowcount)
        for worker in {self._writer, self._reader}:
            if worker is not None:
                worker.stop()
        self._writer = self._reader = None
        self._memory_lock = None

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self._busy_seconds, isolation_level=None, cached_statements=64)
        _use_wal(connection, self._busy_seconds)
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _open(self) -> sqlite3.Connection:
        if self.path != ":memory:":
            path = Path(self.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (secrets.token_bytes(32),))
        boot = boot_id().encode()
        if connection.execute("SELECT value FROM meta WHERE key = 'boot'").fetchone() != (boot,):
            connection.execute("UPDATE claims SET lease_until = 0 WHERE lease_until <> 0")
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?)", (boot,))
        elif not boot:  # no such id here: a lease that ends later than any can was made before a reboot
            connection.execute("UPDATE claims SET lease_until = 0 WHERE lease_until > ?", (_clock() + 3_600_000,))
        connection.execute("COMMIT")
        return connection

    def _beat(self, connection: sqlite3.Connection) -> None:
        """Say that this process still works on what it holds; runs in the writer's thread, whatever the loop does."""
        now = _clock()
        if now < self._next_beat:
            return
        self._next_beat = now + self._lease_ms // 3
        until = now + self._lease_ms
        held = [(until, *key.split(" ", 1)) for key in tuple(self._held)]
        if held:
            connection.executemany("UPDATE claims SET lease_until = ? WHERE owner = ? AND payment_id = ?", held)

    def _write(self, operation: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        return self._worker(self._writer).submit(operation)

    def _read(self, operation: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        return self._worker(self._reader).submit(operation)

    def _worker(self, worker: Worker | None) -> Worker:
        if worker is None:
            raise ConfigError("the ledger is not open: the app's lifespan did not run, or it is closed")
        if os.getpid() != self._pid:
            raise ConfigError("the process forked after it opened the ledger; open it in each worker (J06)")
        return worker

    async def secret(self) -> bytes:
        row = await self._read(lambda c: c.execute("SELECT value FROM meta WHERE key = 'secret'").fetchone())
        return bytes(row[0])

    async def get(self, payment_id: str) -> Claim | None:
        return await self._read(lambda c: _get(c, payment_id))

    async def claim(self, claim: Claim) -> Claim:
        row = claim.changed(lease_until=_clock() + self._lease_ms)
        # The span of the ids is known at once; only one old row that stays makes it wide, and then they are counted.
        limits = (self._max_claims, self._max_claims, claim.payer, self._max_open)

        def insert(c: sqlite3.Connection) -> Claim:
            if c.execute(_INSERT, (*row, *limits)).rowcount == 1:
                return row
            found = _get(c, row.payment_id)
            if found is None:
                raise TooManyRequests("too_many_open_payments")
            return found

        key = f"{row.owner} {row.payment_id}"
        self._held.add(key)
        won = False
        try:
            found = await self._write(insert)
            won = found.owner == row.owner
            return found
        except asyncio.CancelledError:
            self._abandon(row.payment_id, row.owner)
            raise
        finally:
            if not won:
                self._held.discard(key)

    def _abandon(self, payment_id: str, owner: str) -> None:
        """Give back what a caller who is gone may have been given: what is queued is done all the same, in order."""
        sql = "UPDATE claims SET lease_until = 0 WHERE payment_id = ? AND owner = ?"
        released = self._worker(self._writer).submit(lambda c: c.execute(sql, (payment_id, owner)).rowcount)
        released.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def take(self, payment_id: str, state: str, owner: str) -> Claim | None:
        now = _clock()
        sql = (
            "UPDATE claims SET owner = ?, lease_until = ?, attempts = attempts + (state = 'settled')"
            " WHERE payment_id = ? AND state = ? AND lease_until < ? RETURNING " + ", ".join(_COLUMNS)
        )

        def take(c: sqlite3.Connection) -> Any:
            former = c.execute("SELECT owner FROM claims WHERE payment_id = ?", (payment_id,)).fetchone()
            row = c.execute(sql, (owner, now + self._lease_ms, payment_id, state, now)).fetchone()
            if row is not None and state == "claimed":
                c.execute("UPDATE nonces SET free = 1 WHERE holder = ?", former)
            return row

        try:
            row = await self._write(take)
        except asyncio.CancelledError:
            self._abandon(payment_id, owner)
            raise
        if row is None:
            return None
        self._held.add(f"{owner} {payment_id}")
        return Claim._make(row)

    async def move(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool:
        end = MOVES[move][1]
        # A claim that reached its end, or that waits for the chain alone, needs no lease.
        ends = end in ("served", "failed", "credited", "unknown")
        if ends:
            columns["lease_until"] = 0
        sql = _move_sql(move, tuple(columns), owner is not None)
        values = (*columns.values(), payment_id) if owner is None else (*columns.values(), payment_id, owner)
        try:
            return await self._write(lambda c: c.execute(sql, values).rowcount == 1)
        finally:
            if ends:  # done or not: whoever asked works on it no more, and its lease must be able to end
                self._held.discard(f"{owner} {payment_id}")

    async def note(self, payment_id: str, **columns: Any) -> None:
        sql = f"UPDATE claims SET {_assignments(tuple(columns))} WHERE payment_id = ?"
        values = (*columns.values(), payment_id)
        await self._write(lambda c: c.execute(sql, values).rowcount)

    async def release(self, payment_id: str, owner: str) -> None:
        self._held.discard(f"{owner} {payment_id}")
        sql = "UPDATE claims SET lease_until = 0 WHERE payment_id = ? AND owner = ?"
        await self._write(lambda c: c.execute(sql, (payment_id, owner)).rowcount)

    async def due(self, now: int, limit: int = 1000) -> list[Claim]:
        sql = (
            f"{_SELECT} WHERE final = 0 AND state <> 'failed' AND (next_check <= ? OR next_check > ?) AND"
            " (state NOT IN ('claimed', 'sent') OR lease_until < ?) ORDER BY next_check LIMIT ?"
        )
        # Nobody waits that long: the clock was set back since (J07).
        return await self._rows(sql, now, now + 600, _clock(), limit)

    async def expired(self, now: int, limit: int = 100) -> list[Claim]:
        sql = f"{_SELECT} WHERE state = 'settled' AND deadline <= ? AND lease_until < ? LIMIT ?"
        return await self._rows(sql, now, _clock(), limit)

    async def _rows(self, sql: str, *values: int) -> list[Claim]:
        return await self._read(lambda c: [Claim._make(row) for row in c.execute(sql, values)])

    async def prune(self, now: int) -> int:
        # Both go by an index and in small bites: payments wait for the writer meanwhile.
        bodies = "SELECT id FROM claims WHERE body IS NOT NULL AND kept_until < ? LIMIT 1000"
        rows = (
            "SELECT id FROM claims WHERE valid_until < ? AND (state = 'failed' OR"
            " (state IN ('served', 'credited') AND final = 1 AND kept_until < ?)) LIMIT 1000"
        )

        def forget(c: sqlite3.Connection) -> int:
            c.execute(f"UPDATE claims SET body = NULL WHERE id IN ({bodies})", (now,))
            return c.execute(f"DELETE FROM claims WHERE id IN ({rows})", (now - _MARGIN, now)).rowcount

        return await self._write(forget)

    async def take_nonce(self, wallet: str, holder: str, floor: int) -> int:
        def take(c: sqlite3.Connection) -> int:
            # A free one below the chain's count was used by something else: not ours to give any more.
            sql = (
                "UPDATE nonces SET free = 0, holder = ? WHERE wallet = ? AND nonce ="
                " (SELECT min(nonce) FROM nonces WHERE wallet = ? AND free = 1 AND nonce >= ?) RETURNING nonce"
            )
            row = c.execute(sql, (holder, wallet, wallet, floor)).fetchone()
            if row is None:
                c.execute("DELETE FROM nonces WHERE wallet = ? AND nonce < ? - 1000", (wallet, floor))
                sql = (
                    "INSERT INTO nonces SELECT ?, max(?, ifnull(max(nonce) + 1, 0)), ?, 0 FROM nonces"
                    " WHERE wallet = ? RETURNING nonce"
                )
                row = c.execute(sql, (wallet, floor, holder, wallet)).fetchone()
            return int(row[0])

        return await self._write(take)

    async def free_nonces(self, holder: str, wallet: str = "", nonce: int = -1) -> None:
        sql = "UPDATE nonces SET free = 1 WHERE holder = ?"
        values: tuple[str | int, ...] = (holder,)
        if nonce >= 0:
            sql += " AND wallet = ? AND nonce = ?"
            values += (wallet, nonce)
        await self._write(lambda c: c.execute(sql, values).rowcount)


def _clock() -> int:
    return time.monotonic_ns() // 1_000_000


def _use_wal(connection: sqlite3.Connection, seconds: float) -> None:
    """Switch to WAL. SQLite does not wait for this lock by itself, and workers that start together want it (C02)."""
    end = time.monotonic() + seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _get(connection: sqlite3.Connection, payment_id: str) -> Claim | None:
    row = connection.execute(_SELECT_ONE, (payment_id,)).fetchone()
    return Claim._make(row) if row else None


def _assignments(columns: tuple[str, ...]) -> str:
    unknown = set(columns) - set(_COLUMNS)
    assert not unknown, unknown
    return ", ".join(f"{name} = ?" for name in columns)


@lru_cache(maxsize=64)
def _move_sql(move: str, columns: tuple[str, ...], owned: bool) -> str:
    """The one statement that makes a move: the states that it may start from guard it, and its owner."""
    start, end = MOVES[move]
    assignments = ", ".join(filter(None, (f"state = '{end}'", _assignments(columns))))
    states = "', '".join(start)
    owner = " AND owner = ?" if owned else ""
    return f"UPDATE claims SET {assignments} WHERE payment_id = ? AND state IN ('{states}'){owner}"
