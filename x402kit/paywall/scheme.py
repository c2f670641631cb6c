"""The HTTP ``Payment`` scheme over our rails: challenges that keep nothing, and credentials that answer them.

A challenge's ``id`` is an HMAC over what it says. Over Lightning it has no ``digest`` and no ``opaque``: a popular
client echoes neither. What else it binds is kept with the invoice. On a chain ``opaque`` holds the same quote as an
x402 offer, and a credential is read into an x402 payment: one check, one claim, whatever the door (C09).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

from ..errors import MalformedPayment, PaymentRefused
from ..model import Invoice, Json, PaymentPayload, PaymentRequirements
from ..networks.port import Rail
from ..protocols import payment_auth, payment_methods
from ..protocols.auth_params import plain, quoted
from ..protocols.encoding import b64url
from ..protocols.payment_auth import PaymentChallenge, PaymentCredential
from .binding import MacKey, derived_keys
from .tokens import Terms

__all__ = ["OnChain", "OverLightning", "Scheme"]

_CHARGE: Final = "charge"
_EVM, _LIGHTNING = "evm", "lightning"


class OverLightning(NamedTuple):
    """A credential of lightning/charge: authentic, and its preimage is the payment hash's."""

    payment_hash: str
    challenge: str

    def check(self, terms: Terms, now: int, *, balance: bool) -> None:
        """It says nothing of the request: the invoice's row does."""

    def price(self, route: str) -> int:
        return 0

    def sold(self) -> tuple[bytes, int]:
        return b"", 0


class OnChain(NamedTuple):
    """A credential for a charge on a chain as an x402 payment; its challenge is authentic."""

    payment: PaymentPayload
    challenge: str
    method: str


@lru_cache(maxsize=1024)
def _evm_request(network: str, amount: int, asset: str, pay_to: str, decimals: int) -> str:
    chain = int(network.partition(":")[2])
    return payment_auth.request_text(payment_methods.evm_request(amount, asset, pay_to, chain, decimals))


_time = lru_cache(maxsize=64)(payment_auth.rfc3339)


