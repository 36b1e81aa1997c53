# ruff: noqa: S608 - the statements are put together from constants of this package
"""Media plans: lineages and their versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id
from storage.postgres.revisions import update_row
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class MediaPlan:
    """A row of ``media_plans``, one version of a plan, with what it depends on of its project.

    Attributes:
        channels: As in the table's comment; budgets in millionths. Empty in lists.
        targeting: As in the table's comment. Empty in lists.
        author_ids: Everybody who wrote this version.
        created_by: Who began it, when a person.
        submitted_by: Who asked for approval; None for a draft.
        channel_count: How many channels it has, also in lists.
        client_id: The project's.
        project_status: The project's, when it was read; so also the days.
    """

    id: UUID
    lineage_id: UUID
    project_id: UUID
    name: str
    version: int
    status: str
    total_budget: Decimal | None
    currency: str
    channels: list[dict[str, Any]]
    targeting: dict[str, Any]
    author_ids: list[UUID]
    created_by: UUID | None
    submitted_by: UUID | None
    approved_by: UUID | None
    approved_at: datetime | None
    override_reason: str
    superseded_by: UUID | None
    revision: int
    created_at: datetime
    updated_at: datetime
    channel_count: int
    client_id: UUID
    project_status: str
    project_start: date | None
    project_end: date | None


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """A version, in short."""

    id: UUID
    version: int
    status: str


def _columns(channels: str, targeting: str) -> str:
    return f"""m.id, m.lineage_id, m.project_id, m.name, m.version, m.status, m.total_budget, m.currency, {channels},
  {targeting}, m.author_ids, m.created_by, m.submitted_by, m.approved_by, m.approved_at, m.override_reason,
  m.superseded_by, m.revision, m.created_at, m.updated_at, jsonb_array_length(m.channels), p.client_id, p.status,
  p.start_date, p.end_date"""


_COLUMNS = _columns("m.channels", "m.targeting")
_HEAD = _columns("'[]'::jsonb", "'{}'::jsonb")
_FROM = "FROM media_plans m JOIN projects p ON p.id = m.project_id JOIN clients cl ON cl.id = p.client_id"
_VISIBLE = visibility.project("m.project_id")

# Adds a lineage.
_CREATE_LINEAGE = "INSERT INTO plan_lineages (id, project_id, name, created_by) VALUES ($1, $2, $3, $4)"

# Adds a version.
_CREATE = f"""
WITH m AS (
  INSERT INTO media_plans (id, lineage_id, project_id, name, version, total_budget, currency, channels, targeting,
    created_by, author_ids)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING *)
SELECT {_COLUMNS} FROM m JOIN projects p ON p.id = m.project_id"""

# One version.
_GET = f"SELECT {_COLUMNS} {_FROM} WHERE m.id = $4 AND {_VISIBLE}"

# One version, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF m"

# The version of a lineage that runs, kept from changing until the transaction ends.
_ACTIVE_FOR_UPDATE = f"""
SELECT {_COLUMNS} {_FROM} WHERE m.lineage_id = $4 AND m.status = 'active' AND {_VISIBLE} FOR UPDATE OF m"""

# One page of versions, oldest first, without their content.
_LIST_PAGE = f"""
SELECT {_HEAD} {_FROM}
WHERE {_VISIBLE}
  AND ($4::uuid IS NULL OR m.id > $4)
  AND ($6::uuid IS NULL OR m.project_id = $6)
  AND ($7::uuid IS NULL OR p.client_id = $7)
  AND ($8::uuid IS NULL OR m.lineage_id = $8)
  AND ($9::text[] IS NULL OR m.status = ANY ($9))
ORDER BY m.id LIMIT $5"""

# All versions of a lineage, in short.
_VERSIONS = f"SELECT m.id, m.version, m.status {_FROM} WHERE m.lineage_id = $4 AND {_VISIBLE} ORDER BY m.version"

# The approved versions that may still run. Once a later one has run, an approved version is history.
_MAY_RUN = """(m.status = 'active' OR m.status = 'approved' AND m.version > COALESCE((
  SELECT max(r.version) FROM media_plans r
  WHERE r.lineage_id = m.lineage_id AND r.status IN ('active', 'completed')), 0))"""

# The versions of some lineages that campaigns may be bound to: what runs, what may run next, and the newest.
_CURRENT = f"""
SELECT {_COLUMNS} {_FROM}
WHERE m.lineage_id = ANY ($4::uuid[]) AND {_VISIBLE} AND ({_MAY_RUN} OR m.version = (
  SELECT max(n.version) FROM media_plans n WHERE n.lineage_id = m.lineage_id))
