"""From a payment header to the right to be served: parse, find the claim, check, claim, settle.

The order is the point. Reading costs nothing and answers 400. A new payment passes the offline checks before anything
is asked of a chain, and the chain's before a row is written (C11). One that has a claim is answered by that alone
(flow.py), whatever the checks would say of it: price and time may have changed since. Where this process claimed it,
the claim is looked up first; else when a check fails, or when claiming it finds the row.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from ..errors import (
    MalformedPayment,
    OutcomeUnknown,
    PaymentInProgress,
    PaymentRefused,
    PaymentUsed,
    RailUnavailable,
    ServerError,
    TooManyRequests,
)
from ..ledger.port import ClaimStore
from ..model import Authorization, Claim, PaymentPayload, PaymentRequirements, SettlementResponse
from ..money import Usd, Worth
from ..networks.port import Rail
from ..protocols.x402 import decode_header, parse_payment_payload
from .challenge import Challenges
from .flow import Step, next_step
from .resource import Resource
from .settlement import Settler

__all__ = ["UNSERVED_SECONDS", "Admission", "Admissions", "Shown", "Via", "is_over", "read_payment", "receipt_of"]

UNSERVED_SECONDS: Final = 24 * 3600
"""How long a settled payment waits to be served before it is to become balance."""
MAX_ATTEMPTS: Final = 8
"""Times that one settled payment may start the handler, so that failing calls can't be had without end."""
_SEEN_MAX: Final = 10_000
VERIFY_SLOTS: Final = 128
"""Payments that may be under verification on the chain at once (I-13); the rest is told to wait."""

Ceiling = Callable[[], Awaitable[Usd]]


class Via(NamedTuple):
    """How a payment was shown, which is how its receipt is told."""

    protocol: Literal["x402", "l402", "payment"] = "x402"
    version: int = 2
    """Of x402."""
    challenge: str = ""
    """The id of a challenge of the ``Payment`` scheme, whose ``method`` it names."""
    method: str = ""


_V2: Final = Via()


@dataclass(slots=True)
class Admission:
    """The right to be served once: a settled claim that we own, or a stored answer to ``replay``.

    With ``settle="after"`` the claim is not settled yet, and ``finish`` settles it.
    """

    claim: Claim
    via: Via
    replay: bool = False
    rail: Rail | None = None
    authorization: Authorization | None = None
    offer: PaymentRequirements | None = None
    rate: Worth | None = None
    """What dollars came to when the payment was quoted, where its asset is no dollar."""

    @property
    def receipt(self) -> SettlementResponse:
        return receipt_of(self.claim)


def receipt_of(claim: Claim) -> SettlementResponse:
    """The receipt of a settled claim."""
    return SettlementResponse(True, claim.network, claim.reference, claim.payer, claim.amount)


def is_over(claim: Claim) -> bool:
    """Whether a payment can be claimed anew: certain that it moved no money, and that it still can."""
    return claim.state == "failed" and not claim.spent


class Shown(NamedTuple):
    """A payment as it was shown for a request, whose fingerprint is ``bound``.

    ``credential`` is a digest of the payment as it was spelled.
    """

    resource: Resource
    bound: bytes
    credential: bytes
    via: Via


class _OnChain(NamedTuple):
    """One whose money is still to be moved."""

    shown: Shown
    payment: PaymentPayload
    ceiling: Ceiling


