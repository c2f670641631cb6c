"""The HTTP ``Payment`` authentication scheme on the wire, draft -01 (wire.md 7). No I/O, no clock.

    WWW-Authenticate: Payment id="…", realm="…", method="…", intent="…", request="<base64url of JSON>", …
    Authorization: Payment <base64url of {"challenge": {…}, "payload": {…}, "source": "…"}>
    Payment-Receipt: <base64url of {"status": "success", …}>

A server keeps nothing of a challenge: its ``id`` is an HMAC over what it says. What can't be read is a ``ValueError``.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from ..model import HEADER_MAX, Json
from .auth_params import plain, quoted, usable
from .encoding import b64decode, b64url, parse_object
from .jcs import canonical_json
from .siwx_text import parse_time

__all__ = [
    "PAYMENT_AUTHORIZATION",
    "PAYMENT_RECEIPT",
    "PROBLEMS",
    "PaymentChallenge",
    "PaymentCredential",
    "Receipt",
    "bound_id",
    "challenge_header",
    "credential_header",
    "expiry_of",
    "is_bound",
    "parse_credential",
    "read_challenges",
    "read_receipt",
    "read_request",
    "receipt_header",
    "request_text",
    "rfc3339",
]

PAYMENT_AUTHORIZATION: Final = "Payment-Authorization"
"""The other field that a credential may travel in, so that ``Authorization`` stays free for an API key."""
PAYMENT_RECEIPT: Final = "Payment-Receipt"

_PROBLEM: Final = "https://paymentauth.org/problems/"
PROBLEMS: Final[Mapping[str, str]] = {
    name: _PROBLEM + name
    for name in (
        "payment-required",
        "payment-insufficient",
        "payment-expired",
        "verification-failed",
        "malformed-credential",
        "invalid-challenge",
        "invalid-payload",
        "payment-action-required",
        "method-unsupported",
        "bad-request",
        "internal-payment-error",
    )
}
"""The types of problem documents by their short names. The last three go with 400, 400 and 500, the others with 402."""

_METHOD: Final = re.compile(r"[a-z][a-z0-9:_-]*+")
_REQUIRED: Final = ("id", "realm", "method", "intent", "request")
_OPTIONAL: Final = ("expires", "digest", "description", "opaque", "header")


class PaymentChallenge(NamedTuple):
    """The parameters of a challenge, as on the wire; an empty text is one that is not there.

    ``id`` binds all others but ``description``, which is for people only. ``request`` and ``opaque`` stay encoded.
    """

    id: str
    realm: str
    method: str
    intent: str
    request: str
    expires: str = ""
    digest: str = ""
    description: str = ""
    opaque: str = ""
    header: str = ""


class PaymentCredential(NamedTuple):
    """What a client shows: the challenge as it says it got it, and the method's proof. Nothing is verified yet."""

    challenge: PaymentChallenge
    payload: Json
    source: str


class Receipt(NamedTuple):
    """A ``Payment-Receipt``; ``fields`` is all of it. ``timestamp`` is RFC 3339 text."""

    method: str
    reference: str
    timestamp: str
    challenge_id: str
    fields: Json


def _bound(challenge: PaymentChallenge) -> bytes:
    """What the HMAC covers: seven slots, or eight, so that the number of separators tells which.

    A separator inside a slot is refused: without it no two challenges can join alike (G08).
    """
    _, realm, method, intent, request, expires, digest, _, opaque, header = challenge
    slots = (realm, method, intent, request, expires, digest)
    joined = "|".join((*slots, header, opaque) if header else (*slots, opaque))
    if joined.count("|") != (7 if header else 6):
        raise ValueError("a challenge's parameters hold no |")
    return joined.encode()


def bound_id(key: bytes, challenge: PaymentChallenge) -> str:
    """The ``id`` that binds a challenge to what it says; ``id`` and ``description`` of the challenge are not looked at.

    Raises ``ValueError`` where a parameter holds a ``|`` (G08).
    """
    return b64url(hmac.digest(key, _bound(challenge), "sha256"))


def is_bound(keys: Sequence[bytes], challenge: PaymentChallenge) -> bool:
    """Whether one of our secrets, the current and the previous ones, made this ``id`` (G09). In constant time."""
    try:
        covered, claimed = _bound(challenge), challenge.id.encode()
    except ValueError:
        return False
    good = False
    for key in keys:
        made = b64url(hmac.digest(key, covered, "sha256")).encode()
        good |= hmac.compare_digest(made, claimed)
    return good


def request_text(request: Json) -> str:
    """A request, or ``opaque``, as it stands in a challenge. Raises ``ValueError``: see ``canonical_json``."""
    return b64url(canonical_json(request))


