"""Issue a challenge, and find the offer that a payment answers.

The 402 answer is put together from text made once for each rail, since it is what every crawler asks for: one header in
v2, one body in v1 for old clients, and a quote for each offer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ..errors import BadRequest, PaymentRefused, RailUnavailable
from ..model import CHALLENGE_SECONDS, Claim, Json, PaymentPayload, PaymentRequirements
from ..money import MAX_AMOUNT, Asset, Usd, format_units
from ..networks.lightning_port import bitcoin_on, is_lightning
from ..networks.port import ChargingRail, HintingRail, Rail
from ..protocols.accept_payment import wanted
from ..protocols.encoding import b64encode
from ..protocols.x402 import v1_network
from .binding import Binding, Quotes
from .resource import PROTOCOLS, Resource
from .scheme import Scheme

__all__ = ["Challenge", "Challenges"]

_text = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Challenge:
    """A 402 answer: ``header`` for PAYMENT-REQUIRED (v2), ``body`` for clients of v1. ``credits``: of a top-up.

    ``lines`` are values of WWW-Authenticate, each with its method: ``l402``, or one of the ``Payment`` scheme.
    """

    header: bytes
    body: bytes
    credits: bool = False
    lines: tuple[tuple[str, bytes], ...] = ()

    def over_lightning(self, lines: tuple[tuple[str, bytes], ...], shown: bytes) -> Challenge:
        """The same with an invoice, whose challenges come first; ``shown`` says what it is, for people."""
        body = b"%b,%b%b}" % (self.body[:-1], b'"lightning":', shown)
        return Challenge(self.header, body, self.credits, (*lines, *self.lines))

    def wanted(self, accept_payment: str) -> Challenge:
        """The same with only what a client's Accept-Payment names, in its order; L402 is not of that scheme."""
        first = tuple(each for each in self.lines if each[0] == "l402")
        rest = [each for each in self.lines if each[0] != "l402"]
        order = wanted(accept_payment, [(method, "charge") for method, _ in rest])
        return replace(self, lines=(*first, *(rest[index] for index in order)))

    @classmethod
    def bare(cls, error: str) -> Challenge:
        """One without offers on any chain."""
        return cls(b"", b'{"error":%b}' % _text(error).encode("ascii"))


class _Terms:
    """One rail's part of every challenge."""

    def __init__(self, rail: Rail) -> None:
        self.rail = rail
        asset = rail.asset
        self.v1_name = v1_network(rail.network)
        self.is_evm = rail.network.startswith("eip155:") and rail.scheme == "exact"
        parties = f'"asset":{_text(asset.address)},"payTo":{_text(rail.pay_to)},"maxTimeoutSeconds":'
        self.v2_head = f'{{"scheme":{_text(rail.scheme)},"network":{_text(rail.network)},{parties}'
        self.v1_head = f'{{"scheme":{_text(rail.scheme)},"network":{_text(self.v1_name)},{parties}'
        self._shown = {"currency": asset.symbol, "decimals": asset.decimals, "chain": self.v1_name or rail.network}
        self._hinting = rail if isinstance(rail, HintingRail) else None
        self.charging = rail if isinstance(rail, ChargingRail) else None
        self._extra: Json = {}
        self._extra_text = ""

    def extra(self) -> str:
        """The rail's own part of ``extra``, as open JSON text; a rail may learn it late. ``RailUnavailable``."""
        found = self.rail.extra()
        if self._hinting is not None:
            found = {**found, **self._hinting.hints()}
        if found != self._extra or not self._extra_text:
            self._extra, self._extra_text = found, _text({**found, **self._shown})[:-1]
        return self._extra_text

    def lines(self, scheme: Scheme, offer: PaymentRequirements, quote: str, expiry: int) -> list[tuple[str, bytes]]:
        """The ``Payment`` challenge for an offer, if its chain has a method there."""
        if self.is_evm:
            return [("evm", scheme.on_chain(self.rail, offer, quote, expiry))]
        request = "" if self.charging is None else self.charging.charge_request(offer.amount)
        if self.charging is None or not request:
            return []
        method = self.charging.charge_method
        return [(method, scheme.by_method(method, request, self.rail.network, quote, expiry))]

    def requirements(self, resource: Resource, amount: int, extra: Json | None = None) -> PaymentRequirements:
        rail = self.rail
        return PaymentRequirements(
            rail.scheme,
            rail.network,
            amount,
            rail.asset.address,
            rail.pay_to,
            resource.max_timeout_seconds,
            extra if extra is not None else {},
        )


