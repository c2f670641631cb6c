"""The wallet service, wherever it is mounted: what it says, to whom, and in which words. A rail without a chain."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from x402kit import Paywall
from x402kit.errors import ConfigError
from x402kit.model import Account, Json
from x402kit.money import Usd, usd
from x402kit.networks.assets import DEFAULTS
from x402kit.pricing import Call
from x402kit.protocols.x402 import decode_header

from .support.asking import ORIGIN, Answer, Shop, ask, opened
from .support.payments import KEY, PAYER, pay
from .support.rails import NETWORK, USDC, OfflineRail
from .support.wallet_proofs import Wallet, evm_wallet, header, katana, solana_wallet, standard, venice

OWNER = evm_wallet(KEY)
ACCOUNT = Account.of(NETWORK, USDC.address, PAYER)
BALANCE, MOVES = f"/v1/x402/balance/{PAYER}", f"/v1/x402/transactions/{PAYER}"


def proof(wallet: Wallet = OWNER, **changes: Any) -> dict[str, str]:
    """A fresh proof, as Katana's clients make it."""
    made = katana(wallet, int(time.time()) - changes.pop("age", 0), service="x402kit", **changes)
    return {"X-Sign-In-With-X": header(made).decode()}


async def goods(request: Request) -> Response:
    return PlainTextResponse("goods")


def starlette(service: Any) -> Any:
    return Starlette(routes=[Mount("/v1/x402", service)])


def nested(service: Any) -> Any:
    return Starlette(routes=[Mount("/v1", routes=[Mount("/x402", service)])])


def beside_all(service: Any) -> Any:
    """In front of an app that takes every path."""
    return Starlette(routes=[Mount("/v1/x402", service), Mount("/", goods_app)])


def with_middleware(service: Any) -> Any:
    return Starlette(routes=[Mount("/v1/x402", service, middleware=[Middleware(Passing)])])


def fastapi(service: Any) -> Any:
    app = FastAPI()
    app.mount("/v1/x402", service)
    return app


def fastapi_in_starlette(service: Any) -> Any:
    inner = FastAPI()
    inner.mount("/x402", service)
    return Starlette(routes=[Mount("/v1", inner)])


def alone(service: Any) -> Any:
    return service


async def goods_app(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("theirs")(scope, receive, send)


class Passing:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


APPS: list[Callable[[Any], Any]] = [starlette, nested, beside_all, with_middleware, fastapi, fastapi_in_starlette]


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    async with opened() as made:
        made.open(starlette(made.paywall.wallet_service(minimum="$0.50", maximum="$100")))
        yield made


def top_up_body(amount: Any = "1.00") -> bytes:
    return json.dumps({"amount_usdc": amount}).encode()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)


async def top_up(shop: Shop, amount: str = "1.00", **terms: Any) -> Answer:
    body = top_up_body(amount)
    return await shop.buy("POST", "/v1/x402/top-up", body=body, terms=terms or None)


# Where it stands


async def test_without_an_origin_it_is_said_once_at_the_start_what_to_set(caplog: pytest.LogCaptureFixture) -> None:
    for origin, times in (("", 1), (ORIGIN, 0)):
        caplog.clear()
        async with opened(origin=origin) as shop:
            shop.open(starlette(shop.paywall.wallet_service()))
            assert (await shop.ask("GET", "/v1/x402/")).status == (await shop.ask("GET", "/v1/x402/")).status == 200
            signed = venice(OWNER, time.time(), domain=ORIGIN.partition("://")[2], uri=ORIGIN + BALANCE)
            said = await shop.ask("GET", BALANCE, {"SIGN-IN-WITH-X": header(signed).decode()})
        assert said.status == (401 if times else 200)  # which is what is warned of
        warned = [each.getMessage() for each in caplog.records if "no origin is set" in each.getMessage()]
        assert len(warned) == times
        assert all("X402KIT_ORIGIN" in text for text in warned)


