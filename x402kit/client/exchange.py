"""What the drivers of both kinds share: one request, the answer that the core looks at, and streams that play again.

Written against httpx's names; ``Family`` holds the classes themselves, httpx's or httpx2's, which have one shape.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import httpx

from ..errors import PaymentOutcomeUnknown, UnreplayableBody
from ..model import BYTES_NESTED_MAX
from .challenge import has_payment
from .core import Attempt, Setup
from .ending import Ending
from .policy import Target
from .proofs import has_proof
from .receipts import EXTENSION, PaymentInfo
from .redirects import Led
from .steps import Answer, Lost, Send, Steps, Store

__all__ = [
    "BODY_SECONDS",
    "NETWORK",
    "PROVES",
    "REST_SECONDS",
    "TOP_UP",
    "AsyncReplay",
    "Exchange",
    "Family",
    "Head",
    "Replay",
    "is_ours",
]

BUFFER_MAX: Final = 1024 * 1024
"""Bytes of a request body of known length that are read into memory, so that it can be sent twice (M11)."""
FIRST_ORIGIN: Final = "x402kit.first_origin"
"""Kept in a request's extensions, which a client hands on to the request that follows a redirect (M06)."""
TOP_UP: Final = "x402kit.top_up"
PROVES: Final = "x402kit.proves"
NETWORK: Final = "x402kit.network"
"""What our client of wallet services says of its requests: ``top_up``, ``proves`` and ``network`` of ``Target``."""
BODY_SECONDS: Final = 15.0
"""For which a 402's body is read: who sends it byte by byte would hold the call for days."""
REST_SECONDS: Final = 1.0
"""For which the rest of an answer is read that is of no use, so that its connection can be used again."""
_SLICE: Final = 1024
_FORM: Final = re.compile(r"multipart/form-data; boundary=([0-9a-f]{32})\Z")
"""A form whose boundary httpx has drawn. One that the caller chose stays."""


@dataclass(frozen=True, slots=True)
class Family:
    """The classes of httpx or of httpx2."""

    request: type[httpx.Request]
    response: type[httpx.Response]
    byte_stream: type[httpx.ByteStream]
    transport_error: type[httpx.TransportError]
    decoding_error: type[httpx.DecodingError]
    invalid_url: type[Exception]
    not_sent: tuple[type[httpx.TransportError], ...]
    """Errors after which the server has certainly seen nothing."""
    unknown: Callable[[PaymentOutcomeUnknown], Exception]
    replay: Callable[..., Any]
    async_replay: Callable[..., Any]


def is_ours(family: Family, setup: Setup, request: httpx.Request) -> bool:
    """Whether the core handles a request; its body is then in memory, or short and of known length.

    Not ours: one that carries a payment or a wallet proof of the caller's own, and a stream to a host that is never
    paid. Raises ``UnreplayableBody`` for other streams, before any I/O.
    """
    if has_payment(request.headers) or has_proof(request.headers):
        return False
    length = request.headers.get("content-length", "")
    is_short = length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= BUFFER_MAX
    if is_short or isinstance(request.stream, family.byte_stream):
        return True
    if not setup.policy.allows_host(_host(request.url), _port(request.url)):
        return False
    raise UnreplayableBody("a streamed body can't be sent again with a payment; give it as bytes")


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii").lower()


def _port(url: httpx.URL) -> int | None:
    return url.port or {"https": 443, "http": 80}.get(url.scheme)


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _steady(family: Family, request: httpx.Request) -> httpx.Request:
    """A form with a boundary that follows from its content: SDKs' retries draw a new one each, and with it they would
    be other calls, to be paid anew (M02), whose body is not the one that was paid for.
    """
    found = _FORM.match(request.headers.get("content-type", ""))
    if found is None:
        return request
    drawn = b"--" + found[1].encode()
    made = hashlib.sha256(request.content.replace(drawn, b"--")).hexdigest()[:32]
    headers = request.headers.copy()
    headers["content-type"] = f"multipart/form-data; boundary={made}"
    content = request.content.replace(drawn, b"--" + made.encode())
    return family.request(request.method, request.url, headers=headers, content=content, extensions=request.extensions)


