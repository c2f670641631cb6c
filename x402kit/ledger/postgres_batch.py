"""What waits together goes to PostgreSQL in one round trip and one transaction: a pipeline with one commit.

A batch is one implicit transaction of the pipeline, so its moves share one flush of the log. It first makes and locks
its accounts in the order of their keys: two processes never wait for each other in a circle, and each move of the batch
sees all that was committed on its account before (a statement's snapshot is taken when it starts). Each move is one
statement with its guards in WHERE: without the lock it would still be safe, only refused by a unique key at times.

A statement that fails spoils its batch, and then each goes alone. A connection lost on the way may have committed or
not: the batch is sent once more, and ``Rows.again`` says so to whoever reads the answers (E03).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import errors
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from ..errors import RailUnavailable
from ..model import Account

__all__ = ["Lane", "Pool", "Rows"]

Connection = psycopg.AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]

_MOST: Final = 128
_ALONE: Final = 5
"""Tries of a move that lost a race with another machine: a deadlock, a key that was written at the same moment."""
_RACES: Final = (errors.DeadlockDetected, errors.SerializationFailure, errors.UniqueViolation)
_LOCKED: Final = (errors.LockNotAvailable, errors.QueryCanceled)
_CREATE: Final = (
    "INSERT INTO x402kit.accounts (owner, asset, available) SELECT owner, asset, 0 FROM unnest(%s::text[], %s::text[])"
    " AS new (owner, asset) ORDER BY owner, asset ON CONFLICT DO NOTHING"
)
_LOCK: Final = (
    "SELECT 1 FROM x402kit.accounts WHERE (owner, asset) IN (SELECT * FROM unnest(%s::text[], %s::text[]))"
    " ORDER BY owner, asset FOR UPDATE"
)


class Rows(NamedTuple):
    """A statement's answer; ``again`` when it may have been executed before, its answer lost."""

    rows: list[tuple[Any, ...]]
    again: bool = False


class _Item(NamedTuple):
    sql: str
    values: Mapping[str, Any]
    account: Account | None
    creates: bool
    order: str
    future: asyncio.Future[Rows]


class _Lost(Exception):
    """The connection broke; what was sent may have been committed."""


def unavailable(error: BaseException | None = None) -> RailUnavailable:
    """The typed error for a store that can't answer now; the cause is for the log, not for the answer (I11)."""
    made = RailUnavailable("store_unavailable")
    made.__cause__ = error
    return made


