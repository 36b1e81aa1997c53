# ruff: noqa: S608 - what statements are put together from are constants, integers and UUID objects
"""Rebuilds figures from raw events: finds marked slices, and replaces slices and their hours as a whole.

A rebuild starts from the list of slices, not from the events: a slice whose events are gone becomes a row of zeros,
where a plain GROUP BY would leave the old figures for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple
from uuid import UUID

from storage.clickhouse.connect import ClickHouse, Setting
from storage.clickhouse.metrics import LONG_STATEMENT

SLICE_SECONDS = 900
BUCKET_MILLIS = 50
"""Marks are counted in buckets of this width of their mark time."""

Lane = Literal["live", "late"]
"""Marks of slices that were running or had just ended, and all others. A mark's lane never changes."""

_LANES: Mapping[Lane, str] = {
    "live": "slice_start >= mark_time - INTERVAL 1 HOUR",
    "late": "slice_start < mark_time - INTERVAL 1 HOUR",
}
_BUCKET = f"intDiv(toUnixTimestamp64Milli(mark_time), {BUCKET_MILLIS})"
_SUMS = """countIf(event_type = 'impression') AS impressions, countIf(event_type = 'click') AS clicks,
    sum(conversions) AS conversions, sum(cost) AS cost, sum(revenue) AS revenue, count() AS event_count"""
_FIGURES = "impressions, clicks, conversions, cost, revenue, event_count"
# Follows the sorting key, so that only its ranges are read.
_OF_WANTED = """(client_id, campaign_id, toStartOfHour(event_time), toStartOfFifteenMinutes(event_time)) IN (
            SELECT client_id, campaign_id, toStartOfHour(slice_start), slice_start FROM wanted)"""
_REBUILD_SECONDS = 60.0
_NAMED = 200
_MARK_LEAD_MILLIS = 2000


class Slice(NamedTuple):
    """A quarter of an hour of one campaign; `start` in Unix seconds."""

    client_id: UUID
    campaign_id: UUID
    start: int


class Look(NamedTuple):
    """Marks as they are at some moment.

    Attributes:
        clock: ClickHouse's clock while it looked, in Unix milliseconds: marks may be older than that and not counted.
        counts: Bucket to number of marks.
        slices: Bucket to its slices, for some of the buckets.
    """

    clock: int
    counts: dict[int, int]
    slices: dict[int, list[Slice]]


async def now_millis(store: ClickHouse) -> int:
    """The clock by which ClickHouse marks and stores, in Unix milliseconds."""
    [(millis,)] = await store.fetch("SELECT toUnixTimestamp64Milli(now64(3))", timeout=5.0)
    return int(millis)


async def look(store: ClickHouse, lane: Lane, since: int, limit: int, named_from: int) -> Look:
    """Counts marks per bucket of mark time, for the `limit` oldest buckets that have any.

    Args:
        store: Where to run it.
        lane: Which marks.
        since: Marks from here on, in Unix milliseconds.
        limit: Most buckets.
        named_from: The slices of buckets from this one on are named, too, unless they are many.
    """
    [(clock, buckets, counts, named)] = await store.fetch(
        f"""SELECT toUnixTimestamp64Milli(now64(3)), groupArray(bucket), groupArray(marks), groupArray(slices) FROM (
          SELECT {_BUCKET} AS bucket, count() AS marks,
            groupUniqArrayIf({_NAMED + 1})((client_id, campaign_id, toUnixTimestamp(slice_start)),
              bucket >= {named_from:d}) AS slices
          FROM dirty_slices
          WHERE mark_time >= fromUnixTimestamp64Milli({since:d}) AND {_LANES[lane]}
          GROUP BY bucket ORDER BY bucket LIMIT {limit:d})"""
    )
    slices = {
        bucket: [Slice(*each) for each in some]
        for bucket, some in zip(buckets, named, strict=True)
        if bucket >= named_from and len(some) <= _NAMED
    }
    return Look(clock, dict(zip(buckets, counts, strict=True)), slices)


