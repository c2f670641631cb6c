"""Prices for images, seconds and requests, and by two functions of the seller's own."""

from __future__ import annotations

import json
import logging
from decimal import Decimal
from typing import Any

import pytest

from x402kit import Call, Usd, usd
from x402kit.errors import BadRequest, ConfigError
from x402kit.pricing import (
    Delivered,
    End,
    Metered,
    PerImage,
    PerRequest,
    PerSecond,
    Price,
    Quote,
    Usage,
    charge,
    price_of,
)


def call(body: Any) -> Call:
    return Call("POST", "/x", b"", [], {}, json.dumps(body).encode())


async def ceiling(price: Price, body: Any) -> str:
    assert price_of(price) is price
    return str((await price.quote(call(body))).ceiling)


async def refusal(price: Price, body: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        await price.quote(call(body))
    return caught.value.detail


def cost(quote: Quote, usage: Usage | None, end: End = End.COMPLETE) -> str:
    return str(charge(end, usage, Delivered(), quote))


IMAGES = PerImage(sizes={"512x512": "$0.01", "1024x1024": usd("$0.04")}, default="512x512")


async def test_an_image_by_its_size() -> None:
    assert await ceiling(IMAGES, {"size": "1024x1024", "n": 3}) == "$0.12"
    assert await ceiling(IMAGES, {"n": 3}) == "$0.03"
    assert await ceiling(IMAGES, {"size": None, "n": None}) == "$0.01"


@pytest.mark.parametrize("n", [0, -1, 11, 1.0, "2", True, [1]])
async def test_a_count_that_is_none_is_refused(n: Any) -> None:
    assert await refusal(IMAGES, {"n": n}) == "n must be a whole number from 1 to 10"


@pytest.mark.parametrize("size", ["1x1", "", 512, ["512x512"], {"512x512": 1}])
async def test_a_size_without_a_price_is_refused(size: Any) -> None:
    assert await refusal(IMAGES, {"size": size}) == "size must be one of 512x512, 1024x1024"


@pytest.mark.parametrize("body", [{"Size": "b"}, {"size": "a", "SIZE": "b"}, {"N": 9}])
async def test_A12_a_size_or_count_in_other_letters_is_no_way_around_its_price(body: dict[str, Any]) -> None:
    price = PerImage(sizes={"a": "$0.01", "b": "$1"}, default="a")
    assert "spelling" in await refusal(price, body)
    assert "spelling" in await refusal(PerSecond(rate="$1", max_seconds=60, default=1), {"Seconds": 60})


async def test_without_a_default_the_body_names_the_size() -> None:
    assert "size must be one of" in await refusal(PerImage(sizes={"1x1": "$1"}), {})


async def test_quality_decides_too() -> None:
    price = PerImage(sizes={"1x1/hd": "$2", "1x1/standard": "$1"}, by=("size", "quality"), default="1x1/standard")
    assert await ceiling(price, {"quality": "hd"}) == "$2"
    assert await ceiling(price, {"size": "1x1"}) == "$1"
    assert "size/quality" in await refusal(price, {"size": "1x1/hd", "quality": ""})


async def test_images_cost_the_ceiling_unless_the_app_says_how_many_came() -> None:
    quote = await IMAGES.quote(call({"n": 4}))
    assert cost(quote, None) == "$0.04"
    assert cost(quote, Usage(input=50, output=4000)) == "$0.04"
    assert cost(quote, Usage.of({"images": 2})) == "$0.02"
    assert cost(quote, Usage.of({"images": 0})) == "$0"
    assert cost(quote, Usage.of({"images": 5})) == "$0.05"
    assert cost(quote, None, End.FAILED_MIDWAY) == "$0"
    assert cost(quote, None, End.LEFT_MIDWAY) == "$0.04"
    assert cost(await PerImage(sizes={"a": "$1"}, default="a", missing="nothing").quote(call({})), None) == "$0"


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": {}},
        {"sizes": {"a": "$0"}},
        {"sizes": {"a": "1"}},
        {"sizes": {"a": "$1"}, "default": "b"},
        {"sizes": {"a": "$1"}, "missing": "free"},
        {"sizes": {"a": "$1"}, "max_count": 0},
        {"sizes": {"a": "$1"}, "by": "size"},
        {"sizes": {"a": "$1"}, "by": ("size", "quality")},
    ],
)
def test_wrong_images_are_refused_at_start(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        PerImage(**wrong)


FILM = PerSecond(rate="$0.10", max_seconds=60, default=5)


@pytest.mark.parametrize(
    ("seconds", "price"),
    [(1, "$0.1"), (60, "$6"), (2.5, "$0.25"), (0.1, "$0.01"), ("8", "$0.8"), ("2.25", "$0.225"), (None, "$0.5")],
)
async def test_a_second_has_its_price(seconds: Any, price: str) -> None:
    assert await ceiling(FILM, {"seconds": seconds}) == price
    assert await ceiling(PerSecond(rate="$0.1", max_seconds=60, field="duration"), {"duration": seconds or 5}) == price


async def test_a_part_of_a_millisecond_is_a_whole_one() -> None:
    assert await ceiling(PerSecond(rate="$1", max_seconds=1), {"seconds": 1e-05}) == "$0.001"


async def test_without_a_default_the_most_is_priced() -> None:
    assert await ceiling(PerSecond(rate="$0.10", max_seconds=60), {}) == "$6"


@pytest.mark.parametrize(
    "seconds", [0, -1, 61, 60.001, 10**40, 1e300, "1e1", "61", "1_0", " 5", "٥", "", "2.2222", True, [], {}]
)
async def test_seconds_that_are_none_are_refused(seconds: Any) -> None:
    assert await refusal(FILM, {"seconds": seconds}) == "seconds must be a number up to 60"


async def test_seconds_cost_the_ceiling_unless_they_are_stated() -> None:
    quote = await FILM.quote(call({"seconds": 8}))
    assert quote.description == "8 s"
    assert cost(quote, None) == "$0.8"
    assert cost(quote, Usage(5, 5)) == "$0.8"
    assert cost(quote, Usage.of({"seconds": "4.5"})) == "$0.45"
    assert cost(quote, Usage.of({"type": "duration", "seconds": 3})) == "$0.3"


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": "$0", "max_seconds": 5},
        {"rate": "$1", "max_seconds": 0},
        {"rate": "$1", "max_seconds": 5, "default": 6},
        {"rate": "$1", "max_seconds": 5, "default": 0},
        {"rate": "$1", "max_seconds": 5.5},
        {"rate": "$1", "max_seconds": 5, "missing": "free"},
        {"rate": 1, "max_seconds": 5},
        {"rate": usd("$0.000000000000000001") * Decimal("0.00001"), "max_seconds": 5},
    ],
)
def test_wrong_seconds_are_refused_at_start(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        PerSecond(**wrong)


async def test_a_request_has_one_price() -> None:
    quote = await PerRequest("$0.01").quote(call({}))
    assert quote == Quote(usd("$0.01"))
    assert quote.meter is None
    with pytest.raises(ConfigError):
        PerRequest("$0")


# --- two functions


def by_pages(call: Call) -> Usd:
    made: Usd = call.json["pages"] * usd("$1")
    return made


def cost_of_pages(call: Call, usage: Usage) -> Usd:
    return usage.extra["pages"] * usd("$0.5")


async def test_a_price_by_two_functions() -> None:
    quote = await Metered(quote=by_pages, cost=cost_of_pages).quote(call({"pages": 4}))
    assert str(quote.ceiling) == "$4"
    assert cost(quote, Usage.of({"pages": 3})) == "$1.5"
    assert cost(quote, None) == "$4"
    assert cost(quote, None, End.LEFT_MIDWAY) == "$4"
    assert cost(quote, None, End.STALLED) == "$0"
    assert await refusal(Metered(quote=by_pages, cost=cost_of_pages), {}) == "KeyError"


async def test_both_functions_may_give_text_and_the_first_may_wait() -> None:
    async def most(call: Call) -> str:
        return "$4"

    quote = await Metered(quote=most, cost=lambda call, usage: "$1.25", missing="nothing").quote(call({}))
    assert cost(quote, Usage(1)) == "$1.25"
    assert cost(quote, None) == "$0"


@pytest.mark.parametrize("made", [5, None, "5", 0.5])
async def test_a_cost_function_that_fails_costs_the_ceiling_and_is_logged(
    made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    quote = await Metered(quote=by_pages, cost=lambda call, usage: made).quote(call({"pages": 2}))
    with caplog.at_level(logging.ERROR):
        assert cost(quote, Usage(1)) == "$2"
    assert "could not be worked out" in caplog.text


async def test_an_estimate_of_the_sellers_own(caplog: pytest.LogCaptureFixture) -> None:
    def pages(call: Call, delivered: Delivered) -> Usage:
        return Usage.of({"pages": call.json["delivered"]})

    price = Metered(quote=by_pages, cost=cost_of_pages, estimate=pages)
    assert price.missing == "estimate"
    assert cost(await price.quote(call({"pages": 4, "delivered": 1})), None, End.STALLED) == "$0.5"
    with caplog.at_level(logging.ERROR):
        assert cost(await price.quote(call({"pages": 4})), None, End.STALLED) == "$0"
    assert "could not be estimated" in caplog.text


def test_an_estimate_needs_its_function() -> None:
    with pytest.raises(ConfigError):
        Metered(quote=by_pages, cost=cost_of_pages, missing="estimate")
    with pytest.raises(ConfigError):
        Metered(quote=by_pages, cost=cost_of_pages, missing="free")  # type: ignore[arg-type]
