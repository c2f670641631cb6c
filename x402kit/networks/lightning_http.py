"""How a Lightning node's REST service is talked to: one connection pool for each node, and strict reading.

``exchange`` raises nothing and tells whether a request can have arrived, which is what a payment must know; ``ask``
raises ``RailUnavailable``. Neither a result nor an error holds an address, a key or the node's own words (I11).
Redirects are not followed (K05), proxies of the environment not used: a node's key goes to the node alone.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from os import PathLike
from typing import Any, Final

import httpx

from ..errors import ConfigError, NodeUnreachable, RailUnavailable
from ..protocols.encoding import parse_json
from .http import ANSWER_MAX, CONNECT_SECONDS, Answer, NotSent, Unknown, check_url
from .pinned_tls import pinned

__all__ = ["NodeHttp", "RestNode", "header_secret"]

SECONDS: Final = 15.0
LINE_MAX: Final = 256 * 1024
"""Bytes of one line of a stream."""
_PROBES: Final = tuple(
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
)
"""A stream may be silent for hours; a node that is gone without a word is noticed by these all the same."""
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


def header_secret(value: str, what: str) -> str:
    """The secret, or ``ConfigError`` when it is empty or can't stand in a header; the message does not show it."""
    if not value or not value.isascii() or not value.isprintable() or value != value.strip():
        raise ConfigError(f"{what} is empty or has characters that no key has")
    return value