@lru_cache(maxsize=1024)
def _amount(ceiling: Usd, decimals: int, surcharge: int) -> int:
    total = ceiling.atomic(decimals) + surcharge
    if not 0 < total <= MAX_AMOUNT:
        raise BadRequest("not_priceable", detail="the price is out of range")
    return total


@lru_cache(maxsize=1024)
def _breakdown(ceiling: Usd, decimals: int, surcharge: int) -> str:
    """The explanatory fields of Katana (wire.md 1.6 row 3): the amount is their total."""
    subtotal = ceiling.atomic(decimals)
    texts = [format_units(value, decimals) for value in (subtotal, surcharge, subtotal + surcharge)]
    return ',"subtotalUsd":"{}","estimatedGasUsd":"{}","totalUsd":"{}"'.format(*texts)


class Challenges:
    """Issues challenges for a set of rails, first the one that payers should prefer."""

    def __init__(self, rails: Sequence[Rail], quotes: Quotes, scheme: Scheme | None = None) -> None:
        """With ``scheme``, offers on chains are challenges of the ``Payment`` scheme, too."""
        self._terms = [_Terms(rail) for rail in rails]
        self._scheme = scheme
        self._assets = {(r.network, r.asset.address.lower()): r.asset for r in rails}
        self._quotes = quotes

    def issue(
        self,
        resource: Resource,
        binding: Binding,
        ceiling: Usd,
        url: str,
        now: int,
        *,
        description: str = "",
        error: str,
        sign_in: str = "",
        networks: Collection[str] = (),
    ) -> Challenge:
        """Offers for one quote, with a wallet proof's challenge as JSON text; ``networks``: on these alone. Nothing is
        stored. Raises ``RailUnavailable`` where no rail can be offered now.
        """
        bound = binding.fingerprint()
        expiry = now + CHALLENGE_SECONDS
        v2: list[str] = []
        v1: list[str] = []
        lines: list[tuple[str, bytes]] = []
        scheme = self._scheme if not resource.credits and "payment" in (resource.protocols or PROTOCOLS) else None
        trouble: RailUnavailable | None = None
        about = f'"description":{_text(description or resource.description)},"mimeType":{_text(resource.mime_type)}'
        place = _text(url)
        for terms in self._on(networks):
            try:
                surcharge, own = terms.rail.surcharge(), terms.extra()
            except RailUnavailable as e:  # the other rails can be offered all the same
                trouble = e
                continue
            decimals = terms.rail.asset.decimals
            amount = _amount(ceiling, decimals, surcharge)
            offer = terms.requirements(resource, amount)
            quote = self._quotes.make(bound, offer, expiry)
            if scheme is not None:
                lines += terms.lines(scheme, offer, quote, expiry)
            extra = f'"extra":{own}{_breakdown(ceiling, decimals, surcharge)}'
            seconds = resource.max_timeout_seconds
            most = f'"amount":"{amount}","maxAmountRequired":"{amount}"'
            v2.append(f'{terms.v2_head}{seconds},{most},{extra},"quote":"{quote}"}}}}')
            if terms.v1_name:
                v1.append(
                    f'{terms.v1_head}{seconds},"maxAmountRequired":"{amount}","resource":{place},{about},{extra}}}}}'
                )
        if trouble is not None and not v2:
            raise trouble
        if not v2 or "x402" not in (resource.protocols or PROTOCOLS):
            return replace(Challenge.bare(error), lines=tuple(lines))
        reason = _text(error)
        proofs = f',"extensions":{{"sign-in-with-x":{sign_in}}}' if sign_in else ""
        head = f'{{"x402Version":2,"error":{reason},"resource":{{"url":{place},{about}}}'
        header = f'{head},"accepts":[{",".join(v2)}]{proofs}}}'
        body = f'{{"x402Version":1,"error":{reason},"accepts":[{",".join(v1)}]}}'
        made = b64encode(header.encode("ascii")).encode("ascii")
        return Challenge(made, body.encode("ascii"), resource.credits, tuple(lines))

    def _on(self, networks: Collection[str]) -> Iterable[_Terms]:
        return (each for each in self._terms if each.rail.network in networks) if networks else self._terms

    def asset(self, claim: Claim) -> Asset:
        """What a claim was paid in."""
        return self.asset_at(claim.network, claim.asset)

    def asset_at(self, network: str, address: str) -> Asset:
        """What was paid in; its rail may be configured no more."""
        known = self._assets.get((network, address.lower()))
        if known is not None:
            return known
        return bitcoin_on(network) if is_lightning(network) else Asset(network, address, "USDC", 6)

    def fee(self, claim: Claim, ceiling: Usd) -> int:
        """What of a payment for a metered call was the surcharge: paid above the price, a window's at the most.

        Raises nothing, since the money is here by now: where the rail can't say its surcharge any more, the payer has
        it back.
        """
        for terms in self._terms:
            rail = terms.rail
            if (rail.network, rail.asset.address.lower()) == (claim.network, claim.asset.lower()):
                above = max(claim.amount - ceiling.atomic(rail.asset.decimals), 0)
                try:
                    return min(above, max(rail.surcharges()))
                except RailUnavailable:
                    return 0
        return 0

    def candidates(self, payment: PaymentPayload, method: str = "") -> list[tuple[Rail, PaymentRequirements]]:
        """The rails that a payment may be for, by what it names; amounts are not looked at. Empty: none of ours
        (A02). ``method``: of the ``Payment`` scheme, by which it was asked for; then what it echoes is our own word.
        """
        found: list[tuple[Rail, PaymentRequirements]] = []
        echo = payment.accepted
        for terms in self._terms:
            rail = terms.rail
            if payment.network != rail.network or payment.scheme != rail.scheme:
                continue
            if echo is None:
                offer = PaymentRequirements(rail.scheme, rail.network, 0, rail.asset.address, rail.pay_to, 0)
            elif echo.asset == rail.asset.address and echo.pay_to == rail.pay_to:
                offer = echo
            else:
                continue
            if terms.charging is not None and method == terms.charging.charge_method:
                rail = terms.charging.charged(offer.extra["memo"])
            found.append((rail, offer))
        return found

    def readers(self, payment: PaymentPayload) -> list[tuple[Rail, PaymentRequirements]]:
        """Rails that can read a payment which is for none of our offers, to find the claim that it may have."""
        echo = payment.accepted
        if echo is None:
            return []
        family = payment.network.partition(":")[0] + ":"
        rails = [terms.rail for terms in self._terms]
        return [(r, echo) for r in rails if r.scheme == payment.scheme and r.network.startswith(family)]

    def is_quoted(self, payment: PaymentPayload, bound: bytes, offer: PaymentRequirements, now: int) -> bool:
        """Whether the payment echoes a quote of ours for this very request; a wrong one is ``PaymentRefused``.

        False means that it echoes none (v1, Katana): then the call is priced afresh.
        """
        if payment.accepted is None or "quote" not in payment.accepted.extra:
            return False
        self._quotes.check(payment.quote, bound, offer, now)
        return True

    def afresh(self, rail: Rail, resource: Resource, ceiling: Usd, value: int) -> PaymentRequirements:
        """The offer as it would be made now, or with the surcharge of the window before (A01: never from the echo).

        Raises ``PaymentRefused`` when the payment's ``value`` is neither.
        """
        for surcharge in rail.surcharges():
            amount = _amount(ceiling, rail.asset.decimals, surcharge)
            if amount == value:
                asset = rail.asset.address
                return PaymentRequirements(
                    rail.scheme, rail.network, amount, asset, rail.pay_to, resource.max_timeout_seconds
                )
        raise PaymentRefused("invalid_payment_requirements", detail="the amount is not this request's price")

    @staticmethod
    def any_amount(rail: Rail, resource: Resource, value: int) -> PaymentRequirements:
        """The offer for a payment of an amount of the payer's choice, which is credited to who signed it and to nobody
        else. Raises ``PaymentRefused`` outside ``resource.amounts``, to which the settlement's cost is added.
        """
        assert resource.amounts is not None
        least, most = (amount.atomic(rail.asset.decimals) for amount in resource.amounts)
        if value < least + min(rail.surcharges()):
            raise PaymentRefused("amount_too_low")
        if value > min(most + max(rail.surcharges()), MAX_AMOUNT):
            raise PaymentRefused("amount_too_high")
        seconds = resource.max_timeout_seconds
        return PaymentRequirements(rail.scheme, rail.network, value, rail.asset.address, rail.pay_to, seconds)

    @staticmethod
    def check_echo(rail: Rail, payment: PaymentPayload, resource: Resource) -> None:
        """What the client echoes must be what we offer; what it leaves out is not missed (wire.md 1.6 row 6)."""
        echo = payment.accepted
        if echo is None:
            return
        wrong = echo.max_timeout_seconds != resource.max_timeout_seconds
        for key, value in rail.extra().items():
            wrong = wrong or echo.extra.get(key, value) != value
        if wrong:
            raise PaymentRefused("invalid_payment_requirements", detail="the echo differs from the offer")
