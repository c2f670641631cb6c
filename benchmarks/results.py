"""The rows of the table: a figure, the floor that it must keep, and the same for the peer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Rounds", "Row", "table"]


@dataclass(frozen=True, slots=True)
class Row:
    """``value`` is what the floor speaks of; ``shown`` is how it is written, with what it was worked out from."""

    what: str
    value: float
    shown: str
    floor: float | None = None
    bound: Literal["<=", ">="] = "<="
    unit: str = ""
    peer: str = ""

    @property
    def kept(self) -> bool:
        """Whether the floor is kept; a row without one keeps it."""
        if self.floor is None:
            return True
        return self.value <= self.floor if self.bound == "<=" else self.value >= self.floor

    @property
    def limit(self) -> str:
        if self.floor is None:
            return ""
        return f"{'≤' if self.bound == '<=' else '≥'} {self.floor:,g}{self.unit}".replace(",", " ")


class Rounds:
    """CPU seconds a request of several cases, measured in turns; a ratio is the median of the rounds' own ratios."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, case: str, seconds: float) -> None:
        self._seconds.setdefault(case, []).append(seconds)

    def micros(self, case: str) -> float:
        """Median microseconds of a case."""
        return statistics.median(self._seconds[case]) * 1e6

    def ratio(self, case: str, base: str) -> float:
        """How many times ``base`` a case costs."""
        pairs = zip(self._seconds[case], self._seconds[base], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def shown(self, case: str, base: str) -> str:
        return f"{self.micros(case):,.1f} µs = {self.ratio(case, base):.2f} ×".replace(",", " ")


def table(rows: Sequence[Row]) -> str:
    """The rows as text, in columns."""
    head = ("", "x402kit", "floor", "", "x402")
    verdict: Callable[[Row], str] = lambda row: "" if row.floor is None else "kept" if row.kept else "MISSED"  # noqa: E731
    lines = [head, *((row.what, row.shown, row.limit, verdict(row), row.peer) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
