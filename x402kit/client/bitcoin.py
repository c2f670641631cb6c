"""The price at which bitcoin counts against caps in dollars."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation
from typing import Final

from ..errors import ConfigError, PolicyRefused
from ..money import parse_units
from .policy import MICRO

__all__ = ["BtcUsd", "CoinPrice", "micros_at"]

BtcUsd = str | Decimal | Callable[[], str | Decimal]

_PRICE_DECIMALS: Final = 8
_STEP: Final = Decimal("1e-8")
_MSAT_DECIMALS: Final = 11


class CoinPrice:
    """Dollars for a bitcoin: text such as ``"97000"``, a ``Decimal``, or what returns either and may block.

    None counts nothing at all, and so is only for a payer without caps. Raises ``ConfigError``.
    """

    def __init__(self, given: BtcUsd | None) -> None:
        self._given = given
        if given is not None and not callable(given):
            try:
                _read(given)
            except (ValueError, InvalidOperation) as e:
                raise ConfigError(f"btc_usd is dollars for one bitcoin, such as '97000': {e}") from None

    def read(self) -> int:
        """The price now, in units of 1e-8 dollars; 0 where nothing is counted. Raises ``PolicyRefused``."""
        if self._given is None:
            return 0
        try:
            return _read(self._given() if callable(self._given) else self._given)
        except Exception as error:
            raise PolicyRefused("btc_usd gave no price of bitcoin; nothing was paid") from error


def _read(price: str | Decimal) -> int:
    if not isinstance(price, str) and type(price) is not Decimal:
        raise ValueError("neither text nor a Decimal")
    if isinstance(price, Decimal):
        price = format(price.quantize(_STEP, ROUND_CEILING, Context(prec=60)), "f")
    units = parse_units(price, _PRICE_DECIMALS)
    if units <= 0:
        raise ValueError("not above zero")
    return units


def micros_at(price: int, amount: int) -> int:
    """Msat in millionths of a dollar at such a price, rounded up."""
    unit: int = 10 ** (_MSAT_DECIMALS + _PRICE_DECIMALS - MICRO)
    return -(-amount * price // unit)
