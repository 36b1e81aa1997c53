"""GetFeedbackStatistics: what people did with answers, by group and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

from mrm.ai.v1 import feedback_pb2
from mrm.ai.v1 import feedback_service_pb2 as pb
from server.feedback import convert
from server.intervals import wilson
from server.rpc import values
from server.rpc.call import Call
from server.rpc.errors import InvalidRequest, ResourceExhausted
from server.statistics.buckets import Bucket, bucket_count, cut, day_start
from storage.postgres import feedback, reach
from storage.postgres.database import Database
from storage.postgres.feedback import Dimension, Figures, PromptName

_MOST_GROUPS: Final = 500
_MOST_BUCKETS: Final = 10_000
_DAY: Final = timedelta(days=1)
_HUNDREDTH: Final = Decimal("0.01")
_WORDS: Final[Mapping[int, Dimension]] = {
    feedback_pb2.FEEDBACK_DIMENSION_PROMPT: "prompt",
    feedback_pb2.FEEDBACK_DIMENSION_PROMPT_VERSION: "version",
    feedback_pb2.FEEDBACK_DIMENSION_LABEL: "label",
    feedback_pb2.FEEDBACK_DIMENSION_CATEGORY: "category",
    feedback_pb2.FEEDBACK_DIMENSION_CLIENT: "client",
    feedback_pb2.FEEDBACK_DIMENSION_PROJECT: "project",
    feedback_pb2.FEEDBACK_DIMENSION_EXPERIMENT: "experiment",
}


class StatisticsRpcs:
    """Implements GetFeedbackStatistics of mrm.ai.v1.FeedbackService.

    Args:
        database: Where feedback lives.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def GetFeedbackStatistics(
        self, request: pb.GetFeedbackStatisticsRequest, call: Call
    ) -> pb.GetFeedbackStatisticsResponse:
        """Tells what people did with answers, by group and time."""
        name, zone = await self._zone(request, call)
        since, before, buckets = _period(request, zone)
        dimensions = [_WORDS[each] for each in request.dimensions]
        rows = await feedback.figures(
            self._database,
            call.scope,
            convert.selection(request.filter, since, before),
            dimensions=dimensions,
            buckets=[_instant(bucket.start) for bucket in buckets],
            limit=(_MOST_GROUPS + 2) * (1 + len(buckets)),
        )
        groups = _groups(rows, buckets)
        names = await feedback.prompt_names_internal(
            self._database,
            [each.prompt_version_id for each in rows if each.prompt_version_id],
            [each.prompt_id for each in rows if each.prompt_id],
        )
        total = _group(groups.pop(0), buckets, names)
        return pb.GetFeedbackStatisticsResponse(
            groups=[_group(each, buckets, names) for each in groups], total=total, time_zone=name
        )

    async def _zone(self, request: pb.GetFeedbackStatisticsRequest, call: Call) -> tuple[str, ZoneInfo]:
        name = request.time_zone
        if not name and len(request.filter.client_ids) == 1:
            client_id = UUID(request.filter.client_ids[0])
            name = (await reach.clients(self._database, call.scope, [client_id])).get(client_id, "")
        name = name or "UTC"
        return name, values.time_zone(name, "time_zone")


def _period(
    request: pb.GetFeedbackStatisticsRequest, zone: ZoneInfo
) -> tuple[datetime | None, datetime | None, list[Bucket]]:
    """First instant, first instant after, and the parts of the time to cover."""
    if not request.HasField("dates"):
        if request.trend_granularity:
            raise InvalidRequest.field("dates", "REQUIRED", "is required for a trend")
        return None, None, []
    first = values.day(request.dates.start_date, "dates.start_date")
    last = values.day(request.dates.end_date, "dates.end_date")
    assert first is not None
    assert last is not None
    try:
        start, end = day_start(first, zone), day_start(last + _DAY, zone)
        since, before = _instant(start), _instant(end)
    except OverflowError:
        raise InvalidRequest.field("dates", "DATE_INVALID", "is at the end of the calendar") from None
    if not request.trend_granularity:
        return since, before, []
    if bucket_count(request.trend_granularity, start, end) > _MOST_BUCKETS:
        raise _too_large("shorten the period or widen the buckets")
    return since, before, cut(request.trend_granularity, zone, start, end)


