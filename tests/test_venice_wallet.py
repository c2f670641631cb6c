"""The Venice shape of the wallet service: amounts of the payer's choice, exact numbers, codes, 402 bodies."""

from __future__ import annotations

import inspect
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from x402kit.asgi import wallet, wallet_shapes, wallet_venice
from x402kit.errors import ConfigError
from x402kit.model import Account, Json
from x402kit.money import usd
from x402kit.paywall.resource import Resource
from x402kit.pricing import price_of
from x402kit.protocols.x402 import decode_header, encode_header

from .support.asking import ORIGIN, Answer, Shop, opened
from .support.payments import KEY, PAYER, Payment, pay
from .support.rails import NETWORK, PAY_TO, USDC, OfflineRail
from .support.wallet_proofs import Wallet, evm_wallet, header, solana_wallet, venice

OWNER = evm_wallet(KEY)
ACCOUNT = Account.of(NETWORK, USDC.address, PAYER)
PARTS = {
    *("receiverWallet", "tokenAddress", "tokenDecimals", "minimumAmountUsd", "step1", "step2", "step3"),
    *("header", "legacyHeader", "topUp", "docs"),
}
"""Of what the page names as one."""
PLACE = "/api/v1/x402"
TOP_UP = PLACE + "/top-up"


def goods_of() -> Any:
    async def goods(request: Request) -> Response:
        return PlainTextResponse("goods")

    return goods


def app_of(shop: Shop, *, both: bool = False) -> Starlette:
    """A priced route for each service, and the services."""
    paywall = shop.paywall
    routes: list[Any] = [Route("/api/v1/goods", paywall.paid("$0.30")(goods_of()), methods=["GET", "POST"])]
    if both:
        routes += [Route("/v1/goods", paywall.paid("$0.30")(goods_of())), Mount("/v1/x402", paywall.wallet_service())]
    routes.append(Mount(PLACE, paywall.wallet_service(dialect="venice", minimum="$5", maximum="$10000")))
    return Starlette(routes=routes)


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    async with opened() as made:
        made.open(app_of(made))
        yield made


def proof(wallet: Wallet = OWNER, age: int = 0, **changes: Any) -> dict[str, str]:
    domain = ORIGIN.partition("://")[2]
    fields: dict[str, Any] = {"domain": domain, "uri": ORIGIN + PLACE, **changes}
    made = venice(wallet, int(time.time()) - age, **fields)
    return {"X-Sign-In-With-X": header(made).decode()}


def exact(answer: Answer) -> Any:
    """The document with its numbers as they are written."""
    return json.loads(answer.body, parse_float=Decimal)


async def offered(shop: Shop) -> Json:
    return (await shop.ask("POST", TOP_UP)).entry


async def bring(shop: Shop, value: int, **terms: Any) -> tuple[Payment, Answer]:
    """A payment of ``value``, as Venice's client sends it."""
    payment = pay(await offered(shop), value=value, **terms)
    return payment, await shop.ask("POST", TOP_UP, {"X-402-Payment": spelled(payment)})


def spelled(payment: Payment) -> str:
    return encode_header({"x402Version": 2, "scheme": "exact", "network": "base", "payload": payment.payload})


async def balance(shop: Shop) -> int:
    return (await shop.paywall.store.balance(ACCOUNT)).available


# Top-ups


async def test_the_402_of_a_top_up_says_the_same_in_its_body_as_in_its_header(shop: Shop) -> None:
    said = await shop.ask("POST", TOP_UP)
    assert said.status == 402
    assert said.json() == decode_header(said.header("PAYMENT-REQUIRED"))
    (entry,) = said.json()["accepts"]
    assert (said.json()["x402Version"], entry["network"], entry["amount"]) == (2, NETWORK, "5000000")
    assert (entry["maxTimeoutSeconds"], entry["extra"]["name"]) == (300, "USD Coin")


