"""Invoices in a challenge: for whom, for what, and what else stands beside them."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from ..errors import RailUnavailable, TooManyRequests
from ..model import Invoice
from ..paywall.bearer import pass_bound
from ..paywall.challenge import Challenge
from ..paywall.invoices import Invoices, Wanted, rate_of
from ..paywall.resource import Resource
from ..paywall.scheme import Scheme
from ..paywall.tokens import Terms, Tokens
from ..pricing import Quote
from ..protocols.l402 import challenge_header
from .request import PricedRequest

__all__ = ["Counter"]

_NODE_SECONDS: Final = 5.0
"""How long a challenge with other offers waits for its invoice."""
TOKEN_SECONDS: Final = 365 * 86_400
"""Life of a token that has no time of its own: it is also the key to what its payment left over."""


class Counter:
    """Puts an invoice into the challenges of the resources that take one."""

    def __init__(self, invoices: Invoices, tokens: Tokens, scheme: Scheme) -> None:
        self.invoices = invoices
        self._tokens = tokens
        self._scheme = scheme

    async def over_lightning(
        self, made: Challenge, request: PricedRequest, quoted: Quote, trouble: RailUnavailable | None
    ) -> Challenge:
        """``made`` with an invoice. Without one it stays as it is, where it has other offers.

        Raises ``trouble``, ``RailUnavailable`` or ``TooManyRequests`` where there is nothing to offer at all.
        """
        resource, rail = request.resource, self.invoices.rail
        spoken = {"l402", "lsat", "payment"} & set(resource.protocols or ("l402", "payment"))
        if resource.l402 is not None:
            spoken.discard("payment")
        if not spoken or (resource.networks and rail.network not in resource.networks):
            return _or_raise(made, trouble)
        bound = request.binding().fingerprint()
        what = resource.l402
        wanted = Wanted(
            resource.id,
            bound if what is None else pass_bound(resource, what, quoted.ceiling),
            quoted.ceiling,
            quoted.description or resource.description or str(request.scope["path"]),
            1 if what is None else what.calls,
            0 if what is None else what.seconds,
            "payment" in spoken,
        )
        client = request.scope.get("client")
        caller = _network_of(client[0]) if client else ""

        def lines(invoice: Invoice) -> tuple[tuple[str, bytes], ...]:
            return self._lines(resource, invoice, spoken, bound)

        try:
            async with asyncio.timeout(_NODE_SECONDS):
                offered = await self.invoices.offer(wanted, caller, lines)
        except RailUnavailable as e:
            return _or_raise(made, trouble or e)
        except TimeoutError:  # it is made all the same, for who asks again
            return _or_raise(made, trouble or RailUnavailable("node_too_slow"))
        if offered is None:
            return _or_raise(made, trouble or TooManyRequests("too_many_invoices"))
        return made.over_lightning(offered.lines, offered.shown)

    def _lines(
        self, resource: Resource, invoice: Invoice, spoken: set[str], bound: bytes
    ) -> tuple[tuple[str, bytes], ...]:
        """L402 first: some clients look at nothing else (wire.md 6.2)."""
        made: list[tuple[str, bytes]] = []
        what = resource.l402
        if spoken & {"l402", "lsat"}:
            life = TOKEN_SECONDS if what is None or not what.seconds else what.seconds
            amount = invoice.amount if what is None else invoice.amount // what.calls
            terms = Terms(resource.id, bound.hex() if what is None else "", amount, invoice.expires_at + life)
            price = 0 if what is None else rate_of(invoice).price
            token = self._tokens.mint(invoice.payment_hash, terms, price)
            schemes = [scheme for scheme in ("L402", "LSAT") if scheme.lower() in spoken]
            made += [("l402", challenge_header(token, invoice.bolt11, scheme)) for scheme in schemes]
        if "payment" in spoken:
            made.append(("lightning", self._scheme.over_lightning(invoice)))
        return tuple(made)


@lru_cache(maxsize=1024)
def _network_of(host: str) -> str:
    """One caller's addresses: who has an IPv6 address has 2^64 of them."""
    if ":" not in host:
        return host
    try:
        address = IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))


def _or_raise(made: Challenge, trouble: Exception | None) -> Challenge:
    if made.header or made.lines or trouble is None:
        return made
    raise trouble
