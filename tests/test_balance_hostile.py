"""What a payer, a crash or an odd set-up could make of balances: small cases beside those of the other files."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.support.asking import ask, make_scope
from tests.support.rails import USDC, OfflineRail
from tests.support.stores import Place
from tests.support.till import FIXED, WAYS, Ended, Way, opened, part, reply, stream, usage
from x402kit import Tokens
from x402kit.asgi.wallet_price import TopUp
from x402kit.errors import RailUnavailable
from x402kit.ledger.port import Store
from x402kit.model import Account, Balance, Claim, Hold, Spend
from x402kit.money import MAX_AMOUNT, usd
from x402kit.paywall.binding import Quotes
from x402kit.paywall.challenge import Challenges
from x402kit.paywall.keeper import Keeper
from x402kit.paywall.settlement import Settler


async def test_H02_who_leaves_before_a_payment_is_settled_leaves_it_unused(tmp_path: Path) -> None:
    """Also where the app has reported its use: with ``settle="after"`` there is nothing yet to charge it to."""
    async with opened(str(tmp_path / "payments.db"), route={"settle": "after"}) as till:

        async def silent(scope: Scope, receive: Receive, send: Send) -> None:
            scope["x402kit"].report({"output": 500})
            await asyncio.sleep(60)

        till.playing.app = silent
        payment, leave = await till.payment("/metered"), asyncio.Event()
        call = asyncio.create_task(till.ask("/metered", {"PAYMENT-SIGNATURE": payment.v2()}, leave=leave))
        await till.playing.began.wait()
        leave.set()
        assert (await call).status == 0
        claim = await till.claim(payment)
        assert (claim.state, claim.spent, till.rail.settled) == ("failed", 0, 0)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2]], ids=str)
async def test_H06_K02_who_has_the_answer_and_holds_back_its_request_has_left(tmp_path: Path, way: Way) -> None:
    """An app may answer before it has read all of the body; what stalls then is its caller, who pays."""
    async with opened(str(tmp_path / "payments.db"), route={"stall_seconds": 0.1}) as till:
        await till.credit(100_000)

        async def early(scope: Scope, receive: Receive, send: Send) -> None:
            await stream(send, b"goods")
            while (await receive()).get("more_body"):
                pass

        till.playing.app = early
        headers = {**await till.credentials(way), "Content-Length": "10"}
        asked: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]
        given: list[bytes] = []

        async def receive() -> Message:
            return asked.pop() if asked else await asyncio.Future()

        async def send(message: Message) -> None:
            given.append(message.get("body", b""))

        await till.app(make_scope("POST", way.path, headers), receive, send)
        assert b"goods" in given
        assert await till.ended(way) == Ended(FIXED, 0, False)


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_K01_an_upload_streams_through_whichever_way_it_states_its_length(tmp_path: Path, version: str) -> None:
    """In HTTP/2 a body needs no header; it is not one that the price reads, so that its limit is not the price's."""
    parts = [b"x" * 65_536] * 20

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await reply(send, str(size).encode())

    async with opened(str(tmp_path / "payments.db")) as till:
        await till.credit(100_000)
        till.playing.app = app
        headers = {**till.proof(), **({"Transfer-Encoding": "chunked"} if version == "1.1" else {})}
        answer = await ask(till.app, "POST", "/fixed", headers, body=parts, http_version=version)
        assert (answer.status, answer.body) == (200, str(20 * 65_536).encode())
        assert (await till.ended(WAYS[2])).charged == FIXED


