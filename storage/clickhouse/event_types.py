# ruff: noqa: S608 - what statements are put together from are constants, integers and UUID objects
"""Figures by kind of event, which only the raw events know, and how much a question would make ClickHouse read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.metrics import LONG_STATEMENT, Combination, Dimension, Figures, Selection, Sum

EventDimension = Dimension | Literal["event_type"]

_SUMS = """countIf(event_type = 'impression'), countIf(event_type = 'click'),
  toInt128(sum(conversions) * 1000000), toInt128(sum(cost) * 1000000), toInt128(sum(revenue) * 1000000)"""


async def sums(
    store: ClickHouse, selection: Selection, bounds: Sequence[int], dimensions: Sequence[EventDimension], limit: int
) -> list[Sum]:
    """Sums of own events per bucket and combination, up to `limit` of them; those without events are left out.

    Args:
        store: Where to run it.
        selection: What to measure.
        bounds: Starts of the buckets in Unix seconds, ascending, and the end of the last one. All are full hours.
        dimensions: What to break down by.
        limit: Most sums; ask for one more than can be used to learn that there are too many.
    """
    rows = await store.fetch(
        f"{_statement(selection, bounds, dimensions)} LIMIT {limit:d}",
        selection.parameters(),
        settings=LONG_STATEMENT,
    )
    width = len(dimensions)
    return [Sum(row[0], Combination(row[1 : 1 + width], row[1 + width]), Figures(*row[2 + width :])) for row in rows]


async def event_rows(
    store: ClickHouse, selection: Selection, bounds: Sequence[int], dimensions: Sequence[EventDimension]
) -> int:
    """About how many rows `sums` would read: those of the ranges that the sorting key leaves."""
    return await _estimate(store, selection, _statement(selection, bounds, dimensions))


async def metric_rows(store: ClickHouse, selection: Selection, start: int, end: int) -> int:
    """About how many hourly rows lie in the ranges that a question about some time (Unix seconds) would read."""
    return await _estimate(
        store,
        selection,
        f"""SELECT sum(impressions) FROM campaign_metrics_hourly
        WHERE {selection.condition()} AND hour >= toDateTime({start:d}, 'UTC') AND hour < toDateTime({end:d}, 'UTC')""",
    )


def _statement(selection: Selection, bounds: Sequence[int], dimensions: Sequence[EventDimension]) -> str:
    starts = ", ".join(str(int(bound)) for bound in bounds[:-1])
    columns = ", ".join((*dimensions, "currency"))
    return f"""SELECT roundDown(toUnixTimestamp(event_time), [{starts}]::Array(UInt32)) AS bucket, {columns}, {_SUMS}
        FROM campaign_events FINAL
        WHERE {selection.condition()}
          AND toStartOfHour(event_time) >= toDateTime({bounds[0]:d}, 'UTC')
          AND event_time >= toDateTime({bounds[0]:d}, 'UTC') AND event_time < toDateTime({bounds[-1]:d}, 'UTC')
        GROUP BY bucket, {columns}"""


async def _estimate(store: ClickHouse, selection: Selection, statement: str) -> int:
    # Planned only: the sorting key and the partitions say which ranges would be read.
    rows = await store.fetch(
        f"SELECT sum(rows) FROM (EXPLAIN ESTIMATE {statement})", selection.parameters(), settings=LONG_STATEMENT
    )
    return int(rows[0][0])
