"""CORS with the gate outside: our own answers take the way of the app's CORSMiddleware, with our headers allowed (K08).

With the gate inside a CORSMiddleware nothing is needed: that one sees our answers like the app's.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ..protocols.x402 import EXPOSED_HEADERS, PAYMENT_SIGNATURE, V1_PAYMENT

__all__ = ["ANSWER", "find_cors"]

ANSWER: Final = "x402kit.answer"
_REQUEST_HEADERS: Final = (
    PAYMENT_SIGNATURE,
    V1_PAYMENT,
    "X-402-Payment",
    "SIGN-IN-WITH-X",
    "X-Sign-In-With-X",
    "Idempotency-Key",
    "Authorization",
    "Payment-Authorization",
)


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await scope[ANSWER](scope, receive, send)


def find_cors(app: Any) -> ASGIApp | None:
    """A copy of the CORSMiddleware inside ``app`` that wraps the answer in ``scope["x402kit.answer"]``, or None."""
    for _ in range(64):
        if isinstance(app, CORSMiddleware):
            return _with_ours(copy.copy(app))
        for entry in getattr(app, "user_middleware", ()):
            if isinstance(entry.cls, type) and issubclass(entry.cls, CORSMiddleware):
                return _with_ours(entry.cls(_answer, *entry.args, **entry.kwargs))
        app = getattr(app, "app", None)
        if app is None:
            return None
    return None


def _with_ours(cors: CORSMiddleware) -> ASGIApp:
    cors.app = _answer
    exposed = cors.simple_headers.get("Access-Control-Expose-Headers", "")
    names = [name.strip() for name in exposed.split(",") if name.strip()]
    names += [name for name in EXPOSED_HEADERS if name not in names]
    cors.simple_headers = {**cors.simple_headers, "Access-Control-Expose-Headers": ", ".join(names)}
    if not cors.allow_all_headers:
        cors.allow_headers = [*cors.allow_headers, *(name.lower() for name in _REQUEST_HEADERS)]
        allowed = cors.preflight_headers.get("Access-Control-Allow-Headers", "")
        ours = ", ".join(filter(None, (allowed, *_REQUEST_HEADERS)))
        cors.preflight_headers = {**cors.preflight_headers, "Access-Control-Allow-Headers": ours}
    return cors
