"""The usage that answers state, in the words of three protocols; and what an app reports."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit.pricing import Usage, usage_of
from x402kit.pricing.usage import COUNT_MAX


def read(**stated: Any) -> Usage | None:
    return usage_of({"id": "1", "usage": stated})


# --- what providers state


def test_openai_counts_cached_tokens_as_part_of_the_prompt() -> None:
    stated = read(
        prompt_tokens=100,
        completion_tokens=50,
        total_tokens=150,
        prompt_tokens_details={"cached_tokens": 30, "audio_tokens": 0},
        completion_tokens_details={"reasoning_tokens": 20, "accepted_prediction_tokens": 0},
    )
    assert stated == Usage(input=70, output=50, cached=30, reasoning=20)
    assert stated is not None
    assert stated.prompt == 100


def test_openai_responses_use_other_words() -> None:
    details = {"input_tokens_details": {"cached_tokens": 30}, "output_tokens_details": {"reasoning_tokens": 20}}
    assert read(input_tokens=100, output_tokens=50, **details) == Usage(70, 50, 30, reasoning=20)


def test_anthropic_counts_cached_tokens_beside_the_input() -> None:
    stated = read(input_tokens=70, output_tokens=50, cache_read_input_tokens=30, cache_creation_input_tokens=5)
    assert stated == Usage(input=70, output=50, cached=30, cache_write=5)
    assert stated is not None
    assert stated.prompt == 105


def test_a_cache_that_was_written_is_read_where_it_is_stated() -> None:
    details = {"cached_tokens": 30, "cache_write_tokens": 10}
    assert read(prompt_tokens=100, completion_tokens=1, prompt_tokens_details=details) == Usage(60, 1, 30, 10)


def test_H10_reasoning_beside_the_answer_is_output_too() -> None:
    """Some count it so; the total tells."""
    details = {"reasoning_tokens": 300}
    beside = read(prompt_tokens=10, completion_tokens=5, total_tokens=315, completion_tokens_details=details)
    assert beside == Usage(10, 305, reasoning=300)
    within = read(prompt_tokens=10, completion_tokens=305, total_tokens=315, completion_tokens_details=details)
    assert within == Usage(10, 305, reasoning=300)


def test_embeddings_and_transcriptions() -> None:
    assert read(prompt_tokens=8, total_tokens=8) == Usage(8)
    assert read(type="duration", seconds=9) == Usage(milliseconds=9000)
    assert not Usage(milliseconds=9000).has_tokens


def test_H04_an_explicit_zero_is_a_usage() -> None:
    assert read(prompt_tokens=0, completion_tokens=0) == Usage()
    assert Usage().has_tokens


def test_nulls_are_not_stated() -> None:
    details = {"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}}
    assert read(prompt_tokens=8, completion_tokens=2, **details) == Usage(8, 2)
    assert read(prompt_tokens=None, completion_tokens=None) is None
    assert read(input_tokens=5, output_tokens=1, cache_read_input_tokens=None) == Usage(5, 1)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "usage",
        {},
        {"usage": None},
        {"usage": []},
        {"usage": {}},
        {"usage": {"total_tokens": 5}},
        {"usage": {"type": "duration"}},
        {"choices": [{"message": {"content": "{}", "usage": {"prompt_tokens": 1}}}]},
        {"response": {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}},
    ],
)
def test_H05_nothing_stated_is_none(document: Any) -> None:
    assert usage_of(document) is None


@pytest.mark.parametrize("count", [-1, COUNT_MAX + 1, 10**70, 1.0, 1.5, True, "5", [5], {"n": 5}])
def test_H05_an_absurd_count_is_none(count: Any) -> None:
    assert read(prompt_tokens=count, completion_tokens=5) is None
    assert read(prompt_tokens=5, completion_tokens=count) is None
    assert read(input_tokens=5, output_tokens=5, cache_read_input_tokens=count) is None
    assert read(input_tokens=5, output_tokens=5, output_tokens_details={"reasoning_tokens": count}) is None


@pytest.mark.parametrize("seconds", [-1, -0.5, COUNT_MAX + 1, 10**70, float("inf"), True, "5", [5], {"n": 5}])
def test_H05_an_absurd_duration_is_none(seconds: Any) -> None:
    assert read(type="duration", seconds=seconds) is None


@pytest.mark.parametrize(("seconds", "milliseconds"), [(7.3, 7300), (0.0001, 1), (9.0, 9000), (0, 0), (1e-9, 1)])
def test_a_duration_is_any_number_and_a_part_of_a_millisecond_a_whole_one(seconds: Any, milliseconds: int) -> None:
    assert read(type="duration", seconds=seconds) == Usage(milliseconds=milliseconds)


def test_H05_more_cached_than_read_is_none() -> None:
    assert read(prompt_tokens=5, completion_tokens=5, prompt_tokens_details={"cached_tokens": 6}) is None


COUNTS = ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens", "cached_tokens"]
OTHERS = ["prompt_tokens_details", "completion_tokens_details", "cache_read_input_tokens", "type", "seconds"]
NAMES = st.sampled_from([*COUNTS, *OTHERS])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES | st.text(), inner),
    max_leaves=4,
)


# In a fresh clone the first text of all takes a second: the tables of Unicode are made.
@given(st.dictionaries(NAMES, JSON))
def test_H05_whatever_is_stated_gives_a_sound_usage_or_none(stated: dict[str, Any]) -> None:
    usage = usage_of({"usage": stated})
    assert usage is None or not usage.absurd


# --- what an app reports


def test_an_app_reports_in_our_words_or_the_providers() -> None:
    assert Usage.of({"input": 5, "output": 2, "cached": 1}) == Usage(5, 2, 1)
    assert Usage.of({"prompt_tokens": 5, "completion_tokens": 2}) == Usage(5, 2)
    assert Usage.of({"images": 2, "input": None}) == Usage(images=2)
    assert Usage.of({"milliseconds": 1500}) == Usage.of({"seconds": Decimal("1.5")}) == Usage.of({"seconds": "1.5"})
    assert Usage.of({"seconds": "0.0001"}).milliseconds == 1
    assert Usage.of({"seconds": 3}).milliseconds == 3000


def test_an_apps_own_units_are_kept_apart() -> None:
    usage = Usage.of({"pages": 3, "area": Decimal("2.5")})
    assert dict(usage.extra) == {"pages": 3, "area": Decimal("2.5")}
    assert not usage.has_tokens


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": -1},
        {"input": 1.5},
        {"input": "5"},
        {"images": True},
        {"pages": 0.5},
        {"pages": None},
        {"pages": Decimal("Infinity")},
        {"seconds": 1.5},
        {"seconds": "one"},
        {"seconds": "NaN"},
        {"seconds": -1},
        {"seconds": True},
        {"prompt_tokens": -1},
        {"prompt_tokens": None, "completion_tokens": None},
    ],
)
def test_H05_what_is_no_count_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="int"):
        Usage.of(wrong)
