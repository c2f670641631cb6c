"""L402 on the wire: a macaroon and an invoice, and later the macaroon and the preimage (wire.md 6). No I/O, no clock.

    WWW-Authenticate: L402 macaroon="M", invoice="I", version="0", token="M"
    Authorization: L402 M:<preimage, 64 hex digits>

``LSAT`` is the scheme's older name. That the preimage is the payment hash's is compared by the flow (G02), and so is
what the node says of the invoice (G03).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..model import HEADER_MAX
from .auth_params import quoted, usable
from .encoding import b64decode, b64encode
from .macaroon import Macaroon, parse, serialize

__all__ = [
    "Challenge",
    "Credential",
    "challenge_header",
    "credential_header",
    "identifier",
    "parse_credential",
    "read_challenge",
    "read_identifier",
    "token_text",
]

_SCHEME: Final = re.compile(r"(L402|LSAT)[ \t]++", re.IGNORECASE)
_PREIMAGE: Final = re.compile(r"[0-9A-Fa-f]{64}")
_TOKEN: Final = re.compile(r"[0-9A-Za-z._~+/-]++=*+")
_INVOICE: Final = re.compile(r"[0-9A-Za-z]++")
_CAVEAT: Final = b"preimage="
_VERSION: Final = b"\x00\x00"


class Credential(NamedTuple):
    """What a client shows. Nothing is verified: neither the macaroon nor that the preimage is this hash's."""

    token: Macaroon
    preimage: bytes
    payment_hash: bytes
    scheme: str
    token_id: bytes


class Challenge(NamedTuple):
    """What a server asks for. ``token`` stays as it came: it need not be a macaroon."""

    token: str
    invoice: str
    scheme: str


def identifier(payment_hash: bytes, token_id: bytes) -> bytes:
    """A macaroon's identifier, version 0: the payment hash and 32 random bytes."""
    if len(payment_hash) != 32 or len(token_id) != 32:
        raise ValueError("a payment hash and a token id have 32 bytes")
    return _VERSION + payment_hash + token_id


def read_identifier(data: bytes) -> tuple[bytes, bytes]:
    """Payment hash and token id; ``ValueError`` for another version or length."""
    if len(data) != 66 or data[:2] != _VERSION:
        raise ValueError("not an identifier of version 0")
    return data[2:34], data[34:]


def token_text(token: Macaroon) -> str:
    """A macaroon as it stands in headers."""
    return b64encode(serialize(token))


def challenge_header(token: str, invoice: str, scheme: str = "L402") -> bytes:
    """The value of the ``WWW-Authenticate`` line, in the order that every client reads. Raises ``ValueError`` (A14).

    In the older spelling, ``LSAT``, there is neither ``version`` nor ``token``.
    """
    macaroon = quoted(token)
    more = "" if scheme == "LSAT" else f', version="0", token={macaroon}'
    return f"{scheme} macaroon={macaroon}, invoice={quoted(invoice)}{more}".encode("ascii")


def credential_header(token: str, preimage: str, scheme: str = "L402") -> str:
    """What a client sends back in ``Authorization``."""
    return f"{scheme} {token}:{preimage}"


def parse_credential(authorization_value: str) -> Credential:
    """Read a credential of exactly one macaroon, with or without the scheme's word before it. Raises ``ValueError``.

    The preimage may be missing behind the colon where the client wrote it into the macaroon, as a last caveat.
    """
    scheme, value = "L402", authorization_value
    if (word := _SCHEME.match(value)) is not None:
        scheme, value = word[1].upper(), value[word.end() :]
    if len(value) > HEADER_MAX:
        raise ValueError("credential too large")
    text, colon, preimage = value.partition(":")
    if not colon or (preimage and not _PREIMAGE.fullmatch(preimage)):
        raise ValueError("not a token, a colon and a preimage")
    token = parse(b64decode(text))
    payment_hash, token_id = read_identifier(token.identifier)
    return Credential(token, bytes.fromhex(preimage or _inside(token)), payment_hash, scheme, token_id)


def _inside(token: Macaroon) -> str:
    for caveat in reversed(token.caveats):
        if caveat.startswith(_CAVEAT):
            preimage = caveat[len(_CAVEAT) :].decode("ascii")
            if _PREIMAGE.fullmatch(preimage):
                return preimage
    raise ValueError("no preimage")


def read_challenge(values: Sequence[str]) -> Challenge | None:
    """The first usable L402 or LSAT challenge among the ``WWW-Authenticate`` lines of an answer.

    The token is called ``token`` or ``macaroon``; where both are there they must be the same. What could not stand in
    a credential (A14), or is no invoice by its letters, is passed over.
    """
    for scheme, params in usable(values, ("l402", "lsat")):
        token, invoice = params.get("token") or params.get("macaroon", ""), params.get("invoice", "")
        if _TOKEN.fullmatch(token) and _INVOICE.fullmatch(invoice) and params.get("macaroon", token) == token:
            return Challenge(token, invoice, scheme.upper())
    return None
