# ruff: noqa: S608 - what statements are put together from are constants, integers and UUID objects
"""Which source counts: for each campaign, day of its client's time zone and group of figures exactly one.

Groups are the delivery (impressions, clicks, cost) and the outcome (conversions, revenue). The source that counts is
the first in the order below that has any row for the day and the group, of a day or of an hour. Has it both, its day
prevails where the day is asked for as a whole, its hours otherwise.

Own events always say what was delivered, but of a day without a single conversion or revenue they say nothing of the
outcome: most trackers see impressions and clicks only, and their silence must not stand for a platform's conversions.

A row of a day belongs to its date whatever time zone is asked for, and is never cut: it counts in the bucket that
covers the whole date in the zone asked for. Buckets of hours, and those that a period cuts inside a day, cannot show
it; its source has the day all the same, so that they never show what another source says of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from storage.clickhouse.connect import ClickHouse

DELIVERY_ORDER = ("platform", "events", "import", "backfill")
OUTCOME_ORDER = ("analytics", "events", "platform", "import", "backfill")

STATE = "maxIf(version, own) + sumIf(version, NOT own)"
"""State of some rows of `Resolved`: grows with every change of their figures, whichever source it comes from.

The rebuild's versions grow by themselves. Those of other rows grow each on its own, so that only their sum tells.
"""

LONG_STATEMENT = {"max_query_size": 64 * 2**20, "max_ast_elements": 1_000_000, "max_expanded_ast_elements": 1_000_000}
"""Settings of statements that hold lists of ids."""

_SECONDS = 30.0
# Time zones are at most 14 hours off UTC: what decides about a day lies within two days of any instant of it.
_MARGIN_SECONDS = 2 * 86_400
_EPOCH = date(1970, 1, 1)
_LAST_PLACE = 60
_NO_RANK = 255
_NUMBER = "toUInt16(toDate(hour))"
# Whether a row says anything of the outcome.
_STATES_OUTCOME = "(has_outcome AND (source != 'events' OR conversions > 0 OR revenue > 0))"


class Cover(NamedTuple):
    """Dates that a bucket covers as a whole, both included; `start` is the bucket's, in Unix seconds."""

    first: date
    last: date
    start: int


def covers(bounds: Sequence[int], zone: ZoneInfo) -> list[Cover]:
    """Which dates of a time zone the buckets cover; buckets that cover none are left out.

    Args:
        bounds: Starts of the buckets in Unix seconds, ascending, and the end of the last one.
        zone: The time zone asked for.
    """
    found = []
    for start, end in pairwise(bounds):
        # The date before the bucket is not covered, nor is the one that goes on after it.
        first, last = _local_date(start - 1, zone) + timedelta(days=1), _local_date(end, zone) - timedelta(days=1)
        if first <= last:
            found.append(Cover(first, last, start))
    return found


async def has_snapshots(store: ClickHouse, clients: Collection[UUID], timeout: float = _SECONDS) -> bool:
    """Whether other sources than own events have, or had, anything to say of the clients' campaigns."""
    rows = await store.fetch(
        f"SELECT 1 FROM snapshot_campaigns WHERE client_id IN {ids(clients)} LIMIT 1",
        settings=LONG_STATEMENT,
        timeout=timeout,
    )
    return bool(rows)


def ids(values: Iterable[UUID]) -> str:
    """A list of ids in SQL, never an empty one: that would be no list at all."""
    texts = [f"'{value}'" for value in values]
    return f"({', '.join(texts)})" if texts else "('00000000-0000-0000-0000-000000000000')"


def hours(start: int, end: int) -> str:
    """The condition that a row's hour lies in a span of Unix seconds."""
    return f"hour >= toDateTime({start:d}, 'UTC') AND hour < toDateTime({end:d}, 'UTC')"


