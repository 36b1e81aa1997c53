"""The arithmetic of budgets over time. It knows no store: amounts in millionths, days, exact fractions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Final, Literal
from zoneinfo import ZoneInfo

RUN_DAYS: Final = 7
"""Complete days that a run rate is made of, at most."""
PROFILE_DAYS: Final = 28
"""Complete days that the shape of a week is made of; with fewer there is none."""
HORIZON_DAYS: Final = 366
"""How far ahead exhaustion is looked for."""

_DAY: Final = timedelta(days=1)

Method = Literal["run_rate_7_days", "weekdays_4_weeks"]


@dataclass(frozen=True, slots=True)
class Flight:
    """First and last day, both included."""

    start: date
    end: date

    @property
    def days(self) -> int:
        """How many days it has."""
        return (self.end - self.start).days + 1


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment in a calendar.

    Attributes:
        day: The day on which it lies.
        elapsed: How much of that day is over, 0 to 1.
    """

    day: date
    elapsed: Fraction

    @classmethod
    def of(cls, moment: datetime, zone: ZoneInfo) -> "Instant":
        """The moment in a time zone; days on which the clocks change are as long as they are."""
        day = moment.astimezone(zone).date()
        start = datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()
        after = day + _DAY
        end = datetime(after.year, after.month, after.day, tzinfo=zone).timestamp()
        return cls(day, Fraction(int(moment.timestamp()) - int(start), int(end) - int(start)))


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent.

    Attributes:
        total: Since ever.
        days: On each of the last complete days; a day without is 0.
    """

    total: int
    days: Mapping[date, int]

    @classmethod
    def over(cls, parts: Sequence["Spending"]) -> "Spending":
        """The spending of several things together."""
        days: dict[date, int] = {}
        for part in parts:
            for day, spent in part.days.items():
                days[day] = days.get(day, 0) + spent
        return cls(sum(part.total for part in parts), days)


@dataclass(frozen=True, slots=True)
class Projection:
    """How spending is likely to go on.

    Attributes:
        method: How days to come are estimated.
        observed_days: Complete days that the estimate is made of.
        daily_average: What these cost on average.
        exhaustion: Day on which the budget is used up; None if there is none, or not within the horizon.
        total: What will be spent by the end of the flight; None without one.
    """

    method: Method
    observed_days: int
    daily_average: int
    exhaustion: date | None
    total: int | None


def planned_to_date(budget: int, flight: Flight, now: Instant) -> int:
    """What of a budget should have been spent by now, if each day of the flight gets the same."""
    if now.day < flight.start:
        return 0
    if now.day > flight.end:
        return budget
    return round(Fraction(budget * ((now.day - flight.start).days + now.elapsed), flight.days))


def projection(spending: Spending, budget: int | None, flight: Flight | None, now: Instant) -> Projection | None:
    """How spending is likely to go on; None before the first complete day.

    Args:
        spending: What was spent so far.
        budget: What may be spent; None for no end.
        flight: From when to when. Without one the observation begins with the first day that cost something.
        now: Up to when `spending` goes.
    """
    first = flight.start if flight else min((day for day, spent in spending.days.items() if spent), default=now.day)
    observed = min((now.day - first).days, PROFILE_DAYS)
    if observed < 1:
        return None
    method: Method = "run_rate_7_days"
    if observed >= PROFILE_DAYS:
        method = "weekdays_4_weeks"
    else:
        observed = min(observed, RUN_DAYS)
    last = [now.day - timedelta(days=back) for back in range(1, observed + 1)]
    costs = {day: spending.days.get(day, 0) for day in last}
    average = Fraction(sum(costs.values()), observed)
    week = [average] * 7
    if method == "weekdays_4_weeks":
        week = [
            Fraction(sum(cost for day, cost in costs.items() if day.weekday() == weekday), PROFILE_DAYS // 7)
            for weekday in range(7)
        ]
    return Projection(
        method,
        observed,
        round(average),
        None if budget is None else _exhaustion(budget - spending.total, week, now),
        None if flight is None else _total(spending.total, week, flight.end, now),
    )


def _exhaustion(remaining: int, week: Sequence[Fraction], now: Instant) -> date | None:
    """The day on which what remains is used up."""
    left = remaining - week[now.day.weekday()] * (1 - now.elapsed)
    if remaining <= 0 or left <= 0:
        return now.day
    whole = sum(week)
    if not whole:
        return None
    # As many whole weeks as do not use it up; then it is one of the seven days that follow.
    weeks = -(-left // whole) - 1
    if weeks * 7 > HORIZON_DAYS:
        return None
    left -= weeks * whole
    day = now.day + timedelta(days=7 * int(weeks))
    while left > 0:
        day += _DAY
        left -= week[day.weekday()]
    return day if (day - now.day).days <= HORIZON_DAYS else None


def _total(spent: int, week: Sequence[Fraction], end: date, now: Instant) -> int:
    """What will be spent by the end of a day."""
    if now.day > end:
        return spent
    weeks, rest = divmod((end - now.day).days, 7)
    ahead = sum(week) * weeks + sum(week[(now.day + timedelta(days=n)).weekday()] for n in range(1, rest + 1))
    return round(spent + week[now.day.weekday()] * (1 - now.elapsed) + ahead)
