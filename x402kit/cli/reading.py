"""Read a header's value as the strict parser does, say what it objects to, and go on as far as can be."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Final

from ..model import HEADER_MAX, Json
from ..protocols.encoding import b64decode, parse_object
from .report import Report

__all__ = ["read"]

_NAMED: Final = re.compile(
    r"[<>]?\s*(payment-(?:required|signature|response)|x-(?:402-)?payment(?:-response)?)\s*:", re.I
)
_KINDS: Final = (("accepts", "payment-required"), ("payload", "payment"), ("success", "payment-response"))


def read(text: str, report: Report) -> Json | None:
    """The object in a header's value, a whole header line, or plain JSON; None when there is none."""
    text = _NAMED.sub("", text.strip(), count=1).strip()
    if not text:
        report.problem("empty", "there is nothing to read")
        return None
    data = text.encode() if text.startswith("{") else _decoded(text, report)
    if data.lstrip()[:1] not in (b"{", b"[") and not report.problems:
        report.problem("json_invalid", "it is neither a URL, nor JSON, nor a header's value (JSON in base64)")
        return None
    obj = _parsed(data, report)
    if obj is None:
        return None
    report.decoded = obj
    report.kind = next((kind for key, kind in _KINDS if key in obj), "unknown")
    if report.kind == "unknown":
        report.problem("kind_unknown", "it is JSON, but no challenge, payment or receipt of x402")
    elif report.kind == "payment" and report.ok:
        _parsed(data, report, floats=False)
    return obj


def _decoded(text: str, report: Report) -> bytes:
    if len(text) > HEADER_MAX:
        report.problem("header_too_large", f"{len(text)} bytes; servers take {HEADER_MAX}")
    try:
        return b64decode(text)
    except ValueError as e:
        fault = str(e)
    # Leniently, to see what was meant.
    kept = re.sub(r"[^A-Za-z0-9+/]", "", text.replace("-", "+").replace("_", "/"))
    try:
        data = base64.b64decode(kept + "=" * (-len(kept) % 4))
    except binascii.Error:
        report.problem("base64_invalid", fault)
        return b""
    known = data.lstrip().startswith(b"{")
    report.problem("base64_not_canonical" if known else "base64_invalid", fault)
    return data if known else b""


def _parsed(data: bytes, report: Report, *, floats: bool = True) -> Json | None:
    try:
        return parse_object(data, floats=floats)
    except (ValueError, RecursionError) as e:
        if not data:
            return None
        fault = str(e)
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        report.problem("json_invalid", fault)
        return None
    report.problem("json_not_strict", fault)
    return found if isinstance(found, dict) else None  # pyright: ignore[reportUnknownVariableType]  # JSON
