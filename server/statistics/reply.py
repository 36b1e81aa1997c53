"""Rows of a statistics reply, as the bytes of their messages: a message is the concatenation of its fields."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from mrm.statistics.v1 import metrics_pb2
from server.statistics import columns, figures
from server.statistics.buckets import Bucket
from server.statistics.columns import Cells, Divisor, Flags, Numbers
from server.statistics.ranking import Series
from storage.clickhouse.metrics import NO_FIGURES, Run

ROWS = b"\x0a"
"""Where QueryStatisticsResponse has its rows."""
TOTALS = b"\x22"
"""Where it has its totals."""

_METRICS, _PRESENT, _PREVIOUS = b"\x42", b"\x48\x01", b"\x72"
# So many rows at a time: their tables of bytes fit a processor's cache.
_ROWS_AT_ONCE = 2048
# Differences of numbers below this fit 64 bits, and the number itself is too large for `columns.quotients`.
_HUGE = 2**62


class Line(NamedTuple):
    """What the rows of one combination share.

    Attributes:
        head: A serialized MetricsRow with the values of the dimensions.
        currency: The currency.
        series: The figures.
    """

    head: bytes
    currency: str
    series: Series


class _Grid(NamedTuple):
    """Figures of all rows: a row of numbers for each figure, and which rows have any."""

    figures: Numbers
    present: Flags

    def part(self, start: int, end: int) -> "_Grid":
        return _Grid(self.figures[:, start:end], self.present[start:end])


def serialized(
    field: bytes, buckets: Sequence[Bucket], earlier: Sequence[Bucket], lines: Sequence[Line]
) -> list[bytes]:
    """One serialized row for each bucket and line, measured or not, in this order.

    Args:
        field: Which field of the reply they are for, `ROWS` or `TOTALS`.
        buckets: The buckets.
        earlier: For each of them the one to compare with; none to compare with nothing.
        lines: The lines.

    Raises:
        OverflowError: A figure does not fit the message.
    """
    now = _grid([bucket.start for bucket in buckets], lines)
    before = _grid(_compared(earlier), lines) if earlier else None
    times = [_times(bucket) for bucket in buckets]
    heads = [line.head for line in lines]
    currencies = [figures.currency_field(line.currency) for line in lines]
    parts: list[bytes] = []
    count = len(buckets) * len(lines)
    for start in range(0, count, _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, count)
        bucket, line = np.divmod(np.arange(start, end), len(lines))
        currency = columns.chosen(currencies, line)
        shown = now.part(start, end)
        row = [
            columns.chosen(times, bucket),
            columns.chosen(heads, line),
            *_metrics(_METRICS, shown, np.ones(end - start, np.bool_), currency),
            columns.constant(_PRESENT, shown.present),
        ]
        if before is not None:
            compared = before.part(start, end)
            row += _metrics(_PREVIOUS, compared, compared.present, currency)
        parts.append(columns.joined([columns.varints(field, columns.total(row)), *row]))
    return parts


def _metrics(field: bytes, grid: _Grid, shown: Flags, currency: Cells) -> list[Cells]:
    """A field of Metrics in the rows that are shown."""
    body = [*_sums(grid), *_ratios(grid), currency]
    cells = [columns.varints(field, columns.total(body)), *body]
    return cells if shown.all() else [columns.only(each, shown) for each in cells]


def _sums(grid: _Grid) -> Iterator[Cells]:
    impressions, clicks, conversions, cost, revenue = grid.figures
    yield columns.varints(b"\x08", impressions)
    yield columns.varints(b"\x10", clicks)
    yield from columns.decimals(0x1A, conversions)
    yield columns.varints(b"\x20", cost)
    yield columns.varints(b"\x28", revenue)


def _ratios(grid: _Grid) -> Iterator[Cells]:
    impressions, clicks, conversions, cost, revenue = grid.figures
    by_impressions, by_clicks, by_conversions, by_cost = map(Divisor, (impressions, clicks, conversions, cost))
    percent, whole = (10**4, 10**4), (10**4, 10**2)
    # Where the difference does not fit, its column holds something else that does not either.
    near = (revenue > -_HUGE) & (revenue < _HUGE) & (cost > -_HUGE) & (cost < _HUGE)
    profit = np.where(near, np.where(near, revenue, 0) - np.where(near, cost, 0), _HUGE)
    yield from columns.quotients(0x3A, clicks, by_impressions, percent)
    yield from columns.quotients(0x42, cost, by_clicks, ())
    yield from columns.quotients(0x4A, cost, by_impressions, (10**3,))
    yield from columns.quotients(0x52, conversions, by_clicks, (10**2,))
    yield from columns.quotients(0x5A, cost, by_conversions, whole)
    yield from columns.quotients(0x62, profit, by_cost, percent, lambda row: revenue.item(row) - cost.item(row))
    yield from columns.quotients(0x6A, revenue, by_cost, whole)


def _grid(starts: Sequence[int | None], lines: Sequence[Line]) -> _Grid:
    """The figures of each line at each start, all of the first start first."""
    places = np.array([(start, place) for place, start in enumerate(starts) if start is not None], np.int64)
    count = len(lines)
    numbers = np.zeros((len(NO_FIGURES), len(starts) * count), np.int64)
    present = np.zeros(len(starts) * count, np.bool_)
    runs = [Run.of(line.series) for line in lines]
    found = np.fromiter(chain.from_iterable(run.starts for run in runs), np.int64)
    if len(found) and len(places):
        known, bucket = places[np.argsort(places[:, 0])].T
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        hit = known[at] == found
        line = np.repeat(np.arange(count), [len(run.starts) for run in runs])
        rows = (bucket[at] * count + line)[hit]
        present[rows] = True
        for number, row in enumerate(numbers):
            row[rows] = np.fromiter(chain.from_iterable(run.columns[number] for run in runs), np.int64)[hit]
    return _Grid(numbers, present)


def _times(bucket: Bucket) -> bytes:
    return metrics_pb2.MetricsRow(
        start_time=Timestamp(seconds=bucket.start),
        end_time=Timestamp(seconds=bucket.end),
        start_date=bucket.start_date,
    ).SerializeToString()


def _compared(earlier: Sequence[Bucket]) -> list[int | None]:
    """Where the figures to compare with are found, for each bucket."""
    # A bucket without any instant begins where the next one does, whose figures are not its own.
    return [bucket.start if bucket.start < bucket.end else None for bucket in earlier]