@pytest.mark.parametrize("value", [5_000_000, 5_000_001, 123_456_789, 10_000_000_000])
async def test_what_is_paid_is_credited(shop: Shop, value: int) -> None:
    payment, said = await bring(shop, value)
    amount = Decimal(value).scaleb(-6)
    data = exact(said)["data"]
    assert (said.status, exact(said)["success"]) == (200, True)
    assert (data["walletAddress"], data["network"]) == (PAYER, NETWORK)
    assert (data["amountCredited"], data["amountPaid"], data["newBalance"]) == (amount, amount, amount)
    assert data["paymentId"]
    receipt = said.receipt
    assert (receipt.success, receipt.network, receipt.payer, receipt.amount) == (True, NETWORK, PAYER, value)
    assert receipt.transaction == data["transaction"] == payment.payload["authorization"]["nonce"]


@pytest.mark.parametrize(("value", "reason"), [(4_999_999, "amount_too_low"), (10_000_000_001, "amount_too_high")])
async def test_what_is_out_of_bounds_is_not_settled(shop: Shop, value: int, reason: str) -> None:
    _, said = await bring(shop, value)
    assert (said.status, said.reason) == (402, reason)
    assert said.entry["amount"] == "5000000"
    assert (shop.rail.settled, await balance(shop)) == (0, 0)


@pytest.mark.parametrize("value", [2**63 - 1, 2**63, 2**256 - 1])
async def test_B03_amounts_that_no_row_holds_are_refused(shop: Shop, value: int) -> None:
    _, said = await bring(shop, value)
    assert (said.status, said.reason) == (402, "amount_too_high")


async def test_the_settlements_cost_is_taken_off_what_was_paid() -> None:
    async with opened(rail=OfflineRail(surcharges=(2500, 1500))) as shop:
        shop.open(app_of(shop))
        assert (await offered(shop))["amount"] == "5002500"
        _, said = await bring(shop, 5_001_499)
        assert said.reason == "amount_too_low"
        _, said = await bring(shop, 7_000_000)  # the payer gets the better one of two windows
        data = exact(said)["data"]
        assert (data["amountPaid"], data["amountCredited"]) == (Decimal(7), Decimal("6.9985"))
        assert await shop.paywall.store.verify() == []


async def test_clients_that_echo_the_offer_choose_the_amount_too(shop: Shop) -> None:
    payment = pay(await offered(shop), value=6_000_000)
    echo = {"amount": "6000000", "maxAmountRequired": "6000000", "extra": {"name": "USD Coin", "version": "2"}}
    for header_, made in (("PAYMENT-SIGNATURE", payment.v2()), ("X-402-Payment", payment.v2(echo))):
        said = await shop.ask("POST", TOP_UP, {header_: made})
        assert said.status in (200, 403)  # the second is another spelling of one payment (B04)
    assert await balance(shop) == 6_000_000
    said = await shop.ask("POST", TOP_UP, {"PAYMENT-SIGNATURE": pay(await offered(shop), value=7_000_000).v2(echo)})
    assert said.status == 200
    assert await balance(shop) == 13_000_000


async def test_a_body_may_say_what_is_to_be_offered(shop: Shop) -> None:
    for body, amount in ((b"{}", "5000000"), (b" ", "5000000"), (b'{"amount_usdc":"12.5"}', "12500000")):
        said = await shop.ask("POST", TOP_UP, body=body)
        assert said.entry["amount"] == amount
    for body in (b'{"amount_usdc":"4"}', b'{"amount_usdc":5}', b"[]", b"x"):
        said = await shop.ask("POST", TOP_UP, body=body)
        assert (said.status, said.json()["error"], said.json()["code"]) == (400, "INVALID_AMOUNT", "INVALID_AMOUNT")
    bought = await shop.buy("POST", TOP_UP, body=b'{"amount_usdc":"12.5"}')
    assert exact(bought)["data"]["newBalance"] == Decimal("12.5")


async def test_A04_a_payment_for_goods_is_no_top_up_and_a_top_up_buys_no_goods(shop: Shop) -> None:
    goods = await shop.payment("GET", "/api/v1/goods", terms={"value": 6_000_000})
    said = await shop.ask("POST", TOP_UP, {"PAYMENT-SIGNATURE": goods.v2()})
    assert (said.status, said.reason) == (402, "quote_mismatch")
    top_up = await shop.payment("POST", TOP_UP)
    said = await shop.ask("GET", "/api/v1/goods", {"PAYMENT-SIGNATURE": top_up.v2()})
    assert (said.status, said.reason) == (402, "quote_mismatch")
    assert shop.rail.settled == 0
    assert (await shop.ask("POST", TOP_UP, {"PAYMENT-SIGNATURE": top_up.v2()})).status == 200


