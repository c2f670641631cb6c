"""Verify and settle for other servers: the facilitator without its HTTP (wire.md 5.1).

A /settle is as durable as a payment of our own: one claim for each payment, settled by the same ``Settler``. Its
success is told once, since a server that keeps no record of payments takes every success for a request that was paid;
told again, also long after the authorization has ended, only to a repeated call with the key of the first. The same
payment for other requirements, or from another caller, is refused. ``verify`` reads and changes nothing.

The claims want a store of their own: a paywall on the same store would take them for its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from ..errors import ConfigError, PaymentInProgress, PaymentRefused, PaymentUsed, TooManyRequests
from ..ledger.port import ClaimStore
from ..ledger.rules import OPEN
from ..model import (
    KEPT_SECONDS,
    Authorization,
    Claim,
    Json,
    PaymentPayload,
    PaymentRequirements,
    SettlementResponse,
    VerifyResponse,
)
from ..money import MAX_AMOUNT
from ..networks.port import OpenRail, Rail
from ..protocols.x402 import v1_network
from .admission import VERIFY_SLOTS, is_over
from .settlement import Settler

__all__ = ["Facilitation", "Job"]

_DONE: Final = ("settled", "served", "credited")
_PAUSES: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between looks at a payment that another request settles."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call: a payment and the requirements that it shall meet. ``caller`` tells callers apart, and ``key`` the
    calls of one: calls with the same key are one call, repeated.
    """

    payment: PaymentPayload
    offer: PaymentRequirements
    caller: bytes = b""
    key: bytes = b""

    def fingerprint(self) -> bytes:
        """What a payment's claim is bound to: the money terms, and who asked."""
        offer = self.offer
        terms = (offer.scheme, offer.network, str(offer.amount), offer.asset.lower(), offer.pay_to.lower())
        return hashlib.sha256("\n".join(terms).encode() + b"\n" + self.caller).digest()


@dataclass(frozen=True, slots=True)
class _Order:
    """A job that is for us, with its rail."""

    job: Job
    rail: Rail
    offer: PaymentRequirements
    authorization: Authorization


class _Settlements(Settler):
    """Knows rails for any recipient. Here a claim is served when its success has been told."""

    def __init__(self, store: ClaimStore, rails: Sequence[OpenRail], wait_seconds: float, every: float) -> None:
        super().__init__(store, rails, wait_seconds=wait_seconds, every=every)
        self._claims = store
        self._open = {(rail.network, rail.asset.address.lower()): rail for rail in rails}

    def rail_of(self, claim: Claim) -> Rail | None:
        rail = self._open.get((claim.network, claim.asset.lower()))
        return None if rail is None else rail.for_recipient(claim.pay_to)

    async def tell(self, claim: Claim) -> bool:
        """Whether nobody has been told of this success before; from then on it is pruned in time (C07)."""
        now = int(time.time())
        ends = {"served_at": now, "kept_until": now + KEPT_SECONDS}
        return await self._store.move(claim.payment_id, "tell", claim.owner, **ends)

    async def reconcile(self) -> int:
        looked_at = await super().reconcile()
        now = int(time.time())
        for claim in await self._claims.expired(now):  # nobody asks any more
            await self.tell(claim)
        await self._claims.prune(now)
        return looked_at


