"""The wallet service as Venice's clients know it: ``{success, data}``, camelCase, numbers, error codes (wire.md 8).

Numbers are written from the exact decimals, never through a float. Statuses are ours (docs/concepts.md): a payment that
is not good is 402 with fresh offers where Venice says 400, and a proof that was spent is 403. In a top-up the payment
brings any amount between minimum and maximum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

from starlette.requests import Request

from ..errors import (
    BadRequest,
    InsufficientBalance,
    MalformedPayment,
    OutcomeUnknown,
    PaymentInProgress,
    PaymentRefused,
    ProofRefused,
    ProofUsed,
    ServerError,
)
from ..model import Balance, Claim, Entry, Json
from ..money import Asset, format_units
from ..paywall.challenge import Challenge
from ..protocols.encoding import b64decode, parse_object
from ..protocols.siwx import EXTENSION, SIGN_IN_WITH_X
from ..protocols.x402 import v1_network
from . import answers
from .answers import Answer
from .wallet_price import TopUp
from .wallet_shapes import PAGE, PAGE_MAX, Entries, Where, json_answer, number, time_text

__all__ = ["Venice"]

_OFFSET_MAX: Final = 10_000
_SIGN_IN: Final = "X402_SIGN_IN_"
_PROOFS: Final = {
    "invalid_siwx_unsupported_chain": "UNSUPPORTED_CHAIN",
    "invalid_siwx_domain_mismatch": "DOMAIN_MISMATCH",
    "invalid_siwx_uri_mismatch": "DOMAIN_MISMATCH",
    "invalid_siwx_issued_at_too_old": "EXPIRED",
    "invalid_siwx_issued_at_in_future": "FUTURE_TIMESTAMP",
    "invalid_siwx_expired": "EXPIRED",
    "invalid_siwx_not_yet_valid": "NOT_BEFORE",
    "invalid_siwx_signature": "INVALID_SIGNATURE",
}
"""Our reason → Venice's code, without what all of them begin with."""
_TYPES: Final = {"deposit": "TOP_UP", "reserve": "CHARGE", "payout": "CHARGE", "refund": "CHARGE", "reverse": "CHARGE"}
"""Of an entry; the others are a ``REFUND``, unless they take."""


class Number(NamedTuple):
    """A JSON number by its digits."""

    text: str


