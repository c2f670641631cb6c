"""How a command that pays ends when it did not go well: what is said, and the exit status."""

from __future__ import annotations

import json
import re
from typing import Final

import httpx

from ..client import (
    BalanceCall,
    BalanceTooLow,
    NothingPayable,
    Payer,
    Payment,
    PaymentNotAccepted,
    PolicyRefused,
    ProofNotAccepted,
    TooDear,
)
from .output import error, plain, tell
from .status import ERROR, REFUSED, TOO_DEAR, UNKNOWN

__all__ = ["AGAIN", "OPEN", "failed", "in_options", "open_call", "open_reference", "say", "state_of"]

OPEN: Final = ("signed", "sent", "unknown", "cooling")
"""States of the journal in which the same command goes on with the same payment or call."""
AGAIN: Final = "the same command shows the same payment again"
_KINDS: Final[tuple[tuple[type[BaseException], str, int], ...]] = (
    (TooDear, "too_dear", TOO_DEAR),
    (BalanceTooLow, "balance_too_low", REFUSED),
    (PolicyRefused, "refused", REFUSED),
    (NothingPayable, "not_payable", REFUSED),
    (PaymentNotAccepted, "not_accepted", REFUSED),
    (ProofNotAccepted, "proof_not_accepted", REFUSED),
)
_CALL: Final = re.compile(r" \[payment call-[^\]]*\]")
# The library's errors name its own arguments; who sits at a shell has the options.
_OPTIONS: Final = (
    ("allow_insecure=True", "--allow-insecure"),
    ("balance='only'", "--balance only"),
    ("Limits.per_call", "--max-amount"),
    ("Limits.per_day", "--max-per-day"),
)


def failed(payer: Payer, fault: BaseException, words: bool) -> int:
    """Say what went wrong, and what it means for the money."""
    reference = open_reference(payer, fault)
    if reference:
        say(words, "outcome_unknown", f"{in_options(str(fault)) or type(fault).__name__}; {AGAIN}", reference)
        return UNKNOWN
    code, status = next(((code, status) for kind, code, status in _KINDS if isinstance(fault, kind)), ("error", ERROR))
    say(words, code, _told(fault), getattr(fault, "reference", ""))
    return status


def _told(fault: BaseException) -> str:
    text = str(fault) or type(fault).__name__
    if isinstance(fault, httpx.RequestError):
        text = f"{fault.request.url}: {text}"
    return in_options(text)


def in_options(text: str) -> str:
    """The client's words with the options' names in them, and without a payment where it was a call from a balance."""
    text = _CALL.sub("", text)
    for argument, option in _OPTIONS:
        text = text.replace(argument, option)
    return text


def open_reference(payer: Payer, fault: BaseException) -> str:
    """The payment or call that was in use when this went wrong, where its outcome is open: the client notes it on the
    error.
    """
    told = " ".join([getattr(fault, "reference", ""), *getattr(fault, "__notes__", ())])
    rows: list[Payment | BalanceCall] = [*payer.payments(only_open=True), *payer.balance_calls(only_open=True)]
    return next((row.reference for row in rows if row.state in OPEN and row.reference in told), "")


def open_call(payer: Payer, answer: httpx.Response) -> str:
    """The call from a balance that an answer without a receipt has left open."""
    asked, reason = answer.request, f"status {answer.status_code}"
    rows = (
        row for row in payer.balance_calls(only_open=True) if (row.method, row.url) == (asked.method, str(asked.url))
    )
    return next((row.reference for row in rows if row.reason == reason), "")


def state_of(payer: Payer, reference: str) -> str:
    """What the journal says of a payment or call."""
    rows: list[Payment | BalanceCall] = [*payer.payments(), *payer.balance_calls()]
    return next((row.state for row in rows if row.reference == reference), "")


def say(words: bool, code: str, message: str, reference: str = "") -> None:
    """On standard error, for people or for programs."""
    if words:
        error(message)
    else:
        tell(json.dumps({"error": code, "message": plain(message), "reference": reference}))
