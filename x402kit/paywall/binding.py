"""What a payment is bound to, and the quote that carries it: stateless, an HMAC over everything (I10).

A quote is ``base64url(expiry ‖ nonce ‖ mac)``. The mac covers the request's fingerprint (method, origin, path, query,
digests of the body and the headers where the price reads them, resource) and the offer's scheme, network, asset,
recipient and amount; parts have their lengths before them, so that no two tuples join alike (G08). Nothing is stored
until a valid payment comes (C11).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from ..errors import ConfigError, PaymentRefused
from ..model import LEEWAY_SECONDS, PaymentRequirements
from ..protocols.encoding import b64url, b64url_decode

__all__ = ["SECRET_MIN", "Binding", "MacKey", "Quotes", "derived_keys", "joined", "mac_keys"]

_MAC_BYTES = 20
_TOKEN_BYTES = 4 + 8 + _MAC_BYTES
_REMEMBERED_MAX = 512
SECRET_MIN: Final = 16
"""Bytes of a seller's secret."""


def joined(*parts: bytes) -> bytes:
    """Injective for a given number of parts: all their lengths, then all of them."""
    return struct.pack(f">{len(parts)}I", *map(len, parts)) + b"".join(parts)


class Binding(NamedTuple):
    """One request, as far as a payment is bound to it.

    ``body`` is its digest, and ``headers`` that of the headers which the price reads; empty when it reads none.
    """

    method: str
    origin: str
    path: str
    query: bytes
    resource: str
    body: bytes = b""
    headers: bytes = b""

    def packed(self) -> bytes:
        """All of it, injectively."""
        return joined(
            self.method.encode("utf-8", "surrogateescape"),
            self.origin.encode(),
            self.path.encode("utf-8", "surrogateescape"),
            self.query,
            self.resource.encode(),
            self.body,
            self.headers,
        )

    def fingerprint(self) -> bytes:
        """A digest that says whether two requests are the same one."""
        # Most calls of a resource differ in nothing; what is remembered of them has a bound (I12).
        if self.body or self.headers or len(self.path) + len(self.query) > _REMEMBERED_MAX:
            return _digest(self)
        return _remembered(self)


def _digest(binding: Binding) -> bytes:
    return hashlib.sha256(binding.packed()).digest()


_remembered = lru_cache(maxsize=1024)(_digest)


class MacKey:
    """HMAC-SHA256 (RFC 2104) whose key is hashed once: half the time of ``hmac.digest``."""

    def __init__(self, key: bytes) -> None:
        block = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def mac(self, message: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()


@lru_cache(maxsize=256)
def _terms(scheme: str, network: str, asset: str, pay_to: str, amount: int) -> bytes:
    return joined(scheme.encode(), network.encode(), asset.encode(), pay_to.encode(), str(amount).encode())


def mac_keys(secrets: Sequence[bytes], purpose: bytes) -> list[MacKey]:
    """As ``derived_keys``, ready for use."""
    return [MacKey(key) for key in derived_keys(secrets, purpose)]


def derived_keys(secrets: Sequence[bytes], purpose: bytes) -> list[bytes]:
    """A key of its own for each secret and purpose. Raises ``ConfigError``: no secret, or one that is too short."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    if not secrets or any(len(secret) < SECRET_MIN for secret in secrets):
        raise ConfigError(f"the secret must have at least {SECRET_MIN} bytes")
    return [HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret) for secret in secrets]


class Quotes:
    """Makes and checks quotes. The first secret signs; all of them are accepted, so that one can be rotated (G09)."""

    def __init__(self, *secrets: bytes) -> None:
        self._keys = mac_keys(secrets, b"x402kit quote v1")

    def make(self, bound: bytes, offer: PaymentRequirements, expiry: int) -> str:
        """The quote of one offer for what it is bound to (a request's fingerprint), good until ``expiry``."""
        head = expiry.to_bytes(4, "big") + os.urandom(8)
        return b64url(head + self._mac(self._keys[0], head, bound, offer))

    def check(self, quote: str, bound: bytes, offer: PaymentRequirements, now: int) -> None:
        """Raises ``PaymentRefused``: not ours, for another request or other terms, or expired. No money moved."""
        try:
            token = b64url_decode(quote)
        except ValueError:
            token = b""
        if len(token) != _TOKEN_BYTES:
            raise PaymentRefused("quote_invalid")
        head, mac = token[:12], token[12:]
        for key in self._keys:
            if hmac.compare_digest(self._mac(key, head, bound, offer), mac):
                break
        else:
            raise PaymentRefused("quote_mismatch")
        if now > int.from_bytes(head[:4], "big") + LEEWAY_SECONDS:
            raise PaymentRefused("quote_expired")

    def _mac(self, key: MacKey, head: bytes, bound: bytes, offer: PaymentRequirements) -> bytes:
        terms = _terms(offer.scheme, offer.network, offer.asset, offer.pay_to, offer.amount)
        message = b"".join((head, len(bound).to_bytes(4, "big"), bound, terms))
        return key.mac(message)[:_MAC_BYTES]
