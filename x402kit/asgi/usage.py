"""Read what an answer used while it passes: from JSON at its end, from server-sent events by the last that states it.

Only the places where OpenAI's and Anthropic's protocols put a usage are read, never text that a model wrote (H05): in a
stream whose events are not all JSON objects such text could stand anywhere, so it has none. A compressed answer has
none either; the gate asks the app for plain ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Final, cast

from ..pricing.usage import Delivered, Usage, usage_of

__all__ = ["EventReader", "JsonReader", "UsageReader", "event_data", "event_document", "read_answer", "reader_for"]

READ_MAX: Final = 2**20
"""Bytes of a JSON answer, or of one event, that are kept to be read; a longer one has no usage."""
_NESTING: Final = 128
_STATED: Final = re.compile(rb'"usage"\s*:\s*\{')
_STRING: Final = rb'"\s*:\s*"([^"\\]+(?:\\.[^"\\]*)*|\\.[^"\\]*(?:\\.[^"\\]*)*)"'
_TEXT: Final = re.compile(rb'"(?:content|text|arguments|partial_json|thinking|reasoning|reasoning_content)' + _STRING)
_DELTA: Final = re.compile(rb'"delta' + _STRING)
"""OpenAI's responses say all their text again in other events."""
_RESPONSE: Final = re.compile(rb'"type"\s*:\s*"response\.')
_QUOTED: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NO_BRACKETS: Final = bytes(code for code in range(256) if code not in b"[]{}")
_STEP: Final = [1 if code in b"[{" else -1 for code in range(256)]


class UsageReader:
    """Sees every part of an answer's body. This one only counts."""

    def __init__(self) -> None:
        self._bytes: int = 0

    def feed(self, chunk: bytes) -> None:
        self._bytes += len(chunk)

    def usage(self) -> Usage | None:
        """What the answer has stated so far; None where that is nothing, or nothing sound."""
        return None

    @property
    def delivered(self) -> Delivered:
        """What the answer has had so far, for an estimate."""
        return Delivered(self._bytes)


