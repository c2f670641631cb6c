"""Lightning as a way to be paid: ``Lightning(node, price=…)``. Invoices of a node of the seller's, in millisatoshi.

A price in dollars becomes msat at the price of a bitcoin, rounded up to the node's smallest step. That price is read by
the same feeds as the gas price of an EVM chain, once in a window; an invoice keeps the price that it was made at.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from ..errors import BadRequest, ConfigError, NodeUnreachable, WrongChain
from ..money import MAX_AMOUNT, Usd, Worth, parse_units
from .lightning_port import BITCOIN, InvoiceNode, bitcoin_on, is_lightning
from .meter import Meter

if TYPE_CHECKING:
    from .rpc import Endpoint, Rpc

__all__ = ["CoinPrice", "Lightning", "Rate"]

log = logging.getLogger("x402kit.lightning")

_PRICE_DECIMALS: Final = 8
_MSAT: Final = 10**11 * 10**_PRICE_DECIMALS
"""Of a bitcoin, at a price of one of the units that prices are kept in."""
INVOICE_SECONDS: Final = 600
"""Life of an invoice, by default. It must outlive the challenge that it stands in."""
_LIFE_MIN: Final = 60
_AGAIN_SECONDS: Final = 5.0
_LIFE_MAX: Final = 86_400


class CoinPrice(Protocol):
    """Dollars for one bitcoin. gas.py's ``FixedPrice`` and ``ChainlinkFeed`` are such."""

    async def read(self, chain: Any, now: int) -> tuple[int, int]:
        """The price as an integer and its decimals. ``ValueError`` when there is none that can be trusted now."""
        ...


class Rate(NamedTuple):
    """Dollars for one bitcoin, in units of 1e-8, and when that was read."""

    price: int
    at: int

    def atomic(self, amount: Usd) -> int:
        """Msat for an amount of dollars, rounded up."""
        return self.worth().atomic(amount)

    @classmethod
    def read(cls, text: str, at: int) -> Rate:
        """The inverse of ``str``. Raises ``ValueError``."""
        return cls(parse_units(text, _PRICE_DECIMALS), at)

    @classmethod
    def of(cls, amount: Usd, msat: int) -> Rate:
        """At which so many dollars came to so many msat, or hardly more; when that was is not known."""
        return cls(max(1, int(amount.value * _MSAT / msat)), 0)

    def worth(self) -> Worth:
        """The same as a sale needs it."""
        return Worth(_MSAT, Usd(Decimal(self.price)))

    def __str__(self) -> str:
        return f"{self.price // 10**_PRICE_DECIMALS}.{self.price % 10**_PRICE_DECIMALS:08d}"


class Lightning:
    """Invoices of ``node`` (``Lnd``, ``CoreLightning``, ``Phoenixd``, ``LNbits``, ``NostrWalletConnect``).

    ``price``: dollars for a bitcoin, such as ``FixedPrice("97000")``, or a ``ChainlinkFeed`` on the EVM chain that
    ``rpc`` reaches. ``network``: CAIP-2; the node must be on it. ``invoice_seconds`` is the life of an invoice;
    ``margin_percent`` is added to the price for what the rate does meanwhile. ``unpaid_per_caller`` and ``unpaid``
    limit the invoices that one address, or all, may have open and unpaid: above, the other rails are offered alone, or
    429. Making one does no I/O. Raises ``ConfigError``.
    """

    pay_to = ""
    scheme = "lightning"

    def __init__(
        self,
        node: InvoiceNode,
        *,
        price: CoinPrice,
        rpc: Endpoint | None = None,
        network: str = BITCOIN,
        invoice_seconds: int = INVOICE_SECONDS,
        margin_percent: int = 0,
        window_seconds: int = 60,
        stale_seconds: int = 1800,
        unpaid_per_caller: int = 32,
        unpaid: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not is_lightning(network):
            raise ConfigError(f"Lightning is on a network of Bitcoin's, not on {network}")
        if not _LIFE_MIN <= invoice_seconds <= _LIFE_MAX or margin_percent < 0:
            raise ConfigError(f"an invoice lives {_LIFE_MIN} to {_LIFE_MAX} seconds, and a margin is not negative")
        if not 2 <= unpaid_per_caller <= unpaid:
            raise ConfigError("a caller may have two unpaid invoices at least: some clients ask twice for each payment")
        self.unpaid_per_caller, self.unpaid = unpaid_per_caller, unpaid
        self.node = node
        self.network = network
        self.asset = bitcoin_on(network)
        self.invoice_seconds = invoice_seconds
        self._margin = margin_percent
        self._feed, self._rpc = price, rpc
        self._chain: Any = None
        self._rpc_client: Rpc | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._clock = clock
        self._meter = Meter(
            network,
            self._read,
            window_seconds=window_seconds,
            stale_seconds=stale_seconds,
            clock=clock,
            what="bitcoin price",
        )

    async def start(self) -> None:
        """Connect to the node and read the price. Raises ``ConfigError``: a node that refuses us, or on another chain.

        There are no invoices (503) until the node answers, which is asked again, and until a price can be read.
        """
        if self._rpc is not None and self._chain is None:
            from .evm_reads import Chain
            from .rpc import Rpc

            self._rpc_client = Rpc(self._rpc)
            self._chain = Chain(self._rpc_client)
        try:
            await self._connect()
        except NodeUnreachable as e:  # the other rails go on without it
            log.error("ALERT: %s; it is asked again", e)
            self._connecting = asyncio.create_task(self._until_connected(), name="x402kit-lightning-node")
        await self._meter.refresh()
        self._meter.start()

    async def _connect(self) -> None:
        await self.node.start()
        if self.node.network != self.network:
            raise WrongChain(f"the Lightning node is on {self.node.network}, not on {self.network} (network=)")

    async def _until_connected(self) -> None:
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                await self._connect()
            except NodeUnreachable:
                continue
            except ConfigError as e:
                await self.node.close()
                log.error("ALERT: no invoices are made: %s", e)
            return

    async def close(self) -> None:
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            await asyncio.wait({connecting})
        await self._meter.close()
        await self.node.close()
        rpc, self._chain = self._rpc_client, None
        if rpc is not None:
            await rpc.close()

    def rate(self) -> Rate:
        """The price of now. Raises ``RailUnavailable`` where none is known, or only an old one."""
        self._meter.check()
        return Rate(self._meter.surcharge(), self._meter.read_at)

    def units(self, amount: Usd, step: int = 1) -> int:
        """Msat for an amount of dollars at the rate of now, rounded up to whole ``step``s. Raises
        ``RailUnavailable``, and ``BadRequest`` where it is nothing, or too much.
        """
        units = -(-self.rate().atomic(amount) // step) * step
        if not 0 < units <= MAX_AMOUNT:
            raise BadRequest("not_priceable", detail="the price is out of range")
        return units

    async def _read(self) -> int:
        price, decimals = await self._feed.read(self._chain, int(self._clock()))
        scaled = Fraction(price * 100, 100 + self._margin) * Fraction(10) ** (_PRICE_DECIMALS - decimals)
        if scaled < 1:
            raise ValueError("no price")
        return int(scaled)