class NodeHttp:
    """The REST service of one node. ``start`` it in the event loop that uses it, and ``close`` it there."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        cert: str | PathLike[str] = "",
        seconds: float = SECONDS,
    ) -> None:
        """No traffic. Raises ``ConfigError``."""
        self._url = check_url(url, "the Lightning node's address").rstrip("/")
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        self._verify: ssl.SSLContext | bool = pinned(cert) if cert else True
        self._seconds = seconds
        self._client: httpx.AsyncClient | None = None
        self._transport: httpx.AsyncHTTPTransport | None = None

    async def start(self) -> None:
        """Open the pool."""
        await self.close()
        self._transport = transport = httpx.AsyncHTTPTransport(
            verify=self._verify,
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20),
            trust_env=False,
            socket_options=((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *_PROBES),
        )
        self._client = httpx.AsyncClient(
            headers=self._headers,
            transport=transport,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections; it may be started again."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        seconds: float | None = None,
        line: bool = False,
    ) -> Answer | NotSent | Unknown:
        """One request. ``seconds`` covers the whole exchange; an error status may come without JSON (``None``).

        ``line``: of an answer that goes on, the first line alone.
        """
        if self._client is None:
            return NotSent("not-started")
        request = self._client.build_request(method, self._url + path, json=json, data=form, params=params)
        try:
            async with asyncio.timeout(seconds or self._seconds):
                response = await self._send(request)
                try:
                    body = await _body(response, line=line and response.status_code == 200)
                finally:
                    await response.aclose()
        except _NOT_SENT as e:
            return NotSent("certificate" if _is_certificate(e) else "unreachable")
        except (TimeoutError, httpx.TimeoutException):
            return Unknown("timeout")
        except (httpx.HTTPError, OSError):
            return Unknown("disconnected")
        return _answer(response.status_code, body)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """By the transport itself: the client's own ``send`` writes every address into the log (I11)."""
        assert self._transport is not None
        response = await self._transport.handle_async_request(request)
        response.request = request
        return response

    async def ask(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> Any:
        """What a good answer (2xx) says. Raises ``RailUnavailable`` for any other."""
        answer = await self.exchange(method, path, json=json, form=form, params=params, seconds=seconds)
        return self.good(answer)

    def good(self, answer: Answer | NotSent | Unknown) -> Any:
        """The JSON of an answer with status 2xx. Raises ``RailUnavailable``."""
        if not isinstance(answer, Answer):
            raise RailUnavailable(detail=f"the Lightning node: {answer.why}")
        if not 200 <= answer.status < 300:
            raise RailUnavailable(detail=f"the Lightning node answered {answer.status}")
        return answer.json

    async def first(self, method: str, path: str, *, json: Any = None, what: str) -> Any:
        """As ``ask``, at the start: ``ConfigError`` says whether it is the address, the certificate or the key."""
        return self.judged(await self.exchange(method, path, json=json), what)

    def judged(self, answer: Answer | NotSent | Unknown, what: str) -> Any:
        """The JSON of a first answer. Raises ``ConfigError``, as ``first``."""
        if isinstance(answer, NotSent):
            if answer.why == "certificate":
                why = "shows a certificate that is not to be trusted: another than was given, or out of date"
                raise ConfigError(f"the {what} {why}")
            raise NodeUnreachable(f"the {what} is not there, or refuses connections")
        if isinstance(answer, Unknown):
            raise NodeUnreachable(f"the {what} gives no usable answer ({answer.why})")
        if answer.status in (401, 403):
            raise ConfigError(f"the {what} refuses the key ({answer.status})")
        if answer.status >= 500:
            raise NodeUnreachable(f"the {what} answered {answer.status}")
        if not 200 <= answer.status < 300:
            raise ConfigError(f"the {what} answered {answer.status}")
        return answer.json

    async def opened(self, method: str, path: str, read: Callable[[Any], str], what: str, *, json: Any = None) -> str:
        """Start, ask once, and give what ``read`` finds in the answer: the network. Closed again if it does not."""
        await self.start()
        found = ""
        try:
            found = read(await self.first(method, path, json=json, what=what))
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"what answers there is no {what}") from None
        finally:
            if not found:
                await self.close()
        return found

    async def lines(
        self, method: str, path: str, *, json: Any = None, params: Mapping[str, str] | None = None, late: bool = False
    ) -> AsyncGenerator[Any]:
        """The documents of an answer that goes on, one on each line. Raises ``RailUnavailable`` when it ends.

        ``late``: it may begin whenever it has something to say, its headers too.
        """
        if self._client is None:
            raise RailUnavailable(detail="the Lightning node: not started")
        request = self._client.build_request(method, self._url + path, json=json, params=params)
        try:
            async with asyncio.timeout(None if late else self._seconds):
                response = await self._send(request)
        except (TimeoutError, httpx.HTTPError, OSError):
            raise RailUnavailable(detail="the Lightning node's stream does not open") from None
        try:
            if response.status_code != 200:
                raise RailUnavailable(detail=f"the Lightning node answered {response.status_code}")
            async for line in _lines(response):
                yield parse_json(line, floats=True)
        except (ValueError, httpx.HTTPError, OSError):
            raise RailUnavailable(detail="the Lightning node's stream broke") from None
        finally:
            await response.aclose()
        raise RailUnavailable(detail="the Lightning node's stream ended")


async def _body(response: httpx.Response, *, line: bool = False) -> bytes | None:
    """``None``: too large, or compressed although we asked for the bytes as they are."""
    made = bytearray()
    if response.headers.get("content-encoding", "identity") != "identity":
        return None
    async for chunk in response.aiter_raw():
        made += chunk
        if len(made) > ANSWER_MAX:
            return None
        if line and b"\n" in made:
            return bytes(made).split(b"\n", 1)[0]
    return bytes(made)


def _answer(status: int, body: bytes | None) -> Answer | Unknown:
    try:
        return Answer(status, parse_json(body or b"", floats=True))
    except ValueError:
        return Unknown("too-large" if body is None else "not-json") if 200 <= status < 300 else Answer(status, None)


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes]:
    rest = b""
    async for chunk in response.aiter_raw():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
        if len(rest) > LINE_MAX:
            raise ValueError("a line is too long")


def _is_certificate(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


class RestNode:
    """What every adapter over HTTP has: its connections, and the node's network, known once it has started."""

    _http: NodeHttp
    _network = ""

    @property
    def network(self) -> str:
        """CAIP-2."""
        return self._network

    async def close(self) -> None:
        """Close the connections; it may be started again."""
        await self._http.close()
