"""Messages that an EVM wallet's key signs for people to read (EIP-191, ``personal_sign``). Pure."""

from __future__ import annotations

from .evm import HALF_ORDER, keccak, recover

__all__ = ["is_signed_by", "message_digest", "need_extra"]


def message_digest(message: bytes) -> bytes:
    """What the key signs."""
    return keccak(b"\x19Ethereum Signed Message:\n%d%b" % (len(message), message))


def is_signed_by(address: str, digest: bytes, signature: bytes) -> bool:
    """Whether the key of ``address`` (lower case) made the signature: 65 bytes, v 27 or 28, low s, as for payments."""
    return (
        len(signature) == 65
        and signature[64] in (27, 28)
        and int.from_bytes(signature[32:64], "big") <= HALF_ORDER
        and recover(digest, signature) == address
    )


def need_extra() -> None:
    """Raises ``MissingExtra`` where the packages for the above are not installed: at start, not at a request."""
    recover(keccak(b""), bytes(64) + b"\x1b")
