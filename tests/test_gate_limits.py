"""Group K at the gate: sizes, times, floods, what caches and browsers may do, and what a caller says of our name."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from x402kit import Call, Paywall
from x402kit.errors import ConfigError
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import HEADER_MAX
from x402kit.networks.assets import DEFAULTS
from x402kit.paywall import admission
from x402kit.protocols.x402 import EXPOSED_HEADERS

from .support.asking import Shop, ask, opened, paywall_of
from .support.payments import pay
from .support.rails import OfflineRail


def by_body(call: Call) -> str:
    return "$0.01" if call.body else "$0.02"


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


def app_of(shop: Shop, **options: Any) -> Starlette:
    async def priced(request: Request) -> Response:
        return await echo(request)

    async def fixed(request: Request) -> Response:
        return await echo(request)

    return Starlette(
        routes=[
            Route("/priced", shop.paywall.paid(by_body, **options)(priced), methods=["POST"]),
            Route("/fixed", shop.paywall.paid("$0.01", **options)(fixed), methods=["GET", "POST"]),
            Route("/free", echo, methods=["GET", "POST"]),
        ]
    )


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    async with opened() as made:
        made.open(app_of(made, body_limit=10, body_seconds=0.1))
        yield made


# --- sizes


@pytest.mark.parametrize("name", ["PAYMENT-SIGNATURE", "X-PAYMENT", "X-402-Payment"])
async def test_K01_a_payment_header_over_the_limit_is_431(shop: Shop, name: str) -> None:
    for size, status in ((HEADER_MAX, 400), (HEADER_MAX + 1, 431), (65_536, 431)):
        answer = await shop.ask("GET", "/fixed", {name: "A" * size})
        assert answer.status == status
        assert answer.header("cache-control") == "no-store"
        assert answer.all("payment-required") == []
    assert (await shop.ask("GET", "/free", {name: "A" * 65_536})).status == 200


async def test_K01_a_body_over_the_limit_is_413_and_not_read_to_its_end(shop: Shop) -> None:
    read = 0

    async def receive() -> Any:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 6, "more_body": True}

    assert shop.app is not None
    gate = shop.app

    async def with_own_body(scope: Any, _: Any, send: Any) -> None:
        await gate(scope, receive, send)

    answer = await ask(with_own_body, "POST", "/priced")
    assert (answer.status, answer.json()["title"], read) == (413, "body-too-large", 2)
    payment = await shop.payment("POST", "/priced", body=b"1")
    header = {"PAYMENT-SIGNATURE": payment.v2()}
    assert (await shop.ask("POST", "/priced", header, body=b"x" * 11)).status == 413
    assert (await shop.ask("POST", "/priced", header, body=b"1")).status == 200
    assert (await shop.ask("POST", "/priced", body=b"x" * 10)).status == 402
    assert len((await shop.buy("POST", "/fixed", body=b"x" * 5000)).body) == 5000


# --- times


async def test_K02_a_slow_body_is_408_and_claims_nothing(shop: Shop) -> None:
    payment = await shop.payment("POST", "/priced", body=b"1")
    started = time.monotonic()

    async def dripping(scope: Any, _: Any, send: Any) -> None:
        async def receive() -> Any:
            await asyncio.sleep(0.04)
            return {"type": "http.request", "body": b"1", "more_body": True}

        assert shop.app is not None
        await shop.app(scope, receive, send)

    answer = await ask(dripping, "POST", "/priced", {"PAYMENT-SIGNATURE": payment.v2()})
    assert (answer.status, answer.json()["title"]) == (408, "request-timeout")
    assert time.monotonic() - started < 20
    assert await shop.claim(payment) is None


async def test_K02_a_caller_who_leaves_amid_its_body_is_no_fault(shop: Shop) -> None:
    gone = asyncio.Event()
    gone.set()
    answer = await shop.ask("POST", "/priced", body=[], leave=gone)
    assert (answer.status, answer.raised) == (0, None)


# --- floods


async def test_K03_junk_costs_no_chain_and_no_row(shop: Shop) -> None:
    entry = (await shop.ask("GET", "/fixed")).entry
    wrong: list[dict[str, Any]] = [
        {"value": 1},
        {"key": b"\x07" * 32, "payer": "0x" + "12" * 20},
        {"to": "0x" + "34" * 20},
    ]
    junk = [pay(entry, **terms).v2() for terms in wrong]
    started = time.thread_time()
    for _ in range(100):
        for header in junk:
            assert (await shop.ask("GET", "/fixed", {"PAYMENT-SIGNATURE": header})).status == 402
    assert time.thread_time() - started < 5
    assert shop.rail.calls.keys() == {"start"}
    assert await shop.paywall.store.due(2**40) == []


async def test_K03_only_so_many_are_verified_at_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "VERIFY_SLOTS", 2)
    entry = (await shop.ask("GET", "/fixed")).entry
    go = asyncio.Event()
    shop.rail.script["verify"] = [go, go]
    shown = [asyncio.create_task(shop.ask("GET", "/fixed", {"PAYMENT-SIGNATURE": pay(entry).v2()})) for _ in range(2)]
    while shop.rail.calls["verify"] < 2:  # noqa: ASYNC110  # nothing tells us
        await asyncio.sleep(0.001)
    late = pay(entry).v2()
    answer = await shop.ask("GET", "/fixed", {"PAYMENT-SIGNATURE": late})
    assert (answer.status, answer.reason, answer.header("retry-after")) == (429, "too_many_verifications", "5")
    go.set()
    assert [(await task).status for task in shown] == [200, 200]
    assert (await shop.ask("GET", "/fixed", {"PAYMENT-SIGNATURE": late})).status == 200


async def test_K04_at_the_limit_new_payments_wait_and_live_claims_stay(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "full.db", max_open_per_payer=1)
    rail = OfflineRail()
    paywall = Paywall([rail], store, secret=b"a secret of the tests")
    shop = Shop(rail, paywall)
    shop.open(app_of(shop))
    first, second = await shop.payment("GET", "/fixed"), await shop.payment("GET", "/fixed")
    rail.script["send"] = [go := asyncio.Event()]
    shown = asyncio.create_task(shop.ask("GET", "/fixed", {"PAYMENT-SIGNATURE": first.v2()}))
    while not rail.calls["send"]:  # noqa: ASYNC110  # nothing tells us
        await asyncio.sleep(0.001)
    answer = await shop.ask("GET", "/fixed", {"PAYMENT-SIGNATURE": second.v2()})
    assert (answer.status, answer.reason) == (429, "too_many_open_payments")
    assert rail.settled == 0
    go.set()
    assert (await shown).status == 200
    assert (await shop.ask("GET", "/fixed", {"PAYMENT-SIGNATURE": second.v2()})).status == 200
    await paywall.stop()


async def test_K05_nothing_that_a_payer_names_is_ever_asked(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    payment = await shop.payment("GET", "/fixed")

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", refuse, raising=False)
    url = "http://169.254.169.254/latest"
    extra = {**payment.entry["extra"], "facilitator": url, "jwks": url}
    header = payment.v2({"extra": extra}, resource={"url": url}, extensions={"x": {"schema": url}})
    assert (await shop.ask("GET", "/fixed", {"PAYMENT-SIGNATURE": header})).status == 200


# --- names


async def test_K07_a_host_header_moves_no_payment() -> None:
    async with opened() as shop:
        shop.open(app_of(shop))
        evil = "evil.example"
        spoofed = [("x-forwarded-host", evil), ("x-forwarded-proto", "http"), ("forwarded", f"host={evil}")]

        async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
            assert shop.app is not None
            headers = [(b"host", b"evil.example"), *[(k, v) for k, v in scope["headers"] if k != b"host"]]
            await shop.app({**scope, "headers": headers}, receive, send)

        answer = await ask(elsewhere, "GET", "/fixed", spoofed)
        resource = answer.challenge.resource
        assert resource is not None
        assert resource.url == "https://shop.example/fixed"
        payment = pay(answer.entry)
        assert (await shop.ask("GET", "/fixed", {"PAYMENT-SIGNATURE": payment.v2()})).status == 200
        assert (await ask(elsewhere, "GET", "/fixed", {"PAYMENT-SIGNATURE": payment.v2()})).header("payment-replayed")


async def test_K07_without_an_origin_the_host_is_for_display_alone() -> None:
    async with opened(origin="") as shop:
        shop.open(app_of(shop))
        answer = await shop.ask("GET", "/fixed", [("x-forwarded-host", "evil.example")])
        resource = answer.challenge.resource
        assert resource is not None
        assert resource.url == "http://shop.example/fixed"


@pytest.mark.parametrize("origin", ["shop.example", "ftp://shop.example", "https://", "https://a/b", "https://a?b"])
def test_an_origin_has_one_way_to_be_written(origin: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the origin is written like"):
        paywall_of(OfflineRail(), tmp_path / "x.db", origin=origin)


def test_an_origin_is_read_without_case_and_slash(tmp_path: Path) -> None:
    assert paywall_of(OfflineRail(), tmp_path / "x.db", origin="HTTPS://Shop.Example/").origin == "https://shop.example"


def test_L07_real_money_and_test_money_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        Paywall([OfflineRail(), OfflineRail(asset=DEFAULTS["eip155:84532"])], tmp_path / "x.db")
    with pytest.raises(ConfigError, match="at least one rail"):
        Paywall([], tmp_path / "x.db")


async def test_G09_secrets_are_text_bytes_several_or_the_ledgers_own(tmp_path: Path) -> None:
    for secret in ("a secret of the tests", b"a secret of the tests", [b"x" * 16, b"a secret of the tests"], None):
        async with opened(secret=secret, ledger=tmp_path / "shared.db") as one:
            one.open(app_of(one))
            payment = await one.payment("GET", "/fixed")
        async with opened(secret=secret, ledger=tmp_path / "shared.db") as two:
            two.open(app_of(two))
            assert (await two.ask("GET", "/fixed", {"PAYMENT-SIGNATURE": payment.v2()})).status == 200


# --- browsers

ASKING = [("origin", "https://page.example")]
PREFLIGHT = [*ASKING, ("access-control-request-method", "GET")]
OURS = "payment-signature, x-payment, x-402-payment"
SETTINGS: dict[str, Any] = {"allow_origins": ["https://page.example"], "allow_methods": ["GET"], "max_age": 7}


class Wrapped:
    """A middleware of somebody else's, around the app."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def cors_around(kind: str, shop: Shop, **settings: Any) -> ASGIApp:
    """The gate with a CORSMiddleware outside it, or inside in one of the ways in which apps have it."""
    app = app_of(shop, body_limit=10)
    if kind == "outside":
        return CORSMiddleware(shop.paywall.protect(app), **{**SETTINGS, **settings})
    if kind == "inside":
        inner = Starlette(
            routes=app.routes, middleware=[Middleware(Wrapped), Middleware(CORSMiddleware, **{**SETTINGS, **settings})]
        )
        return shop.paywall.protect(inner)
    return shop.paywall.protect(Wrapped(CORSMiddleware(Wrapped(app), **{**SETTINGS, **settings})))


