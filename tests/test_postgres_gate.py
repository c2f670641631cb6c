"""The gate over a ledger in PostgreSQL: paid directly, from a balance, by two servers, and while it is out of reach."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import psycopg
import pytest
from starlette.types import Receive, Scope, Send

from tests.support.till import FIXED, WAYS, Till, Way, make, opened, reply, use
from x402kit.ledger.postgres import PostgresStore


async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
    await reply(send, json.dumps({"usage": use(300)}).encode())


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_every_way_of_paying_ends_in_the_same_books(database: str, way: Way) -> None:
    async with opened(database) as till:
        till.playing.app = answer
        await till.credit(1_000_000)
        assert (await till.buy(way)).status == 200
        ended = await till.ended(way)
        assert ended.charged == (300 if way.metered else FIXED)
        assert await till.store.verify() == []


async def test_C02_two_servers_share_a_balance_and_a_payment(database: str) -> None:
    async with opened(database) as one, opened(database, rail=one.rail) as other:
        for till in (one, other):
            till.playing.app = answer
        await one.credit(5 * FIXED)
        way = next(way for way in WAYS if way.name == "balance-fixed")
        answers = await asyncio.gather(*[till.ask("/fixed", till.proof()) for till in (one, other) * 4])
        assert sorted(found.status for found in answers) == [200] * 5 + [402] * 3
        assert (await one.balance()) == (await other.balance()) == (0, 0)
        assert one.playing.runs + other.playing.runs == 5
        assert not way.metered
        paid = (await one.payment("/fixed")).v2()
        shown = await asyncio.gather(*[till.ask("/fixed", {"PAYMENT-SIGNATURE": paid}) for till in (one, other) * 4])
        assert {found.status for found in shown} <= {200, 409}
        assert one.playing.runs + other.playing.runs == 6


async def test_J04_a_pool_that_is_empty_is_503_within_a_bound_and_nothing_is_settled(database: str) -> None:
    store = PostgresStore(database, busy_seconds=0.5)
    async with opened(store) as till:
        till.playing.app = answer
        await till.credit(1_000_000)
        credentials = [await till.credentials(way) for way in WAYS]
        pool: Any = store._pool  # pyright: ignore[reportPrivateUsage]
        taken = [await pool.getconn() for _ in range(pool.max_size)]
        started = time.monotonic()
        answers = await asyncio.gather(
            *[till.ask(way.path, shown) for way, shown in zip(WAYS, credentials, strict=True)]
        )
        assert time.monotonic() - started < 20
        assert [found.status for found in answers] == [503] * 4
        assert till.rail.settled == till.playing.runs == 0
        for connection in taken:
            await pool.putconn(connection)
        again = [(await till.ask(way.path, shown)).status for way, shown in zip(WAYS, credentials, strict=True)]
        assert again == [200] * 4


async def test_J04_an_account_that_is_locked_is_503_and_charges_nothing(database: str) -> None:
    async with opened(PostgresStore(database, busy_seconds=0.5)) as till:
        till.playing.app = answer
        await till.credit(1_000_000)
        with psycopg.connect(database) as blocker:
            blocker.execute("SELECT 1 FROM x402kit.accounts FOR UPDATE")
            assert (await till.ask("/fixed", till.proof())).status == 503
        assert till.playing.runs == 0
        assert await till.balance() == (1_000_000, 0)


def test_nothing_is_opened_before_the_app_starts() -> None:
    assert isinstance(make("postgresql://nobody@127.0.0.1:1/nothing"), Till)