class Lane:
    """One connection's worth of work: a queue, and a task while there is something in it. For one event loop."""

    def __init__(self, pool: Pool, seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds
        self._queue: list[_Item] = []
        self._task: asyncio.Task[None] | None = None

    def submit(
        self,
        sql: str,
        values: Mapping[str, Any],
        account: Account | None = None,
        *,
        creates: bool = False,
        order: str = "",
    ) -> asyncio.Future[Rows]:
        """Queue a statement; its future is done after the commit that holds it.

        ``account`` is locked before; ``creates`` where it may be new. ``order`` is the row that else is locked.
        """
        future: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        self._queue.append(_Item(sql, values, account, creates, order, future))
        if self._task is None:
            # The task starts once the loop has run all that is ready, so that they go together.
            self._task = asyncio.create_task(self._run(), name="x402kit-store")
        return future

    async def drained(self) -> None:
        """Until what is queued has been answered."""
        while self._task is not None:
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        batch: list[_Item] = []
        try:
            while self._queue:
                batch, self._queue = self._queue[:_MOST], self._queue[_MOST:]
                if not await self._execute(batch):
                    # It can't be reached: those who waited behind have waited as long.
                    waited, self._queue = self._queue, []
                    _fail(waited, None)
        finally:
            self._task = None
            _fail([*batch, *self._queue], None)
            self._queue = []

    async def _execute(self, batch: list[_Item], sent: bool = False) -> bool:
        """Run a batch and answer it. False when the database is out of reach, or locked for too long.

        ``sent`` when it may have been executed before.
        """
        batch.sort(key=lambda item: item.order)
        lost: BaseException | None = None
        for again in (sent, True):
            try:
                _answer(batch, await self._attempt(batch), again)
            except _Lost as e:
                lost = e.__cause__
                await self._pool.drain()  # the others may be as dead
                continue
            except (PoolTimeout, PoolClosed) as e:
                lost = e
                break
            except (psycopg.Error, ValueError) as e:
                # Where a value can't be sent, what was sent before it has been committed.
                return await self._one_by_one(batch, e, again or getattr(e, "sqlstate", None) is None)
            return True
        _fail(batch, lost)
        return False

    async def _one_by_one(self, batch: list[_Item], error: Exception, again: bool) -> bool:
        """Each for itself, so that one that can't be done does not spoil the others. False as ``_execute``."""
        if len(batch) == 1:
            await self._alone(batch[0], error, again)
            return True
        end = time.monotonic() + 2 * self._seconds
        locked: set[Account | None] = set()
        for number, item in enumerate(batch):
            if item.account is not None and item.account in locked:
                _fail([item], error)  # who waits for the same has waited long enough
                continue
            if time.monotonic() > end or not await self._execute([item], again):
                _fail(batch[number:], error)
                return False
            if _waited_in_vain(item):
                locked.add(item.account)
        return True

    async def _alone(self, item: _Item, error: Exception, again: bool) -> None:
        for tries in range(_ALONE):
            if not isinstance(error, _RACES):
                break
            await asyncio.sleep(0.002 * tries)
            try:
                _answer([item], await self._attempt([item]), again)
                return
            except (_Lost, PoolTimeout, PoolClosed) as e:
                _fail([item], e)
                return
            except psycopg.Error as e:
                error = e
        _fail([item], error)

    async def _attempt(self, batch: list[_Item]) -> list[list[tuple[Any, ...]]]:
        """One transaction: the accounts' locks, then the statements, and one answer for each."""
        connection = await self._pool.getconn(self._seconds)
        try:
            # The server has limits of its own; this one is for a network that swallows everything.
            async with asyncio.timeout(2 * self._seconds):
                return await _pipelined(connection, batch)
        except TimeoutError as e:
            await _close(connection)
            raise _Lost from e
        except psycopg.Error as e:
            if isinstance(e, errors.ReadOnlySqlTransaction):
                await _close(connection)  # another server may be the one to write to by now
            if connection.closed:
                raise _Lost from e
            raise
        except BaseException:
            await _close(connection)
            raise
        finally:
            await self._pool.putconn(connection)


async def _pipelined(connection: Connection, batch: list[_Item]) -> list[list[tuple[Any, ...]]]:
    accounts = sorted({item.account for item in batch if item.account is not None})
    new = sorted({item.account for item in batch if item.account is not None and item.creates})
    cursors: list[psycopg.AsyncCursor[TupleRow]] = []
    async with connection.pipeline() as pipeline:
        for sql, these in ((_CREATE, new), (_LOCK, accounts)):
            if these:
                owners, assets = zip(*these, strict=True)
                await connection.cursor().execute(sql.encode(), (list(owners), list(assets)), prepare=True)
        for item in batch:
            cursor = connection.cursor()
            await cursor.execute(item.sql.encode(), item.values, prepare=True)
            cursors.append(cursor)
        await pipeline.sync()
        return [await cursor.fetchall() for cursor in cursors]


async def _close(connection: Connection) -> None:
    with contextlib.suppress(psycopg.Error):
        await connection.close()


def _answer(batch: list[_Item], answers: list[list[tuple[Any, ...]]], again: bool) -> None:
    for item, rows in zip(batch, answers, strict=True):
        if not item.future.done():  # cancelled meanwhile; the commit stands
            item.future.set_result(Rows(rows, again))


def _fail(items: list[_Item], error: BaseException | None) -> None:
    for item in items:
        if not item.future.done():
            item.future.set_exception(unavailable(error))


def _waited_in_vain(item: _Item) -> bool:
    """Whether an item that has its answer was refused since somebody else had a lock for too long."""
    failed = None if item.future.cancelled() else item.future.exception()
    return failed is not None and isinstance(failed.__cause__, _LOCKED)
