"""The one thing that a payer asks a Solana node for: a recent blockhash, where the offer brings none. Blocks."""

from __future__ import annotations

import weakref
from typing import Any, Final

import httpx

from ..errors import PayerError
from ..model import Json
from ..networks.svm_transaction import address_bytes
from ..protocols.encoding import parse_object

__all__ = ["Blockhashes"]

SECONDS: Final = 5.0
ANSWER_MAX: Final = 65_536
_ASK: Final[Json] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "getLatestBlockhash",
    "params": [{"commitment": "confirmed"}],
}


class Blockhashes:
    """A node at ``url``, which no error shows (I11): it may hold a key."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx.Client(transport=httpx.HTTPTransport(), timeout=SECONDS)
        self.close = weakref.finalize(self, self._client.close)

    def latest(self) -> bytes:
        """The 32 bytes. Raises ``PayerError``; nothing was signed."""
        try:
            answer = self._client.post(self._url, json=_ASK)
            if len(answer.content) > ANSWER_MAX:
                raise ValueError("a long answer")
            result: Any = parse_object(answer.content, floats=True)["result"]
            return address_bytes(result["value"]["blockhash"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as e:
            what = type(e).__name__
            raise PayerError(f"the Solana node of svm_rpc gave no blockhash ({what}); nothing was signed") from None
