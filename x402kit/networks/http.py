"""One small JSON-over-HTTP client, for chain nodes and facilitators.

What a caller must know of a call that failed is one thing: whether it can have arrived. So nothing is raised; the three
results are types. No result holds a URL or what the other side wrote (I11); redirects are not followed (K05).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from ..errors import ConfigError, MissingExtra
from ..model import NESTING_MAX

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Answer", "JsonClient", "NotSent", "Unknown", "check_url"]

ANSWER_MAX: Final = 4 * 1024 * 1024
"""Bytes of an answer: a receipt with a thousand logs is about 1 MB."""
CONNECT_SECONDS: Final = 5.0
_HEADERS: Final = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with a JSON body, whatever its status."""

    status: int
    json: Any


@dataclass(frozen=True, slots=True)
class NotSent:
    """Certain that the request did not reach the other side: no connection came about."""

    why: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The request may have been acted on: time-out, broken connection, an answer that is no JSON or too large."""

    why: str


def check_url(url: str, what: str) -> str:
    """The URL, or ``ConfigError`` when it is no http(s) URL with a host; the message does not repeat it (I11)."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except (ValueError, AttributeError):
        valid = False
    if not valid:
        raise ConfigError(f"{what} is not an http or https URL")
    return url


_NO_BRACKETS: Final = bytes(code for code in range(256) if code not in b"[]{}")


def _is_deep(body: bytes) -> bool:
    """Whether JSON may be nested beyond ``NESTING_MAX``: the C parser recurses, and can end the process (A12).

    Brackets inside strings count too, which refuses only what no honest node or facilitator says.
    """
    brackets = body.translate(None, _NO_BRACKETS)
    if len(brackets) <= NESTING_MAX:
        return False
    depth = deepest = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest > NESTING_MAX


class JsonClient:
    """Keeps its connections; one session for each event loop, made on first use. ``close`` it in the same loop."""

    def __init__(self, *, seconds: float = 10.0, answer_max: int = ANSWER_MAX) -> None:
        self._seconds = seconds
        self._answer_max = answer_max
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    async def post(
        self, url: str, body: Any, *, headers: Mapping[str, str] | None = None, seconds: float | None = None
    ) -> Answer | NotSent | Unknown:
        """Send ``body`` as JSON. ``seconds`` covers the whole exchange."""
        data = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        return await self._exchange("POST", url, data, headers, seconds)

    async def get(
        self, url: str, *, headers: Mapping[str, str] | None = None, seconds: float | None = None
    ) -> Answer | NotSent | Unknown:
        """Fetch a JSON document."""
        return await self._exchange("GET", url, None, headers, seconds)

    async def close(self) -> None:
        """Close this loop's connections."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    async def _exchange(
        self, method: str, url: str, data: bytes | None, headers: Mapping[str, str] | None, seconds: float | None
    ) -> Answer | NotSent | Unknown:
        session = self._session()
        import aiohttp

        limit = aiohttp.ClientTimeout(total=seconds or self._seconds, sock_connect=CONNECT_SECONDS)
        try:
            async with session.request(
                method, url, data=data, headers=headers, allow_redirects=False, timeout=limit
            ) as response:
                body = await self._body(response)
                status = response.status
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL):
            return NotSent("unreachable")
        except TimeoutError:
            return Unknown("timeout")
        except (aiohttp.ClientError, OSError):
            return Unknown("disconnected")
        if body is None:
            return Unknown("too-large")
        if _is_deep(body):
            return Unknown("nested")
        try:
            return Answer(status, json.loads(body))
        except ValueError:
            return Unknown("not-json")

    async def _body(self, response: aiohttp.ClientResponse) -> bytes | None:
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > self._answer_max:
                response.close()
                return None
            chunks.append(chunk)
        return b"".join(chunks)

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = self._open()
        return session

    def _open(self) -> aiohttp.ClientSession:
        try:
            import aiohttp
        except ImportError as e:
            raise MissingExtra("evm", "aiohttp") from e
        return aiohttp.ClientSession(
            headers=_HEADERS, cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=100)
        )
