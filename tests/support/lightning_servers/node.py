"""The real node that a product's server stands on, asked over LND's REST API; and a server's frame with its faults."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from x402kit.devnet.lightning import LightningNode

__all__ = ["Json", "Product", "RealNode", "Said"]

Json = dict[str, Any]


class Said(Exception):
    """The node refused; its words."""


class RealNode:
    """What the products' servers need of a node."""

    def __init__(self, node: LightningNode) -> None:
        self.node = node

    async def ask(self, method: str, path: str, body: Json | None = None) -> Json:
        """One call."""
        async with self._client() as client:
            answer = await client.request(method, path, json=body)
        if answer.status_code != 200:
            raise Said(answer.json()["message"])
        return dict(answer.json())

    async def add(self, msat: int, memo: str, expiry: int) -> Json:
        """A new invoice, as the node shows it."""
        made = await self.ask("POST", "/v1/invoices", {"value_msat": str(msat), "memo": memo, "expiry": str(expiry)})
        return await self.ask("GET", f"/v1/invoice/{base64.b64decode(made['r_hash']).hex()}")

    async def invoice(self, payment_hash: str) -> Json | None:
        """One of its invoices."""
        try:
            return await self.ask("GET", f"/v1/invoice/{payment_hash}")
        except Said:
            return None

    async def settled(self) -> list[Json]:
        """Its invoices that are settled, in the order in which they were."""
        rows = (await self.ask("GET", "/v1/invoices?num_max_invoices=100000"))["invoices"]
        return sorted((row for row in rows if row["state"] == "SETTLED"), key=lambda row: int(row["settle_index"]))

    async def send(self, bolt11: str, fee: int, seconds: float) -> Json:
        """Pay, and wait so long for the end: the payment, or what was known of it then."""
        body = {"payment_request": bolt11, "fee_limit_msat": str(fee), "timeout_seconds": 60}
        found: Json = {}
        try:
            async with (
                asyncio.timeout(seconds),
                self._client() as client,
                client.stream("POST", "/v2/router/send", json=body) as answer,
            ):
                async for line in answer.aiter_lines():
                    said = json.loads(line)
                    if "error" in said:
                        raise Said(said["error"]["message"])
                    found = said["result"]
        except TimeoutError:
            pass
        return found

    async def payment(self, payment_hash: str) -> Json | None:
        """One of its payments, as it is now."""
        async with (
            self._client() as client,
            client.stream("GET", f"/v2/router/track/{_base64url(payment_hash)}") as answer,
        ):
            async for line in answer.aiter_lines():
                said = json.loads(line)
                return None if "error" in said else dict(said["result"])
        return None

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.node.url, headers={"Grpc-Metadata-macaroon": self.node.macaroon}, timeout=30, trust_env=False
        )


def _base64url(text: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(text)).decode()


class Product:
    """A product's server. ``faults`` names, by a part of "<method> <path>", how it fails there:

    "hang" it never answers, "lost" it does what was asked and never answers, "garbage" it answers with a page,
    "empty" with an object that says nothing, "moved" with another place, "" not at all. The first that fits counts.
    ``lies`` are put into what it answers: a pattern and what stands there instead.
    """

    def __init__(self, node: RealNode) -> None:
        self.node = node
        self.faults: dict[str, str] = {}
        self.lies: list[tuple[str, str]] = []
        self.calls: list[str] = []

    async def answer(self, request: Request) -> Response:
        """What the product answers."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        call = f"{request.method} {request.url.path}"
        self.calls.append(call)
        fault = next((kind for part, kind in self.faults.items() if part in call), "")
        wanted: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "": self._lie,
            "hang": _never,
            "lost": self._lost,
            "garbage": _page,
            "empty": _nothing,
            "moved": _moved,
        }
        await (await wanted[fault](request))(scope, receive, send)

    async def _lie(self, request: Request) -> Response:
        answer = await self.answer(request)
        text = bytes(answer.body).decode()
        for pattern, instead in self.lies:
            text = re.sub(pattern, instead, text)
        return Response(text, answer.status_code, media_type=answer.media_type)

    async def _lost(self, request: Request) -> Response:
        await self.answer(request)
        return await _never(request)


async def _never(request: Request) -> Response:
    await request.body()
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return Response()


async def _page(request: Request) -> Response:
    return PlainTextResponse("<html>It works!</html>")


async def _nothing(request: Request) -> Response:
    return PlainTextResponse("{}", 201, media_type="application/json")


async def _moved(request: Request) -> Response:
    return RedirectResponse("/elsewhere", 307)
