"""Whether a rail could settle a payment now: asked before every settlement, and the chain is asked for it rarely."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from typing import Final

from ..errors import ConfigError, RailUnavailable
from .rpc import RpcRefused, RpcTrouble

__all__ = ["Watch"]

_OK_SECONDS: Final = 5.0
_BAD_SECONDS: Final = 1.0


class Watch(ABC):
    """Answered from memory for some seconds; many askers make one look (B16). A rail says what to look at."""

    def __init__(self, network: str, log: logging.Logger) -> None:
        self._network, self._log = network, log
        self._fits = False
        self._until = 0.0
        self._fault = ""
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Raises ``ConfigError``. A node that is down is no such fault: ``check`` then compares, before we settle."""
        try:
            await self._compare()
        except (RpcTrouble, RpcRefused):
            return
        self._fits = True

    async def check(self) -> None:
        """Raises ``RailUnavailable``."""
        if time.monotonic() >= self._until:
            async with self._lock:
                if time.monotonic() >= self._until:
                    before, self._fault = self._fault, await self._look()
                    if self._fault and self._fault != before:
                        self._log.error("ALERT: no settlement on %s: %s", self._network, self._fault)
                    self._until = time.monotonic() + (_BAD_SECONDS if self._fault else _OK_SECONDS)
        if self._fault:
            raise RailUnavailable(detail=self._fault)

    def forget(self) -> None:
        """Look anew next time: something was refused."""
        self._until = 0.0

    async def _look(self) -> str:
        try:
            if not self._fits:
                await self._compare()
                self._fits = True
            return await self._lacking()
        except (RpcTrouble, RpcRefused, ConfigError) as e:
            return str(e)
        except RailUnavailable as e:
            return e.detail

    @abstractmethod
    async def _compare(self) -> None:
        """Whether the set-up fits the chain, once. Raises ``ConfigError``, and what the node's calls raise."""

    @abstractmethod
    async def _lacking(self) -> str:
        """What a settlement would lack now, or an empty string. Raises what the node's calls raise."""
