"""Amounts: strict digits, exact dollars, and a rounding that never charges too little."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402kit import Usd, usd
from x402kit.errors import ConfigError
from x402kit.money import UINT256_MAX, format_units, parse_atomic, parse_units

LOOKALIKES = ["1_000", "１０００", "٣", " 10\n", "10\n", "+5", "-0", "-5", "0010", "0x10", "", "1e3", "1.0", "²", "1 0"]


@pytest.mark.parametrize("text", LOOKALIKES)
def test_A13_only_plain_digits_are_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="plain decimal"):
        parse_atomic(text)


@pytest.mark.parametrize("value", [10, 10.0, None, True, b"10", ["10"]])
def test_A13_only_text_is_read(value: object) -> None:
    with pytest.raises(ValueError, match="plain decimal"):
        parse_atomic(value)


def test_B03_the_edge_of_uint256() -> None:
    assert parse_atomic(str(UINT256_MAX)) == UINT256_MAX
    for text in (str(UINT256_MAX + 1), "9" * 78, "1" * 5000):
        with pytest.raises(ValueError, match=r"uint256|plain decimal"):
            parse_atomic(text)


@given(st.integers(0, UINT256_MAX))
def test_every_uint256_is_read(value: int) -> None:
    assert parse_atomic(str(value)) == value


@pytest.mark.parametrize(
    "text", ["10", "0.01", "$", "$1.", "$.5", "$01", "$1e3", "$-1", "$ 1", "$1\n", "€1", "$1_0", "$１"]
)
def test_L06_a_price_needs_its_dollar_sign_and_plain_digits(text: str) -> None:
    with pytest.raises(ConfigError, match="price is written like"):
        usd(text)


def test_L06_a_number_is_no_price() -> None:
    with pytest.raises(ConfigError, match="price is written like"):
        usd(10)  # type: ignore[arg-type]  # what a careless seller writes


@pytest.mark.parametrize("value", [0.01, 1, "1", None, Decimal("NaN"), Decimal("Infinity")])
def test_dollars_are_a_finite_decimal(value: object) -> None:
    with pytest.raises(ConfigError, match="finite Decimal"):
        Usd(value)  # type: ignore[arg-type]  # what a careless seller writes


def test_no_float_touches_a_price() -> None:
    with pytest.raises(TypeError):
        usd("$0.01") * 0.5  # type: ignore[operator]
    assert 3 * usd("$0.04") == usd("$0.12") == usd("$0.04") * Decimal(3)
    assert usd("$0.3") - usd("$0.1") == usd("$0.2")
    assert usd("$0.1") + usd("$0.2") == usd("$0.3")
    assert usd("$0.1") < usd("$0.2")
    assert str(usd("$0.10")) == "$0.10"


def test_prices_are_exact_whatever_the_callers_context() -> None:
    with localcontext() as context:
        context.prec = 2
        assert (usd("$1.23456789") + usd("$0.00000001")).value == Decimal("1.23456790")
        assert usd("$1.23456789").atomic(8) == 123456789


@given(st.decimals(0, 10**9, places=9, allow_nan=False), st.integers(0, 18))
def test_E08_a_charge_is_rounded_up_and_by_less_than_one_unit(value: Decimal, decimals: int) -> None:
    exact = Fraction(value) * 10**decimals
    charged = Usd(value).atomic(decimals)
    assert exact <= charged < exact + 1


def test_units_are_read_exactly_or_not_at_all() -> None:
    assert parse_units("1.25", 6) == 1_250_000
    assert parse_units("0.000001", 6) == 1
    for text in ("1.0000001", "-1", "1,5", ".5", "1.", "01", 1.5, "1e3"):
        with pytest.raises(ValueError, match="decimal"):
            parse_units(text, 6)


@given(st.integers(0, 10**24), st.integers(1, 18))
def test_units_are_written_with_all_their_decimals(amount: int, decimals: int) -> None:
    text = format_units(amount, decimals)
    assert Fraction(text) == Fraction(amount, 10**decimals)
    assert len(text.partition(".")[2]) == decimals


def test_units_without_decimals_and_below_zero() -> None:
    assert format_units(13938, 6) == "0.013938"
    assert format_units(-13938, 6) == "-0.013938"
    assert format_units(42, 0) == "42"
