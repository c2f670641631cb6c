"""What is said to a facilitator, and what its answers are taken to mean. Pure (wire.md 1.4, 2.4, 5.1).

A /settle answer is read so that a wrong guess can't cost anyone money:

    no connection came about                          nothing was sent: failed
    success true, our network, a transaction, and
      payer and amount ours where they are stated     settled
    success true, anything else                       pending, and the operator is told (I-04)
    settlement_pending                                again: the very same call once more
    success false, the nonce is used                  used: whose success that was, only the chain can say (I-06)
    success false, a reason of ``CERTAIN``, in answer
      to the first call for this payment              failed
    anything else: another reason, a time-out, a 5xx,
      HTML, no ``success`` (I-02, I-03, I-05)          pending

A refusal of a repeated call is never certain: the first may have settled, and that may be why the second is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from ..model import Authorization, Json, PaymentRequirements, ResourceInfo, SettlementResponse, VerifyResponse
from ..protocols.x402 import (
    caip2,
    parse_settlement_response,
    parse_verify_response,
    requirements_json,
    requirements_json_v1,
    v1_network,
)
from .http import Answer, NotSent, Unknown

__all__ = [
    "CERTAIN",
    "Reading",
    "body_json",
    "is_used",
    "read_settlement",
    "read_verdict",
    "sanitized",
    "supported_kind",
]

_REASON: Final = re.compile(r"[a-z0-9_:.-]{1,80}\Z", re.ASCII)
_REFERENCE: Final = re.compile(r"[0-9A-Za-z]{16,128}\Z", re.ASCII)
_USED: Final = re.compile(
    r"(?:nonce|authorization).*(?:used|spent|consumed)|(?:used|spent|duplicate).*(?:nonce|authorization)"
    r"|already_(?:used|settled)",
    re.ASCII,
)

CERTAIN: Final = frozenset(
    (
        "eip6492_factory_not_allowed",
        "insufficient_balance",
        "insufficient_funds",
        "invalid_exact_evm_eip3009_not_supported",
        "invalid_exact_evm_insufficient_balance",
        "invalid_exact_evm_missing_eip712_domain",
        "invalid_exact_evm_network_mismatch",
        "invalid_exact_evm_payload_authorization_valid_after",
        "invalid_exact_evm_payload_authorization_valid_before",
        "invalid_exact_evm_payload_authorization_value",
        "invalid_exact_evm_payload_authorization_value_mismatch",
        "invalid_exact_evm_payload_authorization_value_too_low",
        "invalid_exact_evm_payload_recipient_mismatch",
        "invalid_exact_evm_payload_signature",
        "invalid_exact_evm_payload_undeployed_smart_wallet",
        "invalid_exact_evm_recipient_mismatch",
        "invalid_exact_evm_scheme",
        "invalid_exact_evm_signature",
        "invalid_exact_evm_token_name_mismatch",
        "invalid_exact_evm_token_version_mismatch",
        "invalid_exact_svm_fee_payer_mismatch",
        "invalid_exact_svm_payload_amount_insufficient",
        "invalid_exact_svm_payload_amount_mismatch",
        "invalid_exact_svm_payload_excessive_signers",
        "invalid_exact_svm_payload_memo_count",
        "invalid_exact_svm_payload_memo_mismatch",
        "invalid_exact_svm_payload_mint_mismatch",
        "invalid_exact_svm_payload_missing_fee_payer",
        "invalid_exact_svm_payload_no_transfer_instruction",
        "invalid_exact_svm_payload_recipient_mismatch",
        "invalid_exact_svm_payload_signature_invalid",
        "invalid_exact_svm_payload_transaction_could_not_be_decoded",
        "invalid_exact_svm_payload_transaction_fee_payer_transferring_funds",
        "invalid_exact_svm_payload_transaction_instructions_length",
        "invalid_network",
        "invalid_payload",
        "invalid_payment_requirements",
        "invalid_scheme",
        "invalid_x402_version",
        "missing_eip712_domain",
        "network_mismatch",
        "unsupported_scheme",
    )
)
"""Reasons found before anything is broadcast, or by the token, which then moves nothing. Any other is not certain."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer comes to. ``alert``: the facilitator contradicts itself or us, and a person should look."""

    verdict: Literal["settled", "failed", "pending", "again", "used"]
    reason: str = ""
    reference: str = ""
    never_sent: bool = False
    alert: bool = False


