"""Payouts: unused balance on its way back to its wallet, with its outbox in the ledger (E10).

A payout goes the way of a settlement in the other direction, and by the same code: the amount leaves the balance with
the row that says so, the signed transfer is stored before it is sent (I9), and what became of it is asked of the chain
until that has decided. Sent, it is booked as refunded; certainly not sent, it is balance again.

    state      the amount is       who is right   next
    claimed    in suspense         the store      sent; failed (nothing was sent: its process died, no node, no funds)
    sent       in suspense         the chain      settled, failed (certain), unknown
    unknown    in suspense         the chain      settled, failed
    settled    refunded            the chain      end; or, where a reorganisation took it back for good, balance again
    failed     balance again       the chain      end: a new proof may ask anew
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ..errors import BadRequest, InsufficientBalance, OutcomeUnknown, ProofUsed, RailUnavailable, TooManyRequests
from ..ledger.port import Store
from ..model import Account, Authorization, Claim, Intent, Outcome, PaymentRequirements, Spend
from ..money import MAX_AMOUNT
from ..networks.port import Nonces, PayingRail, Rail
from .proofs import Proven
from .settlement import Settler

__all__ = ["PayoutFailed", "Payouts"]

_POLL_SECONDS: Final = 0.5
_FOREVER: Final = 2**62
"""A payout does not expire as an authorization does."""
_AT_ONCE: Final = 8
"""Payouts of one wallet that this process waits for: each holds a nonce of the settlement wallet (I12)."""
_READS: Final = 3
"""How often all of a balance is asked for, while calls spend from it at the same time."""


class PayoutFailed(RailUnavailable):
    code = "payout-failed"
    hint = "Nothing was sent, and the amount is on the balance again. Sign a new proof to ask anew."


class _Rows:
    """The payouts of a store, as the settler sees claims."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.note = store.note_payout
        self.take = store.take_payout
        self.release = store.release_payout
        self.get = store.get_payout
        self.take_nonce = store.take_nonce
        self.free_nonces = store.free_nonces

    async def due(self, now: int) -> list[Claim]:
        return await self._store.due_payouts(now)

    async def move(self, payment_id: str, move: str, owner: str | None = None, **columns: Any) -> bool:
        # Once it was refunded it does not fail any more: see ``lost``.
        return move != "reverse" and await self._store.move_payout(payment_id, move, owner, **columns)

    async def lost(self, payment_id: str) -> None:
        """The transfer left the chain for good after it was booked: the amount is its owner's again, once."""
        row = await self._store.get_payout(payment_id)
        if row is not None:
            account = Account.of(row.network, row.asset, row.payer)
            await self._store.deposit(account, row.amount, f"lost:{payment_id}", reference=row.reference)
            await self._store.note_payout(payment_id, final=1, reason="reversed")


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
    """Pays balances back. ``rails`` that can't pay out (``networks.port.paying``) are passed over."""

    def __init__(self, store: Store, rails: Iterable[Rail], *, wait_seconds: float = 25) -> None:
        self._store = store
        able = [(rail, _Outward(rail)) for rail in rails if isinstance(rail, PayingRail) and rail.payer_wallet]
        self._rails = {rail.network: (rail, outward) for rail, outward in reversed(able)}
        rows = _Rows(store)
        # All of them: what one wallet began to send is seen to its end when another one goes first by now.
        every: Sequence[Any] = [outward for _, outward in able]
        self._settler = Settler(rows, every, wait_seconds=wait_seconds, lost=rows.lost)
        self._process = f"payout:{os.getpid()}:{secrets.token_hex(4)}"
        self._attempts = itertools.count()
        self._waiting: Counter[str] = Counter()

    @property
    def networks(self) -> list[str]:
        """Those on which balances can be paid back."""
        return list(self._rails)

    async def reconcile(self) -> None:
        """One pass over payouts whose end is open."""
        await self._settler.reconcile()

    async def close(self, drain_seconds: float) -> None:
        """Let those under way finish."""
        await self._settler.close(drain_seconds)

    async def withdraw(self, proven: Proven, account: Account, amount: int | None) -> Claim:
        """Send ``amount`` atomic units, or all that is available, to the wallet that proved itself.

        The proof is spent with it, and names it: the same proof again tells what became of the same payout. Raises
        ``InsufficientBalance`` (nothing moved, no proof was spent), ``ProofUsed``, ``BadRequest``, ``TooManyRequests``.
        A payout that could not be sent is given back: ``RailUnavailable``; one of unknown outcome is returned, and
        found out in time.
        """
        if proven.network not in self._rails:
            raise BadRequest("unsupported_network")
        payment_id = f"payout:{proven.nonce_id}"
        found = await self._store.get_payout(payment_id)
        if found is not None:
            return _own(found, proven)
        if self._waiting[account.owner] >= _AT_ONCE:
            raise TooManyRequests("too_many_payouts")
        self._waiting[account.owner] += 1
        try:
            return await self._try(payment_id, proven, account, amount)
        finally:
            self._waiting[account.owner] -= 1
            self._waiting += Counter()  # forgets who has none

    async def _try(self, payment_id: str, proven: Proven, account: Account, amount: int | None) -> Claim:
        for _ in range(_READS - 1):
            try:
                return await self._pay(payment_id, proven, account, amount)
            except InsufficientBalance:
                if amount is not None:
                    raise
        return await self._pay(payment_id, proven, account, amount)

    async def _pay(self, payment_id: str, proven: Proven, account: Account, amount: int | None) -> Claim:
        rail, outward = self._rails[proven.network]
        if amount is None:
            amount = (await self._store.balance(account)).available
            if amount == 0:
                raise InsufficientBalance(0, 1)
        if not 0 < amount <= MAX_AMOUNT:
            raise BadRequest("invalid_amount")
        asset = rail.asset.address
        authorization = Authorization(
            payment_id, proven.network, asset, rail.pay_to, proven.address, amount, _FOREVER, None
        )
        now = int(time.time())
        wanted = authorization.claim(
            now,
            resource="withdraw",
            confirmations=rail.confirmations,
            owner=f"{self._process}:{next(self._attempts)}",
            next_check=now,
        )
        row = await self._store.payout(wanted, Spend(proven.nonce_id, proven.until))
        return _own(row, proven) if row.owner != wanted.owner else await self._send(outward, authorization, row)

    async def _send(self, rail: Any, authorization: Authorization, row: Claim) -> Claim:
        offer = PaymentRequirements("exact", row.network, row.amount, row.asset, row.payer, 0)
        try:
            sent = await self._settler.settle(rail, authorization, offer, row)
        except (OutcomeUnknown, RailUnavailable) as e:
            sent = await self._known(row)
            if sent.state == "failed":
                raise PayoutFailed(e.reason, detail=e.detail) from e
        if sent.state == "failed":
            raise PayoutFailed(sent.reason)
        return sent

    async def _known(self, row: Claim) -> Claim:
        """What is written of a payout. Of one that can't be read now nobody may say that nothing was sent."""
        try:
            return await self._store.get_payout(row.payment_id) or row
        except RailUnavailable:
            return row


def _own(row: Claim, proven: Proven) -> Claim:
    """The payout that a proof was spent for. One that names no network may have been spent on another (F01)."""
    if row.network != proven.network:
        raise ProofUsed()
    return row
