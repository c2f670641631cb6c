"""``Accept-Payment``: which ways of paying a client wants, best first (wire.md 7.1). No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ..model import HEADER_MAX

__all__ = ["wanted"]

_RANGES_MAX: Final = 64
_NAME: Final = r"(\*|[A-Za-z][A-Za-z0-9:_-]*+)"
_RANGE: Final = re.compile(
    rf"{_NAME}/{_NAME}(?:[ \t]*+;[ \t]*+q=(0(?:\.[0-9]{{0,3}})?|1(?:\.0{{0,3}})?))?", re.IGNORECASE
)


def wanted(accept_payment: str | None, offered: Sequence[tuple[str, str]]) -> list[int]:
    """Indices of the offers, each a method and an intent, that the client takes: best first, ties as they were offered.

    Where the header is absent, malformed, or names none of them, it is all in their order: a client that can't say
    what it wants is still told what there is.
    """
    everything = list(range(len(offered)))
    if accept_payment is None or len(accept_payment) > HEADER_MAX:
        return everything
    items = [item.strip(" \t") for item in accept_payment.split(",", _RANGES_MAX)]
    ranges = [_RANGE.fullmatch(item) for item in items if item]
    if None in ranges:
        return everything
    named = [(found[1].lower(), found[2].lower(), _thousandths(found[3])) for found in ranges if found]
    weights = [_weight(method.lower(), intent.lower(), named) for method, intent in offered]
    return sorted((at for at in everything if weights[at]), key=lambda at: -weights[at]) or everything


def _thousandths(weight: str | None) -> int:
    if weight is None:
        return 1000
    whole, _, rest = weight.partition(".")
    return int(whole) * 1000 + int(rest.ljust(3, "0"))


def _weight(method: str, intent: str, ranges: Sequence[tuple[str, str, int]]) -> int:
    """That of the closest range: a name before a star, and the method's name before the intent's."""
    fitting = [
        ((to_method != "*", to_intent != "*"), weight)
        for to_method, to_intent, weight in ranges
        if to_method in ("*", method) and to_intent in ("*", intent)
    ]
    return max(fitting)[1] if fitting else 0
