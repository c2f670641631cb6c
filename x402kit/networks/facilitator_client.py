"""Calls to a facilitator: its URL, the headers that it wants, and a pause when it keeps failing.

Only the configured URL is asked, by https, and no redirect is followed (K05).
"""

from __future__ import annotations

import inspect
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..model import Json
from .foreign import ForeignFault, foreign
from .http import Answer, JsonClient, NotSent, Unknown, check_url

__all__ = ["FacilitatorClient", "Headers"]

log = logging.getLogger("x402kit.facilitator")

Endpoint = Literal["verify", "settle", "supported"]
Headers = Mapping[str, str] | Callable[[str], Mapping[str, str] | Awaitable[Mapping[str, str]]]
"""Headers for all calls, or a function of the endpoint's name: some want a fresh token for each endpoint."""

ANSWER_MAX: Final = 1024 * 1024
FAILURES_MAX: Final = 3
"""Calls in a row that must fail before new payments are turned away…"""
PAUSE_SECONDS: Final = 5.0
"""…for so long; the call after that decides whether for as long again."""


class FacilitatorClient:
    """One facilitator. Nothing is raised for what it does; see http.py for the three kinds of result."""

    def __init__(
        self, url: str, headers: Headers | None, *, seconds: float, settle_seconds: float, allow_insecure: bool
    ) -> None:
        """Raises ``ConfigError``."""
        self._url = _checked(url, allow_insecure)
        self._headers = headers
        self._seconds = {"settle": settle_seconds, "verify": seconds, "supported": seconds}
        self._client = JsonClient(answer_max=ANSWER_MAX)
        self._failures = 0
        self._closed_until = 0.0

    @property
    def paused(self) -> bool:
        """Whether it failed so often, a moment ago, that it is not worth asking."""
        return time.monotonic() < self._closed_until

    async def call(self, endpoint: Endpoint, body: Json | None = None, *, key: str = "") -> Answer | NotSent | Unknown:
        """POST a body, or GET without one. Calls with the same ``key`` are one call, repeated."""
        seconds = self._seconds[endpoint]
        try:
            headers = await foreign(self._headers_for(endpoint), seconds)
        except ForeignFault as e:
            log.error("ALERT: no headers for the facilitator's /%s: %s", endpoint, e)
            return NotSent("headers")
        if key:
            headers["Idempotency-Key"] = key
        url = f"{self._url}/{endpoint}"
        if body is None:
            answer = await self._client.get(url, headers=headers, seconds=seconds)
        else:
            answer = await self._client.post(url, body, headers=headers, seconds=seconds)
        self._note(endpoint, answer)
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _headers_for(self, endpoint: str) -> dict[str, str]:
        made = self._headers
        if callable(made):
            found = made(endpoint)
            made = await found if inspect.isawaitable(found) else found
        headers = dict(made or {})
        if not all(_is_header(part) for pair in headers.items() for part in pair):
            raise ValueError("not headers")
        return headers

    def _note(self, endpoint: str, answer: Answer | NotSent | Unknown) -> None:
        if isinstance(answer, Answer) and answer.status in (401, 403):
            log.error("ALERT: the facilitator refuses our credentials for /%s (%d)", endpoint, answer.status)
        elif isinstance(answer, Answer) and answer.status < 500 and answer.status != 429:
            self._failures = 0
            return
        elif not self._failures:
            silent = "no connection" if isinstance(answer, NotSent) else "no usable answer"
            said = f"status {answer.status}" if isinstance(answer, Answer) else silent
            # Only a /settle that may have arrived leaves something open; what comes after it is not sent at all.
            is_open = endpoint == "settle" and not isinstance(answer, NotSent)
            what = "this payment's outcome is not known (504), and others" if is_open else "payments"
            log.warning("the facilitator's /%s: %s; %s are answered 503 until it is back", endpoint, said, what)
        self._failures += 1
        if self._failures >= FAILURES_MAX:
            self._closed_until = time.monotonic() + PAUSE_SECONDS


def _is_header(part: Any) -> bool:
    return isinstance(part, str) and part.isascii() and part.isprintable()


def _checked(url: str, allow_insecure: bool) -> str:
    parts = urlsplit(check_url(url, "facilitator"))
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError("the facilitator's URL has credentials, a query or a fragment; give secrets as headers")
    if parts.scheme != "https" and not allow_insecure and not _is_loopback(parts.hostname or ""):
        raise ConfigError("the facilitator's URL is not https")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