class Facilitation:
    """Settles for any recipient, on ``rails`` that can. One for each process; several may share the store."""

    def __init__(
        self,
        store: ClaimStore,
        rails: Sequence[Rail],
        *,
        settle_seconds: float = 25,
        reconcile_seconds: float = 5,
    ) -> None:
        """No I/O. Raises ``ConfigError``."""
        self._store = store
        ours = [_open(rail) for rail in rails]
        self._rails = {(rail.scheme, rail.network, rail.asset.address.lower()): rail for rail in ours}
        if not rails or len(self._rails) != len(rails):
            raise ConfigError("a facilitator needs rails, and one for each asset")
        self._wait = settle_seconds
        self._settler = _Settlements(store, ours, settle_seconds, reconcile_seconds)
        self._verifying = 0
        self._process = f"{os.getpid()}:{secrets.token_hex(4)}"
        self._attempts = itertools.count()

    async def start(self) -> None:
        """Open the store, connect the rails, reconcile what an earlier process left. Raises ``ConfigError``."""
        for rail in self._rails.values():
            if not rail.signers:
                raise ConfigError(f"the rail on {rail.network} has no wallet to settle with")
        try:
            await self._store.start()
            for rail in self._rails.values():
                await rail.start()
            await self._settler.start()
        except BaseException:  # whatever it is, what is open by now is closed
            await self._end()
            raise

    async def close(self, drain_seconds: float = 10) -> None:
        """Let settlements under way finish, then close rails and store."""
        await self._settler.close(drain_seconds)
        await self._end()

    async def _end(self) -> None:
        for rail in self._rails.values():
            await rail.close()
        await self._store.close()

    def supported(self) -> Json:
        """The answer of /supported."""
        kinds: list[Json] = []
        signers: dict[str, list[str]] = {}
        for rail in self._rails.values():
            kind: Json = {"scheme": rail.scheme, "extra": rail.extra()}
            kinds.append({"x402Version": 2, **kind, "network": rail.network})
            if name := v1_network(rail.network):
                kinds.append({"x402Version": 1, **kind, "network": name})
            known = signers.setdefault(rail.network, [])
            known.extend(address for address in rail.signers if address not in known)
        return {"kinds": kinds, "extensions": [], "signers": signers}

    async def verify(self, job: Job) -> VerifyResponse:
        """Sends and stores nothing. Raises ``MalformedPayment``, ``RailUnavailable``, ``TooManyRequests``."""
        payer = ""
        try:
            order = self._order(job)
            payer = order.authorization.payer
            order.rail.check(order.authorization, order.offer, int(time.time()))
            await self._verify(order)
        except (PaymentRefused, PaymentUsed) as e:
            return VerifyResponse(False, payer, e.reason)
        return VerifyResponse(True, payer)

    async def settle(self, job: Job) -> SettlementResponse:
        """Move the money, once, and tell of it once: two requests with one payment must not both be served (I4).

        Success is told again to a call with the key of the one that began it. Raises as ``verify`` does, before
        anything is sent; ``PaymentInProgress`` (409) when another call has only begun with the same payment.
        """
        payer = ""
        try:
            order = self._order(job)
            payer = order.authorization.payer
            claim = await self._settled(order)
        except (PaymentRefused, PaymentUsed) as e:
            return SettlementResponse(False, job.offer.network, payer=payer, error_reason=e.reason)
        if claim.state in _DONE and not await self._may_hear(job, claim):
            return _response(claim, "duplicate_settlement")
        return _response(claim)

    async def _may_hear(self, job: Job, claim: Claim) -> bool:
        if claim.credential != job.key:
            return False
        return await self._settler.tell(claim) or bool(job.key)

    def _order(self, job: Job) -> _Order:
        payment, offer = job.payment, job.offer
        if payment.scheme != offer.scheme:
            raise PaymentRefused("unsupported_scheme")
        if payment.network != offer.network:
            raise PaymentRefused("network_mismatch")
        base = self._rails.get((offer.scheme, offer.network, offer.asset.lower()))
        if base is None:
            raise PaymentRefused(self._not_ours(offer))
        if _is_contradictory(job, base):
            raise PaymentRefused("invalid_payment_requirements")
        try:
            rail = base.for_recipient(offer.pay_to)
        except ConfigError as e:
            raise PaymentRefused("invalid_payment_requirements", detail=str(e)) from e
        seconds = offer.max_timeout_seconds
        asset = rail.asset.address
        ours = PaymentRequirements(
            offer.scheme, offer.network, offer.amount, asset, offer.pay_to, seconds, rail.extra()
        )
        return _Order(job, rail, ours, rail.parse(payment, ours))

    def _not_ours(self, offer: PaymentRequirements) -> str:
        if all(scheme != offer.scheme for scheme, _, _ in self._rails):
            return "unsupported_scheme"
        networks = {network for _, network, _ in self._rails}
        return "invalid_payment_requirements" if offer.network in networks else "invalid_network"

    async def _verify(self, order: _Order) -> None:
        if self._verifying >= VERIFY_SLOTS:
            raise TooManyRequests("too_many_verifications")
        self._verifying += 1
        try:
            await order.rail.verify(order.authorization, order.offer)
        finally:
            self._verifying -= 1

    async def _settled(self, order: _Order) -> Claim:
        """The payment's claim when it is decided, or as it stands when the time is over."""
        end = time.monotonic() + self._wait
        pauses = itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1]))
        while True:
            found = await self._store.get(order.authorization.payment_id)
            if found is None or is_over(found):
                made = await self._begin(order)
                if made is not None:
                    return made
                continue
            if found.fingerprint != order.job.fingerprint():
                raise PaymentUsed("payment_already_used")
            if found.state not in OPEN:
                return found
            if not await self._take_over(found):
                pause = next(pauses)
                if time.monotonic() + pause > end:
                    return found
                await asyncio.sleep(pause)

    async def _begin(self, order: _Order) -> Claim | None:
        """Claim and settle it; None when someone else has claimed it meanwhile."""
        payment_id = order.authorization.payment_id
        now = int(time.time())
        try:
            order.rail.check(order.authorization, order.offer, now)
            await order.rail.ready()
            await self._verify(order)
        except (PaymentRefused, PaymentUsed):
            found = await self._store.get(payment_id)
            if found is None or is_over(found):
                raise
            return None
        claim = self._claim(order, now)
        row = await self._store.claim(claim)
        if row.owner != claim.owner:
            return None
        return await asyncio.shield(self._settler.settle(order.rail, order.authorization, order.offer, row))

    def _claim(self, order: _Order, now: int) -> Claim:
        return order.authorization.claim(
            now,
            fingerprint=order.job.fingerprint(),
            credential=order.job.key,
            resource="facilitator",
            deadline=order.authorization.valid_until + KEPT_SECONDS,
            confirmations=order.rail.confirmations,
            owner=self._owner(),
            attempts=1,
            next_check=now,
        )

    def _owner(self) -> str:
        return f"{self._process}:{next(self._attempts)}"

    async def _take_over(self, claim: Claim) -> bool:
        """Go on with what a process that is gone has left; whether anything may have changed."""
        taken = await self._store.take(claim.payment_id, claim.state, self._owner())
        if taken is None:
            return False
        if taken.state == "claimed":
            await self._store.free_nonces(claim.owner)
            return await self._store.move(taken.payment_id, "drop", taken.owner, reason="not_sent")
        try:
            return (await self._settler.look(taken)).state not in OPEN
        finally:
            await self._store.release(taken.payment_id, taken.owner)


