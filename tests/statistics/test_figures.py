"""Ratios against exact fractions."""

import random
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrm.statistics.v1 import metrics_pb2, statistics_service_pb2
from server.statistics import reply
from server.statistics.buckets import Bucket
from server.statistics.figures import quotient, to_message
from storage.clickhouse.metrics import NO_FIGURES, Figures, Run

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
ODD = st.one_of(SOME, st.integers(-(2**63), 2**63 - 1), st.integers(-9, 9))
BUCKETS = [Bucket(0, 3600, "1970-01-01"), Bucket(3600, 7200, "")]


def project(name: str) -> bytes:
    return metrics_pb2.MetricsRow(project_id=name).SerializeToString()


def one_by_one(some: list[Figures | None]) -> list[metrics_pb2.MetricsRow]:
    """Rows as `figures` makes each by itself."""
    rows = []
    for each in some:
        row = metrics_pb2.MetricsRow(project_id="p", metrics=to_message(each or NO_FIGURES, "RUB"))
        row.data_present = each is not None
        rows.append(row)
    return rows


def all_at_once(some: list[Figures | None]) -> list[metrics_pb2.MetricsRow]:
    """The same as one bucket of a reply."""
    lines = [reply.Line(project("p"), "RUB", {} if each is None else {3600: each, 9: each}) for each in some]
    data = b"".join(reply.serialized(reply.ROWS, BUCKETS[1:], [], lines))
    rows = list(statistics_service_pb2.QueryStatisticsResponse.FromString(data).rows)
    for row in rows:
        assert (row.start_time.seconds, row.end_time.seconds) == (3600, 7200)
        row.ClearField("start_time")
        row.ClearField("end_time")
    return rows


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.none(), st.builds(Figures, ODD, ODD, ODD, ODD, ODD)), min_size=1, max_size=8))
def test_rows_of_many_are_those_of_each(some: list[Figures | None]) -> None:
    assert all_at_once(some) == one_by_one(some)


def test_thousands_of_rows_are_those_of_each() -> None:
    chance = random.Random(5)
    some = [
        Figures(*(chance.randrange(10 ** chance.randrange(1, 19)) for _ in range(5))) if number % 5 else None
        for number in range(5000)
    ]
    assert all_at_once(some) == one_by_one(some)


def test_rows_are_in_order_of_buckets_and_compare_with_the_earlier_ones() -> None:
    earlier = [Bucket(0, 0, ""), Bucket(0, 3600, "")]
    lines = [
        reply.Line(project("a"), "RUB", {0: Figures(5), 3600: Figures(7, 1)}),
        reply.Line(project("b"), "EUR", Run([3600], [[9], [0], [0], [0], [0]])),
    ]
    data = b"".join(reply.serialized(reply.TOTALS, BUCKETS, earlier, lines))
    rows = statistics_service_pb2.QueryStatisticsResponse.FromString(data).totals
    found = [
        (row.project_id, row.start_date, row.metrics.impressions, row.metrics.currency_code, row.data_present)
        for row in rows
    ]
    assert found == [
        ("a", "1970-01-01", 5, "RUB", True),
        ("b", "1970-01-01", 0, "EUR", False),
        ("a", "", 7, "RUB", True),
        ("b", "", 9, "EUR", True),
    ]
    # The first earlier bucket holds no instant: it begins where the other does, whose figures are not its own.
    assert [row.HasField("previous_metrics") for row in rows] == [False, False, True, False]
    assert rows[2].previous_metrics == to_message(Figures(5), "RUB")


def test_a_figure_beyond_64_bits_is_an_error() -> None:
    with pytest.raises(OverflowError):
        reply.serialized(reply.ROWS, BUCKETS, [], [reply.Line(b"", "RUB", {0: Figures(2**63)})])
