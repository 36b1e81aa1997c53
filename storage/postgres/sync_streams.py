# ruff: noqa: S608 - the statements are put together from constants of this package
"""How far accounts on platforms have been read, which campaigns they have, and from which day figures are known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, Transaction, returned
from storage.scope import Scope

StreamName = Literal["entities", "statistics"]


@dataclass(frozen=True, slots=True)
class Stream:
    """A row of ``sync_streams``.

    Attributes:
        cursor: The platform's own mark in its changes; empty where it has none.
        through: Last day whose figures were read.
        whole_at: When all campaigns were last read, not only those that had changed.
        reread_from: Somebody wishes figures to be read again from this day on.
        reading_id: The reading that is under way.
        reading_at: When the latest reading began.
        failures: Tries that failed since one succeeded.
        reason: Why the last one failed, a word of ours; empty once one succeeded.
        error: The same for people.
    """

    integration_id: UUID
    stream: str
    cursor: str
    through: date | None
    whole_at: datetime | None
    reread_from: date | None
    reading_id: UUID | None
    reading_at: datetime | None
    attempted_at: datetime | None
    succeeded_at: datetime | None
    failures: int
    reason: str
    error: str
    failed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Due:
    """A stream whose time has come."""

    integration_id: UUID
    stream: StreamName


@dataclass(frozen=True, slots=True)
class Measured:
    """A campaign whose figures an account has.

    Attributes:
        first_day: From which day on they have been read; None if never.
        measured: Whether there ever were any.
    """

    campaign_id: UUID
    client_id: UUID
    platform: str
    external_id: str
    currency: str
    first_day: date | None
    measured: bool


@dataclass(frozen=True, slots=True)
class PlatformCampaign:
    """A row of ``platform_campaigns``.

    Attributes:
        observed: As in ``campaigns.observed``.
        gone_at: Since when the platform does not list it any more.
    """

    integration_id: UUID
    external_id: str
    observed: dict[str, Any]
    first_seen_at: datetime
    seen_at: datetime
    gone_at: datetime | None

    @property
    def id(self) -> UUID:
        """The account: pages go by the ids within it."""
        return self.integration_id


_COLUMNS = """s.integration_id, s.stream, s.cursor, s.through, s.whole_at, s.reread_from, s.reading_id, s.reading_at,
  s.attempted_at, s.succeeded_at, s.failures, s.reason, s.error, s.failed_at"""

# Streams that were not begun for so long. A counter has no campaigns to list.
_DUE = """
SELECT i.id, t.stream FROM client_integrations i CROSS JOIN (VALUES ('entities'), ('statistics')) AS t (stream)
LEFT JOIN sync_streams s ON s.integration_id = i.id AND s.stream = t.stream
WHERE i.status = 'connected' AND NOT is_client_archived(i.client_id)
  AND (t.stream = 'statistics' OR i.platform = ANY ($1::text[]))
  AND COALESCE(s.attempted_at, '-infinity')
    <= clock_timestamp() - CASE t.stream WHEN 'entities' THEN $2::interval ELSE $3::interval END
ORDER BY i.id, t.stream"""

# Begins a try of a stream.
_BEGIN = f"""
INSERT INTO sync_streams AS s (integration_id, stream, attempted_at) VALUES ($1, $2, clock_timestamp())
ON CONFLICT (integration_id, stream) DO UPDATE SET attempted_at = clock_timestamp() RETURNING {_COLUMNS}"""

# Begins a reading, or goes on with the one that is under way and not too old. Its time never goes back, nor stands.
_BEGIN_READING = f"""
UPDATE sync_streams s SET reading_id = $3,
  reading_at = GREATEST(date_trunc('milliseconds', clock_timestamp()), reading_at + interval '1 millisecond')
WHERE integration_id = $1 AND stream = $2
  AND (reading_id IS NULL OR reading_at < clock_timestamp() - $4::interval)
