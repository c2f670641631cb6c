"""The answers that are under way in one process, and what becomes of them when it stops (J09)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from .delivery import Delivery

__all__ = ["Serving"]

_CUT_SECONDS: Final = 2.0
"""How long a handler that was ended may take to come to its end."""


class Serving:
    """Of all gates of one paywall."""

    def __init__(self) -> None:
        self._under_way: set[Delivery] = set()
        self._changed: asyncio.Event | None = None

    def add(self, delivery: Delivery) -> None:
        self._under_way.add(delivery)

    def discard(self, delivery: Delivery) -> None:
        """Its sale has come to its end."""
        self._under_way.discard(delivery)
        if self._changed is not None:
            self._changed.set()

    async def end(self, drain_seconds: float) -> None:
        """Let them come to their end, for so long; then end those that can be ended."""
        self._changed = asyncio.Event()
        await self._until_over(self._changed, drain_seconds, cut=False)
        for delivery in self._under_way:
            delivery.cut()
        await self._until_over(self._changed, _CUT_SECONDS, cut=True)
        self._changed = None

    async def _until_over(self, changed: asyncio.Event, seconds: float, *, cut: bool) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(not cut or delivery.cut_by is not None for delivery in self._under_way):
                    changed.clear()
                    await changed.wait()
