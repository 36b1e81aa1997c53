"""What a statistics request must be, beyond what its message declares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp

from mrm.common.v1 import platform_pb2, time_pb2
from mrm.statistics.v1 import statistics_service_pb2
from server.rpc import values
from server.rpc.errors import DomainError, InvalidRequest
from server.statistics.buckets import HOUR, bucket_count, day_start

MOST_ROWS = 10_000
MOST_SUMS = 200_000
"""Sums that are measured for a reply, before the largest are picked or they are regrouped."""
# Callers accept messages of at most 4 MiB unless they were told otherwise.
MOST_BYTES = 4 * 2**20
PLATFORMS = values.EnumWords(platform_pb2.Platform, "PLATFORM_")

_FIRST_YEAR, _LAST_YEAR = 1971, 2100
LONGEST_DAYS = 3653
"""Days that are measured at once."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What is measured; an empty part lets all pass."""

    client_ids: tuple[UUID, ...]
    project_ids: tuple[UUID, ...]
    campaign_ids: tuple[UUID, ...]
    platforms: frozenset[str]


class QueryTooLarge(DomainError):
    """The reply would be too large."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUERY_TOO_LARGE"


def read_filter(message: statistics_service_pb2.StatisticsFilter) -> Filter:
    """The filter of a validated request."""
    return Filter(
        _ids(message.client_ids),
        _ids(message.project_ids),
        _ids(message.campaign_ids),
        frozenset(PLATFORMS.word(platform) for platform in message.platforms),
    )


def read_period(request: statistics_service_pb2.QueryStatisticsRequest, zone: ZoneInfo) -> tuple[int, int]:
    """The time to cover, in Unix seconds, end excluded.

    Raises:
        InvalidRequest: It names no days, is not in full hours, is empty or too long.
    """
    if request.WhichOneof("period") == "times":
        return times(request.times, "times")
    return dates(request.dates, zone)


def dates(message: time_pb2.DateRange, zone: ZoneInfo) -> tuple[int, int]:
    """Calendar days of a time zone."""
    first, last = values.day(message.start_date, "dates.start_date"), values.day(message.end_date, "dates.end_date")
    for day, name in ((first, "start_date"), (last, "end_date")):
        if day is None or not _FIRST_YEAR <= day.year <= _LAST_YEAR:
            raise _out_of_range(f"dates.{name}")
    assert first is not None
    assert last is not None
    if last < first:
        raise InvalidRequest.field("dates", "PERIOD_EMPTY", "ends before it starts")
    if (last - first).days >= LONGEST_DAYS:
        raise _too_long("dates")
    return day_start(first, zone), day_start(last + timedelta(days=1), zone)


def times(message: time_pb2.TimeRange, field: str) -> tuple[int, int]:
    """Instants in full hours."""
    start, end = (
        _full_hour(message.start_time, f"{field}.start_time"),
        _full_hour(message.end_time, f"{field}.end_time"),
    )
    if end <= start:
        raise InvalidRequest.field(field, "PERIOD_EMPTY", "ends before it starts")
    if end - start > LONGEST_DAYS * 24 * HOUR:
        raise _too_long(field)
    return start, end


def check_buckets(granularity: int, start: int, end: int) -> None:
    """Raises QueryTooLarge if the buckets alone are too many."""
    check_rows(bucket_count(granularity, start, end), 1)


def check_rows(buckets: int, combinations: int) -> None:
    """Raises QueryTooLarge if a reply of so many rows is too large."""
    rows = buckets * max(1, combinations)
    if rows <= MOST_ROWS:
        return
    narrower = "fewer dimensions or a narrower filter, " if combinations > 1 else ""
    raise QueryTooLarge(
        f"this would be more than {MOST_ROWS} rows: ask for {narrower}a coarser granularity or a shorter period",
        metadata={"rows": str(rows), "row_limit": str(MOST_ROWS), "bucket_count": str(buckets)},
    )


def check_size(size: int) -> None:
    """Raises QueryTooLarge if a reply of so many bytes would be refused by its receiver."""
    if size > MOST_BYTES:
        raise QueryTooLarge(
            f"the reply would have more than {MOST_BYTES} bytes: ask for fewer dimensions, a coarser granularity or a"
            " shorter period",
            metadata={"bytes": str(size), "byte_limit": str(MOST_BYTES)},
        )


def check_sums(buckets: int, combinations: int) -> None:
    """Raises QueryTooLarge if there is too much to pick the largest from, or to regroup."""
    if buckets * combinations > MOST_SUMS:
        raise QueryTooLarge(
            f"this would have to measure more than {MOST_SUMS} sums first: ask for a narrower filter, a coarser"
            " granularity or a shorter period",
            metadata={"sum_limit": str(MOST_SUMS), "bucket_count": str(buckets)},
        )


def check_reading(
    rows: int, limit: int, request: statistics_service_pb2.QueryStatisticsRequest, days: int, by_event_type: bool
) -> None:
    """Raises QueryTooLarge, with what to narrow, if the stores would read too much.

    Args:
        rows: About how many rows would be read.
        limit: How many may be.
        request: What is asked for.
        days: Length of the period, the earlier one left out.
        by_event_type: Whether raw events would be read.
    """
    if rows <= limit:
        return
    hints = []
    fewer = days * limit // rows
    if fewer:
        hints.append(f"ask for about {fewer} of the {days} days")
    if request.compare_previous:
        hints.append("leave out compare_previous")
    if by_event_type:
        hints.append("leave out DIMENSION_EVENT_TYPE, which reads single events")
    if not request.filter.campaign_ids:
        hints.append("name campaigns" if request.filter.client_ids else "name clients or campaigns")
    suggestion = ", or ".join(hints) or "name fewer campaigns"
    raise QueryTooLarge(
        f"this would read about {rows} rows, more than {limit}: {suggestion}",
        metadata={"estimated_rows": str(rows), "read_row_limit": str(limit), "suggestion": suggestion},
    )


def check_raw_floor(request: statistics_service_pb2.QueryStatisticsRequest, start: int, floor: datetime) -> None:
    """Raises InvalidRequest if single events are asked for from a time of which they may be gone.

    Args:
        request: What is asked for.
        start: First instant that would be read, in Unix seconds.
        floor: Events before it may be gone.
    """
    if start >= floor.timestamp():
        return
    period = "the earlier period" if request.compare_previous else "the period"
    raise InvalidRequest.field(
        request.WhichOneof("period") or "period",
        "BEFORE_RAW_FLOOR",
        f"{period} begins {_instant(start)}, but single events are kept from {_instant(math.ceil(floor.timestamp()))}"
        " on: begin there or leave out DIMENSION_EVENT_TYPE",
    )


def _instant(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _full_hour(stamp: Timestamp, field: str) -> int:
    if stamp.nanos or stamp.seconds % HOUR:
        raise InvalidRequest.field(field, "FULL_HOUR", "must be a full hour")
    # Seconds of the first and last year that both stores and calendars can hold.
    if not 31_536_000 <= stamp.seconds <= 4_133_980_800:
        raise _out_of_range(field)
    return int(stamp.seconds)


def _out_of_range(field: str) -> InvalidRequest:
    return InvalidRequest.field(field, "TIME_OUT_OF_RANGE", f"must lie in the years {_FIRST_YEAR} to {_LAST_YEAR}")


def _too_long(field: str) -> InvalidRequest:
    return InvalidRequest.field(field, "PERIOD_TOO_LONG", "must not be longer than 10 years")


def _ids(texts: Sequence[str]) -> tuple[UUID, ...]:
    return tuple(UUID(text) for text in texts)
