"""The one strict reader of base64 and JSON: everything is read, or refused with ``ValueError``, in bounded time."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit.model import HEADER_MAX, NESTING_MAX
from x402kit.protocols.encoding import b64decode, b64encode, b64url, b64url_decode, dump_json, parse_json, parse_object
from x402kit.protocols.x402 import decode_header

SCALARS = st.none() | st.booleans() | st.integers(-(10**60), 10**60) | st.text()
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


@given(st.binary(max_size=200))
def test_A12_base64_is_read_in_both_alphabets_padded_or_not(data: bytes) -> None:
    for spelled in (base64.b64encode(data), base64.urlsafe_b64encode(data)):
        text = spelled.decode()
        assert b64decode(text) == data
        assert b64decode(text.rstrip("=")) == data
    assert b64encode(data) == base64.b64encode(data).decode()
    assert b64url_decode(b64url(data)) == data


@pytest.mark.parametrize(
    "text",
    [
        "YQ=",  # half a padding
        "YQ===",
        "Y",
        "YWJjZ",
        "YR==",  # trailing bits
        "YR",
        "YWJj\n",
        "YW Jj",
        "YW*Jj",
        "YWJj=YWJj",
        "YQ==YQ==",
        "-_+/",  # two alphabets
        "YWJj\u0101",
        "YWJj\ud800",
        "====",
        "=",
    ],
)
def test_A12_base64_that_is_not_canonical_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|padding|ASCII"):
        b64decode(text)


def test_our_own_tokens_have_one_spelling() -> None:
    token = b64url(b"\xff\xef\xfe")
    for spelled in (token + "=", "_+==", "//79", "a"):
        with pytest.raises(ValueError, match="base64"):
            b64url_decode(spelled)


@given(st.text(max_size=60))
def test_A12_base64_has_one_reading(text: str) -> None:
    try:
        data = b64decode(text)
    except ValueError:
        return
    assert text.rstrip("=").replace("-", "+").replace("_", "/") == base64.b64encode(data).decode().rstrip("=")


@given(DOCUMENTS)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) == value


@given(DOCUMENTS)
def test_A14_what_we_write_is_ascii_on_one_line(value: Any) -> None:
    made = dump_json(value)
    assert made.isascii()
    assert not {10, 13} & set(made)
    assert json.loads(made) == value


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":1,"\\u0061":2}',
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"1e3",
        b"[1.0]",
        b"[-0]",
        b"[1" + b"0" * 78 + b"]",
        b"[" + b"9" * 5000 + b"]",
        b'"\xff"',
        b'"\xc0\xaf"',
        b'"a',
        b"{} {}",
        b"",
        b"\xef\xbb\xbf{}",
        b"[1,]",
        b"'a'",
        b'"\t"',
        b"\x00",
        json.dumps({"a": 1}).encode("utf-16"),
    ],
)
def test_A12_ambiguous_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        parse_json(text)


@pytest.mark.parametrize("opener", [b"[", b'{"a":', b'[{"a":'])
def test_A12_nesting_is_bounded_before_it_is_read(opener: bytes) -> None:
    started = time.thread_time()
    with pytest.raises(ValueError, match=r"nested too deeply|too many arrays"):
        parse_json(opener * 40_000)
    assert time.thread_time() - started < 0.25


@pytest.mark.parametrize(("item", "most"), [(b"{}", 16_383), (b"[]", 16_383), (b"[{}]", 8191)])
def test_K03_arrays_and_objects_are_counted_before_they_are_read(item: bytes, most: int) -> None:
    assert len(parse_json(b"[" + b",".join([item] * most) + b"]")) == most
    started = time.thread_time()
    with pytest.raises(ValueError, match="too many arrays"):
        parse_json(b"[" + b",".join([item] * (2**20 // (len(item) + 1))) + b"]", floats=True)
    assert time.thread_time() - started < 0.25


def test_A12_nesting_up_to_the_limit_is_read() -> None:
    deepest = b"[" * NESTING_MAX + b"]" * NESTING_MAX
    assert parse_json(deepest)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b"[" + deepest + b"]")
    many = b"[" + b",".join([b'{"[[":"\\"[[{{"}'] * 100) + b"]"
    assert len(parse_json(many)) == 100


def test_floats_are_read_only_where_no_money_is_read_from_them() -> None:
    assert parse_json(b"[1.5,1e3]", floats=True) == [1.5, 1000.0]
    with pytest.raises(ValueError, match="NaN"):
        parse_json(b"[NaN]", floats=True)


def test_an_object_is_asked_for() -> None:
    assert parse_object(b'{"a":1}') == {"a": 1}
    for text in (b"[]", b"1", b'"a"', b"null"):
        with pytest.raises(ValueError, match="not a JSON object"):
            parse_object(text)


@given(st.binary(max_size=400))
def test_A12_any_header_is_an_object_or_a_value_error(data: bytes) -> None:
    for text in (data.decode("latin-1"), b64encode(data)):
        try:
            value = decode_header(text)
        except ValueError:
            continue
        assert isinstance(value, dict)


HOSTILE = [
    b"[" * 12_000,
    b'{"a":' * 2_000,
    b'{"a":' + b"1" * 12_000 + b"}",
    b'{"a":"' + b"\\u0000" * 2_000 + b'"}',
    b'"' + b"\\" * 12_001,
    b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(1_000)) + b"}",
    b"\xf0\x9f\x98\x80" * 3_000,
    b" " * 12_000,
]


@pytest.mark.parametrize("data", HOSTILE)
def test_A12_the_worst_header_is_answered_within_5_ms(data: bytes) -> None:
    text = b64encode(data)
    assert len(text) <= HEADER_MAX

    def seconds() -> float:
        started = time.thread_time()
        with contextlib.suppress(ValueError):
            decode_header(text)
        return time.thread_time() - started

    assert min(seconds() for _ in range(5)) < 0.005


def test_K01_a_header_over_the_limit_is_not_decoded() -> None:
    with pytest.raises(ValueError, match="too large"):
        decode_header("A" * (HEADER_MAX + 1))
