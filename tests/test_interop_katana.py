"""The Katana dialect, both ways: our client at such a server, and such a client at ours; the money on a real chain."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from tests.support.clients import ADDRESS, client_of, payer
from tests.support.katana import KatanaServer, katana_payment, unpack
from tests.support.seller import PRICE, Seller, transferred
from tests.support.seller import running as running
from tests.support.seller import seller as seller
from tests.support.serving import serving
from x402kit.client import payment_of

ORDER = {"requests": [{"type": "image", "model": "gen", "prompt": "a mug", "aspect_ratio": "1:1"}]}
ORACLE = "0x3000000000000000000000000000000000000402"


@pytest.mark.parametrize("kind", ["httpx", "httpx2"])
def test_our_client_pays_a_katana_server(running: Seller, kind: str) -> None:
    chain = running.chain
    server = KatanaServer(chain, ORACLE, chain.accounts[4])
    before, paying = chain.balance_of(ORACLE), payer()
    with serving(server, lifespan=False) as url, client_of(paying, kind) as client:
        answer = client.post(url + "/v1/generation-requests?wait=false", json=ORDER)
    assert (answer.status_code, answer.json()["requests"]) == (200, 1)
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.amount, info.payer) == (True, 13_938, ADDRESS)
    assert transferred(chain, info.transaction, ORACLE) == chain.balance_of(ORACLE) - before == 13_938
    # An hour for the answer is no reason to sign for an hour.
    assert int(server.payments[0]["payload"]["authorization"]["validBefore"]) <= time.time() + 600
    assert [row.state for row in paying.payments()] == ["accepted"]


@pytest.mark.parametrize("header", ["PAYMENT-SIGNATURE", "X-402-Payment"])
def test_a_katana_client_pays_our_server(seller: Seller, header: str) -> None:
    payer = seller.chain.accounts[1]
    content = json.dumps({"n": 2}).encode()
    with httpx.Client() as client:
        asked = client.post(seller.url + "/images", content=content)
        assert asked.status_code == 402
        payment = {header: katana_payment(asked.headers["payment-required"], payer)}
        answers = [client.post(seller.url + "/images", content=content, headers=payment) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    receipt = unpack(answers[0].headers["payment-response"])
    assert (receipt["success"], receipt["payer"].lower(), receipt["amount"]) == (True, payer.address.lower(), "8000")
    assert transferred(seller.chain, receipt["transaction"]) == seller.earned == 8_000
    assert answers[1].headers["payment-replayed"] == "true"
    assert seller.runs == ["images"]


def test_a_katana_client_is_asked_afresh_when_it_pays_for_less(seller: Seller) -> None:
    with httpx.Client() as client:
        asked = client.post(seller.url + "/images", content=json.dumps({"n": 1}).encode())
        payment = {"PAYMENT-SIGNATURE": katana_payment(asked.headers["payment-required"], seller.chain.accounts[1])}
        answer = client.post(seller.url + "/images", content=json.dumps({"n": 2}).encode(), headers=payment)
    assert (answer.status_code, unpack(answer.headers["payment-required"])["accepts"][0]["amount"]) == (402, "8000")
    assert (seller.earned, seller.runs) == (0, [])


def test_our_challenge_holds_all_that_a_katana_client_reads(seller: Seller) -> None:
    entry = unpack(httpx.get(seller.url + "/weather").headers["payment-required"])["accepts"][0]
    assert (entry["amount"], entry["maxAmountRequired"]) == (str(PRICE), str(PRICE))
    shown = ("currency", "decimals", "chain", "subtotalUsd", "estimatedGasUsd", "totalUsd")
    assert [entry["extra"][key] for key in shown] == ["USDC", 6, "base", "0.010000", "0.000000", "0.010000"]
