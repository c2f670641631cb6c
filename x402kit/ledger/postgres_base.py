"""The PostgreSQL store's ground: its pool and lanes, its migrations, and the thread that keeps its leases alive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, Final
from zlib import crc32

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg.types.numeric import Int8Dumper
from psycopg_pool import PoolTimeout

from ..errors import ConfigError, LedgerUnreachable, RailUnavailable
from ..model import Account
from .postgres_batch import Connection, Lane, Pool, Rows, unavailable
from .postgres_reach import Reached, pool_options, reach
from .postgres_schema import CLOCK, LATEST, MIGRATIONS, PREPARE, Migration

__all__ = ["FREE", "Base"]

FREE: Final = f"(lease_until < {CLOCK} OR lease_until > {CLOCK} + 600000)"
"""Nobody says any more that it works on the row. A lease that ends that late was given before the clock went back."""

_SETTINGS: Final = {
    "default_transaction_isolation": "read committed",
    "client_min_messages": "warning",
    # Every statement goes by a key: it is planned once, and well even before the tables have been counted.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "jit": "off",
    # A commit that is not on disk is no commit (J02); who has set more than this keeps it.
    "synchronous_commit": "on",
}
_CONFIGURE: Final = (
    "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)"
    " JOIN pg_settings USING (name) WHERE name <> 'synchronous_commit' OR setting = 'off'"
)

_UNLIMITED: Final = "SELECT set_config('statement_timeout', '0', true), set_config('enable_seqscan', 'on', true)"

_Held = dict[tuple[str, str], Account | None]
"""What this process works on: who, the row's id, and the account of a hold."""

_PLACE: Final = (
    "((SELECT system_identifier FROM pg_control_system())::text || '/' ||"
    " ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint)"
)
"""The database's identifier and its timeline, which a replica counts up when it takes over."""

_PATIENT: Final = "SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)"
_MIGRATING: Final = 402_402_402
"""The number of the advisory lock under which a start migrates: processes that start together wait for each other."""
_BEAT: Final = (
    "UPDATE x402kit.{table} SET lease_until = {clock} + %(lease)s WHERE {key} IN (SELECT {key} FROM x402kit.{table}"
    " WHERE ({key}, {who}) IN (SELECT * FROM unnest(%(keys)s::text[], %(whos)s::text[])) AND lease_until > 0"
    " FOR UPDATE SKIP LOCKED)"
)
_BEATS: Final = {
    "claims": _BEAT.format(table="claims", key="payment_id", who="owner", clock=CLOCK),
    "payouts": _BEAT.format(table="payouts", key="payment_id", who="owner", clock=CLOCK),
    "holds": (
        f"UPDATE x402kit.holds SET lease_until = {CLOCK} + %(lease)s WHERE (owner, asset, id) IN (SELECT owner, asset,"
        " id FROM x402kit.holds WHERE (owner, asset, id, holder) IN (SELECT * FROM unnest(%(owners)s::text[],"
        " %(assets)s::text[], %(keys)s::text[], %(whos)s::text[])) AND lease_until > 0 FOR UPDATE SKIP LOCKED)"
    ),
}
"""A row that is locked is being moved: its lease lasts for two beats more. The beats wait for nobody."""


