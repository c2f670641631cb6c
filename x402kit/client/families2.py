"""The same for httpx2, on which the current openai and anthropic SDKs stand. Imported only when it is asked for.

httpx2's classes have the shape of httpx's; the casts say so, here and nowhere else.
"""

from __future__ import annotations

from typing import Any, cast

import httpx2

from ..errors import PaymentOutcomeUnknown
from .core import Setup
from .exchange import AsyncReplay, Family, Replay
from .transport import Approve, AsyncDriver, Driver

__all__ = ["AsyncPayingTransport", "PayingTransport"]


class _Replay(Replay, httpx2.SyncByteStream):
    pass


class _AsyncReplay(AsyncReplay, httpx2.AsyncByteStream):
    pass


class OutcomeUnknownTimeout(PaymentOutcomeUnknown, httpx2.ReadTimeout):
    """Also a time-out of httpx2, so that what retries those shows the same payment again (M02)."""

    def __init__(self, unknown: PaymentOutcomeUnknown) -> None:
        httpx2.ReadTimeout.__init__(self, str(unknown))
        self.reference = unknown.reference


_HTTPX2 = Family(
    request=cast(Any, httpx2.Request),
    response=cast(Any, httpx2.Response),
    byte_stream=cast(Any, httpx2.ByteStream),
    transport_error=cast(Any, httpx2.TransportError),
    decoding_error=cast(Any, httpx2.DecodingError),
    invalid_url=httpx2.InvalidURL,
    not_sent=cast(Any, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)),
    unknown=OutcomeUnknownTimeout,
    replay=_Replay,
    async_replay=_AsyncReplay,
)


class PayingTransport(httpx2.BaseTransport):
    """For ``httpx2.Client(transport=...)``; closing it closes the inner one. Made by ``Payer.httpx2_transport``."""

    def __init__(self, setup: Setup, approve: Approve | None, inner: httpx2.BaseTransport | None) -> None:
        self._driver = Driver(_HTTPX2, setup, approve, cast(Any, inner or httpx2.HTTPTransport()))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return cast(httpx2.Response, self._driver.pay(cast(Any, request)))

    def close(self) -> None:
        self._driver.inner.close()


class AsyncPayingTransport(httpx2.AsyncBaseTransport):
    """For ``httpx2.AsyncClient(transport=...)``; closing it closes the inner one."""

    def __init__(self, setup: Setup, approve: Approve | None, inner: httpx2.AsyncBaseTransport | None) -> None:
        self._driver = AsyncDriver(_HTTPX2, setup, approve, cast(Any, inner or httpx2.AsyncHTTPTransport()))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return cast(httpx2.Response, await self._driver.pay(cast(Any, request)))

    async def aclose(self) -> None:
        await self._driver.inner.aclose()
