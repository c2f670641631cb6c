"""The challenge for a wallet proof: the value of ``extensions["sign-in-with-x"]`` in a 402 (wire.md 4).

Nothing is stored for one (C11): the nonce is ``expiry ‖ random ‖ mac``, 16 bytes in hexadecimal, and the mac covers the
URI. So a nonce says by itself that it is ours, for which URI, and until when. It goes into every 402: all that does not
change is written once.
"""

from __future__ import annotations

import hmac
import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from typing import Final

from ..model import CHALLENGE_SECONDS
from ..protocols.siwx_fields import kind_of
from .binding import MacKey, mac_keys

__all__ = ["ProofChallenges", "is_same_origin"]

_HEAD_BYTES: Final = 8
_MAC_BYTES: Final = 8
_URI_MAX: Final = 1024
_URI: Final = re.compile(r"(?:[A-Za-z0-9._~:/@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+", re.ASCII)
_TEXTS: Final = ("domain", "address", "statement", "uri", "version", "chainId", "type", "nonce", "issuedAt")
_REQUIRED: Final = [name for name in _TEXTS if name != "statement"]
_SCHEMA: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {name: {"type": "string"} for name in (*_TEXTS, "expirationTime", "signature")},
    "required": [*_REQUIRED, "signature"],
}

_text = json.JSONEncoder(separators=(",", ":")).encode


def is_same_origin(uri: str, origin: str) -> bool:
    """Whether a URI is at an origin (``scheme://host[:port]``), spelled as the origin is (F02)."""
    return uri.startswith(origin) and uri[len(origin) : len(origin) + 1] in ("", "/", "?", "#")


def _place(url: str, origin: str) -> str:
    """The URI that a text names: the URL without its query, or the origin where others could not read it."""
    uri = url.partition("?")[0]
    # What is remembered has a bound, and paths have none here (I12).
    return uri if len(uri) <= _URI_MAX and _fits(uri, origin) else origin + "/"


@lru_cache(maxsize=1024)
def _fits(uri: str, origin: str) -> bool:
    return is_same_origin(uri, origin) and _URI.fullmatch(uri) is not None


@lru_cache(maxsize=256)
def _time(now: int) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ProofChallenges:
    """Issues challenges for one origin, and knows their nonces again.

    ``statement`` and ``resources`` stand in every text. The first secret signs; all of them are accepted.
    """

    def __init__(
        self,
        secrets: Sequence[bytes],
        *,
        origin: str,
        networks: Sequence[str],
        statement: str,
        resources: Sequence[str],
    ) -> None:
        self._keys = mac_keys(secrets, b"x402kit wallet proof nonce v1")
        self.origin, self.domain = origin, origin.partition("://")[2]
        self.statement, self.resources = statement, tuple(resources)
        chains = [{"chainId": network, "type": kind_of(network)} for network in networks]
        rest = f',"resources":{_text(list(resources))}' if resources else ""
        self._head = (
            f'{{"info":{{"domain":{_text(self.domain)},"version":"1","statement":{_text(statement)}{rest},"uri":'
        )
        self._tail = f'"}},"supportedChains":{_text(chains)},"schema":{_text(_SCHEMA)}}}'

    def text(self, now: int, url: str) -> str:
        """The challenge as JSON text."""
        uri = _place(url, self.origin)
        expiry = now + CHALLENGE_SECONDS
        head = expiry.to_bytes(4, "big") + os.urandom(_HEAD_BYTES - 4)
        nonce = (head + self._mac(self._keys[0], head, uri)).hex()
        times = f'"issuedAt":"{_time(now)}","expirationTime":"{_time(expiry)}'
        return f'{self._head}{_quoted(uri)},"nonce":"{nonce}",{times}{self._tail}'

    def expiry(self, nonce: str, uri: str) -> int | None:
        """Until when a nonce is good, if we issued it for this URI."""
        try:
            raw = bytes.fromhex(nonce)
        except ValueError:
            return None
        head, mac = raw[:_HEAD_BYTES], raw[_HEAD_BYTES:]
        if not any(hmac.compare_digest(self._mac(key, head, uri), mac) for key in self._keys):
            return None
        return int.from_bytes(head[:4], "big")

    def times(self, expiry: int) -> tuple[str, str]:
        """Time of issue and of expiry as they stand in the text."""
        return _time(expiry - CHALLENGE_SECONDS), _time(expiry)

    def _mac(self, key: MacKey, head: bytes, uri: str) -> bytes:
        return key.mac(head + uri.encode())[:_MAC_BYTES]
