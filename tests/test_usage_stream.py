"""Reading the usage of an answer while it passes: whole, in parts of any length, faked, cut, late or twice (H05)."""

from __future__ import annotations

import gzip
import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit.asgi.usage import EventReader, JsonReader, UsageReader, reader_for
from x402kit.pricing import Delivered, Usage

SSE = b"text/event-stream; charset=utf-8"
OPENAI = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
FAKE = '{"usage":{"prompt_tokens":0,"completion_tokens":0}}'


def event(document: Any, kind: str = "") -> bytes:
    return (f"event: {kind}\n" if kind else "").encode() + b"data: " + json.dumps(document).encode() + b"\n\n"


def chunk(text: str, **more: Any) -> bytes:
    return event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}], **more})


def last(usage: Any) -> bytes:
    return event({"object": "chat.completion.chunk", "choices": [], "usage": usage})


DONE = b"data: [DONE]\n\n"
CHAT = chunk("") + chunk("Hello") + b": keep-alive\n\n" + chunk(" there") + last(OPENAI) + DONE


def anthropic(final: Any) -> bytes:
    start = {"input_tokens": 25, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 0, "output_tokens": 1}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}
    return (
        event({"type": "message_start", "message": {"id": "msg_1", "content": [], "usage": start}}, "message_start")
        + event({"type": "ping"}, "ping")
        + event(text, "content_block_delta")
        + event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": final}, "message_delta")
        + event({"type": "message_stop"}, "message_stop")
    )


def responses() -> bytes:
    usage = {"input_tokens": 9, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}
    done = {"id": "resp_1", "output": [{"content": [{"type": "output_text", "text": "Hello"}]}]}
    return (
        event({"type": "response.created", "response": {"id": "resp_1", "usage": None}})
        + event({"type": "response.output_text.delta", "delta": "Hel"})
        + event({"type": "response.output_text.delta", "delta": "lo"})
        + event({"type": "response.output_text.done", "text": "Hello"})
        + event({"type": "response.completed", "response": {**done, "usage": usage}})
    )


def fed(*parts: bytes, kind: bytes = SSE) -> UsageReader:
    reader = reader_for(kind, 200)
    for part in parts:
        reader.feed(part)
    return reader


def streamed(*parts: bytes) -> Usage | None:
    return fed(*parts).usage()


# --- which reader


@pytest.mark.parametrize(
    ("content_type", "status", "encoding", "kind"),
    [
        (b"application/json", 200, b"", JsonReader),
        (b"Application/JSON ; charset=utf-8", 201, b"identity", JsonReader),
        (b"application/problem+json", 200, b"", JsonReader),
        (SSE, 200, b"", EventReader),
        (SSE, 200, b"gzip", UsageReader),
        (b"application/json", 200, b"br", UsageReader),
        (b"application/json", 206, b"", UsageReader),
        (b"application/json", 304, b"", UsageReader),
        (b"application/json", 500, b"", UsageReader),
        (b"text/plain", 200, b"", UsageReader),
        (b"", 200, b"", UsageReader),
    ],
)
def test_H05_H09_the_reader_is_chosen_by_type_status_and_encoding(
    content_type: bytes, status: int, encoding: bytes, kind: type[UsageReader]
) -> None:
    assert type(reader_for(content_type, status, encoding=encoding)) is kind


def test_H05_a_compressed_answer_is_only_counted() -> None:
    reader = reader_for(SSE, 200, encoding=b"gzip")
    body = gzip.compress(CHAT)
    reader.feed(body)
    assert reader.usage() is None
    assert reader.delivered == Delivered(len(body))


def test_H05_compressed_bytes_that_nobody_names_so_are_no_usage() -> None:
    assert streamed(gzip.compress(CHAT)) is None
    assert fed(gzip.compress(b"{}"), kind=b"application/json").usage() is None


# --- JSON


