# ruff: noqa: S608 - the statements are put together from constants of this package
"""Changes of ours that platforms have not been told yet. A trigger of ``campaigns`` notes them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, Transaction
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Push:
    """What a platform is to be told of a campaign, with the campaign as it is now.

    Attributes:
        creates: It is to be created there.
        parts: What changed.
        version: Which change it is; a later one has a higher number.
        creating_at: When the platform was first asked to create it.
        creating_name: Under which name.
        refused: The platform will not take it.
        run: ``on``, ``off``, ``away`` or, for a draft, None.
    """

    campaign_id: UUID
    project_id: UUID
    client_id: UUID
    creates: bool
    parts: tuple[str, ...]
    version: int
    wanted_at: datetime
    creating_at: datetime | None
    creating_name: str
    refused: bool
    error: str
    tried_at: datetime | None
    external_id: str | None
    name: str
    run: str | None
    budget_daily: Decimal | None
    budget_total: Decimal | None
    configuration: dict[str, Any]
    settings: dict[str, Any]
    observed: dict[str, Any]


_COLUMNS = """p.campaign_id, c.project_id, c.client_id, p.creates, p.parts, p.version, p.wanted_at, p.creating_at,
  p.creating_name, p.refused, p.error, p.tried_at, c.external_id, c.name, campaign_run(c.status), c.budget_daily,
  c.budget_total, c.configuration, c.settings, c.observed"""

# What an account is to be told. Of an archived client nothing moves.
_OPEN = f"""
SELECT {_COLUMNS} FROM campaign_pushes p JOIN campaigns c ON c.id = p.campaign_id
WHERE p.integration_id = $1 AND c.integration_id = $1 AND NOT p.refused AND NOT is_client_archived(c.client_id)
ORDER BY p.version LIMIT $2"""

# What an account has not been told yet, also what it refused.
_LIST = f"""
SELECT {_COLUMNS} FROM campaign_pushes p JOIN campaigns c ON c.id = p.campaign_id JOIN clients cl ON cl.id = c.client_id
WHERE p.integration_id = $4 AND {visibility.project("c.project_id")} ORDER BY p.version LIMIT $5"""

# The accounts that are to be told of some campaigns.
_ACCOUNTS = "SELECT DISTINCT integration_id FROM campaign_pushes WHERE campaign_id = ANY ($1::uuid[])"

# Wishes a campaign on a platform.
_CREATE = """
INSERT INTO campaign_pushes (campaign_id, integration_id, creates, parts) VALUES ($1, $2, true, '{}')
ON CONFLICT (campaign_id) DO UPDATE SET refused = false, error = '', version = nextval('campaign_push_seq')"""

_CREATING = """
UPDATE campaign_pushes SET creating_at = clock_timestamp(), creating_name = $2
WHERE campaign_id = $1 AND creating_at IS NULL"""

# Writes down which campaign a platform has made, unless it was unlinked or linked meanwhile.
_CREATED = """
UPDATE campaigns SET external_id = $3
WHERE id = $1 AND integration_id = $2 AND external_id IS NULL RETURNING true"""

# The platform was told; a later change is still to be.
_DONE = """
WITH done AS (
  DELETE FROM campaign_pushes p USING unnest($1::uuid[], $2::bigint[]) AS n (campaign_id, version)
  WHERE p.campaign_id = n.campaign_id AND p.version = n.version)
UPDATE campaign_pushes p SET creates = false, creating_at = NULL, creating_name = ''
FROM unnest($1::uuid[], $2::bigint[]) AS n (campaign_id, version)
WHERE p.campaign_id = n.campaign_id AND p.version <> n.version AND p.creates"""

_REFUSED = """
UPDATE campaign_pushes p SET refused = true, error = $3, tried_at = clock_timestamp(), creating_at = NULL
WHERE p.campaign_id = $1 AND p.version = $2"""


async def open_internal(db: Executor, integration_id: UUID, limit: int) -> list[Push]:
    """Up to `limit` changes that an account is to be told, the earliest first."""
    return [_push(row) for row in await db.fetch(_OPEN, integration_id, limit)]


async def list_some(db: Executor, scope: Scope, integration_id: UUID, limit: int) -> list[Push]:
    """Up to `limit` changes that an account has not been told yet, also those that it refused."""
    return [_push(row) for row in await db.fetch(_LIST, *scope.args, integration_id, limit)]


async def accounts_internal(tx: Transaction, campaign_ids: Collection[UUID]) -> list[UUID]:
    """The accounts that are to be told something of campaigns."""
    return [row[0] for row in await tx.fetch(_ACCOUNTS, list(campaign_ids))]


async def create_internal(tx: Transaction, campaign_id: UUID, integration_id: UUID) -> None:
    """Has a campaign created on a platform. The caller has put it into the account."""
    await tx.execute(_CREATE, campaign_id, integration_id)


async def creating_internal(tx: Transaction, campaign_id: UUID, name: str) -> None:
    """Notes that a platform is about to be asked to create a campaign."""
    await tx.execute(_CREATING, campaign_id, name)


async def created_internal(tx: Transaction, campaign_id: UUID, integration_id: UUID, external_id: str) -> bool:
    """Links a campaign to the one that was made for it; False if it is in the account no more.

    Raises:
        Conflict: Another campaign is linked to that one.
    """
    return bool(await tx.fetchval(_CREATED, campaign_id, integration_id, external_id))


async def done_internal(tx: Transaction, done: Collection[tuple[UUID, int]]) -> None:
    """Notes that a platform was told; each by campaign and version."""
    await tx.execute(_DONE, [each[0] for each in done], [each[1] for each in done])


async def refused_internal(tx: Transaction, campaign_id: UUID, version: int, error: str) -> None:
    """Notes that a platform will not take a change."""
    await tx.execute(_REFUSED, campaign_id, version, error)


def _push(row: Any) -> Push:
    values = list(row)
    values[4] = tuple(values[4])
    return Push(*values)
