"""A payer's Lightning node, behind calls that block: it lives on an event loop of its own, in a thread of its own.

So one payer serves any number of clients, threads and event loops, and a payment that was begun goes on when the call
that wanted it is cancelled (M12); what became of it is asked of the node then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, Final, TypeVar

from ..errors import ConfigError, RailUnavailable
from ..networks.lightning_port import PayingNode, PaymentState, TakesFee

__all__ = ["ADDRESS", "LightningWallet"]

T = TypeVar("T")

ADDRESS: Final = "lightning"
"""What the journal calls the wallet: a node has no address that all adapters know."""
LOOK_UP_SECONDS: Final = 30.0
CLOSE_SECONDS: Final = 10.0
GRACE_SECONDS: Final = 15.0
"""What a node may take beyond the time-out that it was given."""
SAT: Final = 1000


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="x402kit-lightning", daemon=True)
        self._thread.start()

    def run(self, made: Coroutine[Any, Any, T]) -> T:
        """Its result; what interrupts the wait leaves it running. ``CancelledError`` when the loop is closed."""
        return asyncio.run_coroutine_threadsafe(made, self._loop).result()

    def close(self) -> None:
        if self.pid != os.getpid():
            return
        with contextlib.suppress(CancelledError, TimeoutError):
            asyncio.run_coroutine_threadsafe(self._cancelled(), self._loop).result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _cancelled(self) -> None:
        """Who still waits for something is told so."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)


class LightningWallet:
    """Pays invoices from ``node``, for at most ``max_fee`` msat of routing each; if not given 1 %, at least 5 sat, or
    what the node takes where it says so.
    """

    address = ADDRESS

    def __init__(self, node: PayingNode, max_fee: int | None = None, pay_seconds: float = 60.0) -> None:
        if not isinstance(node, PayingNode):  # pyright: ignore[reportUnnecessaryIsInstance]  # a caller may be untyped
            raise ConfigError("lightning is an adapter of a node that pays, such as Lnd(...)")
        if pay_seconds <= 0 or (max_fee is not None and max_fee < 0):
            raise ConfigError("pay_seconds is positive, max_fee not negative")
        self._node, self._max_fee, self.pay_seconds = node, max_fee, pay_seconds
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._stop: Callable[[], None] = lambda: None
        self._starting: asyncio.Lock | None = None
        self._is_started = False

    def max_fee(self, amount: int) -> int:
        """The most that it may cost to route ``amount``, both in msat; rounded up."""
        if self._max_fee is not None:
            return self._max_fee
        taken = self._node.fee(amount) if isinstance(self._node, TakesFee) else 0
        return max(5 * SAT, -(-amount // 100), taken)

    def network(self) -> str:
        """The node's network (CAIP-2). Blocks; raises ``RailUnavailable``, ``ConfigError``."""

        async def network() -> str:
            return self._node.network

        return self._asked(network)

    def pay(self, bolt11: str, max_fee: int) -> PaymentState:
        """Pay an invoice. Blocks; raises ``RailUnavailable`` and ``ConfigError`` where nothing was sent."""

        async def pay() -> PaymentState:
            seconds = self.pay_seconds
            try:
                async with asyncio.timeout(seconds + GRACE_SECONDS):
                    return await self._node.pay(bolt11, max_fee=max_fee, timeout_seconds=seconds)
            except TimeoutError:
                return PaymentState("pending", reason="the node did not answer in time")

        try:
            return self._run(pay)
        except CancelledError:
            return PaymentState("pending", reason="the payer was closed")

    def payment(self, payment_hash: str) -> PaymentState:
        """What became of a payment. Blocks; raises ``RailUnavailable``, ``ConfigError``."""

        async def payment() -> PaymentState:
            return await self._node.payment(payment_hash)

        return self._asked(payment)

    def _asked(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return self._run(call, LOOK_UP_SECONDS)
        except CancelledError:
            raise RailUnavailable(detail="the payer was closed") from None

    def _run(self, call: Callable[[], Awaitable[T]], seconds: float | None = None) -> T:
        return self._running().run(self._called(call, seconds))

    async def _called(self, call: Callable[[], Awaitable[T]], seconds: float | None) -> T:
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                await self._start()
            async with asyncio.timeout(seconds):
                return await call()
        except TimeoutError:
            raise RailUnavailable(detail="the Lightning node did not answer in time") from None

    async def _start(self) -> None:
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if not self._is_started:
                await self._node.start()
                self._is_started = True

    def _running(self) -> _Loop:
        with self._lock:
            if self._loop is None or self._loop.pid != os.getpid():  # a fork has no threads
                self._starting, self._is_started = None, False
                self._loop = loop = _Loop()
                self._stop = weakref.finalize(self, loop.close)
            return self._loop

    def close(self) -> None:
        """Close the node's connections, and end the thread."""
        with self._lock:
            loop, self._loop = self._loop, None
            started, self._is_started, self._starting = self._is_started, False, None
        if loop is None or loop.pid != os.getpid():
            return
        try:
            if started:
                loop.run(self._closed())
        finally:
            self._stop()

    async def _closed(self) -> None:
        async with asyncio.timeout(CLOSE_SECONDS):
            await self._node.close()

    def __repr__(self) -> str:
        return "LightningWallet()"
