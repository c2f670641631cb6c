"""Ed25519 as Solana's wallets sign with it (RFC 8032). Pure."""

from __future__ import annotations

from typing import Final

__all__ = ["is_key", "is_signature"]

_PRIME: Final = 2**255 - 19
_SIGN_BIT: Final = 1 << 255
_ORDER_8: Final = int.from_bytes(
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"
)
_SMALL_ORDER: Final = frozenset((0, 1, _PRIME - 1, _ORDER_8, _PRIME - _ORDER_8))
"""The y of the eight points for which one signature is good for many messages, or for all."""


def is_key(public_key: bytes) -> bool:
    """Whether the 32 bytes may be somebody's key: written canonically, and not of small order."""
    y = int.from_bytes(public_key, "little") & ~_SIGN_BIT
    return len(public_key) == 32 and y < _PRIME and y not in _SMALL_ORDER


def is_signature(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``public_key`` made the 64-byte signature over ``message``; False for a key that ``is_key`` refuses."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not is_key(public_key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