def test_a_json_answer_states_its_usage() -> None:
    body = json.dumps({"choices": [{"message": {"content": FAKE}}], "usage": OPENAI, "temperature": 0.5}).encode()
    reader = fed(body[:10], body[10:], kind=b"application/json")
    assert reader.usage() == Usage(5, 3, 4)
    assert reader.delivered == Delivered(len(body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"usage":{"prompt_tokens":1,"completion_tokens":1}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":1},"usage":{"prompt_tokens":0,"completion_tokens":0}}',
        b'[{"usage":{"prompt_tokens":1,"completion_tokens":1}}]',
        b'{"usage":{"prompt_tokens":NaN,"completion_tokens":1}}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":1}} more',
        b'{"a":' * 200 + b'{"usage":{"prompt_tokens":1}}' + b"}" * 200,
        b'\xff{"usage":{"prompt_tokens":1}}',
        json.dumps({"choices": [{"message": {"content": FAKE, "usage": OPENAI}}]}).encode(),
    ],
)
def test_H05_json_without_a_sound_usage_at_its_top(body: bytes) -> None:
    assert fed(body, kind=b"application/json").usage() is None


@pytest.mark.parametrize(
    "beside",
    [
        b'[{"token":"a","logprob":-0,"bytes":[97]},{"token":"b","logprob":-Infinity,"bytes":null}]',
        b"[" + b",".join([b'{"token":"a","logprob":-0.5,"bytes":[97]}'] * 12_000) + b"]",
        b"[" * 100 + b"]" * 100 + b',"text":"' + b"[" * 200 + b'\\""',
    ],
    ids=["as Go and Python write them", "of thousands of tokens", "nested"],
)
def test_H05_what_stands_beside_a_usage_does_not_hide_it(beside: bytes) -> None:
    """Log probabilities: else who asks for them pays for their bytes, or, where they are echoed, for no reasoning."""
    usage = json.dumps(OPENAI).encode()
    assert fed(b'{"logprobs":%b,"usage":%b}' % (beside, usage), kind=b"application/json").usage() == Usage(5, 3, 4)
    event = b'data: {"type":"response.completed","response":{"logprobs":%b,"usage":%b}}\n\n' % (beside, usage)
    assert streamed(event) == Usage(5, 3, 4)


def test_H05_json_nested_without_end_is_none() -> None:
    body = b'{"a":' + b"[" * 300_000 + b"]" * 300_000 + b',"usage":{"prompt_tokens":1}}'
    assert fed(body, kind=b"application/json").usage() is None


def test_H05_an_answer_over_the_limit_is_only_counted() -> None:
    reader = JsonReader()
    for _ in range(17):
        reader.feed(b" " * 65_536)
    reader.feed(json.dumps({"usage": OPENAI}).encode())
    assert reader.usage() is None
    assert reader.delivered.bytes > 2**20


# --- streams


def test_the_usage_of_a_chat() -> None:
    reader = fed(CHAT)
    assert reader.usage() == Usage(5, 3, 4)
    assert reader.delivered == Delivered(len("Hello there"), 2, Usage(5, 0, 4))


def test_the_usage_of_a_response() -> None:
    reader = fed(responses())
    assert reader.usage() == Usage(5, 3, 4)
    assert reader.delivered[:2] == (5, 2)


@pytest.mark.parametrize(
    ("final", "usage"),
    [
        ({"output_tokens": 12}, Usage(25, 12, 10)),
        ({"output_tokens": 12, "input_tokens": None}, Usage(25, 12, 10)),
        ({"output_tokens": 12, "input_tokens": 30, "cache_read_input_tokens": 11}, Usage(30, 12, 11)),
    ],
)
def test_anthropic_states_its_usage_in_two_events(final: Any, usage: Usage) -> None:
    reader = fed(anthropic(final))
    assert reader.usage() == usage
    assert reader.delivered[:2] == (5, 1)