async def test_A02_the_echo_names_neither_recipient_nor_asset(shop: Shop) -> None:
    entry = await offered(shop)
    for echo in ({"payTo": PAYER}, {"asset": "0x" + "2" * 40}, {"network": "eip155:84532"}):
        said = await shop.ask("POST", TOP_UP, {"PAYMENT-SIGNATURE": pay({**entry, **echo}, value=6_000_000).v2()})
        assert said.status == 402
    assert shop.rail.settled == 0


async def test_E01_a_payment_is_credited_once(shop: Shop) -> None:
    payment, first = await bring(shop, 8_000_000)
    for _ in range(3):
        again = await shop.ask("POST", TOP_UP, {"X-402-Payment": spelled(payment)})
        assert (again.status, again.header("payment-replayed"), again.json()) == (200, "true", first.json())
    assert (await balance(shop), shop.rail.settled) == (8_000_000, 1)


async def test_what_can_not_be_read_has_venices_code(shop: Shop) -> None:
    said = await shop.ask("POST", TOP_UP, {"X-402-Payment": "!"})
    assert (said.status, said.json()["error"]) == (400, "INVALID_PAYMENT_FORMAT")
    assert said.json()["message"]
    assert said.header("content-type") == "application/json"


def test_only_a_top_up_takes_any_amount() -> None:
    bounds = (usd("$1"), usd("$2"))
    with pytest.raises(ConfigError, match="only a top-up"):
        Resource("goods", price_of("$1"), amounts=bounds)
    with pytest.raises(ConfigError, match="only a top-up"):
        Resource("goods", price_of("$1"), canonical=bytes)


def test_the_page_names_every_field() -> None:
    page = (Path(__file__).parents[1] / "docs" / "balances.md").read_text()
    shapes = "".join(Path(inspect.getfile(module)).read_text() for module in (wallet, wallet_shapes, wallet_venice))
    found = re.findall(r'^ +"(\w+)": ', shapes, re.MULTILINE)
    fields = {name for name in found if not name.startswith("invalid_")} - PARTS
    assert len(fields) > 40
    assert [name for name in sorted(fields) if name not in page] == []


# Reading


async def test_numbers_are_exact(shop: Shop) -> None:
    """A float would write 9007199254.740993 as ….740992 and 5.1 + 5.2 with a tail."""
    await shop.paywall.start()
    await shop.paywall.store.deposit(ACCOUNT, 9_007_199_254_740_993, "by hand")
    said = await shop.ask("GET", f"{PLACE}/balance/{PAYER}", proof())
    assert b'"balanceUsd":9007199254.740993,' in said.body
    assert exact(said)["data"] == {
        "walletAddress": PAYER,
        "balanceUsd": Decimal("9007199254.740993"),
        "heldUsd": 0,
        "canConsume": True,
        "minimumTopUpUsd": 5,
        "suggestedTopUpUsd": 5,
    }
    for value in (5_100_000, 5_200_000):
        await bring(shop, value)
    moves = await shop.ask("GET", f"{PLACE}/transactions/{PAYER}", proof())
    assert re.findall(rb'"amount":([^,]+),', moves.body) == [b"5.200000", b"5.100000", b"9007199254.740993"]
    assert b'"currentBalance":9007199265.040993,' in moves.body


async def test_an_empty_balance_can_not_be_spent(shop: Shop) -> None:
    said = await shop.ask("GET", f"{PLACE}/balance/{PAYER}", proof())
    assert (said.json()["data"]["canConsume"], said.json()["data"]["balanceUsd"]) == (False, 0)


async def test_transactions_have_venices_types(shop: Shop) -> None:
    await bring(shop, 5_000_000)
    assert (await shop.ask("GET", "/api/v1/goods", proof())).status == 200
    said = exact(await shop.ask("GET", f"{PLACE}/transactions/{PAYER}?limit=2", proof()))["data"]
    refund, charge = said["transactions"]
    assert [refund["type"], charge["type"]] == ["REFUND", "CHARGE"]
    assert [refund["amount"], charge["amount"]] == [0, Decimal("-0.3")]
    assert [refund["balanceAfter"], charge["balanceAfter"]] == [Decimal("4.7"), Decimal("4.7")]
    assert charge["requestId"] == refund["requestId"]
    assert charge["requestId"].startswith("req_")
    assert charge["modelId"].endswith("goods")
    assert said["pagination"] == {"limit": 2, "offset": 0, "hasMore": True}
    (top_up,) = (await shop.ask("GET", f"{PLACE}/transactions/{PAYER}?limit=2&offset=2", proof())).json()["data"][
        "transactions"
    ]
    assert (top_up["type"], top_up["amount"], top_up["requestId"]) == ("TOP_UP", 5, None)


