# ruff: noqa: S608 - the statements are put together from constants of this package
"""What of the measurements a caller may see, and what a watched client consists of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor
from storage.scope import Scope


class ProjectOwner(NamedTuple):
    """A project and its client."""

    project_id: UUID
    client_id: UUID


class ClientCampaign(NamedTuple):
    """A campaign of a client, and what it is watched by."""

    client_id: UUID
    campaign_id: UUID
    currency: str
    project_id: UUID
    platform: str


class PlanPlace(NamedTuple):
    """Where a campaign stands in the media plans: its plan through all versions, and the channel it spends from."""

    media_plan_id: UUID | None
    channel_id: UUID | None


# Clients seen as a whole, or those among the given ones, with their time zones.
_CLIENTS = f"""
SELECT cl.id, cl.settings->>'timezone' FROM clients cl
WHERE ($4::uuid[] IS NULL OR cl.id = ANY ($4)) AND {visibility.CLIENT}"""

# Projects whose team the caller is on, though it may not see their clients.
_TEAM_PROJECTS = f"""
SELECT p.id, p.client_id
FROM project_team t JOIN projects p ON p.id = t.project_id JOIN clients cl ON cl.id = p.client_id
WHERE {visibility.TEAM} AND NOT {visibility.CLIENT}"""

# Those of the given projects that the caller may see.
_PROJECTS = f"""
SELECT p.id, p.client_id FROM projects p JOIN clients cl ON cl.id = p.client_id
WHERE p.id = ANY ($4::uuid[]) AND {visibility.project("p.id")}"""

# All campaigns of the clients themselves, not of clients under them.
_CAMPAIGNS = f"""
SELECT c.client_id, c.id, c.currency, c.project_id, c.platform FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.client_id = ANY ($4::uuid[]) AND {visibility.CLIENT}"""

# Media plan and channel of those of the given campaigns that the caller may see and that have a plan.
_PLAN_PLACES = f"""
SELECT c.id, c.plan_lineage_id, c.plan_channel_id FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.id = ANY ($4::uuid[]) AND c.plan_lineage_id IS NOT NULL AND {visibility.project("c.project_id")}"""


# Which of the numbered pairs of a scope and a client still hold; a scope of several clients has a pair for each.
_STILL_VISIBLE = """
SELECT DISTINCT w.n
FROM unnest($1::int[], $2::boolean[], $3::uuid[], $4::uuid[], $5::uuid[])
  AS w (n, everything, user_id, above, client_id)
JOIN clients cl ON cl.id = w.client_id
WHERE cl.purged_at IS NULL AND (
  w.everything
  OR w.above = ANY (cl.path)
  OR EXISTS (SELECT FROM client_memberships m WHERE m.user_id = w.user_id AND m.client_id = ANY (cl.path)))"""


async def clients(db: Executor, scope: Scope, client_ids: Sequence[UUID] | None = None) -> dict[UUID, str]:
    """Clients in scope and their time zones; only those among `client_ids` when given."""
    rows = await db.fetch(_CLIENTS, *scope.args, None if client_ids is None else list(client_ids))
    return {row[0]: row[1] for row in rows}


async def still_visible(db: Executor, watched: Sequence[tuple[Scope, UUID]]) -> list[bool]:
    """Whether each client is in its scope as a whole: one question for all streams of a process.

    Args:
        db: Where to run it.
        watched: Scopes and a client that each of them reached once.
    """
    pairs = [
        (number, scope.everything, scope.user_id if "member" in scope.standings else None, above, client_id)
        for number, (scope, client_id) in enumerate(watched)
        for above in (scope.client_ids or (None,))
    ]
    columns = [list(column) for column in zip(*pairs, strict=True)] if pairs else [[]] * 5
    found = {row[0] for row in await db.fetch(_STILL_VISIBLE, *columns)}
    return [number in found for number in range(len(watched))]


async def team_projects(db: Executor, scope: Scope) -> list[ProjectOwner]:
    """Projects the caller may see only because it is on their team."""
    if scope.everything or scope.user_id is None:
        return []
    return [ProjectOwner(*row) for row in await db.fetch(_TEAM_PROJECTS, *scope.args)]


async def projects(db: Executor, scope: Scope, project_ids: Sequence[UUID]) -> list[ProjectOwner]:
    """Those of the projects that are in scope."""
    return [ProjectOwner(*row) for row in await db.fetch(_PROJECTS, *scope.args, list(project_ids))]


async def campaigns(db: Executor, scope: Scope, client_ids: Sequence[UUID]) -> list[ClientCampaign]:
    """All campaigns of those of the clients that are in scope as a whole."""
    return [ClientCampaign(*row) for row in await db.fetch(_CAMPAIGNS, *scope.args, list(client_ids))]


async def plan_places(db: Executor, scope: Scope, campaign_ids: Sequence[UUID]) -> dict[UUID, PlanPlace]:
    """Media plans of those of the campaigns that are in scope and have one."""
    rows = await db.fetch(_PLAN_PLACES, *scope.args, list(campaign_ids))
    return {row[0]: PlanPlace(row[1], row[2]) for row in rows}
