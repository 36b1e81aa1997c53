"""Time cut into calendar buckets. The calendar lives here and only here; stores see nothing but instants."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from mrm.common.v1 import time_pb2

HOUR = 3600


@dataclass(frozen=True, slots=True)
class Bucket:
    """A span of time, in Unix seconds, end excluded.

    Attributes:
        start_date: First day in the time zone, ISO 8601; empty for hours.
    """

    start: int
    end: int
    start_date: str


def day_start(day: date, zone: ZoneInfo) -> int:
    """First instant of a day, in Unix seconds; where the clocks skip midnight, the instant they are put forward."""
    return int(datetime.combine(day, time(), zone).timestamp())


def bucket_count(granularity: int, start: int, end: int) -> int:
    """About how many buckets a span has, never more than it really has: to refuse before cutting."""
    widths = {
        time_pb2.GRANULARITY_HOUR: HOUR,
        time_pb2.GRANULARITY_DAY: 25 * HOUR,
        time_pb2.GRANULARITY_WEEK: 170 * HOUR,
        time_pb2.GRANULARITY_MONTH: 745 * HOUR,
    }
    width = widths.get(granularity)  # type: ignore[call-overload]
    return 1 if width is None else max(1, (end - start) // width)


def cut(granularity: int, zone: ZoneInfo, start: int, end: int) -> list[Bucket]:
    """Cuts a span into buckets; the first and the last one end where the span does.

    Args:
        granularity: A `Granularity`, not the unspecified one.
        zone: Where days, weeks and months begin.
        start: Begin of the span in Unix seconds.
        end: Its end, after the start.
    """
    if granularity == time_pb2.GRANULARITY_HOUR:
        return [Bucket(at, at + HOUR, "") for at in range(start, end, HOUR)]
    bounds = [start]
    if granularity != time_pb2.GRANULARITY_TOTAL:
        for day in _first_days(granularity, _local_day(start, zone)):
            at = day_start(day, zone)
            if at >= end:
                break
            # Zones that crossed the date line have a day without any instant.
            if at > bounds[-1]:
                bounds.append(at)
    return [Bucket(first, last, _local_day(first, zone).isoformat()) for first, last in pairwise([*bounds, end])]


def earlier(buckets: Sequence[Bucket], zone: ZoneInfo) -> list[Bucket]:
    """The buckets one period earlier: as many days before, or as many hours if the period is not in whole days.

    They end where the given ones begin. A day that a zone skipped at the date line, and time before 1970, leaves a
    bucket without any instant.
    """
    start, end = buckets[0].start, buckets[-1].end
    first, last = _local_day(start, zone), _local_day(end, zone)
    by_days = bool(buckets[0].start_date) and day_start(first, zone) == start and day_start(last, zone) == end

    def before(at: int) -> int:
        moved = day_start(_local_day(at, zone) - (last - first), zone) if by_days else at - (end - start)
        return max(0, moved)

    bounds = [before(bucket.start) for bucket in buckets] + [start]
    return [
        Bucket(begin, stop, _local_day(begin, zone).isoformat() if bucket.start_date else "")
        for bucket, (begin, stop) in zip(buckets, pairwise(bounds), strict=True)
    ]


def _first_days(granularity: int, day: date) -> Iterator[date]:
    """First days of the days, ISO weeks or months after the one of a day."""
    while True:
        if granularity == time_pb2.GRANULARITY_DAY:
            day += timedelta(days=1)
        elif granularity == time_pb2.GRANULARITY_WEEK:
            day += timedelta(days=7 - day.weekday())
        else:
            day = (day.replace(day=1) + timedelta(days=31)).replace(day=1)
        yield day


def _local_day(at: int, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(at, UTC).astimezone(zone).date()