RETURNING {_COLUMNS}"""

_GET = f"SELECT {_COLUMNS} FROM sync_streams s WHERE s.integration_id = $1 AND s.stream = $2"

# The streams of an account.
_OF_INTEGRATION = f"""
SELECT {_COLUMNS} FROM sync_streams s JOIN client_integrations i ON i.id = s.integration_id
JOIN clients cl ON cl.id = i.client_id WHERE s.integration_id = $4 AND {visibility.CLIENT} ORDER BY s.stream"""

# Ends a reading well. A wish that came meanwhile stays.
_SUCCEED = """
UPDATE sync_streams SET cursor = $3, through = COALESCE($4, through),
  whole_at = CASE WHEN $5 THEN attempted_at ELSE whole_at END,
  reread_from = CASE WHEN reread_from IS NOT DISTINCT FROM $6 THEN NULL ELSE reread_from END,
  reading_id = NULL, succeeded_at = clock_timestamp(), failures = 0, reason = '', error = ''
WHERE integration_id = $1 AND stream = $2"""
_SYNCED = "UPDATE client_integrations SET last_synced_at = clock_timestamp() WHERE id = $1"

# Notes a try that failed.
_FAIL = """
INSERT INTO sync_streams AS s (integration_id, stream, failures, reason, error, failed_at)
VALUES ($1, $2, $5, $3, $4, clock_timestamp())
ON CONFLICT (integration_id, stream) DO UPDATE SET failures = s.failures + $5, reason = $3, error = $4,
  failed_at = clock_timestamp()
RETURNING failures"""

# Wishes that figures be read again.
_WISH = """
INSERT INTO sync_streams AS s (integration_id, stream, reread_from) VALUES ($1, 'statistics', $2)
ON CONFLICT (integration_id, stream) DO UPDATE SET reread_from = LEAST(s.reread_from, $2)"""

# Campaigns whose figures an account has: those linked to it, or, of a counter, those of the client and under it.
_MEASURED = """
SELECT c.id, c.client_id, c.platform, c.external_id, c.currency, v.first_day, COALESCE(v.measured, false)
FROM campaigns c JOIN clients cl ON cl.id = c.client_id
LEFT JOIN sync_coverage v ON v.integration_id = $1 AND v.campaign_id = c.id
WHERE c.external_id IS NOT NULL AND cl.purged_at IS NULL
  AND CASE WHEN $2::uuid IS NULL THEN c.integration_id = $1 ELSE $2 = ANY (cl.path) END
ORDER BY c.id"""

# Notes from which day on figures were read.
_COVER = """
INSERT INTO sync_coverage AS v (integration_id, campaign_id, first_day, measured)
SELECT $1, n.campaign_id, n.first_day, n.measured
FROM unnest($2::uuid[], $3::date[], $4::boolean[]) AS n (campaign_id, first_day, measured)
ON CONFLICT (integration_id, campaign_id) DO UPDATE
SET first_day = LEAST(v.first_day, EXCLUDED.first_day), measured = v.measured OR EXCLUDED.measured
WHERE v.first_day > EXCLUDED.first_day OR NOT v.measured AND EXCLUDED.measured"""

# Writes which campaigns an account has; an older look changes nothing.
_SEE = """
INSERT INTO platform_campaigns AS p (integration_id, external_id, observed, first_seen_at, seen_at)
SELECT $1, n.external_id, n.observed, $4, $4 FROM unnest($2::text[], $3::jsonb[]) AS n (external_id, observed)
ON CONFLICT (integration_id, external_id) DO UPDATE
SET observed = EXCLUDED.observed, seen_at = EXCLUDED.seen_at, gone_at = NULL WHERE p.seen_at <= EXCLUDED.seen_at"""

# After all campaigns have been read: those that were not among them.
_UNSEEN = """
SELECT external_id FROM platform_campaigns WHERE integration_id = $1 AND gone_at IS NULL AND seen_at < $2
UNION
SELECT c.external_id FROM campaigns c WHERE c.integration_id = $1 AND c.external_id IS NOT NULL AND NOT EXISTS (
  SELECT FROM platform_campaigns p WHERE p.integration_id = $1 AND p.external_id = c.external_id AND p.seen_at >= $2)
