"""What holds on every network, on each of them: one set of cases, two chains, nothing of a chain in the flow."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from solders.keypair import Keypair
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.support.faulty_rpc import Fault, faulty_rpc
from tests.support.svm_payments import NETWORK, PAY_TO
from tests.support.svm_rails import Till, evm_till, svm_till
from x402kit import Paywall
from x402kit.devnet import EvmDevnet, SvmDevnet
from x402kit.model import Json
from x402kit.protocols.x402 import decode_header, encode_header

PRICE = 10_000
SELLER = str(Keypair.from_seed(b"a seller that is started twice .").pubkey())
ELSEWHERE = {"eip155:8453": "0x00000000000000000000000000000000C0FfeE00", NETWORK: PAY_TO}


@pytest.fixture(params=["base", "solana"])
def till(request: pytest.FixtureRequest, chain: EvmDevnet, svm: SvmDevnet) -> Till:
    return evm_till(chain) if request.param == "base" else svm_till(svm)


class Shop:
    """One paywall on one or more rails, asked in process."""

    def __init__(self, tills: list[Till], place: Path, **settings: Any) -> None:
        self.runs: list[str] = []
        self.ledger = place / "payments.db"
        rails = [till.rail for till in tills]
        self.paywall = Paywall(rails, self.ledger, origin="https://shop.example.com", **settings)
        self.app = self.paywall.protect(Starlette(routes=self._routes()))
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="https://shop.example.com"
        )
        self.failing = 0

    def _routes(self) -> list[Route]:
        @self.paywall.paid("$0.01")
        async def goods(request: Request) -> JSONResponse:
            if self.failing:
                self.failing -= 1
                raise RuntimeError("the handler's own fault")
            self.runs.append(request.scope["x402kit"].payer)
            return JSONResponse({"goods": True})

        @self.paywall.paid("$0.01")
        async def other(request: Request) -> JSONResponse:
            self.runs.append("other")
            return JSONResponse({"other": True})

        return [Route("/goods", goods, methods=["GET", "POST"]), Route("/other", other)]

    async def entry(self, network: str, path: str = "/goods") -> Json:
        """The offer on a network."""
        answer = await self.http.get(path)
        assert answer.status_code == 402
        (found,) = (e for e in decode_header(answer.headers["payment-required"])["accepts"] if e["network"] == network)
        return dict(found)

    async def show(self, entry: Json, payload: Json, path: str = "/goods", **request: Any) -> httpx.Response:
        header = encode_header({"x402Version": 2, "accepted": entry, "payload": payload})
        return await self.http.request("GET", path, headers={"PAYMENT-SIGNATURE": header}, **request)

    def claims(self) -> int:
        with contextlib.closing(sqlite3.connect(self.ledger)) as books:
            found: int = books.execute("SELECT count(*) FROM claims").fetchone()[0]
        return found


@pytest.fixture
async def shop(till: Till, tmp_path: Path) -> AsyncIterator[Shop]:
    made = Shop([till], tmp_path)
    await made.paywall.start()
    yield made
    await made.http.aclose()
    await made.paywall.stop()


async def test_a_payment_is_offered_settled_and_served(till: Till, shop: Shop) -> None:
    entry = await shop.entry(till.network)
    assert int(entry["amount"]) == PRICE
    answer = await shop.show(entry, till.pay(entry))
    assert (answer.status_code, answer.json()) == (200, {"goods": True})
    receipt = decode_header(answer.headers["payment-response"])
    assert receipt["success"] is True
    assert (receipt["network"], receipt["payer"], receipt["amount"]) == (till.network, till.payer, str(PRICE))
    assert receipt["transaction"]
    assert shop.runs == [till.payer]
    assert till.received() == PRICE


async def test_A02_another_recipient_or_amount_in_the_echo_is_refused_without_a_claim(till: Till, shop: Shop) -> None:
    entry = await shop.entry(till.network)
    elsewhere = ELSEWHERE[till.network]
    for changes in ({"payTo": elsewhere}, {"amount": "1", "maxAmountRequired": "1"}, {"asset": elsewhere}):
        lying = {**entry, **changes}
        answer = await shop.show(lying, till.pay(lying) if "asset" not in changes else till.pay(entry))
        assert answer.status_code == 402
        assert "payment-required" in answer.headers
    # What is signed counts, not what is echoed.
    for terms in ({"amount": 1}, {"amount": PRICE + 1}, {"pay_to": elsewhere}):
        assert (await shop.show(entry, till.pay(entry, **terms))).status_code == 402
    assert (shop.claims(), till.received(), shop.runs) == (0, 0, [])


async def test_A04_a_payment_for_one_route_opens_no_other(till: Till, shop: Shop) -> None:
    entry = await shop.entry(till.network)
    payload = till.pay(entry)
    assert (await shop.show(entry, payload, "/other")).status_code == 402
    assert till.received() == 0
    assert (await shop.show(entry, payload)).status_code == 200
    assert (await shop.show(entry, payload, "/other")).status_code == 403
    assert till.received() == PRICE


async def test_C01_D08_twenty_showings_at_once_run_once(till: Till, shop: Shop) -> None:
    entry = await shop.entry(till.network)
    payload = till.pay(entry)
    answers = await asyncio.gather(*(shop.show(entry, payload) for _ in range(20)))
    served = [a for a in answers if a.status_code == 200 and "payment-replayed" not in a.headers]
    assert len(served) == 1
    assert {a.status_code for a in answers} <= {200, 409}
    assert len(shop.runs) == 1
    assert till.received() == PRICE


async def test_C03_shown_again_it_is_replayed(till: Till, shop: Shop) -> None:
    entry = await shop.entry(till.network)
    payload = till.pay(entry)
    first, again = [await shop.show(entry, payload) for _ in range(2)]
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.headers["payment-replayed"] == "true"
    assert first.headers["payment-response"] == again.headers["payment-response"]
    assert (len(shop.runs), till.received()) == (1, PRICE)


async def test_C05_another_body_is_403(till: Till, shop: Shop) -> None:
    entry = await shop.entry(till.network)
    payload = till.pay(entry)
    assert (await shop.show(entry, payload)).status_code == 200
    assert (await shop.show(entry, payload, "/goods?more=1")).status_code == 403
    assert (len(shop.runs), till.received()) == (1, PRICE)


async def test_H08_a_handler_that_fails_leaves_the_payment_good(till: Till, shop: Shop) -> None:
    entry = await shop.entry(till.network)
    payload = till.pay(entry)
    shop.failing = 1
    assert (await shop.show(entry, payload)).status_code == 500
    assert till.received() == PRICE
    assert (await shop.show(entry, payload)).status_code == 200
    assert (len(shop.runs), till.received()) == (1, PRICE)


async def test_C08_another_process_knows_what_was_paid(till: Till, shop: Shop, tmp_path: Path) -> None:
    entry = await shop.entry(till.network)
    payload = till.pay(entry)
    assert (await shop.show(entry, payload)).status_code == 200
    await shop.paywall.stop()
    later = Shop([till], tmp_path)
    await later.paywall.start()
    try:
        assert (await later.show(entry, payload)).headers["payment-replayed"] == "true"
        assert later.runs == []
    finally:
        await later.http.aclose()
        await later.paywall.stop()
    assert till.received() == PRICE


LOST = {"base": "eth_sendRawTransaction", "solana": "sendTransaction"}


@pytest.mark.parametrize("name", ["base", "solana"])
@pytest.mark.parametrize("arrived", [True, False])
async def test_I02_J01_a_lost_broadcast_is_unknown_and_another_process_finds_the_truth(
    chain: EvmDevnet, svm: SvmDevnet, tmp_path: Path, name: str, arrived: bool
) -> None:
    def till_at(rpc: str = "") -> Till:
        return evm_till(chain, rpc=rpc) if name == "base" else svm_till(svm, rpc=rpc, pay_to=SELLER)

    seen = "eth_getTransactionReceipt" if name == "base" else "getSignatureStatuses"
    svm.set_tokens(SELLER, 0)
    async with faulty_rpc(chain.rpc_url if name == "base" else svm.rpc_url) as node:
        first = Shop([till_at(node.url)], tmp_path, settle_seconds=0.3)
        await first.paywall.start()
        till = till_at(node.url)
        entry = await first.entry(till.network)
        payload = till.pay(entry)
        node.faults[LOST[name]] = Fault(forward=arrived, html=502)
        verified = node.seen[seen]
        node.faults[seen] = Fault(html=502, when=lambda params: node.seen[LOST[name]] > 0)
        answer = await first.show(entry, payload)
        assert (answer.status_code, answer.headers["payment-outcome"]) == (504, "unknown")
        assert node.seen[seen] > verified
        await first.http.aclose()
        await first.paywall.stop()
    later = Shop([till_at()], tmp_path)
    await later.paywall.start()
    try:
        end = time.monotonic() + 10
        while (answer := await later.show(entry, payload)).status_code != 200:
            assert answer.status_code in (409, 504)
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
        assert later.runs == [till.payer]
        assert till.received() == PRICE
    finally:
        await later.http.aclose()
        await later.paywall.stop()


async def test_an_offer_holds_a_blockhash_that_binds_nobody(svm: SvmDevnet, tmp_path: Path) -> None:
    till = svm_till(svm)
    shop = Shop([till], tmp_path)
    await shop.paywall.start()
    try:
        entry = await shop.entry(till.network)
        blockhash, height = entry["extra"]["recentBlockhash"], entry["extra"]["lastValidBlockHeight"]
        known = svm.rpc("isBlockhashValid", blockhash, {"commitment": "confirmed"})
        assert known["value"] is True
        assert svm.rpc("getEpochInfo")["blockHeight"] < height
        for change in ({"recentBlockhash": "other"}, {"lastValidBlockHeight": 1}):
            echo = {**entry, "extra": {**entry["extra"], **change}}
            assert (await shop.show(echo, till.pay(entry))).status_code == 200
        stranger = {**entry, "extra": {**entry["extra"], "feePayer": PAY_TO}}
        assert (await shop.show(stranger, till.pay(entry))).status_code == 402
    finally:
        await shop.http.aclose()
        await shop.paywall.stop()


async def test_both_chains_are_offered_and_each_is_paid(chain: EvmDevnet, svm: SvmDevnet, tmp_path: Path) -> None:
    tills = [evm_till(chain), svm_till(svm)]
    shop = Shop(tills, tmp_path)
    await shop.paywall.start()
    try:
        answer = await shop.http.get("/goods")
        accepts = decode_header(answer.headers["payment-required"])["accepts"]
        assert [entry["network"] for entry in accepts] == [till.network for till in tills]
        assert accepts[1]["extra"]["feePayer"] == svm.accounts[0].address
        for till, entry in zip(tills, accepts, strict=True):
            assert (await shop.show(entry, till.pay(entry))).status_code == 200
            assert till.received() == PRICE
        # A payment on one network for the other's offer is for neither.
        assert (await shop.show(accepts[0], tills[1].pay(accepts[1]))).status_code == 400
    finally:
        await shop.http.aclose()
        await shop.paywall.stop()
