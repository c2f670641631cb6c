"""The ports of a store: claims, accounts, payouts, invoices. SQLite and PostgreSQL implement all of it.

Every method is durable when it returns, is one guarded move, and raises ``RailUnavailable`` (503) when the store can't
be reached, is full, read-only or locked for too long (J03, J04); nothing has changed then, or, where only the answer
was lost, asking again by the same key gives the same result (E03).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from ..model import Account, Balance, Claim, Entry, Hold, Invoice, Spend

__all__ = ["Books", "ClaimStore", "Fault", "Invoices", "Ledger", "Overage", "Store"]

Overage = Literal["clamp", "charge"]
"""What to do with a cost above the hold: the seller's loss, or charged as far as the balance goes (E04)."""


class ClaimStore(Protocol):
    """Claims, leases and transaction nonces. An ``owner`` names one attempt of one process, and only it may go on."""

    async def start(self) -> None:
        """Open, migrate; ``ConfigError`` where the place can't hold money (J06)."""
        ...

    async def close(self) -> None: ...

    async def secret(self) -> bytes:
        """32 random bytes, made once and shared by all processes of this store."""
        ...

    async def get(self, payment_id: str) -> Claim | None: ...

    async def claim(self, claim: Claim) -> Claim:
        """Insert the row, or take one that failed and is not spent. The row that stands now: ours when its ``owner``
        is ours.

        Raises ``TooManyRequests`` when the payer has too many payments under way, or the store is at its limit (K04).
        """
        ...

    async def take(self, payment_id: str, state: str, owner: str) -> Claim | None:
        """Become the owner of a claim in ``state`` whose lease is over; None when someone else has it.

        In the same transaction: in ``claimed`` nothing was broadcast, so the nonces of its former owner are given back;
        in ``settled`` it counts as one more attempt to serve.
        """
        ...

    async def move(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool:
        """Make a move of rules.MOVES and set columns with it. False when its guard refuses; ``owner`` None is
        anyone.

        ``serve`` and ``credit`` write the books in the same transaction (rules.payment): ``captured``, by default the
        whole amount for ``serve`` and nothing for ``credit``, is earned, the rest becomes the payer's balance.
        """
        ...

    async def note(self, payment_id: str, **columns: Any) -> None:
        """Set columns without a move (next_check, final, block)."""
        ...

    async def release(self, payment_id: str, owner: str) -> None:
        """Give the lease back, so that the same payment can go on at once."""
        ...

    async def due(self, now: int, limit: int = 1000) -> list[Claim]:
        """Claims that someone must look at: open ones without a live lease, and settled ones not yet final."""
        ...

    async def expired(self, now: int, limit: int = 100) -> list[Claim]:
        """Settled claims that nobody serves and whose deadline is over."""
        ...

    async def prune(self, now: int) -> int:
        """Forget kept bodies past their time, claims past the payment's life and theirs (C07), holds that ended and
        proofs that are over, and invoices ``INVOICE_KEPT_SECONDS`` past their expiry, but for open ones: whether they
        were paid nobody has looked yet (G05). Entries stay. How many rows.

        The claim of a Lightning payment stays while its invoice's row is there, whatever its own time: without it the
        same token could be admitted once more.
        """
        ...

    async def take_nonce(self, wallet: str, holder: str, floor: int) -> int:
        """The lowest free nonce of a wallet, at least ``floor``; ``holder`` is the claim's owner (B15)."""
        ...

    async def free_nonces(self, holder: str, wallet: str = "", nonce: int = -1) -> None:
        """Give back what ``holder`` took and never broadcast: one nonce, or all. What another holds by now stays."""
        ...


class Ledger(Protocol):
    """Accounts and holds. All amounts are atomic units of the account's asset.

    Keys of entries: ``deposit:<key>``, ``reserve:<hold id>``, ``end:<hold id>`` (capture, void, expire),
    ``claim:<payment id>`` (payment, deposit), ``reverse:<payment id>``, ``payout:<id>``, ``payout-end:<id>``; their
    types are the names of the functions in rules.py, ``expire`` and, for what a claim credits, ``deposit`` besides.
    """

    async def balance(self, account: Account) -> Balance:
        """Zero for an account that has never been used (E11)."""
        ...

    async def deposit(self, account: Account, amount: int, key: str, *, reference: str = "") -> Entry:
        """Credit from outside, by hand: payments are credited with their claims. Once for each ``key`` (L03).

        The same key again gives the first entry; for another account or amount it is ``PaymentUsed`` (E01).
        """
        ...

    async def reserve(self, hold: Hold, spend: Spend | None = None) -> Hold:
        """Hold ``hold.amount`` and spend a proof, in one transaction. The row that stands now: ours when its
        ``holder`` is ours, else the one that has this id already; of one that was pruned, what the log knows of it.

        Raises ``ProofUsed`` (F01), and ``InsufficientBalance``: nothing changed, the proof is not spent.
        """
        ...

    async def capture(
        self, hold_id: str, cost: int, *, holder: str | None = None, overage: Overage = "clamp", **columns: Any
    ) -> Entry:
        """End a hold: ``cost`` is earned, as rules.capture says, and the rest goes back. ``columns`` are the answer's.

        The same capture, of the same cost, again gives the same entry (E03); any other end was first: ``HoldEnded``,
        no move (E05). For ``holder`` another's open hold is ``no_such_hold``.
        """
        ...

    async def void(self, hold_id: str, *, holder: str | None = None) -> Entry:
        """End a hold: all of it goes back. The same again gives the same entry; else ``HoldEnded``, as ``capture``."""
        ...

    async def hold(self, hold_id: str) -> Hold | None: ...

    async def defer_hold(self, hold_id: str, holder: str, deadline: int, **columns: Any) -> bool:
        """A job goes on after its request: no lease is kept, and the hold stays open until ``deadline``.

        ``columns`` are the answer's, as in ``capture``.
        """
        ...

    async def expire(self, now: int, limit: int = 100) -> list[Hold]:
        """End open holds whose lease and deadline are both over: all goes back (I6). Those that were ended."""
        ...

    async def entries(self, account: Account, before: int | None = None, limit: int = 50) -> list[Entry]:
        """The account's moves, newest first; ``before`` is the id of the last one seen."""
        ...

    async def entry(self, key: str) -> Entry | None:
        """The move with this idempotency key."""
        ...

    async def proof_spent(self, proof_id: str) -> bool: ...

    # Claims, as far as the books know them.

    async def serve_held(self, payment_id: str, owner: str, hold: Hold, **columns: Any) -> bool:
        """``serve`` with nothing captured yet, for a job that goes on: in one transaction the payment becomes balance
        (rules.payment with cost 0) and ``hold``, of its whole amount, is reserved from it. False as ``move``.
        """
        ...

    async def write_off(self, payment_id: str) -> None:
        """A settlement that was served or credited left the chain for good (I-08): book it (rules.reverse), set
        ``final`` and the reason ``reversed``. Once, however often it is called.
        """
        ...

    # Payouts: money on its way back to a wallet, a row of the claims' shape in a table of its own.

    async def payout(self, payout: Claim, spend: Spend | None = None) -> Claim:
        """Take ``payout.amount`` out of its account (rules.payout), store the row and spend a proof, in one
        transaction. ``payer`` is who gets it. The row that stands now: ours when its ``owner`` is ours, else the one
        that has this id already. Raises ``InsufficientBalance`` and ``ProofUsed``.
        """
        ...

    async def move_payout(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool:
        """``confirm`` books the refund, ``drop`` and ``fail`` give the amount back, in the same transaction (E10).

        Raises ``ValueError`` for a move that payouts don't make.
        """
        ...

    async def take_payout(self, payment_id: str, state: str, owner: str) -> Claim | None: ...

    async def note_payout(self, payment_id: str, **columns: Any) -> None:
        """As ``note``."""
        ...

    async def release_payout(self, payment_id: str, owner: str) -> None:
        """As ``release``."""
        ...

    async def get_payout(self, payment_id: str) -> Claim | None: ...

    async def due_payouts(self, now: int, limit: int = 100) -> list[Claim]:
        """Open ones without a live lease, and settled ones not yet final."""
        ...


class Fault(NamedTuple):
    """Something in the books that does not add up."""

    what: str
    owner: str = ""
    asset: str = ""
    expected: int = 0
    found: int = 0


class Books(Protocol):
    """The books as a whole, for the operator."""

    async def verify(self) -> list[Fault]:
        """What does not add up (E12): balances against the log, holds against ``held``, keys, running balances."""
        ...

    async def rebuild(self) -> int:
        """Make all balances anew from the log, in one transaction. How many accounts."""
        ...

    async def totals(self) -> dict[str, dict[str, int]]:
        """For each asset of the log the sum of every column of it, and of open ``holds`` and ``payouts``."""
        ...


class Invoices(Protocol):
    """Lightning invoices that were issued, by their payment hash (hex). The claim of what was paid for one is
    ``lightning:<payment hash>``.
    """

    async def add_invoice(self, invoice: Invoice) -> None:
        """Store the row; where the hash is known, the first row stays. Raises ``ValueError`` for an amount (msat) that
        is none.
        """
        ...

    async def get_invoice(self, payment_hash: str) -> Invoice | None: ...

    async def due_invoices(self, now: int, limit: int = 100) -> list[Invoice]:
        """Open ones whose node should be asked, expired or not; the one that waited longest first."""
        ...

    async def note_invoice(self, payment_hash: str, **columns: Any) -> None:
        """Set ``state`` or ``next_check``, of a row that may be gone. Raises ``ValueError`` for any other column."""
        ...

    async def count_open_invoices(self, now: int) -> int:
        """How many are open and not yet expired."""
        ...


class Store(ClaimStore, Ledger, Books, Invoices, Protocol):
    """All that a paywall keeps."""

    async def get_meta(self, key: str) -> bytes | None:
        """What was stored with ``key``."""
        ...

    async def set_meta(self, key: str, value: bytes, *, place: str = "") -> bool:
        """Store a value with ``key``, for all processes of this store; where ``place`` is given, only there."""
        ...

    async def place(self) -> str:
        """Which history of which database this is: it changes when a replica took over, and maybe the last commits
        are lost (J05). Empty where that can't be.
        """
        ...
