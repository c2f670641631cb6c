"""A lying, slow or broken REST service: a real HTTP proxy in front of the real one, with faults by path."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from .handling import handling

__all__ = ["HTML", "FaultyHttp", "HttpFault", "faulty_http"]

HTML = "<html><body>502 Bad Gateway at http://node.internal:8080/?key=SECRET</body></html>"


@dataclass
class HttpFault:
    """What happens to a request. ``forward``: the real service gets it; ``delay``: seconds before the answer.

    Then, the first that is set: ``drop`` breaks the connection, ``text`` is any body, ``body`` any JSON, both with
    ``status``; ``change`` edits the true JSON; ``location`` is where a redirect leads. ``times``: how often.
    """

    forward: bool = True
    delay: float = 0
    drop: bool = False
    text: str | None = None
    body: Any = None
    status: int = 200
    change: Callable[[Any], Any] | None = None
    location: str = ""
    times: int = -1


@dataclass
class FaultyHttp:
    """``faults`` by the beginning of the path; ``seen`` counts the requests that came, by path."""

    target: str
    url: str = ""
    faults: dict[str, HttpFault] = field(default_factory=dict[str, HttpFault])
    seen: Counter[str] = field(default_factory=Counter[str])
    open: set[asyncio.Transport] = field(default_factory=set[asyncio.Transport])

    def cut(self) -> None:
        """Break every connection that is being answered."""
        for transport in self.open:
            transport.abort()

    def fault_for(self, path: str) -> HttpFault | None:
        for start, fault in self.faults.items():
            if path.startswith(start) and fault.times != 0:
                fault.times -= 1
                return fault
        return None


@asynccontextmanager
async def faulty_http(target: str, *, tls: ssl.SSLContext | None = None) -> AsyncGenerator[FaultyHttp]:
    """The proxy on a free loopback port; with ``tls`` it speaks https to those who come."""
    proxy = FaultyHttp(target)
    no_limit = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=no_limit, auto_decompress=False) as upstream:

        async def handle(request: web.Request) -> web.StreamResponse:
            proxy.seen[request.path] += 1
            transport = request.transport
            assert transport is not None
            proxy.open.add(transport)
            try:
                return await _serve(proxy, upstream, request, transport)
            finally:
                proxy.open.discard(transport)

        async with handling(handle, tls=tls, cancels=True) as proxy.url:
            try:
                yield proxy
            finally:
                proxy.cut()


async def _serve(
    proxy: FaultyHttp, upstream: aiohttp.ClientSession, request: web.Request, transport: asyncio.Transport
) -> web.StreamResponse:
    fault = proxy.fault_for(request.path)
    headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "content-length")}
    data = await request.read()
    if fault is None:
        async with upstream.request(request.method, proxy.target + request.path_qs, headers=headers, data=data) as true:
            return await _pass_on(true, request)
    status, body = fault.status, b""
    if fault.forward:
        async with upstream.request(request.method, proxy.target + request.path_qs, headers=headers, data=data) as true:
            status, body = true.status, await true.read()
    await asyncio.sleep(fault.delay)
    if fault.drop:
        transport.abort()
        return web.Response()
    return _lie(fault, status, body)


async def _pass_on(true: aiohttp.ClientResponse, request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(status=true.status, headers={"Content-Type": true.content_type})
    await answer.prepare(request)
    async for chunk in true.content.iter_any():
        await answer.write(chunk)
    await answer.write_eof()
    return answer


def _lie(fault: HttpFault, status: int, body: bytes) -> web.Response:
    if fault.location:
        return web.Response(status=307, headers={"Location": fault.location})
    if fault.text is not None:
        return web.Response(status=fault.status, text=fault.text, content_type="text/html")
    if fault.body is not None:
        return web.Response(status=fault.status, text=json.dumps(fault.body), content_type="application/json")
    if fault.change is not None:
        body = json.dumps(fault.change(json.loads(body))).encode()
    return web.Response(status=status, body=body, content_type="application/json")
