"""Build wallet proofs: what a client that was shown a challenge signs and sends. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..model import Json
from .siwx_fields import kind_of
from .siwx_text import SignIn, parse_sign_in
from .x402 import encode_header

__all__ = ["build_message", "encode_proof", "katana_json", "sign_in_json", "sign_in_parts", "text_field"]

_INFO: Final = (
    "domain",
    "uri",
    "statement",
    "version",
    "nonce",
    "issuedAt",
    "expirationTime",
    "notBefore",
    "requestId",
    "resources",
)


def sign_in_parts(info: Mapping[str, Any], address: str, network: str) -> SignIn:
    """The parts of the text for a challenge's ``info`` (or the same fields in a proof); ``ValueError``."""
    return SignIn(
        kind_of(network) == "ed25519",
        text_field(info, "domain"),
        address,
        text_field(info, "uri"),
        text_field(info, "version"),
        network.partition(":")[2],
        text_field(info, "nonce"),
        text_field(info, "issuedAt"),
        _optional(info, "expirationTime"),
        _optional(info, "notBefore"),
        _optional(info, "requestId"),
        _optional(info, "statement"),
        _resources(info.get("resources")),
    )


def build_message(info: Mapping[str, Any], address: str, network: str) -> str:
    """The text that a wallet of ``network`` (CAIP-2) signs for a challenge's ``info``.

    Raises ``ValueError`` for a challenge that lacks something, or brings lines of its own. Who signs must have compared
    ``info``'s domain and URI with the place that it came from.
    """
    parts = sign_in_parts(info, address, network)
    text = parts.text()
    if parse_sign_in(text) != parts:
        raise ValueError("the challenge's fields make another text")
    return text


def sign_in_json(info: Mapping[str, Any], address: str, network: str, signature: str) -> Json:
    """A standard proof as JSON. ``signature`` is as on the wire: 0x-hex, base58 for Solana."""
    own = {"address": address, "chainId": network, "type": kind_of(network), "signature": signature}
    return {**{name: info[name] for name in _INFO if info.get(name) is not None}, **own}


def encode_proof(info: Mapping[str, Any], address: str, network: str, signature: str) -> str:
    """A standard proof as the value of its header."""
    return encode_header(sign_in_json(info, address, network, signature))


def katana_json(message: str, address: str, network: str, issued_at: int, signature: str) -> Json:
    """A Katana proof as JSON, for ``encode_header``."""
    return {
        "network": network,
        "address": address,
        "message": message,
        "signature": signature,
        "issued_at": issued_at,
    }


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """A field that must be there and not empty; ``ValueError``."""
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is missing or not text")
    return value


def _optional(fields: Mapping[str, Any], name: str) -> str:
    return "" if fields.get(name) is None else text_field(fields, name)


def _resources(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError("resources is not a list")
    found: list[Any] = value  # pyright: ignore[reportUnknownVariableType]  # JSON
    if not all(isinstance(entry, str) for entry in found):
        raise ValueError("resources is not a list of texts")
    return tuple(found)
