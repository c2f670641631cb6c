"""Every kind of client at one gate: v2, v1, Katana's and Venice's; and one claim for a payment through any door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from x402kit import Asset, Paywall
from x402kit.model import Json
from x402kit.networks.assets import DEFAULTS
from x402kit.protocols.x402 import decode_header, encode_header, parse_payment_required, parse_settlement_response

from .support.asking import Answer, Shop, opened
from .support.payments import Payment, changed, pay
from .support.rails import OfflineRail

runs: list[str] = []


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    async with opened() as made:
        runs.clear()
        made.open(Starlette(routes=[Route("/goods", made.paywall.paid("$0.01", description="words")(handler()))]))
        yield made


def handler() -> Any:
    async def goods(request: Request) -> Response:
        runs.append("goods")
        return PlainTextResponse("goods")

    return goods


DOORS: dict[str, Callable[[Payment], dict[str, str]]] = {
    "v2": lambda p: {"PAYMENT-SIGNATURE": p.v2()},
    "alias": lambda p: {"X-402-Payment": p.v2()},
    "v1": lambda p: {"X-PAYMENT": p.v1()},
    "katana": lambda p: {"PAYMENT-SIGNATURE": p.katana()},
    "katana alias": lambda p: {"X-402-Payment": p.katana()},
    "venice": lambda p: {"X-402-Payment": p.venice()},
    "venice in v1's header": lambda p: {"X-PAYMENT": p.venice()},
    "python client on katana": lambda p: {
        "PAYMENT-SIGNATURE": p.v2({"extra": {"name": "USD Coin", "version": "2"}, "maxAmountRequired": None})
    },
    "enlarged": lambda p: {"PAYMENT-SIGNATURE": p.v2({"extra": {**p.entry["extra"], "more": [1]}})},
    "with extensions": lambda p: {"PAYMENT-SIGNATURE": p.v2(extensions={"a": {"info": {}}}, resource={"url": "x"})},
    "url-safe": lambda p: {"PAYMENT-SIGNATURE": p.v2().replace("+", "-").replace("/", "_").rstrip("=")},
}


@pytest.mark.parametrize("name", ["Authorization", "Cookie", "X-API-Key"])
@pytest.mark.parametrize("door", DOORS)
async def test_C03_who_reads_a_payment_off_the_chain_does_not_get_its_callers_answer(
    shop: Shop, door: str, name: str
) -> None:
    """All that a payment without our quote is made of stands in the transaction."""
    payment = await shop.payment("GET", "/goods")
    headers = DOORS[door](payment)
    assert (await shop.ask("GET", "/goods", {**headers, name: "the caller's own"})).body == b"goods"
    quoted = door in ("v2", "alias", "enlarged", "with extensions", "url-safe")
    for others in ({}, {name: "another's"}):
        answer = await shop.ask("GET", "/goods", {**headers, **others})
        assert (answer.status, answer.body == b"goods") == ((200, True) if quoted else (403, False))
    again = await shop.ask("GET", "/goods", {**headers, name: "the caller's own"})
    assert (again.status, again.body, again.header("payment-replayed")) == (200, b"goods", "true")
    assert (runs, shop.rail.settled) == (["goods"], 1)


@pytest.mark.parametrize("door", DOORS)
async def test_every_dialect_is_served(shop: Shop, door: str) -> None:
    payment = await shop.payment("GET", "/goods")
    headers = DOORS[door](payment)
    answer = await shop.ask("GET", "/goods", headers)
    assert (answer.status, answer.body) == (200, b"goods"), answer.body
    receipt = answer.receipt
    assert (receipt.success, receipt.network, receipt.amount) == (True, "eip155:8453", 10_000)
    assert receipt.payer == payment.payload["authorization"]["from"]
    old = answer.all("X-PAYMENT-RESPONSE")
    assert bool(old) == (door == "v1")
    if old:
        made = decode_header(old[0])
        assert made["network"] == "base"
        assert parse_settlement_response(made) == receipt
    again = await shop.ask("GET", "/goods", headers)
    assert (again.status, again.header("payment-replayed"), again.all("X-PAYMENT-RESPONSE")) == (200, "true", old)
    assert (runs, shop.rail.settled) == (["goods"], 1)


@pytest.mark.parametrize("first", DOORS)
async def test_C09_a_payment_has_one_claim_through_all_doors(shop: Shop, first: str) -> None:
    payment = await shop.payment("GET", "/goods")
    header = DOORS[first](payment)
    assert (await shop.ask("GET", "/goods", header)).status == 200
    for door, spell in DOORS.items():
        answer = await shop.ask("GET", "/goods", spell(payment))
        same = set(spell(payment).values()) == set(header.values())
        assert answer.status == (200 if same else 403), door
        assert answer.all("payment-required") == []
    assert (runs, shop.rail.settled) == (["goods"], 1)


async def test_C09_two_doors_at_once_are_one_payment(shop: Shop) -> None:
    payment = await shop.payment("GET", "/goods")
    shown = [shop.ask("GET", "/goods", spell(payment)) for spell in DOORS.values()]
    statuses = [answer.status for answer in await asyncio.gather(*shown)]
    assert set(statuses) <= {200, 403, 409}
    assert (runs, shop.rail.settled) == (["goods"], 1)


async def test_A11_two_spellings_of_a_header_may_hold_one_payment_and_not_two(shop: Shop) -> None:
    one, two = await shop.payment("GET", "/goods"), await shop.payment("GET", "/goods")
    other = {"PAYMENT-SIGNATURE": one.v2(), "X-402-Payment": two.v2()}
    assert (await shop.ask("GET", "/goods", other)).status == 400
    same = {"PAYMENT-SIGNATURE": one.v2(), "X-402-Payment": one.v2()}
    assert (await shop.ask("GET", "/goods", same)).status == 200
    assert shop.rail.settled == 1


async def test_an_offer_holds_what_every_client_needs(shop: Shop) -> None:
    answer = await shop.ask("GET", "/goods?a=1")
    made = answer.challenge
    assert (made.x402_version, made.error) == (2, "Payment required")
    assert made.resource is not None
    assert (made.resource.url, made.resource.description) == ("https://shop.example/goods?a=1", "words")
    entry = answer.entry
    quote = entry["extra"].pop("quote")
    assert len(quote) == 43
    assert entry == {
        "scheme": "exact",
        "network": "eip155:8453",
        "amount": "10000",
        "maxAmountRequired": "10000",
        "asset": shop.rail.asset.address,
        "payTo": shop.rail.pay_to,
        "maxTimeoutSeconds": 300,
        "extra": {
            "name": "USD Coin",
            "version": "2",
            "currency": "USDC",
            "decimals": 6,
            "chain": "base",
            "subtotalUsd": "0.010000",
            "estimatedGasUsd": "0.000000",
            "totalUsd": "0.010000",
        },
    }
    body = answer.json()
    assert parse_payment_required(body).x402_version == 1
    v1 = body["accepts"][0]
    assert (v1["network"], v1["resource"], v1["description"]) == ("base", made.resource.url, "words")
    assert "amount" not in v1
    assert "quote" not in v1["extra"]
    assert "outputSchema" not in v1
    assert len(answer.header("payment-required")) < 8192


async def test_a_v1_client_reads_only_the_body(shop: Shop) -> None:
    entry = (await shop.ask("GET", "/goods")).json()["accepts"][0]
    answer = await shop.ask("GET", "/goods", {"X-PAYMENT": pay(entry).v1()})
    assert answer.status == 200


async def test_v1_has_no_offer_on_a_network_that_it_can_not_name() -> None:
    asset = Asset("eip155:31337", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USDC", 6, "USD Coin", "2")
    async with opened(rail=OfflineRail(asset=asset)) as shop:
        shop.open(Starlette(routes=[Route("/goods", handler())]), {"/goods": "$0.01"})
        answer = await shop.ask("GET", "/goods")
        assert answer.json()["accepts"] == []
        assert answer.entry["extra"]["chain"] == "eip155:31337"
        payment = pay(answer.entry, asset=asset)
        assert (await shop.ask("GET", "/goods", {"PAYMENT-SIGNATURE": payment.v2()})).status == 200


async def test_two_rails_are_two_offers_and_each_is_paid_on_its_own() -> None:
    async with opened() as shop:
        polygon = OfflineRail(asset=DEFAULTS["eip155:137"])
        paywall = Paywall([shop.rail, polygon], shop.paywall.store, secret=b"a secret of the tests")
        two = Shop(shop.rail, paywall)
        two.open(Starlette(routes=[Route("/goods", handler())]), {"/goods": "$0.01"})
        offers = (await two.ask("GET", "/goods")).challenge.raw_accepts
        assert [offer["network"] for offer in offers] == ["eip155:8453", "eip155:137"]
        assert [offer["network"] for offer in (await two.ask("GET", "/goods")).json()["accepts"]] == ["base", "polygon"]
        paid = pay(offers[1], asset=polygon.asset)
        assert (await two.ask("GET", "/goods", {"PAYMENT-SIGNATURE": paid.v2()})).receipt.network == "eip155:137"
        old = pay(offers[1], asset=polygon.asset)
        assert (await two.ask("GET", "/goods", {"X-PAYMENT": old.v1()})).receipt.network == "eip155:137"
        assert (shop.rail.settled, polygon.settled) == (0, 2)
        swapped = pay(offers[0], asset=polygon.asset)
        assert (await two.ask("GET", "/goods", {"PAYMENT-SIGNATURE": swapped.v2()})).status == 402
        await paywall.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {"authorization": None},
        {"authorization": []},
        {"signature": None},
        {"signature": "0x"},
        {"signature": "zz"},
        {"signature": 1},
    ],
)
async def test_a_payload_that_is_none_is_400(shop: Shop, changes: Json) -> None:
    payment = await shop.payment("GET", "/goods")
    header = payment.v2(payload=changed(payment.payload, changes))
    answer: Answer = await shop.ask("GET", "/goods", {"PAYMENT-SIGNATURE": header})
    assert (answer.status, answer.reason) == (400, "invalid_payload")


@pytest.mark.parametrize("made", [{}, [], "x", {"x402Version": 2}, {"x402Version": 1, "payload": {}}])
async def test_a_header_that_is_no_payment_is_400(shop: Shop, made: Any) -> None:
    for name in ("PAYMENT-SIGNATURE", "X-PAYMENT", "X-402-Payment"):
        answer = await shop.ask("GET", "/goods", {name: encode_header(made)})
        assert (answer.status, json.loads(answer.body)["title"]) == (400, "payment-malformed")


async def test_a_payment_for_a_route_that_is_free_is_no_matter(shop: Shop) -> None:
    answer = await shop.ask("GET", "/nothing", {"PAYMENT-SIGNATURE": "?"})
    assert answer.status == 404
    assert answer.all("vary") + answer.all("cache-control") == []
