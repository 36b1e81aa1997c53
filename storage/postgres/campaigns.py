# ruff: noqa: S608 - the statements are put together from constants of this package
"""Campaigns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id
from storage.postgres.revisions import update_row
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Campaign:
    """A row of ``campaigns``. Client, project, platform and currency are set once.

    Attributes:
        plan_lineage_id: The media plan through all its versions; `plan_version` is the one it was made under.
        integration_id: The platform account it runs in, which may belong to an agency above the client.
        external_id: Its id on the platform; None for a draft of ours.
        status: The state we want; what the platform reports is in `observed`.
        budget_spent: Derived from statistics; `update` does not write it.
    """

    id: UUID
    client_id: UUID
    project_id: UUID
    plan_lineage_id: UUID | None
    plan_version: int | None
    plan_channel_id: UUID | None
    integration_id: UUID | None
    external_id: str | None
    platform: str
    name: str
    status: str
    currency: str
    budget_daily: Decimal | None
    budget_total: Decimal | None
    budget_spent: Decimal
    configuration: dict[str, Any]
    observed: dict[str, Any]
    last_synced_at: datetime | None
    revision: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class CampaignDimension:
    """What the measurements need to know of a campaign. `time_zone` is the client's."""

    campaign_id: UUID
    client_id: UUID
    project_id: UUID
    platform: str
    currency: str
    time_zone: str


@dataclass(frozen=True, slots=True)
class BoundCampaign:
    """What a media plan needs to know of a campaign that it pays for."""

    id: UUID
    name: str
    status: str
    plan_version: int
    plan_channel_id: UUID
    budget_total: Decimal


_COLUMNS = """c.id, c.client_id, c.project_id, c.plan_lineage_id, c.plan_version, c.plan_channel_id, c.integration_id,
  c.external_id, c.platform, c.name, c.status, c.currency, c.budget_daily, c.budget_total, c.budget_spent,
  c.configuration, c.observed, c.last_synced_at, c.revision, c.created_at, c.updated_at"""

_DIMENSION = "c.id, c.client_id, c.project_id, c.platform, c.currency, cl.settings->>'timezone'"

_VISIBLE = visibility.project("c.project_id")

# Adds a campaign.
_CREATE = f"""
INSERT INTO campaigns AS c (id, client_id, project_id, plan_lineage_id, plan_version, plan_channel_id, integration_id,
  external_id, platform, name, status, currency, budget_daily, budget_total, configuration)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING {_COLUMNS}"""

# One campaign. The hottest statement of all: by indexes only.
_GET = f"""
SELECT {_COLUMNS} FROM campaigns c JOIN clients cl ON cl.id = c.client_id WHERE c.id = $4 AND {_VISIBLE}"""

# One campaign, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF c"

# One page of campaigns, oldest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE {_VISIBLE}
  AND ($4::uuid IS NULL OR c.id > $4)
  AND ($6::uuid IS NULL OR c.client_id = $6)
  AND ($7::uuid IS NULL OR c.project_id = $7)
  AND ($8::text[] IS NULL OR c.platform = ANY ($8))
  AND ($9::text[] IS NULL OR c.status = ANY ($9))
ORDER BY c.id LIMIT $5"""

# Replaces what may change of a campaign that still has the expected revision.
_UPDATE = f"""
UPDATE campaigns c SET plan_lineage_id = $6, plan_version = $7, plan_channel_id = $8, integration_id = $9,
  external_id = $10, name = $11, status = $12, budget_daily = $13, budget_total = $14, configuration = $15,
  observed = $16, last_synced_at = $17
