"""At the door: what a request for a priced route shows, and what it is told or given for it.

No credential: the challenge, for which nothing is stored. A payment: admission (paywall/admission.py). A wallet proof:
a reserve on its balance (paywall/balances.py). Two of them: 400. Every refusal is a typed error with the status of the
contract (docs/concepts.md).
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Protocol

from starlette.types import Receive

from ..errors import (
    InsufficientBalance,
    MalformedPayment,
    OutcomeUnknown,
    PaymentRefused,
    PaymentUsed,
    RailUnavailable,
    ServerError,
)
from ..ledger.port import Store
from ..model import Claim, Hold
from ..money import Worth
from ..networks.lightning_port import is_lightning
from ..paywall.admission import Admission, Admissions, read_payment
from ..paywall.balances import Balances, Replay, idempotency_key
from ..paywall.binding import Binding
from ..paywall.challenge import Challenge, Challenges
from ..paywall.credentials import Credentials, Paying
from ..paywall.sale import BalanceSale, PassSale, PaymentSale, Sale
from ..pricing import Quote
from ..protocols.authorization import AUTHORIZATION_HEADERS, Found, find_authorization
from ..protocols.siwx import PROOF_HEADERS, find_proof
from ..protocols.x402 import PAYMENT_HEADERS, find_payment
from . import answers
from .answers import Answer
from .body import body_digest, read_body
from .counter import Counter
from .request import PricedRequest
from .serving import Serving
from .wallet_places import Place, Places

__all__ = ["Door", "Till"]

log = logging.getLogger("x402kit.gate")


class Till(Protocol):
    """What the gate needs of the paywall that it belongs to."""

    origin: str
    service: str
    store: Store
    challenges: Challenges
    admissions: Admissions
    balances: Balances
    credentials: Credentials
    counter: Counter | None
    running: bool
    serving: Serving

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


def _shown(request: PricedRequest) -> tuple[bytes | None, bytes | None, Found | None]:
    """A payment, a wallet proof, a credential of HTTP authentication: at most one of them, else ``MalformedPayment``.

    A top-up is paid by a payment alone.
    """
    names, headers, top_up = request.names, request.scope["headers"], request.resource.credits
    raw = None if names.isdisjoint(PAYMENT_HEADERS) else find_payment(headers)
    proof = None if top_up or names.isdisjoint(PROOF_HEADERS) else find_proof(headers)
    shown = None if top_up or names.isdisjoint(AUTHORIZATION_HEADERS) else find_authorization(headers)
    if [raw, proof, shown].count(None) < 2:
        raise MalformedPayment("two_ways_of_paying")
    return raw, proof, shown


class Door:
    """Decides on requests for one gate."""

    def __init__(self, till: Till) -> None:
        self._till = till
        self.places = Places({})

    async def failed(self, request: PricedRequest, error: Exception) -> Answer:
        """The answer to a request that was not admitted. Raises nothing."""
        try:
            if isinstance(error, ServerError):
                return await self.refusal(request, error)
        except Exception as e:  # noqa: BLE001  # the ASGI edge: a fault of the price
            error = e
        log.error("the gate failed on %s", request.resource.id, exc_info=error)
        # A payment that was shown may have moved; while a price is worked out nothing of it has been used.
        unsure = request.shown and not request.pricing
        return self.problem(request, OutcomeUnknown("internal_error") if unsure else ServerError())

    async def admit(self, request: PricedRequest, receive: Receive) -> Answer | Sale | Admission:
        """The gate's own answer; or the right to be served; or a payment that becomes balance."""
        resource = request.resource
        raw, proof, shown = _shown(request)
        if resource.price.needs_body:
            request.body = await read_body(receive, resource.body_limit, resource.body_seconds)
        if proof is not None:
            return await self._admit_balance(request, receive, proof)
        if shown is not None:
            return await self._admit_shown(request, receive, shown)
        if raw is None:
            return await self._challenge(request, None)
        # What the call costs must be known before anything is settled for it.
        quoted = await request.quote() if resource.metered else None
        request.shown = True
        admission = await self._till.admissions.admit(
            resource, request.binding().fingerprint(), raw, read_payment(raw), request.ceiling, request.caller
        )
        if resource.credits:
            return admission
        if admission.replay:
            return await self._told_again(request, receive, admission)
        return self._sold(admission, quoted)

    async def _admit_shown(self, request: PricedRequest, receive: Receive, shown: Found) -> Answer | Sale:
        """A credential of the scheme L402, or ``Payment``."""
        quoted = await request.quote()
        key = idempotency_key(request.scope["headers"])
        bound = request.binding().fingerprint()
        request.shown = True
        paying = Paying(request.resource, bound, request.ceiling, request.caller, key)
        admitted = await self._till.credentials.admit(shown, paying)
        if not isinstance(admitted, Admission):
            return await self._held(request, receive, admitted)
        if admitted.replay:
            return await self._told_again(request, receive, admitted)
        return self._sold(admitted, quoted)

    async def _told_again(self, request: PricedRequest, receive: Receive, admission: Admission) -> Answer:
        claim = admission.claim
        await self._check_body(claim, claim.reference, request, receive)
        return answers.replay(claim, admission.receipt, admission.via)

    def _sold(self, admission: Admission, quoted: Quote | None) -> Sale:
        claim, till, fee, rate = admission.claim, self._till, None, None
        if quoted is not None and is_lightning(claim.network):
            fee, rate = None if quoted.meter is None else 0, admission.rate or Worth(claim.amount, quoted.ceiling)
        elif quoted is not None and quoted.meter is not None:
            fee = till.challenges.fee(claim, quoted.ceiling)
        return PaymentSale(admission, till.admissions, till.store, till.challenges.asset(claim), fee, rate)

    async def _admit_balance(self, request: PricedRequest, receive: Receive, proof: bytes) -> Answer | Sale:
        quoted = await request.quote()
        key = idempotency_key(request.scope["headers"])
        bound = request.binding().fingerprint()
        admitted = await self._till.balances.admit(request.resource, bound, proof, quoted.ceiling, key)
        return await self._held(request, receive, admitted)

    async def _held(
        self, request: PricedRequest, receive: Receive, admitted: BalanceSale | PassSale | Replay
    ) -> Answer | Sale:
        if not isinstance(admitted, Replay):
            return admitted
        hold = admitted.hold
        await self._check_body(hold, hold.request_id, request, receive)
        return answers.replay(hold, None)

    async def _check_body(self, kept: Claim | Hold, reference: str, request: PricedRequest, receive: Receive) -> None:
        """Before a stored answer is given again, where the price did not read the body (C05)."""
        resource = request.resource
        if not kept.body_digest or resource.price.needs_body:
            return
        if await body_digest(receive, resource.body_seconds) != kept.body_digest:
            raise PaymentUsed("payment_used", reference=reference)

    async def _challenge(self, request: PricedRequest, error: PaymentRefused | None) -> Answer:
        now, place = int(time.time()), self.places.of(request)
        proofs = self._till.balances.proofs if place else None
        if isinstance(error, InsufficientBalance) and place:
            return self._top_up(request, error, place, now)
        quoted = await request.quote()
        url = request.url()
        asked, trouble = request.resource, None
        try:
            made = self._till.challenges.issue(
                asked,
                request.binding(),
                quoted.ceiling,
                url,
                now,
                description=quoted.description,
                error=error.reason if error else "Payment required",
                sign_in=proofs.challenge_text(now, url) if proofs and not asked.credits else "",
                networks=asked.networks,
            )
        except RailUnavailable as e:  # Lightning may be there all the same
            made, trouble = Challenge.bare(e.reason), e
        if self._till.counter is not None and not asked.credits:
            made = await self._till.counter.over_lightning(made, request, quoted, trouble)
        elif trouble is not None:
            raise trouble
        if not made.header and not made.lines:
            raise RailUnavailable("nothing_to_pay_with")
        if made.lines and (accept := request.header(b"accept-payment")):
            made = made.wanted(accept)
        if place is None:
            return answers.challenge(made, error)
        return place.service.shape.challenge(made, error, place.url)

    def _top_up(self, request: PricedRequest, error: InsufficientBalance, place: Place, now: int) -> Answer:
        """The offer of what is missing on a balance, to be paid at the wallet service; and a proof's challenge."""
        till, network, service = self._till, error.account_network, place.service
        price, resource, asset = service.price, service.resource, till.balances.assets[network]
        amount = price.at_least(error.needed - error.available, asset.decimals)
        path = f"{place.path}/top-up"
        digest = hashlib.sha256(price.words(amount)).digest()
        binding = Binding("POST", till.origin, path, b"", resource.id, digest)
        made = till.challenges.issue(
            resource,
            binding,
            amount,
            f"{place.url}/top-up",
            now,
            error=error.reason,
            sign_in=till.balances.proofs.challenge_text(now, request.url()),
            networks=(network,),
        )
        return service.shape.shortfall(made, error, price, asset, place.url)

    def problem(self, request: PricedRequest, error: ServerError) -> Answer:
        """An error's answer, as the request's wallet service would say it."""
        place = self.places.of(request)
        if place is None:
            return answers.problem(error)
        return place.service.shape.problem(error, top_up=request.resource.credits)

    async def refusal(self, request: PricedRequest, error: ServerError) -> Answer:
        if not isinstance(error, PaymentRefused):
            return self.problem(request, error)
        try:
            return await self._challenge(request, error)
        except ServerError as e:
            return self.problem(request, e)
