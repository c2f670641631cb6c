"""The rules that every store obeys, pure. Here: a claim's states and who may move it where.

    state     durable is                            right is    next
    claimed   id, request, quote, deadline          the store   sent, failed (nothing was sent)
    sent      the transaction's hash, before it is  the chain   settled, failed (certain), unknown
              broadcast
    unknown   as sent                               the chain   settled, failed
    settled   amount, payer, transaction, log       the chain   served; credited at its deadline; failed, when a
                                                                reorganisation took it back for good (I-08)
    served    status, receipt, kept body            the store   end
    credited  the ledger's entry, same transaction  the store   end
    failed    why; certain that no money moved      the chain   end: the payer may sign again, or show it again;
              (``spent``: none reached us)                      or, spent without reaching us (B12), an alert

A move is one statement guarded by the states that it may start from, so that of two that race exactly one wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["MOVES", "OPEN", "STATES", "may"]

STATES: Final = ("claimed", "sent", "unknown", "settled", "served", "credited", "failed")

OPEN: Final = ("claimed", "sent", "unknown")
"""States in which money may be on its way: never a fresh challenge (I7), and counted against a payer's limit (I-13)."""

MOVES: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "intend": (("claimed",), "sent"),
    "confirm": (("claimed", "sent", "unknown"), "settled"),
    "lose": (("sent", "unknown"), "unknown"),
    "drop": (("claimed",), "failed"),
    "fail": (("claimed", "sent", "unknown"), "failed"),
    "serve": (("settled",), "served"),
    "credit": (("settled",), "credited"),
    "reverse": (("settled",), "failed"),
}
"""Move → the states that it starts from, and the one that it ends in. ``claim`` itself starts from nothing or
failed.
"""


def may(move: str, state: str) -> bool:
    """Whether a claim in ``state`` can make ``move``."""
    return state in MOVES[move][0]