FROM clients cl
WHERE c.id = $4 AND cl.id = c.client_id AND c.revision = $5 AND {_VISIBLE} RETURNING {_COLUMNS}"""

# Ids of a project's active campaigns, kept from changing until the transaction ends.
_ACTIVE_OF_PROJECT = f"""
SELECT c.id FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.project_id = $4 AND c.status = 'active' AND {_VISIBLE} ORDER BY c.id FOR UPDATE OF c"""

# Pauses given campaigns.
_PAUSE = f"""
UPDATE campaigns c SET status = 'paused' FROM clients cl
WHERE c.id = ANY ($4::uuid[]) AND cl.id = c.client_id AND c.status = 'active' AND {_VISIBLE}"""

# Campaigns bound to a media plan.
_BOUND = f"""
SELECT c.id, c.name, c.status, c.plan_version, c.plan_channel_id, c.budget_total
FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.plan_lineage_id = $4 AND num_nulls(c.plan_version, c.plan_channel_id, c.budget_total) = 0 AND {_VISIBLE}
ORDER BY c.id"""

# The present revision, to tell a stale campaign from a missing one.
_REVISION = f"""
SELECT c.revision FROM campaigns c JOIN clients cl ON cl.id = c.client_id WHERE c.id = $4 AND {_VISIBLE}"""

# Dimensions of given campaigns, or of all of one client itself.
_FOR_DIMENSION = f"""
SELECT {_DIMENSION} FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE ($4::uuid[] IS NULL OR c.id = ANY ($4)) AND ($5::uuid IS NULL OR c.client_id = $5) AND {_VISIBLE}
ORDER BY c.id"""

# Dimensions of given campaigns, whoever they belong to.
_DIMENSIONS_INTERNAL = f"""
SELECT {_DIMENSION} FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE c.id = ANY ($1::uuid[]) AND cl.purged_at IS NULL"""

# One page of all campaigns' dimensions.
_DIMENSION_PAGE_INTERNAL = f"""
SELECT {_DIMENSION} FROM campaigns c JOIN clients cl ON cl.id = c.client_id
WHERE cl.purged_at IS NULL AND ($1::uuid IS NULL OR c.id > $1) ORDER BY c.id LIMIT $2"""


async def create(
    db: Executor,
    *,
    client_id: UUID,
    project_id: UUID,
    platform: str,
    name: str,
    currency: str,
    status: str = "draft",
    plan_lineage_id: UUID | None = None,
    plan_version: int | None = None,
    plan_channel_id: UUID | None = None,
    integration_id: UUID | None = None,
    external_id: str | None = None,
    budget_daily: Decimal | None = None,
    budget_total: Decimal | None = None,
    configuration: Mapping[str, Any] | None = None,
    campaign_id: UUID | None = None,
) -> Campaign:
    """Adds a campaign. The caller has checked that it may add one to the project.

    Raises:
        Conflict: ``campaigns_external_key`` or ``campaigns_imported_key``: that platform campaign is here already.
        Invalid: A value is not allowed, or ``campaigns_project_fkey``: the client has no such project.
    """
    row = await db.fetchrow(
        _CREATE, campaign_id or new_id(), client_id, project_id, plan_lineage_id, plan_version, plan_channel_id,
        integration_id, external_id, platform, name, status, currency, budget_daily, budget_total,
        dict(configuration or {}),
    )  # fmt: skip
    return Campaign(*returned(row))


async def get(db: Executor, scope: Scope, campaign_id: UUID) -> Campaign | None:
    """The campaign with this id."""
    row = await db.fetchrow(_GET, *scope.args, campaign_id)
    return None if row is None else Campaign(*row)


async def get_for_update(db: Executor, scope: Scope, campaign_id: UUID) -> Campaign | None:
    """As `get`, and keeps others from changing the campaign until the transaction ends."""
    row = await db.fetchrow(_GET_FOR_UPDATE, *scope.args, campaign_id)
    return None if row is None else Campaign(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    client_id: UUID | None = None,
    project_id: UUID | None = None,
    platforms: Sequence[str] | None = None,
    statuses: Sequence[str] | None = None,
) -> list[Campaign]:
    """Up to `limit` campaigns, oldest first, whose id comes after `after`; a filter that is None lets all pass."""
    rows = await db.fetch(
        _LIST_PAGE, *scope.args, after, limit, client_id, project_id,
        None if platforms is None else list(platforms), None if statuses is None else list(statuses),
    )  # fmt: skip
    return [Campaign(*row) for row in rows]


async def update(
    db: Executor, scope: Scope, changed: Campaign, expected_revision: int | None = None
) -> Campaign | None:
    """Writes a campaign that was read and changed.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        changed: The campaign as read, with its new values. What is set once, money spent and times are ignored.
        expected_revision: The revision the change is based on; that of `changed` when None.

    Returns:
        The campaign as it is now, or None when there is none in scope.

    Raises:
        StaleRevision: It was changed since.
        Conflict: That platform campaign is here already.
        Invalid: A value is not allowed, for example ``campaigns_budget_order``.
    """
    expected = changed.revision if expected_revision is None else expected_revision
    row = await update_row(
        db, _UPDATE, _REVISION, scope, changed.id, expected,
        changed.plan_lineage_id, changed.plan_version, changed.plan_channel_id, changed.integration_id,
        changed.external_id, changed.name, changed.status, changed.budget_daily, changed.budget_total,
        changed.configuration, changed.observed, changed.last_synced_at,
    )  # fmt: skip
    return None if row is None else Campaign(*row)


async def bound(db: Executor, scope: Scope, lineage_id: UUID) -> list[BoundCampaign]:
    """The campaigns bound to a media plan, archived ones as well, oldest first."""
    return [BoundCampaign(*row) for row in await db.fetch(_BOUND, *scope.args, lineage_id)]


async def active_of_project(db: Executor, scope: Scope, project_id: UUID) -> list[UUID]:
    """Ids of the active campaigns of a project; they stay active until the transaction ends."""
    return [row[0] for row in await db.fetch(_ACTIVE_OF_PROJECT, *scope.args, project_id)]


async def pause(db: Executor, scope: Scope, campaign_ids: Sequence[UUID]) -> None:
    """Pauses those of the campaigns that are active. The caller records it."""
    await db.execute(_PAUSE, *scope.args, list(campaign_ids))


async def for_dimension(
    db: Executor, scope: Scope, *, campaign_ids: Sequence[UUID] | None = None, client_id: UUID | None = None
) -> list[CampaignDimension]:
    """Dimensions of those of `campaign_ids` in scope, or of the campaigns of one client itself; at least one is given.

    Raises:
        ValueError: Neither is given.
    """
    if campaign_ids is None and client_id is None:
        raise ValueError("campaign_ids or client_id is needed")
    wanted = None if campaign_ids is None else list(campaign_ids)
    return [CampaignDimension(*row) for row in await db.fetch(_FOR_DIMENSION, *scope.args, wanted, client_id)]


async def dimensions_internal(db: Executor, campaign_ids: Sequence[UUID]) -> list[CampaignDimension]:
    """Dimensions of those of `campaign_ids` that exist and are not purged. For the service's own jobs: no scope."""
    return [CampaignDimension(*row) for row in await db.fetch(_DIMENSIONS_INTERNAL, list(campaign_ids))]


async def dimension_page_internal(db: Executor, *, limit: int, after: UUID | None = None) -> list[CampaignDimension]:
    """Up to `limit` campaigns' dimensions, by id from `after` on. For the service's own jobs: no scope."""
    return [CampaignDimension(*row) for row in await db.fetch(_DIMENSION_PAGE_INTERNAL, after, limit)]
