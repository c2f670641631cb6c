"""Put what a call was charged into its answer's ``usage``; ask an upstream to state one. Only if the seller says so.

What is there stays as it is, byte for byte; what can't be read is passed on untouched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from ..pricing.usage import usage_of
from ..protocols.encoding import dump_json, parse_json
from .usage import READ_MAX, event_data, event_document, read_answer

__all__ = ["Holding", "ask_for_usage", "inject"]

_NESTING: Final = 128
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_DECODER: Final = json.JSONDecoder()
_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n|\Z)){2}")
_LINES: Final = re.compile(rb"\r\n|\n|\r")
_LAST: Final = re.compile(rb'\ndata: ?\[DONE\]|"type"\s*:\s*"(?:message_stop|ping)"')


def inject(body: bytes, service: str, values: Mapping[str, Any]) -> bytes:
    """A JSON answer with ``values`` at ``usage.<service>``. Amounts among the values are text."""
    return _put_in(body, ("usage", service), values)


def ask_for_usage(body: bytes) -> bytes:
    """A chat request like OpenAI's that, where it asks for a stream, asks for its usage too.

    Its last event but one then has no choices, also for a caller who did not ask.
    """
    asked = _parse(body)
    if asked.get("stream") is not True or not ("messages" in asked or "prompt" in asked):
        return body
    options = asked.get("stream_options")
    known = cast("dict[str, Any]", options) if isinstance(options, dict) else {}
    if known.get("include_usage") is True or not isinstance(options, dict | None):
        return body
    return _put_in(body, ("stream_options", "include_usage"), True)


class Holding:
    """Lets a stream pass, all but the last event that states a usage and what follows it, until billing is final.

    Events pass whole. One with a usage passes too when more than the end of the stream comes after it.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._rest = b""
        self._held: list[bytes] = []
        self._off = False

    def split(self, chunk: bytes) -> bytes:
        """What of the stream may go out now."""
        if self._off:
            return chunk
        out: list[bytes] = []
        rest, start = self._rest + chunk, 0
        for found in _END.finditer(rest):
            self._event(rest[start : found.end()], out)
            start = found.end()
        self._rest = rest[start:]
        if len(self._rest) > READ_MAX:
            self._off = True
            out.append(self.release(None))
        return b"".join(out)

    def _event(self, event: bytes, out: list[bytes]) -> None:
        plain = b"\n" + _LINES.sub(b"\n", event)
        if self._held and (b"\ndata:" not in plain or _LAST.search(plain)):
            self._held.append(event)
            return
        out += self._held
        self._held = []
        if _place(plain):
            self._held.append(event)
        else:
            out.append(event)

    def release(self, values: Mapping[str, Any] | None) -> bytes:
        """What was held back, with ``values`` in the usage, if there are both; called once, at the end."""
        held, self._held, rest, self._rest = self._held, [], self._rest, b""
        if held and values is not None:
            held[0] = self._written(_LINES.sub(b"\n", held[0]), values)
        return b"".join([*held, rest])

    def _written(self, event: bytes, values: Mapping[str, Any]) -> bytes:
        data = _put_in(event_data(event), (*_place(event), self._service), values).replace(b"\n", b"\ndata: ")
        others = [line for line in event.split(b"\n") if line and not line.startswith(b"data:")]
        return b"\n".join([*others, b"data: " + data, b"", b""])


def _place(event: bytes) -> tuple[str, ...]:
    """Where an event states a final usage; empty where it does not. Anthropic's ``message_start`` is only a start."""
    document = event_document(event) or {}
    kind = str(document.get("type"))
    if kind.startswith("response."):
        return ("response", "usage") if usage_of(document.get("response")) else ()
    return ("usage",) if usage_of(document) else ()


def _put_in(body: bytes, path: Sequence[str], value: Any) -> bytes:
    if not read_answer(body):
        return body
    return _put(body.decode(), path, dump_json(value).decode()).encode()


def _put(text: str, path: Sequence[str], value: str) -> str:
    """The text of an object with ``value`` at ``path``; what stood in its way, and is no object, is replaced."""
    name, *rest = path
    members = _members(text)
    start, end = members.get(name, (0, 0))
    if rest:
        inner = text[start:end]
        value = _put(inner if inner.startswith("{") else "{}", rest, value)
    if end:
        return text[:start] + value + text[end:]
    last = text.rindex("}")
    return f"{text[:last]}{',' if members else ''}{json.dumps(name)}:{value}{text[last:]}"


def _members(text: str) -> dict[str, tuple[int, int]]:
    """Where each value of an object stands; the text is known to be one."""
    found: dict[str, tuple[int, int]] = {}
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, start)
        found[name] = start, end
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _parse(body: bytes) -> dict[str, Any]:
    try:
        value = parse_json(body, floats=True, nesting=_NESTING)
    except ValueError:
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
