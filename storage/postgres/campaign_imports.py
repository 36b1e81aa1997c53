# ruff: noqa: S608 - the statements are put together from constants of this package
"""Campaigns from files: how far each file is, and sets of campaigns by single statements."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from storage.errors import Contention
from storage.postgres import visibility
from storage.postgres.database import Executor
from storage.postgres.ids import new_id
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class CampaignImport:
    """A row of ``campaign_imports``, with what it depends on of its project, and the plan of its campaigns."""

    id: UUID
    client_id: UUID
    project_id: UUID
    fingerprint: str
    source_name: str
    on_duplicate: str
    state: str
    acknowledged_line: int
    row_count: int
    created_count: int
    updated_count: int
    skipped_count: int
    failed_count: int
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    project_status: str
    project_currency: str
    plan_lineage_id: UUID | None


@dataclass(frozen=True, slots=True)
class RowError:
    """A row of ``campaign_import_errors``; `id` grows with the line."""

    id: UUID
    line: int
    field: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Account:
    """An account that campaigns of a client may run in; `own` if it is not one of an agency above."""

    id: UUID
    platform: str
    account_id: str
    own: bool


@dataclass(frozen=True, slots=True)
class Held:
    """A campaign that is there already, as far as a row of a file may change it."""

    id: UUID
    client_id: UUID
    project_id: UUID
    integration_id: UUID | None
    platform: str
    external_id: str
    name: str
    status: str
    currency: str
    budget_daily: Decimal | None
    budget_total: Decimal | None
    configuration: dict[str, Any]
    plan_channel_id: UUID | None


@dataclass(frozen=True, slots=True)
class Step:
    """What some rows came to."""

    line: int
    rows: int
    created: int
    updated: int
    skipped: int
    failed: int
    last: bool


_COLUMNS = """i.id, i.client_id, i.project_id, i.fingerprint, i.source_name, i.on_duplicate, i.state,
  i.acknowledged_line, i.row_count, i.created_count, i.updated_count, i.skipped_count, i.failed_count, i.created_at,
  i.updated_at, i.completed_at, p.status, p.budget_currency,
  (SELECT m.lineage_id FROM media_plans m WHERE m.project_id = i.project_id AND m.imported)"""

_FROM = """
FROM campaign_imports i JOIN projects p ON p.id = i.project_id JOIN clients cl ON cl.id = i.client_id"""

_VISIBLE = visibility.project("i.project_id")

# Begins an import unless the file was begun before.
_BEGIN = """
INSERT INTO campaign_imports (id, client_id, project_id, fingerprint, source_name, on_duplicate)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT ON CONSTRAINT campaign_imports_file_key DO NOTHING RETURNING id"""

# One import.
_GET = f"SELECT {_COLUMNS} {_FROM} WHERE i.id = $4 AND {_VISIBLE}"

# The import of a file, kept from moving until the transaction ends.
_OF_FILE = f"""
SELECT {_COLUMNS} {_FROM}
WHERE i.project_id = $4 AND i.fingerprint = $5 AND i.on_duplicate = $6 AND {_VISIBLE} FOR UPDATE OF i"""

# One page of imports, oldest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} {_FROM}
WHERE {_VISIBLE}
  AND ($4::uuid IS NULL OR i.id > $4)
  AND ($6::uuid IS NULL OR i.client_id = $6)
  AND ($7::uuid IS NULL OR i.project_id = $7)
ORDER BY i.id LIMIT $5"""

# One page of what was wrong, by line.
_ERRORS_PAGE = f"""
SELECT e.id, e.line, e.field, e.reason, e.message
FROM campaign_import_errors e JOIN campaign_imports i ON i.id = e.campaign_import_id
JOIN clients cl ON cl.id = i.client_id
WHERE e.campaign_import_id = $6 AND ($4::uuid IS NULL OR e.id > $4) AND {_VISIBLE}
ORDER BY e.id LIMIT $5"""

# Takes an import back to the beginning of its file.
_RESTART = """
UPDATE campaign_imports SET state = 'running', acknowledged_line = 0, row_count = 0, created_count = 0,
  updated_count = 0, skipped_count = 0, failed_count = 0, completed_at = NULL, updated_at = now() WHERE id = $1"""

# Forgets what was wrong with the rows of an import.
_FORGET_ERRORS = "DELETE FROM campaign_import_errors WHERE campaign_import_id = $1"

# Moves an import on.
_ADVANCE = """
UPDATE campaign_imports SET acknowledged_line = GREATEST(acknowledged_line, $2), row_count = row_count + $3,
  created_count = created_count + $4, updated_count = updated_count + $5, skipped_count = skipped_count + $6,
  failed_count = failed_count + $7, state = CASE WHEN $8 THEN 'completed' ELSE state END,
  completed_at = CASE WHEN $8 THEN COALESCE(completed_at, now()) ELSE completed_at END, updated_at = now()
WHERE id = $1"""

