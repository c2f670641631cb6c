"""The single values of a wallet proof: networks, addresses, signatures. All raise ``ValueError``. No I/O, no clock."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal

from .base58 import b58decode
from .encoding import b64decode
from .x402 import caip2

__all__ = ["Kind", "kind_of", "network_of", "read_address", "read_signature"]

Kind = Literal["eip191", "ed25519"]

_NETWORK: Final = re.compile(r"eip155:[1-9][0-9]{0,18}|solana:[-_a-zA-Z0-9]{1,32}", re.ASCII)
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
_HEX: Final = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2})+)", re.ASCII)
_CONTRACT_SIGNATURE_MAX: Final = 4096


def network_of(value: object) -> str:
    """CAIP-2 of a network as it may be written: CAIP-2, a bare EVM chain number, or v1's short name."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("the network is missing")
    named = f"eip155:{value}" if _NUMBER.fullmatch(value) else caip2(value)
    if not _NETWORK.fullmatch(named):
        raise ValueError("no network that we know")
    return named


def kind_of(network: str) -> Kind:
    """How the wallets of a CAIP-2 network sign."""
    return "ed25519" if network.startswith("solana:") else "eip191"


def read_address(value: object, kind: Kind) -> str:
    """As it is compared: EVM in lower case, Solana untouched (F04)."""
    if not isinstance(value, str):
        raise ValueError("the address is missing")
    if kind == "ed25519":
        if len(b58decode(value)) != 32:
            raise ValueError("not a Solana address")
        return value
    if not _ADDRESS.fullmatch(value):
        raise ValueError("not an EVM address")
    return value.lower()


def read_signature(value: object, kind: Kind) -> bytes:
    """EVM: 0x-hex, v as 27 or 28 where it is a key's. Solana: 64 bytes as base58, base64 or hex."""
    if not isinstance(value, str):
        raise ValueError("the signature is missing")
    return _ed25519(value) if kind == "ed25519" else _eip191(value)


def _eip191(text: str) -> bytes:
    found = _HEX.fullmatch(text)
    if found is None or not text.startswith("0x") or len(found[1]) > 2 * _CONTRACT_SIGNATURE_MAX:
        raise ValueError("the signature is not 0x and hexadecimal digits")
    made = bytes.fromhex(found[1])
    return made[:64] + bytes((made[64] + 27,)) if len(made) == 65 and made[64] < 2 else made


def _ed25519(text: str) -> bytes:
    # Lengths tell them apart: 64 bytes are 87 or 88 digits in base58 (but for leading ones), 86 or 88 in base64.
    found = _HEX.fullmatch(text)
    if found is not None and len(found[1]) == 128:
        return bytes.fromhex(found[1])
    readers: tuple[Callable[[str], bytes], ...] = (b58decode, b64decode)
    for read in readers:
        try:
            made = read(text)
        except ValueError:
            continue
        if len(made) == 64:
            return made
    raise ValueError("the signature is not 64 bytes as base58, base64 or hex")
