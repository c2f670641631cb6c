"""Prices for each token. The quote is the most that the request can cost; the cost is what the answer's usage says."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, get_args

from ..errors import BadRequest, ConfigError
from ..money import Usd
from .price import Call, Quote
from .prompt import body_of, outputs, prompt_bytes
from .rates import dollars, fine, rate, round_up
from .usage import COUNT_MAX, Delivered, Missing, Usage

__all__ = ["Tokens"]

_CLASSES: Final = ("input", "output", "cached", "cache_write")


class _Row(NamedTuple):
    """The rates of one tier, in 10**-24 dollars a token; for prompts of more than ``above`` tokens."""

    above: int
    input: int
    output: int
    cached: int
    cache_write: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokens:
    """A price by tokens: ceiling from the body, cost from the usage. For JSON bodies like OpenAI's or Anthropic's.

    Rates are text such as ``"$0.50/M"``; ``cached`` and ``cache_write`` are as ``input`` unless given. In
    ``tiers=[(200_000, {"input": "$1/M"})]`` a prompt of more tokens has the tier's rates for all its tokens, and the
    answer too. ``minimum`` is the least that a call costs which used anything, ``reserve`` the least ceiling, ``step``
    what a cost is rounded up to. ``max_output`` is the model's cap, ``default_output`` the one of a caller who states
    none: the app must hold its answers to it. ``prompt_tokens`` counts a call's prompt exactly, for the ceiling and the
    estimate; else the body bounds it (prompt.py): ``overhead`` tokens more for what a template adds, ``per_part`` for
    each image or file, by type or for all (none: 400). ``bytes_per_token`` is for estimates only, ``missing`` for
    complete answers without usage.

    Raises ``ConfigError`` where it is made; ``BadRequest`` for a request that it can't price, and no money moves.
    """

    input: str = "$0/M"
    output: str = "$0/M"
    cached: str | None = None
    cache_write: str | None = None
    max_output: int = 16_000
    default_output: int | None = None
    minimum: str | Usd = "$0"
    reserve: str | Usd = "$0"
    step: str | Usd | None = None
    tiers: Sequence[tuple[int, Mapping[str, str]]] = ()
    missing: Missing = "estimate"
    prompt_tokens: Callable[[Call], int | Awaitable[int]] | None = None
    overhead: int = 64
    per_part: int | Mapping[str, int] | None = None
    bytes_per_token: int = 3
    needs_body: bool = field(default=True, init=False)
    _rows: tuple[_Row, ...] = field(init=False, repr=False)
    _least: tuple[int, int, int] = field(init=False, repr=False)
    _default: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_counts()
        base = {name: getattr(self, name) for name in _CLASSES if getattr(self, name) is not None}
        rows = [_row(0, base)]
        for above, rates in self.tiers:
            if type(above) is not int or above <= rows[-1].above:
                raise ConfigError(f"tiers start above a number of tokens, in rising order, not {above!r}")
            if unknown := set(rates) - set(_CLASSES):
                raise ConfigError(f"a tier has rates for {', '.join(_CLASSES)}, not {sorted(unknown)[0]!r}")
            rows.append(_row(above, {**base, **rates}))
        least = (fine(self.minimum), fine(self.reserve), fine(self.step) if self.step is not None else 0)
        if not any(map(any, (row[1:] for row in rows))) and not least[0]:
            raise ConfigError("a price must be above zero; leave the route unpriced to give it away")
        default = self.max_output if self.default_output is None else self.default_output
        for name, value in (("_rows", tuple(rows)), ("_least", least), ("_default", default)):
            object.__setattr__(self, name, value)

    def _check_counts(self) -> None:
        bounds = self.per_part.values() if isinstance(self.per_part, Mapping) else (self.per_part or 0,)
        counts = [self.max_output, self.default_output or 0, self.overhead, *bounds]
        if not all(type(count) is int and 0 <= count <= COUNT_MAX for count in counts):
            raise ConfigError("max_output, default_output, overhead and per_part are whole numbers of tokens")
        if type(self.bytes_per_token) is not int or self.bytes_per_token < 1:
            raise ConfigError("bytes_per_token is a whole number from 1")
        if (self.default_output or 0) > self.max_output:
            raise ConfigError("default_output is above max_output")
        if self.missing not in get_args(Missing):
            raise ConfigError(f"missing is one of {', '.join(get_args(Missing))}, not {self.missing!r}")

    async def quote(self, call: Call) -> Quote:
        body = body_of(call)
        most = outputs(body, self._default, self.max_output)
        if self.prompt_tokens is not None:
            bound = likely = await self._counted(call)
        else:
            size, others = prompt_bytes(call, body, self.per_part)
            bound = size + others + self.overhead
            likely = -(-size // self.bytes_per_token) + others
        minimum, reserve, step = self._least
        ceiling = max(round_up(max(self._dearest(bound, most), minimum), step), reserve)
        if not ceiling:
            raise BadRequest("not_priceable", detail="the price is not above zero")
        described = f"at most {bound} tokens in, {most} out"
        return Quote(dollars(ceiling), described, _TokenMeter(self, likely, most))

    async def _counted(self, call: Call) -> int:
        assert self.prompt_tokens is not None
        try:
            made = self.prompt_tokens(call)
            count = await made if inspect.isawaitable(made) else made
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
            raise BadRequest("not_priceable", detail=type(e).__name__) from e
        if type(count) is not int or not 0 <= count <= COUNT_MAX:
            raise ConfigError(f"prompt_tokens gives a number of tokens, not {count!r}")
        return count

    def _dearest(self, bound: int, most: int) -> int:
        """Of all prompts up to ``bound`` tokens: a tier may be cheaper than the one below it, and a cache dearer."""
        reached = [row for row in self._rows if row.above < bound or not row.above]
        ends = [min(bound, row.above) for row in reached[1:]] + [bound]
        return max(
            end * max(row.input, row.cached, row.cache_write) + most * row.output
            for row, end in zip(reached, ends, strict=True)
        )

    def cost(self, usage: Usage) -> Usd:
        """What a usage costs, exactly; one of no tokens at all costs nothing (H04), any other at least the minimum."""
        prompt = usage.prompt
        if not prompt and not usage.output:
            return _NOTHING
        row = self._rows[0]
        for tier in self._rows[1:]:
            if prompt > tier.above:
                row = tier
        cost = usage.input * row.input + usage.output * row.output
        cost += usage.cached * row.cached + usage.cache_write * row.cache_write
        minimum, _, step = self._least
        return dollars(round_up(max(cost, minimum), step))


_NOTHING: Final = dollars(0)


def _row(above: int, rates: Mapping[str, str]) -> _Row:
    base = rate(rates["input"])
    cached, cache_write = (rate(rates[name]) if name in rates else base for name in ("cached", "cache_write"))
    return _Row(above, base, rate(rates["output"]), cached, cache_write)


class _TokenMeter(NamedTuple):
    """The ``Meter`` of one call: its price, its prompt as the estimate takes it, the most it may have as answer."""

    price: Tokens
    prompt: int
    most: int

    @property
    def missing(self) -> Missing:
        return self.price.missing

    def covers(self, usage: Usage) -> bool:
        return usage.has_tokens

    def cost(self, usage: Usage) -> Usd:
        return self.price.cost(usage)

    def estimate(self, delivered: Delivered) -> Usage:
        written = max(delivered.events, -(-delivered.bytes // self.price.bytes_per_token))
        prompt = delivered.prompt
        if prompt is None or not prompt.prompt:  # a start may state 0 for what is not counted yet
            prompt = Usage(self.prompt)
        return prompt._replace(output=min(written, self.most), reasoning=0)
