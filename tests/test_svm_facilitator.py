"""Solana through a facilitator over real HTTP: ours, which settles for anyone, and the seller's rail that uses one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from solders.keypair import Keypair
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.support.faulty_facilitator import LOST, FaultyFacilitator
from tests.support.serving import serving
from tests.support.svm_payments import NETWORK, PRICE, SvmSeller, encoded, keypair, offer_for, signed, standard
from x402kit import Paywall
from x402kit.asgi.facilitator import facilitator_app
from x402kit.devnet import SvmDevnet
from x402kit.errors import ConfigError, PaymentRefused, PaymentUsed, RailUnavailable
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Claim, Json, PaymentPayload
from x402kit.networks import SvmOptions, SvmRail
from x402kit.networks.facilitator import FacilitatorRail
from x402kit.networks.svm_outcome import EXPIRED
from x402kit.networks.svm_wallet import SvmWallet
from x402kit.protocols.x402 import decode_header, encode_header

TOKEN = "a token that only tests know"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
FAST = SvmOptions(rpc_seconds=2.0, poll_seconds=(0.01, 0.1))


@dataclass
class Front:
    """Where the facilitator is, and what goes wrong there."""

    chain: SvmDevnet
    url: str
    faulty: FaultyFacilitator


@pytest.fixture
def front(svm: SvmDevnet, tmp_path: Path) -> Iterator[Front]:
    account = svm.accounts[0]
    rail = SvmRail(NETWORK, pay_to=account.address, wallet=SvmWallet(account.secret_key), rpc=svm.rpc_url, options=FAST)
    store = SQLiteStore(tmp_path / "facilitator.db", lease_seconds=1)
    app = facilitator_app(store, [rail], token=TOKEN, settle_seconds=5, reconcile_seconds=0.2)
    faulty = FaultyFacilitator(app)
    with serving(faulty) as url:
        yield Front(svm, url, faulty)


@dataclass
class Shop:
    """A seller behind the facilitator, and what a payer does there."""

    chain: SvmDevnet
    base: SvmRail
    rail: FacilitatorRail

    def payload(self) -> Json:
        payer = keypair(self.chain.accounts[1])
        seller = SvmSeller(self.chain, self.base)
        steps = standard(payer.pubkey(), pay_to=self.rail.pay_to)
        return encoded(signed(seller.fee_payer, steps, [payer], seller.blockhash()))

    @property
    def received(self) -> int:
        return self.chain.balance_of(self.rail.pay_to)

    async def send(self) -> tuple[Claim, Any]:
        """A payment checked and sent; what is known of it then."""
        offer = offer_for(self.base.fee_payer, pay_to=self.rail.pay_to)
        authorization = self.rail.parse(PaymentPayload(2, "exact", NETWORK, self.payload()), offer)
        self.rail.check(authorization, offer, int(time.time()))
        await self.rail.verify(authorization, offer)
        intent = await self.rail.prepare(authorization, offer, SvmSeller(self.chain, self.base).nonces)
        outcome = await self.rail.send(intent)
        now = int(time.time())
        return authorization.claim(now, state="sent", intent=intent.blob, reference=outcome.reference), outcome


@contextlib.asynccontextmanager
async def selling(front: Front, *, sees: bool, options: SvmOptions = FAST, **settings: Any) -> AsyncGenerator[Shop]:
    pay_to = str(Keypair().pubkey())
    front.chain.set_tokens(pay_to, 0)
    base = SvmRail(NETWORK, pay_to=pay_to, rpc=front.chain.rpc_url if sees else None, options=options)
    rail = FacilitatorRail(base, front.url, headers=BEARER, **settings)
    with pytest.raises(RailUnavailable):  # nothing can be offered before it is known who pays the fees
        rail.extra()
    await rail.start()
    try:
        yield Shop(front.chain, base, rail)
    finally:
        await rail.close()


async def test_supported_names_the_fee_payer(front: Front) -> None:
    async with httpx.AsyncClient(base_url=front.url, headers=BEARER) as http:
        said = (await http.get("/supported")).json()
    wallet = front.chain.accounts[0].address
    assert said["kinds"] == [
        {"x402Version": 2, "scheme": "exact", "network": NETWORK, "extra": {"feePayer": wallet}},
        {"x402Version": 1, "scheme": "exact", "network": "solana", "extra": {"feePayer": wallet}},
    ]
    assert said["signers"] == {NETWORK: [wallet]}


@pytest.mark.parametrize("sees", [True, False])
async def test_a_paywall_is_paid_through_the_facilitator(front: Front, tmp_path: Path, sees: bool) -> None:
    async with selling(front, sees=sees) as shop:
        paywall = Paywall([shop.rail], tmp_path / "payments.db", origin="https://shop.example.com")

        @paywall.paid("$0.01")
        async def goods(request: Request) -> JSONResponse:
            return JSONResponse({"payer": request.scope["x402kit"].payer})

        app: ASGIApp = paywall.protect(Starlette(routes=[Route("/goods", goods)]))
        transport = httpx.ASGITransport(app)
        await paywall.start()
        async with httpx.AsyncClient(transport=transport, base_url="https://shop.example.com") as http:
            challenge = await http.get("/goods")
            (entry,) = decode_header(challenge.headers["payment-required"])["accepts"]
            assert entry["extra"]["feePayer"] == front.chain.accounts[0].address
            header = encode_header({"x402Version": 2, "accepted": entry, "payload": shop.payload()})
            for replayed in (None, "true"):
                answer = await http.get("/goods", headers={"PAYMENT-SIGNATURE": header})
                assert answer.status_code == 200
                assert answer.json() == {"payer": front.chain.accounts[1].address}
                assert answer.headers.get("payment-replayed") == replayed
        await paywall.stop()
        assert shop.received == PRICE


async def test_I02_a_lost_answer_is_found_on_the_chain_by_its_message(front: Front) -> None:
    async with selling(front, sees=True) as shop:
        front.faulty.faults["settle"] = [LOST] * 5
        claim, outcome = await shop.send()
        assert (outcome.state, outcome.reference) == ("pending", "")
        found = await shop.rail.wait(claim, 5)
        assert (found.state, len(found.reference) > 80) == ("settled", True)
        assert shop.received == PRICE
        # A transaction that it names and that is about something else changes nothing.
        other, _ = await shop.send()
        again = await shop.rail.wait(claim._replace(reference=other.reference or found.reference), 5)
        assert (again.state, again.reference) == ("settled", found.reference)


async def test_I02_a_lost_answer_is_asked_for_again_where_no_chain_is_seen(front: Front) -> None:
    async with selling(front, sees=False) as shop:
        front.faulty.faults["settle"] = [LOST]
        claim, outcome = await shop.send()
        assert outcome.state == "pending"
        assert (await shop.rail.wait(claim, 5)).state == "settled"
        assert shop.received == PRICE


async def test_D09_what_never_arrived_fails_when_its_blockhash_is_long_dead(front: Front, tmp_path: Path) -> None:
    later = 0.0
    with SvmDevnet(slot_ms=5) as chain:  # where a blockhash lives for less than a second
        swift = replace(front, chain=chain)
        clock = SvmOptions(rpc_seconds=2.0, poll_seconds=(0.01, 0.1), clock=lambda: time.time() + later)
        async with selling(swift, sees=True, options=clock) as shop:
            offer = offer_for(shop.base.fee_payer, pay_to=shop.rail.pay_to)
            authorization = shop.rail.parse(PaymentPayload(2, "exact", NETWORK, shop.payload()), offer)
            intent = await shop.rail.prepare(authorization, offer, SvmSeller(chain, shop.base).nonces)
            claim = authorization.claim(int(time.time()), state="sent", intent=intent.blob)
            assert (await shop.base.outcome(claim)).state == "pending"
            later = 300.0
            end = time.monotonic() + 10
            while (found := await shop.base.outcome(claim)).state == "pending":
                assert time.monotonic() < end
            assert (found.state, found.reason) == ("failed", EXPIRED)
            assert (await shop.base.outcome(claim._replace(intent=b""))).state == "pending"


async def test_what_the_facilitator_refuses_is_refused(front: Front) -> None:
    async with selling(front, sees=True) as shop:
        offer = offer_for(shop.base.fee_payer, pay_to=shop.rail.pay_to)
        poor, seller = Keypair(), SvmSeller(shop.chain, shop.base)
        steps = standard(poor.pubkey(), pay_to=shop.rail.pay_to)
        payload = encoded(signed(seller.fee_payer, steps, [poor], seller.blockhash()))
        authorization = shop.rail.parse(PaymentPayload(2, "exact", NETWORK, payload), offer)
        with pytest.raises(PaymentRefused) as refused:
            await shop.rail.verify(authorization, offer)
        assert refused.value.reason == "transaction_simulation_failed"


@pytest.mark.parametrize("sees", [True, False])
async def test_B05_what_has_landed_is_used_and_nobody_is_asked_to_sign_anew(front: Front, sees: bool) -> None:
    async with selling(front, sees=sees) as shop:
        offer = offer_for(shop.base.fee_payer, pay_to=shop.rail.pay_to)
        authorization = shop.rail.parse(PaymentPayload(2, "exact", NETWORK, shop.payload()), offer)
        intent = await shop.rail.prepare(authorization, offer, SvmSeller(shop.chain, shop.base).nonces)
        sent = await shop.rail.send(intent)
        claim = authorization.claim(int(time.time()), state="sent", intent=intent.blob, reference=sent.reference)
        assert sent.state == "settled" or (await shop.rail.wait(claim, 5)).state == "settled"
        with pytest.raises(PaymentUsed):
            await shop.rail.verify(authorization, offer)


def test_a_facilitators_fee_payer_must_be_one_and_ours_where_we_said_whose() -> None:
    pay_to, one, two = (str(Keypair().pubkey()) for _ in range(3))
    for said in ({}, {"feePayer": 5}, {"feePayer": "0x12"}):
        with pytest.raises(ConfigError, match="fee payer"):
            SvmRail(NETWORK, pay_to=pay_to).adopt(said)
    rail = SvmRail(NETWORK, pay_to=pay_to, fee_payer=one)
    rail.adopt({})
    rail.adopt({"feePayer": one})
    with pytest.raises(ConfigError, match="another"):
        rail.adopt({"feePayer": two})
    assert rail.fee_payer == one