class Base:
    """Connections, leases, meta. The parts of the store build on it."""

    def __init__(
        self,
        dsn: str,
        *,
        lease_seconds: float = 15,
        max_claims: int = 5_000_000,
        max_open_per_payer: int = 256,
        busy_seconds: float = 5,
        lanes: int = 1,
    ) -> None:
        try:
            self._conninfo: dict[str, Any] = {
                "application_name": "x402kit",
                "connect_timeout": max(2, int(busy_seconds)),
                "tcp_user_timeout": int(busy_seconds * 2000),
                **conninfo_to_dict(dsn),
            }
        except psycopg.Error:
            raise ConfigError("the ledger's address can't be read: postgresql://user:password@host/database") from None
        if not 0 < lease_seconds <= 300:
            raise ConfigError("a lease is at most 300 seconds")
        if lanes < 1:
            raise ConfigError("the store needs a lane to write in")
        self._lease_ms = int(lease_seconds * 1000)
        self._max_claims = max_claims
        self._max_open = max_open_per_payer
        self._busy = busy_seconds
        self._lane_count = lanes
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: Pool | None = None
        self._lanes: list[Lane] = []
        self._reads: Lane | None = None
        self._held: dict[str, _Held] = {table: {} for table in _BEATS}
        self._stop: threading.Event | None = None
        self._beats: threading.Thread | None = None

    @property
    def lease_seconds(self) -> float:
        """How long a claim or hold stays with a process that no longer says that it is alive."""
        return self._lease_ms / 1000

    async def start(self) -> None:
        """Connect and migrate.

        Raises ``LedgerUnreachable`` where the database does not answer, ``ConfigError`` where it can't be used; neither
        shows the address (I11).
        """
        loop = asyncio.get_running_loop()
        if self._pool is not None:
            if self._loop is loop and os.getpid() == self._pid:
                return
            self._pool = None  # of a loop that is gone, and with it all that was under way
            self._stop_beating()
            self._held = {table: {} for table in _BEATS}
        self._pid = os.getpid()
        self._loop = loop
        await reach(self._conninfo, self._busy)
        pool: Pool = Pool(
            **pool_options(self._conninfo),
            min_size=1,
            max_size=self._lane_count + 2,
            timeout=self._busy,
            reconnect_timeout=self._busy,
            max_lifetime=1800,
            configure=self._configure,
            open=False,
        )
        try:
            await pool.open(wait=True, timeout=self._busy)
            async with pool.connection() as connection:
                await _migrate(connection)
        except (PoolTimeout, psycopg.Error) as e:
            await pool.close()
            if isinstance(e, PoolTimeout):
                raise LedgerUnreachable("the ledger's database can't be reached: it went away, or is full") from None
            if isinstance(e, psycopg.OperationalError):
                raise LedgerUnreachable(f"the ledger's database can't be used now: {_said(e)}") from None
            raise ConfigError(f"the ledger's database can't be opened: {_said(e)}") from None
        except BaseException:
            await pool.close()
            raise
        self._pool = pool
        self._lanes = [Lane(pool, self._busy) for _ in range(self._lane_count)]
        self._reads = Lane(pool, self._busy)
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._beat, args=(self._stop,), name="x402kit-leases", daemon=True)
        self._beats.start()

    async def close(self) -> None:
        """Answer what is queued, give the leases back, and disconnect."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        self._stop_beating()
        for lane in (*self._lanes, self._reads):
            if lane is not None:
                await lane.drained()
        held, self._held = self._held, {table: {} for table in _BEATS}
        with contextlib.suppress(RailUnavailable):  # the leases end by themselves
            await asyncio.gather(*[self._lanes[0].submit(*item) for item in _releases(held)])
        await pool.close()

    def _stop_beating(self) -> None:
        if self._stop is not None:
            self._stop.set()

    async def _configure(self, connection: Connection) -> None:
        connection.prepared_max = 200
        connection.adapters.register_dumper(int, Int8Dumper)  # one type, so one prepared statement
        limit = f"{int(self._busy * 1000)}ms"
        settings = {
            **_SETTINGS,
            **dict.fromkeys(("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"), limit),
        }
        await connection.execute(_CONFIGURE, (list(settings), list(settings.values())))

    def _open(self) -> Pool:
        if self._pool is None:
            raise ConfigError("the ledger is not open: the app's lifespan did not run, or it is closed")
        if os.getpid() != self._pid:
            raise ConfigError("the process forked after it opened the ledger; open it in each worker (J06)")
        return self._pool

    def _write(
        self,
        sql: str,
        values: Mapping[str, Any],
        *,
        of: str,
        account: Account | None = None,
        creates: bool = False,
        order: str = "",
    ) -> asyncio.Future[Rows]:
        """Queue a move. What has the same ``of`` goes in order; the rest is as in ``Lane.submit``."""
        self._open()
        lane = self._lanes[crc32(of.encode()) % self._lane_count]
        return lane.submit(sql, values, account, creates=creates, order=order)

    async def _read(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        self._open()
        assert self._reads is not None
        return (await self._reads.submit(sql, values)).rows

    @contextlib.asynccontextmanager
    async def _aside(self, isolation: str = "") -> AsyncGenerator[psycopg.AsyncConnection[TupleRow]]:
        """A transaction without limits of time: for what the operator asks, not a payer.

        Raises ``ConfigError`` for what the role may not do, or the server can't: it would be refused again.
        """
        pool = self._open()
        await pool.check()
        try:
            async with pool.connection(self._busy) as connection, connection.transaction(), connection.pipeline():
                if isolation:
                    await connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
                await connection.execute(_UNLIMITED)
                yield connection
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as e:
            raise ConfigError(f"the ledger's database refuses it: {_said(e)}") from None
        except (psycopg.Error, PoolTimeout) as e:
            raise unavailable(e) from None

    async def secret(self) -> bytes:
        """32 random bytes, made once and shared by all processes of this store."""
        found = await self.get_meta("secret")
        assert found is not None
        return found

    async def get_meta(self, key: str) -> bytes | None:
        """What was stored with ``key``."""
        rows = await self._read("SELECT value FROM x402kit.meta WHERE key = %(key)s", key=key)
        return rows[0][0] if rows else None

    async def set_meta(self, key: str, value: bytes, *, place: str = "") -> bool:
        """Store a value with ``key``, for all processes of this store; where ``place`` is given, only there."""
        here = f" WHERE {_PLACE} = %(place)s" if place else ""
        sql = (
            f"INSERT INTO x402kit.meta (key, value) SELECT %(key)s, %(value)s{here} ON CONFLICT (key) DO UPDATE SET"
            " value = excluded.value RETURNING 1"
        )
        return bool((await self._write(sql, {"key": key, "value": value, "place": place}, of=key, order=key)).rows)

    async def place(self) -> str:
        """Which history of which database this is: it changes when a replica has taken over (J05)."""
        try:
            return str((await self._read(f"SELECT {_PLACE}"))[0][0])
        except RailUnavailable as e:
            if isinstance(e.__cause__, psycopg.errors.UndefinedFunction | psycopg.errors.InsufficientPrivilege):
                return ""  # a database that speaks PostgreSQL and is another
            raise

    # Leases are kept alive by a thread, whatever the event loop does.

    def _hold_on(self, table: str, key: str, who: str, account: Account | None = None) -> None:
        self._held[table][who, key] = account

    def _let_go(self, table: str, key: str, who: str) -> None:
        self._held[table].pop((who, key), None)

    def _beat(self, stop: threading.Event) -> None:
        connection: psycopg.Connection | None = None
        reached = Reached("leases could not be kept alive", "leases are kept alive again")
        while not stop.wait(self._lease_ms / 3000):
            held = [(table, dict(rows)) for table, rows in self._held.items() if rows]
            if not held or os.getpid() != self._pid:
                continue
            try:
                if connection is None or connection.closed:
                    connection = psycopg.connect(**self._conninfo, autocommit=True)
                    connection.execute(f"SET statement_timeout = {self._lease_ms // 3}".encode())
                for table, rows in held:
                    connection.execute(_BEATS[table].encode(), {**_arrays(rows), "lease": self._lease_ms})
                reached.came()
            except psycopg.Error as e:
                reached.failed(e)
                if connection is not None:
                    connection.close()  # another server may be the one to write to by now
        if connection is not None:
            connection.close()


def _arrays(rows: _Held) -> dict[str, list[str]]:
    accounts = [account or Account("", "") for account in rows.values()]
    return {
        "keys": [key for _, key in rows],
        "whos": [who for who, _ in rows],
        "owners": [account.owner for account in accounts],
        "assets": [account.asset for account in accounts],
    }


def _releases(held: Mapping[str, _Held]) -> Iterable[tuple[str, dict[str, Any]]]:
    for table, rows in held.items():
        key, who = ("id", "holder") if table == "holds" else ("payment_id", "owner")
        if rows:
            yield (
                f"UPDATE x402kit.{table} SET lease_until = 0 WHERE ({key}, {who}) IN"
                " (SELECT * FROM unnest(%(keys)s::text[], %(whos)s::text[])) RETURNING 1",
                _arrays(rows),
            )


def _said(error: psycopg.Error) -> str:
    """What the server said, which never holds the address."""
    return error.diag.message_primary or type(error).__name__


async def _migrate(connection: Connection, migrations: tuple[Migration, ...] = MIGRATIONS) -> None:
    """Bring the tables to this version. Raises ``ConfigError`` where they are of one that this can't run beside."""
    found, oldest = await _versions(connection)
    if found < migrations[-1].number:
        for migration in migrations:
            async with connection.transaction():
                limit = await (await connection.execute("SELECT current_setting('lock_timeout')")).fetchone()
                # It may take its time, and the others wait for it; but it waits for no table, while payments wait.
                await connection.execute(_PATIENT)
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
                await connection.execute("SELECT set_config('lock_timeout', %s, true)", limit)
                for statement in PREPARE:
                    await connection.execute(statement)
                found, oldest = await _versions(connection)
                if found < migration.number:
                    await _apply(connection, migration)
    if oldest > migrations[-1].number:
        raise ConfigError(
            f"the ledger is of schema {found} and can be used from {oldest} on; this version knows {LATEST}"
        )


async def _versions(connection: Connection) -> tuple[int, int]:
    """The schema's number, and the oldest that may use it; zeros where there is none."""
    exists = await (await connection.execute("SELECT to_regclass('x402kit.meta') IS NOT NULL")).fetchone()
    if not exists or not exists[0]:
        return 0, 0
    rows = await connection.execute("SELECT key, value FROM x402kit.meta WHERE key IN ('schema', 'schema_oldest')")
    found = {key: int(value) for key, value in await rows.fetchall()}
    return found.get("schema", 0), found.get("schema_oldest", 0)


async def _apply(connection: Connection, migration: Migration) -> None:
    for statement in migration.statements:
        await connection.execute(statement.encode())
    sql = "INSERT INTO x402kit.meta VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    for key, number in (("schema", migration.number), ("schema_oldest", migration.oldest)):
        await connection.execute(sql, (key, str(number).encode()))
    secret = "INSERT INTO x402kit.meta VALUES ('secret', %s) ON CONFLICT (key) DO NOTHING"
    await connection.execute(secret, (secrets.token_bytes(32),))
