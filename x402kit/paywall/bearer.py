"""Paid over Lightning: an L402 token or a ``Payment`` credential, each with the preimage of an invoice of ours.

    the payment hash has        then
    nothing, and no invoice     its balance, where it has one; the node is asked first where commits were lost (J05)
    an invoice that is open     the node is asked: settled → a claim, served; not settled → 503; unpaid → 402
    a claim, settled            served, for the request that it was paid for; another is 402, and it stays good
    a claim, served             the stored answer while it is kept (C03); later, or for another request: its balance
    a claim, credited           its balance

The balance is what calls left over, what was paid late or not exactly, or what a pass was paid with. Where it is too
low the answer is 402: nothing is in flight, so the caller may pay a new invoice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Protocol

from ..errors import InsufficientBalance, PaymentInProgress, PaymentRefused, ServerError
from ..ledger.port import Store
from ..model import Claim, Invoice
from ..money import Usd, Worth
from ..networks.lightning import Rate
from ..pricing import Pass
from ..pricing.price import Fixed
from .admission import Admission, Admissions, Shown, Via
from .balances import Balances, Replay, Spender
from .credit import credit
from .invoices import WATCHER, Invoices, Wanted, claim_id, rate_of
from .resource import Resource
from .sale import BalanceSale, PassSale
from .tokens import Terms

__all__ = ["Bearer", "Bearers", "Proof", "Request", "pass_bound"]

_USED: Final = frozenset(("served", "credited"))
_WRITING_SECONDS: Final = 2.0


class Proof(Protocol):
    """What is shown beside the preimage."""

    def check(self, terms: Terms, now: int, *, balance: bool) -> None:
        """Whether it is good for a call. Raises ``PaymentRefused``."""
        ...

    def price(self, route: str) -> int:
        """What a bitcoin was worth when calls of this route were sold with it; 0: they were not."""
        ...

    def sold(self) -> tuple[bytes, int]:
        """The fingerprint of the one request that it was sold for, and the msat, where it says so."""
        ...


class Bearer(NamedTuple):
    """Who has the preimage of ``payment_hash``, and a token or challenge of ours for it. Authentic by now."""

    payment_hash: str
    proof: Proof
    via: Via


class Request(NamedTuple):
    """The call that is to be paid: ``bound`` is its fingerprint, ``ceiling`` the most that it costs."""

    resource: Resource
    bound: bytes
    ceiling: Usd
    key: bytes = b""


def pass_bound(resource: Resource, what: Pass, ceiling: Usd) -> bytes:
    """What an invoice for a pass is bound to: the resource, whatever the request; where that has no fixed price, all
    requests of the price that was paid (A06).
    """
    price = "" if isinstance(resource.price, Fixed) else f"{ceiling.value.normalize():f}"
    return hashlib.sha256(repr(("pass", resource.id, what.calls, what.seconds, price)).encode()).digest()


def _bound(request: Request) -> bytes:
    """What an invoice for this request is bound to."""
    what = request.resource.l402
    return request.bound if what is None else pass_bound(request.resource, what, request.ceiling)


class Bearers:
    """Admits them. Every error has the status that the contract demands."""

    def __init__(self, store: Store, invoices: Invoices, admissions: Admissions, balances: Balances) -> None:
        self._store = store
        self._invoices = invoices
        self._admissions = admissions
        self._balances = balances

    async def admit(self, bearer: Bearer, request: Request) -> Admission | BalanceSale | PassSale | Replay:
        """The right to be served once, a stored answer, or a hold on the balance.

        Raises ``PaymentRefused`` (402: nothing is in flight), ``PaymentInProgress``, ``PaymentUsed`` after too many
        attempts, ``RailUnavailable`` (503: not settled yet, or the node is out of reach).
        """
        claim = await self._store.get(claim_id(bearer.payment_hash))
        admitted = await (self._new(bearer, request) if claim is None else self._again(bearer, request, claim))
        if isinstance(admitted, Admission) and not admitted.replay:
            async with self._owning(admitted.claim):
                row = await self._store.get_invoice(bearer.payment_hash)
            admitted.rate = None if row is None else rate_of(row).worth()
        return admitted

    @asynccontextmanager
    async def _owning(self, claim: Claim) -> AsyncGenerator[None]:
        """Work on a claim that we own. Where it fails, whoever comes next must find it free."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(ServerError):
                await self._store.release(claim.payment_id, claim.owner)
            raise

    async def _new(self, bearer: Bearer, request: Request) -> Admission | BalanceSale | PassSale | Replay:
        row = await self._store.get_invoice(bearer.payment_hash)
        if row is None:
            wanted = Wanted(request.resource.id, b"", request.ceiling)
            row = await self._invoices.lost(bearer.payment_hash, wanted, *bearer.proof.sold())
        if row is None:
            return await self._from_balance(bearer, request)
        if row.fingerprint:
            self._check(bearer, request, row.fingerprint, row)
        owner = self._admissions.owner()
        claim = await self._invoices.settle(row, owner)
        if claim.owner == owner:
            return await self._first(bearer, request, claim)
        return await self._again(bearer, request, claim)

    def _check(self, bearer: Bearer, request: Request, fingerprint: bytes, row: Invoice | Claim) -> None:
        """Whether the payment is for this request: the caveats, and what the invoice was made for."""
        what = request.resource.l402
        amount = row.amount // what.calls if what is not None else row.amount
        bearer.proof.check(Terms(request.resource.id, request.bound.hex(), amount, 0), int(time.time()), balance=False)
        if fingerprint != _bound(request):
            raise PaymentRefused("payment_for_another_request")

    async def _first(
        self, bearer: Bearer, request: Request, claim: Claim
    ) -> Admission | BalanceSale | PassSale | Replay:
        """A settled claim that we own."""
        what = request.resource.l402
        if what is not None and what.seconds and claim.fingerprint:
            return await self._begin_pass(bearer, claim)
        if not claim.fingerprint or (what is not None and what.calls > 1):
            async with self._owning(claim):
                await credit(self._store, claim)
            return await self._from_balance(bearer, request)
        return Admission(claim, bearer.via)

    async def _begin_pass(self, bearer: Bearer, claim: Claim) -> PassSale:
        """It is a time that was sold: it is served with its first call, whatever becomes of that."""
        now = int(time.time())
        async with self._owning(claim):
            if not await self._store.move(claim.payment_id, "serve", claim.owner, served_at=now):
                raise PaymentInProgress(reference=claim.reference)
        return PassSale(claim, bearer.via, self._invoices.rail.asset)

    async def _again(
        self, bearer: Bearer, request: Request, claim: Claim
    ) -> Admission | BalanceSale | PassSale | Replay:
        what, now = request.resource.l402, int(time.time())
        if claim.state == "settled":
            if claim.fingerprint:
                self._check(bearer, request, claim.fingerprint, claim)
            return await self._take(bearer, request, claim)
        if claim.state not in _USED:
            raise PaymentInProgress(reference=claim.reference)
        if what is not None and what.seconds and claim.state == "served" and claim.fingerprint == _bound(request):
            self._check(bearer, request, claim.fingerprint, claim)
            return PassSale(claim, bearer.via, self._invoices.rail.asset)
        if claim.state == "served" and claim.fingerprint == request.bound and now <= claim.kept_until:
            self._check(bearer, request, claim.fingerprint, claim)
            return Admission(claim, bearer.via, replay=True)
        # What nobody came for is balance by now; that very request costs what was paid for it, whatever the rate.
        paid = claim.amount if claim.state == "credited" and claim.fingerprint == request.bound else 0
        return await self._from_balance(bearer, request, paid)

    async def _take(
        self, bearer: Bearer, request: Request, claim: Claim
    ) -> Admission | BalanceSale | PassSale | Replay:
        """Go on with a settled claim, whoever made it."""
        shown = Shown(request.resource, claim.fingerprint, claim.credential, bearer.via)
        admission = await self._resumed(shown, claim)
        if admission.replay:  # somebody was faster
            return await self._again(bearer, request, admission.claim)
        return await self._first(bearer, request, admission.claim)

    async def _resumed(self, shown: Shown, claim: Claim) -> Admission:
        """Who only writes down that it is paid, or that a pass begins, is waited for: clients of L402 take 409 for a
        failure.
        """
        end = time.monotonic() + _WRITING_SECONDS
        is_pass = shown.resource.l402 is not None
        while True:
            try:
                return await self._admissions.resume(shown, claim)
            except PaymentInProgress:
                claim = await self._store.get(claim.payment_id) or claim
                if not (is_pass or claim.owner.startswith(WATCHER)) or time.monotonic() > end:
                    raise
            await asyncio.sleep(0.02)

    async def _from_balance(self, bearer: Bearer, request: Request, paid: int = 0) -> BalanceSale | Replay:
        """From what is left under the payment hash; ``paid``: it costs no more. Raises ``PaymentRefused`` where that is
        too little.
        """
        rail, resource = self._invoices.rail, request.resource
        if not resource.takes(bearer.via.protocol, rail.network):
            raise PaymentRefused("invalid_payment_requirements", detail="this is not offered over Lightning")
        if resource.l402 is not None and resource.l402.seconds and not bearer.proof.price(resource.id):
            # A call from the balance would cost what all calls of that time do.
            raise PaymentRefused("token_used", detail="a time is bought by an invoice of its own")
        amount = rail.units(request.ceiling)
        # So many calls were sold: what a bitcoin is worth now is of no account to them.
        if resource.l402 is not None and (price := bearer.proof.price(resource.id)):
            amount = Rate(price, 0).atomic(request.ceiling)
        amount = min(amount, paid or amount)
        terms = Terms(resource.id, request.bound.hex(), amount, 0)
        bearer.proof.check(terms, int(time.time()), balance=True)
        # A token says the most that a call may cost: what it used beyond is the seller's loss.
        worth = Worth(amount, request.ceiling)
        spender = Spender(rail.network, bearer.payment_hash, rail.asset, worth, "clamp", bearer.via)
        try:
            return await self._balances.reserve(resource, request.bound, spender, request.ceiling, request.key)
        except InsufficientBalance as e:
            raise PaymentRefused("token_used", detail=f"{e.available} msat are left") from e
