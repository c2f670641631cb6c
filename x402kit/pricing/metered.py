"""A price by two functions of the seller's own: the most a call can cost, and what it did cost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

from ..errors import ConfigError
from ..money import Usd, usd
from .price import Call, Dynamic, PriceFunction, Quote
from .usage import Delivered, Missing, Usage

__all__ = ["Metered"]

log = logging.getLogger("x402kit.pricing")

CostFunction = Callable[[Call, Usage], Any]
EstimateFunction = Callable[[Call, Delivered], Usage]
_FAULTS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, ConfigError)


class Metered:
    """A price by ``quote(call)``, the ceiling, and ``cost(call, usage)``; both give ``"$0.01"`` or ``Usd``.

    ``quote`` may be async, and what fails in it is the caller's fault, as with ``Dynamic``. What fails in ``cost`` is
    logged, and the call costs its ceiling. ``estimate(call, delivered)`` gives the usage of an answer that states none;
    without it the ceiling is charged, or with ``missing="nothing"`` nothing. Raises ``ConfigError``.
    """

    def __init__(
        self,
        *,
        quote: PriceFunction,
        cost: CostFunction,
        estimate: EstimateFunction | None = None,
        missing: Missing | None = None,
        needs_body: bool = True,
    ) -> None:
        self.missing: Missing = missing or ("estimate" if estimate else "ceiling")
        if self.missing not in get_args(Missing) or (self.missing == "estimate" and estimate is None):
            raise ConfigError(f"missing is one of {', '.join(get_args(Missing))}; an estimate needs its function")
        self.needs_body = needs_body
        self.cost = cost
        self.estimate = estimate
        self._ceiling = Dynamic(quote, needs_body)

    async def quote(self, call: Call) -> Quote:
        made = await self._ceiling.quote(call)
        return Quote(made.ceiling, made.description, _CallMeter(self, call, made.ceiling))


class _CallMeter(NamedTuple):
    """The ``Meter`` of one call."""

    price: Metered
    call: Call
    ceiling: Usd

    @property
    def missing(self) -> Missing:
        return self.price.missing

    def covers(self, usage: Usage) -> bool:
        return True

    def cost(self, usage: Usage) -> Usd:
        try:
            made = self.price.cost(self.call, usage)
            cost = usd(made) if isinstance(made, str) else made
            if type(cost) is not Usd:
                raise TypeError(f"a cost function gives a price, not {cost!r}")
        except _FAULTS:
            log.exception("the cost of a call could not be worked out; it costs its ceiling, %s", self.ceiling)
            return self.ceiling
        return cost

    def estimate(self, delivered: Delivered) -> Usage | None:
        if self.price.estimate is None:
            return None
        try:
            return self.price.estimate(self.call, delivered)
        except _FAULTS:
            log.exception("the usage of a call could not be estimated")
            return None
