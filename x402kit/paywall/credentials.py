"""Credentials of HTTP authentication: which door each of them takes.

L402 token and preimage, Payment lightning/charge    bearer.py: the node is asked, nothing is sent
Payment, a charge on a chain                         admission.py, as the x402 payment that it is
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from ..errors import MalformedPayment, RailUnavailable
from ..money import Usd
from ..protocols import l402
from ..protocols.authorization import Found
from .admission import Admission, Admissions, Via
from .balances import Replay
from .bearer import Bearer, Bearers, Request
from .resource import Resource
from .sale import BalanceSale, PassSale
from .scheme import OnChain, OverLightning, Scheme
from .tokens import Terms, Tokens

__all__ = ["Credentials", "Paying"]


class Paying(NamedTuple):
    """The call that a credential is shown for. ``ceiling`` works out the most that it costs."""

    resource: Resource
    bound: bytes
    ceiling: Callable[[], Awaitable[Usd]]
    caller: Callable[[], bytes]
    key: bytes = b""


class _Token:
    """An L402 token's caveats."""

    def __init__(self, tokens: Tokens, shown: l402.Credential) -> None:
        self._tokens, self._shown = tokens, shown

    def check(self, terms: Terms, now: int, *, balance: bool) -> None:
        self._tokens.check(self._shown, terms, now, balance=balance)

    def price(self, route: str) -> int:
        return self._tokens.price(self._shown, route)

    def sold(self) -> tuple[bytes, int]:
        return self._tokens.sold(self._shown)


class Credentials:
    """Admits them. ``bearers`` is None where nothing is taken over Lightning."""

    def __init__(self, admissions: Admissions, scheme: Scheme, tokens: Tokens, bearers: Bearers | None) -> None:
        self._admissions = admissions
        self._scheme = scheme
        self._tokens = tokens
        self._bearers = bearers

    async def admit(self, found: Found, paying: Paying) -> Admission | BalanceSale | PassSale | Replay:
        """Admit a credential to a call. Raises as ``Admissions.admit`` and ``Bearers.admit`` do."""
        if found.scheme == "l402":
            return await self._over_lightning(self._token(found.value), paying)
        read = self._scheme.read(found.value, _keccak, found.field)
        if isinstance(read, OverLightning):
            via = Via("payment", challenge=read.challenge, method="lightning")
            return await self._over_lightning(Bearer(read.payment_hash, read, via), paying)
        return await self._on_chain(found.value, read, paying)

    def _token(self, value: str) -> Bearer:
        try:
            shown = l402.parse_credential(value)
        except ValueError as e:
            raise MalformedPayment("malformed_credential", detail=str(e)) from e
        self._tokens.authenticate(shown)
        return Bearer(shown.payment_hash.hex(), _Token(self._tokens, shown), Via("l402"))

    async def _over_lightning(self, bearer: Bearer, paying: Paying) -> Admission | BalanceSale | PassSale | Replay:
        if self._bearers is None:  # it is ours and was paid, before the set-up changed: no new payment for it (I7)
            raise RailUnavailable("not_over_lightning_now")
        request = Request(paying.resource, paying.bound, await paying.ceiling(), paying.key)
        return await self._bearers.admit(bearer, request)

    async def _on_chain(self, value: str, read: OnChain, paying: Paying) -> Admission:
        accepted = read.payment.accepted
        assert accepted is not None
        seconds = paying.resource.max_timeout_seconds
        payment = read.payment._replace(accepted=accepted._replace(max_timeout_seconds=seconds))
        via = Via("payment", challenge=read.challenge, method=read.method)
        raw = value.encode("ascii")
        return await self._admissions.admit(
            paying.resource, paying.bound, raw, payment, paying.ceiling, paying.caller, via
        )


def _keccak(data: bytes) -> bytes:
    from ..networks.evm import keccak  # not before it is needed: a seller on Lightning alone has no use for it

    return keccak(data)
