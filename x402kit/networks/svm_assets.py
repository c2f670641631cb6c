"""What we know of mints beside assets.py: those of Token-2022 that may be taken, and which extensions none may have.

A transfer fee or a hook of the issuer's makes the amount that arrives another than the one that was sent, or lets a
program of theirs decide over it; such a mint is refused at start, by its own bytes (D05). A permanent delegate is the
issuer's right over every holder's account: it is taken only with the mints that are on a list.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..errors import ConfigError

__all__ = ["KNOWN_2022", "check_extensions"]

KNOWN_2022: Final = frozenset(
    (
        "2u1tszSeqZ3qBWF3uNGPFc8TzMk2tdiwknnRMWGWjGWH",  # USDG
        "2b1kV6DkPAnxd5ixfnxCpjxmKwqjjaYmCZfHsFu24GXo",  # PYUSD
        "CASHx9KJUStyftLFWGvEVf59SGeG9sh5FfcnZMVPCASH",  # CASH
    )
)
_TYPE_AT: Final = 165
_MINT: Final = 1
_TRANSFER_FEE: Final = 1
_NON_TRANSFERABLE: Final = 9
_TRANSFER_HOOK: Final = 14
_REFUSED: Final = {
    _TRANSFER_FEE: "a transfer fee",
    _NON_TRANSFERABLE: "no transfers",
    _TRANSFER_HOOK: "a transfer hook",
}


def check_extensions(data: bytes) -> None:
    """Refuse a mint that takes a fee of transfers or calls a hook. Raises ``ConfigError``.

    An extension that is there without effect (no fee now or next epoch, no program) is let pass.
    """
    for kind, value in _extensions(data):
        if kind in _REFUSED and not _is_idle(kind, value):
            raise ConfigError(f"the mint has {_REFUSED[kind]} (Token-2022): what arrives is not what was paid")


def _is_idle(kind: int, value: bytes) -> bool:
    if kind == _TRANSFER_FEE:  # two authorities, the withheld amount, then two fees: epoch, maximum, basis points
        return len(value) == 108 and value[88:90] == b"\0\0" and value[106:108] == b"\0\0"
    if kind == _TRANSFER_HOOK:  # authority, program
        return len(value) == 64 and value[32:] == bytes(32)
    return False


def _extensions(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each, after the account's type byte. Raises ``ConfigError`` for what is cut short."""
    if len(data) <= _TYPE_AT:
        return
    if data[_TYPE_AT] != _MINT:
        raise ConfigError("the asset's address holds no mint")
    at = _TYPE_AT + 1
    while at + 4 <= len(data):
        kind, size = int.from_bytes(data[at : at + 2], "little"), int.from_bytes(data[at + 2 : at + 4], "little")
        if kind == 0:
            return
        if at + 4 + size > len(data):
            raise ConfigError("the mint's extensions are cut short")
        yield kind, data[at + 4 : at + 4 + size]
        at += 4 + size
