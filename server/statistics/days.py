"""Which days of a client are over, and which of them are rolled up when."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from server.statistics.buckets import day_start

ONE = timedelta(days=1)
_CHUNK = timedelta(days=14)


def closed(now: datetime, zone: ZoneInfo, grace: timedelta = timedelta(0)) -> date:
    """The last day that was over in a zone for at least some time."""
    return (now.astimezone(UTC) - grace).astimezone(zone).date() - ONE


def months_before(day: date, months: int) -> date:
    """The same day of an earlier month, or the last one of that month if it is shorter."""
    year, month = divmod(day.year * 12 + day.month - 1 - months, 12)
    following = date(year + (month + 1) // 12, (month + 1) % 12 + 1, 1)
    return min(date(year, month + 1, 1) + timedelta(days=day.day - 1), following - ONE)


def spans(days: Iterable[date]) -> Iterator[tuple[date, date]]:
    """Cuts days into runs of consecutive ones, none of them so long that it is too much for a statement."""
    first = last = None
    for day in sorted(days):
        if first is None or last is None:
            first = last = day
        elif day == last + ONE and day - first < _CHUNK:
            last = day
        else:
            yield first, last
            first = last = day
    if first is not None and last is not None:
        yield first, last


def between(first: date, last: date) -> list[date]:
    """All days of a span, both ends included; none if it ends before it begins."""
    return [first + ONE * number for number in range((last - first).days + 1)]


def starts(days: Sequence[date], zone: ZoneInfo) -> tuple[list[date], list[int]]:
    """The days that a zone has, and their first instants in Unix seconds with the end of the last one.

    A zone that crossed the date line has skipped a day.
    """
    bounds = [day_start(day, zone) for day in [*days, days[-1] + ONE]]
    kept = [number for number in range(len(days)) if bounds[number] < bounds[number + 1]]
    return [days[number] for number in kept], [*(bounds[number] for number in kept), bounds[-1]]
