"""Kept figures as numbers to write: amounts in currency units, changes, shares, and days put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from itertools import groupby
from typing import Any, Final

from server.statistics.figures import to_message
from storage.clickhouse.metrics import Figures

Metrics = Mapping[str, Any] | None

COUNTS: Final = ("impressions", "clicks", "conversions")
AMOUNTS: Final = ("cost", "revenue", "cpc", "cpm", "cpa")
PERCENTS: Final = ("ctr", "cr", "romi")
# Figures that are there whatever they are.
_NONE: Final[dict[str, Any]] = dict.fromkeys(("impressions", "clicks", "cost_micros", "revenue_micros"), 0)
_MOST_DAYS: Final = 31
_MOST_WEEKS: Final = 26 * 7


def value(metrics: Metrics, name: str) -> Decimal | None:
    """A figure; sums of nothing are 0, ratios of nothing are unknown."""
    if name in ("cost", "revenue"):
        return Decimal(metrics[f"{name}_micros"] if metrics else 0).scaleb(-6)
    if name in COUNTS:
        return Decimal(metrics[name] if metrics else 0)
    found = metrics.get(name) if metrics else None
    return None if found is None else Decimal(found)


def change(now: Decimal | None, before: Decimal | None) -> Decimal | None:
    """By how many percent a figure has grown; None if that cannot be said."""
    if now is None or before is None or not before:
        return None
    return (now - before) / abs(before) * 100


def share(part: Decimal | None, whole: Decimal | None) -> Decimal | None:
    """How many percent a part is of the whole."""
    return None if part is None or not whole else part / whole * 100


@dataclass(frozen=True, slots=True)
class Span:
    """Some days, and what was reached in them."""

    first: date
    metrics: Metrics


def spans(kept: Mapping[str, Any]) -> tuple[str, list[Span]]:
    """The days of a currency, put together so that they fit a page: ``day``, ``week`` or ``month``, and the spans."""
    days = [(date.fromisoformat(each["date"]), each["metrics"]) for each in kept["days"]]
    if len(days) <= _MOST_DAYS:
        return "day", [Span(day, metrics) for day, metrics in days]
    if len(days) <= _MOST_WEEKS:
        return "week", list(_together(days, kept["currency_code"], lambda day: day - timedelta(days=day.weekday())))
    return "month", list(_together(days, kept["currency_code"], lambda day: day.replace(day=1)))


def _together(days: Sequence[tuple[date, Metrics]], currency: str, first: Any) -> Iterator[Span]:
    for _, group in groupby(days, lambda each: first(each[0])):
        some = list(group)
        yield Span(some[0][0], combined([metrics for _, metrics in some if metrics], currency))


def summed(parts: Iterable[Figures]) -> Figures:
    """Several figures as one."""
    return Figures(*map(sum, zip(*parts, strict=True)))


def combined(parts: Iterable[Mapping[str, Any]], currency: str) -> dict[str, Any] | None:
    """Kept figures of several days or campaigns as those of all; None for none at all."""
    sums = [
        Figures(
            part["impressions"],
            part["clicks"],
            int(Decimal(part["conversions"]).scaleb(6)),
            part["cost_micros"],
            part["revenue_micros"],
        )
        for part in parts
    ]
    return metrics(summed(sums), currency) if sums else None


def metrics(figures: Figures, currency: str) -> dict[str, Any]:
    """A Metrics message as it is kept: whole numbers as such, all others as exact decimals in text."""
    message = to_message(figures, currency)
    return _NONE | {field.name: found for field, found in message.ListFields()}
