"""Canonical JSON (RFC 8785, JCS) for what has to have one spelling. Whole numbers only: money has no others."""

from __future__ import annotations

import json
from typing import Any, Final

__all__ = ["canonical_json"]

_EXACT_MAX: Final = 2**53 - 1
_WRITE: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def canonical_json(value: Any) -> bytes:
    """The one UTF-8 text of a JSON value. Raises ``ValueError`` for what has none here: a fraction, an integer that a
    double does not hold, half a surrogate pair, a key that is no text.
    """
    return _WRITE(_sorted(value)).encode("utf-8")


def _sorted(value: Any) -> Any:
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=_order)}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # JSON
    if isinstance(value, list | tuple):
        return [_sorted(entry) for entry in value]  # pyright: ignore[reportUnknownVariableType]  # JSON
    if isinstance(value, int) and -_EXACT_MAX <= value <= _EXACT_MAX:
        return value
    raise ValueError("no canonical JSON")


def _order(key: object) -> bytes:
    """By UTF-16 code units, as the RFC wants it; bytes in big-endian order compare alike."""
    if not isinstance(key, str):
        raise ValueError("a key that is no text")
    return key.encode("utf-16-be")