async def marked_slices(
    store: ClickHouse, lane: Lane, buckets: Collection[int], floor: int, below: Slice | None, limit: int
) -> list[Slice]:
    """Slices with a mark in some buckets, the latest first.

    Args:
        store: Where to run it.
        lane: Which marks.
        buckets: Buckets as counted by `look`.
        floor: Slices that begin before this are left out, in Unix seconds: their raw events may be gone.
        below: Only slices that come after this one in the order.
        limit: Most slices.
    """
    begin, end = min(buckets) * BUCKET_MILLIS, (max(buckets) + 1) * BUCKET_MILLIS
    rows = await store.fetch(
        f"""SELECT client_id, campaign_id, toUnixTimestamp(slice_start) AS start FROM dirty_slices
        WHERE mark_time >= fromUnixTimestamp64Milli({begin:d}) AND mark_time < fromUnixTimestamp64Milli({end:d})
          AND {_LANES[lane]} AND {_BUCKET} IN ({", ".join(str(int(bucket)) for bucket in buckets)})
          AND slice_start >= toDateTime({floor:d}, 'UTC') {_after(below)}
        GROUP BY client_id, campaign_id, start
        ORDER BY start DESC, client_id DESC, campaign_id DESC LIMIT {limit:d}""",
        settings=LONG_STATEMENT,
    )
    return [Slice(*row) for row in rows]


async def unmarked_slices(
    store: ClickHouse, since: int, until: int, floor: int, below: Slice | None, limit: int
) -> list[Slice]:
    """Slices with events stored from `since` to `until` (Unix milliseconds) that no mark accounts for.

    An insert draws both times, the mark's perhaps a little earlier. Otherwise as `marked_slices`.
    """
    rows = await store.fetch(
        f"""SELECT client_id, campaign_id, toUnixTimestamp(slice_start) AS start
        FROM (
          SELECT client_id, campaign_id, toStartOfFifteenMinutes(event_time) AS slice_start, max(ingest_time) AS stored
          FROM campaign_events
          WHERE ingest_time >= fromUnixTimestamp64Milli({since:d}) AND ingest_time < fromUnixTimestamp64Milli({until:d})
          GROUP BY client_id, campaign_id, slice_start
        ) AS touched
        LEFT JOIN (
          SELECT client_id, campaign_id, slice_start, max(mark_time) AS marked FROM dirty_slices
          WHERE mark_time >= fromUnixTimestamp64Milli({since - _MARK_LEAD_MILLIS:d})
          GROUP BY client_id, campaign_id, slice_start
        ) AS marks USING (client_id, campaign_id, slice_start)
        WHERE marked < stored - INTERVAL {_MARK_LEAD_MILLIS:d} MILLISECOND
          AND slice_start >= toDateTime({floor:d}, 'UTC') {_after(below)}
        ORDER BY start DESC, client_id DESC, campaign_id DESC LIMIT {limit:d}""",
        settings={**LONG_STATEMENT, "max_threads": 1},
        timeout=_REBUILD_SECONDS,
    )
    return [Slice(*row) for row in rows]


async def stale_slices(store: ClickHouse, slices: Sequence[Slice]) -> list[Slice]:
    """Those of the slices whose figures are not those of their events."""
    rows = await store.fetch(
        f"""WITH {_wanted(slices)}
        SELECT wanted.client_id, wanted.campaign_id, toUnixTimestamp(wanted.slice_start)
        FROM wanted
        LEFT JOIN ({_measured(slices)}) AS measured USING (client_id, campaign_id, slice_start)
        LEFT JOIN (
          SELECT client_id, campaign_id, slice_start, {_FIGURES} FROM campaign_metrics_slices FINAL
          WHERE (client_id, campaign_id, slice_start) IN (SELECT client_id, campaign_id, slice_start FROM wanted)
        ) AS held USING (client_id, campaign_id, slice_start)
        WHERE ({_prefixed("measured")}) != ({_prefixed("held")})""",
        settings={**LONG_STATEMENT, "max_threads": 1},
        timeout=_REBUILD_SECONDS,
    )
    return [Slice(*row) for row in rows]


async def stored_rows(store: ClickHouse, slices: Sequence[Slice]) -> dict[Slice, int]:
    """Rows that are stored for slices, repeats included: what a rebuild has to read."""
    begin, end = _span(slices, SLICE_SECONDS)
    rows = await store.fetch(
        f"""WITH {_wanted(slices)}
        SELECT client_id, campaign_id, toUnixTimestamp(toStartOfFifteenMinutes(event_time)) AS start, count()
        FROM campaign_events
        WHERE {_OF_WANTED}
          AND event_time >= toDateTime({begin:d}, 'UTC') AND event_time < toDateTime({end:d}, 'UTC')
        GROUP BY client_id, campaign_id, start""",
        settings={**LONG_STATEMENT, "max_threads": 1},
    )
    return {Slice(*row[:3]): row[3] for row in rows}