def reader_for(content_type: bytes, status: int, *, encoding: bytes = b"") -> UsageReader:
    """The reader for an answer, by its ``Content-Type``, status and ``Content-Encoding``.

    Only 200 to 203 state a usage: the others are errors, or parts of something.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    if not 200 <= status <= 203 or encoding.strip().lower() not in (b"", b"identity"):
        return UsageReader()
    if kind == b"text/event-stream":
        return EventReader()
    return JsonReader() if kind == b"application/json" or kind.endswith(b"+json") else UsageReader()


class JsonReader(UsageReader):
    """Of an answer in JSON."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] | None = []

    def feed(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        if self._parts is not None:
            self._parts.append(chunk)
            if self._bytes > READ_MAX:
                self._parts = None

    def usage(self) -> Usage | None:
        body = b"".join(self._parts or ())
        return usage_of(read_answer(body)) if _STATED.search(body) else None


class EventReader(UsageReader):
    """Of server-sent events, in parts of any length; lines may end in CR, LF or both."""

    def __init__(self) -> None:
        super().__init__()
        self._tail = bytearray()
        self._return = b""  # a CR that ended the part before: half of a CRLF, perhaps
        self._cut = False
        self._foreign = False
        self._pattern: re.Pattern[bytes] | None = None
        self._events = 0
        self._texts = 0
        self._since = 0
        self._stated: Usage | None = None
        self._start: Mapping[str, Any] | None = None

    def feed(self, chunk: bytes) -> None:
        if b"\r" in chunk or self._return:
            chunk = self._newlines(chunk)
        tail = self._tail
        if not tail and chunk.endswith(b"\n\n"):
            self._take(chunk)
            return
        start = max(len(tail) - 1, 0)
        tail += chunk
        end = tail.rfind(b"\n\n", start) + 2
        if end > 1:
            whole = bytes(tail[:end])
            del tail[:end]
            self._take(whole)
        if len(tail) > READ_MAX:
            del tail[:-1]  # which may be the first of two line ends
            self._cut = True

    def _newlines(self, chunk: bytes) -> bytes:
        chunk = self._return + chunk
        self._return = chunk[-1:] if chunk.endswith(b"\r") else b""
        return chunk.removesuffix(self._return).replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take(self, whole: bytes) -> None:
        """Count whole events, and look closer at what may state a usage."""
        if self._cut:  # the rest of an event that was too long
            self._cut = False
            whole = whole[whole.find(b"\n\n") + 2 :]
        whole = b"\n" + whole
        lines = whole.count(b"\ndata:")
        if not lines:
            return
        if whole.count(b"\ndata: {") != lines:
            self._check(whole)
        if self._pattern is None:
            self._pattern = _DELTA if _RESPONSE.search(whole) else _TEXT
        self._events += lines
        if b'"usage"' in whole and _STATED.search(whole):
            for event in whole.split(b"\n\n"):
                # What is stated covers the text beside it, and none of the events after it.
                self._count(event)
                self._look(event)
        else:
            self._count(whole)

    def _count(self, events: bytes) -> None:
        texts: list[bytes] = (self._pattern or _TEXT).findall(events)
        if texts:
            self._texts += len(texts)
            self._since += len(texts)
            self._bytes += sum(map(len, texts))

    def _check(self, whole: bytes) -> None:
        for event in whole.split(b"\n\n"):
            data = event_data(event).strip()
            if data[:1] not in (b"{", b"") and data != b"[DONE]":
                self._foreign = True

    def _look(self, event: bytes) -> None:
        document = event_document(event)
        if document is None:
            return
        kind = document.get("type")
        if kind == "message_start":
            self._start = _object(_object(document.get("message")).get("usage"))
            return
        if kind == "message_delta":
            later = _object(document.get("usage")).items()
            document = {"usage": {**(self._start or {}), **{name: value for name, value in later if value is not None}}}
        found = usage_of(document.get("response") if _is_response(kind) else document)
        if found is not None:
            self._stated, self._since = found, 0

    def usage(self) -> Usage | None:
        if self._tail and not self._cut:  # an event without its blank line is whole if its JSON is
            event, self._tail = bytes(self._tail), bytearray()
            self._count(event)
            self._look(event)
        # What was stated before more text came is not the end: who leaves then would have that text for nothing.
        if self._foreign or self._since:
            return None
        return self._stated

    @property
    def delivered(self) -> Delivered:
        said = self._stated or (usage_of({"usage": self._start}) if self._start else None)
        prompt = None if said is None or self._foreign else said._replace(output=0, reasoning=0)
        return Delivered(self._bytes, self._texts or self._events, prompt)


def event_data(event: bytes) -> bytes:
    """The data of one event whose lines end in LF."""
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def event_document(event: bytes) -> dict[str, Any] | None:
    """The JSON object that one event holds where that states a usage, anywhere in it."""
    return read_answer(event_data(event)) if _STATED.search(event) else None


def _is_response(kind: object) -> bool:
    return isinstance(kind, str) and kind.startswith("response.")


def read_answer(data: bytes) -> dict[str, Any] | None:
    """The JSON object that an answer is; None where it is none, or says a thing twice.

    What callers send is read more strictly (A12). An answer's log probabilities are thousands of arrays, and beside its
    usage stands what its app's JSON writer makes of a float: Go's writes ``-0``, Python's ``-Infinity``.
    """
    if _is_deep(data):
        return None
    try:
        return _object(_ANSWER.decode(data.decode()))
    except ValueError:
        return None


def _is_deep(data: bytes) -> bool:
    """Whether it is nested so that reading it could overrun the stack: no limit to recursion keeps it from that."""
    if data.count(b"[") + data.count(b"{") <= _NESTING:
        return False
    brackets = _QUOTED.sub(b"", data).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > _NESTING


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate key")
    return made


_ANSWER: Final = json.JSONDecoder(object_pairs_hook=_once)


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
