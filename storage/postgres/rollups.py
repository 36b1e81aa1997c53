# ruff: noqa: S608 - the statements are put together from constants of this package
"""Daily figures of campaigns: what is rolled up, what is to be again, what was restated, and whether it fits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

from storage.clickhouse.metrics import NO_FIGURES, Figures
from storage.postgres import visibility
from storage.postgres.database import Executor, Row, Transaction, returned
from storage.postgres.ids import new_id
from storage.scope import Scope

Cause = Literal["new_reading", "day_close", "requested", "reconciliation"]
"""Why days are rolled up: a source has stated them anew, they have ended, somebody wished it, or to compare them."""

CheckState = Literal["matched", "healed", "drifted"]


@dataclass(frozen=True, slots=True)
class RollupState:
    """How far the daily figures of a client are.

    Attributes:
        time_zone: The client's now.
        rolled_through: Last day that was rolled up after it had ended; None before the first time.
        rolled_zone: Time zone of that day.
    """

    client_id: UUID
    time_zone: str
    rolled_through: date | None
    rolled_at: datetime | None
    rolled_zone: str | None
    marked: bool


@dataclass(frozen=True, slots=True)
class StoredDay:
    """A row of ``campaign_statistics``."""

    campaign_id: UUID
    day: date
    figures: Figures
    currency: str
    time_zone: str
    is_final: bool


@dataclass(frozen=True, slots=True)
class NewDay:
    """What a row is to say.

    Attributes:
        before: What it has said so far; None if it is not there.
    """

    campaign_id: UUID
    day: date
    figures: Figures
    before: Figures | None
    is_final: bool
    source_version: int
    delivery_source: str
    outcome_source: str


@dataclass(frozen=True, slots=True)
class Restatement:
    """A row of ``restatements``, with the project of its campaign."""

    seq: int
    client_id: UUID
    project_id: UUID
    campaign_id: UUID
    day: date
    currency: str
    before: Figures
    after: Figures
    delivery_source: str
    outcome_source: str
    source_version: int
    revision: int
    cause: str
    job_id: UUID
    at: datetime


@dataclass(frozen=True, slots=True)
class Check:
    """A row of ``rollup_checks``: a client's day in one currency."""

    client_id: UUID
    day: date
    currency: str
    state: str
    campaigns: int
    stored: Figures
    measured: Figures
    checked_at: datetime
    drifted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a comparison has found.

    Attributes:
        campaigns: Campaigns that differ.
        stored: What PostgreSQL says.
        measured: What ClickHouse says.
    """

    day: date
    currency: str
    state: CheckState
    campaigns: int
    stored: Figures
    measured: Figures


def _micros(prefix: str, *, table: str) -> str:
    counts = f"{table}.{prefix}impressions, {table}.{prefix}clicks"
    amounts = ", ".join(f"({table}.{prefix}{name} * 1000000)::bigint" for name in ("conversions", "cost", "revenue"))
    return f"{counts}, {amounts}"


# Waits for the others that roll up the client, and keeps them waiting until the transaction ends.
_ENTER = "SELECT pg_advisory_xact_lock(hashtext('rollup'), hashtext($1))"

# Every client that has campaigns, and how far its daily figures are.
_STATES = """
SELECT cl.id, cl.settings->>'timezone', r.rolled_through, r.rolled_at, r.time_zone,
  EXISTS (
    SELECT FROM rollup_marks m WHERE m.client_id = cl.id AND m.marked_at < clock_timestamp() - interval '1 minute')
FROM clients cl LEFT JOIN rollups r ON r.client_id = cl.id
WHERE cl.purged_at IS NULL AND ($1::uuid IS NULL OR cl.id = $1)
  AND EXISTS (SELECT FROM campaigns c WHERE c.client_id = cl.id)
