"""Amounts: strict digits in, exact decimals between, ``int`` atomic units out.

The rule for digits from outside (A13): ASCII ``0`` or a non-zero digit and up to 77 more, nothing around them. A
conversion to atomic units always rounds up, so that a charge never falls short of its price.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, Inexact, InvalidOperation, localcontext
from fractions import Fraction
from typing import NamedTuple

from .errors import ConfigError

__all__ = [
    "MAX_AMOUNT",
    "UINT256_MAX",
    "Asset",
    "Pegged",
    "Usd",
    "Worth",
    "format_units",
    "parse_atomic",
    "parse_units",
    "usd",
]

UINT256_MAX = 2**256 - 1
MAX_AMOUNT = 2**63 - 1
"""The largest amount that a claim or a ledger row holds (E09)."""

_DIGITS = re.compile(r"(?:0|[1-9][0-9]{0,77})\Z", re.ASCII)
_USD = re.compile(r"\$(?:0|[1-9][0-9]{0,11})(?:\.[0-9]{1,18})?\Z", re.ASCII)
_UNITS = re.compile(r"(?:0|[1-9][0-9]{0,18})(?:\.[0-9]{1,18})?\Z", re.ASCII)
_EXACT = Context(prec=120, traps=[Inexact, InvalidOperation])
_ROUNDING = Context(prec=120)


def parse_atomic(text: object) -> int:
    """Read an amount in atomic units written as a decimal string.

    Raises ``ValueError`` for anything but the digits of A13, and above uint256 (B03).
    """
    if not isinstance(text, str) or not _DIGITS.match(text):
        raise ValueError("not a plain decimal number")
    value = int(text)
    if value > UINT256_MAX:
        raise ValueError("above uint256")
    return value


@dataclass(frozen=True, slots=True)
class Asset:
    """A token on a network: ``address`` as on the wire, ``decimals`` and domain from our table, never theirs."""

    network: str
    address: str
    symbol: str
    decimals: int
    name: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Usd:
    """An exact amount of US dollars, used for prices only; money itself is ``int`` atomic units.

    Raises ``ConfigError`` for anything but a finite ``Decimal``.
    """

    value: Decimal

    def __post_init__(self) -> None:
        if type(self.value) is not Decimal or not self.value.is_finite():
            raise ConfigError(f"an amount of dollars is a finite Decimal, not {self.value!r}")

    def __add__(self, other: Usd) -> Usd:
        with localcontext(_EXACT):
            return Usd(self.value + other.value)

    def __sub__(self, other: Usd) -> Usd:
        with localcontext(_EXACT):
            return Usd(self.value - other.value)

    def __mul__(self, factor: int | Decimal) -> Usd:
        with localcontext(_EXACT):
            return Usd(self.value * factor)

    __rmul__ = __mul__

    def __str__(self) -> str:
        return f"${self.value:f}"

    def atomic(self, decimals: int) -> int:
        """Atomic units of a dollar-pegged asset with ``decimals``, rounded up."""
        with localcontext(_ROUNDING):
            return int(self.value.scaleb(decimals).to_integral_value(ROUND_CEILING))


class Pegged(NamedTuple):
    """The rate of an asset that is a dollar, with so many decimals."""

    decimals: int

    def atomic(self, amount: Usd) -> int:
        """Atomic units for an amount of dollars, rounded up."""
        return amount.atomic(self.decimals)


class Worth(NamedTuple):
    """A rate of any other asset: ``units`` atomic units are worth ``usd``, which is above zero."""

    units: int
    usd: Usd

    def atomic(self, amount: Usd) -> int:
        """Atomic units for an amount of dollars, rounded up."""
        return math.ceil(Fraction(amount.value) * self.units / Fraction(self.usd.value))


def _is_price(text: object) -> bool:
    return isinstance(text, str) and _USD.match(text) is not None


def usd(text: str) -> Usd:
    """Read a price such as ``"$0.01"``.

    The dollar sign is required, so that ``"10"`` can't be taken for ten dollars or ten atomic units (L06). Raises
    ``ConfigError``.
    """
    if not _is_price(text):
        raise ConfigError(f'a price is written like "$0.01", not {text!r}')
    return Usd(Decimal(text[1:]))


def parse_units(text: object, decimals: int) -> int:
    """Read a decimal amount of whole units such as ``"1.25"`` as atomic units, exactly; ``ValueError`` otherwise."""
    if not isinstance(text, str) or not _UNITS.match(text):
        raise ValueError("not a plain decimal amount")
    scaled = Decimal(text).scaleb(decimals, _EXACT)
    if scaled != scaled.to_integral_value(ROUND_FLOOR):
        raise ValueError(f"more than {decimals} decimals")
    return int(scaled)


def format_units(amount: int, decimals: int) -> str:
    """Write atomic units as whole units with all their decimals, e.g. 13938 and 6 as ``"0.013938"``."""
    sign, digits = ("-", -amount) if amount < 0 else ("", amount)
    text = str(digits).rjust(decimals + 1, "0")
    return sign + (f"{text[:-decimals]}.{text[-decimals:]}" if decimals else text)
