"""Durable pairs of reserve and capture on SQLite, beside plain sqlite3 and aiosqlite, which commit each move.

All three run the same statements on the same schema, with ``synchronous=FULL`` on a real file: ``BEGIN IMMEDIATE``, the
move, ``COMMIT``; ours is the only one that puts several moves between the two. All take their turn in every round, on a
file of their own; a ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import aiosqlite

from x402kit.ledger.sqlite import SQLiteStore
from x402kit.ledger.sqlite_holds import ENTRY_BY_KEY, INSERT_HOLD, end_sql, new_hold
from x402kit.model import Account, Entry, Hold

from .durable import disk
from .results import Row

__all__ = ["measure"]

ROUNDS: Final = 5
SECONDS: Final = 1.0
"""Of each contestant in a round."""
_CAPTURE: Final = end_sql("capture", "clamp", (), True)
_NUMBERS: Final = itertools.count()

Pair = Callable[[Hold], Awaitable[Entry]]


class Run(NamedTuple):
    """Pairs a second, and how long each took, in seconds."""

    rate: float
    times: list[float]

    def at(self, share: float) -> float:
        """The time that this share of the pairs kept."""
        return sorted(self.times)[int(share * (len(self.times) - 1))]


def _hold(caller: int) -> Hold:
    account = Account.of("eip155:8453", "0x" + "ab" * 20, f"0x{caller:040x}")
    number = next(_NUMBERS)
    return Hold(f"hold:{number:032x}", *account, 1000, f"1:{number}", 1, 2, resource="POST /v1/chat/completions")


async def _ledger(path: str, callers: int) -> SQLiteStore:
    """An open store in which each caller has money."""
    store = SQLiteStore(path)
    await store.start()
    accounts = [_hold(caller).account for caller in range(callers)]
    await asyncio.gather(*[store.deposit(account, 10**12, account.owner) for account in accounts])
    return store


async def _drive(callers: int, pair: Pair) -> Run:
    times: list[float] = []
    started = time.perf_counter()
    end = started + SECONDS

    async def call(caller: int) -> None:
        while (before := time.perf_counter()) < end:
            entry = await pair(_hold(caller))
            assert entry.revenue == 700
            times.append(time.perf_counter() - before)

    await asyncio.gather(*[call(caller) for caller in range(callers)])
    return Run(len(times) / (time.perf_counter() - started), times)


async def _ours(path: str, callers: int) -> Run:
    store = await _ledger(path, callers)

    async def pair(hold: Hold) -> Entry:
        await store.reserve(hold)
        return await store.capture(hold.id, 700, holder=hold.holder)

    made = await _drive(callers, pair)
    assert await store.verify() == []
    await store.close()
    return made


async def _plain(path: str) -> Run:
    await (await _ledger(path, 1)).close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")

    async def pair(hold: Hold) -> Entry:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(INSERT_HOLD, new_hold(hold, 0))
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_CAPTURE, (hold.id, 700, int(time.time()), hold.holder))
        row = connection.execute(ENTRY_BY_KEY, (f"end:{hold.id}",)).fetchone()
        connection.execute("COMMIT")
        return Entry._make(row)

    made = await _drive(1, pair)
    connection.close()
    return made


async def _aiosqlite(path: str, callers: int) -> Run:
    await (await _ledger(path, callers)).close()
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        await connection.execute("PRAGMA synchronous=FULL")

        lock = asyncio.Lock()  # one connection has one transaction

        async def pair(hold: Hold) -> Entry:
            async with lock:
                await connection.execute("BEGIN IMMEDIATE")
                await connection.execute(INSERT_HOLD, new_hold(hold, 0))
                await connection.commit()
            async with lock:
                await connection.execute("BEGIN IMMEDIATE")
                await connection.execute(_CAPTURE, (hold.id, 700, int(time.time()), hold.holder))
                async with connection.execute(ENTRY_BY_KEY, (f"end:{hold.id}",)) as found:
                    row = await found.fetchone()
                await connection.commit()
            assert row is not None
            return Entry._make(row)

        return await _drive(callers, pair)


class _Rounds:
    """Runs of ours and of a peer, in turns."""

    def __init__(self) -> None:
        self._ours: list[Run] = []
        self._peer: list[Run] = []

    def add(self, ours: Run, peer: Run) -> None:
        self._ours.append(ours)
        self._peer.append(peer)

    def ratio(self) -> float:
        return statistics.median(a.rate / b.rate for a, b in zip(self._ours, self._peer, strict=True))

    def row(self, what: str, floor: float) -> Row:
        ours, peer = (statistics.median(run.rate for run in runs) for runs in (self._ours, self._peer))
        shown = f"{self.ratio():.2f} × ({ours:,.0f}/s beside {peer:,.0f}/s)".replace(",", " ")
        return Row(what, self.ratio(), shown, floor, ">=", " ×")

    def tail(self, what: str) -> Row:
        ratio = statistics.median(run.at(0.99) / run.at(0.5) for run in self._ours)
        middle, tail = (statistics.median(run.at(share) for run in self._ours) * 1e3 for share in (0.5, 0.99))
        return Row(what, ratio, f"{tail:.1f} ms = {ratio:.1f} × {middle:.1f} ms", 3, "<=", " ×")


async def measure(rounds: int = ROUNDS) -> list[Row]:
    """The rows of this part."""
    one, some, many = _Rounds(), _Rounds(), _Rounds()
    with tempfile.TemporaryDirectory(prefix="x402kit-bench-", dir=disk()) as folder:
        for number in range(rounds):
            at = f"{folder}/{number}"
            one.add(await _ours(f"{at}-1.db", 1), await _plain(f"{at}-plain.db"))
            some.add(await _ours(f"{at}-16.db", 16), await _aiosqlite(f"{at}-aio16.db", 16))
            many.add(await _ours(f"{at}-256.db", 256), await _aiosqlite(f"{at}-aio256.db", 256))
    return [
        one.row("reserve + capture, 1 caller, beside sqlite3", 0.6),
        some.row("… 16 callers, beside aiosqlite", 10),
        many.row("… 256 callers, beside aiosqlite", 25),
        some.tail("… 16 callers, p99 beside p50"),
    ]
