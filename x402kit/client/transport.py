"""The two drivers of the core: what a transport does for each of its steps. They never follow a redirect.

The synchronous one runs the journal in the calling thread; the asynchronous one in a worker thread, one for each event
loop, and finishes what it writes there even when the call is cancelled (M12).
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx

from ..errors import ConfigError, PaymentOutcomeUnknown, PolicyRefused
from .core import Setup
from .ending import Ending
from .exchange import BODY_SECONDS, REST_SECONDS, Exchange, Family, Head, is_ours
from .policy import Proposal
from .steps import Ask, Body, Drop, Send, Sleep, Step, Store, Work

__all__ = ["Approve", "AsyncDriver", "Driver"]

Approve = Callable[[Proposal], bool | Awaitable[bool]]
T = TypeVar("T")

_limiter: Final = anyio.lowlevel.RunVar[anyio.CapacityLimiter]("x402kit.client.journal")


class Driver:
    """Sends through ``inner``, a synchronous transport."""

    def __init__(self, family: Family, setup: Setup, approve: Approve | None, inner: httpx.BaseTransport) -> None:
        self._family, self._setup, self._approve, self.inner = family, setup, approve, inner

    def pay(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and pay for it where the policy allows."""
        if not is_ours(self._family, self._setup, request):
            return self.inner.handle_request(request)
        request.read()
        exchange = Exchange(self._family, self._setup, request)
        steps = exchange.steps()
        value: Any = None
        try:
            while True:
                value = self._do(steps.send(value), exchange)
        except StopIteration as stop:
            response, end = exchange.finished(stop.value)
        except BaseException as error:
            exchange.interrupted(error)
            if exchange.response is not None:
                exchange.response.close()
            if isinstance(error, PaymentOutcomeUnknown):
                raise self._family.unknown(error) from error.__cause__
            raise
        return response if end is None else self._ending(response, end, exchange)

    def _ending(self, response: httpx.Response, end: Ending, exchange: Exchange) -> httpx.Response:
        stream: Any = response.stream
        if response.is_closed:  # the inner transport has read it all
            end(None)
        else:
            response.stream = self._family.replay([], iter(stream), stream, end, exchange.look)
        return response

    def _do(self, step: Step, exchange: Exchange) -> Any:
        match step:
            case Send():
                try:
                    return exchange.answered(self.inner.handle_request(exchange.outgoing(step)))
                except self._family.transport_error as error:
                    return exchange.lost(error)
            case Store() | Work():
                return step.action()
            case Sleep():
                return time.sleep(step.seconds)
            case Ask():
                return self._ask(step.proposal)
            case Body():
                return self._body(exchange)
            case Drop():
                return self._drop(exchange)

    def _ask(self, proposal: Proposal) -> bool:
        answer = _call(self._approve, proposal)
        if inspect.iscoroutine(answer):
            answer.close()
            raise ConfigError("an async approve callback needs an async client")
        return answer is True

    def _read(self, stream: Any, seconds: float) -> tuple[Head, Any]:
        head, rest = Head(seconds), iter(stream)
        for chunk in rest:
            if not head.add(chunk):
                break
        return head, rest

    def _body(self, exchange: Exchange) -> bytes | None:
        assert exchange.response is not None
        if exchange.is_read:
            return exchange.content()
        stream: Any = exchange.response.stream
        head, rest = self._read(stream, BODY_SECONDS)
        exchange.response.stream = self._family.replay(head.chunks, rest, stream)
        return exchange.decode(b"".join(head.chunks)) if head.whole else None

    def _drop(self, exchange: Exchange) -> None:
        response, exchange.response = exchange.response, None
        assert response is not None
        try:
            if not response.is_stream_consumed:
                self._read(response.stream, REST_SECONDS)  # a short rest, so that the connection can be used again
        except self._family.transport_error:
            pass
        finally:
            response.close()


