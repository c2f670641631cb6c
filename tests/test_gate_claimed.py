"""A payment that has a claim is answered by that, whatever the checks would say of it by now: here and elsewhere (I7).

Another process claimed it as a rule: then a new look at it fails, or finds nothing amiss and the row in its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from tests.support.asking import ORIGIN, Answer, ask
from tests.support.payments import Payment, pay
from tests.support.rails import OfflineRail
from x402kit import Paywall
from x402kit.asgi.gate import Gate
from x402kit.errors import PaymentUsed, RailUnavailable
from x402kit.model import Claim, Outcome
from x402kit.paywall import admission


class Seller:
    """One process of a seller of one thing."""

    def __init__(self, rail: OfflineRail) -> None:
        self.rail = rail
        self.gate: Gate | None = None
        self.paywall: Paywall | None = None
        self.runs = 0

    async def goods(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.runs += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"goods"})

    async def show(self, payment: Payment | None = None, *, v1: bool = False) -> Answer:
        headers: dict[str, str] = {}
        if payment is not None:
            headers = {"X-PAYMENT": payment.v1()} if v1 else {"PAYMENT-SIGNATURE": payment.v2()}
        assert self.gate is not None
        return await ask(self.gate, "GET", "/goods", headers)

    async def sending(self) -> None:
        """Until a settlement is under way."""
        async with asyncio.timeout(5):
            while not self.rail.calls["send"]:  # noqa: ASYNC110  # the rail has no event for it
                await asyncio.sleep(0.001)

    async def payment(self) -> Payment:
        return pay((await self.show()).entry)


@asynccontextmanager
async def selling(ledger: Path, price: str = "$0.01", **rail: bool) -> AsyncGenerator[Seller]:
    seller = Seller(OfflineRail())
    for name, value in rail.items():
        setattr(seller.rail, name, value)
    seller.paywall = paywall = Paywall([seller.rail], ledger, origin=ORIGIN, reconcile_seconds=3600, drain_seconds=0.1)
    seller.gate = paywall.protect(seller.goods, {"GET /goods": price})
    try:
        yield seller
    finally:
        await paywall.stop()


def rows(ledger: Path, columns: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        return connection.execute(f"SELECT {columns} FROM claims ORDER BY id").fetchall()


def over(ledger: Path) -> None:
    """No lease lives."""
    with contextlib.closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE claims SET lease_until = 0")


async def stand_still(
    seller: Seller, ledger: Path, payment: Payment | None = None
) -> tuple[asyncio.Task[Answer], asyncio.Event]:
    """Begin to settle; the sending waits for the event, and the lease is over."""
    held = asyncio.Event()
    seller.rail.script["send"].append(held)
    showing = asyncio.create_task(seller.show(payment or await seller.payment()))
    await seller.sending()
    over(ledger)
    return showing, held


def no_node(seller: Seller, monkeypatch: pytest.MonkeyPatch) -> None:
    seller.rail.script["verify"] += [RailUnavailable("chain_unavailable")] * 2


def no_slot(seller: Seller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "VERIFY_SLOTS", 0)


def nothing(seller: Seller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the chain knows of it yet."""


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "v2"])
@pytest.mark.parametrize(
    ("price", "fault", "fresh"),
    [
        ("$0.01", nothing, 200),
        ("$0.01", no_node, 503),
        ("$0.01", no_slot, 429),
        ("$0.02", nothing, 402),
    ],
    ids=["nothing amiss", "no node", "no slot", "a new price"],
)
async def test_C01_I7_what_another_process_served_is_answered_by_its_claim(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    v1: bool,
    price: str,
    fault: Callable[[Seller, pytest.MonkeyPatch], None],
    fresh: int,
) -> None:
    ledger = tmp_path / "claims.db"
    async with selling(ledger) as first:
        payment, other = await first.payment(), await first.payment()
        served = await first.show(payment, v1=v1)
        assert (served.status, served.body) == (200, b"goods")
        async with selling(ledger, price) as second:
            fault(second, monkeypatch)
            again = await second.show(payment, v1=v1)
            assert (again.status, again.body, again.receipt) == (200, b"goods", served.receipt)
            assert (first.runs, second.runs, second.rail.settled) == (1, 0, 0)
            if v1:  # what a quote says of the price is good in every process
                assert (await second.show(other, v1=True)).status == fresh


