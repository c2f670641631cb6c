"""The one strict reader of base64 and JSON from outside (A12). No I/O; every fault is a ``ValueError``.

Base64: the standard or the URL-safe alphabet (not both in one value), padded or not at all; half a padding, inner junk
and trailing bits that are not zero are refused. JSON: UTF-8, no duplicate keys, no NaN, no number that is not an
integer unless asked for, at most 78 digits, nesting as in ``model.NESTING_MAX``, at most 16 384 arrays and objects: of
those a body could hold so many that reading it takes a second (K03).
"""

from __future__ import annotations

import binascii
import json
import re
from itertools import accumulate
from typing import Any, NoReturn

from ..model import NESTING_MAX, Json

__all__ = ["b64decode", "b64encode", "b64url", "b64url_decode", "dump_json", "parse_json", "parse_object"]

_a2b, _b2a = binascii.a2b_base64, binascii.b2a_base64
_DIGITS_MAX = 78
_CONTAINERS_MAX = 16_384


def b64encode(data: bytes) -> str:
    """Standard alphabet, padded: what we emit."""
    return _b2a(data, newline=False).decode("ascii")


def b64url(data: bytes) -> str:
    """URL-safe alphabet, not padded: for tokens of our own."""
    return b64encode(data).rstrip("=").replace("+", "-").replace("/", "_")


def b64url_decode(text: str) -> bytes:
    """The inverse of ``b64url``; anything else is a ``ValueError``."""
    if "+" in text or "/" in text or "=" in text:
        raise ValueError("not URL-safe base64")
    return b64decode(text)


def b64decode(text: str) -> bytes:
    """Read canonical base64 in either alphabet."""
    if "-" in text or "_" in text:
        if "+" in text or "/" in text:
            raise ValueError("two base64 alphabets in one value")
        text = text.replace("-", "+").replace("_", "/")
    if len(text) % 4:
        if text.endswith("="):
            raise ValueError("base64 padding is wrong")
        text += "=" * (-len(text) % 4)
    try:
        data = _a2b(text, strict_mode=True)
    except (binascii.Error, UnicodeError) as e:
        raise ValueError("not base64") from e
    # Strict mode lets the bits through that the last, incomplete group does not use.
    if (rest := len(data) % 3) and _b2a(data[-rest:], newline=False) != text[-4:].encode("ascii"):
        raise ValueError("base64 is not canonical")
    return data


_COMPACT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def dump_json(value: Any) -> bytes:
    """Compact ASCII JSON: safe inside a header as it is (A14)."""
    return _COMPACT.encode(value).encode("ascii")


def _pairs(pairs: list[tuple[str, Any]]) -> Json:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate key")
    return made


def _constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _integer(text: str) -> int:
    if len(text) > _DIGITS_MAX or text == "-0":
        raise ValueError("number out of range")
    return int(text)


def _no_float(_: str) -> NoReturn:
    raise ValueError("only integers are allowed")


_STRICT = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_constant=_constant, parse_int=_integer, parse_float=_no_float
)
_FLOATS = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_int=_integer)


_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NO_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")
_STEP = [1 if chr(code) in "[{" else -1 for code in range(256)]


def _check_nesting(text: str, most: int) -> None:
    if text.count("[") + text.count("{") <= most:
        return
    brackets = _STRING.sub("", text).encode().translate(None, _NO_BRACKETS)
    if len(brackets) > 2 * _CONTAINERS_MAX:
        raise ValueError("too many arrays and objects")
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > most:
        raise ValueError("nested too deeply")


def parse_json(data: bytes, *, floats: bool = False, nesting: int = NESTING_MAX) -> Any:
    """Read one JSON document strictly. ``floats`` lets other numbers through where no money is read from them."""
    text = data.decode("utf-8").strip(" \t\n\r")
    _check_nesting(text, nesting)
    value, end = (_FLOATS if floats else _STRICT).raw_decode(text)
    if end != len(text):
        raise ValueError("text after the JSON document")
    return value


def parse_object(data: bytes, *, floats: bool = False) -> Json:
    """As ``parse_json``, and the document must be an object."""
    value = parse_json(data, floats=floats)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value  # pyright: ignore[reportUnknownVariableType]  # JSON
