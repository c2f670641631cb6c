"""What an answer costs by the way it ended: the table of docs/metering.md, cell by cell."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path

import pytest

from x402kit import Usd, usd
from x402kit.pricing import Delivered, End, Meter, Quote, Usage, charge
from x402kit.pricing.usage import COUNT_MAX, Missing

ALL = list(End)
BEFORE = [End.FAILED_BEFORE, End.LEFT_BEFORE, End.UNCHARGED]
MISSING: list[Missing] = ["estimate", "ceiling", "nothing"]
BROKEN_OFF = [End.STALLED, End.FAILED_MIDWAY, End.CUT]


class Dollars:
    """A dollar a token, and an estimate of one token an event."""

    def __init__(self, missing: Missing = "estimate", can_estimate: bool = True) -> None:
        self.missing: Missing = missing
        self._can_estimate = can_estimate

    def covers(self, usage: Usage) -> bool:
        return usage.has_tokens

    def cost(self, usage: Usage) -> Usd:
        return Usd(Decimal(usage.input + usage.output))

    def estimate(self, delivered: Delivered) -> Usage | None:
        return Usage(2, delivered.events) if self._can_estimate else None


CEILING = usd("$10")
PART = Delivered(12, 3)


def cost(end: End, usage: Usage | None = None, meter: Meter | None = None, delivered: Delivered = PART) -> str:
    return str(charge(end, usage, delivered, Quote(CEILING, "", meter)))


@pytest.mark.parametrize("end", ALL)
def test_H06_H07_a_fixed_price_is_due_whole_unless_the_seller_broke_it_off(end: End) -> None:
    due = "$10" if end in (End.COMPLETE, End.LEFT_MIDWAY) else "$0"
    assert cost(end) == due
    assert cost(end, Usage(1, 1)) == due


@pytest.mark.parametrize("end", ALL)
def test_H02_H03_stated_usage_is_what_the_call_costs(end: End) -> None:
    due = "$0" if end in (End.FAILED_BEFORE, End.UNCHARGED) else "$5"
    for missing in MISSING:
        assert cost(end, Usage(4, 1), Dollars(missing)) == due


@pytest.mark.parametrize("end", ALL)
def test_H04_an_explicit_zero_is_zero(end: End) -> None:
    for missing in MISSING:
        assert cost(end, Usage(), Dollars(missing)) == "$0"


@pytest.mark.parametrize("end", BEFORE)
def test_H08_H09_before_the_first_byte_nothing_is_due(end: End) -> None:
    for missing in MISSING:
        assert cost(end, None, Dollars(missing)) == "$0"


def test_H05_a_complete_answer_without_usage_costs_what_the_price_says() -> None:
    assert cost(End.COMPLETE, None, Dollars("estimate")) == "$5"
    assert cost(End.COMPLETE, None, Dollars("ceiling")) == "$10"
    assert cost(End.COMPLETE, None, Dollars("nothing")) == "$0"
    assert cost(End.COMPLETE, None, Dollars("estimate", can_estimate=False)) == "$10"


@pytest.mark.parametrize("end", [End.LEFT_MIDWAY, *BROKEN_OFF])
def test_H03_H06_H07_an_answer_that_ends_midway_costs_the_estimate(end: End) -> None:
    for missing in MISSING:
        assert cost(end, None, Dollars(missing)) == "$5"
        blind = cost(end, None, Dollars(missing, can_estimate=False))
        assert blind == ("$10" if end is End.LEFT_MIDWAY else "$0")


@pytest.mark.parametrize("end", ALL)
def test_an_estimate_is_never_above_the_ceiling(end: End) -> None:
    assert charge(end, None, Delivered(10**9, 10**9), Quote(CEILING, "", Dollars())) <= CEILING


def test_E04_B17_a_stated_cost_above_the_ceiling_is_told_exactly() -> None:
    assert cost(End.COMPLETE, Usage(500), Dollars()) == "$500"


@pytest.mark.parametrize(
    "absurd",
    [
        Usage(-1),
        Usage(COUNT_MAX + 1),
        Usage(1.5),  # type: ignore[arg-type]
        Usage(True),
        Usage(1, images=-1),
        Usage(1, milliseconds=2**60),
        Usage(1, extra={"pages": -1}),
        Usage(1, extra={"pages": 0.5}),  # type: ignore[dict-item]
        Usage(1, extra={"pages": Decimal("NaN")}),
    ],
)
def test_H05_an_absurd_usage_is_none(absurd: Usage) -> None:
    assert absurd.absurd
    assert cost(End.COMPLETE, absurd, Dollars("nothing")) == "$0"
    assert cost(End.COMPLETE, absurd, Dollars("ceiling")) == "$10"
    assert cost(End.LEFT_MIDWAY, absurd, Dollars()) == "$5"
    assert cost(End.LEFT_BEFORE, absurd, Dollars()) == "$0"


def test_a_usage_of_other_units_is_none() -> None:
    assert cost(End.COMPLETE, Usage(images=2), Dollars("ceiling")) == "$10"
    assert cost(End.COMPLETE, Usage(1, images=2), Dollars("ceiling")) == "$1"


def test_a_cost_below_zero_is_zero() -> None:
    class Generous(Dollars):
        def cost(self, usage: Usage) -> Usd:
            return usd("$0") - usd("$1")

    for end in ALL:
        for usage in (None, Usage(1)):
            assert cost(end, usage, Generous()) == "$0"


def test_an_absurd_estimate_is_none() -> None:
    class Wild(Dollars):
        def estimate(self, delivered: Delivered) -> Usage | None:
            return Usage(-5)

    assert cost(End.COMPLETE, None, Wild()) == "$10"
    assert cost(End.FAILED_MIDWAY, None, Wild()) == "$0"


def test_a_quote_is_the_same_with_and_without_its_meter() -> None:
    assert Quote(CEILING) == Quote(CEILING, "", Dollars())
    assert "Dollars" not in repr(Quote(CEILING, "", Dollars()))


def test_the_table_in_the_documentation_is_the_codes() -> None:
    page = (Path(__file__).parent.parent / "docs" / "metering.md").read_text()
    rows = [line for line in str(sys.modules[charge.__module__].__doc__).splitlines() if line.startswith("|")]
    assert len(rows) == 7
    assert "\n".join(rows) in page
    assert all(any(end.name in row.split("|")[1] for row in rows) for end in End)
