"""Payouts: unused balance on its way back to its wallet, with its outbox in the ledger (E10).

A payout goes the way of a settlement in the other direction, and by the same code: the amount leaves the balance with
the row that says so, the signed transfer is stored before it is sent (I9), and what became of it is asked of the chain
until that has decided. Sent, it is booked as refunded; certainly not sent, it is balance again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ..errors import BadRequest, InsufficientBalance, OutcomeUnknown, RailUnavailable
from ..ledger.port import Store
from ..model import Account, Authorization, Claim, Intent, Outcome, PaymentRequirements, Spend
from ..money import MAX_AMOUNT
from ..networks.port import Nonces, PayingRail, Rail, paying
from .proofs import Proven
from .settlement import Settler

__all__ = ["Payouts"]

_POLL_SECONDS: Final = 0.5


class _Rows:
    """The payouts of a store, as the settler sees claims."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.move = store.move_payout
        self.note = store.note_payout
        self.take = store.take_payout
        self.release = store.release_payout
        self.get = store.get_payout
        self.take_nonce = store.take_nonce
        self.free_nonces = store.free_nonces

    async def due(self, now: int, limit: int = 100) -> list[Claim]:
        return await self._store.due_payouts(now, limit)


class _Outward:
    """A rail with its direction turned: what the settler asks of it is about a payout."""

    def __init__(self, rail: PayingRail) -> None:
        self._rail = rail
        self.network, self.asset, self.pay_to = rail.network, rail.asset, rail.pay_to
        self.send, self.discard = rail.send, rail.discard

    async def prepare(self, authorization: Authorization, offer: PaymentRequirements, nonces: Nonces) -> Intent:
        return await self._rail.prepare_payout(authorization.payer, authorization.amount, nonces)

    async def outcome(self, claim: Claim) -> Outcome:
        return await self._rail.payout_outcome(claim)

    async def wait(self, claim: Claim, seconds: float) -> Outcome:
        end = time.monotonic() + seconds
        while True:
            found = await self.outcome(claim)
            if found.state != "pending" or time.monotonic() > end:
                return found
            await asyncio.sleep(_POLL_SECONDS)


class Payouts:
    """Pays balances back. Raises ``ConfigError`` where a rail can't pay out: see ``networks.port.paying``."""

    def __init__(self, store: Store, rails: Iterable[Rail], *, wait_seconds: float = 25) -> None:
        self._store = store
        self._rails = {rail.network: _Outward(paying(rail)) for rail in rails}
        outward: Sequence[Any] = list(self._rails.values())
        self._settler = Settler(_Rows(store), outward, wait_seconds=wait_seconds)
        self._process = f"payout:{secrets.token_hex(4)}"

    async def reconcile(self) -> None:
        """One pass over payouts whose end is open."""
        await self._settler.reconcile()

    async def close(self, drain_seconds: float) -> None:
        """Let those under way finish."""
        await self._settler.close(drain_seconds)

    async def withdraw(self, proven: Proven, account: Account, amount: int | None) -> Claim:
        """Send ``amount`` atomic units, or all that is available, to the wallet that proved itself.

        The proof is spent with it, and names it: the same proof again tells what became of the same payout. Raises
        ``InsufficientBalance`` (nothing moved), ``ProofUsed``, ``BadRequest``. A payout that could not be sent is given
        back and raises as the rail did; one of unknown outcome is returned, and found out in time.
        """
        rail = self._rails.get(proven.network)
        if rail is None:
            raise BadRequest("unsupported_network")
        payment_id = f"payout:{proven.nonce_id}"
        found = await self._store.get_payout(payment_id)
        if found is not None:
            return found
        if amount is None:
            amount = (await self._store.balance(account)).available
        if not 0 < amount <= MAX_AMOUNT:
            raise InsufficientBalance(0, 1) if amount == 0 else BadRequest("invalid_amount")
        authorization = Authorization(
            payment_id, proven.network, rail.asset.address, rail.pay_to, proven.address, amount, 2**62, None
        )
        now = int(time.time())
        owner = f"{self._process}:{time.monotonic_ns():x}"
        wanted = authorization.claim(now, resource="withdraw", owner=owner, next_check=now)
        row = await self._store.payout(wanted, Spend(proven.nonce_id, proven.until))
        if row.owner != owner:
            return row
        return await self._send(rail, authorization, row)

    async def _send(self, rail: Any, authorization: Authorization, row: Claim) -> Claim:
        offer = PaymentRequirements("exact", row.network, row.amount, row.asset, row.payer, 0)
        try:
            sent = await self._settler.settle(rail, authorization, offer, row)
        except OutcomeUnknown:
            sent = await self._store.get_payout(row.payment_id) or row
        if sent.state == "failed":
            raise RailUnavailable(sent.reason or "payout_failed")
        return sent
