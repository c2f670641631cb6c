"""What a paid answer says of its payment, held against what was signed (M10). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..model import SettlementResponse
from ..protocols import x402
from .journal import Payment

__all__ = ["EXTENSION", "PaymentInfo", "payment_of", "read_payment"]

EXTENSION: Final = "x402kit.payment"
_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class PaymentInfo:
    """A payment and its receipt.

    ``amount`` in atomic units of ``asset`` on ``network``, as signed; ``transaction`` as the server says. ``verified``:
    the receipt is there, says success, and agrees with what was signed; no chain was asked. Else ``problem`` says why.
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
    if receipt.payer and receipt.payer.lower() != payment.payer.lower():
        return "the receipt is for another payer"
    return "" if _HASH.match(receipt.transaction) else "the receipt names no transaction"


def read_payment(payment: Payment, headers: Mapping[str, str]) -> PaymentInfo:
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
        replayed=headers.get("payment-replayed", "").lower() == "true",
        verified=not problem,
        problem=problem,
        receipt=receipt,
    )
