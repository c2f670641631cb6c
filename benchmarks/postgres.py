"""Durable pairs of reserve and capture on PostgreSQL, beside what is usually written: a transaction for each move.

The naive contestant has a pooled connection for each caller, and does for each move: begin, select for update, insert
or update the hold, update the account, insert the entry, commit. Both work on the same tables of the same server, with
its default, durable settings, and take their turn in every round; a ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from tests.support.postgres import PostgresServer
from x402kit.ledger.postgres import PostgresStore
from x402kit.model import Account, Hold

from .results import Row

__all__ = ["measure"]

CALLERS: Final = 32
WALLETS: Final = 1000
ROUNDS: Final = 5
SECONDS: Final = 1.5
"""Of each contestant in a round."""
_NUMBERS: Final = itertools.count()
_DURABLE: Final = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "128MB"}

Pair = Callable[[Hold], Awaitable[None]]


def _account(number: int) -> Account:
    return Account.of("eip155:8453", "0x" + "ab" * 20, f"0x{number:040x}")


def _hold(wallets: int) -> Hold:
    number = next(_NUMBERS)
    owner, asset = _account(number % wallets)
    return Hold(f"hold:{number:032x}", owner, asset, 1000, f"1:{number}", 1, 2, resource="POST /v1/chat/completions")


async def _drive(wallets: int, pair: Pair) -> float:
    """Pairs a second."""
    made = 0
    started = time.perf_counter()
    end = started + SECONDS

    async def call() -> None:
        nonlocal made
        while time.perf_counter() < end:
            await pair(_hold(wallets))
            made += 1

    await asyncio.gather(*[call() for _ in range(CALLERS)])
    return made / (time.perf_counter() - started)


def _ours(store: PostgresStore) -> Pair:
    async def pair(hold: Hold) -> None:
        await store.reserve(hold)
        entry = await store.capture(hold.id, 700, holder=hold.holder)
        assert entry.revenue == 700

    return pair


_ACCOUNT: Final = "SELECT available, held, seq FROM x402kit.accounts WHERE owner = %s AND asset = %s FOR UPDATE"
_CHANGE: Final = (
    "UPDATE x402kit.accounts SET available = available + %s, held = held + %s, seq = seq + 1 WHERE owner = %s AND"
    " asset = %s"
)
_ADD: Final = (
    "INSERT INTO x402kit.holds (id, owner, asset, amount, holder, created_at, deadline, lease_until, resource)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_END: Final = (
    "UPDATE x402kit.holds SET state = 'captured', captured = %s, ended_at = %s, lease_until = 0 WHERE owner = %s AND"
    " asset = %s AND id = %s AND state = 'open' RETURNING amount"
)
_ENTRY: Final = (
    "INSERT INTO x402kit.entries (owner, asset, id, key, type, external, available, held, revenue, suspense, balance,"
    " at, resource) VALUES (%s, %s, %s, %s, %s, 0, %s, %s, %s, 0, %s, %s, %s)"
)


async def _change(connection: psycopg.AsyncConnection[TupleRow], hold: Hold, key: str, kind: str, *by: int) -> None:
    """What a move has to do to its account, held by the transaction, and to the log."""
    row = await (await connection.execute(_ACCOUNT, hold.account)).fetchone()
    assert row is not None
    available, _, seq = row
    assert available + by[0] >= 0
    await connection.execute(_CHANGE, (by[0], by[1], *hold.account))
    values = (*hold.account, seq + 1, f"{key}:{hold.id}", kind, *by, available + by[0], int(time.time()), hold.resource)
    await connection.execute(_ENTRY, values)


def _naive(pool: AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]) -> Pair:
    async def pair(hold: Hold) -> None:
        async with pool.connection() as connection, connection.transaction():
            await _change(connection, hold, "reserve", "reserve", -hold.amount, hold.amount, 0)
            values = (hold.id, *hold.account, hold.amount, hold.holder, 1, 2, 0, hold.resource)
            await connection.execute(_ADD, values)
        async with pool.connection() as connection, connection.transaction():
            ended = await connection.execute(_END, (700, int(time.time()), *hold.account, hold.id))
            row = await ended.fetchone()
            assert row == (hold.amount,)
            await _change(connection, hold, "end", "capture", hold.amount - 700, -hold.amount, 700)

    return pair


async def _rounds(rounds: int) -> dict[int, list[tuple[float, float]]]:
    """Wallets → of each round ours and theirs, in pairs a second."""
    made: dict[int, list[tuple[float, float]]] = {WALLETS: [], 1: []}
    with PostgresServer(_DURABLE) as server:
        dsn = server.create()
        store = PostgresStore(dsn)
        await store.start()
        await asyncio.gather(*[store.deposit(_account(n), 10**12, str(n)) for n in range(WALLETS)])
        pool: AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]] = AsyncConnectionPool(
            dsn, min_size=CALLERS, max_size=CALLERS, open=False
        )
        await pool.open(wait=True)
        for _ in range(rounds):
            for wallets, results in made.items():
                results.append((await _drive(wallets, _ours(store)), await _drive(wallets, _naive(pool))))
        assert await store.verify() == []
        await pool.close()
        await store.close()
    return made


async def measure(rounds: int = ROUNDS) -> list[Row]:
    """The rows of this part."""
    rows: list[Row] = []
    for wallets, results in (await _rounds(rounds)).items():
        ratio = statistics.median(ours / naive for ours, naive in results)
        rates = [statistics.median(rates) for rates in zip(*results, strict=True)]
        what = f"pairs on PostgreSQL, {CALLERS} callers, {'many wallets' if wallets > 1 else 'one hot wallet'}"
        shown = f"{ratio:.1f} × naive ({rates[0]:,.0f}/s beside {rates[1]:,.0f}/s)".replace(",", " ")
        rows.append(Row(what, ratio, shown, 3 if wallets > 1 else 5, ">=", "×"))
    return rows
