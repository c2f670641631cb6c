"""The lifespan of an app behind the gate: passed through, and answered for an app that knows none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import Message, Receive, Send

__all__ = ["Lifespan"]

_ENDS = ("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed")


class Lifespan:
    """The ``receive`` and ``send`` that the app sees. ``stop`` is awaited when the app stopped, or did not start."""

    def __init__(self, receive: Receive, send: Send, stop: Callable[[], Awaitable[None]]) -> None:
        self._receive = receive
        self._send = send
        self._stop = stop
        self._heard: set[str] = set()
        self.answered: set[str] = set()

    async def receive(self) -> Message:
        message = await self._receive()
        self._heard.add(message["type"])
        return message

    async def send(self, message: Message) -> None:
        self.answered.add(message["type"])
        if message["type"] in _ENDS:
            await self._stop()
        await self._send(message)

    async def finish(self) -> None:
        """Whatever the app has left unanswered, until the server shuts down."""
        while not self.answered.intersection(_ENDS):
            if "lifespan.startup" in self._heard and "lifespan.startup.complete" not in self.answered:
                await self.send({"type": "lifespan.startup.complete"})
            elif "lifespan.shutdown" in self._heard:
                await self.send({"type": "lifespan.shutdown.complete"})
            else:
                await self.receive()