async def test_what_a_direct_payment_did_not_use_and_what_was_sent_back_have_a_type(shop: Shop) -> None:
    await shop.buy("GET", "/api/v1/goods")
    (move,) = (await shop.ask("GET", f"{PLACE}/transactions/{PAYER}", proof())).json()["data"]["transactions"]
    assert (move["type"], move["amount"]) == ("CHARGE", 0)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "offset=-1", "offset=10001", "offset=x"])
async def test_pages_have_bounds(shop: Shop, query: str) -> None:
    said = await shop.ask("GET", f"{PLACE}/transactions/{PAYER}?{query}", proof())
    assert (said.status, said.json()["code"]) == (400, f"INVALID_{query.partition('=')[0].upper()}")


# Proofs


@pytest.mark.parametrize(
    ("bad", "status", "code"),
    [
        ({"age": 400}, 401, "X402_SIGN_IN_EXPIRED"),
        ({"age": -100}, 401, "X402_SIGN_IN_FUTURE_TIMESTAMP"),
        ({"domain": "evil.example"}, 401, "X402_SIGN_IN_DOMAIN_MISMATCH"),
        ({"uri": "https://evil.example/"}, 401, "X402_SIGN_IN_DOMAIN_MISMATCH"),
        ({"wallet": solana_wallet()}, 401, "X402_SIGN_IN_UNSUPPORTED_CHAIN"),
        ({"beside": {"signature": "0x" + "1" * 130}}, 401, "X402_SIGN_IN_INVALID_SIGNATURE"),
        ({"beside": {"message": 5}}, 401, "X402_SIGN_IN_INVALID_PAYLOAD"),
        ({"wallet": evm_wallet(secrets.token_bytes(32))}, 403, "WALLET_MISMATCH"),
    ],
    ids=["old", "future", "domain", "uri", "chain", "signature", "unreadable", "another wallet"],
)
async def test_F02_refusals_have_venices_codes(shop: Shop, bad: dict[str, Any], status: int, code: str) -> None:
    made = proof(**bad)
    said = await shop.ask("GET", f"{PLACE}/balance/{PAYER}", made)
    assert (said.status, said.json()["code"]) == (status, code)
    assert isinstance(said.json()["error"], str)
    if status == 401:
        said = await shop.ask("GET", "/api/v1/goods", made)
        assert (said.status, said.json()["code"]) == (401, code)


async def test_F01_a_proof_spends_once(shop: Shop) -> None:
    await bring(shop, 5_000_000)
    shown = proof()
    assert (await shop.ask("GET", "/api/v1/goods", shown)).status == 200
    again = await shop.ask("GET", "/api/v1/goods", shown)
    assert (again.status, again.json()["code"]) == (403, "X402_SIGN_IN_NONCE_REUSED")
    assert await balance(shop) == 4_700_000


async def test_without_a_proof_it_asks_for_one(shop: Shop) -> None:
    said = await shop.ask("GET", f"{PLACE}/balance/{PAYER}")
    assert (said.status, said.json()["accepts"]) == (402, [])
    assert said.json()["extensions"]["sign-in-with-x"]["info"]["domain"] == "shop.example"


# Calls


async def test_who_shows_nothing_is_told_every_way_to_pay(shop: Shop) -> None:
    said = await shop.ask("GET", "/api/v1/goods")
    header_ = decode_header(said.header("PAYMENT-REQUIRED"))
    assert said.json() == {
        **header_,
        "authOptions": {
            "x402Wallet": {
                "header": "SIGN-IN-WITH-X",
                "legacyHeader": "X-Sign-In-With-X",
                "topUp": f"POST {ORIGIN}{TOP_UP}",
                "docs": ORIGIN + PLACE,
            }
        },
    }
    assert header_["accepts"][0]["amount"] == "300000"
    assert (await shop.buy("GET", "/api/v1/goods")).body == b"goods"


