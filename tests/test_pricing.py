"""Prices: what a seller may write, what a price function sees, and whose fault it is when it fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from decimal import Decimal
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from x402kit import Call, Quote, Usd, usd
from x402kit.errors import BadRequest, ConfigError
from x402kit.pricing import Dynamic, Fixed, PriceFunction, PriceLike, price_of

from .support.asking import Shop, opened
from .support.payments import pay
from .support.rails import OfflineRail


def free_of_body(call: Call) -> str:
    return "$1"


def by_n(call: Call) -> Usd:
    made: Usd = call.json["n"] * usd("$1")
    return made


def call(body: bytes = b"", query: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None, **more: Any) -> Call:
    return Call("POST", "/x", query, headers or [], {}, body, **more)


async def ceiling(price: PriceLike, made: Call) -> str:
    return str((await price_of(price).quote(made)).ceiling)


# --- what may be written


async def test_a_fixed_price() -> None:
    for value in ("$0.01", usd("$0.01")):
        price = price_of(value)
        assert not price.needs_body
        assert (await price.quote(call())).ceiling == usd("$0.01")


@pytest.mark.parametrize(
    "value", [10, 0.01, None, "0.01", "10", b"$1", ["$1"], {"price": "$1"}, Decimal(1), "$0", "$0.00"]
)
def test_L06_what_is_no_price_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError):
        price_of(value)


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(ConfigError, match="above zero"):
        Fixed(usd("$1") - usd("$2"))


def test_whoever_has_a_quote_is_a_price() -> None:
    class Own:
        needs_body = False

        async def quote(self, call: Call) -> Quote:
            return Quote(usd("$1"), "own")

    own = Own()
    assert price_of(own) is own


def test_a_function_reads_the_body_unless_told_otherwise() -> None:
    assert price_of(free_of_body).needs_body
    assert not price_of(free_of_body, needs_body=False).needs_body


# --- functions


async def test_a_function_may_give_text_dollars_or_a_quote_now_or_later() -> None:
    async def later(call: Call) -> Usd:
        return usd("$2")

    assert await ceiling(lambda call: "$1", call()) == "$1"
    assert await ceiling(lambda call: usd("$1"), call()) == "$1"
    assert await ceiling(lambda call: Quote(usd("$3"), "words"), call()) == "$3"
    assert await ceiling(later, call()) == "$2"


async def test_a_function_sees_the_request() -> None:
    made = Call(
        "POST", "/x/7", b"n=2&empty=", [(b"x-size", b"big"), (b"other", b"1")], {"id": 7}, b'{"n":3}', ("x-size",)
    )
    assert (made.method, made.path, made.path_params, made.body) == ("POST", "/x/7", {"id": 7}, b'{"n":3}')
    assert (made.query["n"], made.query["empty"], made.query.get("m"), len(made.query)) == ("2", "", None, 2)
    assert (made.headers["X-Size"], made.headers.get("x-size"), list(made.headers)) == ("big", "big", ["x-size"])
    assert made.json == {"n": 3}


FAULTS: list[PriceFunction] = [
    lambda c: c.json["n"] * usd("$0.04"),
    lambda c: usd("$0.04") * c.json["list"],
    lambda c: usd("$1") * (1 // c.json["zero"]),
    lambda c: usd("$1") * (10 ** c.json["zero"]) ** -1,
    lambda c: c.json["zero"] * usd("$1"),
    lambda c: c.json["minus"] * usd("$1"),
    lambda c: c.json["float"] * usd("$1"),
    lambda c: usd("$1") * Decimal(c.json["text"]),
    lambda c: usd("$1") * int(c.json["text"]),
    lambda c: usd("$1") * c.json["text"],
    lambda c: c.json["list"][9],
    lambda c: c.json["zero"].upper(),
    lambda c: c.query["n"] and usd("$1"),
    lambda c: c.query["absent"] and usd("$1"),
]


@pytest.mark.parametrize("function", FAULTS)
async def test_A08_what_the_caller_left_out_or_got_wrong_is_400(function: Any) -> None:
    body = b'{"zero":0,"minus":-1,"float":1.5,"text":"x","list":[]}'
    with pytest.raises(BadRequest) as caught:
        await price_of(function).quote(call(body, b"n=1&n=2"))
    assert caught.value.money == "no"


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"n":1,"n":2}', b"NaN", b"\xff", b"[" * 9999, b'{"n":' + b"9" * 5000 + b"}"]
)
async def test_A12_a_body_that_can_be_read_in_two_ways_is_400(body: bytes) -> None:
    with pytest.raises(BadRequest, match="invalid_json"):
        await price_of(by_n).quote(call(body))


async def test_what_the_function_gives_wrongly_is_the_sellers_fault() -> None:
    for wrong in (1, 0.5, None, Decimal(1), "1"):
        with pytest.raises(ConfigError):
            await Dynamic(lambda call, wrong=wrong: wrong).quote(call())  # type: ignore[misc]  # the binding of the loop


async def test_I10_a_header_that_is_not_declared_can_not_be_read() -> None:
    made = call(headers=[(b"x-size", b"big")])
    reads: list[PriceFunction] = [
        lambda c: c.headers["x-size"],
        lambda c: c.headers.get("x-size"),
        lambda c: "x-size" in c.headers,
    ]
    for read in reads:
        with pytest.raises(ConfigError, match=r"headers=\['x-size'\]"):
            await price_of(read).quote(made)
    assert len(made.headers) == 0


async def test_a_header_that_came_twice_can_not_be_read() -> None:
    made = call(headers=[(b"x-size", b"small"), (b"x-size", b"big")], declared=("x-size",))
    with pytest.raises(BadRequest, match="not_priceable"):
        made.headers.get("x-size")


# --- at the gate


@pytest.fixture
async def shop() -> AsyncGenerator[Shop]:
    async with opened() as made:
        yield made


async def goods(request: Request) -> Response:
    return PlainTextResponse(await request.body())


def routes(shop: Shop, price: PriceLike, **options: Any) -> None:
    marked = shop.paywall.paid(price, **options)(_copy())
    shop.open(Starlette(routes=[Route("/goods", marked, methods=["GET", "POST"])]))


def _copy() -> Any:
    async def handler(request: Request) -> Response:
        return await goods(request)

    return handler


async def show(shop: Shop, header: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
    return await shop.ask("POST", "/goods", {"PAYMENT-SIGNATURE": header, **(headers or {})}, **options)


def by_size(call: Call) -> str:
    return "$1" if call.headers.get("x-size") == "big" else "$0.01"


async def test_I10_a_payment_is_bound_to_the_headers_that_its_price_reads(shop: Shop) -> None:
    routes(shop, by_size, headers=["X-Size"], needs_body=False)
    small = await shop.payment("POST", "/goods", headers=[("x-size", "small")])
    assert small.entry["amount"] == "10000"
    for headers in ({"x-size": "big"}, {}, {"x-size": ""}):
        answer = await show(shop, small.v2(), headers)
        assert (answer.status, answer.reason) == (402, "quote_mismatch")
    twice = await shop.ask("POST", "/goods", [("x-size", "small"), ("x-size", "big")])
    assert (twice.status, twice.reason) == (400, "not_priceable")
    assert (await show(shop, small.v2(), {"x-size": "small", "x-other": "1"})).status == 200
    assert (await show(shop, small.v2(), {"x-size": "big"})).status == 403
    assert (await show(shop, small.v2(), {"x-size": "small", "x-other": "2"})).header("payment-replayed") == "true"


async def test_I10_also_when_its_handler_failed_first(shop: Shop) -> None:
    failing = [True]

    async def handler(request: Request) -> Response:
        if failing:
            failing.clear()
            raise RuntimeError
        return PlainTextResponse(request.headers["x-size"])

    shop.open(
        Starlette(routes=[Route("/goods", shop.paywall.paid(by_size, headers=["x-size"])(handler), methods=["POST"])])
    )
    payment = await shop.payment("POST", "/goods", headers=[("x-size", "small")])
    assert (await show(shop, payment.v2(), {"x-size": "small"})).status == 500
    assert (await show(shop, payment.v2(), {"x-size": "big"})).status == 403
    assert (await show(shop, payment.v2(), {"x-size": "small"})).body == b"small"


def test_headers_are_a_list_of_names(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="list of names"):
        shop.paywall.paid("$1", headers="x-size")(_copy())


def test_an_option_that_does_not_exist_is_an_error(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="colour"):
        shop.paywall.paid("$1", colour="red")(_copy())
    with pytest.raises(ConfigError, match="no price"):
        shop.open(Starlette(), {"/x": {"settle": "after"}})


@pytest.mark.parametrize("kind", ["marked", "rule", "mounted", "plain"])
async def test_a_price_sees_the_parameters_of_the_path(shop: Shop, kind: str) -> None:
    def price(call: Call) -> Usd:
        return usd("$0.01") * int(call.path_params["Size"])

    handler = _copy()
    prices = {"GET /i/{Size}/{rest:path}": {"price": price, "needs_body": False}}
    if kind == "plain":

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("plain")(scope, receive, send)

        shop.open(app, prices)
    elif kind == "rule":
        shop.open(Starlette(routes=[Route("/i/{Size:int}/{rest:path}", handler)]), prices)
    else:
        marked = shop.paywall.paid(price, needs_body=False)(handler)
        inner = [Route("/{Size:int}/{rest:path}", marked)]
        mounted = Mount("/i", routes=inner) if kind == "mounted" else Route("/i/{Size:int}/{rest:path}", marked)
        shop.open(Starlette(routes=[mounted]))
    assert (await shop.ask("GET", "/i/3/a/b")).entry["amount"] == "30000"
    assert (await shop.buy("GET", "/i/3/a/b")).status == 200
    if kind == "plain":
        assert (await shop.ask("GET", "/I/3/a/b")).status == 400  # another spelling: no parameters, no price
        assert (await shop.ask("GET", "/root/i/3/a", root_path="/root")).entry["amount"] == "30000"


@pytest.mark.parametrize("body", [b'{"n":3}', [b'{"n', b'":', b"3}"], [b"", b'{"n":3}', b""]])
async def test_the_body_reaches_the_app_unchanged(shop: Shop, body: Any) -> None:
    routes(shop, lambda call: call.json["n"] * usd("$0.01"))
    answer = await shop.buy("POST", "/goods", body=body)
    assert (answer.status, answer.body, answer.receipt.amount) == (200, b'{"n":3}', 30_000)


async def test_a_body_that_no_price_reads_is_not_buffered(shop: Shop) -> None:
    routes(shop, "$0.01", body_limit=3)
    answer = await shop.buy("POST", "/goods", body=[b"abc"] * 3)
    assert answer.body == b"abcabcabc"


@pytest.mark.parametrize("shown", [False, True])
async def test_a_price_that_fails_is_500_and_no_secret_and_nothing_is_settled(shop: Shop, shown: bool) -> None:
    broken: list[bool] = []

    def price(call: Call) -> str:
        if broken:
            raise RuntimeError("a secret")
        return "$0.01"

    routes(shop, price)
    payment = await shop.payment("POST", "/goods")
    broken.append(True)
    answer = await shop.ask("POST", "/goods", {"PAYMENT-SIGNATURE": payment.v1()} if shown else {})
    assert (answer.status, answer.json()["title"]) == (500, "internal-error")
    assert b"secret" not in answer.body
    assert answer.all("payment-outcome") == []
    assert shop.rail.settled == 0
    broken.clear()
    assert (await show(shop, payment.v1())).status == 200


async def test_a_price_that_changes_leaves_a_quote_good_and_a_spent_payment_spent(shop: Shop) -> None:
    prices = ["$0.01"]
    routes(shop, lambda call: prices[0])
    one, two = await shop.payment("POST", "/goods"), await shop.payment("POST", "/goods")
    assert (await show(shop, one.v2())).status == 200
    prices[0] = "$5"
    assert (await show(shop, one.v2())).header("payment-replayed") == "true"
    assert (await show(shop, two.v2())).status == 200
    three = pay((await shop.ask("POST", "/goods")).entry, value=10_000)
    assert (await show(shop, three.v1())).entry["amount"] == "5000000"


async def test_a_failing_price_never_hides_a_payment_that_is_spent(shop: Shop) -> None:
    def price(call: Call) -> str:
        if broken:
            raise KeyError("gone")
        return "$0.01"

    broken: list[bool] = []
    routes(shop, price)
    payment = await shop.payment("POST", "/goods")
    assert (await show(shop, payment.v2())).status == 200
    broken.append(True)
    assert (await show(shop, payment.v2())).header("payment-replayed") == "true"
    assert (await show(shop, payment.katana())).status == 403


async def test_E09_a_price_out_of_range_is_refused_and_a_tiny_one_rounded_up(shop: Shop) -> None:
    routes(shop, lambda call: call.json * usd("$0.0000001"))
    assert (await shop.ask("POST", "/goods", body=b"1")).entry["amount"] == "1"
    assert (await shop.ask("POST", "/goods", body=b"92233720368547758070")).entry["amount"] == str(2**63 - 1)
    answer = await shop.ask("POST", "/goods", body=b"92233720368547758071")
    assert (answer.status, answer.reason) == (400, "not_priceable")


async def test_a_surcharge_is_added_and_the_last_windows_stays_good() -> None:
    async with opened(rail=OfflineRail(surcharges=(500,))) as shop:
        routes(shop, "$0.01")
        before = await shop.payment("POST", "/goods")
        assert before.entry["amount"] == "10500"
        extra = before.entry["extra"]
        assert (extra["subtotalUsd"], extra["estimatedGasUsd"], extra["totalUsd"]) == (
            "0.010000",
            "0.000500",
            "0.010500",
        )
        shop.rail.window = (900, 500)
        assert (await shop.ask("POST", "/goods")).entry["amount"] == "10900"
        assert (await show(shop, before.katana())).status == 200
        quoted = pay(before.entry)
        shop.rail.window = (1200, 900)
        assert (await show(shop, quoted.v2())).status == 200
        late = pay(before.entry)
        assert (await show(shop, late.katana())).reason == "invalid_payment_requirements"