ORDER BY cl.id"""

# The same of one client for whoever may see it.
_STATE = f"""
SELECT cl.id, cl.settings->>'timezone', r.rolled_through, r.rolled_at, r.time_zone, false
FROM clients cl LEFT JOIN rollups r ON r.client_id = cl.id WHERE cl.id = $4 AND {visibility.CLIENT}"""

# Moves a client's state on; it never goes back unless the days are those of another time zone.
_ADVANCE = """
INSERT INTO rollups AS r (client_id, rolled_through, rolled_at, time_zone) VALUES ($1, $2, clock_timestamp(), $3)
ON CONFLICT (client_id) DO UPDATE SET rolled_at = clock_timestamp(), time_zone = $3, rolled_through =
  CASE WHEN r.time_zone = $3 THEN GREATEST(r.rolled_through, $2) ELSE $2 END"""

# How often the marks of clients were taken; kept from being taken until the transaction ends.
_OPEN = "INSERT INTO rollups (client_id) SELECT unnest($1::uuid[]) ON CONFLICT (client_id) DO NOTHING"
_TAKES = "SELECT client_id, takes FROM rollups WHERE client_id = ANY ($1::uuid[]) ORDER BY client_id FOR SHARE"

# Marks days that are over where the client is.
_MARK = """
INSERT INTO rollup_marks (client_id, date)
SELECT DISTINCT cl.id, g.day
FROM unnest($1::uuid[], $2::date[]) AS g (client_id, day) JOIN clients cl ON cl.id = g.client_id
WHERE g.day < (clock_timestamp() AT TIME ZONE (cl.settings->>'timezone'))::date AND cl.purged_at IS NULL
ORDER BY 1, 2
ON CONFLICT (client_id, date) DO UPDATE SET mark = nextval('rollup_mark_seq'), marked_at = clock_timestamp()
RETURNING client_id"""

# Days, where their clients are, of instants that are over; of running days only the end counts.
_DAYS_OF = """
SELECT DISTINCT cl.id, day FROM (
  SELECT g.client_id, g.at FROM unnest($1::uuid[], $2::bigint[]) AS g (client_id, at)) g
JOIN clients cl ON cl.id = g.client_id
CROSS JOIN LATERAL (SELECT (to_timestamp(g.at) AT TIME ZONE (cl.settings->>'timezone'))::date AS day) d
WHERE day < (clock_timestamp() AT TIME ZONE (cl.settings->>'timezone'))::date AND cl.purged_at IS NULL"""

# Takes the marks of a client: later ones get a job of their own.
_TAKE = "UPDATE rollups SET takes = takes + 1 WHERE client_id = $1"
_MARKS = "SELECT date, mark FROM rollup_marks WHERE client_id = $1 ORDER BY date"

# Which of the days are marked.
_MARKED = "SELECT date FROM rollup_marks WHERE client_id = $1 AND date BETWEEN $2 AND $3"

# Deletes marks that were not drawn anew since.
_UNMARK = """
DELETE FROM rollup_marks m USING unnest($2::date[], $3::bigint[]) AS done (date, mark)
WHERE m.client_id = $1 AND m.date = done.date AND m.mark = done.mark"""

# All rows of a client on some days.
_STORED = f"""
SELECT s.campaign_id, s.date, s.currency, s.time_zone, s.is_final, {_micros("", table="s")}
FROM campaign_statistics s JOIN campaigns c ON c.id = s.campaign_id
WHERE c.client_id = $1 AND s.date BETWEEN $2 AND $3"""

# Writes rows, and a restatement for each whose figures were others before.
_WRITE = """
WITH given AS (
  SELECT g.*, c.currency FROM unnest($3::uuid[], $4::uuid[], $5::date[], $6::bigint[], $7::bigint[], $8::bigint[],
      $9::bigint[], $10::bigint[], $11::bigint[], $12::text[], $13::text[], $14::boolean[], $15::boolean[],
      $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[], $20::bigint[])
    AS g (id, campaign_id, date, impressions, clicks, conversions, cost, revenue, source_version, delivery_source,
      outcome_source, is_final, restated, old_impressions, old_clicks, old_conversions, old_cost, old_revenue)
  JOIN campaigns c ON c.id = g.campaign_id AND c.client_id = $1),
