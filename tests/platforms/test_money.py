"""Amounts go from platforms to millionths and back without a loss."""

from __future__ import annotations

from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.platforms import reading
from server.platforms.interface import Malformed, from_micros, to_micros

MICROS = st.integers(min_value=-(10**17), max_value=10**17)


@given(MICROS)
def test_millionths_survive_both_ways(micros: int) -> None:
    amount = reading.money_micros(micros, "Cost", "RUB", False)
    assert amount.micros == micros == to_micros(from_micros(micros))
    assert reading.money_micros(str(micros), "Cost", "RUB", False) == amount
    assert reading.money_decimal(f"{amount.value:f}", "spent", "RUB", False).micros == micros


@given(MICROS, MICROS)
def test_sums_of_amounts_are_sums_of_millionths(one: int, other: int) -> None:
    assert to_micros(from_micros(one) + from_micros(other)) == one + other


@given(st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**9), max_value=10**9))
def test_what_is_finer_than_a_millionth_is_never_lost_silently(value: Decimal) -> None:
    if value == value.quantize(Decimal("0.000001")):
        assert from_micros(to_micros(value)) == value
    else:
        with pytest.raises(ValueError, match="six decimals"):
            to_micros(value)


@pytest.mark.parametrize("value", [None, True, 1.5, "", "x", "NaN", "1e4", "1_0", " 1", [], {}, "१", 10**40])
def test_what_is_no_amount_is_malformed(value: object) -> None:
    with pytest.raises(Malformed):
        reading.money_micros(value, "Cost", "RUB", False)
    with pytest.raises(Malformed):
        reading.money_decimal(value, "spent", "RUB", False)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.decimals(), st.lists, max_leaves=5))
def test_anything_read_is_believed_or_malformed(value: object) -> None:
    for read in (reading.count, reading.decimal, reading.day):
        with suppress(Malformed):
            assert read(value, "field") is not None