class Admissions:
    """Admits payments. Every error it raises has the status that the contract demands."""

    def __init__(self, store: ClaimStore, challenges: Challenges, settler: Settler) -> None:
        self._store = store
        self._challenges = challenges
        self._settler = settler
        self._verifying = 0
        self._seen: dict[str, None] = {}
        """Payments that were claimed lately, or found claimed, by this process: these are looked up first."""
        # An owner names one attempt: the process by its id and a random part, and a counter.
        self._process = f"{os.getpid()}:{secrets.token_hex(4)}"
        self._attempts = itertools.count()

    async def admit(
        self,
        resource: Resource,
        bound: bytes,
        raw: bytes,
        payment: PaymentPayload,
        ceiling: Ceiling,
        caller: Callable[[], bytes],
        via: Via | None = None,
    ) -> Admission:
        """Admit a ``payment``, spelled as ``raw``, to the request whose fingerprint is ``bound``; ``ceiling`` works out
        the price when no quote is echoed.

        ``caller`` gives a digest of what only this caller knows, besides the payment: its session or key. It stands in
        for our quote, where that is not echoed: such a payment can be spelled by whoever reads the chain.
        """
        digest = hashlib.sha256(raw)
        if not payment.quote:
            digest.update(caller())
        if via is None:
            via = _V2 if payment.x402_version == 2 else Via(version=payment.x402_version)
        shown = Shown(resource, bound, digest.digest(), via)
        candidates = self._challenges.candidates(payment, via.method)
        # A payment that was made before the set-up changed is for none of today's offers, and keeps its claim (I7).
        readers = candidates or self._challenges.readers(payment)
        if readers:
            rail, offer = readers[0]
            authorization = rail.parse(payment, offer)
            try:
                # One that nobody has shown here is a new one, as a rule, and to claim it tells whether it is.
                if not candidates or authorization.payment_id in self._seen:
                    found = await self._store.get(authorization.payment_id)
                    if found is not None and not is_over(found):
                        return await self.resume(shown, found)
                if candidates:
                    return await self._admit(_OnChain(shown, payment, ceiling), rail, offer, authorization)
            except PaymentRefused as e:
                e.network = rail.network
                raise
        raise PaymentRefused("invalid_payment_requirements", detail="the payment is for none of the offers")

    async def _admit(
        self, paying: _OnChain, rail: Rail, offer: PaymentRequirements, authorization: Authorization
    ) -> Admission:
        now, shown = int(time.time()), paying.shown
        try:
            offer = await self._checked(paying, rail, offer, authorization, now)
            claim = await self._drafted(paying, rail, offer, authorization, now)
        except Exception:
            # It may have a claim, of another process or of a moment ago: then that alone is the answer (I7).
            found = await self._store.get(authorization.payment_id)
            if found is None or is_over(found):
                raise
            self._see(found.payment_id)  # from now on it costs no look at the chain
            return await self.resume(shown, found)
        row = await self._claimed(claim)
        if row.owner != claim.owner:
            return await self.resume(shown, row)
        if shown.resource.settle == "after":
            return Admission(row, shown.via, False, rail, authorization, offer)
        settled = await self._settler.settle(rail, authorization, offer, row)
        if settled.owner != claim.owner and settled.state == "settled":
            # Our lease ran out and another took the claim over: who serves it is decided anew.
            return await self.resume(shown, settled)
        return Admission(self._settled(settled), shown.via)

    async def _drafted(
        self, paying: _OnChain, rail: Rail, offer: PaymentRequirements, authorization: Authorization, now: int
    ) -> Claim:
        """The row to be claimed, with its intent where that holds nothing."""
        resource = paying.shown.resource
        claim = self._new_claim(paying.shown, rail, authorization, now)
        if resource.credits:
            claim = claim.changed(deadline=now, captured=await self._cost(paying, rail, claim.amount))
        if rail.prepare_is_pure and resource.settle != "after":
            claim = claim.sent(await self._settler.prepare(rail, authorization, offer, claim))
        return claim

    async def _claimed(self, claim: Claim) -> Claim:
        """The payment's claim: this one, or the one that it has."""
        self._see(claim.payment_id)
        try:
            return await self._store.claim(claim)
        except (asyncio.CancelledError, RailUnavailable):
            self._settler.forgo(claim)
            raise

    def _see(self, payment_id: str) -> None:
        while len(self._seen) >= _SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[payment_id] = None

    async def _checked(
        self, paying: _OnChain, rail: Rail, offer: PaymentRequirements, authorization: Authorization, now: int
    ) -> PaymentRequirements:
        """The offer that the payment meets, after every check."""
        shown, payment = paying.shown, paying.payment
        if not shown.resource.takes(shown.via.protocol, rail.network):
            raise PaymentRefused("invalid_payment_requirements", detail="this is not offered in that way")
        self._challenges.check_echo(rail, payment, shown.resource)
        quoted = self._challenges.is_quoted(payment, shown.bound, offer, now)
        if shown.resource.amounts is not None:
            offer = self._challenges.any_amount(rail, shown.resource, authorization.amount)
        elif not quoted:
            value = offer.amount if payment.accepted is not None else authorization.amount
            offer = self._challenges.afresh(rail, shown.resource, await paying.ceiling(), value)
        rail.check(authorization, offer, now)
        await rail.ready()
        if self._verifying >= VERIFY_SLOTS:
            raise TooManyRequests("too_many_verifications")
        self._verifying += 1
        try:
            await rail.verify(authorization, offer)
        finally:
            self._verifying -= 1
        return offer

    def _new_claim(self, shown: Shown, rail: Rail, authorization: Authorization, now: int) -> Claim:
        resource, paid = shown.resource, authorization
        confirmations = rail.confirmations if resource.confirmations is None else resource.confirmations
        # By position as far as it goes: names take thrice the time.
        return Claim(
            paid.payment_id,
            "claimed",
            shown.bound,
            shown.credential,
            resource.id,
            paid.network,
            paid.asset,
            paid.pay_to,
            paid.payer,
            paid.amount,
            paid.valid_until,
            now,
            now + UNSERVED_SECONDS,
            confirmations,
            self.owner(),
            attempts=1,
            next_check=now,
        )

    @staticmethod
    async def _cost(paying: _OnChain, rail: Rail, amount: int) -> int:
        """What of a top-up is for its settlement; the rest is credited."""
        if paying.shown.resource.amounts is not None:
            return min(rail.surcharges())
        return max(amount - (await paying.ceiling()).atomic(rail.asset.decimals), 0)

    def owner(self) -> str:
        """A name for one more attempt of this process."""
        return f"{self._process}:{next(self._attempts)}"

    @staticmethod
    def _settled(claim: Claim) -> Claim:
        """The claim if it is settled; the typed error of its state if it is not."""
        if claim.state == "settled":
            return claim
        if claim.spent:
            raise PaymentUsed(claim.reason, reference=claim.reference)
        if claim.state == "failed":
            raise PaymentRefused(claim.reason or "transaction_failed", reference=claim.reference)
        raise OutcomeUnknown("settlement_pending", reference=claim.reference)

    async def finish(self, admission: Admission) -> None:
        """Settle what was served first (``settle="after"``); raises as settling first does, and then nothing is
        given.
        """
        assert admission.rail is not None
        assert admission.authorization is not None
        assert admission.offer is not None
        settled = self._settled(
            await self._settler.settle(admission.rail, admission.authorization, admission.offer, admission.claim)
        )
        if settled.owner != admission.claim.owner:
            raise PaymentInProgress(reference=settled.reference)
        admission.claim = settled

    async def resume(self, shown: Shown, claim: Claim) -> Admission:
        """Go on with a payment that has a claim already. Raises as the table of flow.py says."""
        step = next_step(
            "spent" if claim.spent else claim.state,
            same_request=claim.fingerprint == shown.bound,
            same_spelling=claim.credential == shown.credential,
        )
        if step is Step.REFUSE:
            raise PaymentUsed("payment_used", reference=claim.reference)
        if step is Step.REPLAY:
            return Admission(claim, shown.via, replay=True)
        if step is Step.BUSY:
            raise PaymentInProgress(reference=claim.reference)
        taken = await self._store.take(claim.payment_id, claim.state, self.owner())
        if taken is None:
            return await self._lost(shown, claim)
        try:
            return Admission(await self._go_on(taken, step), shown.via)
        except BaseException:
            # Whoever comes next must find it free, whatever stopped us here.
            with contextlib.suppress(ServerError):
                await self._store.release(taken.payment_id, taken.owner)
            raise

    async def _go_on(self, claim: Claim, step: Step) -> Claim:
        """A claim that we have taken, once it is settled."""
        if step is Step.RESTART:
            await self._store.move(claim.payment_id, "drop", claim.owner, reason="not_sent")
            raise PaymentInProgress("payment_restarted")
        if step is Step.SERVE and claim.attempts > MAX_ATTEMPTS:
            raise PaymentUsed("too_many_attempts", reference=claim.reference)
        after = await self._settler.look(claim) if step is Step.LOOK else claim
        if after.owner != claim.owner:  # it took longer than our lease, and another goes on with it
            raise PaymentInProgress(reference=after.reference)
        return self._settled(after)

    async def _lost(self, shown: Shown, claim: Claim) -> Admission:
        """Someone else works on it, or has just finished."""
        now = await self._store.get(claim.payment_id)
        if now is not None and now.state in ("served", "credited"):
            return Admission(now, shown.via, replay=True)
        raise PaymentInProgress(reference=claim.reference)


def read_payment(raw: bytes) -> PaymentPayload:
    """An x402 payment header. Raises ``MalformedPayment``."""
    try:
        return parse_payment_payload(decode_header(raw.decode("ascii")))
    except ValueError as e:
        reason = "invalid_x402_version" if str(e) == "invalid_x402_version" else "invalid_payload"
        raise MalformedPayment(reason, detail=str(e) if reason == "invalid_payload" else "") from e
