# ruff: noqa: S608 - the statements are put together from constants of this package
"""What has a budget: projects, the media plans that count, campaigns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class BudgetProject:
    """A project and its money; `time_zone` is the client's."""

    id: UUID
    client_id: UUID
    name: str
    currency: str
    budget: Decimal | None
    start: date | None
    end: date | None
    time_zone: str


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """The version of a media plan that counts; `channels` as in the table's comment."""

    id: UUID
    lineage_id: UUID
    project_id: UUID
    name: str
    budget: Decimal | None
    channels: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class BudgetCampaign:
    """A campaign and its money."""

    id: UUID
    project_id: UUID
    name: str
    status: str
    currency: str
    budget_daily: Decimal | None
    budget_total: Decimal | None
    lineage_id: UUID | None
    channel_id: UUID | None


# Projects, or those of a client that run.
_PROJECTS = f"""
SELECT p.id, p.client_id, p.name, p.budget_currency, p.budget_total, p.start_date, p.end_date, cl.settings->>'timezone'
FROM projects p JOIN clients cl ON cl.id = p.client_id
WHERE ($4::uuid IS NULL OR p.id = $4) AND ($5::uuid IS NULL OR p.client_id = $5 AND p.status = 'active')
  AND {visibility.project("p.id")} ORDER BY p.id"""

# Of each lineage of some projects the version that runs, else the newest approved, else the newest; or one version.
_PLANS = f"""
SELECT DISTINCT ON (m.lineage_id) m.id, m.lineage_id, m.project_id, m.name, m.total_budget, m.channels
FROM media_plans m JOIN projects p ON p.id = m.project_id JOIN clients cl ON cl.id = p.client_id
WHERE m.project_id = ANY ($4::uuid[]) AND ($5::uuid IS NULL OR m.id = $5)
  AND ($6::uuid[] IS NULL OR m.lineage_id = ANY ($6)) AND {visibility.project("m.project_id")}
ORDER BY m.lineage_id, m.status <> 'active', m.status <> 'approved', m.version DESC"""

# Campaigns of some projects; only one, or those of a plan, if wanted.
_CAMPAIGNS = f"""
SELECT c.id, c.project_id, c.name, c.status, c.currency, c.budget_daily, c.budget_total, c.plan_lineage_id,
  c.plan_channel_id
FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.project_id = ANY ($4::uuid[]) AND ($5::uuid IS NULL OR c.id = $5)
  AND ($6::uuid IS NULL OR c.plan_lineage_id = $6) AND {visibility.project("c.project_id")}
ORDER BY c.id"""

# Clients with something that runs.
_RUNNING_CLIENTS = """
SELECT DISTINCT p.client_id FROM projects p JOIN clients cl ON cl.id = p.client_id
WHERE p.status = 'active' AND cl.purged_at IS NULL AND NOT is_client_archived(cl.id) ORDER BY p.client_id"""


async def projects(
    db: Executor, scope: Scope, *, project_id: UUID | None = None, running_of: UUID | None = None
) -> list[BudgetProject]:
    """One project, or all of a client that run; at least one of both is given."""
    if project_id is None and running_of is None:
        raise ValueError("project_id or running_of is needed")
    rows = await db.fetch(_PROJECTS, *scope.args, project_id, running_of)
    return [BudgetProject(*row) for row in rows]


async def plans(
    db: Executor,
    scope: Scope,
    project_ids: Sequence[UUID],
    *,
    media_plan_id: UUID | None = None,
    lineage_ids: Sequence[UUID] | None = None,
) -> list[BudgetPlan]:
    """Of each lineage the version that counts, or only the given version; only some lineages if given."""
    rows = await db.fetch(
        _PLANS, *scope.args, list(project_ids), media_plan_id, None if lineage_ids is None else list(lineage_ids)
    )
    return [BudgetPlan(*row) for row in rows]


async def campaigns(
    db: Executor,
    scope: Scope,
    project_ids: Sequence[UUID],
    *,
    campaign_id: UUID | None = None,
    lineage_id: UUID | None = None,
) -> list[BudgetCampaign]:
    """Campaigns of projects, oldest first; only one, or those of one media plan, if given."""
    rows = await db.fetch(_CAMPAIGNS, *scope.args, list(project_ids), campaign_id, lineage_id)
    return [BudgetCampaign(*row) for row in rows]


async def running_clients_internal(db: Executor) -> list[UUID]:
    """Clients that have a project that runs."""
    return [row[0] for row in await db.fetch(_RUNNING_CLIENTS)]