def covered_days(covered: Sequence[Cover]) -> str:
    """The condition that a row is of a day that one of the buckets covers."""
    if not covered:
        return "false"
    first = (covered[0].first - _EPOCH).days
    # Mostly, the buckets follow each other and cover all dates in between.
    if all(before.last + timedelta(days=1) == after.first for before, after in pairwise(covered)):
        return f"(grain = 'day' AND {_NUMBER} BETWEEN {first:d} AND {(covered[-1].last - _EPOCH).days:d})"
    firsts, lasts = _numbers(cover.first for cover in covered), _numbers(cover.last for cover in covered)
    return f"""(grain = 'day' AND {_NUMBER} >= {first:d}
      AND {_NUMBER} <= transform(roundDown({_NUMBER}, {firsts}), {firsts}, {lasts}, 0::UInt16))"""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A relation of the figures that count, for a FROM clause.

    Its columns are client_id, project_id, campaign_id, platform, currency, at, impressions, clicks, conversions, cost,
    revenue, event_count, version, own, delivery_source, outcome_source and counts. The sources are empty for a group
    of figures that is not the row's. `at` is an instant in Unix seconds: the hour, or for the row of a
    day the start of the bucket that covers it. Several rows may share a campaign and an hour, one with the delivery of
    one source and one with the outcome of another: add them up. Rows with `counts` false carry nothing but zeros and
    their `version` and `own`, for `STATE`; leave them out otherwise.

    Attributes:
        database: Where the tables are.
        condition: Which rows, in SQL, on client_id, project_id, campaign_id and platform.
        clients: The clients that the condition lets pass.
        start: Begin of the time in Unix seconds, a full hour.
        end: Its end, excluded.
        mixed: Whether there may be other sources, see `has_snapshots`; without them nothing has to be weighed.
        covered: Dates that the buckets of the question cover, see `covers`; None for those of the client's own time
            zone that lie within `start` and `end`.
    """

    database: str
    condition: str
    clients: Collection[UUID]
    start: int
    end: int
    mixed: bool
    covered: Sequence[Cover] | None = None

    def sql(self) -> str:
        """The relation, in parentheses."""
        return f"({self._plain()} UNION ALL {self._weighed()})" if self.mixed else f"({self._plain()})"

    @property
    def _marked(self) -> str:
        return f"(SELECT campaign_id FROM snapshot_campaigns WHERE client_id IN {ids(self.clients)})"

    def _plain(self) -> str:
        """Own events of the campaigns that have nothing else."""
        unmarked = f"AND campaign_id NOT IN {self._marked}" if self.mixed else ""
        return f"""SELECT client_id, project_id, campaign_id, platform, currency, toUnixTimestamp(hour) AS at,
          impressions, clicks, conversions, cost, revenue, event_count, version, true AS own,
          'events' AS delivery_source, if(conversions > 0 OR revenue > 0, 'events', '') AS outcome_source,
          true AS counts
        FROM campaign_metrics_hourly FINAL
        WHERE {self.condition} AND source = 'events' AND grain = 'hour' AND {hours(self.start, self.end)} {unmarked}"""

    def _weighed(self) -> str:
        """The other campaigns: each row beside the best rank that any row of its day has."""
        wide = hours(max(0, self.start - _MARGIN_SECONDS), self.end + _MARGIN_SECONDS)
        chosen = f"{self.condition} AND campaign_id IN {self._marked}"
        delivery, outcome = self._rank(DELIVERY_ORDER), self._rank(OUTCOME_ORDER)
        return f"""SELECT client_id, project_id, campaign_id, platform, currency, at,
          if(delivers, shown, 0) AS impressions, if(delivers, clicked, 0) AS clicks,
          if(results, converted, 0) AS conversions, if(delivers, spent, 0) AS cost, if(results, earned, 0) AS revenue,
          if(own AND counts, events, 0) AS event_count, state AS version, own,
          if(delivers, name, '') AS delivery_source, if(results, name, '') AS outcome_source,
          delivers OR results AS counts
        FROM (
          SELECT client_id, project_id, campaign_id, platform, currency, at, own, state, name,
            shown, clicked, converted, spent, earned, events,
            has_delivery AND delivery_rank = best_delivery AND delivery_rank % 4 != 2 AS delivers,
            states_outcome AND outcome_rank = best_outcome AND outcome_rank % 4 != 2 AS results
          FROM (
            SELECT client_id, project_id, campaign_id, platform, currency, {self._day()} AS day, {self._at()} AS at,
              source = 'events' AS own, toString(source) AS name, state_version AS state, impressions AS shown,
              clicks AS clicked, conversions AS converted, cost AS spent, revenue AS earned, event_count AS events,
              has_delivery, {_STATES_OUTCOME} AS states_outcome, {delivery} AS delivery_rank, {outcome} AS outcome_rank
            FROM campaign_metrics_hourly FINAL
            WHERE {chosen} AND (grain = 'hour' AND {hours(self.start, self.end)} OR grain = 'day' AND {wide})
          ) AS rows
          INNER JOIN (
            SELECT campaign_id, {self._day()} AS day,
              min(if(has_delivery, {delivery}, {_NO_RANK})) AS best_delivery,
              min(if({_STATES_OUTCOME}, {outcome}, {_NO_RANK})) AS best_outcome
            FROM campaign_metrics_hourly FINAL
            WHERE {chosen} AND {wide}
            GROUP BY campaign_id, day
          ) AS best USING (campaign_id, day)
        )"""

    def _zone(self) -> str:
        """Time zone of a row's client in SQL; UTC for what ClickHouse does not know, which would fail everything."""
        known = f"dictGetOrDefault('{self.database}.campaigns_dict', 'time_zone', campaign_id, 'UTC')"
        return f"if({known} IN (SELECT time_zone FROM system.time_zones), {known}, 'UTC')"

    def _day(self) -> str:
        # formatDateTime takes the zone from a column; toDate would silently use the first row's.
        return f"if(grain = 'day', toDate(hour), toDate(formatDateTime(hour, '%F', {self._zone()})))"

    def _rank(self, order: Sequence[str]) -> str:
        """Rank of a row in SQL: that of its source times 4, and within it a day, hours, a day that cannot be shown."""
        names = ", ".join(f"'{source}'" for source in order)
        places = ", ".join(str(place) for place in range(1, len(order) + 1))
        place = f"transform(source, [{names}], [{places}], {_LAST_PLACE})"
        return f"toUInt8({place} * 4 + multiIf(grain = 'hour', 1, {self._shown()}, 0, 2))"

    def _shown(self) -> str:
        """Whether a row of a day can be shown as a whole."""
        if self.covered is not None:
            return covered_days(self.covered)
        before, after = (
            f"formatDateTime(toDateTime({at:d}, 'UTC'), '%F', {self._zone()})" for at in (self.start - 1, self.end)
        )
        return f"(toDate(hour) > toDate({before}) AND toDate(hour) < toDate({after}))"

    def _at(self) -> str:
        if self.covered is None:
            shown = f"toUInt32({self.start:d})"
        elif not self.covered:
            shown = "0::UInt32"
        else:
            firsts = _numbers(cover.first for cover in self.covered)
            starts = f"[{', '.join(str(int(cover.start)) for cover in self.covered)}]::Array(UInt32)"
            shown = f"transform(roundDown({_NUMBER}, {firsts}), {firsts}, {starts}, 0::UInt32)"
        return f"if(grain = 'hour', toUnixTimestamp(hour), {shown})"


def _numbers(days: Iterable[date]) -> str:
    """Days as ClickHouse counts them, in SQL."""
    return f"[{', '.join(str((day - _EPOCH).days) for day in days)}]::Array(UInt16)"


def _local_date(at: int, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(at, UTC).astimezone(zone).date()