@pytest.mark.parametrize("v1", [True, False], ids=["v1", "v2"])
async def test_C01_I7_a_top_up_is_told_again_by_a_process_that_takes_no_such_amount_now(
    tmp_path: Path, v1: bool
) -> None:
    body = b'{"amount_usdc": "1.00"}'
    answers: list[Answer] = []
    payment: Payment | None = None
    for maximum in ("$5", "$0.50"):
        paywall = Paywall([OfflineRail()], tmp_path / "claims.db", origin=ORIGIN, reconcile_seconds=3600)
        app = paywall.protect(
            Starlette(routes=[Mount("/v1/x402", paywall.wallet_service(minimum="$0.10", maximum=maximum))])
        )
        if payment is None:
            payment = pay((await ask(app, "POST", "/v1/x402/top-up", body=body)).entry)
        headers = {"X-PAYMENT": payment.v1()} if v1 else {"PAYMENT-SIGNATURE": payment.v2()}
        answers.append(await ask(app, "POST", "/v1/x402/top-up", headers, body=body))
        await paywall.stop()
    first, again = answers
    assert (first.status, again.status) == (200, 200)
    assert again.receipt == first.receipt


async def test_C02_what_another_process_is_settling_is_in_progress(tmp_path: Path) -> None:
    ledger = tmp_path / "claims.db"
    async with selling(ledger) as first, selling(ledger) as second:
        payment = await first.payment()
        held = asyncio.Event()
        first.rail.script["send"].append(held)
        showing = asyncio.create_task(first.show(payment))
        await first.sending()
        for fault in ([], [RailUnavailable("chain_unavailable")]):
            second.rail.script["verify"] = list(fault)
            busy = await second.show(payment)
            assert (busy.status, busy.header("payment-required"), second.rail.calls["send"]) == (409, "", 0)
        held.set()
        assert (await showing).status == 200
        assert (await second.show(payment)).status == 200
        assert (first.runs, second.runs, first.rail.settled) == (1, 0, 1)


async def test_I9_a_process_that_stood_still_does_not_take_its_own_settlement_over(tmp_path: Path) -> None:
    """Its leases are over when it goes on, and it is at work."""
    ledger = tmp_path / "claims.db"
    async with selling(ledger) as seller:
        showing, held = await stand_still(seller, ledger)
        assert seller.paywall is not None
        assert (await seller.paywall.reconcile(), seller.rail.calls["outcome"]) == (0, 0)
        held.set()
        assert ((await showing).status, seller.runs, seller.rail.settled) == (200, 1, 1)


async def test_I9_what_a_process_that_stood_still_settled_is_looked_at_by_another(tmp_path: Path) -> None:
    """The payer is told that the outcome is open, and has the goods at the next showing."""
    ledger = tmp_path / "claims.db"
    async with selling(ledger) as first, selling(ledger) as second:
        payment = await second.payment()
        showing, held = await stand_still(first, ledger, payment)
        assert second.paywall is not None
        assert (await second.paywall.reconcile(), second.rail.calls["outcome"]) == (1, 1)
        held.set()
        late = await showing
        assert (late.status, late.header("payment-required")) == (504, "")
        assert ((await first.show(payment)).status, first.runs, first.rail.settled) == (200, 1, 1)


async def test_C01_a_payment_shown_here_again_asks_nothing_of_the_chain(tmp_path: Path) -> None:
    async with selling(tmp_path / "claims.db") as seller:
        payment = await seller.payment()
        for _ in range(3):
            assert (await seller.show(payment)).status == 200
        assert (seller.rail.calls["verify"], seller.rail.calls["send"], seller.runs) == (1, 1, 1)


@pytest.mark.parametrize("check", [None, PaymentUsed("nonce_already_used")], ids=["passes", "fails"])
async def test_I13_what_another_process_served_is_checked_on_the_chain_once(
    tmp_path: Path, check: PaymentUsed | None
) -> None:
    """Else who has one spent payment takes the slots of those who pay, for nothing."""
    ledger = tmp_path / "claims.db"
    async with selling(ledger) as first, selling(ledger) as second:
        payment = await first.payment()
        assert (await first.show(payment)).status == 200
        second.rail.script["verify"] = [check] * 3
        for _ in range(3):
            assert (await second.show(payment)).status == 200
        assert (second.rail.calls["verify"], second.rail.calls["send"], second.runs) == (1, 0, 0)


