"""A figure that prices depend on, constant in each window of time: a settlement's cost, or what a coin is worth.

One that can't be read leaves the last one standing for a bounded time; then the rail is not ready (503).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from ..errors import RailUnavailable
from ..model import CHALLENGE_SECONDS, LEEWAY_SECONDS
from .rpc import RpcRefused, RpcTrouble

__all__ = ["Meter"]

log = logging.getLogger("x402kit.costs")

_RETRY_SECONDS: Final = 5


class Meter:
    """The surcharge of now, and those whose challenges still live. ``refresh`` reads; the rest is memory."""

    def __init__(
        self,
        network: str,
        cost: Callable[[], Awaitable[int]],
        *,
        window_seconds: int,
        stale_seconds: int,
        clock: Callable[[], float] = time.time,
        what: str = "gas price",
    ) -> None:
        """``cost`` gives atomic units of the asset, or raises what rpc.py raises, ``RailUnavailable``, ValueError."""
        self._network, self._cost, self._clock, self._what = network, cost, clock, what
        self._window, self._stale = window_seconds, stale_seconds
        self._value: int | None = None
        self._read_at = 0
        self._fault = ""
        self._before: list[tuple[int, int]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def read_at(self) -> int:
        """When the figure of now was read."""
        return self._read_at

    def surcharge(self) -> int:
        """Atomic units. ``RailUnavailable`` where no price was ever read: better no offer than one at a loss."""
        if self._value is None:
            raise RailUnavailable(detail=f"no {self._what} was read yet")
        return self._value

    def surcharges(self) -> tuple[int, ...]:
        """This window's, then the earlier ones while their challenges live."""
        now = self._now()
        self._before = [(value, until) for value, until in self._before if until > now]
        return (self.surcharge(), *(value for value, _ in self._before))

    def check(self) -> None:
        """Raises ``RailUnavailable`` when the last price is too old to settle on."""
        if self._value is None or self._now() - self._read_at > self._window + self._stale:
            raise RailUnavailable(detail=f"the {self._what} is stale")

    async def refresh(self) -> bool:
        """Read the costs, once in a window. Whether there is a value of this window; else the last one stands."""
        if self._value is not None and self._read_at // self._window == self._now() // self._window:
            return True
        try:
            value = await self._cost()
        except (RpcTrouble, RpcRefused, RailUnavailable, ValueError) as e:
            self._failed(e.detail if isinstance(e, RailUnavailable) else str(e))
            return False
        self._fault = ""
        now = self._now()
        if self._value is not None and self._value != value:
            self._before.append((self._value, now + CHALLENGE_SECONDS + LEEWAY_SECONDS))
        self._value, self._read_at = value, now
        return True

    def _failed(self, fault: str) -> None:
        """Told once for each fault: without a price there are no offers, and every priced route answers 503."""
        if fault != self._fault:
            then = "the last one stands" if self._value is not None else "priced routes answer 503"
            log.error("ALERT: no %s on %s (%s): %s", self._what, self._network, then, fault)
        self._fault = fault

    def start(self) -> None:
        """Refresh at each window's beginning, until ``close``."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End the refreshing."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        while True:
            read = await self.refresh()
            await asyncio.sleep(
                self._window - self._now() % self._window if read else min(_RETRY_SECONDS, self._window)
            )

    def _now(self) -> int:
        return int(self._clock())
