"""Jobs: the answer goes out, the reserve waits for the job's end. For balances and for payments, on either store."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.asking import Answer, ask
from tests.support.till import FIXED, WAYS, Ended, Till, Way, opened, reply
from x402kit.errors import ConfigError, HoldEnded
from x402kit.money import usd
from x402kit.protocols.x402 import decode_header

START = 100_000
FIXED_WAYS = [WAYS[0], WAYS[2]]


@pytest.fixture(params=FIXED_WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    made: Way = request.param
    return made


@pytest.fixture
async def till(ledger: str) -> AsyncGenerator[Till]:
    async with opened(ledger) as made:
        await made.credit(START)
        made.playing.app = queued
        yield made


async def queued(scope: Scope, receive: Receive, send: Send) -> None:
    paid = scope["x402kit"]
    job = paid.defer(600)
    await reply(send, json.dumps({"job": job, "request_id": paid.request_id}).encode(), 202)


async def begin(till: Till, way: Way, **options: Any) -> tuple[Answer, str]:
    """A call that leaves a job; the job's id."""
    answer = await till.ask(way.path, await till.credentials(way), **options)
    await till.check()
    return answer, answer.json()["job"]


def told(answer: Answer) -> Any:
    return decode_header(answer.header("PAYMENT-RESPONSE")).get("extensions", {}).get("x402kit")


async def available(till: Till, way: Way) -> int:
    """What the payer has, without what it brought for this call."""
    return (await till.balance()).available - START + (FIXED if way.balance else 0)


async def test_a_job_is_charged_when_it_ends_and_the_rest_goes_back(till: Till, way: Way) -> None:
    answer, job = await begin(till, way)
    assert answer.status == 202
    assert told(answer) == ({"source": "balance", "reserved": str(FIXED)} if way.balance else None)
    assert (await till.balance()).held == FIXED
    assert await available(till, way) == 0
    for _ in range(3):
        await till.paywall.reconcile()  # no lease is kept, and its time is not over
    entry = await till.paywall.finish(job, "$0.002")
    assert (entry.type, entry.revenue, entry.request_id) == ("capture", 2000, answer.json()["request_id"])
    assert (await till.balance()).held == 0
    assert await available(till, way) == FIXED - 2000
    assert await till.paywall.finish(job, "$0.002") == entry  # E03
    for again in (till.paywall.finish(job, "$0.003"), till.paywall.void(job)):
        with pytest.raises(HoldEnded, match="already_captured"):
            await again
    await till.check()


async def test_a_job_that_failed_costs_nothing(till: Till, way: Way) -> None:
    _, job = await begin(till, way)
    entry = await till.paywall.void(job)
    assert (entry.type, entry.revenue) == ("void", 0)
    assert await available(till, way) == FIXED
    with pytest.raises(HoldEnded, match="already_voided"):
        await till.paywall.finish(job, "$0.002")


async def test_I6_a_job_that_never_ends_is_given_back_at_its_deadline(till: Till, way: Way) -> None:
    _, job = await begin(till, way)
    assert await till.store.expire(int(time.time()) + 500) == []
    expired = await till.store.expire(int(time.time()) + 700)
    assert [hold.id for hold in expired] == [job]
    assert await available(till, way) == FIXED
    with pytest.raises(HoldEnded, match="already_expired"):
        await till.paywall.finish(job, "$0.002")
    await till.check()


async def test_E04_a_job_costs_no_more_than_was_reserved(till: Till, way: Way) -> None:
    _, job = await begin(till, way)
    assert (await till.paywall.finish(job, "$5")).revenue == FIXED
    assert await available(till, way) == 0


async def test_J01_a_job_outlives_its_process(ledger: str, way: Way) -> None:
    async with opened(ledger) as first:
        await first.credit(START)
        first.playing.app = queued
        _, job = await begin(first, way)
    async with opened(ledger) as second:
        second.payments = first.payments
        for _ in range(2):
            await second.paywall.reconcile()
        assert (await second.balance()).held == FIXED
        await second.paywall.finish(job, "$0.001")
        assert await available(second, way) == FIXED - 1000


async def test_C03_a_payment_shown_again_gets_the_kept_answer_and_no_second_job(till: Till) -> None:
    answer, job = await begin(till, WAYS[0])
    headers = {"PAYMENT-SIGNATURE": till.payments[-1].v2()}
    for _ in range(2):
        again = await till.ask("/fixed", headers)
        assert (again.status, again.body, again.header("payment-replayed")) == (202, answer.body, "true")
        if (await till.balance()).held:
            await till.paywall.finish(job, "$0.002")
    assert (till.playing.runs, till.rail.settled) == (1, 1)


async def test_C06_a_key_finds_its_job_again_while_it_runs_and_after(till: Till) -> None:
    def keyed() -> dict[str, str]:
        return {**till.proof(), "Idempotency-Key": "k"}

    first = await till.ask("/fixed", keyed())
    for _ in range(2):
        again = await till.ask("/fixed", keyed())
        assert (again.status, again.body, again.header("payment-replayed")) == (202, first.body, "true")
        if (await till.balance()).held:
            await till.paywall.finish(first.json()["job"], "$0.002")
    assert till.playing.runs == 1
    await till.check()