def _open(rail: Rail) -> OpenRail:
    if not hasattr(rail, "for_recipient"):
        raise ConfigError(f"the rail on {rail.network} can't settle for others: it needs a wallet of its own")
    return cast("OpenRail", rail)


def _is_contradictory(job: Job, rail: OpenRail) -> bool:
    """Whether the call is at odds with itself or with the token: what is left out is not missed (wire.md 1.6 row 6)."""
    offer, echo = job.offer, job.payment.accepted
    if not 0 < offer.amount <= MAX_AMOUNT:
        return True
    if any(key in offer.extra and offer.extra[key] != value for key, value in rail.extra().items()):
        return True
    if echo is None:
        return False
    ours = (offer.amount, offer.asset.lower(), offer.pay_to.lower())
    return (echo.amount, echo.asset.lower(), echo.pay_to.lower()) != ours


def _response(claim: Claim, refusal: str = "") -> SettlementResponse:
    if claim.state == "failed":
        reason = claim.reason or "transaction_failed"
        return SettlementResponse(False, claim.network, payer=claim.payer, error_reason=reason)
    if refusal:
        return SettlementResponse(False, claim.network, claim.reference, claim.payer, error_reason=refusal)
    if claim.state in _DONE:
        return SettlementResponse(True, claim.network, claim.reference, claim.payer, claim.amount)
    if not claim.reference:  # a pending answer must name its transaction (wire.md 1.4)
        raise PaymentInProgress()
    return SettlementResponse(False, claim.network, claim.reference, claim.payer, error_reason="settlement_pending")
