"""The port of a claim store: SQLite implements it, and PostgreSQL will.

Every method is durable when it returns, is one guarded statement, and raises ``RailUnavailable`` (503) when the store
can't be reached, is full, read-only or locked for too long (J03, J04); nothing has changed then.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..model import Claim

__all__ = ["ClaimStore"]


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
        """Forget kept bodies past their time, and claims past the payment's life and theirs (C07). How many rows."""
        ...

    async def take_nonce(self, wallet: str, holder: str, floor: int) -> int:
        """The lowest free nonce of a wallet, at least ``floor``; ``holder`` is the claim's owner (B15)."""
        ...

    async def free_nonces(self, holder: str, wallet: str = "", nonce: int = -1) -> None:
        """Give back what ``holder`` took and never broadcast: one nonce, or all. What another holds by now stays."""
        ...
