"""Links that are good by themselves: signed, until a time. Whoever has one may follow it, and needs no credential.

A link ends in ``expires=<unix seconds>&signature=<base64url>``. The signature is an HMAC-SHA256 (RFC 2104) over the
origin, the path as servers decode it, the exact bytes of the query before those two, and the expiry; parts have their
lengths before them. Nothing is stored, so that no link can be taken back before its time, but by dropping its secret.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote, unquote_plus

from ..errors import LinkRefused
from ..money import parse_atomic
from ..protocols.encoding import b64url
from .binding import MacKey, joined, mac_keys

__all__ = ["Links"]

_LENGTH_MAX: Final = 2048
"""Of path and query; clients and proxies cut what is much longer."""
_EXPIRES_END: Final = 10**12
# What no client writes in another way before it sends it: other characters are to be percent-encoded by who signs.
_PLAIN: Final = re.compile(r"/(?!/)(?:[A-Za-z0-9._~!$&()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_QUERY: Final = re.compile(
    rb"(?:(?P<rest>.+)&)?expires=(?P<expires>[1-9][0-9]{0,11})&signature=(?P<mac>[\w-]{43})", re.DOTALL
)
_OURS: Final = frozenset(("expires", "signature"))


class Links:
    """Signs and checks links. The first secret signs; all of them are accepted, so that one can be rotated.

    ``secrets`` have 16 bytes or more. With an ``origin``, links are good at that one alone. Raises ``ConfigError``.
    """

    def __init__(self, secrets: Sequence[bytes], *, origin: str = "") -> None:
        self._keys = mac_keys(secrets, b"x402kit link v1")
        self._origin = origin.encode()

    def sign(self, path_and_query: str, expires: int) -> str:
        """The link to a path of ours, good before ``expires``, in Unix seconds.

        Raises ``ValueError`` for what is no path, not percent-encoded, too long, or has a signature's parameters.
        """
        path, _, query = path_and_query.partition("?")
        if not _PLAIN.fullmatch(path_and_query):
            raise ValueError("a link is to a path of this origin, percent-encoded")
        names = {unquote_plus(part.partition("=")[0]) for part in query.split("&")}
        if names & _OURS:
            raise ValueError("expires and signature are parameters of the link's own")
        decoded = unquote(path, errors="strict")
        if not {".", ".."}.isdisjoint(decoded.split("/")):
            raise ValueError("a link's path has no dot segments: clients resolve them")
        if not 0 < expires < _EXPIRES_END:
            raise ValueError("a link expires at a time in Unix seconds")
        mac = _mac(self._keys[0], self._origin, decoded, query.encode(), str(expires).encode())
        made = f"{path}?{query}{'&' if query else ''}expires={expires}&signature={mac.decode()}"
        if len(made) > _LENGTH_MAX:
            raise ValueError(f"a link has at most {_LENGTH_MAX} characters")
        return made

    def check(self, path: str, query: str | bytes, now: float) -> None:
        """Whether a request came by a link of ours. ``path`` as the server decoded it, ``query`` as it came.

        Raises ``LinkRefused``: ``link_invalid`` for everything that we did not sign just so, ``link_expired``.
        """
        if isinstance(query, str):
            query = query.encode("utf-8", "surrogatepass")
        if len(path) + len(query) > _LENGTH_MAX or (found := _QUERY.fullmatch(query)) is None:
            raise LinkRefused("link_invalid")
        expires, rest = found["expires"], found["rest"] or b""
        good = [hmac.compare_digest(_mac(key, self._origin, path, rest, expires), found["mac"]) for key in self._keys]
        if not any(good):
            raise LinkRefused("link_invalid")
        if now >= parse_atomic(expires.decode()):
            raise LinkRefused("link_expired")


def _mac(key: MacKey, origin: bytes, path: str, query: bytes, expires: bytes) -> bytes:
    return b64url(key.mac(joined(origin, path.encode("utf-8", "surrogatepass"), query, expires))).encode()