def read_request(text: str) -> Json:
    """The inverse; in what is not ours other JSON and padding are taken too."""
    if len(text) > HEADER_MAX:
        raise ValueError("request too large")
    return parse_object(b64decode(text))


def rfc3339(seconds: int) -> str:
    """A time as ``expires`` and receipts spell it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def expiry_of(challenge: PaymentChallenge) -> int | None:
    """When a challenge ends, in Unix seconds; None where it does not say. Raises ``ValueError``."""
    return parse_time(challenge.expires) if challenge.expires else None


def challenge_header(challenge: PaymentChallenge) -> bytes:
    """The value of one ``WWW-Authenticate`` line. ``description`` is made fit for a header; anything else must be
    printable ASCII, or it is a ``ValueError`` (A14).
    """
    parts = [f"{name}={quoted(getattr(challenge, name))}" for name in _REQUIRED]
    for name in _OPTIONAL:
        if value := getattr(challenge, name):
            parts.append(f"{name}={quoted(plain(value) if name == 'description' else value)}")
    return b"Payment " + ", ".join(parts).encode("ascii")


def read_challenges(values: Sequence[str]) -> list[PaymentChallenge]:
    """The ``Payment`` challenges among the ``WWW-Authenticate`` lines of an answer, in order.

    Left out is what can't be used: a parameter missing or given twice (G10), a method that is no name, a credential
    wanted in a field that we don't know. Parameters that we don't know are ignored.
    """
    found: list[PaymentChallenge] = []
    for _, params in usable(values, ("payment",)):
        known = {name: params[name] for name in (*_REQUIRED, *_OPTIONAL) if name in params}
        if not all(known.get(name) for name in _REQUIRED) or not _METHOD.fullmatch(known["method"]):
            continue
        if known.get("header", PAYMENT_AUTHORIZATION).lower() == PAYMENT_AUTHORIZATION.lower():
            found.append(PaymentChallenge(**known))
    return found


def parse_credential(value: str) -> PaymentCredential:
    """Read a credential, with or without the word ``Payment`` before it. Raises ``ValueError``."""
    if value[:8].lower() == "payment ":
        value = value[8:].strip(" \t")
    if len(value) > HEADER_MAX:
        raise ValueError("credential too large")
    fields = parse_object(b64decode(value))
    challenge, payload, source = fields.get("challenge"), fields.get("payload"), fields.get("source")
    if not isinstance(challenge, dict) or not isinstance(payload, dict):
        raise ValueError("challenge or payload is missing or not an object")
    if source is not None and not isinstance(source, str):
        raise ValueError("source is not text")
    return PaymentCredential(_echoed(challenge), payload, source or "")  # pyright: ignore[reportUnknownArgumentType]  # JSON


def _echoed(fields: Mapping[str, Any]) -> PaymentChallenge:
    values: dict[str, str] = {}
    for name in (*_REQUIRED, *_OPTIONAL):
        value = fields.get(name)
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, str) or not (value or name in _OPTIONAL):
            raise ValueError(f"challenge.{name} is missing or not text")
        values[name] = value
    return PaymentChallenge(**values)


def credential_header(challenge: PaymentChallenge, payload: Mapping[str, Any], source: str = "") -> str:
    """What a client sends back in ``Authorization``, or in the field that the challenge names."""
    echo = {name: value for name, value in challenge._asdict().items() if value}
    made: Json = {"challenge": echo, "payload": dict(payload)}
    if source:
        made["source"] = source
    return f"Payment {request_text(made)}"


def receipt_header(method: str, reference: str, timestamp: int, challenge_id: str = "", **more: Any) -> bytes:
    """The value of ``Payment-Receipt``; ``reference`` is never a secret: not the preimage, but its hash."""
    made: Json = {
        "status": "success",
        "method": method,
        "reference": reference,
        "timestamp": rfc3339(timestamp),
        **more,
    }
    if challenge_id:
        made["challengeId"] = challenge_id
    return request_text(made).encode("ascii")


def read_receipt(text: str) -> Receipt:
    """Read a ``Payment-Receipt``. Raises ``ValueError``, and where it does not speak of success."""
    fields = read_request(text)
    if fields.get("status") != "success":
        raise ValueError("not the receipt of a payment")
    values = {name: fields.get(name, "") for name in ("method", "reference", "timestamp", "challengeId")}
    if not all(isinstance(value, str) for value in values.values()) or not values["method"] or not values["reference"]:
        raise ValueError("method or reference is missing or not text")
    return Receipt(values["method"], values["reference"], values["timestamp"], values["challengeId"], fields)
