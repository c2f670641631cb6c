"""What a paid answer says of its payment, held against what was signed (M10). Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypedDict

from ..errors import RailUnavailable
from ..model import Json, SettlementResponse
from ..money import MAX_AMOUNT, Asset, parse_atomic, parse_units
from ..networks.lightning_port import is_lightning
from ..protocols import payment_auth, x402
from ..protocols.encoding import parse_object
from .auth_offers import is_auth, preimage_of
from .journal import Payment
from .journal_calls import BalanceCall
from .journal_lightning import Token
from .lightning_wallet import ADDRESS

__all__ = [
    "EXTENSION",
    "PaymentInfo",
    "is_charged",
    "is_unavailable",
    "payment_of",
    "read_balance",
    "read_payment",
    "read_receipt",
    "read_token",
    "says_unsent",
]

EXTENSION: Final = "x402kit.payment"
REMAINING: Final = "x-balance-remaining"
PARTS: Final = "x402kit"
"""The key in a receipt's ``extensions`` that says what a call cost: amounts as text, in atomic units."""
_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class PaymentInfo:
    """A payment, or a call from the balance or on a token (``source``), and its receipt. Amounts in atomic units.

    ``reference`` on Lightning is the payment hash; a token's is that of the payment that bought it, which cost all that
    its calls do. ``amount`` as signed; of a call from the balance what it was charged, or else what was held for it, 0
    where the server says neither. What the server says, None where it does not (as for ``charged`` at the head of a
    stream): ``reserved``, the most that the call could cost; ``charged``, what it did cost; ``returned``, what of the
    former became balance again, or for the first time; ``balance``, what is there now. ``verified``: the receipt is
    there, says success, and agrees with what was signed; no chain was asked. On Lightning, where a receipt may be
    missing: the preimage is the payment hash's. Else ``problem`` says why. ``unsent``: every answer to the payment was
    a 503 by whose head the seller says that nothing was sent (docs/concepts.md); it stays open, and is shown again.
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
    source: Literal["payment", "balance", "token"] = "payment"
    reserved: int | None = None
    charged: int | None = None
    returned: int | None = None
    balance: int | None = None
    unsent: bool = False


def payment_of(response: Any) -> PaymentInfo | None:
    """The payment behind an httpx or httpx2 response, or None when the call was not paid by this library."""
    found = response.extensions.get(EXTENSION)
    return found if isinstance(found, PaymentInfo) else None


def says_unsent(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an answer's head is that of docs/concepts.md for "nothing was sent", and of no proxy in between."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return status == 503 and kind == "application/problem+json" and "payment-outcome" not in headers


def is_unavailable(body: bytes) -> bool:
    """Whether it is the problem document for "nothing was sent"."""
    try:
        return parse_object(body, floats=True).get("title") == RailUnavailable.code
    except ValueError:
        return False


def read_receipt(headers: Mapping[str, str]) -> SettlementResponse | None:
    """PAYMENT-RESPONSE, or v1's X-PAYMENT-RESPONSE; None when it is missing or not readable."""
    text = headers.get(x402.PAYMENT_RESPONSE) or headers.get(x402.V1_PAYMENT_RESPONSE)
    if text is None:
        return None
    try:
        return x402.parse_settlement_response(x402.decode_header(text, floats=True))
    except ValueError:
        return None


def _charge_receipt(headers: Mapping[str, str]) -> payment_auth.Receipt | None:
    """Payment-Receipt; None when it is missing or not readable."""
    text = headers.get(payment_auth.PAYMENT_RECEIPT)
    try:
        return None if text is None else payment_auth.read_receipt(text)
    except ValueError:
        return None


def _auth_problem(payment: Payment, receipt: SettlementResponse | None, charge: payment_auth.Receipt | None) -> str:
    """What is wrong with a payment that was shown in an Authorization field, of which there may be either receipt."""
    if receipt is not None and not receipt.success:
        return f"the receipt says that it failed: {receipt.error_reason}"
    if is_lightning(payment.network):
        preimage = preimage_of(payment.value)
        if not preimage or hashlib.sha256(bytes.fromhex(preimage)).hexdigest() != payment.reference:
            return "the preimage is another payment's"
        is_other = charge is not None and charge.reference != payment.reference
        return "the receipt is for another payment" if is_other else ""
    if receipt is not None:
        return _problem(payment, receipt)
    if charge is None:
        return "no readable receipt"
    return _transaction_problem(payment, charge.reference)


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
    return _transaction_problem(payment, receipt.transaction)


def _transaction_problem(payment: Payment, named: str) -> str:
    if payment.network.startswith("solana:"):
        from . import svm

        return svm.receipt_problem(payment.value, named)
    return "" if _HASH.match(named) else "the receipt names no transaction"


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
        amount = parse_atomic(value)
    except ValueError:
        return None
    return amount if amount <= MAX_AMOUNT else None


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
    receipt, charge = read_receipt(headers), _charge_receipt(headers)
    by_auth = is_auth(payment.header)
    problem = _auth_problem(payment, receipt, charge) if by_auth else _problem(payment, receipt)
    named = receipt.transaction if receipt else charge.reference if charge and by_auth else ""
    return PaymentInfo(
        reference=payment.reference,
        amount=payment.amount,
        network=payment.network,
        asset=payment.asset,
        payer=payment.payer,
        pay_to=payment.pay_to,
        transaction=payment.reference if is_lightning(payment.network) else named,
        replayed=_is_replayed(headers),
        verified=not problem,
        problem=problem,
        receipt=receipt,
        **_parts(headers, asset),
    )


def read_token(token: Token, headers: Mapping[str, str]) -> PaymentInfo:
    """A call on a token that was bought before; it cost nothing more."""
    receipt = read_receipt(headers)
    return PaymentInfo(
        reference=token.reference,
        amount=0,
        network=token.network,
        asset="btc",
        payer=ADDRESS,
        pay_to="",
        transaction=token.reference,
        replayed=_is_replayed(headers),
        verified=True,
        problem="",
        receipt=receipt,
        source="token",
        **_parts(headers, None),
    )