class Venice:
    """wire.md 8.2 and 8.3."""

    name = "venice"
    any_amount = True

    def challenge(self, made: Challenge, error: PaymentRefused | None, place: str) -> Answer:
        """The body is what stands in PAYMENT-REQUIRED, where that is offered, and how else the call can be paid."""
        answer = answers.challenge(made, error)
        body = b64decode(made.header.decode("ascii")) if made.header else answer.body
        if made.credits:
            return Answer(answer.status, answer.headers, body)
        wallet = {
            "header": SIGN_IN_WITH_X,
            "legacyHeader": "X-Sign-In-With-X",
            "topUp": f"POST {place}/top-up",
            "docs": place,
        }
        more = _dump({"authOptions": {"x402Wallet": wallet}})
        return Answer(answer.status, answer.headers, body[:-1] + b"," + more[1:])

    def shortfall(self, made: Challenge, error: InsufficientBalance, price: TopUp, asset: Asset, place: str) -> Answer:
        offer = parse_object(b64decode(made.header.decode("ascii")))
        minimum, network = Number(f"{price.minimum.value:f}"), asset.network
        missing = price.at_least(error.needed - error.available, asset.decimals)
        short = v1_network(network) or network
        proof = offer.get("extensions", {}).get(EXTENSION, {})
        document: Json = {
            "error": "The balance is too low for this call.",
            "code": "PAYMENT_REQUIRED",
            "reason": error.reason,
            "currentBalanceUsd": _usd(error.available, asset),
            "minimumBalanceUsd": _usd(error.needed, asset),
            "suggestedTopUpUsd": Number(f"{missing.value:f}"),
            "minimumTopUpUsd": minimum,
            "supportedTokens": [asset.symbol],
            "supportedChains": [short],
            "topUpInstructions": {
                "step1": f"POST {place}/top-up without a payment: 402 with what can be paid.",
                "step2": f"Sign a payment of {asset.symbol} to receiverWallet, of the minimum or more.",
                "step3": f"POST {place}/top-up again, with the payment in PAYMENT-SIGNATURE or X-402-Payment.",
                "receiverWallet": offer["accepts"][0]["payTo"],
                "tokenAddress": asset.address,
                "tokenDecimals": asset.decimals,
                "network": short,
                "minimumAmountUsd": minimum,
            },
        }
        if proof:
            document["siwxChallenge"] = {"info": proof["info"], "supportedChains": proof["supportedChains"]}
        answer = answers.challenge(made)
        return Answer(answer.status, answer.headers, _dump(document))

    def problem(self, error: ServerError, *, top_up: bool = False) -> Answer:
        """Our problem document, with Venice's words in it."""
        unreadable = isinstance(error, MalformedPayment) and error.reason.startswith("invalid_siwx")
        answer, code = answers.problem(error), _SIGN_IN + "INVALID_PAYLOAD" if unreadable else _code(error)
        document: dict[str, Any] = {**parse_object(answer.body), "error": code if top_up else error.hint, "code": code}
        if error.detail and isinstance(error, BadRequest):
            document["details"] = error.detail
        headers = [pair for pair in answer.headers if pair[0] != b"content-type"]
        status = 401 if unreadable else answer.status
        document["status"] = status
        return Answer(status, [(b"content-type", b"application/json"), *headers], _dump(document))

    def topped_up(self, where: Where, entry: Entry) -> Answer:
        return _good(
            {
                "walletAddress": where.shown,
                "amountCredited": Number(where.units(entry.available)),
                "amountPaid": Number(where.units(-entry.external)),
                "newBalance": Number(where.units(entry.balance)),
                "paymentId": str(entry.id),
                "network": where.network,
                "transaction": entry.reference,
            }
        )

    def balance(self, where: Where, found: Balance, price: TopUp) -> Answer:
        minimum = Number(f"{price.minimum.value:f}")
        return _good(
            {
                "walletAddress": where.shown,
                "balanceUsd": Number(where.units(found.available)),
                "heldUsd": Number(where.units(found.held)),
                "canConsume": found.available > 0,
                "minimumTopUpUsd": minimum,
                "suggestedTopUpUsd": minimum,
            }
        )

    async def transactions(self, request: Request, where: Where, balance: Balance, entries: Entries) -> Answer:
        """Pages by an offset, as Venice's: what comes meanwhile shifts them."""
        limit = number(request, "limit", PAGE, 1, PAGE_MAX)
        offset = number(request, "offset", 0, 0, _OFFSET_MAX)
        found = await entries(None, offset + limit + 1)
        return _good(
            {
                "walletAddress": where.shown,
                "currentBalance": Number(where.units(balance.available)),
                "transactions": [_transaction(entry, where) for entry in found[offset : offset + limit]],
                "pagination": {"limit": limit, "offset": offset, "hasMore": len(found) > offset + limit},
            }
        )

    def withdrawal(self, where: Where, payout: Claim) -> Answer:
        failed = payout.state == "failed"
        document: Json = {
            "walletAddress": where.shown,
            "amountWithdrawn": Number(where.units(0 if failed else payout.amount)),
            "state": payout.state,
            "transaction": payout.reference,
        }
        if failed:
            document["reason"] = payout.reason
        return _good(document, 200 if failed or payout.state == "settled" else 202)


def _transaction(entry: Entry, where: Where) -> Json:
    kind = _TYPES.get(entry.type, "CHARGE" if entry.available < 0 or entry.type == "payment" else "REFUND")
    if entry.type == "payment" and entry.available > 0:  # what a direct payment did not use
        kind = "REFUND"
    return {
        "id": str(entry.id),
        "amount": Number(where.units(entry.available)),
        "balanceAfter": Number(where.units(entry.balance)),
        "type": kind,
        "createdAt": time_text(entry.at),
        "requestId": entry.request_id or None,
        "modelId": entry.resource or None,
    }


def _code(error: ServerError) -> str:
    if isinstance(error, ProofRefused):
        return _SIGN_IN + _PROOFS.get(error.reason, "INVALID_MESSAGE")
    if isinstance(error, ProofUsed):
        return _SIGN_IN + "NONCE_REUSED"
    if isinstance(error, MalformedPayment):
        return "INVALID_PAYMENT_FORMAT"
    if isinstance(error, PaymentInProgress):
        return "PAYMENT_IN_PROGRESS"
    if isinstance(error, OutcomeUnknown):
        return "SETTLEMENT_TIMEOUT"
    if isinstance(error, BadRequest):
        return "INVALID_AMOUNT" if "amount" in error.reason else error.reason.upper()
    return error.code.upper().replace("-", "_")


def _usd(units: int, asset: Asset) -> Number:
    return Number(format_units(units, asset.decimals))


def _good(data: Json, status: int = 200) -> Answer:
    return json_answer(_dump({"success": True, "data": data}), status)


def _dump(value: Any) -> bytes:
    return _text(value).encode("ascii")


def _text(value: Any) -> str:
    """Compact ASCII JSON with exact numbers."""
    if isinstance(value, Number):
        return value.text
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value).items()
        return "{" + ",".join(f"{json.dumps(name)}:{_text(member)}" for name, member in members) + "}"
    if isinstance(value, list):
        return "[" + ",".join([_text(item) for item in value]) + "]"  # pyright: ignore[reportUnknownVariableType]  # JSON
    return json.dumps(value, allow_nan=False)
