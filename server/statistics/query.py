"""QueryStatistics and GetFreshness."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID
from zoneinfo import ZoneInfo

from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import metrics_pb2, statistics_service_pb2
from server.rpc import values
from server.rpc.call import Call
from server.rpc.errors import NotFound
from server.settings import QuerySettings
from server.statistics import breakdowns, ranking, reply, rules
from server.statistics.breakdowns import Breakdown
from server.statistics.buckets import HOUR, Bucket, cut, earlier
from server.statistics.ranking import Measured, Series
from server.statistics.reach import Fallback, ReachResolver
from server.statistics.watermark import WatermarkReader
from storage.clickhouse import event_types, metrics, precedence, series
from storage.clickhouse.connect import ClickHouse, ClickHouseError
from storage.clickhouse.metrics import Figures, Selection
from storage.postgres import archives, metrics_state, reach, rollups
from storage.postgres.database import Database
from storage.postgres.reach import PlanPlace
from storage.scope import Scope

# Making this many rows takes long enough to be worth a thread, so that other calls go on.
_THREAD_ROWS = 500
# There cannot be more sums than rows are read: below this many, counting combinations first is not worth a statement.
_FEW_ROWS = 2_000_000
# ClickHouse's own limits: TOO_MANY_ROWS, MEMORY_LIMIT_EXCEEDED, TOO_MANY_BYTES, TOO_MANY_ROWS_OR_BYTES.
_LIMIT_CODES = frozenset({158, 241, 307, 396})

Request = statistics_service_pb2.QueryStatisticsRequest
Response = statistics_service_pb2.QueryStatisticsResponse


@dataclass(frozen=True, slots=True)
class _Question:
    """What is measured, over which time, and broken down by what."""

    request: Request
    selection: Selection
    zone: ZoneInfo
    breakdown: Breakdown
    buckets: Sequence[Bucket]
    earlier: Sequence[Bucket]

    @property
    def bounds(self) -> list[int]:
        """Bounds of all buckets, the earlier ones as well, without those that hold no instant."""
        return sorted({bucket.start for bucket in (*self.earlier, *self.buckets)} | {self.buckets[-1].end})


class QueryRpcs:
    """RPCs that read figures once.

    Args:
        database: Knows rights, media plans and the watermark.
        clickhouse: Holds the figures.
        settings: Limits.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse, settings: QuerySettings | None = None) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._settings = settings or QuerySettings()
        self._reach = ReachResolver(database)
        self._watermark = WatermarkReader(database)
        self._places: Fallback[dict[UUID, PlanPlace]] = Fallback()

    async def QueryStatistics(self, request: Request, call: Call) -> bytes:
        """Sums figures over time buckets and dimensions; the reply is serialized already."""
        breakdown = breakdowns.read(request.dimensions)
        reached = await self._reach.resolve(call.scope, rules.read_filter(request.filter))
        name = request.time_zone or reached.time_zone or "UTC"
        zone = values.time_zone(name, "time_zone")
        start, end = rules.read_period(request, zone)
        rules.check_buckets(request.granularity, start, end)
        buckets = cut(request.granularity, zone, start, end)
        before = earlier(buckets, zone) if request.compare_previous else []
        question = _Question(request, reached.selection, zone, breakdown, buckets, before)
        try:
            # The watermark is read before the figures, which may be newer than it but never older.
            watermark, rows, mixed = await asyncio.gather(
                self._watermark.instant(), self._readable(question), self._mixed(question)
            )
            measured = await self._measure(question, rows, mixed)
        except ClickHouseError as error:
            if error.code in _LIMIT_CODES:
                raise rules.QueryTooLarge("this reads too much: shorten the period or narrow the filter") from None
            raise
        if breakdown.by_plan:
            measured = breakdown.regrouped(measured, await self._plan_places(call.scope, breakdown.campaigns(measured)))
        about = Response(time_zone=name, watermark_time=values.timestamp(watermark)).SerializeToString()
        if sum(map(len, measured.values())) + len(buckets) > _THREAD_ROWS:
            return await asyncio.to_thread(_reply, question, measured, about)
        return _reply(question, measured, about)

    async def GetFreshness(
        self, request: statistics_service_pb2.GetFreshnessRequest, call: Call
    ) -> statistics_service_pb2.GetFreshnessResponse:
        """Tells how current a client's figures are."""
        client_id = values.required_id(request.client_id, "client_id")
        rolled = await rollups.state(self._database, call.scope, client_id)
        if rolled is None:
            raise NotFound.resource("client", str(client_id))
        watermark = await self._watermark.instant()
        floor = await metrics_state.get_raw_floor(self._database)
        fresh = await metrics.freshness(self._clickhouse, client_id, watermark or datetime.fromtimestamp(0, UTC))
        return statistics_service_pb2.GetFreshnessResponse(
            watermark_time=values.timestamp(watermark),
            last_event_time=values.timestamp(fresh.last_event_time),
            dirty_slice_count=fresh.dirty_slices,
            quarantined_count=fresh.quarantined,
            raw_floor_time=values.timestamp(floor),
            rolled_up_through_date=rolled.rolled_through.isoformat() if rolled.rolled_through else "",
            rollup_time=values.timestamp(rolled.rolled_at),
        )

    async def _readable(self, question: _Question) -> int:
        """About how many rows would be read; refuses the question if they are too many."""
        bounds, by_event_type = question.bounds, question.breakdown.by_event_type
        if by_event_type:
            rules.check_raw_floor(question.request, bounds[0], await archives.events_from(self._database))
            rows = await event_types.event_rows(
                self._clickhouse, question.selection, bounds, question.breakdown.columns
            )
        else:
            rows = await event_types.metric_rows(self._clickhouse, question.selection, bounds[0], bounds[-1])
        days = -(-(question.buckets[-1].end - question.buckets[0].start) // (24 * HOUR))
        rules.check_reading(rows, self._settings.max_read_rows, question.request, days, by_event_type)
        return rows

    async def _mixed(self, question: _Question) -> bool:
        """Whether sources have to be weighed, which raw events never need."""
        if question.breakdown.by_event_type:
            return False
        return await precedence.has_snapshots(self._clickhouse, question.selection.clients)

    async def _measure(self, question: _Question, rows: int, mixed: bool) -> Measured:
        """Figures by what the breakdown is measured by; refuses what would be too many."""
        store, selection, bounds = self._clickhouse, question.selection, question.bounds
        condensed = question.breakdown.by_plan or question.request.HasField("top")
        most = rules.MOST_SUMS // (len(bounds) - 1) if condensed else rules.MOST_ROWS // len(question.buckets)

        def check(combinations: int) -> None:
            if condensed:
                rules.check_sums(len(bounds) - 1, combinations)
            else:
                rules.check_rows(len(question.buckets), combinations)

        if question.breakdown.by_event_type:
            sums = await event_types.sums(store, selection, bounds, question.breakdown.columns, rules.MOST_SUMS + 1)
            if len(sums) > rules.MOST_SUMS:
                rules.check_sums(len(bounds) - 1, rules.MOST_SUMS + 1)
            measured: Measured = ranking.grouped(sums)
        else:
            columns, covered = question.breakdown.metric_columns, precedence.covers(bounds, question.zone)
            if rows > _FEW_ROWS:
                found = await metrics.combinations(
                    store, selection, bounds[0], bounds[-1], columns, most + 1, covered=covered
                )
                check(len(found))
            measured = await series.series(store, selection, bounds, columns, most + 1, mixed=mixed, covered=covered)
        check(len(measured))
        return measured

    async def _plan_places(self, scope: Scope, campaign_ids: Sequence[UUID]) -> dict[UUID, PlanPlace]:
        return await self._places.get(
            (scope, tuple(campaign_ids)), lambda: reach.plan_places(self._database, scope, campaign_ids)
        )


def _reply(question: _Question, measured: Measured, about: bytes) -> bytes:
    """The reply: one row per bucket and combination, measured or not, and the totals if they are asked for."""
    request, buckets, before = question.request, question.buckets, question.earlier
    kept, rest = ranking.Ranked(measured, {})
    if request.HasField("top"):
        starts = {bucket.start for bucket in buckets}
        kept, rest = ranking.ranked(measured, request.top.count, ranking.METRICS[request.top.metric], starts)
    rules.check_rows(len(buckets), len(kept) + len(rest))
    described = question.breakdown.described
    lines = [
        reply.Line(described(each).SerializeToString(), each.currency, kept[each])
        for each in sorted(kept, key=ranking.order)
    ]
    other = metrics_pb2.MetricsRow(other=True).SerializeToString()
    lines += [reply.Line(other, currency, series) for currency, series in sorted(rest.items())]
    parts = [about, *reply.serialized(reply.ROWS, buckets, before, lines or [_nothing()])]
    if request.include_totals:
        parts += _totals(question, measured)
    data = b"".join(parts)
    rules.check_size(len(data))
    return data


def _totals(question: _Question, measured: Measured) -> list[bytes]:
    """One row per currency over the whole period."""
    buckets, before = question.buckets, question.earlier
    [whole] = cut(time_pb2.GRANULARITY_TOTAL, question.zone, buckets[0].start, buckets[-1].end)
    spans = [(whole, buckets)]
    earlier_whole = []
    if before:
        earlier_whole = [Bucket(before[0].start, before[-1].end, "")]
        spans.append((earlier_whole[0], before))

    def condensed(found: Series) -> dict[int, Figures]:
        sums = {span.start: ranking.over(found, {bucket.start for bucket in some}) for span, some in spans}
        return {start: figures for start, figures in sums.items() if figures is not None}

    lines = [reply.Line(b"", currency, condensed(found)) for currency, found in ranking.totals(measured).items()]
    return reply.serialized(reply.TOTALS, [whole], earlier_whole, lines or [_nothing()])


def _nothing() -> reply.Line:
    """The line of a question about which nothing is known: its buckets appear all the same."""
    return reply.Line(b"", "", {})