@pytest.mark.parametrize("header", [True, False])
async def test_A11_a_body_that_we_changed_has_its_own_length(tmp_path: Path, header: bool) -> None:
    asked = {"price": Tokens(input="$1/M", output="$1/M"), "ask_usage": True}
    async with opened(str(tmp_path / "payments.db"), prices={"/asked": asked}) as till:
        await till.credit(100_000)
        seen: list[tuple[list[bytes], int]] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            body = (await receive())["body"]
            assert json.loads(body)["stream_options"] == {"include_usage": True}
            seen.append(([value for name, value in scope["headers"] if name == b"content-length"], len(body)))
            await stream(send, usage(1))
            await send(part(b"data: [DONE]\n\n", more=False))

        till.playing.app = app
        body = json.dumps({"messages": [], "max_tokens": 10, "stream": True}).encode()
        length = {"Content-Length": str(len(body))} if header else {}
        assert (await till.ask("/asked", {**till.proof(), **length}, body)).status == 200
        stated, real = seen[0]
        assert real > len(body)
        assert stated == ([str(real).encode()] if header else [])


async def test_I6_a_payment_that_can_not_be_credited_keeps_nobody_elses_money(ledger: str) -> None:
    """Of a token with eighteen decimals a balance holds nine units: what does not fit waits, and all else goes on."""
    async with opened(ledger, rail=OfflineRail(asset=replace(USDC, decimals=18)), reconcile_seconds=3600) as till:
        assert (await till.top_up("5.00")).status == 200
        payment = await till.payment("/v1/x402/top-up", {"amount_usdc": "5.00"})
        shown = await till.ask("/v1/x402/top-up", {"PAYMENT-SIGNATURE": payment.v2()}, {"amount_usdc": "5.00"})
        assert shown.status == 504
        claim = await till.claim(payment)
        await till.store.release(claim.payment_id, claim.owner)
        now = int(time.time())
        other = Account(till.account.owner[:-2] + "00", till.account.asset)
        await till.store.deposit(other, 1000, "other")
        hold = Hold("h", *other, 400, holder="dead", created_at=now, deadline=now)
        assert await till.store.reserve(hold) == await till.store.hold("h")
        assert await till.store.defer_hold("h", "dead", now)
        await till.paywall.reconcile()
        assert (await till.store.balance(other)).available == 1000
        assert (await till.claim(payment)).state == "settled"
        assert (await till.balance()).available == 5 * 10**18


async def test_I6_however_many_payments_can_not_be_credited_the_next_one_is(place: Place) -> None:
    store, now = place.open(), int(time.time())
    await store.start()
    try:
        full, other = (Account.of("eip155:8453", "0xb", wallet) for wallet in ("0xa", "0xc"))
        await store.deposit(full, MAX_AMOUNT, "by hand")

        async def unserved(number: int, payer: str, deadline: int) -> None:
            terms = ("eip155:8453", "0xb", "0xpay", payer, 10, now + 1000, 1, deadline)
            claim = Claim(f"p{number}", "claimed", b"f", b"c", "r", *terms, owner=f"o{number}")
            assert (await store.claim(claim)).owner == claim.owner
            assert await store.move(claim.payment_id, "confirm", claim.owner)
            await store.release(claim.payment_id, claim.owner)

        for first in range(0, 240, 8):  # a payer has so many open at a time
            await asyncio.gather(*[unserved(number, "0xa", now - 100) for number in range(first, first + 8)])
        await unserved(240, "0xc", now - 50)
        await Keeper(store).tidy()
        assert await store.balance(other) == Balance(10, 0)
        assert await store.balance(full) == Balance(MAX_AMOUNT, 0)
    finally:
        await store.close()