async def test_C06_a_job_that_was_given_back_can_be_begun_anew(till: Till) -> None:
    def keyed() -> dict[str, str]:
        return {**till.proof(), "Idempotency-Key": "k"}

    first = await till.ask("/fixed", keyed())
    await till.paywall.void(first.json()["job"])
    second = await till.ask("/fixed", keyed())
    assert (second.status, second.header("payment-replayed"), till.playing.runs) == (202, "", 2)
    assert second.json()["job"] != first.json()["job"]
    assert (await till.balance()) == (START - FIXED, FIXED)


async def test_C06_a_job_whose_answer_is_no_longer_kept_is_told_without_a_second_run(till: Till) -> None:
    till.playing.app = long_answer
    keyed = {**till.proof(), "Idempotency-Key": "k"}
    await till.ask("/fixed", keyed)
    again = await till.ask("/fixed", {**keyed, **till.proof()})
    assert (again.status, again.json()["replayed"], till.playing.runs) == (200, True, 1)
    assert told(again) == {"source": "balance", "reserved": str(FIXED)}


async def long_answer(scope: Scope, receive: Receive, send: Send) -> None:
    scope["x402kit"].defer(600)
    await reply(send, b"x" * 300_000, 202)


@pytest.mark.parametrize("end", ["finish", "void"])
async def test_a_job_may_be_faster_than_its_answer(till: Till, way: Way, end: str) -> None:
    ended: list[Any] = []

    async def fast(scope: Scope, receive: Receive, send: Send) -> None:
        job = scope["x402kit"].defer()
        work = till.paywall.finish(job, "$0.002") if end == "finish" else till.paywall.void(job)
        running = asyncio.create_task(work)
        if way.balance:
            await running
        await reply(send, b'"queued"', 202)
        ended.append(running)

    till.playing.app = fast
    answer = await till.ask(way.path, await till.credentials(way))
    assert (answer.status, answer.body) == (202, b'"queued"')
    await ended[0]
    assert await available(till, way) == (FIXED - 2000 if end == "finish" else FIXED)
    assert (await till.balance()).held == 0


@pytest.mark.parametrize("failing", ["status", "raises"])
async def test_H08_a_job_whose_answer_failed_never_was(
    till: Till, way: Way, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x402kit.asgi.paywall._JOB_WAIT_SECONDS", 0.1)
    jobs: list[str] = []

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        jobs.append(scope["x402kit"].defer())
        if failing == "raises":
            raise RuntimeError("broke")
        await reply(send, b"no", 503)

    till.playing.app = fails
    answer = await till.ask(way.path, await till.credentials(way))
    assert answer.status == (500 if failing == "raises" else 503)
    assert await till.ended(way) == (Ended(0, FIXED, False) if way.balance else Ended(0, 0, open=True))
    with pytest.raises(HoldEnded):
        await till.paywall.finish(jobs[0], "$0.002")


async def test_H02_a_job_that_was_begun_goes_on_without_its_caller(till: Till) -> None:
    gone = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        job = scope["x402kit"].defer(600)
        gone.set()
        await asyncio.sleep(0.05)
        await reply(send, json.dumps({"job": job}).encode(), 202)

    till.playing.app = slow
    await ask(till.app, "POST", "/fixed", till.proof(), leave=gone)
    assert till.playing.cancelled == 0
    assert (await till.balance()).held == FIXED
    await till.paywall.finish(till.playing.paid[0].job, "$0.002")
    assert (await till.balance()) == (START - 2000, 0)


async def test_a_job_needs_time_and_a_known_name(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("x402kit.asgi.paywall._JOB_WAIT_SECONDS", 0.1)

    async def wrong(scope: Scope, receive: Receive, send: Send) -> None:
        for seconds in (0, -1, 10**9, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="needs some time"):
                scope["x402kit"].defer(seconds)
        await reply(send, b"goods")

    till.playing.app = wrong
    assert (await till.buy(WAYS[2])).status == 200
    assert (await till.ended(WAYS[2])).charged == FIXED
    with pytest.raises(HoldEnded, match="no_such_hold"):
        await till.paywall.finish("job:unknown", "$1")


@pytest.mark.parametrize("cost", [0.5, 1, Decimal("0.5"), usd("$0.01") - usd("$0.02"), "0.5", None])
async def test_L06_a_cost_that_is_none_is_refused_where_it_is_said(till: Till, cost: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        paid = scope["x402kit"]
        if cost is not None:
            with pytest.raises(ConfigError):
                paid.report(cost=cost)
        jobs.append(paid.defer(60))
        await reply(send, b"{}", 202)

    jobs: list[str] = []
    till.playing.app = app
    assert (await till.buy(WAYS[2])).status == 200 + 2
    with pytest.raises(ConfigError):
        await till.paywall.finish(jobs[0], cost)
    assert (await till.balance()).held == FIXED
    assert (await till.paywall.finish(jobs[0], "$0.001")).revenue == 1000


async def test_a_metered_job_is_held_at_its_ceiling(till: Till) -> None:
    for way in (WAYS[1], WAYS[3]):
        before = await till.balance()
        _, job = await begin(till, way)
        amount = till.playing.paid[-1].amount
        assert (await till.balance()).held == amount
        await till.paywall.finish(job, "$0.0001")
        after = await till.balance()
        assert after.available == before.available + (-100 if way.balance else amount - 100)