@pytest.mark.parametrize(("metered", "warns"), [(True, True), (False, False)])
async def test_without_an_origin_metered_prices_are_warned_of_too(
    caplog: pytest.LogCaptureFixture, metered: bool, warns: bool
) -> None:
    async def dynamic(call: Call) -> Usd:
        return usd("$0.01")

    async with opened(origin="") as shop:
        shop.open(goods_app, {"/": {"price": dynamic, "metered": metered}})
        assert (await shop.ask("GET", "/")).status == 402
    assert ("no origin is set" in caplog.text) is warns


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("path", ["/v1/x402", "/v1/x402/"])
@pytest.mark.parametrize("root", ["", "/behind/a/proxy"])
async def test_it_says_what_it_takes_and_where(app: Callable[[Any], Any], path: str, root: str) -> None:
    async with opened() as shop:
        shop.open(app(shop.paywall.wallet_service(minimum="$0.50", maximum="$100")))
        said = await shop.ask("GET", root + path, root_path=root)
        assert (said.status, said.header("cache-control")) == (200, "no-store")
        base = f"{ORIGIN}{root}/v1/x402"
        assert said.json() == {
            "x402Version": 2,
            "service": "x402kit",
            "dialect": "katana",
            "networks": [
                {
                    "network": NETWORK,
                    "scheme": "exact",
                    "asset": USDC.address,
                    "currency": "USDC",
                    "decimals": 6,
                    "payTo": shop.rail.pay_to,
                }
            ],
            "endpoints": {
                "top_up": f"{base}/top-up",
                "balance": f"{base}/balance/{{wallet}}",
                "transactions": f"{base}/transactions/{{wallet}}",
            },
            "minimum_top_up_usdc": "0.500000",
            "maximum_top_up_usdc": "100.000000",
            "proof_headers": ["SIGN-IN-WITH-X", "X-Sign-In-With-X"],
        }


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("root", ["", "/behind/a/proxy"])
async def test_a_top_up_and_a_look_at_it_through_every_app(app: Callable[[Any], Any], root: str) -> None:
    async with opened() as shop:
        shop.open(app(shop.paywall.wallet_service()))
        place = root + "/v1/x402"
        paid = await shop.buy("POST", place + "/top-up", body=top_up_body(), root_path=root)
        assert paid.json()["credited_usdc"] == "1.000000"
        seen = await shop.ask("GET", f"{place}/balance/{PAYER}", proof(), root_path=root)
        assert (seen.status, seen.json()["balance_usdc"]) == (200, "1.000000")


async def test_without_an_origin_it_names_the_host_that_was_asked() -> None:
    async with opened(origin="") as shop:
        shop.open(starlette(shop.paywall.wallet_service()))
        said = await shop.ask("GET", "/v1/x402")
        assert said.json()["endpoints"]["top_up"] == "http://shop.example/v1/x402/top-up"


@pytest.mark.parametrize("path", ["/v1/x402/nowhere", "/v1/x402/top-up/", "/v1/x402/balance", "/v1/x402/withdraw"])
@pytest.mark.parametrize("app", [starlette, fastapi, alone])
async def test_places_that_it_has_not_are_typed(app: Callable[[Any], Any], path: str) -> None:
    async with opened() as shop:
        service = shop.paywall.wallet_service()
        shop.open(app(service))
        target = path.removeprefix("/v1/x402") if app is alone else path
        said = await shop.ask("POST", target, proof())
        assert (said.status, said.json()["reason"]) == (404, "not-found")
        assert said.header("content-type") == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/x402/top-up", "POST"), ("POST", BALANCE, "GET, HEAD"), ("DELETE", "/v1/x402/", "GET, HEAD")],
)
async def test_other_methods_are_typed(shop: Shop, method: str, path: str, allowed: str) -> None:
    said = await shop.ask(method, path, proof())
    assert (said.status, said.json()["reason"]) == (405, "method-not-allowed")
    assert sorted(said.header("allow").split(", ")) == allowed.split(", ")


async def test_a_mounted_service_without_the_gate_gives_nothing_away() -> None:
    async with opened() as shop:
        app = starlette(shop.paywall.wallet_service())
        said = await ask(app, "POST", "/v1/x402/top-up", body=top_up_body())
        assert type(said.raised).__name__ == "Unguarded"


@pytest.mark.parametrize(("least", "most"), [("$0", "$1"), ("$2", "$1"), ("$0.0000001", "$1"), ("$1", "$1.0000001")])
async def test_bounds_that_can_not_be_met_are_refused_at_once(least: str, most: str) -> None:
    async with opened() as shop:
        with pytest.raises(ConfigError, match="minimum"):
            shop.paywall.wallet_service(minimum=least, maximum=most)


