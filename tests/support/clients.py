"""One call, made by each of the four kinds of client that a payer serves."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import httpx2

from x402kit.client import Limits, Payer

KEY = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"
"""The second of anvil's well-known accounts."""
ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
KINDS = ("httpx", "httpx async", "httpx2", "httpx2 async")


def payer(**settings: Any) -> Payer:
    """A payer that may pay the tests' own sellers, and does not wait between its tries."""
    limits = settings.pop("limits", None) or Limits(per_call="$0.05")
    return Payer(KEY, limits=limits, allow_insecure=True, backoff=settings.pop("backoff", 0), **settings)


def client_of(paying: Payer, kind: str, **settings: Any) -> Any:
    match kind:
        case "httpx":
            return httpx.Client(transport=paying.transport(), **settings)
        case "httpx async":
            return httpx.AsyncClient(transport=paying.async_transport(), **settings)
        case "httpx2":
            return httpx2.Client(transport=paying.httpx2_transport(), **settings)
        case _:
            return httpx2.AsyncClient(transport=paying.async_httpx2_transport(), **settings)


def request(paying: Payer, kind: str, method: str, url: str, **options: Any) -> Any:
    """Any request by a client of its own, and its whole answer."""
    if kind.endswith("async"):
        return asyncio.run(_request(client_of(paying, kind), method, url, options))
    with client_of(paying, kind) as client:
        return client.request(method, url, **options)


async def _request(client: Any, method: str, url: str, options: dict[str, Any]) -> Any:
    async with client:
        return await client.request(method, url, **options)


def call(paying: Payer, kind: str, url: str, content: Any = b"hi", **settings: Any) -> Any:
    """POST, and read the answer."""
    headers = settings.pop("headers", None)
    extra = {"headers": headers} if headers else {}
    if kind.endswith("async"):
        return asyncio.run(_call(client_of(paying, kind, **settings), url, content, extra))
    with client_of(paying, kind, **settings) as client:
        return client.post(url, content=content, **extra)


async def _call(client: Any, url: str, content: Any, extra: dict[str, Any]) -> Any:
    async with client:
        return await client.post(url, content=content, **extra)
