"""Watch over a running answer: its caller may leave, and its handler may fall silent (H02, H03, H06).

The handler runs in the request's own task; what ends it early is a cancellation of that task, taken back once it has
come out of the handler, so that whoever cancels us otherwise is still heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable

from starlette.types import Message, Receive

from ..pricing import End

__all__ = ["Watch"]


class Watch:
    """Of one request whose body has been read: nothing but a disconnect can come any more.

    ``gone`` is called once, when the caller has left.
    """

    def __init__(self, body: bytes, receive: Receive, gone: Callable[[], None]) -> None:
        self._body: bytes | None = body
        self._digest = hashlib.sha256(body).digest()
        self._receive = receive
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._run = asyncio.current_task()
        self._listening = self._loop.create_task(self._listen())
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._idle = 0.0
        self.cut_by: End | None = None

    async def receive(self) -> Message:
        """The app's ``receive``: the body, and in the end the disconnect."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await asyncio.shield(self._listening)

    def digest(self) -> bytes:
        """Of the body."""
        return self._digest

    async def _listen(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.disconnect":
            # A server that gives more than the body was long, at once and for ever, says nothing of its caller.
            await self._loop.create_future()
        self._gone()
        return message

    def cut(self, end: End) -> None:
        """End the handler's run."""
        if self.cut_by is None and self._run is not None:
            self.cut_by = end
            self._run.cancel()

    def cut_after(self, seconds: float, end: End) -> None:
        """…in so many seconds, unless it has ended by then."""
        if self._run is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.cut, end)

    def listen_for(self, seconds: float) -> None:
        """Cut the run as stalled when ``alive`` is not called for so long."""
        if self._run is None:
            return
        self._idle = seconds
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._check)

    def alive(self) -> None:
        """The handler has given something: the cost of a chunk is one look at the clock."""
        self._heard = self._loop.time()

    def _check(self) -> None:
        left = self._heard + self._idle - self._loop.time()
        if left <= 0:
            self.cut(End.STALLED)
        else:
            self._timer = self._loop.call_later(left, self._check)

    def leave_alone(self) -> None:
        """The end is being written down: nothing is cut any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._run = None

    def taken_back(self) -> bool:
        """Whether the cancellation that came out of the handler was ours; it is undone then."""
        run = asyncio.current_task()
        return self.cut_by is not None and run is not None and run.uncancel() == 0

    async def close(self) -> None:
        """The handler is done."""
        self.leave_alone()
        if not self._listening.done():
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening
