"""Watch over a running answer: its caller may leave, and its handler may fall silent (H02, H03, H06).

The handler runs in the request's own task; what ends it early is a cancellation of that task, taken back once it has
come out of the handler, so that whoever cancels us otherwise is still heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from starlette.types import Message, Receive

from ..pricing import End

__all__ = ["Watch"]

AGAIN_SECONDS: Final = 10.0
"""How long a handler that was ended may take to come to its end, before it is told again."""


class Watch:
    """Of one request, whose handler runs in the task ``run``.

    ``gone`` is called once, when the caller has left; ``silent`` when ``alive`` was not called for so long as was
    allowed.
    """

    def __init__(self, run: asyncio.Task[Any] | None, gone: Callable[[], None], silent: Callable[[], None]) -> None:
        self._gone = gone
        self._silent = silent
        self._loop = asyncio.get_running_loop()
        self._run = run
        self._body: bytes | None = None
        self._listening: asyncio.Task[Message] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._idle = 0.0
        self._cancelled = 0
        self._ours_alone = False
        self.cut_by: End | None = None

    def listen(self, receive: Receive, body: bytes | None = None) -> None:
        """The request's body has been read: nothing but a disconnect can come any more. The app has yet to get
        ``body``, if there is one.
        """
        self._body = body
        self._listening = self._loop.create_task(self._listen(receive))
        self._listening.add_done_callback(_looked_at)

    @property
    def listens(self) -> bool:
        """Whether the app receives from here."""
        return self._listening is not None

    async def receive(self) -> Message:
        """The app's ``receive``: the body, and in the end the disconnect."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        assert self._listening is not None
        return await asyncio.shield(self._listening)

    async def _listen(self, receive: Receive) -> Message:
        message = await receive()
        if message["type"] != "http.disconnect":
            # A server that gives more than the body was long, at once and for ever, says nothing of its caller.
            await self._loop.create_future()
        self._gone()
        return message

    def cut(self, end: End) -> None:
        """End the handler's run."""
        if self.cut_by is None and self._run is not None:
            self.cut_by = end
            self._cancel()

    def _cancel(self) -> None:
        """Until it has ended: an app can swallow this, and so can what it waits with, as Python 3.11's ``wait_for``."""
        if self._run is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._cancelled += 1
        self._run.cancel()
        self._timer = self._loop.call_later(AGAIN_SECONDS, self._cancel)

    def cut_after(self, seconds: float, end: End) -> None:
        """…in so many seconds, unless it has ended by then."""
        if self._run is None or self.cut_by is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.cut, end)

    def expect(self, seconds: float) -> None:
        """Something must be given within so many seconds, now and after each time that ``alive`` is called."""
        if self._run is None or self.cut_by is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._idle = seconds
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._check)

    def alive(self) -> None:
        """The handler has given something: the cost of a chunk is one look at the clock."""
        self._heard = self._loop.time()

    def _check(self) -> None:
        left = self._heard + self._idle - self._loop.time()
        if left <= 0:
            self._silent()
        else:
            self._timer = self._loop.call_later(left, self._check)

    def leave_alone(self) -> None:
        """The end is being written down: nothing is cut any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._run = None

    def taken_back(self) -> bool:
        """The handler is done: what ``cut`` cancelled is undone. Whether nobody else has cancelled the run."""
        run = asyncio.current_task()
        while self._cancelled and run is not None:
            self._cancelled -= 1
            self._ours_alone = run.uncancel() == 0
        return self._ours_alone

    def close(self) -> None:
        """Nobody is there any more to be told."""
        self.leave_alone()
        if self._listening is not None:
            self._listening.cancel()


def _looked_at(task: asyncio.Task[Message]) -> None:
    """What a server's ``receive`` raises is the app's to see, if it asks."""
    if not task.cancelled():
        task.exception()
