"""One thread that owns a SQLite connection: what waits together is executed in one transaction, with one fsync.

Group commit: the thread takes all operations that are queued, runs them inside one ``BEGIN IMMEDIATE`` … ``COMMIT``,
and answers each only after the commit. The event loop never touches the disk. Operations of one kind are executed
together where their kind knows how. One that fails leaves no trace and does not spoil the others: where it had written
before it failed, or failed among others, the transaction begins anew, each for itself with a savepoint around it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Final, TypeVar

from ..errors import RailUnavailable
from .waking import Waking

__all__ = ["ROWS", "NotAll", "Together", "Worker", "begin", "execute_rows", "is_busy"]

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], Any]
Together = Callable[[sqlite3.Connection, list[Any]], list[Any]]
"""All operations of one kind that wait, by their values, with a result for each. Raises, by ``IntegrityError`` or
``NotAll``, unless every one of them succeeded.
"""
_Item = tuple[Operation, "asyncio.Future[Any]", Any]
_Answer = tuple["asyncio.Future[Any]", Any, BaseException | None]
_Answers = list[_Answer]
_BATCH = 512
ROWS: Final = 8
"""Moves in one statement: the statement's own costs are a third of a move's (8.8 instead of 13.2 µs)."""


class NotAll(Exception):  # never leaves the store
    """Of operations that were executed together some found nothing to do; each must find out for itself."""


def execute_rows(connection: sqlite3.Connection, one: str, many: str, rows: list[tuple[Any, ...]]) -> None:
    """``many``, if it is not empty, is ``one`` for ``ROWS`` rows. Raises ``NotAll`` unless each row changed one."""
    done = changed = 0
    while many and done + ROWS <= len(rows):
        values = tuple(chain.from_iterable(rows[done : done + ROWS]))
        changed += connection.execute(many, values).rowcount
        done += ROWS
    if done < len(rows):
        changed += connection.executemany(one, rows[done:]).rowcount
    if changed != len(rows):
        raise NotAll


class _HalfDone(Exception):  # never leaves this file
    """An operation failed after it had written."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Group:
    """What one event loop handed over at once."""

    __slots__ = ("items", "size", "together", "waking")

    def __init__(self, waking: Waking[_Answers]) -> None:
        self.waking = waking
        self.size = 0
        self.items: list[_Item] = []
        self.together: dict[Together, list[_Item]] = {}


def unavailable(error: sqlite3.Error) -> RailUnavailable:
    """The typed error for a store that can't write now; the cause stays for the log, not for the answer (I11)."""
    made = RailUnavailable("store_unavailable")
    made.__cause__ = error
    return made


def is_busy(error: Exception) -> bool:
    """Whether somebody else has the file's lock."""
    return (
        isinstance(error, sqlite3.OperationalError)
        and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    )


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
        self._waiting: dict[asyncio.AbstractEventLoop, _Group] = {}
        self._wakings: dict[asyncio.AbstractEventLoop, Waking[_Answers]] = {}
        self._coming = threading.Lock()
        """Loops of several threads come, hand over and go at once."""
        self._thread = threading.Thread(target=self._run, name="x402kit-store", daemon=True)
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._stopped = False
        self._alone = False
        """Whether the last transaction held one operation: then one caller works by itself, and nothing is gathered."""

    def start(self) -> None:
        """Open the connection in the thread; raises what opening raised."""
        self._thread.start()
        error = self._started.get()
        if error is not None:
            raise error

    def stop(self) -> None:
        """Finish what is queued and close. What comes later is told that the store is gone."""
        with self._coming:
            self._stopped = True
            self._queue.put(None)
        if self._thread.ident is not None:  # else it could not even be started
            self._thread.join()
        with self._coming:
            wakings = tuple(self._wakings.values())
            self._wakings.clear()
        for waking in wakings:
            self._let_go(waking)

    def _let_go(self, waking: Waking[_Answers]) -> None:
        """What was given is taken; from now on there is no descriptor."""
        if waking.loop.is_closed() or waking.loop is _running_loop():
            waking.close()
        else:  # another thread's; where it ends at once, a descriptor is lost with it
            with contextlib.suppress(RuntimeError):
                waking.loop.call_soon_threadsafe(waking.close)

    def _waking(self, loop: asyncio.AbstractEventLoop) -> Waking[_Answers]:
        found = self._wakings.get(loop)
        if found is None:
            with self._coming:
                ended = [waking for waking in self._wakings.values() if waking.loop.is_closed()]
                for waking in ended:
                    del self._wakings[waking.loop]
                found = self._wakings[loop] = Waking(loop, _resolve)
            for waking in ended:
                self._let_go(waking)
        return found

    def submit(
        self, operation: Callable[[sqlite3.Connection], T], together: Together | None = None, values: Any = None
    ) -> asyncio.Future[T]:
        """Queue an operation; its future is done after the commit that holds it. ``together`` may execute it with
        others of the same kind, by its ``values``.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = asyncio.Future(loop=loop)
        if self._stopped:  # for nothing a descriptor would be made, which nobody closes
            future.set_exception(RailUnavailable("store_unavailable"))
            return future
        group = self._waiting.get(loop)
        at_once = False
        if group is None:
            # Handed over once the loop has run all that is ready: waking the thread for each operation would make the
            # two threads fight for the interpreter lock (measured: 1 100 instead of 9 000 claims a second).
            group = self._waiting[loop] = _Group(self._waking(loop))
            at_once = self._alone  # looked at once: the thread may change it meanwhile
            if not at_once:
                loop.call_soon(self._hand_over, loop)
        group.size += 1
        if together is None:
            group.items.append((operation, future, None))
        elif (alike := group.together.get(together)) is not None:
            alike.append((operation, future, values))
        else:
            group.together[together] = [(operation, future, values)]
        if at_once:
            self._hand_over(loop)
        return future

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        group = self._waiting.pop(loop)
        with self._coming:  # what came behind the end would be read by nobody
            if not self._stopped:
                self._queue.put(group)
                return
        _resolve([(future, None, RailUnavailable("store_unavailable")) for _, future, _ in _all(group)])

    def _run(self) -> None:
        try:
            connection = self._connect()
        except Exception as e:  # noqa: BLE001  # the background border: who starts us waits for an answer
            self._started.put(e)
            return
        self._started.put(None)
        going = True
        while going:
            batch, going = self._next()
            for waking, answers in self._execute(connection, batch):
                waking.give(answers)  # where the loop is closed, whoever asked is gone, and the commit stands
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
                size += group.size
                if size >= _BATCH:
                    break
                group = self._queue.get_nowait()
        except queue.Empty:
            pass
        self._alone = size == 1
        return batch, True

    def _execute(self, connection: sqlite3.Connection, batch: list[_Group]) -> list[tuple[Waking[_Answers], _Answers]]:
        if not batch and self._tick is None:
            return []
        try:
            try:
                return self._transaction(connection, batch, _together)
            except _HalfDone:
                connection.execute("ROLLBACK")
                return self._transaction(connection, batch, _apart)
        except sqlite3.Error as e:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return [(group.waking, [(item[1], None, unavailable(e)) for item in _all(group)]) for group in batch]

    def _transaction(
        self, connection: sqlite3.Connection, batch: list[_Group], run: Callable[[sqlite3.Connection, _Group], _Answers]
    ) -> list[tuple[Waking[_Answers], _Answers]]:
        if self._transactions:
            begin(connection, self._busy_seconds)
        made = [(group.waking, run(connection, group)) for group in batch]
        if self._tick is not None:
            self._tick(connection)
        if self._transactions:
            connection.execute("COMMIT")
        return made


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _all(group: _Group) -> Iterator[_Item]:
    """In the order of execution: what gives something back comes after what may have taken it."""
    for alike in group.together.values():
        yield from alike
    yield from group.items


def begin(connection: sqlite3.Connection, seconds: float) -> None:
    """Take the file's lock. SQLite sleeps up to 100 ms at a time: of many processes one would wait in vain (C02)."""
    end = time.monotonic() + seconds
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as e:
            if not is_busy(e) or time.monotonic() > end:
                raise
            time.sleep(0.0005 + 0.002 * random.random())


def _together(connection: sqlite3.Connection, group: _Group) -> _Answers:
    answers: _Answers = []
    for together, alike in group.together.items():
        if len(alike) == 1:
            answers.append(_one(connection, alike[0]))
            continue
        try:
            results = together(connection, [values for _, _, values in alike])
        except (sqlite3.IntegrityError, NotAll) as e:
            raise _HalfDone(e) from e
        except sqlite3.Error:
            raise  # the whole transaction
        except Exception as e:  # the background border, as below
            raise _HalfDone(e) from e
        answers += [(item[1], result, None) for item, result in zip(alike, results, strict=True)]
    answers += [_one(connection, item) for item in group.items]
    return answers


def _apart(connection: sqlite3.Connection, group: _Group) -> _Answers:
    """Each for itself, and what failed is taken back by itself."""
    answers: _Answers = []
    for item in _all(group):
        connection.execute("SAVEPOINT operation")
        try:
            answers.append(_one(connection, item))
        except _HalfDone as half:
            connection.execute("ROLLBACK TO operation")
            answers.append((item[1], None, half.error))
        connection.execute("RELEASE operation")
    return answers


def _one(connection: sqlite3.Connection, item: _Item) -> _Answer:
    operation, future, _ = item
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


def _resolve(answers: _Answers) -> None:
    for future, value, error in answers:
        if future.done():  # cancelled meanwhile; the commit stands, and every operation can be asked again (E03)
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
