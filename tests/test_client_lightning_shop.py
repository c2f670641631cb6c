"""Our payer at our own paywall on Lightning: one invoice, one delivery, passes, and what is left over."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.support.clients import KINDS, request
from tests.support.lightning_shop import LightningShop, lightning_rail
from tests.support.lightning_shop import paying as paying
from tests.support.lightning_shop import running as running
from tests.support.lightning_shop import shop as shop
from tests.support.serving import serving
from x402kit import Paywall, usd
from x402kit.client import Payer, PaymentOutcomeUnknown, payment_of
from x402kit.devnet import LightningDevnet
from x402kit.networks.lightning_port import REGTEST

every_kind = pytest.mark.parametrize("kind", KINDS)


def get(paying: Payer, url: str, kind: str = "httpx", **options: Any) -> Any:
    return request(paying, kind, "GET", url, **options)


@every_kind
def test_a_call_costs_one_invoice(shop: LightningShop, paying: Payer, kind: str) -> None:
    answer = get(paying, shop.url + "/weather", kind)
    info = payment_of(answer)
    assert answer.json() == {"weather": "sunny"}
    assert info is not None
    assert (info.amount, info.network, info.verified, info.problem) == (10_000, REGTEST, True, "")
    assert [name[:4] for name in (each.get("authorization", "") for each in shop.seen)] == ["", "L402"]
    assert (shop.runs, [row.state for row in paying.payments()]) == (["weather"], ["accepted"])
    assert str(paying.spent_today()) == "$0.010000"


def test_a_call_with_a_body_and_one_beside_it_are_two(shop: LightningShop, paying: Payer) -> None:
    for number in (1, 2):
        answer = request(paying, "httpx", "POST", shop.url + "/echo", json={"n": number})
        assert answer.json() == {"echo": {"n": number}}
    assert len({row.reference for row in paying.payments()}) == 2


@every_kind
def test_a_pass_is_good_for_three_calls_of_one_round_trip_each(shop: LightningShop, paying: Payer, kind: str) -> None:
    sources: list[tuple[str, int]] = []
    for _ in range(4):
        shop.seen.clear()
        info = payment_of(get(paying, shop.url + "/pass", kind))
        assert info is not None
        sources.append((info.source, len(shop.seen)))
    assert sources == [("payment", 2), ("token", 1), ("token", 1), ("payment", 2)]
    assert len(paying.payments()) == 2


def test_M02_a_handler_that_fails_is_paid_once(shop: LightningShop, paying: Payer) -> None:
    shop.failing = 1
    assert get(paying, shop.url + "/weather").json() == {"weather": "sunny"}
    assert (len(paying.payments()), shop.runs) == (1, ["weather"] * 2)
    shop.failing = 3
    with contextlib.suppress(PaymentOutcomeUnknown):
        assert get(paying, shop.url + "/weather").status_code == 500
    assert [row.state for row in paying.payments()] == ["accepted", "unknown"]
    assert get(paying, shop.url + "/weather").json() == {"weather": "sunny"}
    assert [row.state for row in paying.payments()] == ["accepted"] * 2


def test_calls_at_once_pay_an_invoice_each(shop: LightningShop, paying: Payer) -> None:
    with ThreadPoolExecutor(4) as pool:
        tries = [pool.submit(get, paying, shop.url + "/weather") for _ in range(4)]
        assert [each.result().status_code for each in tries] == [200] * 4
    assert len({row.reference for row in paying.payments() if row.state == "accepted"}) == 4


def test_what_a_call_left_over_pays_for_another(lightning: LightningDevnet, paying: Payer, tmp_path: Path) -> None:
    paywall = Paywall([lightning_rail(lightning.seller)], tmp_path / "payments.db")

    @paywall.paid("$0.01")
    async def large(asked: Request) -> JSONResponse:
        asked.scope["x402kit"].cost = usd("$0.004")
        return JSONResponse({})

    @paywall.paid("$0.003")
    async def small(asked: Request) -> JSONResponse:
        return JSONResponse({})

    app = paywall.protect(Starlette(routes=[Route("/large", large), Route("/small", small)]))
    with serving(app) as url:
        infos = [payment_of(get(paying, url + path)) for path in ("/large", "/small", "/small", "/small")]
    told = [(info.source, info.returned) for info in infos if info is not None]
    assert told == [("payment", 6000), ("token", 0), ("token", 0), ("payment", None)]
    assert [row.amount for row in paying.payments()] == [10_000, 3000]