def _target(request: httpx.Request, paid: str) -> Target:
    url, origin = request.url, _origin(request.url)
    place = origin + url.raw_path.decode("ascii")
    parts = (request.method.encode(), place.encode(), request.content)
    fingerprint = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
    hints = request.extensions
    return Target(
        request.method,
        place,
        _host(url),
        _port(url),
        url.scheme == "https",
        fingerprint,
        origin,
        first_origin=hints[FIRST_ORIGIN],
        key=request.headers.get("idempotency-key", ""),
        top_up=hints.get(TOP_UP),
        proves=hints.get(PROVES) is True,
        network=hints.get(NETWORK, ""),
        authorized="authorization" in request.headers,
        digest=hashlib.sha256(request.content).digest(),
        paid=paid,
    )


def _longer(timeout: Any, least: float) -> dict[str, Any]:
    """The paid leg's read time-out is no shorter than a settlement may take (I-12); None is without end."""
    made = dict(timeout or {})
    if made.get("read") is not None:
        made["read"] = max(made["read"], least)
    return made


class _Enough(Exception):
    """The end of what is looked at."""


class _NoMore(Iterator[bytes]):
    def __next__(self) -> bytes:
        raise _Enough


class Exchange:
    """One request of the client's, and the answer that the core looks at."""

    def __init__(self, family: Family, setup: Setup, request: httpx.Request) -> None:
        self._family = family
        request.extensions.setdefault(FIRST_ORIGIN, _origin(request.url))
        self._asked, self._request = request, _steady(family, request)
        self.response: httpx.Response | None = None
        self._led = Led.of(request)
        target = _target(self._request, self._led.payment.reference if self._led else "")
        self.attempt, self._setup = Attempt(setup, target), setup

    def steps(self) -> Steps:
        """The core's."""
        if self._led is not None:
            yield Store(partial(self._led.reopen, self))
        return (yield from self.attempt.steps())

    def outgoing(self, step: Send) -> httpx.Request:
        """The client's request, or a copy with the payment or the proof: its own headers stay without one (M06)."""
        request = self._request
        if not step.headers:
            return request
        headers = request.headers.copy()
        headers.update(step.headers)
        extensions = {**request.extensions, "timeout": _longer(request.extensions.get("timeout"), step.read_timeout)}
        return self._family.request(
            request.method, request.url, headers=headers, stream=request.stream, extensions=extensions
        )

    def answered(self, response: httpx.Response) -> Answer:
        self.response = response
        return Answer(response.status_code, response.headers, tuple(response.headers.get_list("www-authenticate")))

    def lost(self, error: httpx.TransportError) -> Lost:
        return Lost(error, sent=not isinstance(error, self._family.not_sent))

    def decode(self, raw: bytes) -> bytes | None:
        """A body without its content encoding, up to the limit: a small bomb stays small."""
        assert self.response is not None
        slices = [raw[i : i + _SLICE] for i in range(0, len(raw), _SLICE)]
        stream = self._family.replay(slices, iter(()), None)
        copy = self._family.response(200, headers=self.response.headers, stream=stream)
        out = bytearray()
        try:
            for chunk in copy.iter_bytes():
                out += chunk
                if len(out) > BYTES_NESTED_MAX:
                    return None
        except self._family.decoding_error:
            return None
        return bytes(out)

    def look(self, head: bytes) -> Exception | None:
        """What is wrong with a body by its beginning: one that is not in its encoding is an answer that did not come,
        and SDKs call again for it (M02).
        """
        assert self.response is not None
        if "content-encoding" not in self.response.headers:
            return None
        stream = self._family.replay([head[:_SLICE]], _NoMore(), None)
        try:
            for _ in self._family.response(200, headers=self.response.headers, stream=stream).iter_bytes():
                pass
        except self._family.decoding_error as error:
            return error
        except _Enough:
            pass
        return None

    @property
    def is_read(self) -> bool:
        """Whether the inner transport has read the answer: then its stream is at its end, and to read on may hang."""
        assert self.response is not None
        return self.response.is_stream_consumed

    def content(self) -> bytes | None:
        """The body that the inner transport has read; None where it kept none, or it is over the limit."""
        assert self.response is not None
        try:
            made = self.response.content
        except RuntimeError:  # httpx's own for a stream whose content is gone
            return None
        return made if len(made) <= BYTES_NESTED_MAX else None

    def finished(self, info: PaymentInfo | None) -> tuple[httpx.Response, Ending | None]:
        """The answer for the client, and what its body must call at its end, where a payment waits for that."""
        response, led, paid = self.response, self._led, self.attempt.paid
        assert response is not None
        if info is not None:
            response.extensions = {**response.extensions, EXTENSION: info}
        if response.has_redirect_location:
            led = None  # it leads on
            if info is not None and paid is not None:
                Led(self._setup.journal, self._setup.now, paid, info).mark(self._asked)

        if led is None and not self.attempt.in_use:
            return response, None
        return response, Ending(self.attempt, info, led, response.status_code, self._astray())

    def _astray(self) -> Exception | None:
        """What the client will say of an answer that leads nowhere, which so does not come (M02)."""
        assert self.response is not None
        if self.response.has_redirect_location:
            try:
                self._asked.url.join(self.response.headers["location"])
            except self._family.invalid_url as error:
                return error
        return None

    @property
    def is_open(self) -> bool:
        """Whether ``interrupted`` has something to write."""
        return self.attempt.is_open or self._led is not None

    def interrupted(self, error: BaseException) -> None:
        """The call ends before its answer did. Blocks."""
        if self._led is not None:
            self._led.ended(0, error)
        self.attempt.interrupted(error)


