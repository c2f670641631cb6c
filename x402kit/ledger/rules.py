"""The rules that every store obeys, pure: who may move a claim or a hold where, and what each move writes in the books.

A claim is a payment that is being used:

    state     durable is                            right is    next
    claimed   id, request, quote, deadline          the store   sent, failed (nothing was sent)
    sent      the transaction's hash, before it is  the chain   settled, failed (certain), unknown
              broadcast
    unknown   as sent                               the chain   settled, failed
    settled   amount, payer, transaction, log       the chain   served; credited at its deadline; failed, when a
                                                                reorganisation took it back for good (I-08)
    served    status, receipt, kept body, entry     the store   end
    credited  the ledger's entry, same transaction  the store   end
    failed    why; certain that no money moved      the chain   end: the payer may sign again, or show it again;
              (``spent``: none reached us)                      or, spent without reaching us (B12), an alert

A hold is a reserve on an account: ``open``, then ``captured``, ``voided`` or ``expired``, once and for all (E05, I6).

A payout (money on its way back to a wallet) goes through the first four states of a claim; settled is its end.

A move is one statement guarded by the states that it may start from, so that of two that race exactly one wins. Every
move of money is one entry: five amounts that sum to zero, on ``external``, the payer's ``available`` and ``held``,
``revenue`` and ``suspense``. Entries are only ever added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from ..money import MAX_AMOUNT

__all__ = [
    "HOLD_ENDS",
    "MOVES",
    "OPEN",
    "STATES",
    "Postings",
    "capture",
    "checked",
    "deposit",
    "ends",
    "may",
    "notable",
    "payment",
    "payout",
    "refund",
    "reserve",
    "returned",
    "reverse",
    "void",
]

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
    "tell": (("settled",), "served"),
}
"""Move → the states that it starts from, and the one that it ends in. ``claim`` itself starts from nothing or failed,
and ends in ``sent`` where the intent, which holds nothing, is stored with it. ``tell`` ends a settlement that a
facilitator made for somebody else: it is not in our books.
"""

HOLD_ENDS: Final[Mapping[str, str]] = {"capture": "captured", "void": "voided", "expire": "expired"}
"""How an open hold ends → the state that it ends in."""


def may(move: str, state: str) -> bool:
    """Whether a claim in ``state`` can make ``move``."""
    return state in MOVES[move][0]


def ends(table: str, move: str) -> bool:
    """Whether a row of ``table`` needs no lease after ``move``: it is over, or waits for the chain alone."""
    state = MOVES[move][1]
    return state in ("served", "failed", "credited", "unknown") or (table == "payouts" and state == "settled")


def notable(columns: Iterable[str]) -> tuple[str, ...]:
    """The columns of an invoice that are set after it was issued; the rest is what was agreed. Raises ``ValueError``
    for any other, and for none.
    """
    names = tuple(columns)
    if not names or not {"state", "next_check"}.issuperset(names):
        raise ValueError(f"of an invoice only its state and next_check can be set, not {names}")
    return names


class Postings(NamedTuple):
    """What one move writes, in atomic units of the account's asset. Sums to zero (I1).

    ``external`` is the world outside: what came in from it stands there as a negative number.
    """

    external: int = 0
    available: int = 0
    held: int = 0
    revenue: int = 0
    suspense: int = 0


def checked(amount: int, *, least: int = 1) -> int:
    """The amount, when it is one: refused by type and range before any statement is built (E09); the stores' CHECKs say
    it again. Raises ``ValueError``.
    """
    if type(amount) is not int or not least <= amount <= MAX_AMOUNT:
        raise ValueError(f"an amount is a whole number from {least} to {MAX_AMOUNT}, not {amount!r}")
    return amount


def deposit(amount: int) -> Postings:
    """Money came in, for the balance."""
    return Postings(external=-checked(amount), available=amount)


def payment(amount: int, cost: int) -> Postings:
    """A direct payment was served: what the call cost is earned, what is left becomes balance.

    Also a top-up, whose cost is what its settlement cost, and a settled payment that was never served, which cost
    nothing. A payment is never charged for more than it brought.
    """
    earned = min(checked(cost, least=0), checked(amount))
    return Postings(external=-amount, available=amount - earned, revenue=earned)


def reserve(amount: int) -> Postings:
    """The most that a call can cost, out of ``available``."""
    return Postings(available=-checked(amount), held=amount)


def capture(reserved: int, cost: int, more: int = 0) -> Postings:
    """What the call cost is earned, the rest of the reserve is given back.

    What it cost above the reserve is the seller's loss, but for ``more``: what the account still had for it
    (``overage="charge"``), at most the difference.
    """
    earned = min(checked(cost, least=0), checked(reserved))
    more = min(checked(more, least=0), cost - earned)
    return Postings(available=reserved - earned - more, held=-reserved, revenue=earned + more)


def void(reserved: int) -> Postings:
    """The whole reserve is given back: the call was not served, or its deadline is over."""
    return Postings(available=checked(reserved), held=-reserved)


def payout(amount: int) -> Postings:
    """Balance is on its way back to its wallet."""
    return Postings(available=-checked(amount), suspense=amount)


def refund(amount: int) -> Postings:
    """…and has arrived there."""
    return Postings(external=checked(amount), suspense=-amount)


def returned(amount: int) -> Postings:
    """…or certainly never will, and is balance again."""
    return Postings(available=checked(amount), suspense=-amount)


def reverse(amount: int, available: int) -> Postings:
    """A settlement left the chain after it was booked (I-08): the payer owes it. What the account has, ``available``,
    is taken; the rest is a loss that stands in ``suspense`` for the operator to see, below zero.
    """
    taken = min(checked(available, least=0), checked(amount))
    return Postings(external=amount, available=-taken, suspense=taken - amount)
