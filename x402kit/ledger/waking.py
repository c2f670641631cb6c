"""From a thread back to the event loop that waits for it.

``call_soon_threadsafe`` costs the loop two further rounds and four system calls: its socket is read until it is empty,
and what was called for waits for the next round. A reader of our own is called in the round that it wakes, which is a
sixth of a lone durable move. Where the platform or the loop has none, it is ``call_soon_threadsafe`` all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Waking"]

T = TypeVar("T")


class Waking(Generic[T]):
    """``take`` is called in ``loop`` with whatever any thread gives, in that order. Made and closed in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[T], None]) -> None:
        self.loop = loop
        self._take = take
        self._given: deque[T] = deque()
        self._closing = threading.Lock()
        """A descriptor that was closed may be another's by now: nobody writes to ours without this."""
        self._fd = _eventfd()
        if self._fd is not None:
            try:
                loop.add_reader(self._fd, self._read)
            except NotImplementedError:  # a loop that waits for no descriptors
                os.close(self._fd)
                self._fd = None

    def give(self, value: T) -> None:
        """From any thread. Where the loop is closed, whoever waited is gone."""
        with self._closing:
            if self._fd is not None:
                self._given.append(value)
                _ring(self._fd)
                return
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._take, value)

    def close(self) -> None:
        """Take what was given, and let go of the descriptor. In the loop, or once it is closed."""
        with self._closing:
            fd, self._fd = self._fd, None
            if fd is None:
                return
            if not self.loop.is_closed():
                self.loop.remove_reader(fd)
            os.close(fd)
        if not self.loop.is_closed():
            self._drain()

    def _read(self) -> None:
        if self._fd is not None:  # closed since the loop saw it
            _hush(self._fd)
            self._drain()

    def _drain(self) -> None:
        while self._given:
            self._take(self._given.popleft())


if sys.platform == "linux":

    def _eventfd() -> int | None:
        with contextlib.suppress(OSError):  # no descriptor is left
            return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return None

    def _ring(fd: int) -> None:
        os.eventfd_write(fd, 1)

    def _hush(fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)

else:

    def _eventfd() -> int | None:
        return None

    def _ring(fd: int) -> None:
        """There is none to be written to."""

    def _hush(fd: int) -> None:
        """Nor to be read."""