written AS (
  INSERT INTO campaign_statistics AS s (id, campaign_id, date, impressions, clicks, conversions, cost, revenue,
    currency, time_zone, source_version, is_final)
  SELECT id, campaign_id, date, impressions, clicks, conversions * 0.000001, cost * 0.000001, revenue * 0.000001,
    currency, $2, source_version, is_final
  FROM given
  ON CONFLICT (campaign_id, date) DO UPDATE SET impressions = excluded.impressions, clicks = excluded.clicks,
    conversions = excluded.conversions, cost = excluded.cost, revenue = excluded.revenue,
    time_zone = excluded.time_zone, source_version = excluded.source_version, is_final = excluded.is_final
  RETURNING campaign_id, date, revision),
restated AS (
  INSERT INTO restatements (client_id, campaign_id, date, currency, old_impressions, old_clicks, old_conversions,
    old_cost, old_revenue, impressions, clicks, conversions, cost, revenue, delivery_source, outcome_source,
    source_version, revision, cause, job_id)
  SELECT $1, g.campaign_id, g.date, g.currency, old_impressions, old_clicks, old_conversions * 0.000001,
    old_cost * 0.000001, old_revenue * 0.000001, impressions, clicks, conversions * 0.000001, cost * 0.000001,
    revenue * 0.000001, delivery_source, outcome_source, source_version, w.revision, $21, $22
  FROM given g JOIN written w USING (campaign_id, date) WHERE g.restated ORDER BY g.date, g.campaign_id
  RETURNING 1)
SELECT (SELECT count(*) FROM written), (SELECT count(*) FROM restated)"""

# Puts figures aside that came too late to be kept.
_QUARANTINE = """
INSERT INTO campaign_statistics_quarantine AS q (campaign_id, date, impressions, clicks, conversions, cost, revenue,
  currency, time_zone, source_version, reason)
SELECT g.campaign_id, g.date, impressions, clicks, conversions * 0.000001, cost * 0.000001, revenue * 0.000001,
  c.currency, $2, source_version, 'too_old'
