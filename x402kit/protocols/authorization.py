"""Which credential of L402 or ``Payment`` a request carries, if any. No I/O (A11; wire.md 6.6, 7.1).

``Authorization`` may hold an API key just as well: only the schemes ``L402``, ``LSAT`` and ``Payment`` are ours. A
``Payment`` credential may also travel in ``Payment-Authorization``, beside an API key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from ..errors import HeaderTooLarge, MalformedPayment
from ..model import HEADER_MAX

__all__ = ["AUTHORIZATION_HEADERS", "Found", "find_authorization", "without_credentials"]

AUTHORIZATION_HEADERS: Final = (b"authorization", b"payment-authorization")

_SCHEMES: Final[dict[bytes, Literal["l402", "payment"]]] = {b"l402": "l402", b"lsat": "l402", b"payment": "payment"}
_OURS: Final = re.compile(rb"(L402|LSAT|Payment)(?:[ \t]++([\x21-\x7e]++(?:[ ,\t]++[\x21-\x7e]++)*+))?", re.IGNORECASE)
_STARTS: Final = re.compile(rb"(?:L402|LSAT|Payment)(?![!#$%&'*+.^_`|~0-9A-Za-z-])", re.IGNORECASE)
_HIDDEN: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]|,[ \t]*(?:L402|LSAT|Payment)[ \t]", re.IGNORECASE)
_QUOTED: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


class Found(NamedTuple):
    """A credential as it stands in the request. ``value`` is what follows the scheme; ``spelling`` is the scheme's."""

    scheme: Literal["l402", "payment"]
    value: str
    field: Literal["authorization", "payment-authorization"]
    spelling: str


def find_authorization(headers: Iterable[tuple[bytes, bytes]]) -> Found | None:
    """The one credential of ours in a request's headers (names in lower case), or None: then it may be another's.

    Two of them, one beside another scheme's in the same field, folded lines and control characters are
    ``MalformedPayment`` (A11); one over the limit is ``HeaderTooLarge`` (K01). Nothing is decoded before that.
    """
    found = [pair for pair in headers if pair[0] in AUTHORIZATION_HEADERS]
    if not found:
        return None
    first, second = ([value.strip(b" \t") for name, value in found if name == each] for each in AUTHORIZATION_HEADERS)
    ours = [value for value in first if _STARTS.match(value)]
    if (ours and len(first) > 1) or len(second) > 1 or (ours and second):
        raise MalformedPayment("more than one payment in the request")
    if ours:
        return _read(ours[0], "authorization")
    if any(len(value) <= HEADER_MAX and _HIDDEN.search(_QUOTED.sub(b"", value)) for value in first):
        raise MalformedPayment("a credential behind another one, or control characters")
    if not second:
        return None
    shown = _read(second[0], "payment-authorization")
    if shown.scheme != "payment":
        raise MalformedPayment("another scheme's credential in Payment-Authorization")
    return shown


def without_credentials(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers without our credentials: whoever has one can spend it. Another scheme's stays, such as an API key."""
    return [
        (name, value)
        for name, value in headers
        if name not in AUTHORIZATION_HEADERS or (name == b"authorization" and not _STARTS.match(value.strip(b" \t")))
    ]


def _read(value: bytes, field: Literal["authorization", "payment-authorization"]) -> Found:
    if len(value) > HEADER_MAX:
        raise HeaderTooLarge()
    read = _OURS.fullmatch(value)
    if read is None or read[2] is None:
        raise MalformedPayment("not one well-formed credential")
    return Found(_SCHEMES[read[1].lower()], read[2].decode("ascii"), field, read[1].decode("ascii"))