ORDER BY m.status <> 'active', m.status <> 'approved', m.version DESC"""

# What the approved plans of a project may cost at most: of each lineage the dearest version that may run.
_COMMITTED = f"""
SELECT m.lineage_id, max(m.total_budget) {_FROM}
WHERE m.project_id = $4 AND {_MAY_RUN} AND {_VISIBLE} GROUP BY m.lineage_id ORDER BY m.lineage_id"""

# Which of some plans have a version that runs or may run.
_RUNNABLE = f"""
SELECT DISTINCT m.lineage_id {_FROM} WHERE m.lineage_id = ANY ($4::uuid[]) AND {_MAY_RUN} AND {_VISIBLE}"""

# Which of some channels any version of a lineage has.
_KNOWN_CHANNELS = f"""
SELECT DISTINCT (c.entry->>'channel_id')::uuid
{_FROM} CROSS JOIN jsonb_array_elements(m.channels) AS c (entry)
WHERE m.lineage_id = $4 AND (c.entry->>'channel_id')::uuid = ANY ($5::uuid[]) AND {_VISIBLE}"""

# Replaces what may change of a version that still has the expected revision.
_UPDATE = f"""
UPDATE media_plans m SET name = $6, status = $7, total_budget = $8, channels = $9, targeting = $10, author_ids = $11,
  submitted_by = $12, approved_by = $13, override_reason = $14, superseded_by = $15,
  approved_at = CASE WHEN $13::uuid IS NOT NULL THEN COALESCE(m.approved_at, now()) END
FROM projects p JOIN clients cl ON cl.id = p.client_id
WHERE m.id = $4 AND p.id = m.project_id AND m.revision = $5 AND {_VISIBLE} RETURNING {_COLUMNS}"""

# The present revision, to tell a stale version from a missing one.
_REVISION = f"SELECT m.revision {_FROM} WHERE m.id = $4 AND {_VISIBLE}"

# Of a draft, the rows that go with it.
_OF_DRAFT = f"""
USING media_plans m JOIN projects p ON p.id = m.project_id JOIN clients cl ON cl.id = p.client_id
WHERE r.media_plan_id = $4 AND m.id = $4 AND m.status = 'draft' AND {_VISIBLE}"""

# Removes what was decided about a draft.
_DELETE_DECISIONS = f"DELETE FROM media_plan_decisions r {_OF_DRAFT}"

# Removes what was said about a draft.
_DELETE_COMMENTS = f"DELETE FROM media_plan_comments r {_OF_DRAFT}"

# Removes a draft.
_DELETE = f"""
DELETE FROM media_plans m USING projects p JOIN clients cl ON cl.id = p.client_id
WHERE m.id = $4 AND p.id = m.project_id AND m.status = 'draft' AND {_VISIBLE}"""

# Removes a lineage without versions.
_DELETE_LINEAGE = f"""
DELETE FROM plan_lineages l USING projects p JOIN clients cl ON cl.id = p.client_id
WHERE l.id = $4 AND p.id = l.project_id AND {visibility.project("l.project_id")}
  AND NOT EXISTS (SELECT FROM media_plans m WHERE m.lineage_id = l.id)"""


async def create(
    db: Executor,
    *,
    project_id: UUID,
    name: str,
    total_budget: Decimal,
    currency: str,
    channels: Sequence[Mapping[str, Any]],
    targeting: Mapping[str, Any],
    created_by: UUID | None = None,
    author_ids: Sequence[UUID] = (),
    lineage_id: UUID | None = None,
    version: int = 1,
    media_plan_id: UUID | None = None,
) -> MediaPlan:
    """Adds a version as a draft, the first one with its lineage.

    The caller has checked that it may add one to the project.

    Args:
        db: Where to run it.
        project_id: The project.
        name: Name of the plan.
        total_budget: All its money, in `currency`.
        currency: The project's.
        channels: As in the table's comment.
        targeting: As in the table's comment.
        created_by: Who begins it, when a person.
        author_ids: Who wrote it.
        lineage_id: The plan that it is a version of; a new id when None.
        version: Its number.
        media_plan_id: Its id; a new one when None.

    Raises:
        Conflict: ``media_plans_version_key`` or ``media_plans_one_open``.
        Invalid: A value is not allowed.
    """
    lineage_id = lineage_id or new_id()
    if version == 1:
        await db.execute(_CREATE_LINEAGE, lineage_id, project_id, name, created_by)
    row = await db.fetchrow(
        _CREATE, media_plan_id or new_id(), lineage_id, project_id, name, version, total_budget, currency,
        [dict(channel) for channel in channels], dict(targeting), created_by, list(author_ids),
    )  # fmt: skip
    return MediaPlan(*returned(row))


async def get(db: Executor, scope: Scope, media_plan_id: UUID) -> MediaPlan | None:
    """The version with this id."""
    row = await db.fetchrow(_GET, *scope.args, media_plan_id)
    return None if row is None else MediaPlan(*row)


async def get_for_update(db: Executor, scope: Scope, media_plan_id: UUID) -> MediaPlan | None:
    """As `get`, and keeps others from changing the version until the transaction ends."""
    row = await db.fetchrow(_GET_FOR_UPDATE, *scope.args, media_plan_id)
    return None if row is None else MediaPlan(*row)


async def active_for_update(db: Executor, scope: Scope, lineage_id: UUID) -> MediaPlan | None:
    """The version of a lineage that runs, kept from changing until the transaction ends."""
    row = await db.fetchrow(_ACTIVE_FOR_UPDATE, *scope.args, lineage_id)
    return None if row is None else MediaPlan(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    project_id: UUID | None = None,
    client_id: UUID | None = None,
    lineage_id: UUID | None = None,
    statuses: Sequence[str] | None = None,
) -> list[MediaPlan]:
    """Up to `limit` versions without channels and targeting, oldest first; a filter that is None lets all pass."""
    rows = await db.fetch(
        _LIST_PAGE, *scope.args, after, limit, project_id, client_id, lineage_id,
        None if statuses is None else list(statuses),
    )  # fmt: skip
    return [MediaPlan(*row) for row in rows]


async def versions(db: Executor, scope: Scope, lineage_id: UUID) -> list[PlanVersion]:
    """All versions of a lineage, by number."""
    return [PlanVersion(*row) for row in await db.fetch(_VERSIONS, *scope.args, lineage_id)]


async def current(db: Executor, scope: Scope, *lineage_ids: UUID) -> list[MediaPlan]:
    """The versions of some lineages that campaigns may be bound to, those of each in the order in which they are looked
    at: the one that runs, approved ones that may run, the newest.
    """
    return [MediaPlan(*row) for row in await db.fetch(_CURRENT, *scope.args, list(lineage_ids))]


async def committed(db: Executor, scope: Scope, project_id: UUID) -> dict[UUID, Decimal]:
    """What each lineage of a project may cost at most, by its versions that run or may run."""
    return {row[0]: row[1] for row in await db.fetch(_COMMITTED, *scope.args, project_id)}


async def runnable(db: Executor, scope: Scope, lineage_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the plans of which a version is active, or approved and not overtaken."""
    return {row[0] for row in await db.fetch(_RUNNABLE, *scope.args, list(lineage_ids))}