@pytest.mark.parametrize("kind", ["outside", "inside", "wrapped"])
async def test_K08_every_answer_can_be_read_by_a_page(kind: str) -> None:
    async with opened() as shop:
        app = cors_around(kind, shop)
        shop.app = app
        challenge = await shop.ask("GET", "/fixed", ASKING)
        payment = pay(challenge.entry)
        paying = [*ASKING, ("PAYMENT-SIGNATURE", payment.v2())]
        shop.rail.script["ready"] = [RuntimeError("x")]
        answers = {
            402: challenge,
            400: await shop.ask("GET", "/fixed", [*ASKING, ("PAYMENT-SIGNATURE", "?")]),
            413: await shop.ask("POST", "/priced", ASKING, body=b"x" * 11),
            504: await shop.ask("GET", "/fixed", paying),
            200: await shop.ask("GET", "/fixed", paying),
            403: await shop.ask("GET", "/fixed?", [*ASKING, ("X-PAYMENT", payment.v1())]),
        }
        for status, answer in answers.items():
            assert answer.status == status, answer.body
            assert answer.header("access-control-allow-origin") == "https://page.example"
            exposed = {name.strip() for name in answer.header("access-control-expose-headers").split(",")}
            assert set(EXPOSED_HEADERS) <= exposed
            assert "Origin" in answer.header("vary")
        replayed = await shop.ask("GET", "/fixed", paying)
        assert replayed.header("payment-replayed") == "true"
        assert replayed.header("access-control-allow-origin") == "https://page.example"
        stranger = await shop.ask("GET", "/fixed", [("origin", "https://evil.example")])
        assert stranger.all("access-control-allow-origin") == []


