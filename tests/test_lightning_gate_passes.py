"""L402 tokens that are good for several calls, or for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.support.lightning_till import FIXED, Till, opened
from x402kit.asgi import paywall
from x402kit.devnet import LightningDevnet
from x402kit.errors import HoldEnded

DAY = 86_400


@pytest.fixture
async def till(lightning: LightningDevnet, tmp_path: Path) -> AsyncGenerator[Till]:
    async with opened(lightning, tmp_path / "payments.db") as made:
        yield made


async def test_three_calls_are_three_calls(till: Till) -> None:
    bought = await till.buy("/three")
    assert bought.offer.amount == 3 * FIXED
    assert bought.offer.payment is None  # the Payment scheme's proofs are for one call
    for number in range(3):
        answer = await till.show("/three?n=" + str(number), bought.l402)
        assert (answer.status, await till.left(bought)) == (200, (2 - number) * FIXED)
    last = await till.ask("/three", bought.l402)
    assert (last.status, last.reason, len(till.runs)) == (402, "token_used", 3)


async def test_C10_twenty_calls_at_once_on_a_pass_for_three_are_three(till: Till) -> None:
    bought = await till.buy("/three")
    answers = await asyncio.gather(*[till.show("/three", bought.l402) for _ in range(20)])
    assert sorted(answer.status for answer in answers) == [200] * 3 + [402] * 17
    assert (len(till.runs), await till.left(bought)) == (3, 0)


async def test_a_failed_call_of_a_pass_costs_nothing(till: Till) -> None:
    bought = await till.buy("/three")
    till.failing = 1
    assert (await till.show("/three", bought.l402)).status == 500
    assert await till.left(bought) == 3 * FIXED


async def test_within_the_hour_every_call_is_paid(till: Till) -> None:
    bought = await till.buy("/hour")
    assert bought.offer.amount == FIXED
    answers = await asyncio.gather(*[till.ask(f"/hour?n={n}", bought.l402) for n in range(8)])
    assert [answer.status for answer in answers] == [200] * 8  # at once from the first: nobody is told to wait
    claim = await till.known(bought, "served")
    assert (claim.captured, len(till.runs)) == (FIXED, 8)


async def test_calls_that_fail_do_not_use_a_pass_up(till: Till) -> None:
    bought = await till.buy("/hour")
    till.failing = 10
    assert [(await till.ask("/hour", bought.l402)).status for _ in range(10)] == [500] * 10
    assert (await till.ask("/hour", bought.l402)).status == 200


async def test_after_the_hour_it_is_over(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    bought = await till.buy("/hour")
    assert (await till.show("/hour", bought.l402)).status == 200
    later = time.time() + 3600 + 601
    monkeypatch.setattr(time, "time", lambda: later)
    last = await till.ask("/hour", bought.l402)
    assert (last.status, last.reason, len(till.runs)) == (402, "token_expired", 1)


@pytest.mark.parametrize("path", ["/fixed", "/other", "/three", "/month", "/n/x"])
async def test_A05_a_pass_for_one_route_is_none_for_another(till: Till, path: str) -> None:
    bought = await till.buy("/hour")
    assert (await till.show("/hour", bought.l402)).status == 200
    assert (await till.ask(path, bought.l402)).status == 402
    fresh = await till.buy("/hour?fresh")
    assert (await till.show(path, fresh.l402)).status == 402
    assert (await till.show("/hour", fresh.l402)).status == 200
    assert {run[0] for run in till.runs} == {"/hour"}


async def test_C07_a_pass_for_a_month_is_not_forgotten_before_the_month_is_over(till: Till) -> None:
    bought = await till.buy("/month")
    assert (await till.show("/month", bought.l402)).status == 200
    for days in (1.1, 2.5, 10, 29):
        for _ in range(2):
            await till.store.prune(int(time.time() + days * DAY))
        assert (await till.ask("/month", bought.l402)).status == 200
    for _ in range(2):
        await till.store.prune(int(time.time() + 40 * DAY))
    assert await till.claim(bought) is None
    assert (await till.ask("/month", bought.l402)).status == 402  # and nothing is served twice for it


@pytest.mark.parametrize("path", ["/fixed", "/hour", "/three"])
async def test_who_pays_more_than_was_asked_for_has_the_call_and_the_rest(till: Till, path: str) -> None:
    till.node.more = 990  # as a wallet that knows no parts of a satoshi
    bought = await till.buy(path)
    await till.reprice("50000")  # and by now the call is twice as dear
    assert (await till.show(path, bought.l402)).status == 200
    rest = await till.left(bought)
    assert rest == 990 if path != "/three" else rest > 990


async def test_three_calls_are_three_calls_whatever_a_bitcoin_is_worth_by_then(till: Till) -> None:
    bought = await till.buy("/three")
    assert (await till.show("/three", bought.l402)).status == 200
    await till.reprice("50000")
    assert [(await till.ask("/three", bought.l402)).status for _ in range(2)] == [200, 200]
    assert await till.left(bought) == 0


async def test_a_pass_is_worth_elsewhere_what_a_bitcoin_is_worth_then(till: Till) -> None:
    bought = await till.buy("/three")
    assert (await till.show("/three", bought.l402)).status == 200
    await till.reprice("50000")
    assert (await till.ask("/other", bought.l402)).status == 200
    assert await till.left(bought) == 0  # its two calls are one there
    await till.reprice("200000")
    other = await till.buy("/three")
    await till.reprice("100000")
    assert (await till.show("/three", other.l402)).status == 200
    assert await till.left(other) == FIXED
    assert (await till.ask("/other", other.l402)).status == 200


async def test_A06_a_pass_bought_at_a_small_price_is_none_for_dear_requests(till: Till) -> None:
    cheap = await till.buy("/rate?n=1")
    assert (await till.show("/rate?n=1", cheap.l402)).status == 200
    assert (await till.ask("/rate?n=1&x=2", cheap.l402)).status == 200
    dear = await till.ask("/rate?n=500", cheap.l402)
    assert (dear.status, dear.entry["amount"], len(till.runs)) == (402, "5000000", 2)
    unused = await till.buy("/rate?n=1&fresh")
    assert (await till.show("/rate?n=500", unused.l402)).status == 402
    assert (await till.show("/rate?n=1", unused.l402)).status == 200


@pytest.mark.parametrize("path", ["/usdc", "/x402", "/payment"])
async def test_what_is_left_over_is_spent_only_where_a_route_takes_it(till: Till, path: str) -> None:
    bought = await till.buy("/three")
    assert (await till.show("/three", bought.l402)).status == 200
    answer = await till.ask(path, bought.l402)
    assert (answer.status, await till.left(bought)) == (402, 2 * FIXED)
    assert (await till.ask("/l402", bought.l402)).status == 200


async def test_a_pass_that_nobody_came_for_is_a_pass_or_balance_and_never_both(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    month, hour = await till.buy("/month"), await till.buy("/hour")
    for bought in (month, hour):
        await till.known(bought, "settled")
    later = time.time() + 25 * 3600
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        await till.tidy()
        assert (await till.state(month), await till.state(hour)) == ("settled", "credited")
    assert (await till.show("/month", month.l402)).status == 200  # its time is not over
    assert (await till.show("/month?2", month.l402)).status == 200
    assert await till.left(month) == 0
    assert (await till.show("/hour", hour.l402)).status == 200
    assert (await till.left(hour), (await till.ask("/hour", hour.l402)).status) == (0, 402)


async def test_a_job_within_a_pass_is_begun_once(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paywall, "_JOB_WAIT_SECONDS", 0.05)
    bought = await till.buy("/jobs")
    answer = await till.ask("/jobs", bought.l402)
    assert (answer.status, len(till.runs)) == (202, 1)
    with pytest.raises(HoldEnded):
        await till.paywall.finish(till.job, "$0.01")