class Scheme:
    """Issues and reads. The first secret signs; all of them are accepted (G09)."""

    def __init__(self, *secrets: bytes, realm: str, header: str = "") -> None:
        """``header``: the field that credentials are asked for in, where it is not ``Authorization``."""
        self._header = header
        self._slot, self._field = (f"{header}|", f", header={quoted(header)}") if header else ("", "")
        self._keys = derived_keys(secrets, b"x402kit payment scheme v1")
        self._mac = MacKey(self._keys[0])
        self._realm = plain(realm.replace("|", ""))
        self._quoted = quoted(self._realm)

    def over_lightning(self, invoice: Invoice) -> bytes:
        """The challenge that an invoice of whole satoshi stands in; it ends with the invoice."""
        request = payment_methods.lightning_request(
            invoice.amount // 1000, invoice.bolt11, invoice.payment_hash, invoice.network
        )
        return self._challenge(_LIGHTNING, request, invoice.expires_at)

    def on_chain(self, rail: Rail, offer: PaymentRequirements, quote: str, expiry: int) -> bytes:
        """The challenge for an offer on an EVM chain."""
        request = _evm_request(rail.network, offer.amount, offer.asset, offer.pay_to, rail.asset.decimals)
        return self._written(_EVM, request, f'{{"quote":"{quote}"}}', expiry)

    def by_method(self, method: str, request: str, network: str, quote: str, expiry: int) -> bytes:
        """The challenge for an offer on another chain, by that chain's own method; ``request`` in JCS."""
        said = f'{{"network":"{network}","quote":"{quote}"}}'
        return self._written(method, b64url(request.encode("ascii")), said, expiry)

    def _written(self, method: str, request: str, said: str, expiry: int) -> bytes:
        """As ``_challenge`` would write it, without detours: every 402 has one for each offer. ``said`` in JCS."""
        expires, opaque = _time(expiry), b64url(said.encode("ascii"))
        slots = f"{self._realm}|{method}|{_CHARGE}|{request}|{expires}||{self._slot}{opaque}"
        made = b64url(self._mac.mac(slots.encode("ascii")))
        head = f'Payment id="{made}", realm={self._quoted}, method="{method}", intent="{_CHARGE}"'
        return f'{head}, request="{request}", expires="{expires}", opaque="{opaque}"{self._field}'.encode("ascii")

    def _challenge(self, method: str, request: Json, expiry: int, opaque: str = "") -> bytes:
        made = PaymentChallenge(
            id="",
            realm=self._realm,
            method=method,
            intent=_CHARGE,
            request=payment_auth.request_text(request),
            expires=payment_auth.rfc3339(expiry),
            opaque=opaque,
            header=self._header,
        )
        return payment_auth.challenge_header(made._replace(id=payment_auth.bound_id(self._keys[0], made)))

    def read(
        self, value: str, keccak: Callable[[bytes], bytes], field: str = "authorization"
    ) -> OverLightning | OnChain:
        """A credential that came in the header ``field``. Raises ``MalformedPayment`` (400), for one in another field
        than its challenge asked for, too, and ``PaymentRefused`` for one that is not ours (402).
        """
        try:
            shown = payment_auth.parse_credential(value)
        except ValueError as e:
            raise MalformedPayment("malformed_credential", detail=str(e)) from e
        challenge = shown.challenge
        if not payment_auth.is_bound(self._keys, challenge) or challenge.realm != self._realm:
            raise PaymentRefused("invalid_challenge")
        if (challenge.header or "Authorization").lower() != field:
            raise MalformedPayment("wrong_header", detail="the challenge names the field that it is answered in")
        try:
            if (challenge.method, challenge.intent) == (_LIGHTNING, _CHARGE):
                return self._lightning(shown)
            if (challenge.method, challenge.intent) == (_EVM, _CHARGE):
                return self._evm(shown, keccak)
            if challenge.method in payment_methods.CHARGES and challenge.intent == _CHARGE:
                return self._charge(shown)
        except ValueError as e:
            raise MalformedPayment("invalid_payload", detail=str(e)) from e
        raise PaymentRefused("invalid_challenge")

    @staticmethod
    def _lightning(shown: PaymentCredential) -> OverLightning:
        request = payment_methods.read_lightning_request(payment_auth.read_request(shown.challenge.request))
        preimage = payment_methods.read_preimage(shown.payload)
        if hashlib.sha256(preimage).hexdigest() != request.payment_hash:
            raise PaymentRefused("preimage_mismatch")
        return OverLightning(request.payment_hash, shown.challenge.id)

    @staticmethod
    def _evm(shown: PaymentCredential, keccak: Callable[[bytes], bytes]) -> OnChain:
        challenge = shown.challenge
        request = payment_methods.read_evm_request(payment_auth.read_request(challenge.request))
        payload = payment_methods.read_evm_payload(shown.payload)
        nonce: str = payload["authorization"]["nonce"].lower()
        allowed = payment_methods.evm_nonces(challenge.id, challenge.realm, keccak)
        if not any(hmac.compare_digest(nonce, each) for each in allowed):
            raise PaymentRefused("invalid_challenge", detail="the nonce is not this challenge's")
        quote = payment_auth.read_request(challenge.opaque).get("quote") if challenge.opaque else None
        network = f"eip155:{request.chain_id}"
        terms = PaymentRequirements(
            "exact", network, request.amount, request.currency, request.recipient, 0, {"quote": quote}
        )
        return OnChain(PaymentPayload(2, "exact", network, payload, terms), challenge.id, _EVM)

    @staticmethod
    def _charge(shown: PaymentCredential) -> OnChain:
        challenge = shown.challenge
        read = payment_methods.CHARGES[challenge.method](payment_auth.read_request(challenge.request), shown.payload)
        said = payment_auth.read_request(challenge.opaque)
        network, extra = str(said.get("network")), {"quote": said.get("quote"), **read.extra}
        terms = PaymentRequirements("exact", network, read.amount, read.asset, read.pay_to, 0, extra)
        return OnChain(PaymentPayload(2, "exact", network, read.payload, terms), challenge.id, challenge.method)