class AsyncDriver:
    """Sends through ``inner``, an asynchronous transport."""

    def __init__(self, family: Family, setup: Setup, approve: Approve | None, inner: httpx.AsyncBaseTransport) -> None:
        self._family, self._setup, self._approve, self.inner = family, setup, approve, inner

    async def pay(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and pay for it where the policy allows."""
        if not is_ours(self._family, self._setup, request):
            return await self.inner.handle_async_request(request)
        await request.aread()
        exchange = Exchange(self._family, self._setup, request)
        steps = exchange.steps()
        value: Any = None
        try:
            while True:
                value = await self._do(steps.send(value), exchange)
        except StopIteration as stop:
            response, end = exchange.finished(stop.value)
        except BaseException as error:
            await _end(exchange, error)
            if isinstance(error, PaymentOutcomeUnknown):
                raise self._family.unknown(error) from error.__cause__
            raise
        return response if end is None else await self._ending(response, end, exchange)

    async def _ending(self, response: httpx.Response, end: Ending, exchange: Exchange) -> httpx.Response:
        async def ended(error: BaseException | None) -> None:
            try:
                with anyio.CancelScope(shield=True):
                    await _in_thread(partial(end, error))
            except anyio.get_cancelled_exc_class() as cancelled:  # asyncio's own passes through the shield
                if error is None:
                    thread = threading.Thread(target=end.cancelled, args=(cancelled,))
                    thread.start()  # before anything is awaited: it may be cancelled once more
                    await _joined(thread)
                raise

        stream: Any = response.stream
        if response.is_closed:
            await ended(None)
        else:
            response.stream = self._family.async_replay([], aiter(stream), stream, ended, exchange.look)
        return response

    async def _do(self, step: Step, exchange: Exchange) -> Any:
        match step:
            case Send():
                try:
                    return exchange.answered(await self.inner.handle_async_request(exchange.outgoing(step)))
                except self._family.transport_error as error:
                    return exchange.lost(error)
            case Store() | Work():
                return await _blocking(step)
            case Sleep():
                return await anyio.sleep(step.seconds)
            case Ask():
                return await self._ask(step.proposal)
            case Body():
                return await self._body(exchange)
            case Drop():
                return await self._drop(exchange)

    async def _ask(self, proposal: Proposal) -> bool:
        answer = _call(self._approve, proposal)
        return (await _awaited(answer) if inspect.isawaitable(answer) else answer) is True

    async def _read(self, stream: Any, seconds: float) -> tuple[Head, Any]:
        head, rest = Head(seconds), aiter(stream)
        async for chunk in rest:
            if not head.add(chunk):
                break
        return head, rest

    async def _body(self, exchange: Exchange) -> bytes | None:
        assert exchange.response is not None
        if exchange.is_read:
            return exchange.content()
        stream: Any = exchange.response.stream
        head, rest = await self._read(stream, BODY_SECONDS)
        exchange.response.stream = self._family.async_replay(head.chunks, rest, stream)
        return exchange.decode(b"".join(head.chunks)) if head.whole else None

    async def _drop(self, exchange: Exchange) -> None:
        response, exchange.response = exchange.response, None
        assert response is not None
        try:
            if not response.is_stream_consumed:
                with anyio.move_on_after(REST_SECONDS):
                    await self._read(response.stream, REST_SECONDS)
        except self._family.transport_error:
            pass
        finally:
            await response.aclose()


def _call(approve: Approve | None, proposal: Proposal) -> bool | Awaitable[bool]:
    assert approve is not None
    try:
        return approve(proposal)
    except Exception as error:
        raise PolicyRefused("the approve callback raised; nothing was signed") from error


async def _awaited(answer: Awaitable[bool]) -> bool:
    try:
        return await answer
    except Exception as error:
        raise PolicyRefused("the approve callback raised; nothing was signed") from error


async def _blocking(step: Store | Work) -> Any:
    if isinstance(step, Store):
        return await _in_thread(step.action)
    return await anyio.to_thread.run_sync(step.action, abandon_on_cancel=True)


async def _in_thread(action: Callable[[], T]) -> T:
    """Off the event loop, one at a time for each loop, and to its end even when the caller is cancelled."""
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(1)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(action, limiter=limiter)


async def _joined(thread: threading.Thread) -> None:
    """Whatever cancels it meanwhile: its caller raises that anyway."""
    while thread.is_alive():
        with contextlib.suppress(anyio.get_cancelled_exc_class()), anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(thread.join, limiter=anyio.CapacityLimiter(1))


async def _end(exchange: Exchange, error: BaseException) -> None:
    with anyio.CancelScope(shield=True):
        if exchange.is_open:
            await _in_thread(partial(exchange.interrupted, error))
        if exchange.response is not None:
            await exchange.response.aclose()
