"""A facilitator that really settles, and then loses, spoils, delays or invents its answers, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from x402kit.model import Json

__all__ = ["DROPPED", "HTML", "HTML_502", "LOST", "Call", "Fault", "FaultyFacilitator"]

HTML = b"<html><body>upstream at 10.0.0.7 said no</body></html>"


@dataclass(frozen=True)
class Fault:
    """What is wrong with one call. ``forward``: whether the facilitator behind acts on it before it goes wrong."""

    forward: bool = True
    status: int | None = None
    body: bytes | None = None
    json: Any = None
    change: Callable[[Json], Any] | None = None
    drop: bool = False
    delay: float = 0.0
    location: str = ""


LOST = Fault(drop=True)
DROPPED = Fault(drop=True, forward=False)
HTML_502 = Fault(status=502, body=HTML)


@dataclass(frozen=True)
class Call:
    """A call as it came."""

    endpoint: str
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Json:
        made: Json = json.loads(self.data)
        return made


@dataclass
class FaultyFacilitator:
    """In front of ``behind``. ``faults[endpoint]`` is used up call by call; without one, the call goes through."""

    behind: ASGIApp
    faults: dict[str, list[Fault]] = field(default_factory=dict[str, list[Fault]])
    calls: list[Call] = field(default_factory=list[Call])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, endpoint: str) -> list[Call]:
        return [call for call in self.calls if call.endpoint == endpoint]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.behind(scope, receive, send)
            return
        endpoint = scope["path"].rpartition("/")[2]
        data = await _body(receive)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        with self._lock:
            self.calls.append(Call(endpoint, headers, data))
            waiting = self.faults.get(endpoint, [])
            fault = waiting.pop(0) if waiting else Fault()
        status, passed, answer = await self._behind(scope, data) if fault.forward else (200, [], b"{}")
        await asyncio.sleep(fault.delay)
        if fault.drop:
            cycle: Any = send
            cycle.__self__.transport.abort()
            return
        passed += [(b"location", fault.location.encode())] if fault.location else []
        await _reply(send, fault.status or status, passed, _spoiled(fault, answer))

    async def _behind(self, scope: Scope, data: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        status, headers, parts = 0, list[tuple[bytes, bytes]](), list[bytes]()

        async def receive() -> Message:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            headers.extend(pair for pair in message.get("headers", ()) if pair[0] != b"content-length")
            parts.append(message.get("body", b""))

        await self.behind(scope, receive, send)
        return status, headers, b"".join(parts)


def _spoiled(fault: Fault, answer: bytes) -> bytes:
    if fault.body is not None:
        return fault.body
    if fault.json is not None:
        return json.dumps(fault.json).encode()
    if fault.change is not None:
        return json.dumps(fault.change(json.loads(answer))).encode()
    return answer


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _reply(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
