"""Wallets that prove themselves, in every dialect, with whatever is to be wrong with the proof."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from x402kit.model import Json
from x402kit.networks.evm import address_of, sign_digest
from x402kit.networks.evm_message import message_digest
from x402kit.paywall.proofs import Proofs
from x402kit.protocols.base58 import b58encode
from x402kit.protocols.siwx import build_message, katana_json, katana_message, sign_in_json

__all__ = [
    "BASE",
    "NOW",
    "ORIGIN",
    "SERVICE",
    "SOLANA",
    "URL",
    "Clock",
    "Wallet",
    "evm_wallet",
    "header",
    "katana",
    "proofs",
    "solana_wallet",
    "stamp",
    "standard",
    "venice",
    "venice_text",
]

BASE = "eip155:8453"
SOLANA = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
ORIGIN = "https://api.example.com"
URL = ORIGIN + "/v1/chat/completions"
SERVICE = "imgnAI"
NOW = 1_778_711_400
SECRET = b"a secret of thirty-two bytes ...."


@dataclass
class Clock:
    """Unix seconds, as a test sets them."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Wallet:
    """``sign`` gives a signature over a text as it stands on the wire."""

    network: str
    address: str
    sign: Callable[[str], str]


def evm_wallet(private_key: bytes | None = None, address: str = "") -> Wallet:
    """A wallet with a key; with ``address``, the contract that this key owns."""
    key = private_key or secrets.token_bytes(32)

    def sign(text: str) -> str:
        return "0x" + sign_digest(key, message_digest(text.encode())).hex()

    return Wallet(BASE, address or address_of(key), sign)


def solana_wallet(seed: bytes = b"") -> Wallet:
    """A Solana wallet of a seed of 32 bytes, or of none in particular."""
    key = Ed25519PrivateKey.from_private_bytes(seed or secrets.token_bytes(32))
    public = b58encode(key.public_key().public_bytes_raw())
    return Wallet(SOLANA, public, lambda text: b58encode(key.sign(text.encode())))


def proofs(clock: Callable[[], float] | None = None, **changes: Any) -> Proofs:
    """A verifier for this service at this origin."""
    secret = changes.pop("secret", SECRET)
    known: dict[str, Any] = {"service": SERVICE, "origin": ORIGIN, "networks": [BASE, SOLANA]}
    return Proofs(secret, clock=clock or Clock(), **{**known, **changes})


def header(fields: Mapping[str, Any]) -> bytes:
    """A header's value."""
    return base64.b64encode(json.dumps(fields).encode())


def stamp(now: float) -> str:
    """A time as JavaScript writes it."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def standard(wallet: Wallet, info: Mapping[str, Any], **changes: Any) -> Json:
    """The extension's proof for a challenge's info; ``changes`` are signed."""
    changed = {**info, **changes}
    text = build_message(changed, wallet.address, wallet.network)
    return sign_in_json(changed, wallet.address, wallet.network, wallet.sign(text))


def venice_text(wallet: Wallet, now: float = NOW, **changes: Any) -> str:
    """The text that venice-x402-client signs."""
    fields: dict[str, Any] = {
        "domain": ORIGIN.partition("://")[2],
        "uri": URL,
        "version": "1",
        "nonce": secrets.token_hex(8),
        "issuedAt": stamp(now),
        "expirationTime": stamp(now + 300),
        "statement": "Sign in to Venice AI",
        **changes,
    }
    return build_message(fields, wallet.address, wallet.network)


def venice(
    wallet: Wallet, now: float = NOW, *, text: str = "", beside: Mapping[str, Any] | None = None, **changes: Any
) -> Json:
    """Venice's proof. ``changes`` go into the text, ``beside`` into the JSON around it."""
    text = text or venice_text(wallet, now, **changes)
    fields = {"address": wallet.address, "message": text, "signature": wallet.sign(text), "timestamp": int(now * 1000)}
    return {**fields, "chainId": 8453 if wallet.network == BASE else SOLANA, **(beside or {})}


def katana(
    wallet: Wallet, now: int = NOW, *, text: str = "", beside: Mapping[str, Any] | None = None, service: str = SERVICE
) -> Json:
    """Katana's proof, of the five lines or of ``text``."""
    text = text or katana_message(service, wallet.address, wallet.network, secrets.token_hex(16), now)
    return {**katana_json(text, wallet.address, wallet.network, now, wallet.sign(text)), **(beside or {})}
