"""A seller that keeps balances: our own paywall on a rail without a chain, and a line that loses answers.

``faults[path]`` says, in order, what becomes of the next requests there: "lose" (it never arrives), "drop" (it is
served, and the answer is lost), "break" (the same in the middle of the body), a number (it is served, and answered
with that status), "stall" (served, but never answered before ``released``), or a header set that is answered instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from x402kit import Paywall
from x402kit.networks.port import Rail
from x402kit.pricing import Tokens

from .rails import OfflineRail
from .serving import free_port, serving

__all__ = ["Arrived", "PrepaidShop", "opened"]

WORDS = ("hel", "lo")
PROOF = "sign-in-with-x"
PAYMENTS = ("payment-signature", "x-payment")


@dataclass
class Arrived:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def proof(self) -> str:
        return self.headers.get(PROOF, "")

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")

    @property
    def payment(self) -> str:
        return next((self.headers[name] for name in PAYMENTS if name in self.headers), "")


@dataclass
class PrepaidShop:
    """``seen`` are the requests in order, ``runs`` how often each handler ran, ``failing`` how often it fails."""

    url: str
    rail: Any
    app: ASGIApp | None = None
    seen: list[Arrived] = field(default_factory=list[Arrived])
    runs: Counter[str] = field(default_factory=Counter[str])
    faults: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict[str, list[Any]](list))
    failing: int = 0
    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def wallet(self) -> str:
        """Where its wallet service is."""
        return self.url + "/v1/x402"

    def at(self, path: str) -> list[Arrived]:
        return [arrived for arrived in self.seen if arrived.path == path]

    @staticmethod
    def refusal() -> Response:
        """Of a proof, as a fault."""
        return JSONResponse({"title": "proof-refused"}, 401, media_type="application/problem+json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append(Arrived(scope["method"], scope["path"], headers))
        todo = self.faults[scope["path"]]
        fault = todo.pop(0) if todo else None
        if fault is None:
            await self.app(scope, receive, send)
        else:
            await self._faulty(fault, scope, receive, send)

    async def _faulty(self, fault: Any, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        if isinstance(fault, Response):
            await fault(scope, receive, send)
            return
        if fault == "lose":
            _abort(send)
            return
        whole: list[Message] = []

        async def keep(message: Message) -> None:
            whole.append(message)

        await self.app(scope, receive, keep)
        if fault == "stall":
            self.stalled.set()
            await asyncio.to_thread(self.released.wait, 30)
        elif fault == "break":
            await send({**whole[0], "headers": [*whole[0]["headers"], (b"x-broken", b"1")]})
            await send({"type": "http.response.body", "body": whole[1]["body"][:1], "more_body": True})
            await asyncio.sleep(0.05)
        elif fault != "drop":
            await Response(status_code=fault, headers={"retry-after": "0"})(scope, receive, send)
            return
        _abort(send)


def _abort(send: Send) -> None:
    cycle: Any = send
    cycle.__self__.transport.abort()


def _usage(length: int) -> dict[str, int]:
    return {"prompt_tokens": length, "completion_tokens": len(WORDS), "total_tokens": length + len(WORDS)}


def _routes(shop: PrepaidShop, paywall: Paywall) -> list[Route]:
    tokens = Tokens(input="$1/M", output="$1000/M", max_output=20)

    @paywall.paid("$0.01")
    async def goods(request: Request) -> Response:
        shop.runs["goods"] += 1
        if shop.failing:
            shop.failing -= 1
            return PlainTextResponse("out of order", 500)
        return PlainTextResponse(b"goods " + await request.body())

    @paywall.paid("$0.08")
    async def dear(request: Request) -> Response:
        shop.runs["dear"] += 1
        return PlainTextResponse("dear goods")

    @paywall.paid(tokens)
    async def chat(request: Request) -> Response:
        shop.runs["chat"] += 1
        asked = await request.json()
        if asked.get("stream"):
            return StreamingResponse(_chunks(), media_type="text/event-stream")
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        made = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return JSONResponse({**made, "usage": _usage(3)})

    async def free(request: Request) -> Response:
        shop.runs["free"] += 1
        return PlainTextResponse("free")

    return [
        Route("/goods", goods, methods=["GET", "POST"]),
        Route("/dear", dear, methods=["GET", "POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/free", free, methods=["GET", "POST"]),
    ]


async def _chunks() -> AsyncGenerator[bytes]:
    def event(choices: list[Any], **more: Any) -> bytes:
        made = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
        return b"data: " + json.dumps(made).encode() + b"\n\n"

    for word in WORDS:
        yield event([{"index": 0, "delta": {"content": word}, "finish_reason": None}])
    yield event([], usage=_usage(3))
    yield b"data: [DONE]\n\n"


@contextlib.contextmanager
def opened(*, rail: Rail | None = None, service: bool = True, **options: Any) -> Generator[PrepaidShop]:
    """The shop on a free port. ``service``: whether it has a wallet service, with these ``options``."""
    port = free_port()
    shop = PrepaidShop(f"http://127.0.0.1:{port}", rail or OfflineRail())
    with tempfile.TemporaryDirectory() as place:
        paywall = Paywall([shop.rail], Path(place) / "payments.db", origin=shop.url)
        routes: list[Any] = [*_routes(shop, paywall)]
        if service:
            routes.append(Mount("/v1/x402", paywall.wallet_service(minimum="$0.01", **options)))
        shop.app = paywall.protect(Starlette(routes=routes))
        with serving(shop, port=port):
            try:
                yield shop
            finally:
                shop.released.set()