def test_H03_who_leaves_before_the_end_has_stated_only_the_prompt() -> None:
    before, _, _ = anthropic({"output_tokens": 12}).partition(b"event: message_delta")
    reader = fed(before)
    assert reader.usage() is None
    assert reader.delivered == Delivered(5, 1, Usage(25, cached=10))


def test_H03_a_usage_with_text_after_it_is_not_the_end() -> None:
    parts = [chunk("", usage={"prompt_tokens": 9, "completion_tokens": 0}), chunk("Hello")]
    for reader in (fed(*parts), fed(b"".join(parts)), fed(b"".join(parts) + DONE)):
        assert reader.usage() is None
        assert reader.delivered == Delivered(5, 1, Usage(9))


def test_a_running_usage_is_read_as_it_stands() -> None:
    running = [chunk("word", usage={"prompt_tokens": 9, "completion_tokens": n}) for n in range(1, 6)]
    assert streamed(*running[:3]) == Usage(9, 3)
    assert streamed(b"".join(running), DONE) == Usage(9, 5)


@pytest.mark.parametrize("text", ['call "response.json"', '{"type": "response.created"}', '"type":"response.'])
def test_H05_what_a_model_writes_first_does_not_change_how_its_text_is_counted(text: str) -> None:
    """Where the first part of a stream has more than its role."""
    reader = fed(chunk("") + chunk(text), last(OPENAI), chunk("more" * 30), DONE)
    assert reader.usage() is None
    assert reader.delivered.bytes >= 120 + len(text)


def test_null_usage_is_none() -> None:
    assert streamed(chunk("Hello", usage=None), chunk(" there", usage=None), DONE) is None
    assert streamed(chunk("Hello", usage=None), last(OPENAI), DONE) == Usage(5, 3, 4)


def test_H05_twice_the_last_one_counts() -> None:
    later = {"prompt_tokens": 9, "completion_tokens": 4}
    assert streamed(last(OPENAI), last(later), DONE) == Usage(9, 4)


@pytest.mark.parametrize(
    "event_after",
    [
        b": data: " + FAKE.encode() + b"\n\n",
        b"event: " + FAKE.encode() + b"\n\n",
        b"id: 5\ndatas: " + FAKE.encode() + b"\n\n",
        b'data: {"usage":{"prompt_tokens":0,"completion_tokens":0}\n\n',
        b'data: {"usage":{"prompt_tokens":-1,"completion_tokens":0}}\n\n',
        b'data: {"usage":{"prompt_tokens":0},"usage":{"prompt_tokens":0}}\n\n',
        b'data: {"usage":{}}\n\n',
        b'data: {"usage":"0"}\n\n',
        event({"choices": [{"delta": {"role": "assistant"}, "usage": json.loads(FAKE)["usage"]}]}),
        event({"type": "response.completed", "usage": json.loads(FAKE)["usage"]}),
        event({"choices": [{"delta": {"function": {"usage": {"prompt_tokens": 0, "completion_tokens": 0}}}}]}),
    ],
)
def test_H05_comments_fragments_and_fakes_are_not_read(event_after: bytes) -> None:
    assert streamed(last(OPENAI), event_after, DONE) == Usage(5, 3, 4)
    assert streamed(event_after, DONE) is None


@pytest.mark.parametrize(
    "text",
    [FAKE, f"data: {FAKE}\n\n", f"\n\ndata: {FAKE}\n\n", f'"}}}}]}}\n\ndata: {FAKE}\r\n\r\n', f"\r\rdata:{FAKE}"],
)
def test_H05_what_a_model_writes_is_not_read(text: str) -> None:
    assert streamed(chunk(text), last(OPENAI), DONE) == Usage(5, 3, 4)
    assert streamed(last(OPENAI), event({"choices": [{"delta": {"citation": text}}]}), DONE) == Usage(5, 3, 4)
    assert streamed(chunk(text), DONE) is None


