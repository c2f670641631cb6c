"""Other implementations' clients pay our server: real HTTP, real signatures, the money on a real chain."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.support.peers import CLIENTS, pay
from tests.support.seller import PRICE, Seller, transferred
from tests.support.seller import running as running
from tests.support.seller import seller as seller

V1_CLIENT = "fetch_v1.mjs"


def again(
    seller: Seller, method: str, path: str, body: Any = None, header: str = "payment-signature"
) -> httpx.Response:
    """The peer's payment, shown once more."""
    content = None if body is None else json.dumps(body).encode()
    return httpx.request(method, seller.url + path, content=content, headers={header: seller.seen[-1][header]})


@pytest.mark.parametrize("program", CLIENTS)
def test_the_x402_clients_pay_a_fixed_price(seller: Seller, program: str) -> None:
    payer = seller.chain.accounts[1]
    owned = seller.chain.balance_of(payer.address)
    said = pay(program, seller.url + "/weather", payer)
    assert (said["status"], said["body"]) == (200, {"weather": "sunny"})
    receipt = said["payment_response"]
    assert (receipt["success"], receipt["payer"].lower()) == (True, payer.address.lower())
    assert (receipt["network"], receipt["amount"]) == ("eip155:8453", "10000")
    assert transferred(seller.chain, receipt["transaction"]) == PRICE
    assert (seller.earned, owned - seller.chain.balance_of(payer.address)) == (PRICE, PRICE)
    assert len(seller.seen) == 2

    replay = again(seller, "GET", "/weather")
    assert (replay.status_code, replay.json()) == (200, {"weather": "sunny"})
    assert replay.headers["payment-replayed"] == "true"
    assert replay.headers["payment-response"] == said["headers"]["payment-response"]
    assert (seller.runs, seller.earned) == (["weather"], PRICE)


@pytest.mark.parametrize("program", CLIENTS)
def test_the_x402_clients_pay_by_what_the_body_asks_for(seller: Seller, program: str) -> None:
    payer = seller.chain.accounts[1]
    said = pay(program, seller.url + "/images", payer, method="POST", body={"n": 3})
    assert (said["status"], said["body"]["made"]) == (201, 3)
    assert said["body"]["for"].lower() == payer.address.lower()
    assert transferred(seller.chain, said["payment_response"]["transaction"]) == seller.earned == 12_000

    assert again(seller, "POST", "/images", {"n": 3}).status_code == 201
    other = again(seller, "POST", "/images", {"n": 30})
    assert (other.status_code, other.json()["reason"]) == (403, "payment_used")
    assert (seller.runs, seller.earned) == (["images"], 12_000)


def test_the_x402_client_pays_for_what_is_settled_after_it_is_served(seller: Seller) -> None:
    said = pay("client_httpx.py", seller.url + "/after", seller.chain.accounts[1])
    assert (said["status"], said["body"]) == (200, {"weather": "after"})
    assert transferred(seller.chain, said["payment_response"]["transaction"]) == seller.earned == PRICE
    assert again(seller, "GET", "/after").headers["payment-replayed"] == "true"
    assert seller.runs == ["after"]


def test_the_x402_clients_payment_stays_good_when_the_handler_fails(seller: Seller) -> None:
    seller.failing = 1
    said = pay("client_httpx.py", seller.url + "/weather", seller.chain.accounts[1])
    assert (said["status"], said["headers"]["payment-outcome"]) == (500, "settled-unserved")
    assert said["payment_response"]["success"] is True
    served = again(seller, "GET", "/weather")
    assert (served.status_code, served.json()) == (200, {"weather": "sunny"})
    assert "payment-replayed" not in served.headers
    assert (seller.runs, seller.earned) == (["weather", "weather"], PRICE)


def test_the_x402_client_without_money_is_told_why(seller: Seller) -> None:
    said = pay("client_httpx.py", seller.url + "/weather", seller.chain.accounts[0])
    assert (said["status"], said["body"]["error"]) == (402, "invalid_exact_evm_insufficient_balance")
    assert (len(seller.seen), seller.runs) == (2, [])


@pytest.mark.parametrize(
    ("method", "path", "body", "price"), [("GET", "/weather", None, PRICE), ("POST", "/images", {"n": 2}, 8_000)]
)
def test_the_v1_client_pays(seller: Seller, method: str, path: str, body: Any, price: int) -> None:
    payer = seller.chain.accounts[1]
    said = pay(V1_CLIENT, seller.url + path, payer, method=method, body=body)
    assert said["status"] in (200, 201)
    receipt = said["payment_response"]
    assert (receipt["success"], receipt["network"], receipt["payer"].lower()) == (True, "base", payer.address.lower())
    assert transferred(seller.chain, receipt["transaction"]) == seller.earned == price
    assert len(seller.seen) == 2

    replay = again(seller, method, path, body, "x-payment")
    assert (replay.status_code, replay.json()) == (said["status"], said["body"])
    assert replay.headers["payment-replayed"] == "true"
    assert (len(seller.runs), seller.earned) == (1, price)


def test_the_v1_client_refuses_what_is_above_its_limit(seller: Seller) -> None:
    said = pay(V1_CLIENT, seller.url + "/weather", seller.chain.accounts[1], "--max-value", "9999")
    assert said["status"] is None
    assert "exceeds maximum" in said["message"]
    assert (len(seller.seen), seller.earned) == (1, 0)
