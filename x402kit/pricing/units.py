"""Prices for each image, second or request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Any, NamedTuple, get_args

from ..errors import BadRequest, ConfigError
from ..money import Usd, parse_units
from .price import Call, Quote
from .prompt import body_of
from .rates import dollars, fine
from .usage import Delivered, Missing, Usage

__all__ = ["PerImage", "PerRequest", "PerSecond"]


class _UnitMeter(NamedTuple):
    """The ``Meter`` of one call that is priced by a count: the field of ``Usage`` that has it, and the unit's price."""

    unit: str
    price: int
    missing: Missing

    def covers(self, usage: Usage) -> bool:
        return getattr(usage, self.unit) is not None

    def cost(self, usage: Usage) -> Usd:
        return dollars((getattr(usage, self.unit) or 0) * self.price)

    def estimate(self, delivered: Delivered) -> Usage | None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PerImage:
    """A price for each image by its size, as the JSON body names it: ``sizes={"1024x1024": "$0.04"}``.

    ``default`` is the size of a body that names none. Where quality or the like decides too, ``by=("size", "quality")``
    and sizes such as ``"1024x1024/hd"``. The answer costs the ceiling, unless the app reports how many images it made:
    ``{"images": 2}``. Raises ``ConfigError`` where it is made; ``BadRequest`` for a size without a price.
    """

    sizes: Mapping[str, str | Usd]
    default: str | None = None
    count: str = "n"
    by: Sequence[str] = ("size",)
    max_count: int = 10
    missing: Missing = "ceiling"
    needs_body: bool = field(default=True, init=False)
    _prices: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_prices", {size: _above_zero(price) for size, price in self.sizes.items()})
        _check_missing(self.missing)
        if isinstance(self.by, str) or any(size.count("/") != len(self.by) - 1 for size in self.sizes):
            raise ConfigError(f"a size has one name for each of {self.by!r}, with / between")
        if not self.sizes or (self.default is not None and self.default not in self.sizes):
            raise ConfigError(f"the default size {self.default!r} has no price")
        if type(self.max_count) is not int or self.max_count < 1:
            raise ConfigError("max_count is a whole number from 1")

    async def quote(self, call: Call) -> Quote:
        body = body_of(call, *self.by, self.count)
        standard = self.default.split("/") if self.default is not None else [""] * len(self.by)
        named = [body.get(name) for name in self.by]
        size = "/".join(str(other if name is None else name) for name, other in zip(named, standard, strict=True))
        price = self._prices.get(size)
        if price is None:
            raise BadRequest("invalid_request", detail=f"{'/'.join(self.by)} must be one of {', '.join(self._prices)}")
        count = body.get(self.count)
        count = 1 if count is None else count
        if type(count) is not int or not 1 <= count <= self.max_count:
            raise BadRequest(
                "invalid_request", detail=f"{self.count} must be a whole number from 1 to {self.max_count}"
            )
        return Quote(dollars(count * price), f"{count} x {size}", _UnitMeter("images", price, self.missing))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PerSecond:
    """A price for each second, e.g. of video, as the JSON body asks for: ``PerSecond(rate="$0.10", max_seconds=60)``.

    A body without the field is priced at ``default`` seconds, or at ``max_seconds``. The answer costs the ceiling,
    unless it or the app states the seconds. Counted in milliseconds, rounded up. Errors as with ``PerImage``.
    """

    rate: str | Usd
    max_seconds: int
    default: int | None = None
    missing: Missing = "ceiling"
    needs_body: bool = field(default=True, init=False)
    _price: int = field(init=False, repr=False)
    field: str = "seconds"  # last, since in the class body it hides the function of that name

    def __post_init__(self) -> None:
        price, rest = divmod(_above_zero(self.rate), 1000)
        if rest:
            raise ConfigError(f"{self.rate} a second has too many decimals")
        object.__setattr__(self, "_price", price)
        _check_missing(self.missing)
        for seconds in (self.max_seconds, self.max_seconds if self.default is None else self.default):
            if type(seconds) is not int or not 1 <= seconds <= self.max_seconds:
                raise ConfigError("max_seconds and default are whole numbers from 1, default the smaller one")

    async def quote(self, call: Call) -> Quote:
        stated = body_of(call, self.field).get(self.field)
        if stated is None:
            stated = self.max_seconds if self.default is None else self.default
        count = _milliseconds(stated)
        if not 1 <= count <= self.max_seconds * 1000:
            raise BadRequest("invalid_request", detail=f"{self.field} must be a number up to {self.max_seconds}")
        described = f"{Decimal(count).scaleb(-3).normalize():f} s"
        return Quote(dollars(count * self._price), described, _UnitMeter("milliseconds", self._price, self.missing))


def _milliseconds(seconds: Any) -> int:
    """Of a number, or one in text; 0 for anything else. A float is taken as the decimal that it was written as."""
    if type(seconds) is str:
        try:
            return parse_units(seconds, 3)
        except ValueError:
            return 0
    if type(seconds) is float:
        value = Decimal(repr(seconds))
        return int((value * 1000).to_integral_value(ROUND_CEILING)) if value.is_finite() else 0
    return seconds * 1000 if type(seconds) is int else 0


@dataclass(frozen=True, slots=True, eq=False)
class PerRequest:
    """The same price for every call of a model; as ``Fixed``, written in text."""

    price: str | Usd
    needs_body: bool = field(default=False, init=False)
    _quote: Quote = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_quote", Quote(dollars(_above_zero(self.price))))

    async def quote(self, call: Call) -> Quote:
        return self._quote


def _above_zero(price: str | Usd) -> int:
    made = fine(price)
    if not made:
        raise ConfigError("a price must be above zero; leave the route unpriced to give it away")
    return made


def _check_missing(missing: Missing) -> None:
    if missing not in get_args(Missing):
        raise ConfigError(f"missing is one of {', '.join(get_args(Missing))}, not {missing!r}")
