"""Macaroons in the V2 binary form: mint, narrow, write, read, verify. No I/O (wire.md 6.3).

    02  [01 location]  02 identifier  00            a field is its type, its length as a varint, and its bytes
    { 02 caveat  00 } ...
    00  06 signature

Only first-party caveats exist here: one for a third party is refused. The chain of HMACs starts from the root key, and
each caveat's bytes go into it, so that a caveat can be added by anyone and taken away or moved by nobody (G01).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["CAVEATS_MAX", "MACAROON_MAX", "Macaroon", "is_good", "mint", "parse", "serialize"]

MACAROON_MAX: Final = 4096
"""Bytes of a macaroon."""
CAVEATS_MAX: Final = 32

_LOCATION: Final = 1
_IDENTIFIER: Final = 2
_SIGNATURE: Final = b"\x06\x20"
_TAIL: Final = 3 + 32
"""The last end mark, the signature's type and length, and the signature."""
_GENERATOR: Final = b"macaroons-key-generator"


class Macaroon(NamedTuple):
    """A token as it was read; nothing is verified yet. ``location`` is a hint that no signature covers."""

    location: str
    identifier: bytes
    caveats: tuple[bytes, ...]
    signature: bytes

    def narrowed(self, caveat: bytes) -> Macaroon:
        """The same token with one more caveat; needs no key."""
        return self._replace(caveats=(*self.caveats, caveat), signature=_mac(self.signature, caveat))


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _chain(root: bytes, identifier: bytes, caveats: Iterable[bytes]) -> bytes:
    digest = hmac.digest
    made = digest(digest(_GENERATOR, root, "sha256"), identifier, "sha256")
    for caveat in caveats:
        made = digest(made, caveat, "sha256")
    return made


def mint(root: bytes, identifier: bytes, location: str = "", caveats: Iterable[bytes] = ()) -> Macaroon:
    """A new token under a root key."""
    held = tuple(caveats)
    return Macaroon(location, identifier, held, _chain(root, identifier, held))


def is_good(macaroon: Macaroon, root: bytes) -> bool:
    """Whether it was minted under this root key, and its caveats only added to. In constant time; says nothing about
    whether they are met.
    """
    return hmac.compare_digest(_chain(root, macaroon.identifier, macaroon.caveats), macaroon.signature)


def serialize(macaroon: Macaroon) -> bytes:
    """The V2 bytes. Raises ``ValueError`` above the limits that ``parse`` keeps."""
    parts = [b"\x02"]
    if macaroon.location:
        parts += [b"\x01", _field(macaroon.location.encode())]
    parts += [b"\x02", _field(macaroon.identifier), b"\x00"]
    for caveat in macaroon.caveats:
        parts += [b"\x02", _field(caveat), b"\x00"]
    made = b"".join((*parts, b"\x00", _SIGNATURE, macaroon.signature))
    if len(made) > MACAROON_MAX or len(macaroon.caveats) > CAVEATS_MAX or len(macaroon.signature) != 32:
        raise ValueError("no macaroon of ours is so large")
    return made


def _field(data: bytes) -> bytes:
    size = len(data)
    return (bytes((size,)) if size < 128 else bytes((size & 127 | 128, size >> 7 & 127))) + data


def parse(data: bytes) -> Macaroon:
    """Read the V2 bytes of one macaroon; ``ValueError`` for everything else, and for a caveat of a third party.

    What is read has one spelling: ``serialize`` gives the same bytes.
    """
    end = len(data) - _TAIL
    if end < 4 or len(data) > MACAROON_MAX or data[0] != 2 or data[end : end + 3] != b"\x00\x06\x20":
        raise ValueError("not a macaroon in the V2 form")
    location, at = _read(data, 1, _LOCATION) if data[1] == _LOCATION else (b"", 1)
    identifier, at = _read(data, at, _IDENTIFIER)
    caveats: list[bytes] = []
    at = _over_end(data, at)
    while at < end:
        caveat, at = _read(data, at, _IDENTIFIER)
        caveats.append(caveat)
        at = _over_end(data, at)
    if at != end or len(caveats) > CAVEATS_MAX or data[1:3] == b"\x01\x00":
        raise ValueError("not a macaroon in the V2 form")
    return Macaroon(location.decode(), identifier, tuple(caveats), data[-32:])


def _read(data: bytes, at: int, kind: int) -> tuple[bytes, int]:
    """The field at a place, and where it ends. Every place that is looked at lies before the tail, or is refused."""
    size = data[at + 1]
    start = at + 2
    if size > 127:
        high = data[start]
        size += (high << 7) - 128
        start += 1
        if not 0 < high < 128:
            raise ValueError("a length that is not written as it should be")
    end = start + size
    if data[at] != kind or end > len(data) - _TAIL:
        raise ValueError("a field is missing or cut short")
    return data[start:end], end


def _over_end(data: bytes, at: int) -> int:
    if data[at]:
        raise ValueError("a field that has no place here")
    return at + 1
