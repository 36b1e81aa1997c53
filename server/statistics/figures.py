"""Figures as callers see them: ratios of sums, exact where a decimal can be."""

import math

from mrm.statistics.v1 import metrics_pb2
from storage.clickhouse.metrics import Figures

MICROS = 1_000_000
_DIGITS = 6


def quotient(numerator: int, denominator: int) -> str | None:
    """A quotient in plain decimal notation.

    Returns:
        All digits if the decimal ends ("0.4875", "12"), else six of them, half to even; None if the denominator is 0.
    """
    if denominator == 0:
        return None
    if denominator < 0:
        numerator, denominator = -numerator, -denominator
    common = math.gcd(numerator, denominator)
    numerator, denominator = numerator // common, denominator // common
    digits = _finite_digits(denominator)
    if digits is not None:
        return _plain(numerator * 10**digits // denominator, digits)
    # A tie would be a decimal that ends, so rounding half up is rounding half to even here.
    return _plain((2 * numerator * 10**_DIGITS + denominator) // (2 * denominator), _DIGITS)


def to_message(figures: Figures, currency: str) -> metrics_pb2.Metrics:
    """The message for sums in one currency."""
    shown, clicks, conversions = figures.impressions, figures.clicks, figures.conversions_micros
    cost, revenue = figures.cost_micros, figures.revenue_micros
    return metrics_pb2.Metrics(
        impressions=shown,
        clicks=clicks,
        conversions=quotient(conversions, MICROS) or "",
        cost_micros=cost,
        revenue_micros=revenue,
        currency_code=currency,
        ctr=quotient(clicks * 100, shown),
        cpc=quotient(cost, clicks * MICROS),
        cpm=quotient(cost * 1000, shown * MICROS),
        cr=quotient(conversions * 100, clicks * MICROS),
        cpa=quotient(cost, conversions),
        romi=quotient((revenue - cost) * 100, cost),
        roas=quotient(revenue, cost),
    )


def _finite_digits(denominator: int) -> int | None:
    """Decimals of 1/denominator if they end: the denominator has no other prime factors than 2 and 5."""
    twos = (denominator & -denominator).bit_length() - 1
    denominator >>= twos
    fives = 0
    while denominator % 5 == 0:
        denominator //= 5
        fives += 1
    return max(twos, fives) if denominator == 1 else None


def _plain(scaled: int, digits: int) -> str:
    sign, text = "-" if scaled < 0 else "", str(abs(scaled)).rjust(digits + 1, "0")
    return f"{sign}{text[:-digits]}.{text[-digits:]}" if digits else sign + text