def _groups(rows: Sequence[Figures], buckets: Sequence[Bucket]) -> list[list[Figures]]:
    """The rows of all groups together, then of each group; a group's whole time comes first.

    Raises:
        ResourceExhausted: They are too many.
    """
    found: dict[tuple[object, ...], list[Figures]] = {}
    for row in rows:
        key = (row.is_total, row.prompt_id, row.prompt_version_id, row.label, row.category, row.client_id,
               row.project_id, row.experiment_id)  # fmt: skip
        found.setdefault(key, []).append(row)
    groups = list(found.values())
    if len(groups) - 1 > _MOST_GROUPS or len(groups) * len(buckets) > _MOST_BUCKETS:
        raise _too_large("narrow the filter, name fewer dimensions, or widen the buckets")
    return groups


def _too_large(advice: str) -> ResourceExhausted:
    return ResourceExhausted(
        f"this has more than {_MOST_GROUPS} groups or {_MOST_BUCKETS} buckets: {advice}", reason="QUERY_TOO_LARGE"
    )


def _group(
    rows: Sequence[Figures], buckets: Sequence[Bucket], names: Mapping[UUID, PromptName]
) -> feedback_pb2.FeedbackGroup:
    whole = rows[0]
    named = names.get(whole.prompt_version_id or whole.prompt_id or UUID(int=0))
    counted = {row.bucket: row for row in rows[1:]}
    group = feedback_pb2.FeedbackGroup(
        prompt_id=str(named.prompt_id) if named else "",
        prompt_name=named.name if named else "",
        prompt_version_id=str(whole.prompt_version_id or ""),
        prompt_version=named.version if named else 0,
        label=whole.label or "",
        prompt_category=convert.CATEGORIES.number(whole.category or ""),
        client_id=str(whole.client_id or ""),
        project_id=str(whole.project_id or ""),
        prompt_experiment_id=str(whole.experiment_id or ""),
        figures=_figures(whole),
    )
    for number, bucket in enumerate(buckets):
        row = counted.get(number)
        group.buckets.add(
            start_date=bucket.start_date,
            start_time=values.timestamp(_instant(bucket.start)),
            end_time=values.timestamp(_instant(bucket.end)),
            figures=_figures(row) if row else feedback_pb2.FeedbackFigures(),
        )
    return group


def _figures(row: Figures) -> feedback_pb2.FeedbackFigures:
    return feedback_pb2.FeedbackFigures(
        count=row.count,
        accepted_count=row.accepted,
        edited_count=row.edited,
        rejected_count=row.rejected,
        acceptance_rate=_rate(row.accepted, row.count),
        edit_rate=_rate(row.edited, row.count),
        rejection_rate=_rate(row.rejected, row.count),
        measured_count=row.measured,
        mean_edit_percent=None if row.mean is None else _rounded(row.mean),
        p50_edit_percent=convert.percent(row.p50),
        p90_edit_percent=convert.percent(row.p90),
    )


def _rate(hits: int, count: int) -> feedback_pb2.FeedbackRate | None:
    """A share of some feedback with its interval; None of none."""
    if not count:
        return None
    low, high = wilson(hits, count)
    return feedback_pb2.FeedbackRate(
        percent=_rounded(Decimal(100 * hits) / count),
        low_percent=_rounded(Decimal(100 * low)),
        high_percent=_rounded(Decimal(100 * high)),
    )


def _rounded(value: Decimal) -> str:
    return convert.percent(value.quantize(_HUNDREDTH, ROUND_HALF_EVEN)) or ""


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
