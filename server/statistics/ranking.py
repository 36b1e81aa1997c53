"""What is made of measured figures: the largest and the rest, totals, sums over time. Nothing here waits."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from mrm.statistics.v1 import statistics_service_pb2
from storage.clickhouse.metrics import NO_FIGURES, Combination, Figures, Sum

Series = Mapping[int, Figures]
"""Figures by the start of their bucket in Unix seconds; buckets without any are left out."""

Measured = Mapping[Combination, Series]

METRICS: Mapping[int, str] = {
    statistics_service_pb2.METRIC_IMPRESSIONS: "impressions",
    statistics_service_pb2.METRIC_CLICKS: "clicks",
    statistics_service_pb2.METRIC_CONVERSIONS: "conversions_micros",
    statistics_service_pb2.METRIC_COST: "cost_micros",
    statistics_service_pb2.METRIC_REVENUE: "revenue_micros",
}
"""Fields of `Figures` by `Metric`."""


class Ranked(NamedTuple):
    """The largest combinations, and by currency what all others add up to; currencies without others are left out."""

    kept: Mapping[Combination, Series]
    rest: Mapping[str, Series]


def grouped(sums: Iterable[Sum]) -> dict[Combination, dict[int, Figures]]:
    """Figures by combination, then by bucket."""
    found: dict[Combination, dict[int, Figures]] = {}
    for bucket, combination, figures in sums:
        series = found.get(combination)
        if series is None:
            series = found[combination] = {}
        series[bucket] = figures
    return found


def add(figures: Iterable[Figures]) -> Figures:
    """Sum of figures."""
    return Figures(*map(sum, zip(NO_FIGURES, *figures, strict=True)))


def merged(many: Iterable[Series]) -> dict[int, Figures]:
    """Sums bucket by bucket: a bucket has figures where one of the series has."""
    parts: dict[int, list[Figures]] = {}
    for series in many:
        for bucket, figures in series.items():
            parts.setdefault(bucket, []).append(figures)
    return {bucket: some[0] if len(some) == 1 else add(some) for bucket, some in parts.items()}


def over(series: Series, buckets: Iterable[int]) -> Figures | None:
    """Sum over some buckets; None if there is nothing in any of them."""
    found = [series[bucket] for bucket in buckets if bucket in series]
    return add(found) if found else None


def ranked(measured: Measured, count: int, metric: str, buckets: Collection[int]) -> Ranked:
    """Keeps the largest combinations of each currency.

    Args:
        measured: Figures of all combinations.
        count: How many to keep in each currency.
        metric: Field of `Figures` that decides; of equal ones the first in order of their values is kept.
        buckets: Only figures of these buckets decide.
    """
    by_currency: dict[str, list[Combination]] = {}
    for combination in measured:
        by_currency.setdefault(combination.currency, []).append(combination)
    kept: dict[Combination, Series] = {}
    rest: dict[str, Series] = {}
    for currency, combinations in by_currency.items():
        sizes = {each: getattr(over(measured[each], buckets) or NO_FIGURES, metric) for each in combinations}
        combinations.sort(key=lambda each: (-sizes[each], order(each)))
        kept.update((each, measured[each]) for each in combinations[:count])
        if len(combinations) > count:
            rest[currency] = merged(measured[each] for each in combinations[count:])
    return Ranked(kept, rest)


def totals(measured: Measured) -> dict[str, dict[int, Figures]]:
    """Sums over all combinations, by currency."""
    by_currency: dict[str, list[Series]] = {}
    for combination, series in measured.items():
        by_currency.setdefault(combination.currency, []).append(series)
    return {currency: merged(some) for currency, some in sorted(by_currency.items())}


def order(combination: Combination) -> tuple[str, ...]:
    """Sorts combinations by the values of their dimensions, then by currency."""
    return (*map(str, combination.values), combination.currency)
