"""Wallet proofs on the wire, in three dialects (wire.md 1.6 row 26, 4, 8.1). Parse and build: no I/O, no clock.

    siwx      the x402 extension ``sign-in-with-x``: the fields of the text stand flat in the JSON, the text is rebuilt
    venice    {address, message, signature, chainId?, type?, timestamp?} with the same text as it was signed
    katana    {network, address, message, signature, issued_at} with a text of its own (siwx_katana.py)

Any of them may come in either header. What a proof says twice, in its JSON and in the text that was signed, must agree;
what it is worth is decided by paywall/proofs.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from ..errors import HeaderTooLarge, MalformedPayment
from ..model import HEADER_MAX, LEEWAY_SECONDS, Json
from .siwx_build import build_message, encode_proof, katana_json, sign_in_json, sign_in_parts, text_field
from .siwx_fields import Kind, kind_of, network_of, read_address, read_signature
from .siwx_katana import katana_message, parse_katana
from .siwx_text import SignIn, is_sign_in, parse_sign_in, parse_time, siwe_message, siws_message
from .x402 import decode_header

__all__ = [
    "EXTENSION",
    "PROOF_HEADERS",
    "SIGN_IN_WITH_X",
    "Dialect",
    "Proof",
    "SignIn",
    "build_message",
    "encode_proof",
    "find_proof",
    "katana_json",
    "katana_message",
    "parse_proof",
    "sign_in_json",
    "sign_in_parts",
    "siwe_message",
    "siws_message",
]

SIGN_IN_WITH_X: Final = "SIGN-IN-WITH-X"
PROOF_HEADERS: Final = (b"sign-in-with-x", b"x-sign-in-with-x")
EXTENSION: Final = "sign-in-with-x"
"""The key of the challenge in ``extensions``."""

Dialect = Literal["siwx", "venice", "katana"]

_NONCE: Final = re.compile(r"[A-Za-z0-9]{8,128}", re.ASCII)


class Proof(NamedTuple):
    """A proof as it was read; nothing of it is verified but that it does not contradict itself.

    ``message`` is the text that was signed. ``address`` is as it is compared (EVM in lower case), ``spelling`` as it
    was written. ``nonce`` is the digest of the message where a Katana text has none; ``names_network`` is whether the
    signed text says on which network it counts. Times are Unix seconds, None where there is none; absent texts are
    empty.
    """

    dialect: Dialect
    network: str
    address: str
    message: bytes
    signature: bytes
    type: Kind
    nonce: str
    issued_at: int
    spelling: str
    chain_id: str
    domain: str = ""
    scheme: str = ""
    uri: str = ""
    statement: str = ""
    resources: tuple[str, ...] = ()
    expires_at: int | None = None
    not_before: int | None = None
    names_network: bool = True


def find_proof(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The one proof of a request, raw, or None. The same value under both names is one proof.

    Any other second one is ``MalformedPayment`` (A11), one over the limit ``HeaderTooLarge`` (K01).
    """
    found: bytes | None = None
    seen: set[bytes] = set()
    for name, value in headers:
        if name not in PROOF_HEADERS:
            continue
        if name in seen or (found is not None and value != found):
            raise MalformedPayment("more than one wallet proof in the request")
        if len(value) > HEADER_MAX:
            raise HeaderTooLarge()
        seen.add(name)
        found = value
    return found


def parse_proof(raw: bytes) -> Proof:
    """Read a header's value. Raises ``MalformedPayment``; nothing was charged."""
    try:
        return _parse(decode_header(raw.decode("ascii")))
    except ValueError as e:
        raise MalformedPayment("invalid_siwx", detail=str(e)) from e


def _parse(fields: Json) -> Proof:
    message = fields.get("message")
    if message is None:
        return _standard(fields)
    if not isinstance(message, str):
        raise ValueError("message is not text")
    # A text that asks to sign in is read as one and as nothing else: it may be another site's (F02).
    return _venice(fields, message) if is_sign_in(message) else _katana(fields, message)


def _standard(fields: Json) -> Proof:
    network = network_of(fields.get("chainId"))
    if fields.get("type") != kind_of(network):
        raise ValueError("type does not fit the network")
    parts = sign_in_parts(fields, text_field(fields, "address"), network)
    message = parts.text()
    if parse_sign_in(message) != parts:  # a field that brings lines of its own
        raise ValueError("the fields make another text")
    return _signed_in("siwx", fields, parts, message, network)


def _venice(fields: Json, message: str) -> Proof:
    parts = parse_sign_in(message)
    network = network_of(f"solana:{parts.chain.removeprefix('solana:')}" if parts.solana else f"eip155:{parts.chain}")
    for name in ("chainId", "network"):
        if fields.get(name) is not None and network_of(fields[name]) != network:
            raise ValueError(f"{name} is not the signed text's")
    if fields.get("type") not in (None, kind_of(network)):
        raise ValueError("type does not fit the network")
    made = _signed_in("venice", fields, parts, message, network)
    if read_address(fields.get("address"), made.type) != made.address:
        raise ValueError("the signed text names another address")
    stamp, issued = fields.get("timestamp"), fields.get("issued_at")
    if issued not in (None, made.issued_at):
        raise ValueError("issued_at is not the signed text's")
    if stamp is not None and abs(_integer(stamp) // 1000 - made.issued_at) > LEEWAY_SECONDS:
        raise ValueError("timestamp is not the signed text's")
    return made


def _signed_in(dialect: Dialect, fields: Json, parts: SignIn, message: str, network: str) -> Proof:
    kind = kind_of(network)
    if parts.version != "1" or not _NONCE.fullmatch(parts.nonce):
        raise ValueError("version or nonce is not as it must be")
    return Proof(
        dialect,
        network,
        read_address(parts.address, kind),
        message.encode(),
        read_signature(fields.get("signature"), kind),
        kind,
        parts.nonce,
        parse_time(parts.issued_at),
        parts.address,
        parts.chain,
        parts.domain,
        parts.scheme,
        parts.uri,
        parts.statement,
        parts.resources,
        parse_time(parts.expiration_time) if parts.expiration_time else None,
        parse_time(parts.not_before) if parts.not_before else None,
    )


def _katana(fields: Json, message: str) -> Proof:
    network = network_of(fields.get("network"))
    kind = kind_of(network)
    spelling = text_field(fields, "address")
    address = read_address(spelling, kind)
    issued_at = _integer(fields.get("issued_at"))
    text = parse_katana(message, kind, network, address, issued_at, fields.get("nonce"))
    signed = message.encode()
    return Proof(
        "katana",
        network,
        address,
        signed,
        read_signature(fields.get("signature"), kind),
        kind,
        text.nonce or hashlib.sha256(signed).hexdigest(),
        issued_at,
        spelling,
        network.partition(":")[2],
        domain=text.domain,
        uri=text.uri,
        expires_at=text.expires_at,
        not_before=text.not_before,
        names_network=text.names_network,
    )


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**53:
        raise ValueError("a time is missing or not a number")
    return value
