"""What an answer costs by the way it ended: the table of docs/metering.md, for every way of paying. Pure.

| end | stated usage | no usage, a meter | a fixed price |
| --- | --- | --- | --- |
| COMPLETE | its cost; an explicit 0 is 0 (H04) | the price's ``missing`` | all of it |
| LEFT_MIDWAY | its cost | the estimate (H03), or the ceiling where none can be made | all of it |
| STALLED, FAILED_MIDWAY, CUT | its cost | the estimate (H06, H07), or nothing | nothing |
| LEFT_BEFORE | its cost (H02) | nothing | nothing |
| FAILED_BEFORE, UNCHARGED | nothing (H08, H09) | nothing | nothing |

A fixed price buys one whole answer: where the seller breaks it off nothing is due, where the caller does, all of it. An
absurd usage, or one that states other units than the price has, is none (H05).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from ..money import Usd, usd
from .price import Meter, Quote
from .usage import Delivered, Usage

__all__ = ["End", "charge"]

_NOTHING: Final = usd("$0")


class End(Enum):
    """How an answer ended. What stalls because its caller does not read is ``LEFT_MIDWAY``, never ``STALLED``."""

    COMPLETE = "complete"
    """All of it went out, with a status that is charged for."""
    UNCHARGED = "uncharged"
    """The answer has a status that the resource does not charge for (H09)."""
    FAILED_BEFORE = "failed_before"
    """The handler raised, or gave no answer, before the first byte (H08)."""
    LEFT_BEFORE = "left_before"
    """The caller left before the first byte (H02)."""
    LEFT_MIDWAY = "left_midway"
    """The caller left after it (H03)."""
    STALLED = "stalled"
    """The handler gave nothing more for the idle time (H06)."""
    FAILED_MIDWAY = "failed_midway"
    """The handler raised after the first byte (H07)."""
    CUT = "cut"
    """We ended it: the server stops, or the hold's deadline has come."""


_FREE: Final = frozenset((End.UNCHARGED, End.FAILED_BEFORE))
_CALLERS: Final = frozenset((End.COMPLETE, End.LEFT_MIDWAY))
"""Ends that are no fault of the seller's."""


def charge(end: End, usage: Usage | None, delivered: Delivered, quote: Quote) -> Usd:
    """The exact cost in dollars, never below zero.

    It is above the quote's ceiling only where the stated usage is; what becomes of that is the ledger's to decide
    (E04, B17). An estimate never is.
    """
    meter = quote.meter
    if end in _FREE:
        return _NOTHING
    if meter is None:
        return quote.ceiling if end in _CALLERS else _NOTHING
    if usage is not None and not usage.absurd and meter.covers(usage):
        return max(meter.cost(usage), _NOTHING)
    if end is End.LEFT_BEFORE:
        return _NOTHING
    if end is End.COMPLETE and meter.missing != "estimate":
        return quote.ceiling if meter.missing == "ceiling" else _NOTHING
    return _estimated(end, delivered, quote, meter)


def _estimated(end: End, delivered: Delivered, quote: Quote, meter: Meter) -> Usd:
    usage = meter.estimate(delivered)
    if usage is None or usage.absurd:
        return quote.ceiling if end in _CALLERS else _NOTHING
    return min(max(meter.cost(usage), _NOTHING), quote.ceiling)