async def test_what_can_not_work_is_refused_at_once() -> None:
    async with opened() as shop:
        with pytest.raises(ConfigError, match="can't pay out"):
            shop.paywall.wallet_service(withdraw=True)
        dialect: Any = "mars"
        with pytest.raises(ConfigError, match="katana, venice"):
            shop.paywall.wallet_service(dialect=dialect)


@pytest.mark.parametrize("option", [{"credits": True}, {"amounts": None}, {"canonical": bytes}])
async def test_no_other_price_can_be_a_top_up(option: dict[str, Any]) -> None:
    async with opened() as shop:
        with pytest.raises(ConfigError, match="wallet service alone"):
            shop.paywall.paid("$1", **option)(goods)


# Who asks


@pytest.mark.parametrize("path", [BALANCE, MOVES])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_without_a_proof_it_asks_for_one(shop: Shop, path: str, method: str) -> None:
    said = await shop.ask(method, path)
    assert said.status == 402
    offered = decode_header(said.header("PAYMENT-REQUIRED"))
    assert (offered["accepts"], offered["error"]) == ([], "sign_in_required")
    challenge = offered["extensions"]["sign-in-with-x"]
    assert challenge["info"]["uri"] == ORIGIN + path
    assert challenge["supportedChains"] == [{"chainId": NETWORK, "type": "eip191"}]
    signed = header(standard(OWNER, {**challenge["info"]})).decode()
    assert (await shop.ask("GET", path, {"SIGN-IN-WITH-X": signed})).status == 200


@pytest.mark.parametrize("path", [BALANCE, MOVES])
@pytest.mark.parametrize(
    ("bad", "status", "reason"),
    [
        ({"age": 400}, 401, "invalid_siwx_issued_at_too_old"),
        ({"age": -100}, 401, "invalid_siwx_issued_at_in_future"),
        ({"wallet": solana_wallet()}, 401, "invalid_siwx_unsupported_chain"),
        ({"wallet": evm_wallet(secrets.token_bytes(32))}, 403, "wallet-mismatch"),
        ({"beside": {"signature": "0x" + "1" * 130}}, 401, "invalid_siwx_signature"),
        ({"beside": {"message": 5}}, 400, "invalid_siwx"),
    ],
    ids=["old", "future", "another chain", "another wallet", "signature", "unreadable"],
)
async def test_F03_a_proof_that_is_not_good_is_refused(
    shop: Shop, path: str, bad: dict[str, Any], status: int, reason: str
) -> None:
    said = await shop.ask("GET", path, proof(**bad))
    assert (said.status, said.json()["reason"]) == (status, reason)
    assert said.header("cache-control") == "no-store"


async def test_A12_a_query_of_any_bytes_is_no_fault_of_ours(shop: Shop) -> None:
    for path, shown, status in ((BALANCE, {}, 402), (BALANCE, proof(), 200), ("/v1/x402", {}, 200)):
        assert (await shop.ask("GET", path, shown, query_string=b"a=\xff")).status == status
    async with opened(origin="") as other:
        other.open(starlette(other.paywall.wallet_service()))
        assert (await other.ask("GET", "/v1/x402", query_string=b"a=\xff")).status == 200


async def test_two_different_proofs_are_no_proof(shop: Shop) -> None:
    two = [("X-Sign-In-With-X", proof()["X-Sign-In-With-X"]), ("SIGN-IN-WITH-X", proof()["X-Sign-In-With-X"])]
    assert (await shop.ask("GET", BALANCE, two)).status == 400


async def test_F01_a_proof_may_be_shown_again_to_look(shop: Shop) -> None:
    shown = proof()
    for spelling in (PAYER, PAYER.lower(), PAYER.upper().replace("0X", "0x")):
        said = await shop.ask("GET", f"/v1/x402/balance/{spelling}", shown)
        assert (said.status, said.json()["wallet_address"]) == (200, PAYER)


async def test_F08_no_cache_keeps_an_answer_and_every_cache_tells_callers_apart(shop: Shop) -> None:
    await top_up(shop)
    for path in (BALANCE, MOVES):
        said = await shop.ask("GET", path, proof())
        assert said.header("cache-control") == "no-store"
        assert {"sign-in-with-x", "x-sign-in-with-x"} <= set(said.header("vary").split(", "))


