"""Figures of made-up campaigns, day by day and hour by hour, with the shape of real ones.

A day's figures follow from the campaign's name and the date alone, so that making them again, now or on a later day,
gives the same. `random.Random` seeded with a text is the same in every version of Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from random import Random
from typing import Final
from zoneinfo import ZoneInfo

_MICROS: Final = 1_000_000
_KOPECK: Final = 10_000
_HOUR: Final = 3600

# Share of a day's impressions by the hour of the client's day: awake, at lunch, on the sofa.
_HOURS: Final = (18, 10, 6, 4, 4, 7, 16, 28, 40, 50, 56, 58, 62, 60, 57, 56, 56, 58, 62, 70, 76, 74, 58, 36)


@dataclass(frozen=True, slots=True)
class Market:
    """When people of a country buy.

    Attributes:
        week: Factors of the days of the week, Monday first.
        year: Factors of the months.
        holidays: Factor by (month, day).
        black_friday: How much larger Black Friday is; 1 where nobody keeps it.
    """

    week: tuple[float, ...]
    year: tuple[float, ...]
    holidays: Mapping[tuple[int, int], float]
    black_friday: float = 1.0

    def demand(self, day: date) -> float:
        """Demand of a day, around 1."""
        # From the middle of a month to the middle of the next one, without steps.
        place = day.month - 1 + (day.day - 15.5) / 31
        low = math.floor(place)
        share = place - low
        season = self.year[low % 12] * (1 - share) + self.year[(low + 1) % 12] * share
        away = (day - black_friday(day.year)).days
        # The week before warms up, the weekend after ends it.
        sale = {-4: 0.1, -3: 0.15, -2: 0.2, -1: 0.45, 0: 1.0, 1: 0.7, 2: 0.6, 3: 0.35}.get(away, 0.0)
        return (
            self.week[day.weekday()]
            * season
            * self.holidays.get((day.month, day.day), 1.0)
            * (1 + sale * (self.black_friday - 1))
        )


def black_friday(year: int) -> date:
    """The day after the fourth Thursday of November."""
    first = date(year, 11, 1)
    return first + timedelta(days=(3 - first.weekday()) % 7 + 22)


def _span(first: tuple[int, int], last: tuple[int, int], factor: float) -> dict[tuple[int, int], float]:
    # A leap year, so that its day counts too.
    day, end = date(2024, *first), date(2024, *last)
    return {((day + timedelta(n)).month, (day + timedelta(n)).day): factor for n in range((end - day).days + 1)}


RUSSIAN_RETAIL: Final = Market(
    week=(1.04, 1.0, 0.98, 0.99, 1.02, 0.95, 1.02),
    year=(0.82, 0.92, 1.05, 1.0, 0.95, 0.88, 0.84, 0.93, 1.0, 1.05, 1.16, 1.3),
    # Gifts before the New Year, nobody at the screen on it; Defenders' and Women's Day; the May holidays.
    holidays={
        **_span((12, 15), (12, 28), 1.25),
        (12, 29): 1.1,
        (12, 30): 0.85,
        (12, 31): 0.4,
        (1, 1): 0.3,
        (1, 2): 0.5,
        **_span((1, 3), (1, 8), 0.75),
        **_span((2, 18), (2, 22), 1.15),
        **_span((3, 2), (3, 7), 1.3),
        (3, 8): 0.9,
        **_span((5, 1), (5, 3), 0.7),
        **_span((5, 8), (5, 10), 0.72),
        **_span((8, 22), (8, 31), 1.12),
        (11, 11): 1.5,
    },
    black_friday=2.4,
)
GULF_PROPERTY: Final = Market(
    week=(1.08, 1.06, 1.05, 1.02, 0.94, 0.88, 0.97),
    year=(1.08, 1.1, 1.05, 1.0, 0.95, 0.85, 0.78, 0.8, 0.97, 1.08, 1.15, 1.0),
    holidays={(12, 31): 0.5, (1, 1): 0.45, **_span((12, 2), (12, 3), 0.8)},
)


@dataclass(frozen=True, slots=True)
class Course:
    """How a campaign goes.

    Attributes:
        impressions: A day, at the beginning and at demand 1.
        ctr: Clicks per impression.
        cr: Conversions per click.
        cpc: Price of a click, in units of the currency; or
        cpm: price of a thousand impressions. One of them is zero.
        order_value: Revenue of a conversion, in units of the currency.
        growth: How much larger a year makes it: 0.25 is a quarter more.
        market: When its people buy.
        elasticity: How far it follows the market; 0 not at all.
        pause: Days on which it delivered nothing, first and last.
        spike: First day, last day and factor of a time when prices rose.
    """

    impressions: float
    ctr: float
    cr: float
    market: Market
    cpc: float = 0.0
    cpm: float = 0.0
    order_value: float = 0.0
    growth: float = 0.0
    elasticity: float = 1.0
    pause: tuple[date, date] | None = None
    spike: tuple[date, date, float] | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What happened in an hour or on a day; amounts in millionths."""

    impressions: int = 0
    clicks: int = 0
    cost_micros: int = 0
    conversions: int = 0
    revenue_micros: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.impressions + other.impressions,
            self.clicks + other.clicks,
            self.cost_micros + other.cost_micros,
            self.conversions + other.conversions,
            self.revenue_micros + other.revenue_micros,
        )


