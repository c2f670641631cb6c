"""The one reader and writer of authentication challenges: ``Scheme name=value, …`` (RFC 9110, 11.2 to 11.6). No I/O.

One header value may hold several challenges, joined by commas, and one challenge several parameters, joined by commas
too. Names are compared without case; one that comes twice makes its challenge unusable (G10). A value without quotes
may hold base64 (old L402 servers send it so), and behind one in quotes the comma may be missing (a library for L402
servers writes ``version="0" token="…"``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from ..model import HEADER_MAX

__all__ = ["VALUES_MAX", "AuthChallenge", "parse_challenges", "plain", "quoted", "usable"]

VALUES_MAX: Final = 64
"""Header values of one answer that are looked at."""
_ITEMS_MAX: Final = 256
"""Challenges and parameters of one value; reading thousands takes milliseconds (K03)."""

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_END: Final = r"(?=[ \t]*+(?:,|\Z))"
_NEXT: Final = rf"(?=[ \t]++{_TOKEN}[ \t]*+=)"
_ENDS: Final = re.compile(_END)
_GAP: Final = re.compile(r"[ \t,]*+")
_PARAM: Final = re.compile(
    rf"({_TOKEN})[ \t]*+=[ \t]*+"
    rf"(?:\"((?:[^\"\\\x00-\x08\x0a-\x1f\x7f]++|\\[^\x00-\x08\x0a-\x1f\x7f])*+)\"(?:{_END}|{_NEXT})|"
    rf"([!#$%&'*+.^_`|~0-9A-Za-z/:-][!#$%&'*+.^_`|~0-9A-Za-z/:=-]*+){_END})"
)
_SCHEME: Final = re.compile(rf"({_TOKEN})(?:[ \t]++|{_END})")
_TOKEN68: Final = re.compile(rf"[0-9A-Za-z._~+/-]++=*+{_END}")
_ESCAPE: Final = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]*+")
_PLAINER: Final = str.maketrans({"—": "-", "–": "-", "‘": "'", "’": "'", "“": "'", "”": "'", '"': "'", "\\": "/"})


class AuthChallenge(NamedTuple):
    """One challenge: its scheme in lower case, and its parameters in their order, names in lower case."""

    scheme: str
    pairs: tuple[tuple[str, str], ...]

    def params(self) -> dict[str, str]:
        """The parameters; ``ValueError`` where a name comes twice (G10)."""
        made = dict(self.pairs)
        if len(made) != len(self.pairs):
            raise ValueError("a parameter comes twice")
        return made


def parse_challenges(value: str) -> list[AuthChallenge]:
    """All challenges of one header value; ``ValueError`` where it is none, or too large."""
    found, fault = _read(value)
    if fault:
        raise ValueError("not an authentication challenge")
    return found


def usable(values: Sequence[str], schemes: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Scheme and parameters of the challenges of these schemes (in lower case), in order; the unreadable are left out.

    Behind a fault nothing more is read of that value: where its next challenge would begin nobody can tell.
    """
    for value in values[:VALUES_MAX]:
        for challenge in _read(value)[0]:
            if challenge.scheme in schemes:
                with suppress(ValueError):
                    yield challenge.scheme, challenge.params()


def _read(value: str) -> tuple[list[AuthChallenge], bool]:
    """The challenges up to the end or to the first fault, and whether there is one."""
    found: list[AuthChallenge] = []
    at = count = 0
    while (at := _skip(value, at)) < len(value):
        head = _SCHEME.match(value, at)
        count += 1
        if head is None or count > _ITEMS_MAX or len(value) > HEADER_MAX:
            return found, True
        end = at = head.end()
        pairs: list[tuple[str, str]] = []
        while count <= _ITEMS_MAX and (param := _PARAM.match(value, at)) is not None:
            pairs.append((param[1].lower(), param[3] if param[2] is None else _unquoted(param[2])))
            end = param.end()
            at = _skip(value, end)
            count += 1
        if not pairs and (token := _TOKEN68.match(value, at)) is not None:
            end = token.end()
        if count > _ITEMS_MAX or not _ENDS.match(value, end):
            return found, True
        at = end
        found.append(AuthChallenge(head[1].lower(), tuple(pairs)))
    return found, False


def _skip(value: str, at: int) -> int:
    gap = _GAP.match(value, at)
    return gap.end() if gap else at


def _unquoted(text: str) -> str:
    """Without its escapes; ``\\uXXXX`` is how the scheme's first clients write what is no Latin-1."""
    if "\\" not in text:
        return text
    made = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2], text)
    return made.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def quoted(text: str) -> str:
    """A value in quotes. Raises ``ValueError`` for what can't stand in a header: only printable ASCII can (A14)."""
    if not _PRINTABLE.fullmatch(text):
        raise ValueError("only printable ASCII goes into a header")
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def plain(text: str) -> str:
    """A text for people as it may stand in a header, readable by clients that know no escapes (A14)."""
    text = " ".join(text.translate(_PLAINER).split())
    return "".join(character if " " <= character <= "~" else "?" for character in text)
