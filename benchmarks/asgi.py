"""Requests as an ASGI server would make them, without one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Scope

from x402kit.model import Json, PaymentRequirements
from x402kit.protocols.x402 import decode_header, parse_payment_required

__all__ = ["drive", "offer_of"]

_HEADERS: Final = [
    (b"host", b"bench.test"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"bench"),
]


def scope(path: str, credential: bytes | None = None, name: bytes = b"payment-signature") -> Scope:
    """A GET of ``path``, with a credential or without; ``name`` is its header."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 50_000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": _HEADERS if credential is None else [*_HEADERS, (name, credential)],
        "state": {},
    }


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def call(app: ASGIApp, request: Scope) -> list[Message]:
    """The messages of one answer."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await app(request, _receive, send)
    return sent


async def drive(
    app: ASGIApp, path: str, credentials: Iterable[bytes | None], at_once: int, name: bytes = b"payment-signature"
) -> set[int]:
    """One request for each credential (None: without one), so many at a time; the statuses that came."""
    turn = iter(credentials)
    seen: set[int] = set()

    async def work() -> None:
        for shown in turn:
            # A copy: as warm in the caches as what a server has just read from its socket.
            request = scope(path, shown if shown is None else bytes(bytearray(shown)), name)
            seen.add((await call(app, request))[0]["status"])

    await asyncio.gather(*(work() for _ in range(at_once)))
    return seen


async def offer_of(app: ASGIApp, path: str) -> tuple[PaymentRequirements, Json]:
    """The first offer of a priced path, and how it is written in the challenge."""
    start: dict[str, Any] = dict((await call(app, scope(path)))[0])
    assert start["status"] == 402, start
    challenge = parse_payment_required(decode_header(dict(start["headers"])[b"payment-required"].decode()))
    return challenge.accepts[0], challenge.raw_accepts[0]