class Head:
    """The beginning of a body that was looked at: chunks up to the limits, and whether that was all."""

    def __init__(self, seconds: float) -> None:
        self.chunks: list[bytes] = []
        self.whole = True
        self._size, self._until = 0, time.monotonic() + seconds

    def add(self, chunk: bytes) -> bool:
        """Whether there may be more that is worth reading."""
        self.chunks.append(chunk)
        self._size += len(chunk)
        self.whole = self._size <= BYTES_NESTED_MAX and time.monotonic() < self._until
        return self.whole


class Replay:
    """A body: chunks that were read already, the rest, and what to call once when it has come, broke, or is closed.

    ``look``: what is wrong with it by its first chunk, as ``Exchange.look`` says.
    """

    def __init__(
        self,
        head: Sequence[bytes],
        rest: Iterator[bytes],
        inner: Any,
        end: Callable[[BaseException | None], None] | None = None,
        look: Callable[[bytes], Exception | None] | None = None,
    ) -> None:
        self._head, self._rest, self._inner, self._end, self._look = head, rest, inner, end, look

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._head
            for chunk in self._rest:
                if (look := self._look) is not None and chunk:
                    self._look = None
                    if (fault := look(chunk)) is not None:
                        self._ended(fault)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            self._ended(error)
            raise
        self._ended(None)

    def close(self) -> None:
        try:
            if self._inner is not None:
                self._inner.close()
        finally:
            self._ended(None)

    def _ended(self, error: BaseException | None) -> None:
        end, self._end = self._end, None
        if end is not None:
            end(error)


class AsyncReplay:
    """The same, asynchronous; ``end`` is awaited."""

    def __init__(
        self,
        head: Sequence[bytes],
        rest: AsyncIterator[bytes],
        inner: Any,
        end: Callable[[BaseException | None], Awaitable[None]] | None = None,
        look: Callable[[bytes], Exception | None] | None = None,
    ) -> None:
        self._head, self._rest, self._inner, self._end, self._look = head, rest, inner, end, look

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for chunk in self._head:
                yield chunk
            async for chunk in self._rest:
                if (look := self._look) is not None and chunk:
                    self._look = None
                    if (fault := look(chunk)) is not None:
                        await self._ended(fault)
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            await self._ended(error)
            raise
        await self._ended(None)

    async def aclose(self) -> None:
        try:
            if self._inner is not None:
                await self._inner.aclose()
        finally:
            await self._ended(None)

    async def _ended(self, error: BaseException | None) -> None:
        end, self._end = self._end, None
        if end is not None:
            await end(error)
