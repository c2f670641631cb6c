"""Prices of single units, as integers so fine that every price a seller can write is exact: 10**-24 dollars.

``"$0.50/M"`` has at most 18 decimals and is for a million, so that 24 decimals hold it for one token. Costs are sums of
products of integers, and are rounded once, up, where a step or an asset's atomic unit asks for it (E08).
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, Inexact
from typing import Final

from ..errors import ConfigError
from ..money import Usd, usd

__all__ = ["dollars", "fine", "rate", "round_up"]

_DECIMALS: Final = 24
_EXACT: Final = Context(prec=200, traps=[Inexact])
_RATE: Final = re.compile(r"(\$[0-9.]{1,40})/(M|K|token)\Z", re.ASCII)
_TOKENS: Final = {"M": 10**6, "K": 10**3, "token": 1}


def fine(amount: str | Usd) -> int:
    """An amount of dollars in units of 10**-24. ``ConfigError`` for more decimals, for less than nothing, bad text."""
    value = (amount if isinstance(amount, Usd) else usd(amount)).value.scaleb(_DECIMALS, _EXACT)
    if value != value.to_integral_value() or value < 0:
        raise ConfigError(f"{amount} is no price: below zero, or more than {_DECIMALS} decimals")
    return int(value)


def dollars(amount: int) -> Usd:
    """The inverse of ``fine``, exact."""
    return Usd(Decimal(amount).scaleb(-_DECIMALS, _EXACT).normalize(_EXACT))


def rate(text: object) -> int:
    """The price of one token in units of 10**-24 dollars, from ``"$0.50/M"``, ``"$0.0005/K"``, ``"$0.000001/token"``.

    Raises ``ConfigError``.
    """
    found = _RATE.match(text) if isinstance(text, str) else None
    if found is None:
        raise ConfigError(f'a rate is written like "$0.50/M", "$0.0005/K" or "$0.000001/token", not {text!r}')
    return fine(found[1]) // _TOKENS[found[2]]


def round_up(amount: int, step: int) -> int:
    """To a multiple of ``step``; as it is where that is 0."""
    return -(-amount // step) * step if step else amount
