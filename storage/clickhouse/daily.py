# ruff: noqa: S608 - what statements are put together from are constants, integers and UUID objects
"""Days of campaigns as QueryStatistics would answer them, for the table of daily figures in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from storage.clickhouse import precedence
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.metrics import Figures, Selection
from storage.clickhouse.precedence import LONG_STATEMENT, Resolved

_SECONDS = 30.0


class CampaignDay(NamedTuple):
    """A campaign and a day."""

    campaign_id: UUID
    day: date


@dataclass(frozen=True, slots=True)
class Measured:
    """What counts for a campaign on a day.

    Attributes:
        version: Grows with every change of the measurements.
        delivery_source: Where impressions, clicks and cost come from; empty if from nowhere.
        outcome_source: Where conversions and revenue come from; empty if from nowhere.
    """

    figures: Figures
    currency: str
    version: int
    delivery_source: str
    outcome_source: str


async def read(
    store: ClickHouse, client_id: UUID, zone: ZoneInfo, days: Sequence[date], starts: Sequence[int]
) -> dict[CampaignDay, Measured]:
    """Figures of all campaigns of a client on consecutive days; what has no rows that count is left out.

    Args:
        store: Where to run it.
        client_id: The client.
        zone: Its time zone.
        days: The days.
        starts: First instants of the days in Unix seconds, and the end of the last one.
    """
    mixed = await precedence.has_snapshots(store, [client_id], _SECONDS)
    condition = Selection(clients=[client_id]).condition()
    covered = precedence.covers(starts, zone)
    resolved = Resolved(store.database, condition, [client_id], starts[0], starts[-1], mixed, covered)
    begins = ", ".join(str(int(start)) for start in starts[:-1])
    rows = await store.fetch(
        f"""SELECT campaign_id, roundDown(at, [{begins}]::Array(UInt32)) AS bucket,
          accurateCast(sum(impressions), 'Int64'), accurateCast(sum(clicks), 'Int64'),
          accurateCast(sum(conversions) * 1000000, 'Int64'), accurateCast(sum(cost) * 1000000, 'Int64'),
          accurateCast(sum(revenue) * 1000000, 'Int64'),
          any(currency), accurateCast({precedence.STATE}, 'Int64'), max(delivery_source), max(outcome_source)
        FROM {resolved.sql()}
        WHERE counts
        GROUP BY campaign_id, bucket""",
        settings=LONG_STATEMENT,
        timeout=_SECONDS,
    )
    by_start = dict(zip(starts, days, strict=False))
    return {CampaignDay(row[0], by_start[row[1]]): Measured(Figures(*row[2:7]), *row[7:]) for row in rows}


async def first_day(store: ClickHouse, client_id: UUID) -> date | None:
    """A day, at most one too early, from which on a client has figures; None if it has none."""
    rows = await store.fetch(
        f"SELECT toDate(min(hour)) FROM campaign_metrics_hourly WHERE client_id = '{client_id}' HAVING count() > 0",
        timeout=_SECONDS,
    )
    found: date | None = rows[0][0] - timedelta(days=1) if rows else None
    return found