ORDER BY 1"""

# Campaigns of an account that are linked and were never read for it.
_UNOBSERVED = """
SELECT external_id FROM campaigns
WHERE integration_id = $1 AND external_id = ANY ($2::text[]) AND last_synced_at IS NULL"""

_GONE = """
UPDATE platform_campaigns SET gone_at = $3
WHERE integration_id = $1 AND external_id = ANY ($2::text[]) AND gone_at IS NULL"""

# Campaigns of an account that nobody has linked.
_UNLINKED = f"""
SELECT p.integration_id, p.external_id, p.observed, p.first_seen_at, p.seen_at, p.gone_at
FROM platform_campaigns p JOIN client_integrations i ON i.id = p.integration_id JOIN clients cl ON cl.id = i.client_id
WHERE p.integration_id = $4 AND p.gone_at IS NULL AND {visibility.CLIENT}
  AND ($6::text IS NULL OR p.external_id > $6)
  AND ($7::text IS NULL OR position(lower($7) IN lower(p.observed->>'name')) > 0)
  AND NOT EXISTS (
    SELECT FROM campaigns c WHERE c.integration_id = p.integration_id AND c.external_id = p.external_id)
ORDER BY p.external_id LIMIT $5"""

# How many of an account's campaigns there are, and how many of them nobody has linked.
_COUNTS = """
SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (
  SELECT FROM campaigns c WHERE c.integration_id = p.integration_id AND c.external_id = p.external_id))
FROM platform_campaigns p WHERE p.integration_id = $1 AND p.gone_at IS NULL"""

# Ids of an account's campaigns with a name that were not known at an instant and that nobody has linked.
_NEW_BY_NAME = """
SELECT p.external_id FROM platform_campaigns p
WHERE p.integration_id = $1 AND p.observed->>'name' = $2 AND p.first_seen_at >= $3 AND p.gone_at IS NULL
  AND NOT EXISTS (
    SELECT FROM campaigns c WHERE c.integration_id = p.integration_id AND c.external_id = p.external_id)
