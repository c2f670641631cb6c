"""What a paid answer says of its payment, held against what was signed (M10). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict

from ..model import Json, SettlementResponse
from ..money import Asset, parse_atomic, parse_units
from ..protocols import x402
from .journal import Payment
from .journal_calls import BalanceCall

__all__ = ["EXTENSION", "PaymentInfo", "is_charged", "payment_of", "read_balance", "read_payment", "read_receipt"]

EXTENSION: Final = "x402kit.payment"
REMAINING: Final = "x-balance-remaining"
PARTS: Final = "x402kit"
"""The key in a receipt's ``extensions`` that says what a call cost: amounts as text, in atomic units."""
_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class PaymentInfo:
    """A payment, or a call from the balance (``source``), and its receipt. Amounts in atomic units of ``asset``.

    ``amount`` as signed; of a call from the balance what it was charged, or else what was held for it, 0 where the
    server says neither. What the server says, None where it does not (as for ``charged`` at the head of a stream):
    ``reserved``, the most that the call could cost; ``charged``, what it did cost; ``returned``, what of the former
    became balance again, or for the first time; ``balance``, what is there now. ``verified``: the receipt is there,
    says success, and agrees with what was signed; no chain was asked. Else ``problem`` says why.
    """

    reference: str
    amount: int
    network: str
    asset: str
    payer: str
    pay_to: str
    transaction: str
    replayed: bool
    verified: bool
    problem: str
    receipt: SettlementResponse | None
    source: Literal["payment", "balance"] = "payment"
    reserved: int | None = None
    charged: int | None = None
    returned: int | None = None
    balance: int | None = None


def payment_of(response: Any) -> PaymentInfo | None:
    """The payment behind an httpx or httpx2 response, or None when the call was not paid by this library."""
    found = response.extensions.get(EXTENSION)
    return found if isinstance(found, PaymentInfo) else None


def read_receipt(headers: Mapping[str, str]) -> SettlementResponse | None:
    """PAYMENT-RESPONSE, or v1's X-PAYMENT-RESPONSE; None when it is missing or not readable."""
    text = headers.get(x402.PAYMENT_RESPONSE) or headers.get(x402.V1_PAYMENT_RESPONSE)
    if text is None:
        return None
    try:
        return x402.parse_settlement_response(x402.decode_header(text, floats=True))
    except ValueError:
        return None


def _problem(payment: Payment, receipt: SettlementResponse | None) -> str:
    if receipt is None:
        return "no readable receipt"
    if not receipt.success:
        return f"the receipt says that it failed: {receipt.error_reason}"
    if receipt.network != payment.network:
        return "the receipt is for another network"
    if receipt.amount is not None and receipt.amount != payment.amount:
        return "the receipt is for another amount"
    if receipt.payer and not _is_same(receipt.payer, payment.payer):
        return "the receipt is for another payer"
    if payment.network.startswith("solana:"):
        from . import svm

        return svm.receipt_problem(payment.value, receipt.transaction)
    return "" if _HASH.match(receipt.transaction) else "the receipt names no transaction"


def _is_same(one: str, other: str) -> bool:
    return one == other or (one.lower() == other.lower() and other.startswith("0x"))


def is_charged(headers: Mapping[str, str]) -> bool:
    """Whether an answer tells of a balance at all."""
    return REMAINING in headers or x402.PAYMENT_RESPONSE in headers


class _Parts(TypedDict):
    reserved: int | None
    charged: int | None
    returned: int | None
    balance: int | None


def _parts(headers: Mapping[str, str], asset: Asset | None) -> _Parts:
    """What the receipt and X-Balance-Remaining tell beyond the payment."""
    told = _told(headers)
    remaining = headers.get(REMAINING)
    try:
        balance = None if remaining is None or asset is None else parse_units(remaining, asset.decimals)
    except ValueError:
        balance = None
    return {
        "reserved": _atomic(told.get("reserved")),
        "charged": _atomic(told.get("charged")),
        "returned": _atomic(told.get("returned")),
        "balance": balance,
    }


def _told(headers: Mapping[str, str]) -> Json:
    try:
        receipt = x402.decode_header(headers.get(x402.PAYMENT_RESPONSE, ""), floats=True)
    except ValueError:
        return {}
    return _object(_object(receipt.get("extensions")).get(PARTS))


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]  # JSON


def _atomic(value: Any) -> int | None:
    try:
        return parse_atomic(value)
    except ValueError:
        return None


def read_balance(call: BalanceCall, headers: Mapping[str, str], asset: Asset | None, network: str) -> PaymentInfo:
    """What an answer tells of a call from the balance on ``network``."""
    receipt, parts = read_receipt(headers), _parts(headers, asset)
    problem = _balance_problem(call, receipt, network, parts["charged"])
    return PaymentInfo(
        reference=call.reference,
        amount=parts["charged"] if parts["charged"] is not None else parts["reserved"] or 0,
        network=network,
        asset=asset.address if asset else "",
        payer=call.payer,
        pay_to="",
        transaction=receipt.transaction if receipt else "",
        replayed=_is_replayed(headers),
        verified=not problem,
        problem=problem,
        receipt=receipt,
        source="balance",
        **parts,
    )


def _balance_problem(call: BalanceCall, receipt: SettlementResponse | None, network: str, charged: int | None) -> str:
    if receipt is None:
        return "no readable receipt"
    if not receipt.success:
        return f"the receipt says that it failed: {receipt.error_reason}"
    if receipt.network != network:
        return "the receipt is for another network"
    if receipt.payer and not _is_same(receipt.payer, call.payer):
        return "the receipt is for another payer"
    if None not in (receipt.amount, charged) and receipt.amount != charged:
        return "the receipt states two amounts"
    return ""


def _is_replayed(headers: Mapping[str, str]) -> bool:
    return headers.get("payment-replayed", "").lower() == "true"


def read_payment(payment: Payment, headers: Mapping[str, str], asset: Asset | None = None) -> PaymentInfo:
    """Hold an answer's receipt against the payment that was shown."""
    receipt = read_receipt(headers)
    problem = _problem(payment, receipt)
    return PaymentInfo(
        reference=payment.reference,
        amount=payment.amount,
        network=payment.network,
        asset=payment.asset,
        payer=payment.payer,
        pay_to=payment.pay_to,
        transaction=receipt.transaction if receipt else "",
        replayed=_is_replayed(headers),
        verified=not problem,
        problem=problem,
        receipt=receipt,
        **_parts(headers, asset),
    )
