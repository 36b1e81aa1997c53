# ruff: noqa: S608 - what statements are put together from are constants, integers and UUID objects
"""Figures as a platform, an analytics system or an import states them, for an hour or a day at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, NamedTuple
from uuid import UUID

from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.precedence import LONG_STATEMENT, hours, ids

Grain = Literal["hour", "day"]
Source = Literal["platform", "analytics", "import", "backfill"]

_SECONDS = 20.0
_MICROS = -6
_COLUMNS = {
    "client_id": "UUID",
    "campaign_id": "UUID",
    "platform": "LowCardinality(String)",
    "source": "LowCardinality(String)",
    "grain": "Enum8('hour' = 1, 'day' = 2)",
    "hour": "DateTime('UTC')",
    "project_id": "UUID",
    "currency": "LowCardinality(String)",
    "impressions": "UInt64",
    "clicks": "UInt64",
    "conversions": "Decimal(38, 6)",
    "cost": "Decimal(38, 6)",
    "revenue": "Decimal(38, 6)",
    "event_count": "UInt64",
    "version": "UInt64",
    "has_delivery": "Bool",
    "has_outcome": "Bool",
    "vat_included": "Bool",
    "attribution_model": "LowCardinality(String)",
    "goal_ids": "Array(String)",
    "state_version": "UInt64",
}


class Key(NamedTuple):
    """What a snapshot measures; `start` is the hour in Unix seconds, or midnight UTC of a day's date."""

    campaign_id: UUID
    grain: Grain
    start: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was delivered; the cost in millionths."""

    impressions: int
    clicks: int
    cost_micros: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it, in millionths."""

    conversions_micros: int
    revenue_micros: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Figures of a campaign in an hour or on a day, with what the campaign is; absent is what was not measured."""

    key: Key
    project_id: UUID
    platform: str
    currency: str
    delivery: Delivery | None
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What all snapshots of one reading have in common.

    Attributes:
        version: Of two readings of a source the larger one prevails.
        attribution_model: How conversions were given to campaigns; empty if not stated.
        goal_ids: Goals that count as conversions.
    """

    source: Source
    version: int
    vat_included: bool
    attribution_model: str
    goal_ids: Sequence[str]


async def append(store: ClickHouse, client_id: UUID, reading: Reading, snapshots: Sequence[Snapshot]) -> int:
    """Stores those of the snapshots that are newer than what the source said before.

    Doing it again changes nothing. Two calls for one client must not run at the same time.

    Args:
        store: Where to run it.
        client_id: The client of all campaigns.
        reading: Where the snapshots come from.
        snapshots: The snapshots, each with a key of its own.

    Returns:
        How many were stored.
    """
    held = await _held(store, client_id, reading.source, [snapshot.key for snapshot in snapshots])
    # A clock alone might be set back, a count alone would begin anew after a loss.
    now = time.time_ns() // 1_000_000
    rows = []
    for snapshot in snapshots:
        version, state = held.get(snapshot.key, (0, 0))
        if version < reading.version:
            rows.append(_row(client_id, reading, snapshot, max(now, state + 1)))
    if rows:
        # First, or nobody would weigh the rows; a mark without rows costs a little and changes nothing.
        await _mark(store, client_id, {snapshot.key.campaign_id for snapshot in snapshots})
        await store.insert_rows("campaign_metrics_hourly", _COLUMNS, rows, timeout=_SECONDS)
    return len(rows)


@dataclass(frozen=True, slots=True)
class Sums:
    """What snapshots add up to; amounts in millionths."""

    snapshots: int
    impressions: int
    clicks: int
    cost_micros: int
    conversions_micros: int
    revenue_micros: int


async def sums(store: ClickHouse, client_id: UUID, source: Source, version: int) -> Sums:
    """What those snapshots of one reading add up to that no later one has replaced."""
    [row] = await store.fetch(
        f"""SELECT count(), sum(impressions), sum(clicks), toString(toInt256(sum(cost) * 1000000)),
          toString(toInt256(sum(conversions) * 1000000)), toString(toInt256(sum(revenue) * 1000000))
        FROM campaign_metrics_hourly FINAL
        WHERE client_id = '{client_id}' AND source = {{source:String}} AND version = {{version:UInt64}}""",
        {"source": source, "version": version},
        timeout=_SECONDS,
    )
    return Sums(*map(int, row))


async def replaced(store: ClickHouse, client_id: UUID, source: Source, version: int, rows: Sequence[Snapshot]) -> int:
    """How many of a reading's snapshots a later reading of the source has replaced."""
    held = await _held(store, client_id, source, [row.key for row in rows])
    return sum(found > version for found, _ in held.values())


async def _held(store: ClickHouse, client_id: UUID, source: Source, keys: Sequence[Key]) -> dict[Key, tuple[int, int]]:
    """Version and state of what is stored for some keys."""
    lines = "\\n".join(f"{key.campaign_id}\\t{key.grain}\\t{key.start:d}" for key in keys)
    starts = [key.start for key in keys]
    rows = await store.fetch(
        f"""SELECT campaign_id, toString(grain), toUnixTimestamp(hour), version, state_version
        FROM campaign_metrics_hourly FINAL
        WHERE client_id = '{client_id}' AND source = {{source:String}} AND {hours(min(starts), max(starts) + 1)}
          AND campaign_id IN {ids({key.campaign_id for key in keys})}
          AND (campaign_id, grain, toUnixTimestamp(hour)) IN (
            SELECT campaign_id, grain, start
            FROM format(TSV, $$campaign_id UUID, grain Enum8('hour' = 1, 'day' = 2), start UInt32$$, '{lines}'))""",
        {"source": source},
        settings=LONG_STATEMENT,
        timeout=_SECONDS,
    )
    return {Key(*row[:3]): (row[3], row[4]) for row in rows}


async def _mark(store: ClickHouse, client_id: UUID, campaigns: set[UUID]) -> None:
    rows = await store.fetch(
        f"""SELECT campaign_id FROM snapshot_campaigns
        WHERE client_id = '{client_id}' AND campaign_id IN {ids(campaigns)}""",
        settings=LONG_STATEMENT,
        timeout=_SECONDS,
    )
    missing = sorted(campaigns - {row[0] for row in rows})
    columns = {"client_id": "UUID", "campaign_id": "UUID"}
    await store.insert_rows("snapshot_campaigns", columns, [(client_id, each) for each in missing], timeout=_SECONDS)


def _row(client_id: UUID, reading: Reading, snapshot: Snapshot, state: int) -> tuple[object, ...]:
    delivery = snapshot.delivery or Delivery(0, 0, 0)
    outcome = snapshot.outcome or Outcome(0, 0)
    return (
        client_id,
        snapshot.key.campaign_id,
        snapshot.platform,
        reading.source,
        snapshot.key.grain,
        snapshot.key.start,
        snapshot.project_id,
        snapshot.currency,
        delivery.impressions,
        delivery.clicks,
        Decimal(outcome.conversions_micros).scaleb(_MICROS),
        Decimal(delivery.cost_micros).scaleb(_MICROS),
        Decimal(outcome.revenue_micros).scaleb(_MICROS),
        0,
        reading.version,
        snapshot.delivery is not None,
        snapshot.outcome is not None,
        reading.vat_included,
        reading.attribution_model,
        list(reading.goal_ids),
        state,
    )