ORDER BY p.first_seen_at, p.external_id"""


async def due_internal(
    db: Executor, campaign_platforms: Sequence[str], entities: timedelta, statistics: timedelta
) -> list[Due]:
    """Streams of connected accounts that were not begun for so long. Accounts of archived clients rest.

    Args:
        db: Where to run it.
        campaign_platforms: The platforms on which campaigns run.
        entities: Time between two readings of campaigns.
        statistics: Time between two readings of figures.
    """
    return [Due(*row) for row in await db.fetch(_DUE, list(campaign_platforms), entities, statistics)]


async def begin_internal(db: Executor, integration_id: UUID, stream: StreamName) -> Stream:
    """Notes that a stream is about to be read, and says how far it is."""
    return Stream(*returned(await db.fetchrow(_BEGIN, integration_id, stream)))


async def begin_reading_internal(
    db: Executor, integration_id: UUID, stream: StreamName, reading_id: UUID, most_age: timedelta
) -> Stream:
    """The reading that is under way, or a new one if there is none that is young enough.

    Args:
        db: Where to run it.
        integration_id: The account.
        stream: A stream that was begun.
        reading_id: Id of the new one.
        most_age: An older one is given up, since what it finds would be no news.
    """
    row = await db.fetchrow(_BEGIN_READING, integration_id, stream, reading_id, most_age)
    return Stream(*returned(row or await db.fetchrow(_GET, integration_id, stream)))


async def of_integration(db: Executor, scope: Scope, integration_id: UUID) -> list[Stream]:
    """The streams of an account that were ever begun."""
    return [Stream(*row) for row in await db.fetch(_OF_INTEGRATION, *scope.args, integration_id)]


async def succeed_internal(
    tx: Transaction,
    integration_id: UUID,
    stream: StreamName,
    *,
    cursor: str,
    through: date | None = None,
    whole: bool = False,
    reread_from: date | None = None,
) -> None:
    """Moves a stream on, in the transaction of the last that was read of it.

    Args:
        tx: The transaction.
        integration_id: The account.
        stream: The stream.
        cursor: The platform's mark for the next time.
        through: Last day whose figures were read.
        whole: All campaigns were read.
        reread_from: The wish that was fulfilled.
    """
    await tx.execute(_SUCCEED, integration_id, stream, cursor, through, whole, reread_from)
    await tx.execute(_SYNCED, integration_id)


async def fail_internal(
    db: Executor, integration_id: UUID, stream: StreamName, reason: str, error: str, *, counted: bool = True
) -> int:
    """Notes why a stream could not be read; returns how often that failed since it succeeded.

    Args:
        db: Where to run it.
        integration_id: The account.
        stream: The stream.
        reason: A word of ours.
        error: The same for people, without anything that the platform said.
        counted: Whether it is a failure, not just a wait.
    """
    failures: int = await db.fetchval(_FAIL, integration_id, stream, reason, error, int(counted))
    return failures


async def wish_internal(tx: Transaction, integration_id: UUID, first: date) -> None:
    """Has figures read again from a day on, by the next reading that begins. The caller may see the account."""
    await tx.execute(_WISH, integration_id, first)


async def measured_internal(db: Executor, integration_id: UUID, counter_of: UUID | None) -> list[Measured]:
    """The campaigns whose figures an account has.

    Args:
        db: Where to run it.
        integration_id: The account.
        counter_of: Of a counter: its client, whose campaigns and those under it lead there.
    """
    return [Measured(*row) for row in await db.fetch(_MEASURED, integration_id, counter_of)]


async def cover_internal(tx: Transaction, integration_id: UUID, covered: Mapping[UUID, tuple[date, bool]]) -> None:
    """Notes from which day on campaigns were read, and whether there were figures."""
    firsts = [first for first, _ in covered.values()]
    await tx.execute(_COVER, integration_id, list(covered), firsts, [there for _, there in covered.values()])


async def see_internal(
    tx: Transaction, integration_id: UUID, seen: Mapping[str, Mapping[str, Any]], at: datetime
) -> None:
    """Writes what an account's campaigns were at an instant, by their ids there."""
    await tx.execute(_SEE, integration_id, list(seen), [dict(each) for each in seen.values()], at)


async def unseen_internal(tx: Transaction, integration_id: UUID, since: datetime) -> list[str]:
    """Ids of the campaigns that were there and have not been seen since."""
    return [row[0] for row in await tx.fetch(_UNSEEN, integration_id, since)]


async def unobserved_internal(db: Executor, integration_id: UUID, external_ids: Collection[str]) -> list[str]:
    """Ids of those campaigns that are linked and of which the platform has said nothing yet."""
    return [row[0] for row in await db.fetch(_UNOBSERVED, integration_id, list(external_ids))]


async def gone_internal(tx: Transaction, integration_id: UUID, external_ids: Collection[str], at: datetime) -> None:
    """Notes that campaigns are not there any more."""
    await tx.execute(_GONE, integration_id, list(external_ids), at)


async def unlinked(
    db: Executor,
    scope: Scope,
    integration_id: UUID,
    *,
    limit: int,
    after: str | None = None,
    name_contains: str | None = None,
) -> list[PlatformCampaign]:
    """Up to `limit` campaigns of an account that nobody has linked, by their ids there, from `after` on."""
    rows = await db.fetch(_UNLINKED, *scope.args, integration_id, limit, after, name_contains)
    return [PlatformCampaign(*row) for row in rows]


async def counts_internal(db: Executor, integration_id: UUID) -> tuple[int, int]:
    """How many campaigns an account has, and how many nobody has linked. The caller may see the account."""
    row = returned(await db.fetchrow(_COUNTS, integration_id))
    return row[0], row[1]


async def new_by_name_internal(db: Executor, integration_id: UUID, name: str, since: datetime) -> list[str]:
    """Ids of an account's campaigns of a name that were not known before an instant and that nobody has linked."""
    return [row[0] for row in await db.fetch(_NEW_BY_NAME, integration_id, name, since)]
