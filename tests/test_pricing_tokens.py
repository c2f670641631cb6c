"""Prices by tokens: the ceiling holds for what can come, the cost is exact, and nothing drifts."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit import Call, usd
from x402kit.asgi.usage import EventReader
from x402kit.errors import BadRequest, ConfigError
from x402kit.pricing import Delivered, End, Quote, Tokens, Usage, charge
from x402kit.pricing.prompt import OUTPUT_NAMES
from x402kit.pricing.rates import dollars, fine, rate

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def call(body: Any) -> Call:
    return Call("POST", "/v1/chat/completions", b"", [], {}, json.dumps(body).encode())


async def quote(price: Tokens, body: Any) -> Quote:
    return await price.quote(call(body))


async def ceiling(price: Tokens, body: Any) -> str:
    return str((await quote(price, body)).ceiling)


async def refusal(price: Tokens, body: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        await price.quote(call(body))
    assert caught.value.money == "no"
    return caught.value.detail


# --- what may be written


@pytest.mark.parametrize(
    ("text", "dollars_a_token"),
    [
        ("$0.50/M", Fraction(1, 2 * 10**6)),
        ("$0.0005/K", Fraction(5, 10**7)),
        ("$0.000001/token", Fraction(1, 10**6)),
        ("$0.123456789012345678/M", Fraction(123456789012345678, 10**24)),
        ("$0/M", Fraction(0)),
    ],
)
def test_a_rate_is_exact(text: str, dollars_a_token: Fraction) -> None:
    assert Fraction(rate(text), 10**24) == dollars_a_token


@pytest.mark.parametrize(
    "text",
    ["0.50/M", "$0.50", "$.5/M", "$1/m", "$1/1M", "$1/M ", "$-1/M", "$1e3/M", "$٣/M", 0.5, 5, None, b"$1/M", "$1,0/M"],
)
def test_L06_what_is_no_rate_is_refused(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"a (rate|price) is written like"):
        rate(text)


def test_fine_amounts_are_exact_or_refused() -> None:
    assert dollars(fine("$12.000000000000000001")) == usd("$12.000000000000000001")
    assert str(dollars(fine("$0.0005"))) == "$0.0005"
    with pytest.raises(ConfigError):
        fine(usd("$0") - usd("$1"))
    with pytest.raises(ConfigError):
        fine(usd("$0.000000000000000001") * usd("$0.000000000000000001").value)


WRONG: list[dict[str, Any]] = [
    {},
    {"input": "$0/M"},
    {"input": 0.5},
    {"input": "$1/M", "max_output": -1},
    {"input": "$1/M", "max_output": 1.5},
    {"input": "$1/M", "max_output": 10, "default_output": 11},
    {"input": "$1/M", "missing": "free"},
    {"input": "$1/M", "bytes_per_token": 0},
    {"input": "$1/M", "per_part": {"image_url": -1}},
    {"input": "$1/M", "tiers": [(0, {})]},
    {"input": "$1/M", "tiers": [(5, {"input": "$2/M"}), (5, {"input": "$3/M"})]},
    {"input": "$1/M", "tiers": [(5, {"inputs": "$2/M"})]},
    {"input": "$1/M", "tiers": [(5, {"input": "$2"})]},
    {"input": "$1/M", "minimum": "1"},
    {"input": "$1/M", "step": 0.1},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_set_up_is_refused_at_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Tokens(**wrong)


# --- the ceiling


async def test_the_ceiling_is_the_bound_of_the_prompt_and_the_callers_cap() -> None:
    price = Tokens(input="$1/M", output="$10/M", max_output=1000, overhead=0)
    size = len(json.dumps({**CHAT, "max_tokens": 100}))
    assert Fraction((await quote(price, {**CHAT, "max_tokens": 100})).ceiling.value) == Fraction(size + 1000, 10**6)


@pytest.mark.parametrize(
    ("more", "most"),
    [
        ({}, 1000),
        ({"max_tokens": None}, 1000),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 8}, 8),
        ({"max_output_tokens": 9}, 9),
        ({"max_tokens": 7, "max_completion_tokens": 8}, 8),
        ({"max_tokens": 7, "n_predict": 1000}, 1000),  # llama.cpp's word, for which it counts more
        ({"max_tokens": 7, "n": 3}, 21),
        ({"max_tokens": 7, "n": None}, 7),
        ({"max_tokens": 7, "n": 2, "best_of": 5}, 35),
        ({"max_tokens": 7, "prompt": ["a", "b"], "n": 2}, 28),
        ({"max_tokens": 7, "prompt": [[1, 2], [3]]}, 14),
        ({"max_tokens": 7, "prompt": [1, 2, 3]}, 7),
    ],
)
async def test_the_callers_cap_for_every_answer(more: dict[str, Any], most: int) -> None:
    price = Tokens(output="$1/token", max_output=1000)
    assert await ceiling(price, {**CHAT, **more}) == f"${most}"


async def test_a_caller_without_a_cap_has_the_default_one() -> None:
    price = Tokens(output="$1/token", max_output=1000, default_output=50)
    assert await ceiling(price, CHAT) == "$50"
    assert await ceiling(price, {**CHAT, "max_tokens": 60}) == "$60"


@pytest.mark.parametrize("name", [*OUTPUT_NAMES, "n", "best_of"])
@pytest.mark.parametrize("value", [0, -1, 1001, 2**80, 1.0, "5", True, [], {}])
async def test_a_cap_that_is_none_is_refused(name: str, value: Any) -> None:
    detail = await refusal(Tokens(output="$1/token", max_output=1000), {**CHAT, name: value})
    assert detail.startswith(f"{name} must be a whole number from 1 to ")


async def test_an_embedding_has_no_output() -> None:
    price = Tokens(input="$1/token", max_output=0, prompt_tokens=lambda call: len(call.json["input"]))
    assert await ceiling(price, {"input": "abc"}) == "$3"
    assert "max_tokens" in await refusal(price, {"input": "abc", "max_tokens": 1})


@given(st.text(), st.booleans())
def test_every_byte_of_text_is_in_the_bound(text: str, escaped: bool) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=escaped)
    priced = Tokens(input="$1/token", max_output=0, overhead=0)
    try:
        data = body.encode()
    except UnicodeEncodeError:  # half a surrogate pair is no JSON text
        return
    with pytest.raises(StopIteration) as done:
        priced.quote(Call("POST", "/", b"", [], {}, data)).send(None)
    assert done.value.value.ceiling.value >= len(text.encode(errors="replace"))


NAMED: list[dict[str, Any]] = [
    {"input": "more", "previous_response_id": "resp_1"},
    {"input": "more", "conversation": "conv_1"},
    {"prompt": {"id": "pmpt_1"}},
    {"input": [{"type": "item_reference", "id": "msg_1"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": ["text"]}]}]},
    {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]},
    {"system": [{"type": "document", "source": {"type": "url", "url": "https://a/b"}}]},
    {"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image", "source": {}}]}]}]},
]


@pytest.mark.parametrize("body", NAMED)
async def test_what_the_body_only_names_has_no_price_unless_the_seller_bounds_it(body: dict[str, Any]) -> None:
    assert await refusal(Tokens(input="$1/M"), body)


@pytest.mark.parametrize("item", [{"type": "item_reference"}, {"type": None}, {}])
async def test_E04_an_earlier_answer_has_not_the_bound_of_an_image(item: dict[str, Any]) -> None:
    """It may be of any length; of a reference its type may be left out."""
    body = {"input": [{**item, "id": "msg_1"}], "max_output_tokens": 1}
    assert await refusal(Tokens(input="$1/M", per_part=1500), body)
    bounds = {"item_reference": 9000, "id": 9000}
    assert (await quote(Tokens(input="$1/token", per_part=bounds), body)).ceiling.value > 9000


async def test_an_image_costs_its_bound_and_its_bytes_are_not_text() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]}
    for per_part in (1500, {"image_url": 1500}):
        bound = (await quote(Tokens(input="$1/token", max_output=0, per_part=per_part), body)).ceiling.value
        assert 1500 < bound < 2000
    assert "image_url" in await refusal(Tokens(input="$1/M", per_part={"audio": 5}), body)


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 1, "MAX_TOKENS": 16_000},
        {"Max_Tokens": 16_000},
        {"max_to\u212aens": 16_000},
        {"N": 9},
        {"model": "small", "Model": "large"},
        {"Previous_Response_Id": "resp_1"},
        {"messages": [{"role": "user", "content": [{"type": "text", "Type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "a", "Content": [{"type": "image_url"}]}]},
    ],
)
async def test_A12_a_name_in_other_letters_is_no_way_around_its_price(body: dict[str, Any]) -> None:
    """Servers written in Go take them for the same, and the last one counts."""
    assert "spelling" in await refusal(Tokens(input="$1/M", per_part=1), {"messages": [], **body})
    assert (await quote(Tokens(input="$1/M"), {"messages": [], "topK": 3, "X": 1})).meter


@pytest.mark.parametrize("named", [{"type": "image"}, {"type": "image_url", "image_url": {"url": "https://a/b"}}])
async def test_E04_a_message_that_says_it_is_an_image_is_counted_as_text_too(named: dict[str, Any]) -> None:
    price = Tokens(input="$1/token", max_output=0, per_part=1500)
    text = {"messages": [{**named, "role": "user", "content": "word " * 1000}]}
    assert (await quote(price, text)).ceiling.value >= 5000
    images = [{"type": "image_url", "image_url": {"url": "https://a/b"}}] * 100
    assert (await quote(price, {"messages": [{**named, "role": "user", "content": images}]})).ceiling.value >= 150_000
    beside = {"messages": [{"role": "user", "content": [{**named, "text": "word " * 1000}]}]}
    assert (await quote(price, beside)).ceiling.value >= 5000


@pytest.mark.parametrize("part", [{}, {"type": None}, {"type": "image_url", "role": "user"}, {"role": "user"}])
async def test_E04_an_image_without_the_type_of_one_is_no_text(part: dict[str, Any]) -> None:
    """Some servers tell a part that states no type by its other names."""
    body = {"messages": [{"role": "user", "content": [{**part, "image_url": {"url": "https://a/b"}}]}]}
    assert "image_url" in await refusal(Tokens(input="$1/M"), body)


async def test_what_may_be_text_is_counted_whatever_its_bound() -> None:
    part = {"type": "document", "source": {"type": "text", "data": "word " * 1000}}
    price = Tokens(input="$1/token", max_output=0, per_part=10)
    assert (await quote(price, {"messages": [{"role": "user", "content": [part]}]})).ceiling.value > 5000


async def test_a_seller_counts_the_prompt_exactly() -> None:
    async def count(call: Call) -> int:
        return len(call.json["messages"])

    price = Tokens(input="$1/token", output="$1/token", max_output=10, prompt_tokens=count)
    quoted = await quote(price, CHAT)
    assert str(quoted.ceiling) == "$11"
    assert quoted.meter is not None
    assert quoted.meter.estimate(Delivered(0, 0)) == Usage(1)
    assert await refusal(price, {}) == "KeyError"
    with pytest.raises(ConfigError):
        await quote(Tokens(input="$1/M", prompt_tokens=lambda call: -1), CHAT)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"n":1,"n":2}', b"\xff"])
async def test_A12_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        await Tokens(input="$1/M").quote(Call("POST", "/", b"", [], {}, body))


async def test_minimum_reserve_and_step() -> None:
    price = Tokens(input="$1/M", minimum="$0.0005", reserve="$0.01", step="$0.0001", max_output=0)
    assert await ceiling(price, CHAT) == "$0.01"
    assert str(price.cost(Usage(1))) == "$0.0005"
    assert str(price.cost(Usage(501))) == "$0.0006"
    assert str(price.cost(Usage(20_000))) == "$0.02"


async def test_a_price_of_nothing_is_refused() -> None:
    assert await refusal(Tokens(output="$1/M", max_output=0), CHAT) == "the price is not above zero"


# --- the cost


def test_each_class_of_tokens_has_its_rate() -> None:
    price = Tokens(input="$1/token", output="$10/token", cached="$0.1/token", cache_write="$1.25/token")
    assert price.cost(Usage(input=3, output=2, cached=10, cache_write=4, reasoning=2)) == usd("$29")
    assert Tokens(input="$1/token").cost(Usage(input=3, cached=10, cache_write=4)) == usd("$17")


def test_H04_an_explicit_zero_costs_nothing() -> None:
    assert Tokens(input="$1/M", minimum="$1", step="$1").cost(Usage()) == usd("$0")


def test_a_tier_is_for_longer_prompts_cached_or_not() -> None:
    tiers = [(10, {"input": "$2/token", "output": "$5/token"}), (20, {"input": "$3/token"})]
    price = Tokens(input="$1/token", output="$4/token", cached="$0.5/token", tiers=tiers)
    assert price.cost(Usage(10, 1)) == usd("$14")
    assert price.cost(Usage(11, 1)) == usd("$27")
    assert price.cost(Usage(1, 1, cached=10)) == usd("$12")
    assert price.cost(Usage(21, 1)) == usd("$67")


RATES = st.integers(0, 10**7).map(lambda n: f"${n // 10**6}.{n % 10**6:06}/token")


@given(
    st.fixed_dictionaries({"input": RATES, "output": RATES}, optional={"cached": RATES, "cache_write": RATES}),
    st.lists(st.tuples(st.integers(1, 60), st.fixed_dictionaries({"input": RATES, "cached": RATES})), max_size=3),
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)),
    st.integers(0, 40),
)
def test_no_usage_inside_the_bounds_costs_more_than_the_ceiling(
    rates: dict[str, str], tiers: list[tuple[int, dict[str, str]]], prompt: tuple[int, int, int], output: int
) -> None:
    rising = sorted(dict(tiers).items())
    price = Tokens(**rates, tiers=rising, minimum="$0.001", max_output=40, prompt_tokens=lambda call: sum(prompt))  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as done:
        price.quote(call(CHAT)).send(None)
    quoted: Quote = done.value.value
    assert price.cost(Usage(prompt[0], output, prompt[1], prompt[2])) <= quoted.ceiling


async def test_H03_the_estimate_is_of_the_prompt_and_what_was_delivered() -> None:
    price = Tokens(input="$1/M", output="$1/M", max_output=100, overhead=50, bytes_per_token=4)
    size = len(json.dumps(CHAT))
    meter = (await quote(price, CHAT)).meter
    assert meter is not None
    assert meter.estimate(Delivered()) == Usage(input=-(-size // 4))
    assert meter.estimate(Delivered(bytes=9, events=2)) == Usage(input=-(-size // 4), output=3)
    assert meter.estimate(Delivered(bytes=9, events=9)) == Usage(input=-(-size // 4), output=9)
    assert meter.estimate(Delivered(bytes=10**9)) == Usage(input=-(-size // 4), output=100)
    assert meter.estimate(Delivered(8, 1, Usage(5, cached=3))) == Usage(5, 2, cached=3)


async def test_H03_a_start_that_states_nothing_of_the_prompt_does_not_make_it_free() -> None:
    """As of proxies that speak Anthropic's protocol for another's model, and count at the end."""
    reader = EventReader()
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 0, "output_tokens": 0}}}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}}
    for document in (start, text):
        reader.feed(b"data: " + json.dumps(document).encode() + b"\n\n")
    quoted = await quote(Tokens(input="$1/token", output="$1/token", max_output=100), CHAT)
    due = charge(End.LEFT_MIDWAY, reader.usage(), reader.delivered, quoted)
    assert str(due) == f"${-(-len(json.dumps(CHAT)) // 3) + 2}"


# --- E08


def test_E08_a_million_captures_of_fractional_prices_do_not_drift() -> None:
    """Each capture is the exact cost rounded up to an atomic unit; the sum is that of the model, to the unit."""
    rng = random.Random(8)
    for _ in range(50):
        parts = [rng.randrange(10 ** rng.randint(1, 19)) for _ in range(3)]
        texts = [f"${n // 10**18}.{n % 10**18:018}/M" for n in parts]
        step = rng.choice([0, 0, 3, 125])
        text = f"$0.{step:06}" if step else None
        price = Tokens(input=texts[0] if parts[0] else "$1/M", output=texts[1], cached=texts[2], step=text)
        read, wrote, cached = (parts[0] or 10**18, *parts[1:])
        for i in range(20_000):
            counts = i * 524_309 % 2**20, i * 9_973 % 2**14, i * 131_101 % 2**18
            exact = counts[0] * read + counts[1] * wrote + counts[2] * cached  # in 10**-24 dollars
            micro = -(-exact // 10**18)
            assert price.cost(Usage(*counts)).atomic(6) == (-(-micro // step) * step if step else micro)


@given(st.lists(st.tuples(RATES, st.integers(0, 2**53)), min_size=1, max_size=20))
def test_E08_a_capture_is_never_below_its_price_nor_a_unit_above(sales: list[tuple[str, int]]) -> None:
    total, exact = 0, Fraction(0)
    for text, count in sales:
        total += Tokens(input=text, minimum="$0.000000000000000001").cost(Usage(count)).atomic(6)
        exact += Fraction(text[1:-6]) * count * 10**6
    assert exact <= total <= exact + len(sales)


# --- from the request to the charge


async def test_a_call_from_its_quote_to_its_charge() -> None:
    body = {**CHAT, "max_tokens": 100}
    quoted = await quote(Tokens(input="$1/M", output="$10/M", minimum="$0.00005", overhead=0), body)
    prompt = len(json.dumps(body))
    assert str(charge(End.COMPLETE, Usage(10, 20), Delivered(), quoted)) == "$0.00021"
    assert str(charge(End.COMPLETE, Usage(1), Delivered(), quoted)) == "$0.00005"
    assert str(charge(End.COMPLETE, Usage(), Delivered(), quoted)) == "$0"
    estimated = Usage(-(-prompt // 3), 4)
    for end in (End.COMPLETE, End.LEFT_MIDWAY, End.STALLED, End.FAILED_MIDWAY, End.CUT):
        due = charge(end, None, Delivered(12, 3), quoted)
        assert due.atomic(18) == estimated.input * 10**12 + 4 * 10**13
    for end in (End.LEFT_BEFORE, End.FAILED_BEFORE, End.UNCHARGED):
        assert str(charge(end, None, Delivered(), quoted)) == "$0"
    assert charge(End.LEFT_MIDWAY, None, Delivered(10**9), quoted) <= quoted.ceiling
    whole = await quote(Tokens(input="$1/M", missing="ceiling"), body)
    assert charge(End.COMPLETE, None, Delivered(12, 3), whole) == whole.ceiling


async def test_an_image_may_stand_anywhere_in_its_part() -> None:
    sources = [{"é": ["short", "A" * 5000]}, {"type": "base64", "data": "A" * 5000}]
    parts = [{"type": "image", "source": source} for source in sources]
    price = Tokens(input="$1/token", max_output=0, per_part=10)
    assert (await quote(price, {"messages": [{"role": "user", "content": parts}]})).ceiling.value < 1000
