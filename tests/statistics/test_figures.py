"""Ratios against exact fractions."""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.statistics import ratios
from server.statistics.figures import quotient, ratios_field, to_message
from storage.clickhouse.metrics import Figures

COUNTS = st.integers(0, 2**63)
PRIMES = {2, 5}


def ends(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in PRIMES:
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


@given(st.integers(-(10**30), 10**30), st.integers(-(10**24), 10**24).filter(bool))
def test_quotients_are_exact_or_correctly_rounded(numerator: int, denominator: int) -> None:
    text, exact = quotient(numerator, denominator), Fraction(numerator, denominator)
    assert text is not None
    if ends(exact):
        assert Fraction(text) == exact
        assert "." not in text or not text.endswith("0")
    else:
        with localcontext(prec=200):
            rounded = (Decimal(numerator) / Decimal(denominator)).quantize(Decimal("0.000001"), ROUND_HALF_EVEN)
        assert Fraction(text) == Fraction(rounded)
        assert len(text.partition(".")[2]) == 6
    assert "e" not in text.lower()


@pytest.mark.parametrize(
    ("numerator", "denominator", "text"),
    [
        (39, 80, "0.4875"),
        (1, 3, "0.333333"),
        (2, 3, "0.666667"),
        (-2, 3, "-0.666667"),
        (10, 5, "2"),
        (0, 7, "0"),
        (1, 2**20, "0.00000095367431640625"),
        (-1, 30_000_000, "0.000000"),
        (1_000_000, 3, "333333.333333"),
        (5, 0, None),
    ],
)
def test_notation(numerator: int, denominator: int, text: str | None) -> None:
    assert quotient(numerator, denominator) == text


@given(COUNTS, COUNTS, st.integers(0, 10**18), st.integers(0, 10**18), st.integers(0, 10**18))
def test_metrics_are_ratios_of_sums(shown: int, clicks: int, conversions: int, cost: int, revenue: int) -> None:
    shown, clicks = shown // 2, clicks // 2
    message = to_message(Figures(shown, clicks, conversions, cost, revenue), "RUB")
    converted, spent, earned = (Fraction(micros, 10**6) for micros in (conversions, cost, revenue))
    expected = {
        "ctr": (Fraction(clicks) * 100, Fraction(shown)),
        "cpc": (spent, Fraction(clicks)),
        "cpm": (spent * 1000, Fraction(shown)),
        "cr": (converted * 100, Fraction(clicks)),
        "cpa": (spent, converted),
        "romi": ((earned - spent) * 100, spent),
        "roas": (earned, spent),
    }
    for name, (numerator, denominator) in expected.items():
        assert message.HasField(name) == bool(denominator)
        if denominator:
            exact, given_text = numerator / denominator, Fraction(getattr(message, name))
            assert given_text == exact if ends(exact) else abs(given_text - exact) <= Fraction(1, 2 * 10**6)
    assert Fraction(message.conversions) == converted
    assert (message.impressions, message.clicks) == (shown, clicks)
    assert (message.cost_micros, message.revenue_micros, message.currency_code) == (cost, revenue, "RUB")


SOME = st.one_of(st.integers(0, 12), st.integers(0, 2**49), st.sampled_from([10**6, 2**44, 5**18, 10**9]))


@settings(deadline=None)
@given(st.lists(st.builds(Figures, SOME, SOME, SOME, SOME, SOME), min_size=1, max_size=5))
def test_ratios_of_many_are_those_of_each(some: list[Figures]) -> None:
    assert ratios.serialized(some * 50) == [ratios_field(each) for each in some] * 50


@pytest.mark.parametrize("odd", [Figures(1, 1, 10**30, 1, 1), Figures(1, 1, 1, -5, 3), Figures(2**62, 1, 1, 1, 1)])
def test_many_with_a_huge_or_negative_one_are_the_same(odd: Figures) -> None:
    many = [odd, *(Figures(number, number % 7, number * 1000, number * 37, number**2) for number in range(60))]
    assert ratios.serialized(many) == [ratios_field(each) for each in many]