async def rebuild(store: ClickHouse, slices: Sequence[Slice], version: int, threads: int) -> None:
    """Replaces the figures of slices, then of their hours, by what the events say now.

    Args:
        store: Where to run it.
        slices: The slices, none below the raw floor; at most some thousand.
        version: Version of the rows, taken before this call; rows with a larger one prevail.
        threads: Most threads of the engine.
    """
    settings: dict[str, Setting] = {**LONG_STATEMENT, "max_threads": threads, "max_insert_threads": 1}
    await store.execute(slices_statement(store.database, slices, version), settings=settings, timeout=_REBUILD_SECONDS)
    await store.execute(hours_statement(slices, version), settings=settings, timeout=_REBUILD_SECONDS)


def slices_statement(database: str, slices: Sequence[Slice], version: int) -> str:
    """The statement that replaces slices."""

    # Events carry what the dictionary says, as it was when they came; a row without either would be nobody's.
    def known(column: str) -> str:
        return f"dictGetOrDefault('{database}.campaigns_dict', '{column}', campaign_id, measured.{column})"

    return f"""INSERT INTO campaign_metrics_slices
          (client_id, campaign_id, slice_start, project_id, platform, currency, {_FIGURES}, version)
        WITH {_wanted(slices)}
        SELECT client_id, campaign_id, slice_start, {known("project_id")}, {known("platform")} AS platform_now,
          {known("currency")}, {_prefixed("measured")}, toUInt64({version:d})
        FROM wanted LEFT JOIN ({_measured(slices)}) AS measured USING (client_id, campaign_id, slice_start)
        WHERE platform_now != ''"""


def hours_statement(slices: Sequence[Slice], version: int) -> str:
    """The statement that replaces the hours of slices."""
    begin, end = _span(slices, 3600)
    return f"""INSERT INTO campaign_metrics_hourly
          (client_id, campaign_id, platform, source, grain, hour, project_id, currency, {_FIGURES}, version)
        WITH {_wanted(slices)}
        SELECT client_id, campaign_id, argMax(platform, s.version), 'events', 'hour',
          toStartOfHour(slice_start) AS hour, argMax(project_id, s.version), argMax(currency, s.version),
          sum(s.impressions), sum(s.clicks), sum(s.conversions), sum(s.cost), sum(s.revenue), sum(s.event_count),
          toUInt64({version:d})
        FROM campaign_metrics_slices AS s FINAL
        WHERE (client_id, campaign_id, slice_start) IN (
            SELECT client_id, campaign_id, arrayJoin([begin, begin + 900, begin + 1800, begin + 2700])
            FROM (SELECT DISTINCT client_id, campaign_id, toStartOfHour(slice_start) AS begin FROM wanted))
          AND slice_start >= toDateTime({begin:d}, 'UTC') AND slice_start < toDateTime({end:d}, 'UTC')
        GROUP BY client_id, campaign_id, hour"""


def _measured(slices: Sequence[Slice]) -> str:
    """Figures of slices from their events."""
    begin, end = _span(slices, SLICE_SECONDS)
    return f"""SELECT client_id, campaign_id, toStartOfFifteenMinutes(event_time) AS slice_start,
          any(project_id) AS project_id, any(platform) AS platform, any(currency) AS currency, {_SUMS}
        FROM campaign_events FINAL
        WHERE {_OF_WANTED}
          AND event_time >= toDateTime({begin:d}, 'UTC') AND event_time < toDateTime({end:d}, 'UTC')
        GROUP BY client_id, campaign_id, slice_start"""


def _wanted(slices: Sequence[Slice]) -> str:
    """The slices as a table of the statement: parsed as data, which is faster than thousands of SQL literals."""
    lines = "\\n".join(f"{s.client_id}\\t{s.campaign_id}\\t{s.start:d}" for s in slices)
    return f"""wanted AS (
          SELECT client_id, campaign_id, toDateTime(start, 'UTC') AS slice_start
          FROM format(TSV, 'client_id UUID, campaign_id UUID, start UInt32', '{lines}'))"""


def _prefixed(table: str) -> str:
    return ", ".join(f"{table}.{column}" for column in _FIGURES.split(", "))


def _span(slices: Sequence[Slice], step: int) -> tuple[int, int]:
    """Bounds of the slices, widened to full steps."""
    starts = [s.start for s in slices]
    return min(starts) // step * step, (max(starts) // step + 1) * step


def _after(below: Slice | None) -> str:
    if below is None:
        return ""
    client, campaign = below.client_id, below.campaign_id
    return f"AND (start, client_id, campaign_id) < ({below.start:d}, toUUID('{client}'), toUUID('{campaign}'))"
