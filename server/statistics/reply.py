"""Rows of a statistics reply, as the bytes of their messages: a message is the concatenation of its fields."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from mrm.statistics.v1 import metrics_pb2
from server.statistics import figures, ratios
from server.statistics.buckets import Bucket
from server.statistics.figures import varint
from server.statistics.ranking import Series
from storage.clickhouse.metrics import NO_FIGURES

ROWS = b"\x0a"
"""Where QueryStatisticsResponse has its rows."""
TOTALS = b"\x22"
"""Where it has its totals."""

_METRICS, _PRESENT, _PREVIOUS = b"\x42", b"\x48\x01", b"\x72"
_NOTHING = figures.sums_field(NO_FIGURES)


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


def serialized(
    field: bytes, buckets: Sequence[Bucket], earlier: Sequence[Bucket], lines: Iterable[Line]
) -> list[bytes]:
    """One serialized row for each bucket and line, measured or not, in this order.

    Args:
        field: Which field of the reply they are for, `ROWS` or `TOTALS`.
        buckets: The buckets.
        earlier: For each of them the one to compare with; none to compare with nothing.
        lines: The lines.
    """
    known = [(head, series, figures.currency_field(currency)) for head, currency, series in lines]
    found = [
        (series.get(bucket.start), None if before is None else series.get(before))
        for bucket, before in zip(buckets, _starts(buckets, earlier), strict=True)
        for _, series, _ in known
    ]
    computed = iter(ratios.serialized([each for pair in found for each in pair if each is not None]))
    pairs = iter(found)
    parts: list[bytes] = []
    for bucket in buckets:
        times = metrics_pb2.MetricsRow(
            start_time=Timestamp(seconds=bucket.start),
            end_time=Timestamp(seconds=bucket.end),
            start_date=bucket.start_date,
        ).SerializeToString()
        for head, _, currency in known:
            now, previous = next(pairs)
            if now is None:
                body = _NOTHING + currency
                row = b"%b%b%b%b%b" % (times, head, _METRICS, varint(len(body)), body)
            else:
                body = b"%b%b%b" % (figures.sums_field(now), next(computed), currency)
                row = b"%b%b%b%b%b%b" % (times, head, _METRICS, varint(len(body)), body, _PRESENT)
            if previous is not None:
                body = b"%b%b%b" % (figures.sums_field(previous), next(computed), currency)
                row = b"%b%b%b%b" % (row, _PREVIOUS, varint(len(body)), body)
            parts += field, varint(len(row)), row
    return parts


def _starts(buckets: Sequence[Bucket], earlier: Sequence[Bucket]) -> list[int | None]:
    """Where the figures to compare with are found, for each bucket."""
    if not earlier:
        return [None] * len(buckets)
    # A bucket without any instant begins where the next one does, whose figures are not its own.
    return [bucket.start if bucket.start < bucket.end else None for bucket in earlier]