async def test_an_unknown_wallet_has_nothing(shop: Shop) -> None:
    assert (await shop.ask("GET", BALANCE, proof())).json() == {
        "wallet_address": PAYER,
        "network": NETWORK,
        "asset": USDC.address,
        "balance_usdc": "0.000000",
        "held_usdc": "0.000000",
    }
    assert (await shop.ask("GET", MOVES, proof())).json()["transactions"] == []


# Browsers


async def test_K08_a_preflight_is_answered_for_every_place() -> None:
    for cors_outside in (False, True):
        async with opened() as shop:
            app: Any = Starlette(routes=[Mount("/v1/x402", shop.paywall.wallet_service())])
            if not cors_outside:
                app.add_middleware(CORSMiddleware, allow_origins=["https://app.example"])
            gate: Any = shop.open(app)
            if cors_outside:
                allowed = ["X-Sign-In-With-X", "PAYMENT-SIGNATURE"]
                gate = CORSMiddleware(gate, allow_origins=["https://app.example"], allow_headers=allowed)
            for path in ("/v1/x402/top-up", BALANCE, MOVES, "/v1/x402"):
                headers = {
                    "Origin": "https://app.example",
                    "Access-Control-Request-Method": "GET",
                    "Access-Control-Request-Headers": "x-sign-in-with-x",
                }
                said = await ask(gate, "OPTIONS", path, headers)
                assert (said.status, said.header("access-control-allow-origin")) == (200, "https://app.example"), path
                assert "x-sign-in-with-x" in said.header("access-control-allow-headers").lower()
            seen = await ask(gate, "GET", BALANCE, {"Origin": "https://app.example"})
            assert seen.status == 402
            assert seen.header("access-control-allow-origin") == "https://app.example"


async def test_options_alone_is_free_everywhere(shop: Shop) -> None:
    for path in ("/v1/x402", "/v1/x402/top-up", BALANCE):
        assert (await shop.ask("OPTIONS", path)).status == 204
    service = shop.paywall.wallet_service()
    assert (await ask(service, "OPTIONS", "/balance/x")).status == 204


# Amounts

STRICT: list[Any] = [
    *("01", "1.", ".5", "1e1", "+1", "-1", " 1", "1 ", "1_0", "１", "0x1", "1,0", "", "1.0000001", "NaN", "1.00\n"),
    *(1, 1.5, None, True, ["1"], {"a": 1}),
]


@pytest.mark.parametrize("amount", STRICT, ids=repr)
async def test_A13_an_amount_is_exact_decimal_text(shop: Shop, amount: Any) -> None:
    said = await shop.ask("POST", "/v1/x402/top-up", body=top_up_body(amount))
    assert (said.status, said.json()["reason"]) == (400, "invalid_amount")


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"{", b'{"amount_usdc":"1","amount_usdc":"2"}', b"\xff"])
async def test_A12_what_is_no_document_is_refused(shop: Shop, body: bytes) -> None:
    said = await shop.ask("POST", "/v1/x402/top-up", body=body)
    assert (said.status, said.json()["reason"]) == (400, "invalid_amount")


@pytest.mark.parametrize(("amount", "fits"), [("0.499999", False), ("0.5", True), ("100", True), ("100.000001", False)])
async def test_an_amount_lies_within_the_bounds(shop: Shop, amount: str, fits: bool) -> None:
    said = await shop.ask("POST", "/v1/x402/top-up", body=top_up_body(amount))
    if fits:
        assert said.status == 402
        assert int(said.entry["amount"]) == int(float(amount) * 1_000_000)
    else:
        assert (said.status, said.json()["reason"]) == (400, "amount_out_of_range")
        assert "a top-up is from $0.50 to $100" in said.json()["detail"]


async def test_K01_a_large_body_is_refused(shop: Shop) -> None:
    assert (await shop.ask("POST", "/v1/x402/top-up", body=b" " * 5000)).status == 413


# Top-ups


