"""Pacing and exhaustion against the plainest way to compute them: day by day."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pacing.arithmetic import HORIZON_DAYS, Flight, Instant, Projection, Spending, planned_to_date, projection

pytestmark = pytest.mark.bar_e

DAY = timedelta(days=1)
TODAY = date(2026, 6, 17)
ELAPSED = st.fractions(0, Fraction(86399, 86400), max_denominator=86400)
MONEY = st.integers(0, 10**13)


@st.composite
def spendings(draw: st.DrawFn) -> Spending:
    days = {TODAY - n * DAY: draw(st.one_of(st.just(0), MONEY)) for n in range(1, draw(st.integers(0, 28)) + 1)}
    return Spending(sum(days.values()) + draw(MONEY), days)


@st.composite
def flights(draw: st.DrawFn) -> Flight:
    start = TODAY + draw(st.integers(-60, 5)) * DAY
    return Flight(start, start + draw(st.integers(0, 400)) * DAY)


def naive_planned(budget: int, flight: Flight, now: Instant) -> int:
    total, day = Fraction(0), flight.start
    while day <= flight.end:
        share = 1 if day < now.day else now.elapsed if day == now.day else 0
        total += Fraction(budget, flight.days) * share
        day += DAY
    return round(total)


def naive_projection(spending: Spending, budget: int | None, flight: Flight | None, now: Instant) -> Projection | None:
    costing = [day for day in sorted(spending.days) if spending.days[day]]
    first = flight.start if flight else costing[0] if costing else now.day
    since = [now.day - n * DAY for n in range(1, 29) if now.day - n * DAY >= first]
    if not since:
        return None
    shaped = len(since) == 28
    seen = since if shaped else since[:7]

    def cost(day: date) -> Fraction:
        alike = [each for each in seen if not shaped or each.weekday() == day.weekday()]
        return Fraction(sum(spending.days.get(each, 0) for each in alike), len(alike))

    exhausted, spent, day = None, Fraction(spending.total), now.day
    total = spent if flight else None
    for n in range(HORIZON_DAYS + 60):
        spent += cost(day) * (1 - now.elapsed if n == 0 else 1)
        if budget is not None and exhausted is None and n <= HORIZON_DAYS and (spent >= budget):
            exhausted = day
        if flight and day <= flight.end:
            total = spent
        day += DAY
    return Projection(
        "weekdays_4_weeks" if shaped else "run_rate_7_days",
        len(seen),
        round(Fraction(sum(spending.days.get(each, 0) for each in seen), len(seen))),
        exhausted,
        None if total is None else round(total),
    )


@given(MONEY, flights(), ELAPSED)
def test_what_is_planned(budget: int, flight: Flight, elapsed: Fraction) -> None:
    now = Instant(TODAY, elapsed)
    assert planned_to_date(budget, flight, now) == naive_planned(budget, flight, now)


@given(spendings(), st.one_of(st.none(), MONEY), st.one_of(st.none(), flights()), ELAPSED)
def test_how_it_goes_on(spending: Spending, budget: int | None, flight: Flight | None, elapsed: Fraction) -> None:
    now = Instant(TODAY, elapsed)
    assert projection(spending, budget, flight, now) == naive_projection(spending, budget, flight, now)


@pytest.mark.parametrize(
    ("spent", "budget", "exhaustion"),
    [
        pytest.param(70, 100, TODAY + 2 * DAY, id="in-three-days"),
        pytest.param(70, 70, TODAY, id="used-up"),
        pytest.param(70, 71, TODAY, id="today"),
        pytest.param(70, 80, TODAY, id="exactly-at-the-end-of-today"),
        pytest.param(0, 100, None, id="nothing-is-spent"),
        pytest.param(70, 10**6, None, id="not-within-a-year"),
    ],
)
def test_plain_cases(spent: int, budget: int, exhaustion: date | None) -> None:
    flight = Flight(TODAY - 7 * DAY, TODAY + 7 * DAY)
    spending = Spending(spent, {TODAY - n * DAY: spent // 7 for n in range(1, 8)})
    found = projection(spending, budget, flight, Instant(TODAY, Fraction(0)))
    assert found is not None
    assert (found.exhaustion, found.total) == (exhaustion, spent + 8 * (spent // 7))


def test_days_are_those_of_the_time_zone_and_as_long_as_they_are() -> None:
    moscow = Instant.of(datetime(2026, 6, 16, 21, 0, tzinfo=UTC), ZoneInfo("Europe/Moscow"))
    assert moscow == Instant(date(2026, 6, 17), Fraction(0))
    # The day of 25 hours on which clocks go back.
    berlin = Instant.of(datetime(2026, 10, 25, 11, 30, tzinfo=UTC), ZoneInfo("Europe/Berlin"))
    assert berlin == Instant(date(2026, 10, 25), Fraction(27, 50))
