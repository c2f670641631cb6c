"""The free text of Katana's wallet proofs (wire.md 1.6 row 26). No I/O, no clock.

    {service} X-Sign-In-With-X
    Wallet: {address}
    Network: {CAIP-2}
    Nonce: {nonce}
    Issued At: {Unix seconds}

Only the service's name, the wallet and the time of issue must stand in it; where no line is named for it, as the only
number that can be one. Every line with a name that we know must agree with the JSON around the text, may come once, and
is compared, whatever its letters' case.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from .siwx_fields import Kind, network_of
from .siwx_text import parse_time, printable

__all__ = ["KatanaText", "katana_message", "names", "parse_katana"]

_WORD: Final = re.compile(r"[0-9A-Za-z]+")
_NONCE: Final = re.compile(r"[!-~]{8,128}")
_SECONDS: Final = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)
_STAMP: Final = re.compile(r"(?<![0-9A-Za-z])[1-9][0-9]{9}(?![0-9A-Za-z])")
"""A number that can be a time of these days in a text that is free."""
_KNOWN: Final = frozenset(
    ("wallet", "address", "network", "chain id", "nonce", "issued at", "expiration time", "not before", "domain", "uri")
)
_OTHER_NUMBERS: Final = frozenset(("expiration time", "not before", "nonce"))


class KatanaText(NamedTuple):
    """What a text says. An empty string or None: it does not."""

    nonce: str
    expires_at: int | None
    not_before: int | None
    domain: str
    uri: str
    names_network: bool


def katana_message(service: str, address: str, network: str, nonce: str, issued_at: int) -> str:
    """The text as Katana's document writes it."""
    lines = f"Wallet: {address}\nNetwork: {network}\nNonce: {nonce}\nIssued At: {issued_at}"
    return f"{service} X-Sign-In-With-X\n{lines}"


def names(message: str, service: str) -> bool:
    """Whether the service's name stands in a text as a word of its own: ``a-name.test`` is another's (F02)."""
    return re.search(rf"(?<!\w)(?<!\w[-.@]){re.escape(service)}(?![-.@]?\w)", message) is not None


def parse_katana(message: str, kind: Kind, network: str, address: str, issued_at: int, nonce: Any) -> KatanaText:
    """Read a text and hold it against the JSON's values; ``ValueError`` where they differ, or where no time is signed.

    A time that stands in the JSON alone is nobody's word: who saw the proof could renew it for ever.
    """
    lines = _named(message)
    words = set(_WORD.findall(message.lower() if kind == "eip191" else message))
    wallets = [lines[name] for name in ("wallet", "address") if name in lines]
    if address not in words or any((w.lower() if kind == "eip191" else w) != address for w in wallets):
        raise ValueError("the signed text does not name this wallet")
    networks = [network_of(lines[name]) for name in ("network", "chain id") if name in lines]
    if any(named != network for named in networks):
        raise ValueError("the signed text names another network")
    signed = _time(lines.get("issued at"))
    if signed != issued_at and (signed is not None or _stamps(message) != {str(issued_at)}):
        raise ValueError("the signed text names another time of issue, or none, or several")
    return KatanaText(
        _nonce(lines.get("nonce"), nonce),
        _time(lines.get("expiration time")),
        _time(lines.get("not before")),
        lines.get("domain", ""),
        lines.get("uri", ""),
        bool(networks),
    )


def _stamps(message: str) -> set[str]:
    """The times of a text without a line for its time of issue. Of several, who saw the proof could show the last, when
    the nonce that it spent is forgotten (F01).
    """
    lines = message.split("\n")
    return {found for line in lines if _name(line) not in _OTHER_NUMBERS for found in _STAMP.findall(line)}


def _name(line: str) -> str:
    return line.partition(":")[0].strip().lower()


def _named(message: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in printable(message):
        name, value = _name(line), line.partition(":")[2]
        if name in found:
            raise ValueError(f"{name} stands in the text twice")
        if name in _KNOWN:
            found[name] = value.strip()
    return found


def _time(text: str | None) -> int | None:
    if text is None:
        return None
    return int(text) if _SECONDS.fullmatch(text) else parse_time(text)


def _nonce(signed: str | None, beside: Any) -> str:
    if beside is not None and beside != signed:
        raise ValueError("the signed text names another nonce")
    if signed is not None and not _NONCE.fullmatch(signed):
        raise ValueError("the nonce is too short or too long")
    return signed or ""