async def test_a_top_up_credits_what_was_asked_for_and_tells_what_was_paid() -> None:
    async with opened(rail=OfflineRail(surcharges=(1500,))) as shop:
        shop.open(starlette(shop.paywall.wallet_service()))
        said = await top_up(shop, "2.5")
        transaction = said.receipt.transaction
        assert said.json() == {
            "wallet_address": PAYER,
            "network": NETWORK,
            "asset": USDC.address,
            "credited_usdc": "2.500000",
            "paid_usdc": "2.501500",
            "balance_usdc": "2.500000",
            "transaction": transaction,
            "transaction_id": said.json()["transaction_id"],
        }
        assert (said.receipt.amount, said.header("cache-control")) == (2_501_500, "no-store")
        second = (await top_up(shop, "1")).json()
        assert (second["credited_usdc"], second["balance_usdc"]) == ("1.000000", "3.500000")


async def test_E01_a_top_up_shown_again_is_the_same_one(shop: Shop) -> None:
    body = top_up_body("1.00")
    payment = await shop.payment("POST", "/v1/x402/top-up", body=body)
    shown = {"PAYMENT-SIGNATURE": payment.v2()}
    first = await shop.ask("POST", "/v1/x402/top-up", shown, body=body)
    for spelled in ("1.00", "1", "1.0", "1.000000"):
        again = await shop.ask("POST", "/v1/x402/top-up", shown, body=top_up_body(spelled))
        assert (again.status, again.header("payment-replayed"), again.json()) == (200, "true", first.json())
    other = await shop.ask("POST", "/v1/x402/top-up", shown, body=top_up_body("2"))
    assert (other.status, other.json()["reason"]) == (403, "payment_used")
    assert (await shop.paywall.store.balance(ACCOUNT)).available == 1_000_000
    assert shop.rail.settled == 1


async def test_C03_a_top_up_is_told_again_when_its_rail_has_gone(tmp_path: Path) -> None:
    body, told = top_up_body(), list[Answer]()
    gone = OfflineRail(asset=DEFAULTS["eip155:137"])
    shown: dict[str, str] = {}
    for rails in ([gone, OfflineRail()], [OfflineRail()]):
        paywall = Paywall(rails, tmp_path / "payments.db", origin=ORIGIN)
        app = paywall.protect(starlette(paywall.wallet_service()))
        if not shown:
            entry = (await ask(app, "POST", "/v1/x402/top-up", body=body)).entry
            shown["PAYMENT-SIGNATURE"] = pay(entry, asset=gone.asset).v2()
        told.append(await ask(app, "POST", "/v1/x402/top-up", shown, body=body))
        await paywall.stop()
    assert [(said.status, said.json()) for said in told] == [(200, told[0].json())] * 2
    assert told[1].header("payment-replayed") == "true"


async def test_A02_who_is_named_in_the_body_gets_nothing(shop: Shop) -> None:
    """The balance is the payer's, as the settled payment shows him."""
    body = json.dumps({"amount_usdc": "1.00", "wallet_address": "0x" + "1" * 40, "wallet": "0x" + "1" * 40}).encode()
    said = await shop.buy("POST", "/v1/x402/top-up", body=body)
    assert said.json()["wallet_address"] == PAYER


@pytest.mark.parametrize("dialect", ["v1", "katana", "venice"])
async def test_every_client_tops_up(shop: Shop, dialect: str) -> None:
    body = top_up_body("1.00")
    payment = await shop.payment("POST", "/v1/x402/top-up", body=body)
    made: str = getattr(payment, dialect)()
    name = "X-PAYMENT" if dialect == "v1" else "X-402-Payment"
    said = await shop.ask("POST", "/v1/x402/top-up", {name: made}, body=body)
    assert (said.status, said.json()["balance_usdc"]) == (200, "1.000000")


