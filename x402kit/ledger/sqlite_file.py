"""A SQLite file that is open for money: WAL, ``synchronous=FULL``, group commit, and the leases that we keep.

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
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from ..errors import ConfigError, LedgerUnreachable, RailUnavailable
from .files import boot_id, lock_memory, refuse_network_file_system
from .sqlite_schema import migrate
from .worker import Together, Worker, begin, is_busy

__all__ = ["SQLiteFile", "clock"]

T = TypeVar("T")
_LEASES: Final = {
    "claims": "owner = ? AND payment_id = ?",
    "payouts": "owner = ? AND payment_id = ?",
    "holds": "holder = ? AND id = ? AND state = 'open'",
}
"""Table → which row a lease belongs to, by who has it and the row's id."""


class SQLiteFile:
    """What all parts of the store stand on. Nothing is opened before ``start``."""

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
        self._forks = 0
        self._held: dict[str, set[tuple[str, str]]] = {table: set() for table in _LEASES}
        self._next_beat = 0
        self._writer: Worker | None = None
        self._reader: Worker | None = None
        self._memory_lock: IO[bytes] | None = None

    @property
    def lease_seconds(self) -> float:
        """How long a claim or hold stays with a process that no longer says that it is alive."""
        return self._lease_ms / 1000

    async def start(self) -> None:
        if self._writer is not None:
            return
        memory = self.path == ":memory:"
        if memory:
            self._memory_lock = lock_memory()
        else:
            refuse_network_file_system(self.path)
        self._forks = _forks
        self._writer = self._reader = Worker(
            self._open, every=self._lease_ms / 3000, tick=self._beat, busy_seconds=self._busy_seconds
        )
        try:
            self._writer.start()
            if not memory:
                self._reader = Worker(self._connect, transactions=False)
                self._reader.start()
        except BaseException as e:
            self._stop()
            if isinstance(e, sqlite3.Error | OSError | ValueError):
                kind = LedgerUnreachable if is_busy(e) else ConfigError
                raise kind(f"the ledger {self.path!r} can't be opened: {e}") from e
            raise

    async def close(self) -> None:
        if self._writer is not None and any(self._held.values()):
            with contextlib.suppress(RailUnavailable):  # the leases end by themselves
                await self._write(self._let_go)
        self._stop()

    def _stop(self) -> None:
        """Let go of all that is open. Who opens it again works on nothing of what was under way."""
        for worker in {self._writer, self._reader}:
            if worker is not None:
                worker.stop()
        self._writer = self._reader = None
        for held in self._held.values():
            held.clear()
        if self._memory_lock is not None:
            self._memory_lock.close()
        self._memory_lock = None

    async def secret(self) -> bytes:
        found = await self.get_meta("secret")
        assert found is not None
        return found

    async def get_meta(self, key: str) -> bytes | None:
        row = await self._read(lambda c: c.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone())
        return bytes(row[0]) if row else None

    async def set_meta(self, key: str, value: bytes, *, place: str = "") -> bool:
        sql = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
        return await self._write(lambda c: c.execute(sql, (key, value)).rowcount == 1)

    async def place(self) -> str:
        return ""

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self._busy_seconds, isolation_level=None, cached_statements=128)
        with _closed_on_failure(connection):
            _use_wal(connection, self._busy_seconds)
            connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _open(self) -> sqlite3.Connection:
        if self.path != ":memory:":
            path = Path(self.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        connection = self._connect()
        with _closed_on_failure(connection):
            self._prepare(connection)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA busy_timeout = 0")  # we wait by ourselves, here and in the worker
        migrate(connection, self._busy_seconds)
        begin(connection, self._busy_seconds)
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (secrets.token_bytes(32),))
        boot = boot_id().encode()
        if not boot:  # none to be seen from here: a lease that ends later than any can was made before a reboot
            for table in _LEASES:
                connection.execute(f"UPDATE {table} SET lease_until = 0 WHERE lease_until > ?", (clock() + 3_600_000,))
        elif connection.execute("SELECT value FROM meta WHERE key = 'boot'").fetchone() != (boot,):
            for table in _LEASES:
                connection.execute(f"UPDATE {table} SET lease_until = 0 WHERE lease_until <> 0")
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?)", (boot,))
        connection.execute("COMMIT")
        # Pages that many moves touch are neither read again from the file, nor copied into it with every hundredth.
        connection.execute("PRAGMA cache_size = -16000")
        connection.execute("PRAGMA wal_autocheckpoint = 1000")

    def _beat(self, connection: sqlite3.Connection) -> None:
        """Say that this process still works on what it holds; runs in the writer's thread, whatever the loop does."""
        now = clock()
        if now < self._next_beat:
            return
        self._next_beat = now + self._lease_ms // 3
        for table, held in self._held.items():
            if held:
                self._lease(connection, table, now + self._lease_ms)

    def _let_go(self, connection: sqlite3.Connection) -> None:
        for table, held in self._held.items():
            self._lease(connection, table, 0)
            held.clear()

    def _lease(self, connection: sqlite3.Connection, table: str, until: int) -> None:
        held = [(until, *key) for key in tuple(self._held[table])]
        connection.executemany(f"UPDATE {table} SET lease_until = ? WHERE {_LEASES[table]}", held)

    def _abandon(self, table: str, holder: str, row_id: str) -> None:
        """Give back what a caller who is gone may have been given: what is queued is done all the same, in order."""
        sql = f"UPDATE {table} SET lease_until = 0 WHERE {_LEASES[table]}"
        if self._writer is None:
            return
        released = self._write(lambda c: c.execute(sql, (holder, row_id)).rowcount)
        released.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _write(
        self, operation: Callable[[sqlite3.Connection], T], together: Together | None = None, values: Any = None
    ) -> asyncio.Future[T]:
        writer = self._writer
        if writer is None or self._forks != _forks:
            raise self._unusable()
        return writer.submit(operation, together, values)

    def _read(self, operation: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        reader = self._reader
        if reader is None or self._forks != _forks:
            raise self._unusable()
        return reader.submit(operation)

    def _unusable(self) -> ConfigError:
        if self._writer is None:
            return ConfigError("the ledger is not open: the app's lifespan did not run, or it is closed")
        return ConfigError("the process forked after it opened the ledger; open it in each worker (J06)")

    async def _rows(self, make: Callable[[Any], T], sql: str, *values: Any) -> list[T]:
        return await self._read(lambda c: [make(row) for row in c.execute(sql, values)])


_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


def clock() -> int:
    """The leases' clock, in milliseconds."""
    return time.monotonic_ns() // 1_000_000


@contextlib.contextmanager
def _closed_on_failure(connection: sqlite3.Connection) -> Generator[None]:
    """The error may live for long, and with it descriptors, and the lock of a transaction that broke off."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


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
