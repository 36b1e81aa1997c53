"""QueryStatistics and GetFreshness."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from mrm.statistics.v1 import metrics_pb2, statistics_service_pb2
from server.rpc import values
from server.rpc.call import Call
from server.statistics import figures, rules
from server.statistics.buckets import Bucket, cut
from server.statistics.reach import ReachResolver, require
from server.statistics.watermark import WatermarkReader
from storage.clickhouse import metrics
from storage.clickhouse.connect import ClickHouse, ClickHouseError
from storage.clickhouse.metrics import NO_FIGURES, Combination, Dimension, Sum
from storage.postgres import metrics_state, reach
from storage.postgres.database import Database

# Making this many rows takes long enough to be worth a thread, so that other calls go on.
_THREAD_ROWS = 500
# ClickHouse's own limits: TOO_MANY_ROWS, MEMORY_LIMIT_EXCEEDED, TOO_MANY_BYTES, TOO_MANY_ROWS_OR_BYTES.
_LIMIT_CODES = frozenset({158, 241, 307, 396})
_NO_COMBINATION = Combination((), "")


class QueryRpcs:
    """RPCs that read figures once.

    Args:
        database: Knows rights and the watermark.
        clickhouse: Holds the figures.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._reach = ReachResolver(database)
        self._watermark = WatermarkReader(database)

    async def QueryStatistics(
        self, request: statistics_service_pb2.QueryStatisticsRequest, call: Call
    ) -> statistics_service_pb2.QueryStatisticsResponse:
        """Sums figures over time buckets and dimensions."""
        reached = await self._reach.resolve(call.scope, rules.read_filter(request.filter))
        name = request.time_zone or reached.time_zone or "UTC"
        zone = values.time_zone(name, "time_zone")
        start, end = rules.read_period(request, zone)
        rules.check_buckets(request.granularity, start, end)
        buckets = cut(request.granularity, zone, start, end)
        dimensions = rules.read_dimensions(request.dimensions)
        # Read before the figures, which may be newer than it but never older.
        watermark = await self._watermark.instant()
        try:
            found, sums = await self._measure(reached.selection, buckets, dimensions)
        except ClickHouseError as error:
            if error.code in _LIMIT_CODES:
                raise rules.QueryTooLarge("this reads too much: shorten the period or narrow the filter") from None
            raise
        if len(buckets) * len(found) > _THREAD_ROWS:
            rows = await asyncio.to_thread(_rows, buckets, found, sums, dimensions)
        else:
            rows = _rows(buckets, found, sums, dimensions)
        return statistics_service_pb2.QueryStatisticsResponse(
            rows=rows, time_zone=name, watermark_time=values.timestamp(watermark)
        )

    async def GetFreshness(
        self, request: statistics_service_pb2.GetFreshnessRequest, call: Call
    ) -> statistics_service_pb2.GetFreshnessResponse:
        """Tells how current a client's figures are."""
        client_id = values.required_id(request.client_id, "client_id")
        require("client", [client_id], await reach.clients(self._database, call.scope, [client_id]))
        watermark = await self._watermark.instant()
        floor = await metrics_state.get_raw_floor(self._database)
        fresh = await metrics.freshness(self._clickhouse, client_id, watermark or datetime.fromtimestamp(0, UTC))
        return statistics_service_pb2.GetFreshnessResponse(
            watermark_time=values.timestamp(watermark),
            last_event_time=values.timestamp(fresh.last_event_time),
            dirty_slice_count=fresh.dirty_slices,
            quarantined_count=fresh.quarantined,
            raw_floor_time=values.timestamp(floor),
        )

    async def _measure(
        self, selection: metrics.Selection, buckets: Sequence[Bucket], dimensions: Sequence[Dimension]
    ) -> tuple[list[Combination], list[Sum]]:
        start, end = buckets[0].start, buckets[-1].end
        limit = rules.MOST_ROWS // len(buckets) + 1
        found = await metrics.combinations(self._clickhouse, selection, start, end, dimensions, limit)
        rules.check_rows(len(buckets), len(found))
        if not found:
            return [_NO_COMBINATION], []
        bounds = [*(bucket.start for bucket in buckets), end]
        return sorted(found, key=_order), await metrics.sums(self._clickhouse, selection, bounds, dimensions)


def _rows(
    buckets: Sequence[Bucket], found: Sequence[Combination], sums: Sequence[Sum], dimensions: Sequence[Dimension]
) -> list[metrics_pb2.MetricsRow]:
    """One row per bucket and combination, measured or not."""
    measured = {(each.bucket, each.combination): each.figures for each in sums}
    described = [(combination, _described(dimensions, combination)) for combination in found]
    return [
        metrics_pb2.MetricsRow(
            start_time=Timestamp(seconds=bucket.start),
            end_time=Timestamp(seconds=bucket.end),
            start_date=bucket.start_date,
            metrics=figures.to_message(measured.get((bucket.start, combination), NO_FIGURES), combination.currency),
            data_present=(bucket.start, combination) in measured,
            **fields,
        )
        for bucket in buckets
        for combination, fields in described
    ]


def _described(dimensions: Sequence[Dimension], combination: Combination) -> dict[str, Any]:
    return {
        name: rules.PLATFORMS.number(str(value)) if name == "platform" else str(value)
        for name, value in zip(dimensions, combination.values, strict=bool(combination.values))
    }


def _order(combination: Combination) -> tuple[str, ...]:
    return (*(str(value) for value in combination.values), combination.currency)