async def test_I12_what_was_shown_is_remembered_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_SEEN_MAX", 2)
    async with selling(tmp_path / "claims.db") as seller:
        payments = [await seller.payment() for _ in range(5)]
        for _ in range(2):
            for payment in payments:
                assert (await seller.show(payment)).status == 200
        assert (seller.runs, seller.rail.settled) == (5, 5)


# An intent that holds nothing is stored with its claim.


async def test_I9_an_intent_that_holds_nothing_is_durable_with_its_claim_before_it_is_sent(tmp_path: Path) -> None:
    ledger = tmp_path / "claims.db"
    async with selling(ledger, prepare_is_pure=True) as seller:
        payment = await seller.payment()
        held = asyncio.Event()
        seller.rail.script["send"].append(held)
        showing = asyncio.create_task(seller.show(payment))
        await seller.sending()
        (state, intent), *others = rows(ledger, "state, intent")
        assert (state, bool(intent), others) == ("sent", True, [])
        held.set()
        assert (await showing).status == 200
        assert rows(ledger, "state") == [("served",)]


async def test_C02_of_many_that_prepared_one_is_sent(tmp_path: Path) -> None:
    ledger = tmp_path / "claims.db"
    async with selling(ledger, prepare_is_pure=True) as first, selling(ledger, prepare_is_pure=True) as second:
        payment = await first.payment()
        sellers = [first, second] * 16
        answers = await asyncio.gather(*[seller.show(payment) for seller in sellers])
        assert {answer.status for answer in answers} <= {200, 409}
        assert first.rail.settled + second.rail.settled == first.runs + second.runs == 1
        assert (await second.show(payment)).body == b"goods"


async def test_J01_a_claim_that_was_never_sent_is_sent_once_by_who_finds_it(tmp_path: Path) -> None:
    """Its process died between the claim and the sending."""
    ledger = tmp_path / "claims.db"
    async with selling(ledger, prepare_is_pure=True) as first:
        payment = await first.payment()
        first.rail.script["send"].append(asyncio.Event())
        showing = asyncio.create_task(first.show(payment))
        await first.sending()
        showing.cancel()
    over(ledger)
    async with selling(ledger, prepare_is_pure=True) as second:
        second.rail.script["outcome"] = [Outcome("pending", resend=True), Outcome("settled", reference="0xfound")]
        statuses = [(await second.show(payment)).status for _ in range(3)]
        assert statuses[-1] == 200
        assert {402, 403} & set(statuses) == set()
        assert (second.rail.calls["send"], second.runs) == (1, 1)


@pytest.mark.parametrize("cancelled", [True, False], ids=["its caller is cancelled", "its answer is lost"])
@pytest.mark.parametrize("comes_back", [True, False])
async def test_I7_a_claim_that_nobody_knows_of_is_over_and_never_unknown(
    tmp_path: Path, cancelled: bool, comes_back: bool
) -> None:
    """Through a facilitator that shows no chain, nobody could ever say that it was not sent."""
    ledger = tmp_path / "claims.db"
    async with selling(ledger, prepare_is_pure=True) as seller:
        payment = await seller.payment()
        assert seller.paywall is not None
        store = seller.paywall.store
        claim = store.claim

        async def lost(row: Claim) -> Claim:
            if cancelled:
                showing.cancel()
            made = await claim(row)
            assert not cancelled, made
            raise RailUnavailable("store_unavailable")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "claim", lost)
            showing = asyncio.create_task(seller.show(payment))
            await asyncio.wait((showing,))
        assert showing.cancelled() if cancelled else showing.result().status == 503
        if comes_back:
            async with asyncio.timeout(5):
                while (answer := await seller.show(payment)).status == 409:
                    pass
            assert (answer.status, seller.rail.calls["send"], seller.runs) == (200, 1, 1)
    if not comes_back:
        assert rows(ledger, "state, reason") == [("failed", "not_sent")]
        assert seller.rail.calls["send"] == seller.rail.calls["outcome"] == 0


async def test_I9_a_claim_that_failed_is_claimed_anew_with_a_new_intent(tmp_path: Path) -> None:
    ledger = tmp_path / "claims.db"
    async with selling(ledger, prepare_is_pure=True) as seller:
        payment = await seller.payment()
        seller.rail.script["send"].append(Outcome("failed", "transaction_failed", never_sent=True))
        assert (await seller.show(payment)).status == 402
        assert rows(ledger, "state") == [("failed",)]
        assert (await seller.show(payment)).status == 200
        assert (seller.rail.settled, seller.runs) == (1, 1)
