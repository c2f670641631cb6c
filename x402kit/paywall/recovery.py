"""When a replica took over and the ledger's last commits are gone: what was paid is read again from the chain (J05).

The chain still has every payment. So the ledger keeps the last block up to which it knows them, for each rail, and
which history of its database it is in. When that has changed, the payments since that block are gone through:

    the store has            then
    no claim, no entry       the claim is written anew and credited: the payer has a balance to spend
    a claim that failed      as well: it was dropped because nobody knew that it had been sent
    a claim in ``claimed``   it is settled: shown again it is served, and credited at its deadline
    anything else            the store knows, or the reconciler finds out

Goods may have gone out for a payment whose record is lost; then the payer has them and the balance, never neither.

A Lightning node is not gone through: who paid comes with the preimage, and from then on the node is asked of an invoice
that the ledger knows nothing of (``commits_lost``, invoices.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from ..errors import ConfigError, ServerError
from ..ledger.port import Store
from ..model import VALID_FOR_MAX, Claim
from ..money import MAX_AMOUNT
from ..networks.port import Landed, Rail, ScanningRail, scanning

__all__ = ["Recovery", "commits_lost"]

log = logging.getLogger("x402kit.recovery")

_PLACE: Final = "place"
_LOST: Final = "commits_lost"
_EVERY: Final = 60.0
"""Seconds between two notes of the last block."""


async def commits_lost(store: Store) -> bool:
    """Whether the ledger has ever lost something, so that what it does not know may have been paid all the same."""
    return await store.get_meta(_LOST) is not None


class Recovery:
    """One for each process; several share a store, and what two of them do is done once."""

    def __init__(self, store: Store, rails: Sequence[Rail]) -> None:
        self._store = store
        self._rails = [found for rail in rails if (found := scanning(rail)) is not None]
        self._next_note = 0.0

    async def check(self) -> None:
        """With each pass of the reconciler: recover after a change of place, and note how far the chain was seen.

        What can't be done now is done by a later pass; it raises only what the store's reading raises.
        """
        place = await self._store.place()
        if not place:
            return
        known = await self._store.get_meta(_PLACE)
        if known is not None and known.decode() != place:
            log.error("ALERT: the ledger's database has changed from %s to %s", known.decode(), place)
            if not await self._recover_all({}):
                return
        if known is None or known.decode() != place:
            await self._store.set_meta(_PLACE, place.encode(), place=place)
        if time.monotonic() >= self._next_note:
            self._next_note = time.monotonic() + _EVERY
            await self.note_blocks(place)

    async def note_blocks(self, place: str) -> None:
        """Remember the chains' heads. What settled up to there has its claim, which was written before it was sent.

        ``place`` guards it: a note that reached another history would hide from it what that history has lost.
        """
        for rail in self._rails:
            try:
                head = await rail.head_block()
            except ServerError:
                continue  # the next pass notes it
            await self._store.set_meta(_key(rail), str(head).encode(), place=place)

    async def recover(self, since_block: int | Mapping[str, int] | None = None) -> bool:
        """Go through the payments since a block, by default since the last one noted: after a backup was restored.

        False when something could not be looked at now, so that it must be asked again. ``ConfigError`` where no block
        is given for a network, and none was noted: nothing was looked at.
        """
        networks = {rail.network for rail in self._rails}
        since = dict(since_block) if isinstance(since_block, Mapping) else {}
        if isinstance(since_block, int):
            since = dict.fromkeys(networks, since_block)
        if unknown := since.keys() - networks:
            raise ConfigError(f"no rail with a node is on {', '.join(sorted(unknown))}")
        for rail in self._rails:
            if rail.network not in since and await self._store.get_meta(_key(rail)) is None:
                raise ConfigError(f"no block of {rail.network} was noted here: call recover(since_block=…)")
        return await self._recover_all(since)

    async def _recover_all(self, since: Mapping[str, int]) -> bool:
        await self._store.set_meta(_LOST, str(int(time.time())).encode())
        done = True
        for rail in self._rails:
            try:
                done = await self._recover(rail, since.get(rail.network)) and done
            except ServerError as e:
                log.warning("payments on %s can't be read again now: %s", rail.network, e.reason)
                done = False
        return done

    async def _recover(self, rail: ScanningRail, since_block: int | None) -> bool:
        if since_block is None:
            noted = await self._store.get_meta(_key(rail))
            if noted is None:
                log.error("ALERT: no block of %s was noted; call recover(since_block=…)", rail.network)
                return True
            since_block = int(noted) - rail.final_depth
        done, restored = True, 0
        async with aclosing(rail.settled_since(max(0, since_block))) as found:
            async for landed in found:
                known = await self._store.get(landed.payment_id)
                if known is None or known.state == "failed":
                    restored += await self._restore(rail, landed)
                elif known.state == "claimed":
                    done = await self._settle(known, landed) and done
        log.warning("payments on %s since block %d: %d restored", rail.network, since_block, restored)
        return done

    async def _restore(self, rail: Rail, landed: Landed) -> int:
        """Write the claim anew and credit it. A crash in between leaves it settled, to be credited at its deadline."""
        if not 0 < landed.amount <= MAX_AMOUNT or await self._store.entry(f"claim:{landed.payment_id}") is not None:
            return 0  # its claim is over and forgotten; the log knows it
        now = int(time.time())
        owner = _owner()
        row = Claim(
            landed.payment_id,
            "settled",
            fingerprint=b"",
            credential=b"",
            resource="",
            network=rail.network,
            asset=rail.asset.address,
            pay_to=rail.pay_to,
            payer=landed.payer,
            amount=landed.amount,
            valid_until=now + VALID_FOR_MAX,
            created_at=now,
            deadline=now,
            owner=owner,
            next_check=now + 60,
            **_seen(landed),
        )
        made = await self._store.claim(row)
        if made.owner != owner or not await self._store.move(row.payment_id, "credit", owner, captured=0):
            log.error("ALERT: payment %s landed, and its claim can't be taken", landed.payment_id)
            return 0
        log.error(
            "ALERT: payment %s (%s) was lost and is restored: %d credited to %s",
            landed.payment_id,
            landed.transaction,
            landed.amount,
            landed.payer,
        )
        return 1

    async def _settle(self, known: Claim, landed: Landed) -> bool:
        """The chain has what the claim was about to send. False while its process still works on it."""
        owner = _owner()
        if await self._store.take(known.payment_id, "claimed", owner) is None:
            return False
        await self._store.move(known.payment_id, "confirm", owner, **_seen(landed))
        await self._store.release(known.payment_id, owner)
        log.error("ALERT: payment %s (%s) was sent and that was lost", known.payment_id, landed.transaction)
        return True


def _seen(landed: Landed) -> dict[str, Any]:
    return {
        "reference": landed.transaction,
        "block": landed.block,
        "block_hash": landed.block_hash,
        "log_index": landed.log_index,
        "settled_at": landed.at,
    }


def _key(rail: Rail) -> str:
    return f"seen:{rail.network}:{rail.asset.address}:{rail.pay_to}".lower()


def _owner() -> str:
    return f"recovery:{time.monotonic_ns():x}"