# Notes what was wrong.
_ADD_ERRORS = """
INSERT INTO campaign_import_errors (id, campaign_import_id, line, field, reason, message)
SELECT e.id, $1, e.line, e.field, e.reason, e.message
FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[]) AS e (id, line, field, reason, message)"""


# Adds the plan that imported campaigns of a project belong to, with its lineage, unless there is one. It was completed
# before anybody could have approved it here.
_ADD_PLAN = """
WITH plan AS (
  INSERT INTO media_plans (id, lineage_id, project_id, name, status, total_budget, currency, channels, approved_at,
    imported)
  VALUES ($1, $2, $3, $4, 'completed', 0, $5, '[]', now(), true)
  ON CONFLICT (project_id) WHERE imported DO NOTHING RETURNING lineage_id)
INSERT INTO plan_lineages (id, project_id, name) SELECT lineage_id, $3, $4 FROM plan RETURNING id"""

# Accounts that campaigns of a client may run in.
_ACCOUNTS = """
SELECT i.id, i.platform, i.platform_account_id, i.client_id = cl.id
FROM clients cl JOIN client_integrations i ON i.client_id = ANY (cl.path) WHERE cl.id = $1 ORDER BY i.id"""

_HELD = """c.id, c.client_id, c.project_id, c.integration_id, c.platform, c.external_id, c.name, c.status, c.currency,
  c.budget_daily, c.budget_total, c.configuration, c.plan_channel_id"""

# Campaigns with some external ids, of a client outside of any account or in some accounts; kept from changing. Key by
# key: while a file grows the table, its statistics tell of far fewer rows, and a plan for those reads all of a client.
_HELD_OF = f"""
SELECT {_HELD} FROM campaigns c WHERE c.id IN (
  SELECT o.id FROM unnest($2::text[], $3::text[]) AS k (platform, external_id) CROSS JOIN LATERAL (
    SELECT n.id FROM campaigns n
    WHERE n.client_id = $1 AND n.integration_id IS NULL AND n.external_id IS NOT NULL
      AND n.platform = k.platform AND n.external_id = k.external_id LIMIT 1) o
  UNION ALL
  SELECT o.id FROM unnest($3::text[]) AS k (external_id) CROSS JOIN unnest($4::uuid[]) AS a (id) CROSS JOIN LATERAL (
    SELECT n.id FROM campaigns n
    WHERE n.integration_id IS NOT NULL AND n.integration_id = a.id AND n.external_id = k.external_id LIMIT 1) o)
ORDER BY c.id FOR UPDATE"""

# Adds campaigns of one project, bound to the plan of what was imported.
_INSERT = """
INSERT INTO campaigns (id, client_id, project_id, plan_lineage_id, plan_version, integration_id, external_id, platform,
  name, status, currency, budget_daily, budget_total, configuration)
SELECT n.id, $1, $2, $3, 1, n.integration_id, n.external_id, n.platform, n.name, n.status, n.currency, n.budget_daily,
  n.budget_total, n.configuration
FROM unnest($4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::numeric[],
  $12::numeric[], $13::jsonb[])
  AS n (id, integration_id, external_id, platform, name, status, currency, budget_daily, budget_total, configuration)
ON CONFLICT DO NOTHING"""

# Changes what files may change of campaigns.
_UPDATE = """
UPDATE campaigns c SET name = n.name, budget_daily = n.budget_daily, budget_total = n.budget_total,
  configuration = n.configuration
FROM unnest($1::uuid[], $2::text[], $3::numeric[], $4::numeric[], $5::jsonb[])
  AS n (id, name, budget_daily, budget_total, configuration)
WHERE c.id = n.id"""


async def begin(
    db: Executor,
    *,
    client_id: UUID,
    project_id: UUID,
    fingerprint: str,
    source_name: str,
    on_duplicate: str,
) -> bool:
    """Begins the import of a file; whether it was not begun before.

    The caller has checked that it may import into the project.
    """
    row = await db.fetchrow(_BEGIN, new_id(), client_id, project_id, fingerprint, source_name, on_duplicate)
    return row is not None


async def get(db: Executor, scope: Scope, import_id: UUID) -> CampaignImport | None:
    """The import with this id."""
    row = await db.fetchrow(_GET, *scope.args, import_id)
    return None if row is None else CampaignImport(*row)