async def test_what_is_not_offered_in_x402_has_a_body_that_can_be_read() -> None:
    async with opened() as shop:
        service = shop.paywall.wallet_service(dialect="venice")
        goods = shop.paywall.paid("$0.30", protocols=["payment"])(goods_of())
        shop.open(Starlette(routes=[Route("/api/v1/goods", goods), Mount(PLACE, service)]))
        said = await shop.ask("GET", "/api/v1/goods")
        assert (said.status, said.header("PAYMENT-REQUIRED")) == (402, "")
        assert said.header("WWW-Authenticate").startswith("Payment ")
        assert (said.json()["status"], list(said.json()["authOptions"])) == (402, ["x402Wallet"])


async def test_a_balance_that_is_too_low_is_told_in_venices_words(shop: Shop) -> None:
    await shop.paywall.start()
    await shop.paywall.store.deposit(ACCOUNT, 100_000, "by hand")
    said = await shop.ask("GET", "/api/v1/goods", proof())
    made = exact(said)
    challenge = made.pop("siwxChallenge")
    assert {"domain", "uri", "version", "nonce", "issuedAt", "expirationTime", "statement"} <= challenge["info"].keys()
    assert challenge["supportedChains"] == [{"chainId": NETWORK, "type": "eip191"}]
    steps = [made["topUpInstructions"].pop(f"step{number}") for number in (1, 2, 3)]
    assert all(ORIGIN in steps[index] for index in (0, 2))
    assert (said.status, made) == (
        402,
        {
            "error": "The balance is too low for this call.",
            "code": "PAYMENT_REQUIRED",
            "reason": "insufficient_balance",
            "currentBalanceUsd": Decimal("0.1"),
            "minimumBalanceUsd": Decimal("0.3"),
            "suggestedTopUpUsd": 5,
            "minimumTopUpUsd": 5,
            "supportedTokens": ["USDC"],
            "supportedChains": ["base"],
            "topUpInstructions": {
                "receiverWallet": PAY_TO,
                "tokenAddress": USDC.address,
                "tokenDecimals": 6,
                "network": "base",
                "minimumAmountUsd": 5,
            },
        },
    )
    header_ = decode_header(said.header("PAYMENT-REQUIRED"))
    assert header_["extensions"]["sign-in-with-x"]["info"] == challenge["info"]
    paid = await shop.ask("POST", TOP_UP, {"PAYMENT-SIGNATURE": pay(header_["accepts"][0]).v2()})
    assert exact(paid)["data"]["newBalance"] == Decimal("5.1")
    assert (await shop.ask("GET", "/api/v1/goods", proof())).status == 200


async def test_what_is_left_stands_in_the_answers_head(shop: Shop) -> None:
    await bring(shop, 5_000_000)
    assert (await shop.ask("GET", "/api/v1/goods", proof())).header("X-Balance-Remaining") == "4.700000"


@pytest.mark.parametrize("root", ["", "/proxy"])
async def test_both_dialects_may_stand_in_one_app(root: str) -> None:
    """A call belongs to the service beside it; the balance is one."""
    async with opened() as shop:
        shop.open(app_of(shop, both=True))
        plain = await shop.ask("GET", root + "/v1/goods", root_path=root)
        theirs = await shop.ask("GET", root + "/api/v1/goods", root_path=root)
        assert (plain.json()["x402Version"], "authOptions" in plain.json()) == (1, False)
        assert theirs.json()["authOptions"]["x402Wallet"]["docs"] == f"{ORIGIN}{root}{PLACE}"
        low = [await shop.ask("GET", f"{root}{path}/goods", proof(), root_path=root) for path in ("/v1", "/api/v1")]
        urls = [answer.challenge.resource.url for answer in low if answer.challenge.resource]
        assert urls == [f"{ORIGIN}{root}/v1/x402/top-up", f"{ORIGIN}{root}{TOP_UP}"]
        assert [("code" in answer.json()) for answer in low] == [False, True]
        paid = await shop.buy("POST", root + "/v1/x402/top-up", body=b'{"amount_usdc":"2"}', root_path=root)
        assert paid.json()["balance_usdc"] == "2.000000"
        assert await balance(shop) == 2_000_000
