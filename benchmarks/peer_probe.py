"""Measures the `x402` package, a round at a time, as it is asked on standard input. Runs in .venv-peers."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from typing import Any

import peer_app
from starlette.types import ASGIApp, Message, Scope
from x402.http import FacilitatorConfig, HTTPFacilitatorClient
from x402.schemas import parse_payment_payload, parse_payment_requirements

AT_ONCE = 16
_HEADERS = [
    (b"host", b"bench.test"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"bench"),
]


def scope(path: str, payment: bytes | None = None) -> Scope:
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
        "headers": _HEADERS if payment is None else [*_HEADERS, (b"payment-signature", payment)],
        "state": {},
    }


async def call(app: ASGIApp, request: Scope) -> list[Message]:
    sent: list[Message] = []
    asked = False
    done = asyncio.Event()

    async def receive() -> Message:
        nonlocal asked
        if asked:  # the package's base class listens for a disconnect, which comes when the answer is out
            await done.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            done.set()

    await app(request, receive, send)
    return sent


async def timed(app: ASGIApp, path: str, payments: list[bytes | None], status: int) -> float:
    turn = iter(payments)
    seen: set[int] = set()

    async def work() -> None:
        for payment in turn:
            seen.add((await call(app, scope(path, payment)))[0]["status"])

    started = time.process_time()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    spent = time.process_time() - started
    if seen != {status}:
        raise RuntimeError(f"the peer answered {seen}, not {status}")
    return spent / len(payments)


async def challenge_of(app: ASGIApp) -> dict[str, Any]:
    start = (await call(app, scope("/weather")))[0]
    return json.loads(base64.b64decode(dict(start["headers"])[b"payment-required"]))  # type: ignore[no-any-return]


class Cases:
    def __init__(self) -> None:
        self._app = peer_app.build()
        self._payer = peer_app.Payer()
        self._solana: ASGIApp | None = None

    async def unpriced(self, count: int, url: str) -> float:
        return await timed(self._app, "/free", [None] * count, 200)

    async def challenge(self, count: int, url: str) -> float:
        return await timed(self._app, "/weather", [None] * count, 402)

    async def paid(self, count: int, url: str) -> float:
        payments = await self._payments(count)
        headers: list[bytes | None] = [base64.b64encode(json.dumps(payment).encode()) for payment in payments]
        return await timed(self._app, "/weather", headers, 200)

    async def solana(self, count: int, url: str) -> float:
        """Paid on Solana, through the package's own facilitator in process."""
        import peer_svm  # only where it is asked for: the chain's packages take a while

        if self._solana is None:
            self._solana = peer_svm.build()
        offer = (await challenge_of(self._solana))["accepts"][0]
        payments = [peer_svm.pay(offer) for _ in range(count)]
        headers: list[bytes | None] = [base64.b64encode(json.dumps(payment).encode()) for payment in payments]
        return await timed(self._solana, "/weather", headers, 200)

    async def facilitator(self, count: int, url: str) -> float:
        """`count` calls to a facilitator at `url`, with the package's own client."""
        client = HTTPFacilitatorClient(FacilitatorConfig(url=url))
        payments = [parse_payment_payload(payment) for payment in await self._payments(count + 1)]
        wanted = parse_payment_requirements(2, payments[0].accepted.model_dump(by_alias=True))
        await client.verify(payments.pop(), wanted)
        started = time.process_time()
        for payment in payments:
            await client.verify(payment, wanted)
        spent = time.process_time() - started
        await client.aclose()
        return spent / count

    async def _payments(self, count: int) -> list[dict[str, Any]]:
        offer = (await challenge_of(self._app))["accepts"][0]
        return [self._payer.pay(offer) for _ in range(count)]


async def main() -> None:
    cases = Cases()
    await cases.paid(5, "")
    for line in sys.stdin:
        asked = json.loads(line)
        seconds = await getattr(cases, asked["case"])(asked["count"], asked["url"])
        print(json.dumps({"seconds": seconds}), flush=True)


asyncio.run(main())