async def test_A01_a_payment_of_another_amount_is_refused(shop: Shop) -> None:
    body = top_up_body("1.00")
    entry = (await shop.ask("POST", "/v1/x402/top-up", body=body)).entry
    for value in (500_000, 999_999, 1_000_001, 99_000_000):
        payment = pay(entry, value=value)
        echo = {"amount": str(value), "maxAmountRequired": str(value)}
        for made in (payment.v2(), payment.v2(echo), payment.venice()):
            said = await shop.ask("POST", "/v1/x402/top-up", {"PAYMENT-SIGNATURE": made}, body=body)
            assert said.status == 402
    assert (shop.rail.settled, (await shop.paywall.store.balance(ACCOUNT)).available) == (0, 0)


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
async def test_J01_a_top_up_that_nobody_waited_for_is_credited_without_being_shown_again(
    store: str, request: pytest.FixtureRequest
) -> None:
    """Its process died, or its caller left, between the settlement and the credit."""
    ledger: Any = request.getfixturevalue("database") if store == "postgres" else None
    async with opened(rail=OfflineRail(surcharges=(1500,)), ledger=ledger, reconcile_seconds=600) as shop:
        shop.open(starlette(shop.paywall.wallet_service()))
        body, go = top_up_body("1.00"), asyncio.Event()
        payment = await shop.payment("POST", "/v1/x402/top-up", body=body)
        shop.rail.script["send"].append(go)
        shown = {"PAYMENT-SIGNATURE": payment.v2()}
        asking = asyncio.create_task(shop.ask("POST", "/v1/x402/top-up", shown, body=body))
        await until(lambda: shop.rail.calls["send"] > 0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        go.set()
        await until(lambda: shop.rail.settled == 1)
        while (await shop.paywall.store.balance(ACCOUNT)).available == 0:
            await shop.paywall.reconcile()
        assert (await shop.paywall.store.balance(ACCOUNT)).available == 1_000_000
        again = await shop.ask("POST", "/v1/x402/top-up", shown, body=body)
        assert (again.status, again.json()["credited_usdc"], again.json()["paid_usdc"]) == (
            200,
            "1.000000",
            "1.001500",
        )
        assert await shop.paywall.store.verify() == []


# Transactions


async def moves(shop: Shop, query: str = "") -> Json:
    said = await shop.ask("GET", MOVES + query, proof())
    assert said.status == 200, said.body
    made: Json = said.json()
    return made


async def test_transactions_are_paged_newest_first_and_stay_where_they_are(shop: Shop) -> None:
    for number in range(1, 8):
        await top_up(shop, str(number))
    first = await moves(shop, "?limit=3")
    await top_up(shop, "50")
    second = await moves(shop, f"?limit=3&cursor={first['next_cursor']}")
    third = await moves(shop, f"?limit=3&cursor={second['next_cursor']}")
    seen = [page["transactions"] for page in (first, second, third)]
    assert [[move["amount_usdc"] for move in page] for page in seen] == [
        ["7.000000", "6.000000", "5.000000"],
        ["4.000000", "3.000000", "2.000000"],
        ["1.000000"],
    ]
    assert third["next_cursor"] is None
    newest = (await moves(shop))["transactions"][0]
    assert newest["balance_after_usdc"] == "78.000000"
    assert (newest["type"], newest["request_id"], newest["resource"]) == ("deposit", None, "x402kit.top-up")
    assert newest["transaction"].startswith("0x")
    assert newest["created_at"].endswith("Z")


async def test_a_call_from_the_balance_stands_there_with_its_request_id() -> None:
    async with opened() as shop:
        routes = [
            Route("/goods", shop.paywall.paid("$0.25")(goods_of())),
            Mount("/v1/x402", shop.paywall.wallet_service()),
        ]
        shop.open(Starlette(routes=routes))
        await top_up(shop)
        assert (await shop.ask("GET", "/goods", proof())).status == 200
        capture, reserve, deposit = (await moves(shop))["transactions"]
        assert [capture["type"], reserve["type"], deposit["type"]] == ["capture", "reserve", "deposit"]
        assert [capture["amount_usdc"], reserve["amount_usdc"]] == ["0.000000", "-0.250000"]
        assert (capture["charged_usdc"], capture["balance_after_usdc"]) == ("0.250000", "0.750000")
        assert capture["request_id"] == reserve["request_id"]
        assert capture["request_id"].startswith("req_")


def goods_of() -> Any:
    async def sold(request: Request) -> Response:
        return PlainTextResponse("goods")

    return sold


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=101", "limit=-1", "limit=1.5", "limit=", "limit=%EF%BC%91", "limit=1&limit=2", "limit=1_0"),
        *("cursor=0", "cursor=x", "cursor=9223372036854775808", "cursor=99999999999999999999", "cursor=1;drop"),
    ],
)
async def test_a_page_that_can_not_be_is_refused(shop: Shop, query: str) -> None:
    said = await shop.ask("GET", f"{MOVES}?{query}", proof())
    assert said.status == 400
    assert said.json()["reason"] in ("invalid_limit", "invalid_cursor")
