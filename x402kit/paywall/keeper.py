"""What time does to the books: what nobody served becomes balance, what nobody ended goes back, what is over is pruned.

Each claim is taken before it is credited, so that it can't be served at the same moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from ..errors import ServerError
from ..ledger.port import Store
from ..model import Claim

__all__ = ["Keeper"]

log = logging.getLogger("x402kit.settlement")

_BITE: Final = 1000
"""Rows of one kind that a store forgets at once, at the most."""
_PRUNE_SECONDS: Final = 1.0
"""How long a pass goes on with it: what else it has to look at must not wait."""


class Keeper:
    """One for each process; several share a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def tidy(self) -> None:
        """One pass. Raises ``RailUnavailable`` when the store can't be reached; the next pass goes on."""
        now = int(time.time())
        await self._credit_unserved(now)
        try:
            await self._expire(now)
        finally:
            await self._prune(now)

    async def _expire(self, now: int) -> None:
        while ended := await self._store.expire(now):
            for hold in ended:
                log.warning("hold %s of %s expired: %d given back", hold.id, hold.owner, hold.amount)

    async def _prune(self, now: int) -> None:
        """In bites, since payments wait meanwhile; but as many as come (K04)."""
        end = time.monotonic() + _PRUNE_SECONDS
        while await self._store.prune(now) >= _BITE and time.monotonic() < end:
            pass

    async def _credit_unserved(self, now: int) -> None:
        seen: set[str] = set()
        # To the last of them: those that can't be credited would else stand before the others in every pass.
        while found := [claim for claim in await self._store.expired(now) if claim.payment_id not in seen]:
            seen.update(claim.payment_id for claim in found)
            await asyncio.gather(*map(self._try, found))  # together: what waits behind them has a deadline, too (I6)

    async def _try(self, claim: Claim) -> None:
        try:
            await self._credit(claim)
        except ServerError as e:
            log.error("ALERT: payment %s can't be credited now: %s", claim.payment_id, e.reason)

    async def _credit(self, claim: Claim) -> None:
        owner = f"keeper:{id(self):x}:{time.monotonic_ns():x}"
        taken = await self._store.take(claim.payment_id, "settled", owner)
        # Nothing is earned but what a top-up costs to settle (credit.py).
        if taken is not None and await self._store.move(claim.payment_id, "credit", owner, captured=taken.captured):
            amount = taken.amount - taken.captured
            log.warning("payment %s was never served; %d credited to %s", taken.payment_id, amount, taken.payer)
