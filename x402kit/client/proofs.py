"""Wallet proofs as a payer makes them, and what a server's refusal of one looks like. Pure.

Two kinds (wire.md 4, 8.1). Our own, in one round trip: a SIWE text bound to the origin's domain and URI, with a nonce
of ours, good for five minutes. And the answer to a 402's ``sign-in-with-x`` challenge, with the server's nonce; that is
signed only when its domain and URI are those of the place that it came from, or who relays a challenge of somebody
else's would get a proof that is good there (F02).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from ..model import Json
from ..protocols.encoding import parse_object
from ..protocols.siwx import EXTENSION, PROOF_HEADERS, build_message, encode_proof
from ..protocols.siwx_fields import kind_of
from ..protocols.x402 import encode_header
from .policy import Target
from .wallets import Wallets

__all__ = ["LIFE", "SignInChallenge", "find_challenge", "has_proof", "own_proof", "refusal", "server_time"]

LIFE: Final = 300
"""Seconds that a proof of ours lives."""
STATEMENT: Final = "Sign in to use a prepaid balance."
_URI_MAX: Final = 1024
_TIME_MAX: Final = 1 << 36
"""In the year 4147; a text can hold no time beyond 9999."""
_REASON_MAX: Final = 100
_PROOF_NAMES: Final = frozenset(name.decode() for name in PROOF_HEADERS)
_REFUSALS: Final = ("proof-refused", "proof-used", "invalid_siwx", "X402_SIGN_IN_")


@dataclass(frozen=True, slots=True)
class SignInChallenge:
    """A server's challenge that is for us to answer, and the network whose wallet answers it."""

    info: Json
    network: str

    def answer(self, wallets: Wallets) -> str:
        """The header's value. Raises ``ValueError`` for a text that brings lines of its own."""
        address = wallets.address_on(self.network)
        message = build_message(self.info, address, self.network)
        return encode_proof(self.info, address, self.network, wallets.sign_message(message.encode(), self.network))


def find_challenge(
    extensions: Mapping[str, Any], target: Target, networks: Collection[str], known: str = ""
) -> SignInChallenge | None:
    """The challenge in a 402's extensions; None where there is none, or it is not for this origin or these networks.

    ``known``: the network on which a balance is kept there; it is preferred, and then EVM's.
    """
    found = _object(extensions.get(EXTENSION))
    info = _object(found.get("info"))
    chains = found.get("supportedChains")
    if not _is_here(info, target) or not isinstance(chains, list):
        return None
    entries: list[Any] = chains  # pyright: ignore[reportUnknownVariableType]  # JSON
    named = [network for entry in entries if (network := _network(_object(entry), networks))]
    named.sort(key=lambda network: (network != known, kind_of(network) != "eip191"))
    return _readable(SignInChallenge(info, named[0])) if named else None


def _network(chain: Json, networks: Collection[str]) -> str:
    network = chain.get("chainId")
    if not isinstance(network, str) or network not in networks or chain.get("type") != kind_of(network):
        return ""
    return network


def _readable(challenge: SignInChallenge) -> SignInChallenge | None:
    try:
        build_message(challenge.info, "0x" + "0" * 40, challenge.network)
    except ValueError:
        return None
    return challenge


def _is_here(info: Json, target: Target) -> bool:
    uri = info.get("uri")
    domain = target.origin.partition("://")[2]
    if info.get("domain") != domain or not isinstance(uri, str) or not uri.startswith(target.origin):
        return False
    return uri[len(target.origin) :][:1] in ("", "/", "?", "#")


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]  # JSON


def own_proof(wallets: Wallets, target: Target, network: str, now: int, nonce: str) -> str:
    """A header's value for one request, good for ``LIFE`` seconds from ``now`` on."""
    uri = target.url.partition("?")[0]
    info = {
        "domain": target.origin.partition("://")[2],
        "uri": uri if len(uri) <= _URI_MAX else target.origin + "/",
        "statement": STATEMENT,
        "version": "1",
        "nonce": nonce,
        "issuedAt": _time(now),
        "expirationTime": _time(now + LIFE),
    }
    address = wallets.address_on(network)
    message = build_message(info, address, network)
    signature = wallets.sign_message(message.encode(), network)
    return encode_header({"address": address, "message": message, "signature": signature, "chainId": network})


def _time(now: int) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def has_proof(names: Mapping[str, str]) -> bool:
    """Whether the caller's own request carries a wallet proof already; such a request is none of our business."""
    return any(name in names for name in _PROOF_NAMES)


def refusal(body: bytes | None) -> str:
    """Why a 401 or 403 refuses the proof (ours: proof-refused, proof-used; Venice's codes); empty for the app's own."""
    try:
        said = parse_object(body or b"", floats=True)
    except ValueError:
        return ""
    found = (said.get(name) for name in ("reason", "code", "error", "title"))
    words = [word for word in found if isinstance(word, str) and word]
    if not any(word.startswith(_REFUSALS) for word in words):
        return ""
    return "".join(char for char in words[0][:_REASON_MAX] if char.isprintable()) or "no reason that can be read"


def server_time(headers: Mapping[str, str]) -> int | None:
    """The server's clock, from its Date header; None where it shows a time that no proof can be written for."""
    try:
        found = parsedate_to_datetime(headers.get("date", ""))
        seconds = int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < _TIME_MAX else None
