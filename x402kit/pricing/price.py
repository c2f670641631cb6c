"""What a call costs: a fixed price, or a function of the request.

A price gives a ``Quote``: the most that this call can cost, in dollars. Each offer states it in atomic units of its own
asset, rounded up, with the rail's surcharge added.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import parse_qsl

from ..errors import BadRequest, ConfigError, ServerError
from ..money import Usd, usd
from ..protocols.encoding import parse_json
from .usage import Delivered, Missing, Usage

__all__ = ["Call", "Dynamic", "Fixed", "Meter", "Price", "PriceFunction", "PriceLike", "Quote", "price_of"]

_BODY_NESTING = 128


class Meter(Protocol):
    """What one call costs by what it used, once that is known. ``charge`` (charge.py) asks it; it does no I/O."""

    @property
    def missing(self) -> Missing:
        """What a complete answer costs that states no usage."""
        ...

    def covers(self, usage: Usage) -> bool:
        """Whether a usage states the units that are priced; one that does not counts as missing."""
        ...

    def cost(self, usage: Usage) -> Usd:
        """The exact cost. It may be above the quote's ceiling: the ledger decides what becomes of that."""
        ...

    def estimate(self, delivered: Delivered) -> Usage | None:
        """What an answer without a usage used, by what was delivered and the prompt; None where nobody can say."""
        ...


@dataclass(frozen=True, slots=True)
class Quote:
    """The most that one call can cost. ``description`` is shown to the payer, and is display only.

    With a ``meter`` the call costs what it used; without one the ceiling is the price.
    """

    ceiling: Usd
    description: str = ""
    meter: Meter | None = field(default=None, repr=False, compare=False)


class _Once(Mapping[str, str]):
    """Values by name. Reading one that came more than once is ``BadRequest``: the app may take the other one."""

    def __init__(self, pairs: Iterable[tuple[str, str]], declared: Collection[str] | None = None) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)
        self._declared = declared

    def __getitem__(self, name: str) -> str:
        if self._declared is not None:
            name = name.lower()
            if name not in self._declared:
                raise ConfigError(f"the price reads the header {name!r}; name it: paid(..., headers=[{name!r}])")
        values = self._values[name]
        if len(values) > 1:
            raise BadRequest("not_priceable", detail=f"{name} came more than once")
        return values[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Call:
    """A request as a price sees it. ``body`` is empty unless the price asked for it, as is ``headers``."""

    def __init__(
        self,
        method: str,
        path: str,
        query_string: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        path_params: Mapping[str, Any] | None = None,
        body: bytes = b"",
        declared: Collection[str] = (),
    ) -> None:
        self.method = method
        self.path = path
        self.query_string = query_string
        self.path_params = path_params or {}
        self.body = body
        self._headers = headers
        self._declared = declared

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers that the price declares (``paid(price, headers=["x-size"])``), since a payment is bound to them.

        Reading another is a ``ConfigError``, reading one that came twice a ``BadRequest``.
        """
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._headers]
        return _Once([pair for pair in pairs if pair[0] in self._declared], self._declared)

    @cached_property
    def query(self) -> Mapping[str, str]:
        """The parameters in the URL. Reading one that came twice is ``BadRequest``; ``query_string`` has them all."""
        return _Once(parse_qsl(self.query_string.decode("latin-1"), keep_blank_values=True))

    @cached_property
    def json(self) -> Any:
        """The body as JSON. A body that is none, or holds a key twice (A12), is ``BadRequest``: nothing was settled."""
        try:
            return parse_json(self.body, floats=True, nesting=_BODY_NESTING)
        except ValueError as e:
            raise BadRequest("invalid_json", detail=str(e)) from e


class Price(Protocol):
    """A rule that prices a request."""

    @property
    def needs_body(self) -> bool:
        """Whether the body must be read, under its limit, before the price is known; it then binds the payment
        (I10).
        """
        ...

    async def quote(self, call: Call) -> Quote: ...

    # ``metered = False`` says that no quote has a meter: then a paid call is not priced again for its cost.


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same price for every call."""

    price: Usd
    needs_body: bool = field(default=False, init=False)
    metered: bool = field(default=False, init=False)
    _quote: Quote = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.price.value <= 0:
            raise ConfigError("a price must be above zero; leave the route unpriced to give it away")
        object.__setattr__(self, "_quote", Quote(self.price))

    async def quote(self, call: Call) -> Quote:
        return self._quote


PriceFunction = Callable[[Call], Any | Awaitable[Any]]
PriceLike = str | Usd | Price | PriceFunction
"""A price as sellers write it."""


@dataclass(frozen=True, slots=True)
class Dynamic:
    """A price worked out by a function of the call, sync or async, giving ``"$0.01"``, ``Usd`` or a ``Quote``.

    A ``LookupError``, ``TypeError``, ``ValueError``, ``AttributeError`` or ``ArithmeticError`` in it is the caller's
    fault: 400, nothing settled.
    """

    function: PriceFunction
    needs_body: bool = True
    metered: bool = False
    """Whether the function's quotes may have a meter."""

    async def quote(self, call: Call) -> Quote:
        try:
            made = self.function(call)
            if inspect.isawaitable(made):
                made = await made
        except ServerError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
            raise BadRequest("not_priceable", detail=type(e).__name__) from e
        quote = made if isinstance(made, Quote) else Quote(usd(made) if isinstance(made, str) else made)
        if type(quote.ceiling) is not Usd:
            raise ConfigError(f"a price function gives a price, not {quote.ceiling!r}")
        if quote.ceiling.value <= 0:
            raise BadRequest("not_priceable", detail="the price is not above zero")
        return quote


def price_of(value: Any, *, needs_body: bool | None = None, metered: bool = False) -> Price:
    """Read a price as sellers write it: ``"$0.01"``, ``usd("$0.01")``, a function, or anything with ``quote``.

    Raises ``ConfigError`` for the rest; a bare number is refused, since it could be dollars or atomic units (L06).
    """
    if isinstance(value, str):
        return Fixed(usd(value))
    if isinstance(value, Usd):
        return Fixed(value)
    if hasattr(value, "quote") and hasattr(value, "needs_body"):
        return value  # type: ignore[no-any-return]
    if callable(value):
        return Dynamic(value, True if needs_body is None else needs_body, metered)
    raise ConfigError(f'a price is "$0.01", usd("$0.01") or a function of the call, not {value!r}')
