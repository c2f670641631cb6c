"""L402 tokens: macaroons of our own, bound to an invoice, whose root keys come from the paywall's secrets.

What we mint into every token, in this order (each further caveat may only narrow, whoever appends it):

    services=<name>:0              ours
    <name>_valid_until=<unix>      when it ends
    amount_msat=<n>                the most that one call may cost
    route=<resource>               the priced route
    request=<hex>                  the request's fingerprint; not in a token that is good for several calls

The id of one that is good for several calls also holds what a bitcoin was worth when they were sold. A secret that is
put at the front signs from then on, the others are accepted: root keys rotate (G09).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from typing import Final, NamedTuple
from urllib.parse import quote

from ..errors import PaymentRefused
from ..money import parse_atomic
from ..protocols import l402
from ..protocols.caveats import CaveatRefused, check_caveats
from ..protocols.macaroon import is_good, mint
from .binding import derived_keys

__all__ = ["Terms", "Tokens"]

_LOCATION: Final = "lsat"
_ODD: Final = re.compile(r"[^A-Za-z0-9._-]")
_LASTING: Final = 2
"""Of our own caveats, those that also bind the balance which a payment left over."""
_AMOUNT, _ROUTE, _MINTED = 2, 3, 5
"""Of our own caveats, those of the amount and of the route; and how many there are, without the request's one less."""
_ONE_CALL, _CALLS = b"\x00", b"\x01"
"""First byte of a token's id: whether we minted a ``request`` into it. The identifier is under the signature."""
_PRICE_BYTES: Final = 8
"""In the id of a token for several calls, next: what a bitcoin was worth when they were sold."""


class Terms(NamedTuple):
    """What a token is good for, or what a call asks of it. ``request`` is a fingerprint in hex; ``amount`` in msat."""

    route: str
    request: str
    amount: int
    until: int = 0


class Tokens:
    """Mints and reads tokens for one service. The first secret mints; all of them are accepted."""

    def __init__(self, *secrets: bytes, service: str) -> None:
        self._keys = derived_keys(secrets, b"x402kit l402 v1")
        self._service = _ODD.sub("-", service)

    def mint(self, payment_hash: str, terms: Terms, price: int = 0) -> str:
        """A token as it stands in the challenge. Without ``terms.request`` it is good for any request of the route;
        ``price`` is then what a bitcoin is worth to these, as ``Rate`` has it.
        """
        kind = _ONE_CALL if terms.request else _CALLS + price.to_bytes(_PRICE_BYTES, "big")
        identifier = l402.identifier(bytes.fromhex(payment_hash), kind + os.urandom(32 - len(kind)))
        caveats = [
            f"services={self._service}:0",
            f"{self._service}_valid_until={terms.until}",
            f"amount_msat={terms.amount}",
            f"route={_quoted(terms.route)}",
        ]
        if terms.request:
            caveats.append(f"request={terms.request}")
        root = _root(self._keys[0], identifier)
        return l402.token_text(mint(root, identifier, _LOCATION, [each.encode() for each in caveats]))

    def authenticate(self, shown: l402.Credential) -> None:
        """Raises ``PaymentRefused``: not a token of ours, or not its preimage (G02, G07)."""
        token = shown.token
        if not any(is_good(token, _root(key, token.identifier)) for key in self._keys):
            raise PaymentRefused("token_invalid")
        if hashlib.sha256(shown.preimage).digest() != shown.payment_hash:
            raise PaymentRefused("preimage_mismatch")

    def price(self, shown: l402.Credential, route: str) -> int:
        """What a bitcoin was worth when a token for calls of this route was sold; 0 where it was none for it."""
        sold = shown.token_id[:1] == _CALLS and shown.token.caveats[_ROUTE] == f"route={_quoted(route)}".encode()
        return int.from_bytes(shown.token_id[1 : 1 + _PRICE_BYTES], "big") if sold else 0

    def sold(self, shown: l402.Credential) -> tuple[bytes, int]:
        """The fingerprint of the request that a token was minted for, and its msat; nothing for several calls."""
        if shown.token_id[:1] != _ONE_CALL:
            return b"", 0
        amount, _, request = (each.decode("ascii").partition("=")[2] for each in shown.token.caveats[_AMOUNT:_MINTED])
        return bytes.fromhex(request), parse_atomic(amount)

    def check(self, shown: l402.Credential, terms: Terms, now: int, *, balance: bool = False) -> None:
        """What the caveats say of a call. Raises ``PaymentRefused``.

        ``balance``: for a call that is paid from what the token's payment left over. Which route and request that was
        for is then of no account; what was appended to the token since is.
        """
        caveats = shown.token.caveats
        if balance:
            minted = _MINTED if shown.token_id[:1] == _ONE_CALL else _MINTED - 1
            caveats = (*caveats[:_LASTING], *caveats[minted:])
        try:
            check_caveats(
                caveats,
                service=self._service,
                route=_quoted(terms.route),
                request=terms.request,
                amount=terms.amount,
                now=now,
                preimage=shown.preimage,
            )
        except CaveatRefused as e:
            raise PaymentRefused(e.reason) from e


def _quoted(route: str) -> str:
    return quote(route, safe="/:{}*")


def _root(key: bytes, identifier: bytes) -> bytes:
    return hmac.digest(key, identifier, "sha256")
