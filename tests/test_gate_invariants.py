"""Whatever fails, in whatever order: one payment moves money once, is fulfilled once, and is never left stuck."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from x402kit import Call, Paywall
from x402kit.errors import BadRequest, PaymentRefused, RailUnavailable
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Claim, Outcome
from x402kit.paywall.flow import Step, next_step

from .support.asking import Answer, Shop, opened
from .support.payments import Payment
from .support.rails import OfflineRail

SECRET = b"a secret of the tests"


class Faulty(SQLiteStore):
    """The real store, out of reach for the moves that ``down`` names, as often as it says."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.down: list[str] = []

    async def move(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool:
        if move in self.down:
            self.down.remove(move)
            raise RailUnavailable("store_unavailable")
        return await super().move(payment_id, move, owner, **columns)

    async def release(self, payment_id: str, owner: str) -> None:
        if "release" in self.down:
            self.down.remove("release")
            raise RailUnavailable("store_unavailable")
        await super().release(payment_id, owner)


@contextlib.asynccontextmanager
async def faulty(place: Path) -> AsyncGenerator[tuple[Shop, Faulty]]:
    store, rail = Faulty(place / "payments.db"), OfflineRail()
    shop = Shop(rail, Paywall([rail], store, origin="https://shop.example", secret=SECRET))
    try:
        yield shop, store
    finally:
        await shop.paywall.stop()


async def show(shop: Shop, payment: Payment) -> Answer:
    return await shop.ask("GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})


async def goods(request: Request) -> Response:
    return PlainTextResponse("goods")


async def lines(n: int, broken: bool = False) -> AsyncIterator[bytes]:
    for _ in range(n):
        yield b"goods"
        await asyncio.sleep(0)
    if broken:
        raise RuntimeError("broken")


# --- the store fails while the goods go out


async def test_J04_what_can_not_be_written_down_is_not_given_and_stays_good(tmp_path: Path) -> None:
    async with faulty(tmp_path) as (shop, store):
        shop.open(Starlette(routes=[Route("/goods", goods)]), {"/goods": "$0.01"})
        payment = await shop.payment("GET", "/goods")
        store.down = ["serve"]
        answer = await show(shop, payment)
        assert (answer.status, answer.receipt.success) == (500, True)
        assert answer.header("payment-outcome") == "settled-unserved"
        claim = await shop.claim(payment)
        assert (claim.state, claim.lease_until) == ("settled", 0)
        assert (await show(shop, payment)).status == 200
        assert (await show(shop, payment)).header("payment-replayed") == "true"
        assert shop.rail.settled == 1


@pytest.mark.parametrize("down", [["intend"], ["intend", "fail"], ["intend", "fail", "release"]])
async def test_J03_a_store_that_fails_before_the_sending_sends_nothing(tmp_path: Path, down: list[str]) -> None:
    async with faulty(tmp_path) as (shop, store):
        shop.open(Starlette(routes=[Route("/goods", goods)]), {"/goods": "$0.01"})
        payment = await shop.payment("GET", "/goods")
        store.down = [*down]
        answer = await show(shop, payment)
        assert (answer.status, answer.reason) == (503, "store_unavailable")
        assert shop.rail.calls["send"] == 0
        assert shop.rail.calls["discard"] == 1
        assert answer.all("payment-required") == []


@pytest.mark.parametrize("down", [["confirm"], ["confirm", "release"]])
async def test_I7_a_store_that_fails_after_the_sending_makes_it_unknown(tmp_path: Path, down: list[str]) -> None:
    async with faulty(tmp_path) as (shop, store):
        shop.open(Starlette(routes=[Route("/goods", goods)]), {"/goods": "$0.01"})
        payment = await shop.payment("GET", "/goods")
        store.down = [*down]
        answer = await show(shop, payment)
        assert (answer.status, answer.header("payment-outcome")) == (504, "unknown")
        if down == ["confirm"]:
            assert (await show(shop, payment)).body == b"goods"
        assert shop.rail.settled == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_I4_who_lost_the_claim_while_serving_gives_nothing_more(
    tmp_path: Path, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with faulty(tmp_path) as (shop, store):

        async def slept(request: Request) -> Response:
            claim: Claim = await shop.claim(payment)
            await store.release(claim.payment_id, claim.owner)
            other = await store.take(claim.payment_id, "settled", "another")
            assert other is not None
            await store.move(claim.payment_id, "serve", "another", status=200, body=b"its goods")
            return StreamingResponse(lines(2)) if stream else PlainTextResponse("goods")

        shop.open(Starlette(routes=[Route("/goods", slept)]), {"/goods": "$0.01"})
        payment = await shop.payment("GET", "/goods")
        answer = await show(shop, payment)
        if stream:
            assert "lost its lease" in caplog.text
        else:
            assert (answer.status, answer.header("payment-outcome")) == (409, "unknown")
            assert b"goods" not in answer.body.replace(b"/goods", b"")
        again = await show(shop, payment)
        assert (again.body, again.header("payment-replayed")) == (b"its goods", "true")


@pytest.mark.parametrize("down", ["drop", "release"])
async def test_a_store_that_fails_at_the_release_is_only_logged(tmp_path: Path, down: str) -> None:
    async with faulty(tmp_path) as (shop, store):

        async def fails(request: Request) -> Response:
            store.down = [down]
            raise HTTPException(404)

        settle = "after" if down == "drop" else "before"
        shop.open(Starlette(routes=[Route("/goods", fails)]), {"/goods": {"price": "$0.01", "settle": settle}})
        answer = await show(shop, await shop.payment("GET", "/goods"))
        assert answer.status in (404, 503)
        assert store.down == []


async def test_after_a_price_that_fails_when_asked_again_has_its_own_answer() -> None:
    for fault, status in ((RuntimeError("a secret"), 500), (BadRequest("changed"), 400)):
        faults: list[Exception] = []

        def price(call: Call, faults: list[Exception] = faults) -> str:
            if faults:
                raise faults[0]
            return "$0.01"

        async with opened() as shop:
            shop.open(Starlette(routes=[Route("/goods", goods)]), {"/goods": {"price": price, "settle": "after"}})
            payment = await shop.payment("GET", "/goods")
            shop.rail.script["send"] = [Outcome("failed", reason="insufficient_funds")]
            shop.rail.script["prepare"] = [gate := asyncio.Event()]
            shown = asyncio.create_task(show(shop, payment))
            while not shop.rail.calls["prepare"]:  # noqa: ASYNC110  # nothing tells us
                await asyncio.sleep(0.001)
            faults.append(fault)
            gate.set()
            answer = await shown
            assert (answer.status, b"secret" in answer.body) == (status, False)
            assert shop.rail.settled == 0


# --- the table


@pytest.mark.parametrize("state", [None, "failed", "claimed", "sent", "unknown", "settled", "served", "credited"])
def test_C05_C09_the_table_of_what_to_do(state: str | None) -> None:
    def step(same_request: bool, same_spelling: bool) -> Step:
        return next_step(state, same_request=same_request, same_spelling=same_spelling)

    same = {"claimed": Step.RESTART, "sent": Step.LOOK, "unknown": Step.LOOK, "settled": Step.SERVE}
    if state in (None, "failed"):
        assert {step(a, b) for a in (True, False) for b in (True, False)} == {Step.ADMIT}
        return
    assert state is not None
    assert step(True, True) == same.get(state, Step.REPLAY)
    assert step(False, True) == step(False, False) == Step.REFUSE
    assert step(True, False) == (Step.BUSY if state in ("claimed", "sent") else Step.REFUSE)


# --- everything at once


class Chaos:
    """One payment under a seed: the rail fails, the handler fails, callers leave, several show it at once."""

    def __init__(self, seed: int, shop: Shop, settle: str) -> None:
        self.rng = random.Random(seed)
        self.shop = shop
        self.settle = settle
        self.runs = self.fulfilled = 0
        self.unpaid_runs = 0
        self.wrong: list[str] = []

    async def goods(self, request: Request) -> Response:
        self.runs += 1
        if self.settle == "before" and not self.shop.rail.settled:
            self.unpaid_runs += 1
        await asyncio.sleep(self.rng.choice([0, 0, 0.002]))
        match self.rng.randrange(8):
            case 0:
                raise RuntimeError("the handler failed")
            case 1:
                raise HTTPException(self.rng.choice([404, 429, 503]))
            case 2:
                return StreamingResponse(lines(3))
            case 3:
                return StreamingResponse(lines(2, broken=self.rng.random() < 0.5))
            case _:
                return PlainTextResponse("goods")

    def script(self) -> None:
        rng, script = self.rng, self.shop.rail.script
        for step in ("ready", "verify", "prepare", "send", "wait", "outcome"):
            script[step] = []
            if rng.random() < 0.3:
                choices: list[Any] = [RailUnavailable("down"), RuntimeError("a secret")]
                if step == "verify":
                    choices.append(PaymentRefused("insufficient_funds"))
                if step == "send":
                    choices = [Outcome("pending")] * 3 + [Outcome("failed", reason="reverted")]
                if step in ("wait", "outcome"):
                    choices = [Outcome("pending"), Outcome("pending", reason="rpc_unavailable")]
                script[step] = [rng.choice(choices)]

    async def one(self, payment: Payment) -> None:
        leave, moved = asyncio.Event(), self.shop.rail.settled
        shown = asyncio.create_task(self.shop.ask("GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()}, leave=leave))
        fate = self.rng.random()
        if fate < 0.15:
            await asyncio.sleep(self.rng.choice([0, 0.001, 0.003]))
            leave.set()
        elif fate < 0.25:
            await asyncio.sleep(self.rng.choice([0, 0.001, 0.003]))
            shown.cancel()
        try:
            answer = await shown
        except asyncio.CancelledError:
            return
        if answer.status or not leave.is_set():
            self.judge(answer, moved)

    def judge(self, answer: Answer, moved: int) -> None:
        """``moved``: whether money had moved when the payment was shown."""
        if answer.status == 402 and moved:
            self.wrong.append(f"402 {answer.reason} after money moved")
        if b"secret" in answer.body:
            self.wrong.append("a secret got out")
        if answer.status == 200 and answer.complete and not answer.all("payment-replayed"):
            self.fulfilled += 1
        if answer.status not in (200, 402, 403, 404, 409, 429, 500, 503, 504):
            self.wrong.append(f"{answer.status}")


async def landed(shop: Shop, payment: Payment) -> None:
    """What was sent, and nobody waits for any more, is on the chain now."""
    claim: Claim | None = await shop.claim(payment)
    if claim is not None and claim.state in ("sent", "unknown") and not claim.lease_until:
        shop.rail.land(claim.reference)


@pytest.mark.parametrize("settle", ["before", "after"])
@pytest.mark.parametrize("seed", range(40))
async def test_I1_to_I12_whatever_fails_one_payment_is_one_fulfilment(
    seed: int, settle: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with opened(reconcile_seconds=3600, settle_seconds=1) as shop:
        chaos = Chaos(seed, shop, settle)
        shop.open(Starlette(routes=[Route("/goods", chaos.goods)]), {"/goods": {"price": "$0.01", "settle": settle}})
        payment = await shop.payment("GET", "/goods")
        for _ in range(8):
            chaos.script()
            await asyncio.gather(*[chaos.one(payment) for _ in range(chaos.rng.randint(1, 4))])
            if chaos.rng.random() < 0.5:
                await landed(shop, payment)
        # Calm again: whoever shows it now is told the truth, and gets what was paid for.
        shop.rail.script.clear()
        answer = Answer()
        for _ in range(100):
            await landed(shop, payment)
            moved = shop.rail.settled
            answer = await show(shop, payment)
            chaos.judge(answer, moved)
            if answer.status in (200, 403):
                break
            await asyncio.sleep(0.005)
        assert chaos.wrong == []
        assert answer.status == 200 or answer.reason == "too_many_attempts"
        assert shop.rail.settled == 1
        assert chaos.unpaid_runs == 0
        assert chaos.fulfilled <= 1
        claim: Claim | None = await shop.claim(payment)
        assert claim is not None
        assert claim.state in ("served", "settled")
        assert claim.lease_until == 0
