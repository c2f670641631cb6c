"""A seller's 402 as the payer sees it: read x402's offers, and build the header that answers one. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import NothingPayable
from ..model import BYTES_NESTED_MAX, HEADER_MAX, Json, PaymentRequired, PaymentRequirements
from ..money import Asset
from ..protocols import x402
from ..protocols.encoding import parse_object
from ..protocols.payment_auth import PAYMENT_AUTHORIZATION, PaymentChallenge

if TYPE_CHECKING:
    from .svm import SolanaTerms

__all__ = ["Auth", "Challenge", "Offer", "has_payment", "payment_header", "read_challenge", "says_json"]

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z", re.ASCII)
_PAYMENT_NAMES: Final = frozenset((*(name.decode() for name in x402.PAYMENT_HEADERS), PAYMENT_AUTHORIZATION))
_PAYMENT_SCHEMES: Final = ("l402", "lsat", "payment")


@dataclass(frozen=True, slots=True)
class Challenge:
    """A readable x402 challenge, and the object that it was read from, to be echoed."""

    parsed: PaymentRequired
    raw: Json

    @property
    def description(self) -> str:
        """The seller's words: display only, never authority (M08)."""
        if self.parsed.resource is not None:
            return self.parsed.resource.description
        texts = (entry.get("description") for entry in self.parsed.raw_accepts)
        return next((text for text in texts if isinstance(text, str)), "")

    @property
    def is_bound_by_mppx(self) -> bool:
        """Whether the seller's library is one that may take x402 only with an extension of its own (wire.md 7.7)."""
        return isinstance(extensions := self.raw.get("extensions"), dict) and "mppx" in extensions

    def offers(self, known: Mapping[tuple[str, str], Asset], *, bare: bool = False) -> list[Offer]:
        """The entries that we know how to pay, in the server's order; decimals and domain from ``known`` (M05).

        ``bare``: whether the seller speaks Katana's dialect of Solana's offers, which name no fee payer.
        """
        pairs = zip(self.parsed.accepts, self.parsed.raw_accepts, strict=True)
        made = (Offer.of(self, entry, raw, known, bare=bare) for entry, raw in pairs)
        return [offer for offer in made if offer is not None]


class Auth(NamedTuple):
    """How a challenge in ``WWW-Authenticate`` is answered: in ``field``, by ``expires_at`` (0: without an end).

    On Lightning there is an invoice, and ``recipe`` makes the header's value of its preimage (auth_offers.py).
    """

    field: str
    recipe: str
    expires_at: int
    challenge: PaymentChallenge | None = None
    bolt11: str = ""
    payment_hash: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """An ``accepts[]`` entry of scheme ``exact``, by EIP-3009 or on Solana, in an asset that we know.

    Or what a challenge in ``WWW-Authenticate`` asks for (``auth``); there is no ``challenge`` of x402's then. ``worth``
    is what it costs in millionths of a dollar, where the asset is none that is taken as worth a dollar.
    """

    challenge: Challenge | None
    terms: PaymentRequirements
    raw: Json
    asset: Asset
    solana: SolanaTerms | None = None
    auth: Auth | None = None
    worth: int | None = None
    words: str = ""

    @property
    def description(self) -> str:
        """The seller's words."""
        return self.words if self.challenge is None else self.challenge.description

    @classmethod
    def of(
        cls,
        challenge: Challenge,
        terms: PaymentRequirements,
        raw: Json,
        known: Mapping[tuple[str, str], Asset],
        *,
        bare: bool = False,
    ) -> Offer | None:
        """None for an entry that this client can't pay. A domain in ``extra`` is not looked at: ours counts."""
        asset = known.get((terms.network, terms.asset.lower()))
        method = terms.extra.get("assetTransferMethod", "eip3009")
        if asset is None or terms.scheme != "exact":
            return None
        if terms.network.startswith("solana:"):
            from . import svm

            said = svm.read_terms(terms, asset, bare=bare)
            return None if said is None else cls(challenge, terms, raw, asset, said)
        if method != "eip3009" or not _ADDRESS.match(terms.pay_to):
            return None
        return cls(challenge, terms, raw, asset)


def has_payment(names: Mapping[str, str]) -> bool:
    """Whether the caller's own request carries a payment already; such a request is none of our business."""
    scheme = names.get("authorization", "").partition(" ")[0].lower()
    return scheme in _PAYMENT_SCHEMES or any(name in names for name in _PAYMENT_NAMES)


def says_json(headers: Mapping[str, str]) -> bool:
    """Whether a body is worth reading: JSON by its type, and not said to be over the limit."""
    length = headers.get("content-length", "0")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return (kind == "application/json" or kind.endswith("+json")) and len(length) < 7 and _fits(length)


def _fits(length: str) -> bool:
    return length.isascii() and length.isdigit() and int(length) <= BYTES_NESTED_MAX


def read_challenge(headers: Mapping[str, str], body: bytes | None) -> Challenge | None:
    """The x402 challenge in PAYMENT-REQUIRED (v2), or else in a JSON body (v1, and v2 in dialects); None if neither."""
    text = headers.get(x402.PAYMENT_REQUIRED)
    if text is not None:
        try:
            return _challenge(x402.decode_header(text, floats=True))
        except ValueError:
            pass
    if body is None or len(body) > BYTES_NESTED_MAX:
        return None
    try:
        return _challenge(parse_object(body, floats=True))
    except ValueError:
        return None


def _challenge(raw: Json) -> Challenge:
    return Challenge(x402.parse_payment_required(raw), raw)


def payment_header(offer: Offer, payload: Json) -> tuple[str, str]:
    """Header name and value that answer ``offer``, in the version in which it was offered.

    v2 echoes the entry, the resource and the extensions unchanged; v1 names its scheme and network as offered. Resource
    and extensions, which are optional, stay away when the header would be too large. Raises ``NothingPayable``.
    """
    assert offer.challenge is not None
    raw = offer.challenge.raw
    if offer.challenge.parsed.x402_version == 1:
        v1: Json = {"x402Version": 1, "scheme": "exact", "network": offer.raw["network"], "payload": payload}
        return x402.V1_PAYMENT, _encode(v1)
    v2: Json = {"x402Version": 2, "accepted": offer.raw, "payload": payload}
    echo = {key: raw[key] for key in ("resource", "extensions") if isinstance(raw.get(key), dict)}
    value = _encode(v2 | echo)
    return x402.PAYMENT_SIGNATURE, value if len(value) <= HEADER_MAX else _encode(v2)


def _encode(value: Json) -> str:
    try:
        return x402.encode_header(value)
    except ValueError as e:
        raise NothingPayable("the offer can't be echoed as JSON") from e
