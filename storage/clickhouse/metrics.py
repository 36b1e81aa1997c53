# ruff: noqa: S608 - what statements are put together from are constants, integers and UUID objects
"""Reads the figures that the rebuild keeps: sums for queries, states for watchers, freshness.

Ids and bounds are written into the statement, which travels in the body: as parameters they would not fit an address
line. Only UUID objects and integers are, so there is nothing to escape.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple
from uuid import UUID

from storage.clickhouse import precedence
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.precedence import Cover, Resolved, hours, ids

Dimension = Literal["client_id", "project_id", "campaign_id", "platform"]

LONG_STATEMENT = precedence.LONG_STATEMENT
"""Settings of statements that hold lists of ids."""

_SUMS = """sum(impressions), sum(clicks), toInt128(sum(conversions) * 1000000), toInt128(sum(cost) * 1000000),
  toInt128(sum(revenue) * 1000000)"""


class Figures(NamedTuple):
    """Sums over some hours. Amounts and conversions are in millionths."""

    impressions: int = 0
    clicks: int = 0
    conversions_micros: int = 0
    cost_micros: int = 0
    revenue_micros: int = 0


NO_FIGURES = Figures()


class Run(Mapping[int, Figures]):
    """Figures by the start of their bucket in Unix seconds, kept in the columns in which they came.

    Args:
        starts: Starts of the buckets, each once.
        columns: A list for each of the figures, in the order of the starts.
    """

    __slots__ = ("_rows", "columns", "starts")

    def __init__(self, starts: Sequence[int], columns: Sequence[Sequence[int]]) -> None:
        self.starts = starts
        self.columns = columns
        self._rows: dict[int, Figures] | None = None

    @classmethod
    def of(cls, rows: Mapping[int, Figures]) -> Run:
        """Any figures in columns."""
        return rows if isinstance(rows, Run) else cls(list(rows), list(zip(*rows.values(), strict=True)) or [()] * 5)

    def __getitem__(self, start: int) -> Figures:
        if self._rows is None:
            self._rows = dict(zip(self.starts, map(Figures._make, zip(*self.columns, strict=True)), strict=True))
        return self._rows[start]

    def __iter__(self) -> Iterator[int]:
        return iter(self.starts)

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows a question covers; conditions that are given must all hold.

    Attributes:
        clients: Only these clients. Never left out: it is what keeps tenants apart.
        whole_clients: If given, of other clients than these only `team_projects` are covered.
        team_projects: See `whole_clients`.
        projects: Only these projects.
        campaigns: Only these campaigns.
        platforms: Only these platforms.
    """

    clients: Collection[UUID]
    whole_clients: Collection[UUID] | None = None
    team_projects: Collection[UUID] = ()
    projects: Collection[UUID] | None = None
    campaigns: Collection[UUID] | None = None
    platforms: Collection[str] | None = None

    def condition(self) -> str:
        """The condition in SQL."""
        parts = [f"client_id IN {ids(self.clients)}"]
        if self.whole_clients is not None:
            parts.append(f"(client_id IN {ids(self.whole_clients)} OR project_id IN {ids(self.team_projects)})")
        if self.projects is not None:
            parts.append(f"project_id IN {ids(self.projects)}")
        if self.campaigns is not None:
            parts.append(f"campaign_id IN {ids(self.campaigns)}")
        if self.platforms is not None:
            parts.append("platform IN {platforms:Array(String)}")
        return " AND ".join(parts)

    def parameters(self) -> dict[str, object]:
        """Values that `condition` names."""
        return {} if self.platforms is None else {"platforms": sorted(self.platforms)}


class Combination(NamedTuple):
    """Values of the dimensions asked for, in their order, and a currency."""

    values: tuple[UUID | str, ...]
    currency: str


class Sum(NamedTuple):
    """Figures of one bucket and combination. `bucket` is the start of the bucket in Unix seconds."""

    bucket: int
    combination: Combination
    figures: Figures


@dataclass(frozen=True, slots=True)
class Watched:
    """Campaigns whose totals over one window are watched.

    Attributes:
        start: Begin of the window in Unix seconds, a full hour.
        end: End of the window, exclusive.
        clients: Client to its campaigns that are watched; None for all of them.
    """

    start: int
    end: int
    clients: Mapping[UUID, Collection[UUID] | None]


class LiveTotal(NamedTuple):
    """Totals of a campaign over a window; `window` is the index of the `Watched` that asked."""

    window: int
    client_id: UUID
    campaign_id: UUID
    currency: str
    figures: Figures
    version: int


class Freshness(NamedTuple):
    """How current a client's figures are."""

    last_event_time: datetime | None
    dirty_slices: int
    quarantined: int