@pytest.mark.parametrize("kind", ["inside", "wrapped"])
@pytest.mark.parametrize("allowed", [[], ["X-Own"], ["*"], ["Payment-Signature"]])
async def test_K08_a_preflight_allows_ours_with_the_gate_outside(kind: str, allowed: list[str]) -> None:
    async with opened() as shop:
        shop.app = cors_around(kind, shop, allow_headers=allowed)
        answer = await shop.ask("OPTIONS", "/fixed", [*PREFLIGHT, ("access-control-request-headers", OURS)])
        assert (answer.status, answer.header("access-control-max-age")) == (200, "7")
        permitted = answer.header("access-control-allow-headers").lower()
        assert all(name in permitted for name in OURS.split(", "))
        own = await shop.ask("OPTIONS", "/fixed", [*PREFLIGHT, ("access-control-request-headers", "x-own")])
        assert own.status == (200 if {"X-Own", "*"} & set(allowed) else 400)
        evil = await shop.ask("OPTIONS", "/fixed", [("origin", "https://evil.example"), *PREFLIGHT[1:]])
        assert evil.status == 400
        free = await shop.ask("OPTIONS", "/free", PREFLIGHT)
        assert free.status == 200


async def test_K08_a_preflight_with_the_gate_inside_is_the_middlewares() -> None:
    async with opened() as shop:
        shop.app = cors_around("outside", shop, allow_headers=["PAYMENT-SIGNATURE", "X-PAYMENT", "X-402-Payment"])
        answer = await shop.ask("OPTIONS", "/fixed", [*PREFLIGHT, ("access-control-request-headers", OURS)])
        assert answer.status == 200


async def test_K08_the_apps_own_exposed_headers_stay() -> None:
    async with opened() as shop:
        shop.app = cors_around("inside", shop, expose_headers=["X-Own", "Retry-After"])
        for answer in (await shop.ask("GET", "/fixed", ASKING), await shop.buy("GET", "/fixed", ASKING)):
            exposed = [name.strip() for name in answer.header("access-control-expose-headers").split(",")]
            assert {"X-Own", *EXPOSED_HEADERS} <= set(exposed)


async def test_without_cors_nothing_is_allowed() -> None:
    async with opened() as shop:
        shop.open(Starlette(routes=[Mount("/m", app_of(shop))]))
        answer = await shop.ask("OPTIONS", "/m/fixed", PREFLIGHT)
        assert (answer.status, answer.all("access-control-allow-origin")) == (204, [])
        assert (await shop.ask("GET", "/m/fixed", ASKING)).all("access-control-allow-origin") == []
