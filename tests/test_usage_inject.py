"""The charge in an answer's own ``usage``, and the request for a usage: what was there stays, byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit.asgi.inject import Holding, ask_for_usage, inject

from .test_usage_stream import CHAT, DONE, OPENAI, anthropic, chunk, event, last, responses

CHARGED = {"charged": "0.0123", "currency": "USD"}


@pytest.mark.parametrize(
    ("body", "injected"),
    [
        (b'{"a":1.10,"usage":{"x": 1 }}', b'{"a":1.10,"usage":{"x": 1 ,"x402":{"n":1}}}'),
        (b' {\n "usage" : {} , "b":[1, 2]}\n', b' {\n "usage" : {"x402":{"n":1}} , "b":[1, 2]}\n'),
        (b'{"a":"}"}', b'{"a":"}","usage":{"x402":{"n":1}}}'),
        (b'{"usage":null,"a":1}', b'{"usage":{"x402":{"n":1}},"a":1}'),
        (b'{"usage":{"x402":{"n":5},"y":2}}', b'{"usage":{"x402":{"n":1},"y":2}}'),
        (b'{"us\\u0061ge":{}}', b'{"us\\u0061ge":{"x402":{"n":1}}}'),
        ('{"é":"{\\"usage\\":{}}"}'.encode(), '{"é":"{\\"usage\\":{}}","usage":{"x402":{"n":1}}}'.encode()),
        (b"[]", b"[]"),
        (b"{", b"{"),
        (b"\xff", b"\xff"),
        (b'{"a":1,"a":2}', b'{"a":1,"a":2}'),
    ],
)
def test_a_json_answer_says_what_was_charged(body: bytes, injected: bytes) -> None:
    assert inject(body, "x402", {"n": 1}) == injected


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("usage"), inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(st.text() | st.just("usage"), JSON, min_size=1), st.sampled_from([None, 1]), st.booleans())
def test_whatever_the_answer_holds_only_the_charge_is_new(document: Any, indent: Any, ascii_only: bool) -> None:
    try:
        body = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return
    made = json.loads(inject(body, "x402", CHARGED))
    usage = document.get("usage")
    assert made.pop("usage") == {**(usage if isinstance(usage, dict) else {}), "x402": CHARGED}
    assert made == {name: value for name, value in document.items() if name != "usage"}


def test_H05_log_probabilities_do_not_keep_the_charge_out() -> None:
    body = b'{"logprobs":[%b-0],"usage":{}}' % (b"[1]," * 20_000)
    assert inject(body, "x402", {"n": 1}) == body[:-2] + b'"x402":{"n":1}}}'


def test_H05_no_depth_of_an_answer_keeps_it_from_its_caller() -> None:
    for depth in (*range(100, 3000, 97), 300_000):
        body = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
        assert inject(body, "x402", {"n": 1}) in (body, body[:-1] + b',"usage":{"x402":{"n":1}}}')


# --- streams


def played(stream: bytes, size: int, values: Any = CHARGED) -> tuple[bytes, bytes]:
    holding = Holding("x402")
    out = b"".join(holding.split(stream[at : at + size]) for at in range(0, len(stream), size))
    return out, holding.release(values)


def documents(stream: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
@pytest.mark.parametrize("ends", [b"\n", b"\r", b"\r\n"])
def test_the_last_usage_waits_for_the_bill_and_done_comes_after_it(size: int, ends: bytes) -> None:
    out, held = played(CHAT.replace(b"\n", ends), size)
    assert out == CHAT[: CHAT.index(last(OPENAI))].replace(b"\n", ends)
    assert held.endswith(DONE.replace(b"\n", ends))
    assert documents(held)[0]["usage"] == {**OPENAI, "x402": CHARGED}


@pytest.mark.parametrize("size", [1, 50, 10_000])
def test_the_charge_stands_where_each_protocol_has_its_usage(size: int) -> None:
    out, held = played(responses(), size)
    assert documents(held)[-1]["response"]["usage"]["x402"] == CHARGED
    assert b"response.output_text.done" in out
    out, held = played(anthropic({"output_tokens": 12}), size)
    assert documents(held)[0]["usage"] == {"output_tokens": 12, "x402": CHARGED}
    assert held.startswith(b"event: message_delta\ndata: ")
    assert held.endswith(b'data: {"type": "message_stop"}\n\n')
    assert b"content_block_delta" in out


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("stream", [CHAT, anthropic({"output_tokens": 12}), responses(), b"data: x", b"\r\n\r", b""])
def test_without_values_the_stream_is_what_it_was(stream: bytes, size: int) -> None:
    for ends in (b"\n", b"\r", b"\r\n"):
        body = stream.replace(b"\n", ends)
        assert b"".join(played(body, size, None)) == body


@given(st.lists(st.binary(max_size=20) | st.sampled_from([CHAT, DONE, last(OPENAI), b"\r", b"\n", b"data: {"])))
def test_whatever_comes_passes_unchanged(parts: list[bytes]) -> None:
    holding = Holding("x402")
    assert b"".join(map(holding.split, parts)) + holding.release(None) == b"".join(parts)


def test_a_running_usage_holds_back_one_event_only() -> None:
    running = [chunk("word", usage={"prompt_tokens": 9, "completion_tokens": n}) for n in range(1, 4)]
    holding = Holding("x402")
    assert [holding.split(part) for part in running] == [b"", *running[:2]]
    assert holding.split(b": ping\n\n" + DONE) == b""
    assert holding.split(chunk("more")) == running[2] + b": ping\n\n" + DONE + chunk("more")
    assert holding.release(CHARGED) == b""


def test_the_start_of_a_message_is_not_held_back() -> None:
    start = event({"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}})
    assert Holding("x402").split(start) == start


def test_an_event_without_an_end_is_let_go() -> None:
    holding = Holding("x402")
    parts = [last(OPENAI), *[b"x" * 65_536] * 17, b"\n\n", DONE]
    assert b"".join(map(holding.split, parts)) == b"".join(parts)
    assert holding.release(CHARGED) == b""


def test_many_lines_of_data_become_one() -> None:
    pretty = json.dumps({"choices": [], "usage": OPENAI}, indent=1).replace("\n", "\ndata: ")
    _, held = played(b"id: 7\ndata: " + pretty.encode() + b"\n\n" + DONE, 20)
    assert held.startswith(b"id: 7\ndata: {\n")
    data = b"".join(line.removeprefix(b"data: ") for line in held.removesuffix(DONE).splitlines()[1:])
    assert json.loads(data)["usage"]["x402"] == CHARGED


# --- asking


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b'{"messages":[],"stream":true}', b'{"messages":[],"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"prompt":"a","stream":true}', b'{"prompt":"a","stream":true,"stream_options":{"include_usage":true}}'),
        (
            b'{"stream_options": {"x":1}, "messages":[],"temperature":0.70,"stream":true}',
            b'{"stream_options": {"x":1,"include_usage":true}, "messages":[],"temperature":0.70,"stream":true}',
        ),
        (
            b'{"messages":[],"stream":true,"stream_options":{"include_usage":false}}',
            b'{"messages":[],"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"messages":[],"stream":true,"stream_options":null}',
            b'{"messages":[],"stream":true,"stream_options":{"include_usage":true}}',
        ),
    ],
)
def test_H05_a_stream_is_asked_for_its_usage(body: bytes, asked: bytes) -> None:
    assert ask_for_usage(body) == asked
    assert ask_for_usage(asked) == asked


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"messages":[]}',
        b'{"messages":[],"stream":false}',
        b'{"messages":[],"stream":1}',
        b'{"input":"a","stream":true}',
        b'{"messages":[],"stream":true,"stream_options":5}',
        b'{"messages":[],"stream":true,"stream":false}',
    ],
)
def test_what_is_no_chat_in_a_stream_stays_as_it_is(body: bytes) -> None:
    assert ask_for_usage(body) == body
