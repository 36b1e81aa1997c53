# ruff: noqa: S608 - what statements are put together from are constants, integers and UUID objects
"""The figures that count, as one series per combination: the shape in which thousands of them reach Python fastest."""

from __future__ import annotations

from collections.abc import Sequence

from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.metrics import Combination, Dimension, Run, Selection
from storage.clickhouse.precedence import LONG_STATEMENT, Cover, Resolved

# A figure that does not fit 64 bits fits no reply either, and is an error rather than a wrong figure.
_SUMS = """accurateCast(sum(impressions), 'Int64') AS shown, accurateCast(sum(clicks), 'Int64') AS clicked,
  accurateCast(sum(conversions) * 1000000, 'Int64') AS converted, accurateCast(sum(cost) * 1000000, 'Int64') AS spent,
  accurateCast(sum(revenue) * 1000000, 'Int64') AS earned"""
_COLUMNS = ("bucket", "shown", "clicked", "converted", "spent", "earned")


async def series(
    store: ClickHouse,
    selection: Selection,
    bounds: Sequence[int],
    dimensions: Sequence[Dimension],
    limit: int,
    *,
    mixed: bool,
    covered: Sequence[Cover] = (),
) -> dict[Combination, Run]:
    """Sums by combination, and by the start of the bucket in Unix seconds; what has no rows that count is left out.

    An object per value and the key of each row repeated with it cost more than the sums themselves. So ClickHouse
    gathers the buckets of a combination into arrays, of integers that the driver need not take apart.

    Args:
        store: Where to run it.
        selection: What to measure.
        bounds: Starts of the buckets in Unix seconds, ascending, and the end of the last one. All are full hours.
        dimensions: What to break down by.
        limit: Most combinations; ask for one more than can be used to learn that there are too many.
        mixed: Whether there may be other sources than own events, from `precedence.has_snapshots`.
        covered: Dates that the buckets cover as a whole, from `precedence.covers`: where figures of whole days count.
            Buckets of hours cover none.
    """
    starts = ", ".join(str(int(bound)) for bound in bounds[:-1])
    columns = ", ".join((*dimensions, "currency"))
    resolved = Resolved(
        store.database,
        selection.condition(),
        selection.clients,
        bounds[0],
        bounds[-1],
        mixed,
        covered,
    )
    rows = await store.fetch(
        f"""SELECT {columns}, {", ".join(f"groupArray({column})" for column in _COLUMNS)} FROM (
          SELECT roundDown(at, [{starts}]::Array(UInt32)) AS bucket, {columns}, {_SUMS}
          FROM {resolved.sql()}
          WHERE counts
          GROUP BY bucket, {columns})
        GROUP BY {columns}
        LIMIT {limit:d}""",
        selection.parameters(),
        settings=LONG_STATEMENT,
    )
    width = len(dimensions)
    return {Combination(row[:width], row[width]): Run(row[width + 1], row[width + 2 :]) for row in rows}