async def combinations(
    store: ClickHouse,
    selection: Selection,
    start: int,
    end: int,
    dimensions: Sequence[Dimension],
    limit: int,
    *,
    covered: Sequence[Cover] = (),
) -> list[Combination]:
    """Up to `limit` combinations of dimension values and currency that have rows from `start` to `end` (Unix seconds).

    It needs no FINAL: the newest version of a row has the same dimensions as the older ones. Sources need not be
    weighed either: all rows of a campaign have the same dimensions. `covered` is as for `series.series`.
    """
    columns = ", ".join((*dimensions, "currency"))
    days = precedence.covered_days(covered)
    rows = await store.fetch(
        f"""SELECT DISTINCT {columns} FROM campaign_metrics_hourly
        WHERE {selection.condition()} AND (grain = 'hour' AND {hours(start, end)} OR {days})
        LIMIT {limit:d}""",
        selection.parameters(),
        settings=LONG_STATEMENT,
    )
    return [Combination(row[:-1], row[-1]) for row in rows]


async def live_totals(store: ClickHouse, watched: Sequence[Watched], timeout: float) -> list[LiveTotal]:
    """Totals of watched campaigns over their windows, in one statement; campaigns without rows are left out."""
    clients = {client for window in watched for client in window.clients}
    if not clients:
        return []
    mixed = await precedence.has_snapshots(store, clients, timeout)
    parts = [part for index, window in enumerate(watched) for part in _live_parts(store, index, window, mixed)]
    if not parts:
        return []
    rows = await store.fetch(" UNION ALL ".join(parts), settings=LONG_STATEMENT, timeout=timeout)
    return [LiveTotal(row[0], row[1], row[2], row[3], Figures(*row[5:]), row[4]) for row in rows]


def _live_parts(store: ClickHouse, index: int, window: Watched, mixed: bool) -> Iterable[str]:
    whole = [client for client, campaigns in window.clients.items() if campaigns is None]
    if whole:
        yield _live_part(store, index, window, whole, f"client_id IN {ids(whole)}", mixed)
    some = {client: campaigns for client, campaigns in window.clients.items() if campaigns is not None}
    if some:
        wanted = {campaign for campaigns in some.values() for campaign in campaigns}
        condition = f"client_id IN {ids(some)} AND campaign_id IN {ids(wanted)}"
        yield _live_part(store, index, window, some, condition, mixed)


def _live_part(
    store: ClickHouse, index: int, window: Watched, clients: Collection[UUID], condition: str, mixed: bool
) -> str:
    resolved = Resolved(store.database, condition, clients, window.start, window.end, mixed)
    return f"""SELECT toUInt32({index:d}), client_id, campaign_id, any(currency), {precedence.STATE}, {_SUMS}
        FROM {resolved.sql()}
        GROUP BY client_id, campaign_id HAVING max(counts)"""


async def freshness(store: ClickHouse, client_id: UUID, marked_since: datetime) -> Freshness:
    """How current a client's figures are.

    Args:
        store: Where to run it.
        client_id: The client.
        marked_since: Slices marked since then count as waiting.
    """
    [(waiting, quarantined)] = await store.fetch(
        """SELECT
          (SELECT uniqExact(campaign_id, slice_start) FROM dirty_slices
            WHERE mark_time >= fromUnixTimestamp64Milli({since:Int64}) AND client_id = {client:UUID}),
          (SELECT count() FROM campaign_events_quarantine FINAL
            WHERE client_id = {client:UUID} AND quarantine_time >= now() - INTERVAL 90 DAY)""",
        {"client": str(client_id), "since": int(marked_since.timestamp() * 1000)},
    )
    return Freshness(await _last_event_time(store, client_id), waiting, quarantined)


async def _last_event_time(store: ClickHouse, client_id: UUID) -> datetime | None:
    """Latest event among the figures: looked for only in the newest slice that has any, never in all events."""
    [(count, micros)] = await store.fetch(
        """WITH newest AS (
          SELECT max(slice_start) AS at FROM campaign_metrics_slices FINAL
          WHERE client_id = {client:UUID} AND event_count > 0)
        SELECT count(), toUnixTimestamp64Micro(max(event_time)) FROM campaign_events
        WHERE client_id = {client:UUID}
          AND event_time >= (SELECT at FROM newest) AND event_time < (SELECT at FROM newest) + INTERVAL 15 MINUTE
          AND toStartOfHour(event_time) = toStartOfHour((SELECT at FROM newest))""",
        {"client": str(client_id)},
    )
    return datetime.fromtimestamp(micros / 1_000_000, UTC) if count else None
