"""The transports for httpx, and the payer's errors as that family's own."""

from __future__ import annotations

import httpx

from ..errors import PaymentOutcomeUnknown
from .core import Setup
from .exchange import AsyncReplay, Family, Replay
from .transport import Approve, AsyncDriver, Driver

__all__ = ["AsyncPayingTransport", "PayingTransport"]


class _Replay(Replay, httpx.SyncByteStream):
    pass


class _AsyncReplay(AsyncReplay, httpx.AsyncByteStream):
    pass


class OutcomeUnknownTimeout(PaymentOutcomeUnknown, httpx.ReadTimeout):
    """Also a time-out of httpx, so that what retries those shows the same payment again (M02)."""

    def __init__(self, unknown: PaymentOutcomeUnknown) -> None:
        httpx.ReadTimeout.__init__(self, str(unknown))
        self.reference = unknown.reference


_HTTPX = Family(
    request=httpx.Request,
    response=httpx.Response,
    byte_stream=httpx.ByteStream,
    transport_error=httpx.TransportError,
    decoding_error=httpx.DecodingError,
    invalid_url=httpx.InvalidURL,
    not_sent=(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol),
    unknown=OutcomeUnknownTimeout,
    replay=_Replay,
    async_replay=_AsyncReplay,
)


class PayingTransport(httpx.BaseTransport):
    """For ``httpx.Client(transport=...)``; closing it closes the inner one. Made by ``Payer.transport``."""

    def __init__(self, setup: Setup, approve: Approve | None, inner: httpx.BaseTransport | None) -> None:
        self._driver = Driver(_HTTPX, setup, approve, inner or httpx.HTTPTransport())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._driver.pay(request)

    def close(self) -> None:
        self._driver.inner.close()


class AsyncPayingTransport(httpx.AsyncBaseTransport):
    """For ``httpx.AsyncClient(transport=...)``; closing it closes the inner one. Made by ``Payer.async_transport``."""

    def __init__(self, setup: Setup, approve: Approve | None, inner: httpx.AsyncBaseTransport | None) -> None:
        self._driver = AsyncDriver(_HTTPX, setup, approve, inner or httpx.AsyncHTTPTransport())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._driver.pay(request)

    async def aclose(self) -> None:
        await self._driver.inner.aclose()
