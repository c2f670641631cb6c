"""One thread that owns a SQLite connection: what waits together is executed in one transaction, with one fsync.

Group commit: the thread takes all operations that are queued, runs them inside one ``BEGIN IMMEDIATE`` … ``COMMIT``,
and answers each only after the commit. The event loop never touches the disk. An operation that fails leaves no trace
and does not spoil the others: it writes by one statement, or, where it had written before it failed, the transaction
begins anew with a savepoint around each.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import RailUnavailable, ServerError

__all__ = ["Worker"]

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], Any]
_Item = tuple[Operation, "asyncio.Future[Any]"]
_Group = tuple[asyncio.AbstractEventLoop, list[_Item]]
_Answer = tuple["asyncio.Future[Any]", Any, BaseException | None]
_BATCH = 512


def unavailable(error: sqlite3.Error) -> RailUnavailable:
    """The typed error for a store that can't write now; the cause stays for the log, not for the answer (I11)."""
    made = RailUnavailable("store_unavailable")
    made.__cause__ = error
    return made


class Worker:
    """Runs operations on one connection in one thread; ``transactions`` off is for a reader."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        transactions: bool = True,
        every: float | None = None,
        tick: Operation | None = None,
        busy_seconds: float = 5,
    ) -> None:
        self._connect = connect
        self._transactions = transactions
        self._every = every
        self._tick = tick
        self._busy_seconds = busy_seconds
        self._queue: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._waiting: dict[asyncio.AbstractEventLoop, list[_Item]] = {}
        self._thread = threading.Thread(target=self._run, name="x402kit-store", daemon=True)
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._stopped = False

    def start(self) -> None:
        """Open the connection in the thread; raises what opening raised."""
        self._thread.start()
        error = self._started.get()
        if error is not None:
            raise error

    def stop(self) -> None:
        """Finish what is queued and close. What comes later is told that the store is gone."""
        self._stopped = True
        self._queue.put(None)
        self._thread.join()

    def submit(self, operation: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """Queue an operation; its future is done after the commit that holds it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        waiting = self._waiting.get(loop)
        if waiting is None:
            # Handed over once the loop has run all that is ready: waking the thread for each operation would make the
            # two threads fight for the interpreter lock (measured: 1 100 instead of 9 000 claims a second).
            waiting = self._waiting[loop] = []
            loop.call_soon(self._hand_over, loop)
        waiting.append((operation, future))
        return future

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        items = self._waiting.pop(loop)
        if self._stopped:
            _resolve([(future, None, RailUnavailable("store_unavailable")) for _, future in items])
        else:
            self._queue.put((loop, items))

    def _run(self) -> None:
        try:
            connection = self._connect()
        except (sqlite3.Error, OSError, ServerError) as e:
            self._started.put(e)
            return
        self._started.put(None)
        going = True
        while going:
            batch, going = self._next()
            for loop, answers in self._execute(connection, batch):
                # Where the loop is closed, whoever asked is gone, and the commit stands.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(_resolve, answers)
        connection.close()

    def _next(self) -> tuple[list[_Group], bool]:
        batch: list[_Group] = []
        size = 0
        try:
            group = self._queue.get(timeout=self._every)
            while True:
                if group is None:
                    return batch, False
                batch.append(group)
                size += len(group[1])
                if size >= _BATCH:
                    break
                group = self._queue.get_nowait()
        except queue.Empty:
            pass
        return batch, True

    def _execute(
        self, connection: sqlite3.Connection, batch: list[_Group]
    ) -> list[tuple[asyncio.AbstractEventLoop, list[_Answer]]]:
        if not batch and self._tick is None:
            return []
        try:
            try:
                return self._transaction(connection, batch, _one)
            except _HalfDone:
                connection.execute("ROLLBACK")
                return self._transaction(connection, batch, _apart)
        except sqlite3.Error as e:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return [(loop, [(future, None, unavailable(e)) for _, future in items]) for loop, items in batch]

    def _transaction(
        self, connection: sqlite3.Connection, batch: list[_Group], run: Callable[[sqlite3.Connection, _Item], _Answer]
    ) -> list[tuple[asyncio.AbstractEventLoop, list[_Answer]]]:
        if self._transactions:
            _begin(connection, self._busy_seconds)
        made = [(loop, [run(connection, item) for item in items]) for loop, items in batch]
        if self._tick is not None:
            self._tick(connection)
        if self._transactions:
            connection.execute("COMMIT")
        return made


class _HalfDone(Exception):  # never leaves this file
    """An operation failed after it had written."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _begin(connection: sqlite3.Connection, seconds: float) -> None:
    """Take the file's lock. SQLite sleeps up to 100 ms at a time: of many processes one would wait in vain (C02)."""
    end = time.monotonic() + seconds
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as e:
            if e.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.0005 + 0.002 * random.random())


def _one(connection: sqlite3.Connection, item: _Item) -> _Answer:
    operation, future = item
    before = connection.total_changes
    try:
        return future, operation(connection), None
    except sqlite3.IntegrityError as e:
        error: BaseException = unavailable(e)
    except sqlite3.Error:
        raise  # the whole transaction
    except Exception as e:  # noqa: BLE001  # the background border: a value that can't be stored must not end the thread
        error = e
    if connection.total_changes != before and connection.in_transaction:
        raise _HalfDone(error)
    return future, None, error


def _apart(connection: sqlite3.Connection, item: _Item) -> _Answer:
    """As ``_one``, and what failed is taken back by itself."""
    connection.execute("SAVEPOINT operation")
    try:
        answer = _one(connection, item)
    except _HalfDone as half:
        connection.execute("ROLLBACK TO operation")
        answer = item[1], None, half.error
    connection.execute("RELEASE operation")
    return answer


def _resolve(answers: list[_Answer]) -> None:
    for future, value, error in answers:
        if future.done():  # cancelled meanwhile; the commit stands, and every operation can be asked again (E03)
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
