"""What an answer to a payment means. Pure."""

from __future__ import annotations

from typing import Final

from ..errors import PaymentOutcomeUnknown
from ..networks.facilitator_wire import is_used
from .steps import Answer

__all__ = ["AGAIN", "may_have_moved", "state_after", "unknown_outcome"]

AGAIN: Final = frozenset((409, 500, 502, 503, 504))
"""Answers after which the same payment is shown again: money may have moved, or the server asks for it."""


def may_have_moved(said: str, *, doubt: bool) -> bool:
    """Whether a refusal's reason is that of a payment that has landed; on Solana its simulation fails then."""
    return is_used(said) or said == "duplicate_settlement" or (doubt and said == "transaction_simulation_failed")


def unknown_outcome(reference: str, said: str = "") -> PaymentOutcomeUnknown:
    text = "the payment was sent and no certain answer came" + (f" ({said})" if said else "")
    return PaymentOutcomeUnknown(text, reference=reference)


def state_after(answer: Answer, *, doubt: bool) -> tuple[str, bool]:
    """The row's state after a deciding answer that is no 402, and whether it counts as a refusal."""
    if answer.status in AGAIN or "payment-outcome" in answer.headers:
        return "unknown", False  # the payment may be good still, for the same request
    if answer.status < 400:
        return "accepted", False
    if answer.status == 403:
        return "used", True
    return "unknown" if doubt else "refused", True