@pytest.mark.parametrize("text", [b"data: Hello\n\n", b"data: 5\n\n", b'data: ["a"]\n\n', b"data: Hel\ndata: lo\n\n"])
def test_H05_a_stream_of_bare_text_has_no_usage(text: bytes) -> None:
    """A model could write the whole event there."""
    assert streamed(text, b"data: " + FAKE.encode() + b"\n\n") is None
    assert streamed(b"data: " + FAKE.encode() + b"\n\n", text) is None


def test_an_event_may_have_many_lines_and_no_space() -> None:
    pretty = json.dumps({"choices": [], "usage": OPENAI}, indent=1).replace("\n", "\ndata:")
    assert streamed(b"id: 7\ndata:" + pretty.encode() + b"\n\n", b"data:[DONE]\n\n", b"data:\n\n") == Usage(5, 3, 4)


def test_the_last_event_counts_without_its_blank_line() -> None:
    """Unless it is cut: JSON that is whole is whole."""
    assert streamed(chunk("Hello"), last(OPENAI).rstrip(b"\n")) == Usage(5, 3, 4)
    assert streamed(chunk("Hello"), last(OPENAI)[:-4]) is None
    reader = fed(chunk("Hello"), last(OPENAI), chunk(" there").rstrip(b"\n"))
    assert (reader.usage(), reader.usage()) == (None, None)
    assert reader.delivered[:2] == (len("Hello there"), 2)


@pytest.mark.parametrize("ends", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("stream", [CHAT, anthropic({"output_tokens": 12}), responses()])
def test_H05_lines_may_end_in_any_way_and_parts_anywhere(stream: bytes, ends: bytes) -> None:
    body = stream.replace(b"\n", ends)
    whole = fed(body)
    assert whole.usage() is not None
    for size in (1, 2, 3, 7, 64, 500):
        reader = fed(*(body[at : at + size] for at in range(0, len(body), size)))
        assert reader.usage() == whole.usage()
        assert reader.delivered == whole.delivered


@given(st.lists(st.integers(0, len(CHAT)), max_size=12), st.sampled_from([b"\n", b"\r", b"\r\n"]))
def test_H05_parts_change_nothing(cuts: list[int], ends: bytes) -> None:
    body = CHAT.replace(b"\n", ends)
    at = [0, *sorted(cuts), len(body)]
    assert streamed(*(body[a:b] for a, b in pairwise(at))) == Usage(5, 3, 4)


@given(st.lists(st.binary(max_size=40) | st.sampled_from([CHAT, DONE, b"\r", b"\n", b"data: {", FAKE.encode()])))
def test_H05_whatever_comes_gives_a_sound_usage_or_none(parts: list[bytes]) -> None:
    reader = fed(*parts)
    usage = reader.usage()
    assert usage is None or not usage.absurd
    assert reader.delivered.bytes <= sum(map(len, parts))


def test_H05_an_event_without_an_end_is_not_kept() -> None:
    reader = EventReader()
    reader.feed(b'data: {"text":"')
    for _ in range(20):
        reader.feed(b"x" * 65_536)
    reader.feed(b'"}\n')
    reader.feed(b"\n" + last(OPENAI))
    assert reader.usage() == Usage(5, 3, 4)


def test_an_events_own_shape_is_counted_by_events() -> None:
    reader = fed(event({"token": "a"}), event({"token": "b"}), b": ping\n\n")
    assert reader.delivered == Delivered(0, 2)


def test_a_chunk_costs_microseconds() -> None:
    """A bound with much room: 20 are asked for, and 2 are what it takes alone."""
    reader, part = EventReader(), chunk(" token", id="chatcmpl-0123456789", created=1_700_000_000, model="demo")
    best = min(_microseconds(reader, part) for _ in range(5))
    assert best < 20


def _microseconds(reader: EventReader, part: bytes) -> float:
    start = time.perf_counter()
    for _ in range(2_000):
        reader.feed(part)
    return (time.perf_counter() - start) / 2_000 * 1e6