async def known_channels(db: Executor, scope: Scope, lineage_id: UUID, channel_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the channels that any version of the lineage has."""
    return {row[0] for row in await db.fetch(_KNOWN_CHANNELS, *scope.args, lineage_id, list(channel_ids))}


async def update(db: Executor, scope: Scope, changed: MediaPlan) -> MediaPlan | None:
    """Writes a version that was read and changed; `approved_at` follows from `approved_by`.

    Returns:
        The version as it is now, or None when there is none in scope.

    Raises:
        StaleRevision: It was changed since.
        Conflict: ``media_plans_one_active`` or ``media_plans_one_open``.
        Invalid: A value is not allowed, for example ``media_plans_frozen``.
    """
    row = await update_row(
        db, _UPDATE, _REVISION, scope, changed.id, changed.revision,
        changed.name, changed.status, changed.total_budget, changed.channels, changed.targeting, changed.author_ids,
        changed.submitted_by, changed.approved_by, changed.override_reason, changed.superseded_by,
    )  # fmt: skip
    return None if row is None else MediaPlan(*row)


async def delete(db: Executor, scope: Scope, plan: MediaPlan) -> bool:
    """Removes a draft with its history, and its lineage if that leaves it empty; whether there was one.

    Raises:
        Conflict: ``campaigns_plan_version_fkey``: campaigns are bound under it.
    """
    await db.execute(_DELETE_DECISIONS, *scope.args, plan.id)
    await db.execute(_DELETE_COMMENTS, *scope.args, plan.id)
    if await db.execute(_DELETE, *scope.args, plan.id) == "DELETE 0":
        return False
    await db.execute(_DELETE_LINEAGE, *scope.args, plan.lineage_id)
    return True
