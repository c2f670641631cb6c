"""A lying, slow or broken chain node: a real HTTP proxy in front of the real one, with faults by method."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from .handling import handling

__all__ = ["Fault", "FaultyRpc", "faulty_rpc"]

HTML = "<html><body>502 Bad Gateway at http://node.internal:8545/?key=SECRET</body></html>"


@dataclass
class Fault:
    """What happens to a call. ``forward``: the real node gets it. ``times``: how often, for ever by default.

    Then, the first that is set: ``drop`` breaks the connection, ``html`` is a gateway's error page with that status,
    ``text`` any body, ``error`` a JSON-RPC error, ``result`` a made-up result, ``change`` edits the true one.
    """

    forward: bool = True
    delay: float = 0
    drop: bool = False
    html: int = 0
    text: str | None = None
    error: dict[str, Any] | None = None
    result: Any = ...
    change: Callable[[Any], Any] | None = None
    when: Callable[[list[Any]], bool] = lambda params: True
    times: int = -1


@dataclass
class FaultyRpc:
    """``faults`` by JSON-RPC method, ``"*"`` for all; ``seen`` counts the calls that came."""

    target: str
    url: str = ""
    faults: dict[str, Fault] = field(default_factory=dict[str, Fault])
    seen: Counter[str] = field(default_factory=Counter[str])

    def fault_for(self, method: str, params: list[Any]) -> Fault:
        for name in (method, "*"):
            fault = self.faults.get(name)
            if fault is not None and fault.times != 0 and fault.when(params):
                fault.times -= 1
                return fault
        return Fault()


@asynccontextmanager
async def faulty_rpc(target: str) -> AsyncGenerator[FaultyRpc]:
    """The proxy on a free loopback port."""
    proxy = FaultyRpc(target)
    async with aiohttp.ClientSession() as upstream:

        async def handle(request: web.Request) -> web.StreamResponse:
            call = await request.json()
            proxy.seen[call["method"]] += 1
            fault = proxy.fault_for(call["method"], call["params"])
            answer: dict[str, Any] = {"jsonrpc": "2.0", "id": call["id"], "result": None}
            if fault.forward:
                async with upstream.post(target, json=call) as response:
                    answer = await response.json()
            if fault.delay:
                await asyncio.sleep(fault.delay)
            return _answer(request, fault, answer)

        async with handling(handle) as url:
            proxy.url = url + "/"
            yield proxy


def _answer(request: web.Request, fault: Fault, answer: dict[str, Any]) -> web.StreamResponse:
    if fault.drop:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
    if fault.html:
        return web.Response(status=fault.html, text=HTML, content_type="text/html")
    if fault.text is not None:
        return web.Response(text=fault.text, content_type="application/json")
    if fault.error is not None:
        answer = {"jsonrpc": "2.0", "id": answer["id"], "error": fault.error}
    elif fault.result is not ...:
        answer = {**answer, "result": fault.result}
    elif fault.change is not None and "result" in answer:
        answer["result"] = fault.change(answer["result"])
    return web.Response(text=json.dumps(answer), content_type="application/json")
