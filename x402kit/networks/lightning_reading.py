"""Reading what a Lightning node says: exact types, one spelling for each value, and nothing believed unchecked.

A reader raises ``ValueError``; inside ``reading()`` that becomes ``RailUnavailable``. A preimage counts when it hashes
to the payment hash, an invoice when it states what was asked for.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable, Generator
from hashlib import sha256
from typing import Any, Final

from ..errors import ConfigError, RailUnavailable
from ..money import MAX_AMOUNT, parse_atomic
from ..protocols.bolt11 import Bolt11, decode
from .http import Answer, NotSent, Unknown
from .lightning_port import BITCOIN, REGTEST, SIGNET, TESTNET, NewInvoice, PaymentState

__all__ = [
    "LATE_SECONDS",
    "digest",
    "made",
    "msat",
    "named_network",
    "outcome",
    "paid",
    "reading",
    "short",
    "to_pay",
    "told",
    "whole",
]

LATE_SECONDS: Final = 120
"""Parts that came before an invoice's expiry may complete it so much later; until then it is not dead (BOLT 4)."""
MEMO_BYTES: Final = 639
"""The longest description that an invoice can hold (BOLT 11)."""
_HASH: Final = re.compile(r"[0-9a-fA-F]{64}\Z", re.ASCII)
_NAMES: Final = {
    "bitcoin": BITCOIN,
    "main": BITCOIN,
    "mainnet": BITCOIN,
    "testnet": TESTNET,
    "testnet3": TESTNET,
    "signet": SIGNET,
    "regtest": REGTEST,
}


@contextlib.contextmanager
def reading() -> Generator[None]:
    """Around the reading of an answer: what can't be read is ``RailUnavailable``."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RailUnavailable(detail="the Lightning node's answer makes no sense") from None


def named_network(name: object, what: str) -> str:
    """CAIP-2 for what nodes call their chain. Raises ``ConfigError``."""
    found = _NAMES.get(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(f"the {what} is on no network that is known here")
    return found


def whole(value: Any) -> int:
    """An amount or a time that came as a JSON number."""
    if type(value) is not int or not 0 <= value <= MAX_AMOUNT:
        raise ValueError("not a whole amount")
    return value


def msat(value: Any) -> int:
    """The same, or as text with the unit (``"123msat"``), as nodes wrote it before 2023."""
    if isinstance(value, str):
        value = parse_atomic(value.removesuffix("msat"))
    return whole(value)


def digest(value: Any) -> str:
    """A payment hash or a preimage."""
    if not isinstance(value, str) or not _HASH.match(value):
        raise ValueError("not 32 bytes of hex")
    return value.lower()


def short(memo: str, most: int = MEMO_BYTES) -> str:
    """The memo, cut to so many bytes of UTF-8."""
    return memo.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")


def made(bolt11: Any, amount: int, network: str) -> NewInvoice:
    """An invoice that a node has made. Raises ``ValueError`` when it is not for what we asked."""
    invoice = decode(bolt11)
    if invoice.amount != amount or (network and invoice.network != network):
        raise ValueError("another invoice than was asked for")
    return NewInvoice(bolt11, invoice.payment_hash, amount, invoice.expires_at)


def to_pay(bolt11: str, network: str) -> Bolt11 | PaymentState:
    """The invoice, or why it can't be paid here; certain, as no node was asked."""
    try:
        invoice = decode(bolt11)
    except ValueError:
        return PaymentState("failed", reason="not_an_invoice")
    if not invoice.amount:
        return PaymentState("failed", reason="no_amount")
    if invoice.network != network:
        return PaymentState("failed", reason="wrong_network")
    return invoice


def paid(preimage: Any, fee: int, payment_hash: str) -> PaymentState:
    """A payment that succeeded. Raises ``ValueError`` when the preimage is another payment's (G02)."""
    secret = digest(preimage)
    if sha256(bytes.fromhex(secret)).hexdigest() != payment_hash:
        raise ValueError("not the preimage of this payment")
    return PaymentState("succeeded", secret, fee)


Look = Callable[[str], Awaitable[PaymentState]]
"""A node's ``payment``."""


async def outcome(
    answer: Answer | NotSent | Unknown, read: Callable[[Answer], PaymentState], look: Look, payment_hash: str
) -> PaymentState:
    """What became of a payment, by the answer to its sending; ``read`` raises ``ValueError`` and its like.

    Raises ``RailUnavailable`` when the node was not reached, or its key may not pay: nothing was sent.
    """
    if isinstance(answer, NotSent):
        raise RailUnavailable(detail=f"the Lightning node: {answer.why}")
    if isinstance(answer, Unknown):
        return await told(look, payment_hash, PaymentState("pending", reason=answer.why))
    if answer.status in (401, 403):
        raise RailUnavailable(detail="the Lightning node's key does not allow to pay")
    try:
        said = read(answer)
    except (KeyError, TypeError, ValueError, AttributeError):
        said = PaymentState("pending", reason="garbage")
    return said if said.state == "succeeded" else await told(look, payment_hash, said)


async def told(look: Look, payment_hash: str, said: PaymentState) -> PaymentState:
    """What became of a payment whose sending was not answered with its preimage.

    ``said``: "failed" when the node certainly ended its try, else "pending". The node's record has the last word,
    except that after a lost answer a failure in it may be an earlier try's.
    """
    try:
        found = await look(payment_hash)
    except RailUnavailable:
        return PaymentState("pending", reason=said.reason)
    return found if found.state in ("succeeded", "pending") else said
