"""The ports of a Lightning node: one that invoices are made at, and one that invoices are paid from.

Amounts are millisatoshi (msat), hashes and preimages lower-case hex, times whole Unix seconds.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from ..money import Asset
from ..protocols.bolt11 import BITCOIN, REGTEST, SIGNET, TESTNET

__all__ = [
    "BITCOIN",
    "REGTEST",
    "SIGNET",
    "TESTNET",
    "InvoiceNode",
    "InvoiceState",
    "NewInvoice",
    "PayingNode",
    "PaymentState",
    "TakesFee",
    "bitcoin_on",
    "is_lightning",
]


def is_lightning(network: str) -> bool:
    """Whether a network (CAIP-2) is one of Bitcoin's: money moves there by Lightning."""
    return network.startswith("bip122:")


def bitcoin_on(network: str) -> Asset:
    """The asset of such a network, counted in msat: 11 decimals of a bitcoin."""
    return Asset(network, "btc", "BTC", 11)


class NewInvoice(NamedTuple):
    """An invoice (BOLT 11) that a node has just made."""

    bolt11: str
    payment_hash: str
    amount: int
    expires_at: int


class InvoiceState(NamedTuple):
    """What the node knows of an invoice of its own.

    ``accepted``: parts of it have come and wait (a hold invoice, a payment in parts: G03, G06); ``dead``: cancelled, or
    expired without payment; ``unknown``: the node has no such invoice, as one that took another's place. ``received``
    counts only when it is ``settled``.
    """

    state: Literal["open", "accepted", "settled", "dead", "unknown"]
    received: int = 0


class InvoiceNode(Protocol):
    """A node of the seller's. Every call raises ``RailUnavailable`` when it can't be reached or makes no sense."""

    @property
    def network(self) -> str:
        """CAIP-2; known once it has started."""
        ...

    @property
    def step(self) -> int:
        """The smallest step of an amount: 1 msat, or 1000."""
        ...

    async def start(self) -> None:
        """Connect, and learn the network. Raises ``ConfigError``: wrong credentials, another kind of server;
        ``NodeUnreachable``, which is one, where nothing answers.
        """
        ...

    async def close(self) -> None: ...

    async def create(self, amount: int, *, memo: str = "", expiry_seconds: int) -> NewInvoice:
        """Make an invoice; ``amount`` is a multiple of ``step``."""
        ...

    async def look_up(self, payment_hash: str) -> InvoiceState: ...

    def subscribe(self) -> AsyncGenerator[str]:
        """The hashes of invoices as they settle, from now on, until it breaks (``RailUnavailable``)."""
        ...


@runtime_checkable
class TakesFee(Protocol):
    """What a ``PayingNode`` is besides where it can't be told a fee's limit, and says beforehand what it takes."""

    def fee(self, amount: int) -> int:
        """The most msat that it takes, or sets aside, to send ``amount`` msat."""
        ...


class PaymentState(NamedTuple):
    """What became of an outgoing payment. ``failed`` is certain: no money has moved, and none will.

    ``unknown``: the node knows of no such payment. ``preimage`` (64 hex digits) and ``fee`` come with ``succeeded``.
    """

    state: Literal["succeeded", "failed", "pending", "unknown"]
    preimage: str = ""
    fee: int = 0
    reason: str = ""


@runtime_checkable
class PayingNode(Protocol):
    """A wallet of the payer's. To pay one invoice twice moves its money once: a node keeps to the payment hash."""

    @property
    def network(self) -> str: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def pay(self, bolt11: str, *, max_fee: int, timeout_seconds: float) -> PaymentState:
        """Pay an invoice that states its amount. What is not certain, a lost answer too, is ``pending``, never an
        exception; ``RailUnavailable`` only where certainly nothing was sent.
        """
        ...

    async def payment(self, payment_hash: str) -> PaymentState:
        """Look an outgoing payment up. Raises ``RailUnavailable``."""
        ...