def sanitized(reason: str) -> str:
    """A reason of a peer's as we may show it: a code and never free text, which may name its nodes (I11)."""
    lower = reason.lower()
    return lower if _REASON.match(lower) else "facilitator_refused"


def is_used(reason: str) -> bool:
    """Whether a reason says that the payment's nonce is spent."""
    return bool(_USED.search(reason))


def body_json(payload: Json, offer: PaymentRequirements, version: int, resource: str) -> Json:
    """The body of /verify and /settle. ``payload`` is the payer's own, as its rail writes it; ``offer`` is ours, with
    our own ``extra``; nothing of the echo goes in.
    """
    if version == 1:
        # v1's schemas want a URL, which a rail does not know.
        requirements = requirements_json_v1(offer, ResourceInfo(resource))
        payment: Json = {"scheme": offer.scheme, "network": v1_network(offer.network)}
    else:
        requirements = requirements_json(offer)
        del requirements["maxAmountRequired"]
        payment = {"accepted": requirements}
    payment |= {"x402Version": version, "payload": payload}
    return {"x402Version": version, "paymentPayload": payment, "paymentRequirements": requirements}


def supported_kind(answer: Any, scheme: str, network: str) -> tuple[int, Json]:
    """The x402 version in which a /supported answer lists our kind, 2 before 1 and 0 for none, and its ``extra``."""
    version, extra = 0, Json()
    for entry in _list(_object(answer).get("kinds")):
        kind = _object(entry)
        name, said = kind.get("network"), kind.get("x402Version")
        if kind.get("scheme") != scheme or not isinstance(name, str) or not _covers(name, network):
            continue
        if said in (1, 2) and said > version:
            version, extra = int(said), _object(kind.get("extra"))
    return version, extra


def _object(value: Any) -> Json:
    """An object, empty where there is none: whatever must be in it is then missing."""
    return cast("Json", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]  # JSON


def _covers(name: str, network: str) -> bool:
    """Whether a kind's network is ours: by its id, by v1's name, or by a pattern of v2 such as ``eip155:*``."""
    return caip2(name) == network or (name.endswith(":*") and network.startswith(name[:-1]))


def read_verdict(answer: Answer, payer: str) -> VerifyResponse:
    """A /verify answer. Raises ``ValueError`` for all that is not a clear yes or no about this payer."""
    made = parse_verify_response(_object(answer.json))
    if made.is_valid and (answer.status != 200 or not _same(made.payer, payer)):
        raise ValueError("it contradicts itself")
    if not made.is_valid and answer.status not in (200, 400, 402, 409, 412, 422):
        raise ValueError("not about the payment")
    return made


def _same(stated: str, ours: str) -> bool:
    """What a facilitator leaves out is not missed. EVM addresses alone are the same in any case."""
    return not stated or stated == ours or (ours.startswith("0x") and stated.lower() == ours.lower())


def read_settlement(answer: Answer | NotSent | Unknown, authorization: Authorization, *, first: bool) -> Reading:
    """A /settle answer, by the table above."""
    if isinstance(answer, NotSent) and first:
        return Reading("failed", "facilitator_unavailable", never_sent=True)
    if not isinstance(answer, Answer):
        return Reading("pending", f"facilitator_{answer.why}")
    try:
        made = parse_settlement_response(_object(answer.json))
    except ValueError:
        return Reading("pending", "facilitator_garbage")
    reference = made.transaction if _REFERENCE.match(made.transaction) else ""
    if made.success:
        clear = 200 <= answer.status < 300 and bool(reference) and _is_ours(made, authorization)
        return Reading(
            "settled" if clear else "pending", "" if clear else "facilitator_mismatch", reference, alert=not clear
        )
    return _refusal(sanitized(made.error_reason), reference, first and answer.status < 500)


def _is_ours(made: SettlementResponse, authorization: Authorization) -> bool:
    amount_fits = made.amount is None or made.amount == authorization.amount
    return made.network == authorization.network and amount_fits and _same(made.payer, authorization.payer)


def _refusal(reason: str, reference: str, first: bool) -> Reading:
    if reason == "settlement_pending":
        return Reading("again", reason, reference)
    if is_used(reason):
        return Reading("used", reason, reference)
    if first and reason in CERTAIN:
        return Reading("failed", reason, reference)
    return Reading("pending", reason, reference)
