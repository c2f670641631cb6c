"""A recent blockhash for offers, so that a payer needs no node of its own (wire.md 1.2).

It is read anew every few seconds and left out when it could not be read for longer: a payment made with an old one
would not live until it is settled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ..model import Json
from .rpc import RpcRefused, RpcTrouble
from .svm_reads import Node

__all__ = ["Hints"]

log = logging.getLogger("x402kit.svm")


class Hints:
    """The newest confirmed blockhash, and the last height at which it can be used."""

    def __init__(self, node: Node, seconds: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """``seconds`` between two looks."""
        self._node, self._seconds, self._monotonic = node, seconds, monotonic
        self._found: Json = {}
        self._until = 0.0
        self._task: asyncio.Task[None] | None = None

    def now(self) -> Json:
        """What goes into an offer now; empty where nothing was read for three times as long as it should be."""
        return self._found if self._monotonic() < self._until else {}

    async def start(self) -> None:
        """Look, and go on looking until ``close``."""
        if self._task is None:
            await self._look()
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End the looking."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self._look()

    async def _look(self) -> None:
        try:
            blockhash, height = await self._node.blockhash()
        except (RpcTrouble, RpcRefused) as e:
            log.debug("no blockhash for offers: %s", e)
            return
        self._found = {"recentBlockhash": blockhash, "lastValidBlockHeight": height}
        self._until = self._monotonic() + 3 * self._seconds
