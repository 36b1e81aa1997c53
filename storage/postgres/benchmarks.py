"""Benchmarks: reference figures that belong to no client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import date
from decimal import Decimal
from uuid import UUID

from storage.postgres.database import Executor


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A row of ``benchmarks``. An empty dimension spans all of its values.

    Attributes:
        start_date: First day of the observations.
        end_date: Last day of the observations.
        metric: ``ctr``, ``cpc``, ``cpm``, ``cr``, ``cpa`` or ``roas``.
        currency: Of costs; empty for the others.
    """

    id: UUID
    industry: str
    platform: str
    channel: str
    format: str
    geo: str
    start_date: date
    end_date: date
    metric: str
    p25: Decimal
    p50: Decimal
    p75: Decimal
    sample_size: int
    source: str
    currency: str
    version: str


# For each metric the row that fits best: the asked line of business before all of them, then the narrowest, the asked
# place, the newest edition and period. A constraint makes each narrower dimension imply the broader ones.
_BEST = """
SELECT DISTINCT ON (metric) id, industry, platform, channel, format, geo, lower(period), upper(period) - 1, metric,
  p25, p50, p75, sample_size, source, currency, version
FROM benchmarks
WHERE industry IN ('', $1) AND platform IN ('', $2) AND channel IN ('', $3) AND format IN ('', $4) AND geo IN ('', $5)
  AND currency IN ('', $6) AND sample_size >= $7 AND ($8::text[] IS NULL OR metric = ANY ($8))
ORDER BY metric, industry = '', format = '', channel = '', platform = '', geo = '', version DESC, upper(period) DESC,
  id"""

# Adds a row; one with this id, edited or not, stays as it is.
_ADD = """
INSERT INTO benchmarks (id, industry, platform, channel, format, geo, period, metric, p25, p50, p75, sample_size,
  source, currency, version)
VALUES ($1, $2, $3, $4, $5, $6, daterange($7, $8, '[]'), $9, $10, $11, $12, $13, $14, $15, $16)
ON CONFLICT (id) DO NOTHING"""


async def best(
    db: Executor,
    *,
    industry: str,
    platform: str,
    channel: str,
    format: str,
    geo: str,
    currency: str,
    min_sample_size: int = 1,
    metrics: Sequence[str] | None = None,
) -> list[Benchmark]:
    """The benchmark of each metric that fits best; a metric without any is absent.

    Args:
        db: Where to run it.
        industry: Line of business; empty asks for what spans all, and so for the other dimensions.
        platform: Platform.
        channel: Kind of channel.
        format: Format.
        geo: Place.
        currency: Currency of costs.
        min_sample_size: Observations that a row must have.
        metrics: Only these; all when None.
    """
    rows = await db.fetch(
        _BEST, industry, platform, channel, format, geo, currency, min_sample_size,
        None if metrics is None else list(metrics),
    )  # fmt: skip
    return [Benchmark(*row) for row in rows]


async def add(db: Executor, rows: Sequence[Benchmark]) -> int:
    """Adds the rows whose ids are not there yet; returns how many that were.

    Raises:
        Invalid: A value is not allowed.
        Conflict: ``benchmarks_key``: the same observations are there under another id.
    """
    added = 0
    for row in rows:
        added += (await db.execute(_ADD, *astuple(row))) == "INSERT 0 1"
    return added