async def of_file(
    db: Executor, scope: Scope, project_id: UUID, fingerprint: str, on_duplicate: str
) -> CampaignImport | None:
    """The import of a file, which nobody else moves on until the transaction ends."""
    row = await db.fetchrow(_OF_FILE, *scope.args, project_id, fingerprint, on_duplicate)
    return None if row is None else CampaignImport(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    client_id: UUID | None = None,
    project_id: UUID | None = None,
) -> list[CampaignImport]:
    """Up to `limit` imports, oldest first, whose id comes after `after`; a filter that is None lets all pass."""
    rows = await db.fetch(_LIST_PAGE, *scope.args, after, limit, client_id, project_id)
    return [CampaignImport(*row) for row in rows]


async def list_errors(
    db: Executor, scope: Scope, import_id: UUID, *, limit: int, after: UUID | None = None
) -> list[RowError]:
    """Up to `limit` errors of an import, by line, whose id comes after `after`."""
    return [RowError(*row) for row in await db.fetch(_ERRORS_PAGE, *scope.args, after, limit, import_id)]


async def restart_internal(db: Executor, import_id: UUID) -> None:
    """Takes an import back to the beginning of its file. For whoever holds it by `of_file`: no scope."""
    await db.execute(_FORGET_ERRORS, import_id)
    await db.execute(_RESTART, import_id)


async def advance_internal(db: Executor, import_id: UUID, step: Step, errors: Sequence[RowError]) -> None:
    """Moves an import on by what some rows came to. For whoever holds it by `of_file`: no scope."""
    if errors:
        await db.execute(
            _ADD_ERRORS, import_id, [e.id for e in errors], [e.line for e in errors], [e.field for e in errors],
            [e.reason for e in errors], [e.message for e in errors],
        )  # fmt: skip
    await db.execute(
        _ADVANCE, import_id, step.line, step.rows, step.created, step.updated, step.skipped, step.failed, step.last
    )


async def add_imported_plan(db: Executor, *, project_id: UUID, name: str, currency: str) -> tuple[UUID, UUID] | None:
    """Adds the plan that imported campaigns of a project belong to, completed and without money.

    Returns:
        Its id and that of its lineage; None if somebody else has just added it.

    Raises:
        Archived: The client is archived.
    """
    plan_id, lineage_id = new_id(), new_id()
    row = await db.fetchrow(_ADD_PLAN, plan_id, lineage_id, project_id, name, currency)
    return None if row is None else (plan_id, lineage_id)


async def accounts_internal(db: Executor, client_id: UUID) -> list[Account]:
    """Accounts that campaigns of a client may run in: its own, and those of agencies above it.

    For the import's own work, which has read the client's project within its caller's scope.
    """
    return [Account(*row) for row in await db.fetch(_ACCOUNTS, client_id)]


async def held_internal(
    db: Executor, client_id: UUID, keys: Collection[tuple[str, str]], integration_ids: Sequence[UUID]
) -> list[Held]:
    """Campaigns with some platforms and external ids, of the client outside of any account, or of anybody in accounts.

    They stay as they are until the transaction ends. For the import's own work, which shows none of another client.
    """
    platforms, external_ids = [platform for platform, _ in keys], [external_id for _, external_id in keys]
    rows = await db.fetch(_HELD_OF, client_id, platforms, external_ids, list(integration_ids))
    return [Held(*row) for row in rows]


async def insert(db: Executor, lineage_id: UUID, campaigns: Sequence[Held]) -> None:
    """Adds campaigns, all of one project, bound to the lineage of what was imported.

    Raises:
        Contention: Somebody else has just added one of them: look again.
        Archived: The client is archived.
    """
    # In one order, or two files that share campaigns would wait for each other.
    campaigns = sorted(campaigns, key=lambda c: (c.platform, c.external_id, str(c.integration_id)))
    first = campaigns[0]
    tag = await db.execute(
        _INSERT, first.client_id, first.project_id, lineage_id, [c.id for c in campaigns],
        [c.integration_id for c in campaigns], [c.external_id for c in campaigns], [c.platform for c in campaigns],
        [c.name for c in campaigns], [c.status for c in campaigns], [c.currency for c in campaigns],
        [c.budget_daily for c in campaigns], [c.budget_total for c in campaigns],
        [c.configuration for c in campaigns],
    )  # fmt: skip
    if int(tag.rpartition(" ")[2]) != len(campaigns):
        raise Contention("a campaign of the file was added meanwhile")


async def update_internal(db: Executor, campaigns: Sequence[Held]) -> None:
    """Writes name, budgets and configuration of campaigns that `held_internal` gave: no scope.

    Raises:
        Archived: The client is archived.
    """
    await db.execute(
        _UPDATE, [c.id for c in campaigns], [c.name for c in campaigns], [c.budget_daily for c in campaigns],
        [c.budget_total for c in campaigns], [c.configuration for c in campaigns],
    )  # fmt: skip