def of_day(name: str, course: Course, began: date, day: date) -> Figures:
    """Figures of a campaign on a day.

    Args:
        name: What tells the campaign from all others, for ever.
        course: How it goes.
        began: When it began, for its growth.
        day: The day.
    """
    if course.pause is not None and course.pause[0] <= day <= course.pause[1]:
        return Figures()
    rng = Random(f"{name}|{day}")  # noqa: S311 - nothing here is secret
    demand = course.market.demand(day) ** course.elasticity
    trend = (1 + course.growth) ** ((day - began).days / 365)
    impressions = _count(rng, course.impressions * demand * trend, 40)
    # Whoever looks for gifts clicks and buys more readily.
    clicks = min(impressions, _count(rng, impressions * course.ctr * demand**0.15, 60))
    conversions = min(clicks, _count(rng, clicks * course.cr * demand**0.25, 25))
    # An auction is dearer when everybody wants to be in it.
    price = demand**0.35 * 1.08 ** ((day - began).days / 365) * rng.gammavariate(300, 1 / 300)
    if course.spike is not None and course.spike[0] <= day <= course.spike[1]:
        price *= course.spike[2]
    cost = clicks * _kopecks(course.cpc * price) if course.cpc else _kopecks(impressions * course.cpm * price / 1000)
    revenue = _kopecks(conversions * course.order_value * rng.gammavariate(60, 1 / 60)) if conversions else 0
    return Figures(impressions, clicks, cost, conversions, revenue)


def hours_of(name: str, total: Figures, day: date, zone: ZoneInfo) -> Iterator[tuple[int, Figures]]:
    """A day's figures by its hours, in Unix seconds: exactly the day's when added up, whatever the clocks do on it."""
    rng = Random(f"{name}|{day}|hours")  # noqa: S311 - nothing here is secret
    start = int(datetime.combine(day, time(), zone).astimezone(UTC).timestamp())
    end = int(datetime.combine(day + timedelta(days=1), time(), zone).astimezone(UTC).timestamp())
    starts = range(start, end, _HOUR)
    weights = [_HOURS[datetime.fromtimestamp(each, zone).hour] * rng.gammavariate(50, 1 / 50) for each in starts]
    impressions = _split(total.impressions, weights)
    clicks = _split(total.clicks, impressions)
    # Money goes where clicks are bought or, without any, where it was shown.
    bought = clicks if total.clicks else impressions
    cost = [each * _KOPECK for each in _split(total.cost_micros // _KOPECK, bought)]
    conversions = [0] * len(starts)
    for hour in rng.choices(range(len(starts)), clicks, k=total.conversions) if total.conversions else ():
        conversions[hour] += 1
    revenue = [each * _KOPECK for each in _split(total.revenue_micros // _KOPECK, conversions)]
    yield from zip(starts, map(Figures, impressions, clicks, cost, conversions, revenue), strict=True)


def _split(total: int, weights: list[float] | list[int]) -> list[int]:
    """Whole parts by weight, which add up to the total."""
    whole = sum(weights)
    if not whole:
        return [0] * len(weights)
    parts, passed, given = [], 0.0, 0
    for weight in weights:
        passed += weight
        until = min(total, round(total * passed / whole))
        parts.append(until - given)
        given = until
    # Rounding of the sum itself may leave a rest; it belongs where there is something.
    last = max(index for index, weight in enumerate(weights) if weight)
    parts[last] += total - given
    return parts


def _count(rng: Random, mean: float, shape: float) -> int:
    """A count that varies more than a Poisson one, because each day has a mean of its own."""
    if mean <= 0:
        return 0
    mean *= rng.gammavariate(shape, 1 / shape)
    if mean > 50:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, rng.random()
    while product > limit:
        count += 1
        product *= rng.random()
    return count


def _kopecks(units: float) -> int:
    """An amount in millionths, whole in hundredths of the unit."""
    return round(units * 100) * _KOPECK