FROM unnest($3::uuid[], $4::date[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[])
  AS g (campaign_id, date, impressions, clicks, conversions, cost, revenue, source_version)
JOIN campaigns c ON c.id = g.campaign_id AND c.client_id = $1
ON CONFLICT (campaign_id, date) DO UPDATE SET impressions = excluded.impressions, clicks = excluded.clicks,
  conversions = excluded.conversions, cost = excluded.cost, revenue = excluded.revenue,
  time_zone = excluded.time_zone, source_version = excluded.source_version, quarantined_at = clock_timestamp()
WHERE (q.impressions, q.clicks, q.conversions, q.cost, q.revenue)
  <> (excluded.impressions, excluded.clicks, excluded.conversions, excluded.cost, excluded.revenue)"""

# Projects before campaigns: whoever compares budgets takes their locks in that order.
_LOCK_PROJECTS = """
SELECT p.id FROM projects p
WHERE p.client_id = $1 AND EXISTS (
  SELECT FROM campaigns c WHERE c.project_id = p.id AND ($2::uuid[] IS NULL OR c.id = ANY ($2)))
ORDER BY p.id FOR NO KEY UPDATE OF p"""

# What campaigns have spent, from their daily figures and those that are only in the archive.
_SPEND = """
UPDATE campaigns c SET budget_spent = t.spent FROM (
  SELECT c.id, COALESCE(sum(s.cost), 0)
    + COALESCE((SELECT a.spent FROM archived_spend a WHERE a.campaign_id = c.id), 0) AS spent
  FROM campaigns c LEFT JOIN campaign_statistics s ON s.campaign_id = c.id
  WHERE c.client_id = $1 AND ($2::uuid[] IS NULL OR c.id = ANY ($2)) GROUP BY c.id) t
WHERE c.id = t.id AND c.budget_spent <> t.spent RETURNING c.id, c.project_id"""

# What projects have spent; campaigns in another currency than the project's budget cannot be added up.
_SPEND_PROJECTS = """
UPDATE projects p SET budget_spent = t.spent FROM (
  SELECT p.id, COALESCE(sum(c.budget_spent) FILTER (WHERE c.currency = p.budget_currency), 0) AS spent
  FROM projects p LEFT JOIN campaigns c ON c.project_id = p.id WHERE p.id = ANY ($1::uuid[]) GROUP BY p.id) t
WHERE p.id = t.id AND p.budget_spent <> t.spent RETURNING p.id"""

# Notes what a comparison has found; one that finds nothing leaves when something was found last.
_NOTE_CHECKS = """
INSERT INTO rollup_checks AS k (client_id, date, currency, state, campaigns, stored_impressions, stored_clicks,
  stored_conversions, stored_cost, stored_revenue, measured_impressions, measured_clicks, measured_conversions,
  measured_cost, measured_revenue, drifted_at)
SELECT $1, date, currency, state, campaigns, si, sc, sv * 0.000001, ss * 0.000001, sr * 0.000001, mi, mc,
  mv * 0.000001, ms * 0.000001, mr * 0.000001, CASE WHEN state <> 'matched' THEN clock_timestamp() END
FROM unnest($2::date[], $3::text[], $4::text[], $5::int[], $6::bigint[], $7::bigint[], $8::numeric[], $9::numeric[],
    $10::numeric[], $11::bigint[], $12::bigint[], $13::numeric[], $14::numeric[], $15::numeric[])
  AS g (date, currency, state, campaigns, si, sc, sv, ss, sr, mi, mc, mv, ms, mr)
ON CONFLICT (client_id, date, currency) DO UPDATE SET checked_at = clock_timestamp(), state = excluded.state,
  campaigns = excluded.campaigns, drifted_at = COALESCE(excluded.drifted_at, k.drifted_at),
  stored_impressions = excluded.stored_impressions, stored_clicks = excluded.stored_clicks,
  stored_conversions = excluded.stored_conversions, stored_cost = excluded.stored_cost,
  stored_revenue = excluded.stored_revenue, measured_impressions = excluded.measured_impressions,
  measured_clicks = excluded.measured_clicks, measured_conversions = excluded.measured_conversions,
  measured_cost = excluded.measured_cost, measured_revenue = excluded.measured_revenue"""

# One page of restatements, in the order in which they were made.
_LIST_RESTATEMENTS = f"""
SELECT r.seq, r.client_id, c.project_id, r.campaign_id, r.date, r.currency, {_micros("old_", table="r")},
  {_micros("", table="r")}, r.delivery_source, r.outcome_source, r.source_version, r.revision, r.cause, r.job_id, r.at
FROM restatements r JOIN campaigns c ON c.id = r.campaign_id JOIN clients cl ON cl.id = r.client_id
WHERE r.client_id = $4 AND {visibility.project("c.project_id")} AND r.seq > $5
  AND ($7::uuid IS NULL OR c.project_id = $7)
  AND ($8::uuid[] IS NULL OR r.campaign_id = ANY ($8))
  AND ($9::date IS NULL OR r.date >= $9)
  AND ($10::date IS NULL OR r.date <= $10)
  AND ($11::timestamptz IS NULL OR r.at >= $11)
ORDER BY r.seq LIMIT $6"""

# One page of checks, latest day first.
_LIST_CHECKS = f"""
SELECT k.client_id, k.date, k.currency, k.state, k.campaigns, {_micros("stored_", table="k")},
  {_micros("measured_", table="k")}, k.checked_at, k.drifted_at
FROM rollup_checks k JOIN clients cl ON cl.id = k.client_id
WHERE k.client_id = $4 AND {visibility.CLIENT}
  AND ($5::date IS NULL OR (k.date, k.currency) < ($5, $6::text))
  AND ($8::date IS NULL OR k.date >= $8)
  AND ($9::date IS NULL OR k.date <= $9)
  AND ($10::text[] IS NULL OR k.state = ANY ($10))
ORDER BY k.date DESC, k.currency DESC LIMIT $7"""


async def enter_internal(tx: Transaction, client_id: UUID) -> None:
    """Waits for the others that roll up the client; the next one may enter when the transaction ends.

    Whoever reads measurements after this and writes them before the end cannot overwrite anything newer.
    """
    await tx.execute(_ENTER, str(client_id))


async def states_internal(db: Executor, client_id: UUID | None = None) -> list[RollupState]:
    """How far the daily figures of every client that has campaigns are, or of one."""
    return [RollupState(*row) for row in await db.fetch(_STATES, client_id)]


async def state(db: Executor, scope: Scope, client_id: UUID) -> RollupState | None:
    """How far the daily figures of a client are; None if it is not in scope."""
    row = await db.fetchrow(_STATE, *scope.args, client_id)
    return None if row is None else RollupState(*row)


async def advance_internal(db: Executor, client_id: UUID, through: date, time_zone: str) -> None:
    """Notes that every day of a client up to this one was rolled up after it had ended."""
    await db.execute(_ADVANCE, client_id, through, time_zone)


async def mark_internal(tx: Transaction, days: Collection[tuple[UUID, date]]) -> dict[UUID, int]:
    """Marks days of clients whose measurements have changed; those that are not over yet are left out.

    Call it after the change can be seen, and last in the transaction, which keeps marks from being taken.

    Returns:
        Clients that have days to roll up, with the number of the taking that will see the marks.
    """
    marked = await tx.fetch(_MARK, [client for client, _ in days], [day for _, day in days])
    clients = sorted({row[0] for row in marked})
    if not clients:
        return {}
    await tx.execute(_OPEN, clients)
    return {row[0]: row[1] for row in await tx.fetch(_TAKES, clients)}


async def ended_days_internal(db: Executor, instants: Collection[tuple[UUID, int]]) -> list[tuple[UUID, date]]:
    """The days of clients on which instants (Unix seconds) lie, where the clients are; only those that are over."""
    clients, seconds = [client for client, _ in instants], [at for _, at in instants]
    return [(row[0], row[1]) for row in await db.fetch(_DAYS_OF, clients, seconds)]


async def take_marks_internal(tx: Transaction, client_id: UUID) -> dict[date, int]:
    """All marks of a client; those made after the transaction get a job of their own."""
    await tx.execute(_OPEN, [client_id])
    await tx.execute(_TAKE, client_id)
    return {row[0]: row[1] for row in await tx.fetch(_MARKS, client_id)}


async def marked_internal(db: Executor, client_id: UUID, first: date, last: date) -> set[date]:
    """Which days of a span are marked."""
    return {row[0] for row in await db.fetch(_MARKED, client_id, first, last)}


async def unmark_internal(tx: Transaction, client_id: UUID, marks: Mapping[date, int]) -> None:
    """Forgets marks that are done with, unless they were drawn anew since."""
    await tx.execute(_UNMARK, client_id, list(marks), list(marks.values()))


async def stored_internal(db: Executor, client_id: UUID, first: date, last: date) -> list[StoredDay]:
    """All daily figures of a client on some days."""
    rows = await db.fetch(_STORED, client_id, first, last)
    return [StoredDay(row[0], row[1], Figures(*row[5:]), row[2], row[3], row[4]) for row in rows]


async def write_internal(
    tx: Transaction, client_id: UUID, time_zone: str, rows: Sequence[NewDay], cause: Cause, job_id: UUID
) -> tuple[int, int]:
    """Writes rows that differ from what is there, and what of them was restated.

    Args:
        tx: The transaction, which has entered.
        client_id: The client of all rows; those of others are left out.
        time_zone: Where the days are days.
        rows: What the rows are to say.
        cause: Why they were looked at.
        job_id: By which job.

    Returns:
        How many rows were written, and how many of them had said something else before.
    """
    if not rows:
        return 0, 0
    row = await tx.fetchrow(
        _WRITE, client_id, time_zone, [new_id() for _ in rows], [row.campaign_id for row in rows],
        [row.day for row in rows], *_columns(row.figures for row in rows), [row.source_version for row in rows],
        [row.delivery_source for row in rows], [row.outcome_source for row in rows],
        [row.is_final for row in rows], [row.before not in (None, row.figures) for row in rows],
        *_columns(row.before or NO_FIGURES for row in rows), cause, job_id,
    )  # fmt: skip
    written, restated = returned(row)
    return written, restated


async def quarantine_internal(tx: Transaction, client_id: UUID, time_zone: str, rows: Sequence[NewDay]) -> None:
    """Puts figures of days aside that are older than daily figures are kept."""
    if rows:
        await tx.execute(
            _QUARANTINE, client_id, time_zone, [row.campaign_id for row in rows], [row.day for row in rows],
            *_columns(row.figures for row in rows), [row.source_version for row in rows],
        )  # fmt: skip


async def spend_internal(tx: Transaction, client_id: UUID, campaign_ids: Collection[UUID] | None = None) -> list[UUID]:
    """Makes what campaigns and their projects have spent follow their daily figures; touches no revision.

    Args:
        tx: The transaction.
        client_id: The client.
        campaign_ids: Only these campaigns; all when None.

    Returns:
        Projects of which a figure has changed, their own or that of a campaign.
    """
    wanted = None if campaign_ids is None else sorted(campaign_ids)
    projects = [row[0] for row in await tx.fetch(_LOCK_PROJECTS, client_id, wanted)]
    changed = {row[1] for row in await tx.fetch(_SPEND, client_id, wanted)}
    changed |= {row[0] for row in await tx.fetch(_SPEND_PROJECTS, projects)}
    return sorted(changed)


async def note_checks_internal(tx: Transaction, client_id: UUID, found: Sequence[Found]) -> None:
    """Notes what a comparison of days has found."""
    if found:
        await tx.execute(
            _NOTE_CHECKS, client_id, [each.day for each in found], [each.currency for each in found],
            [each.state for each in found], [each.campaigns for each in found],
            *_columns(each.stored for each in found), *_columns(each.measured for each in found),
        )  # fmt: skip


async def list_restatements(
    db: Executor,
    scope: Scope,
    client_id: UUID,
    *,
    limit: int,
    after: int = 0,
    project_id: UUID | None = None,
    campaign_ids: Sequence[UUID] | None = None,
    first: date | None = None,
    last: date | None = None,
    since: datetime | None = None,
) -> list[Restatement]:
    """Up to `limit` restatements of a client, oldest first, above the number `after`.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        client_id: The client.
        limit: The most to return.
        after: Only those above this number.
        project_id: Only of this project.
        campaign_ids: Only of these campaigns.
        first: Only of this day and later ones.
        last: Only of this day and earlier ones.
        since: Only those made at this time or later.
    """
    rows = await db.fetch(
        _LIST_RESTATEMENTS, *scope.args, client_id, after, limit, project_id,
        None if campaign_ids is None else list(campaign_ids), first, last, since,
    )  # fmt: skip
    return [Restatement(*_nested(row, 6)) for row in rows]


async def list_checks(
    db: Executor,
    scope: Scope,
    client_id: UUID,
    *,
    limit: int,
    after: tuple[date, str] | None = None,
    first: date | None = None,
    last: date | None = None,
    states: Sequence[str] | None = None,
) -> list[Check]:
    """Up to `limit` checks of a client, latest day first, below a day and currency.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        client_id: The client.
        limit: The most to return.
        after: Day and currency of the last one of the page before.
        first: Only of this day and later ones.
        last: Only of this day and earlier ones.
        states: Only in one of these.
    """
    day, currency = after or (None, None)
    rows = await db.fetch(
        _LIST_CHECKS, *scope.args, client_id, day, currency, limit, first, last,
        None if states is None else list(states),
    )  # fmt: skip
    return [Check(*_nested(row, 5)) for row in rows]


def _nested(row: Row, at: int) -> list[Any]:
    """The values of a row with the figures from `at` on, two times five, put together."""
    values = list(row)
    return [*values[:at], Figures(*values[at : at + 5]), Figures(*values[at + 5 : at + 10]), *values[at + 10 :]]


def _columns(figures: Iterable[Figures]) -> list[list[int]]:
    return [list(column) for column in zip(*figures, strict=True)]