async def test_I6_K04_a_pass_ends_and_forgets_as_much_as_there_is(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many holds a process left, and however many proofs were spent since the pass before."""
    monkeypatch.setattr("x402kit.paywall.keeper._PRUNE_SECONDS", 60)
    store, account, now = place.open(), Account("eip155:8453:0xa", "eip155:8453/0xb"), int(time.time())
    await store.start()
    try:
        await store.deposit(account, 2500, "by hand")

        async def call(number: int) -> None:
            hold = Hold(f"h{number}", *account, 1, holder="dead", created_at=now, deadline=now)
            await store.reserve(hold, Spend(f"p{number}", now - 1))
            await store.defer_hold(hold.id, "dead", now)

        await asyncio.gather(*map(call, range(2500)))
        await Keeper(store).tidy()
        assert await store.balance(account) == Balance(2500, 0)
        assert place.query("SELECT count(*) FROM proofs")[0][0] == 0
    finally:
        await store.close()


async def test_I6_a_fault_in_one_part_of_a_pass_keeps_no_other_from_its_work(ledger: str) -> None:
    async with opened(ledger, reconcile_seconds=3600) as till:
        done: list[int] = []

        async def faulty() -> None:
            done.append(1)
            raise ValueError("a fault of ours")

        async def sound() -> None:
            done.append(2)

        with pytest.raises(ValueError, match="a fault of ours"):
            await Settler(till.store, [till.rail], also=(faulty, sound)).reconcile()
        assert done == [1, 2]


async def test_I11_a_store_out_of_reach_is_told_of_once_and_a_fault_of_ours_with_its_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fates: list[Exception | None] = [
        *[RailUnavailable("store_unavailable")] * 4,
        None,
        None,
        ValueError("a fault of ours"),
        None,
    ]
    over = asyncio.Event()

    async def work() -> None:
        if not fates:
            over.set()
            return
        fate = fates.pop(0)
        if fate is not None:
            raise fate

    async with opened(str(tmp_path / "payments.db"), reconcile_seconds=3600) as till:
        settler = Settler(till.store, [till.rail], every=0.01, also=(work,))
        await settler.start()
        await asyncio.wait_for(over.wait(), 20)
        await settler.close()
    told = [record for record in caplog.records if record.name == "x402kit.settlement"]
    assert [(record.levelname, record.getMessage(), record.exc_info is not None) for record in told] == [
        ("WARNING", "reconcile can't be done now: store_unavailable; it is tried again", False),
        ("WARNING", "reconcile is done again", False),
        ("ERROR", "reconcile failed", True),
    ]


async def test_I6_a_fault_of_ours_is_not_hidden_behind_a_store_out_of_reach(tmp_path: Path) -> None:
    async def away() -> None:
        raise RailUnavailable("store_unavailable")

    async def faulty() -> None:
        raise ValueError("a fault of ours")

    async with opened(str(tmp_path / "payments.db"), reconcile_seconds=3600) as till:
        with pytest.raises(ValueError, match="a fault of ours"):
            await Settler(till.store, [till.rail], also=(away, faulty)).reconcile()


@pytest.mark.parametrize("decimals", [6, 18])
def test_a_shortfall_that_is_offered_can_be_asked_for(decimals: int) -> None:
    price = TopUp.of("$1", "$1000")
    units = 1_234_567 * 10 ** (decimals - 6) + (1 if decimals > 6 else 0)
    offered = price.at_least(units, decimals)
    assert offered.atomic(decimals) >= units
    assert price.amount(json.dumps({"amount_usdc": str(offered.value)}).encode()) == offered


async def test_I12_a_job_that_another_process_ends_leaves_nothing_in_the_first(database: str) -> None:
    async with opened(database) as till:
        await till.credit(100_000)
        store: Store = till.store

        async def queued(scope: Scope, receive: Receive, send: Send) -> None:
            scope["x402kit"].defer(600)
            await send({"type": "http.response.start", "status": 202, "headers": []})
            await send(part(b"", more=False))

        till.playing.app = queued
        for _ in range(3):
            assert (await till.ask("/fixed", till.proof())).status == 202
        assert getattr(store, "_places") == {}  # noqa: B009
        for paid in till.playing.paid:
            await till.paywall.void(paid.job)
        assert (await till.balance()) == (100_000, 0)


def test_I01_a_surcharge_that_can_not_be_told_after_the_settlement_leaves_no_claim_open() -> None:
    class Dark(OfflineRail):
        def surcharges(self) -> tuple[int, ...]:
            raise RailUnavailable("no_gas_price")

    claim = Claim("p", "settled", b"", b"", "r", USDC.network, USDC.address, "0xb", "0xc", 1_040, 0, 0, 0)
    for rail, fee in ((OfflineRail(surcharges=(40,)), 40), (Dark(), 0)):
        assert Challenges([rail], Quotes(bytes(32))).fee(claim, usd("$0.001")) == fee
