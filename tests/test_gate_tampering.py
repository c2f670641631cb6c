"""Group A at the gate: what a payer may change in a payment, an echo or a request, and what that gets them."""

from __future__ import annotations

import base64
import functools
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from x402kit import Call, Quote, Usd, usd
from x402kit.errors import UnmatchedRule
from x402kit.model import CHALLENGE_SECONDS, LEEWAY_SECONDS, Json
from x402kit.networks.assets import DEFAULTS
from x402kit.protocols.x402 import encode_header

from .support.asking import Shop, ask, opened
from .support.payments import KEY, pay, sign
from .support.rails import PAY_TO

SEPOLIA = DEFAULTS["eip155:84532"]
THIEF = "0x000000000000000000000000000000000000bEEF"


class Endpoint(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        runs.append("endpoint")
        return PlainTextResponse("endpoint")


runs: list[str] = []


def by_tokens(call: Call) -> Usd:
    return usd("$0.001") * int(call.json["max_tokens"])


def by_size(call: Call) -> Usd:
    return usd("$1") if call.query.get("size") == "big" else usd("$0.01")


def app_of(shop: Shop) -> Starlette:
    async def cheap(request: Request) -> Response:
        runs.append("cheap")
        return PlainTextResponse("cheap")

    async def other(request: Request) -> Response:
        runs.append("other")
        return PlainTextResponse("other")

    async def chat(request: Request) -> Response:
        runs.append("chat")
        return JSONResponse(await request.json())

    async def sized(request: Request) -> Response:
        runs.append("sized")
        return PlainTextResponse("sized")

    paid = shop.paywall.paid
    return Starlette(
        routes=[
            Route("/cheap", paid("$0.01")(cheap)),
            Route("/other", paid("$0.01")(other)),
            Route("/chat", paid(by_tokens)(chat), methods=["POST"]),
            Route("/sized", paid(by_size, needs_body=False)(sized)),
            Route("/endpoint", paid("$0.01")(type("E", (Endpoint,), {}))),
        ]
    )


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    runs.clear()
    async with opened() as made:
        made.open(app_of(made))
        yield made


async def refused(shop: Shop, target: str, header: str, status: int = 402, **options: Any) -> str:
    """The reason; nothing ran, nothing was claimed, and no chain was asked."""
    method = options.pop("method", "GET")
    before = list(runs)
    answer = await shop.ask(method, target, {"PAYMENT-SIGNATURE": header}, **options)
    assert answer.status == status, (answer.status, answer.body)
    if status == 402:
        assert answer.entry
    assert runs == before
    assert shop.rail.calls.keys() <= {"start"}
    return answer.reason


async def test_A01_the_price_is_not_what_the_echo_says(shop: Shop) -> None:
    entry = (await shop.ask("GET", "/cheap")).entry
    assert entry["amount"] == "10000"
    lower = pay(entry, value=1)
    assert await refused(shop, "/cheap", lower.v2({"amount": "1", "maxAmountRequired": "1"})) == "quote_mismatch"
    without = {"amount": "1", "maxAmountRequired": "1", "extra": None}
    assert await refused(shop, "/cheap", lower.v2(without)) == "invalid_payment_requirements"
    assert await refused(shop, "/cheap", lower.v1()) == "invalid_payment_requirements"
    assert await refused(shop, "/cheap", lower.venice()) == "invalid_payment_requirements"
    mismatch = "invalid_exact_evm_payload_authorization_value_mismatch"
    assert await refused(shop, "/cheap", lower.v2()) == mismatch
    assert await refused(shop, "/cheap", pay(entry, value=10_001).v2()) == mismatch
    assert await shop.claim(lower) is None


@pytest.mark.parametrize(
    ("echo", "terms"),
    [
        ({"payTo": THIEF}, {"to": THIEF.lower()}),
        ({"payTo": THIEF, "extra": None}, {"to": THIEF.lower()}),
        ({"payTo": PAY_TO.lower()}, {}),
        ({"asset": THIEF}, {}),
        ({"asset": THIEF, "extra": None}, {}),
        ({"network": SEPOLIA.network, "asset": SEPOLIA.address}, {"asset": SEPOLIA}),
        ({"network": "base"}, {}),
        ({"network": "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "extra": None}, {}),
        ({"scheme": "upto"}, {}),
        ({"maxTimeoutSeconds": 301}, {}),
        ({"maxTimeoutSeconds": 3600, "extra": None}, {}),
    ],
)
async def test_A02_the_offer_is_ours_not_the_echos(shop: Shop, echo: Json, terms: Json) -> None:
    entry = (await shop.ask("GET", "/cheap")).entry
    header = pay({**entry, **{k: v for k, v in echo.items() if v is not None}}, **terms).v2(echo)
    if echo == {"network": "base"}:  # v1's name of the very network
        assert (await shop.ask("GET", "/cheap", {"PAYMENT-SIGNATURE": header})).status == 200
        return
    assert await refused(shop, "/cheap", header) in ("invalid_payment_requirements", "quote_mismatch")


@pytest.mark.parametrize("extra", [{"name": "USDC"}, {"version": "1"}, {"name": None}])
async def test_A02_a_domain_that_is_not_ours_is_refused(shop: Shop, extra: Json) -> None:
    entry = (await shop.ask("GET", "/cheap")).entry
    header = pay(entry).v2({"extra": {**entry["extra"], **extra}})
    assert await refused(shop, "/cheap", header) == "invalid_payment_requirements"


async def test_A03_a_challenge_of_another_origin_is_not_ours() -> None:
    async with opened() as ours, opened(origin="https://other.example") as theirs, opened(secret=b"x" * 16) as secret:
        for shop in (ours, theirs, secret):
            shop.open(app_of(shop))
        for shop in (theirs, secret):
            entry = (await shop.ask("GET", "/cheap")).entry
            assert await refused(ours, "/cheap", pay(entry).v2()) == "quote_mismatch"


async def test_A04_a_payment_for_one_route_is_no_payment_for_another(shop: Shop) -> None:
    payment = await shop.payment("GET", "/cheap")
    assert await refused(shop, "/other", payment.v2()) == "quote_mismatch"
    assert await shop.claim(payment) is None
    answer = await shop.ask("GET", "/cheap", {"PAYMENT-SIGNATURE": payment.v2()})
    assert (answer.status, answer.body) == (200, b"cheap")
    used = await shop.ask("GET", "/other", {"PAYMENT-SIGNATURE": payment.v2()})
    assert (used.status, used.reason) == (403, "payment_used")
    assert runs == ["cheap"]


async def test_A05_nothing_is_kept_under_a_url_that_the_client_wrote(shop: Shop) -> None:
    payment = await shop.payment("GET", "/cheap")
    header = payment.v2(resource={"url": "https://shop.example/other"})
    assert (await shop.ask("GET", "/cheap", {"PAYMENT-SIGNATURE": header})).status == 200
    claim = await shop.claim(payment)
    assert claim.resource.endswith("cheap")
    assert (await shop.ask("GET", "/other", {"PAYMENT-SIGNATURE": header})).status == 403


async def test_A06_another_body_has_another_price(shop: Shop) -> None:
    payment = await shop.payment("POST", "/chat", json_body={"max_tokens": 10})
    more = {"max_tokens": 100_000}
    for header, reason in (
        (payment.v2(), "quote_mismatch"),
        (payment.v2({"extra": None}), "invalid_payment_requirements"),
        (payment.v1(), "invalid_payment_requirements"),
    ):
        assert await refused(shop, "/chat", header, method="POST", json_body=more) == reason
    answer = await shop.ask("POST", "/chat", {"PAYMENT-SIGNATURE": payment.v2()}, json_body=more)
    assert answer.entry["amount"] == "100000000"
    good = await shop.ask("POST", "/chat", {"PAYMENT-SIGNATURE": payment.v2()}, json_body={"max_tokens": 10})
    assert good.json() == {"max_tokens": 10}


async def test_A06_even_one_that_costs_the_same(shop: Shop) -> None:
    payment = await shop.payment("POST", "/chat", json_body={"max_tokens": 10, "q": 1})
    body = {"max_tokens": 10, "q": 2}
    assert await refused(shop, "/chat", payment.v2(), method="POST", json_body=body) == "quote_mismatch"


async def test_A07_another_query_has_another_price(shop: Shop) -> None:
    payment = await shop.payment("GET", "/sized?size=small")
    assert await refused(shop, "/sized?size=big", payment.v2()) == "quote_mismatch"
    assert await refused(shop, "/sized?size=big", payment.v1()) == "invalid_payment_requirements"
    assert await refused(shop, "/sized?size=small&x", payment.v2()) == "quote_mismatch"
    twice = await shop.ask("GET", "/sized?size=small&size=big")
    assert (twice.status, twice.reason) == (400, "not_priceable")
    answer = await shop.ask("GET", "/sized?size=small", {"PAYMENT-SIGNATURE": payment.v2()})
    assert answer.body == b"sized"


async def test_A08_no_method_reaches_the_handler_unpaid(shop: Shop) -> None:
    for method in ("GET", "HEAD", "get", "Head"):
        for target in ("/cheap", "/endpoint"):
            answer = await shop.ask(method, target)
            assert answer.status in (402, 405), (method, target)
    for body in (b"", b"{}", b"null", b'{"max_tokens":0}', b'{"max_tokens":-1}', b"\xff"):
        answer = await shop.ask("POST", "/chat", body=body)
        assert (answer.status, answer.json()["title"]) == (400, "bad-request")
    assert (await shop.ask("GET", "/chat")).status == 405
    assert (await shop.ask("GET", "/cheap", {"X-HTTP-Method-Override": "POST"})).status == 402
    assert (await shop.ask("GET", "/chat", {"X-HTTP-Method-Override": "POST"})).status == 400
    assert runs == []


async def test_A08_head_is_priced_like_get_and_is_a_request_of_its_own(shop: Shop) -> None:
    payment = await shop.payment("GET", "/endpoint")
    assert await refused(shop, "/endpoint", payment.v2(), method="HEAD") == "quote_mismatch"
    answer = await shop.buy("HEAD", "/endpoint")
    assert (answer.status, runs) == (200, ["endpoint"])


async def test_A08_a_preflight_is_free_and_never_reaches_the_handler(shop: Shop) -> None:
    for target in ("/cheap", "/chat", "/endpoint"):
        for method in ("OPTIONS", "options"):
            answer = await shop.ask(method, target)
            assert (answer.status, answer.body, answer.header("cache-control")) == (204, b"", "no-store")
    payment = await shop.payment("GET", "/endpoint")
    assert (await shop.ask("OPTIONS", "/endpoint", {"PAYMENT-SIGNATURE": payment.v2()})).status == 204
    assert runs == []
    assert await shop.claim(payment) is None


async def test_A09_what_can_be_read_in_two_ways_is_refused() -> None:
    async with opened() as shop:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            runs.append(scope["path"])

        runs.clear()
        shop.open(app, {"/cheap/{rest:path}": "$0.01", "/dear": "$10"})
        answer = await shop.ask("GET", "/cheap/..%2fdear")
        assert (answer.status, answer.reason) == (400, "ambiguous_request")
        assert answer.header("cache-control") == "no-store"
        assert (await shop.ask("GET", "/dear%2f")).entry["amount"] == "10000000"
        assert runs == []


async def test_A10_a_price_that_reaches_no_route_stops_the_start() -> None:
    async with opened() as other:

        @other.paywall.paid("$0.01", description="nowhere")
        async def lost(request: Request) -> Response:
            raise AssertionError

        gate = other.open(Starlette(routes=[Route("/x", Endpoint)]), {"POST /y": "$1"})
        sent = await lifespan(gate)
        assert sent[0]["type"] == "lifespan.startup.failed"
        assert "POST /y" in sent[0]["message"]
        assert lost.__qualname__ in sent[0]["message"]
        answer = await other.ask("GET", "/x")
        assert isinstance(answer.raised, UnmatchedRule)


async def lifespan(gate: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    todo = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Any:
        return todo.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await gate({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return sent


async def test_A10_without_strict_it_runs_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(strict=False) as shop:
        shop.open(Starlette(routes=[Route("/x", Endpoint)]), {"POST /y": "$1"})
        assert (await lifespan(shop.app))[0]["type"] == "lifespan.startup.complete"
        assert "POST /y" in caplog.text


async def test_A11_two_payments_are_none(shop: Shop) -> None:
    one, two = await shop.payment("GET", "/cheap"), await shop.payment("GET", "/cheap")
    for headers in (
        [("PAYMENT-SIGNATURE", one.v2()), ("PAYMENT-SIGNATURE", two.v2())],
        [("PAYMENT-SIGNATURE", one.v2()), ("PAYMENT-SIGNATURE", one.v2())],
        [("PAYMENT-SIGNATURE", one.v2()), ("X-PAYMENT", two.v1())],
        [("PAYMENT-SIGNATURE", one.v2()), ("X-PAYMENT", one.v1())],
        [("PAYMENT-SIGNATURE", one.v2()), ("X-402-Payment", two.v2())],
        [("PAYMENT-SIGNATURE", f"{one.v2()}, {two.v2()}")],
        [("PAYMENT-SIGNATURE", f"{one.v2()}\r\n {two.v2()}")],
        [("PAYMENT-SIGNATURE", "")],
    ):
        answer = await shop.ask("GET", "/cheap", headers)
        assert (answer.status, answer.json()["title"]) == (400, "payment-malformed")
        assert answer.all("PAYMENT-REQUIRED") == []
    assert runs == []
    assert await shop.claim(one) is None


def broken(header: str) -> list[bytes | str]:
    """The same payment, made ambiguous."""
    text = base64.b64decode(header).decode()
    return [
        text.replace('{"x402Version":2,', '{"x402Version":2,"x402Version":2,').encode(),
        text.replace('"amount":"10000"', '"amount":"10000","amount":"1"').encode(),
        text.replace('"maxTimeoutSeconds":300', '"maxTimeoutSeconds":3e2').encode(),
        text.replace('"maxTimeoutSeconds":300', '"maxTimeoutSeconds":NaN').encode(),
        text.replace('"maxTimeoutSeconds":300', '"maxTimeoutSeconds":' + "3" * 5000).encode(),
        text.replace('"extra":', '"x":' + "[" * 40 + "]" * 40 + ',"extra":').encode(),
        text.replace("exact", "ex\udcffact", 1).encode("utf-8", "surrogateescape"),
        text.encode("utf-16"),
        b"\xef\xbb\xbf" + text.encode(),
        f"[{text}]".encode(),
        header[:10] + "\n" + header[10:],
        header[:10] + "*" + header[10:],
        header.rstrip("=") + "=" * 3,
        "-" + header + "+",
    ]


async def test_A12_an_ambiguous_payment_is_400_and_never_read_twice(shop: Shop) -> None:
    payment = await shop.payment("GET", "/cheap")
    for made in broken(payment.v2()):
        header = made if isinstance(made, str) else base64.b64encode(made).decode()
        assert await refused(shop, "/cheap", header, 400) == "invalid_payload"
    assert await refused(shop, "/cheap", payment.v2(x402Version=3), 400) == "invalid_x402_version"
    assert await shop.claim(payment) is None


@pytest.mark.parametrize(
    "value", ["1_0000", "１００００", " 10000", "10000\n", "+10000", "-0", "010000", "0x2710", "1e4"]
)
async def test_A13_what_only_looks_like_the_price_is_400(shop: Shop, value: str) -> None:
    payment = await shop.payment("GET", "/cheap")
    assert await refused(shop, "/cheap", payment.v2({"amount": value}), 400) == "invalid_payload"
    for field in ("value", "validBefore", "validAfter"):
        header = payment.v2(payload=payment.spelled(None, **{field: value}))
        assert await refused(shop, "/cheap", header, 400) == "invalid_payload"


@pytest.mark.parametrize(
    "words", ["a\r\nSet-Cookie: x=1", 'quo"te; a, b', "em — dash", "😀", "\x00", "\ud800", "a" * 300]
)
async def test_A14_words_from_data_never_break_the_challenge(words: str) -> None:
    async with opened() as shop:

        async def goods(request: Request) -> Response:
            return PlainTextResponse("goods")

        def price(call: Call) -> Quote:
            return Quote(usd("$0.01"), words)

        options = {"description": words, "mime_type": words}
        routes = [
            Route("/fixed", shop.paywall.paid("$0.01", **options)(goods)),
            Route("/quoted", shop.paywall.paid(price, needs_body=False)(goods)),
        ]
        shop.open(Starlette(routes=routes))
        for target in ("/fixed", "/quoted"):
            answer = await shop.ask("GET", target)
            resource = answer.challenge.resource
            assert resource is not None
            assert resource.description == words
            assert answer.json()["accepts"][0]["description"] == words
            assert all(value.isprintable() and value.isascii() for _, value in answer.headers)
            assert (await shop.buy("GET", target)).status == 200


async def test_A14_a_hostile_host_and_query_stay_in_their_places() -> None:
    async with opened(origin="") as shop:
        shop.open(app_of(shop))
        assert shop.app is not None
        for query, host in ((b'"=\xe9&b', b'x"\xe9,\r\n'), (b"a=" + b"b" * 60_000, b"shop.example")):

            async def odd(scope: Any, receive: Any, send: Any, changes: Any) -> None:
                assert shop.app is not None
                await shop.app({**scope, **changes}, receive, send)

            changes = {"query_string": query, "headers": [(b"host", host)]}
            answer = await ask(functools.partial(odd, changes=changes), "GET", "/cheap")
            resource = answer.challenge.resource
            assert resource is not None
            assert len(answer.header("PAYMENT-REQUIRED")) < 8192
            assert len(query) < 100 or resource.url == "http://shop.example/cheap"


async def test_A15_a_quote_is_good_a_little_longer_than_it_says(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    start = int(time.time())
    payment = await shop.payment("GET", "/cheap", terms={"valid_before": start + 3600})
    for skew, status in ((CHALLENGE_SECONDS + LEEWAY_SECONDS + 2, 402), (CHALLENGE_SECONDS + LEEWAY_SECONDS - 2, 200)):
        monkeypatch.setattr(time, "time", lambda skew=skew: float(start + skew))
        answer = await shop.ask("GET", "/cheap", {"PAYMENT-SIGNATURE": payment.v2()})
        assert answer.status == status
        assert status == 200 or answer.reason == "quote_expired"


@pytest.mark.parametrize("skew", [-120, 120])
async def test_A15_a_clock_that_is_off_by_two_minutes_changes_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, skew: int
) -> None:
    payment = await shop.payment("GET", "/cheap")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + skew)
    assert (await shop.ask("GET", "/cheap", {"PAYMENT-SIGNATURE": payment.v2()})).status == 200


async def test_a_402_after_a_payment_says_what_was_wrong_and_offers_anew(shop: Shop) -> None:
    entry = (await shop.ask("GET", "/cheap")).entry
    payload = sign(entry, key=b"\x01" * 32, payer=pay(entry, key=KEY).payload["authorization"]["from"].lower())
    answer = await shop.ask("GET", "/cheap", {"PAYMENT-SIGNATURE": pay(entry).v2(payload=payload)})
    assert (answer.status, answer.reason) == (402, "invalid_exact_evm_payload_signature")
    receipt = answer.receipt
    assert (receipt.success, receipt.error_reason, receipt.network) == (False, answer.reason, entry["network"])
    assert receipt.transaction == ""
    fresh = await shop.ask("GET", "/cheap", {"PAYMENT-SIGNATURE": pay(answer.entry).v2()})
    assert fresh.status == 200
    unreadable = encode_header({"x402Version": 2, "accepted": {**entry, "scheme": "upto"}, "payload": {}})
    none = await shop.ask("GET", "/cheap", {"PAYMENT-SIGNATURE": unreadable})
    assert (none.status, none.all("PAYMENT-RESPONSE")) == (402, [])
