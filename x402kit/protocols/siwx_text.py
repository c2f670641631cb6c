"""The text that a wallet signs to sign in: EIP-4361 for EVM, the same layout for Solana (CAIP-122). No I/O, no clock.

    {domain} wants you to sign in with your Ethereum account:      or "Solana account:"
    {address}
                                                                   an empty line
    {statement}                                                    may be missing
                                                                   an empty line
    URI: {uri}
    Version: 1
    Chain ID: {reference}                                          8453, or the genesis hash
    Nonce: {nonce}
    Issued At: {time}
    Expiration Time: {time}                                        this and all below may be missing
    Not Before: {time}
    Request ID: {id}
    Resources:
    - {uri}

Without a statement the EVM text has both empty lines and the Solana text one; reading takes either (wire.md 4).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

__all__ = ["SignIn", "is_sign_in", "parse_sign_in", "parse_time", "printable", "siwe_message", "siws_message"]

_ASKS: Final = " wants you to sign in with your "
_FIRST: Final = re.compile(
    r"(?:([a-z][a-z0-9+.-]*)://)?(\S+) wants you to sign in with your (Ethereum|Solana) account:"
)
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_REQUIRED: Final = ("URI", "Version", "Chain ID", "Nonce", "Issued At")
_OPTIONAL: Final = ("Expiration Time", "Not Before", "Request ID")


class SignIn(NamedTuple):
    """The parts of a text, as they are spelled. ``scheme`` is what stands before the domain, where anything does.

    ``chain`` is the reference alone, without its namespace. An empty string, or no resource: it is not there.
    """

    solana: bool
    domain: str
    address: str
    uri: str
    version: str
    chain: str
    nonce: str
    issued_at: str
    expiration_time: str = ""
    not_before: str = ""
    request_id: str = ""
    statement: str = ""
    resources: tuple[str, ...] = ()
    scheme: str = ""

    def text(self) -> str:
        """The text that these parts make."""
        return (siws_message if self.solana else siwe_message)(self)


def siwe_message(parts: SignIn) -> str:
    """The text for an Ethereum account (EIP-4361)."""
    return _message(parts, "Ethereum", f"{parts.statement}\n\n" if parts.statement else "\n")


def siws_message(parts: SignIn) -> str:
    """The text for a Solana account."""
    return _message(parts, "Solana", f"{parts.statement}\n\n" if parts.statement else "")


def _message(parts: SignIn, kind: str, statement: str) -> str:
    scheme = f"{parts.scheme}://" if parts.scheme else ""
    head = f"{scheme}{parts.domain}{_ASKS}{kind} account:\n{parts.address}\n\n{statement}"
    lines = [
        f"URI: {parts.uri}",
        f"Version: {parts.version}",
        f"Chain ID: {parts.chain}",
        f"Nonce: {parts.nonce}",
        f"Issued At: {parts.issued_at}",
    ]
    optional = (parts.expiration_time, parts.not_before, parts.request_id)
    lines += [f"{name}: {value}" for name, value in zip(_OPTIONAL, optional, strict=True) if value]
    if parts.resources:
        lines += ["Resources:", *(f"- {resource}" for resource in parts.resources)]
    return head + "\n".join(lines)


def is_sign_in(message: str) -> bool:
    """Whether a text asks to sign in anywhere at all: then it is to be read as such, and as nothing else (F02)."""
    return _ASKS in message


def parse_sign_in(message: str) -> SignIn:
    """Read such a text strictly; ``ValueError`` for whatever else stands in it."""
    lines = printable(message)
    found = _FIRST.fullmatch(lines[0])
    if found is None or len(lines) < 8 or lines[2]:
        raise ValueError("not a sign-in text")
    statement, at = _statement(lines)
    fields, at = _fields(lines, at)
    uri, version, chain, nonce, issued_at = (fields[name] for name in _REQUIRED)
    expiration_time, not_before, request_id = (fields.get(name, "") for name in _OPTIONAL)
    return SignIn(
        found[3] == "Solana",
        found[2],
        lines[1],
        uri,
        version,
        chain,
        nonce,
        issued_at,
        expiration_time,
        not_before,
        request_id,
        statement,
        _resources(lines[at:]),
        found[1] or "",
    )


def _statement(lines: Sequence[str]) -> tuple[str, int]:
    """The statement, and where the fields begin."""
    if not lines[3]:
        return "", 4
    return (lines[3], 5) if not lines[4] else ("", 3)


def _fields(lines: Sequence[str], at: int) -> tuple[dict[str, str], int]:
    """The named lines in their order, and where they end."""
    fields: dict[str, str] = {}
    for name in (*_REQUIRED, *_OPTIONAL):
        prefix = f"{name}: "
        if at < len(lines) and lines[at].startswith(prefix):
            fields[name] = lines[at][len(prefix) :]
            at += 1
        if not fields.get(name, name in _OPTIONAL):
            raise ValueError(f"{name} is missing")
    return fields, at


def _resources(lines: Sequence[str]) -> tuple[str, ...]:
    if not lines:
        return ()
    if lines[0] != "Resources:" or not all(line.startswith("- ") for line in lines[1:]):
        raise ValueError("something else after the sign-in text")
    return tuple(line[2:] for line in lines[1:])


def printable(message: str) -> list[str]:
    """The lines of a text in which nothing is hidden: no control characters, no other line ends."""
    lines = message.split("\n")
    if not all(map(str.isprintable, lines)):
        raise ValueError("characters that can't be seen")
    return lines


def parse_time(text: str) -> int:
    """Whole Unix seconds, rounded down, of an RFC 3339 time; ``ValueError`` for any other."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError("not a time")
    moment = datetime.fromisoformat(found[1] + found[2])
    return (moment - _EPOCH) // timedelta(seconds=1)
