# ruff: noqa: S608 - the statements are put together from constants of this package
"""Projects."""

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
class Project:
    """A row of ``projects``.

    Attributes:
        budget_total: Planned money in `budget_currency`; None when not decided.
        budget_spent: Derived from statistics; `update` does not write it.
        created_by: The author when a person, None when an API key.
        brief: What the client wants, as given.
        performance_rating: 1 to 10 once completed.
    """

    id: UUID
    client_id: UUID
    name: str
    description: str
    status: str
    budget_total: Decimal | None
    budget_spent: Decimal
    budget_currency: str
    start_date: date | None
    end_date: date | None
    created_by: UUID | None
    revision: int
    created_at: datetime
    updated_at: datetime
    brief: dict[str, Any]
    performance_rating: int | None


_COLUMNS = """p.id, p.client_id, p.name, p.description, p.status, p.budget_total, p.budget_spent, p.budget_currency,
  p.start_date, p.end_date, p.created_by, p.revision, p.created_at, p.updated_at, p.brief, p.performance_rating"""

_VISIBLE = visibility.project("p.id")

# Adds a project.
_CREATE = f"""
INSERT INTO projects AS p (id, client_id, name, description, status, budget_total, budget_currency, start_date,
  end_date, created_by, brief)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING {_COLUMNS}"""

# One project.
_GET = f"""
SELECT {_COLUMNS} FROM projects p JOIN clients cl ON cl.id = p.client_id WHERE p.id = $4 AND {_VISIBLE}"""

# One project, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF p"

# Some projects.
_GET_MANY = f"""
SELECT {_COLUMNS} FROM projects p JOIN clients cl ON cl.id = p.client_id
WHERE p.id = ANY ($4::uuid[]) AND {_VISIBLE} ORDER BY p.id"""

# Some projects, kept from changing until the transaction ends.
_GET_MANY_FOR_UPDATE = f"{_GET_MANY} FOR UPDATE OF p"

# The project of a media plan, kept from changing until the transaction ends.
_OF_PLAN_FOR_UPDATE = f"""
SELECT {_COLUMNS} FROM projects p JOIN clients cl ON cl.id = p.client_id
WHERE p.id = (SELECT m.project_id FROM media_plans m WHERE m.id = $4) AND {_VISIBLE} FOR UPDATE OF p"""

# One page of projects, oldest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} FROM projects p JOIN clients cl ON cl.id = p.client_id
WHERE {_VISIBLE}
  AND ($4::uuid IS NULL OR p.id > $4)
  AND ($6::uuid IS NULL OR p.client_id = $6)
  AND ($7::text[] IS NULL OR p.status = ANY ($7))
  AND ($8::date IS NULL OR p.end_date >= $8)
  AND ($9::date IS NULL OR p.start_date <= $9)
ORDER BY p.id LIMIT $5"""

# Replaces what may change of a project that still has the expected revision.
_UPDATE = f"""
UPDATE projects p SET name = $6, description = $7, status = $8, budget_total = $9, budget_currency = $10,
  start_date = $11, end_date = $12, brief = $13, performance_rating = $14
FROM clients cl
WHERE p.id = $4 AND cl.id = p.client_id AND p.revision = $5 AND {_VISIBLE} RETURNING {_COLUMNS}"""

# The present revision, to tell a stale project from a missing one.
_REVISION = f"""
SELECT p.revision FROM projects p JOIN clients cl ON cl.id = p.client_id WHERE p.id = $4 AND {_VISIBLE}"""


async def create(
    db: Executor,
    *,
    client_id: UUID,
    name: str,
    description: str = "",
    status: str = "draft",
    budget_total: Decimal | None = None,
    budget_currency: str = "RUB",
    start_date: date | None = None,
    end_date: date | None = None,
    created_by: UUID | None = None,
    brief: Mapping[str, Any] | None = None,
    project_id: UUID | None = None,
) -> Project:
    """Adds a project. The caller has checked that it may add one for the client.

    Raises:
        Invalid: A value is not allowed, for example ``projects_dates_order``, or the client does not exist.
    """
    row = await db.fetchrow(
        _CREATE, project_id or new_id(), client_id, name, description, status, budget_total, budget_currency,
        start_date, end_date, created_by, dict(brief or {}),
    )  # fmt: skip
    return Project(*returned(row))


async def get(db: Executor, scope: Scope, project_id: UUID) -> Project | None:
    """The project with this id."""
    row = await db.fetchrow(_GET, *scope.args, project_id)
    return None if row is None else Project(*row)


async def get_for_update(db: Executor, scope: Scope, project_id: UUID) -> Project | None:
    """As `get`, and keeps others from changing the project until the transaction ends."""
    row = await db.fetchrow(_GET_FOR_UPDATE, *scope.args, project_id)
    return None if row is None else Project(*row)


async def get_many(db: Executor, scope: Scope, project_ids: Sequence[UUID]) -> list[Project]:
    """Those of the projects in scope, by id."""
    return [Project(*row) for row in await db.fetch(_GET_MANY, *scope.args, list(project_ids))]


async def get_many_for_update(db: Executor, scope: Scope, project_ids: Sequence[UUID]) -> list[Project]:
    """As `get_many`, and keeps others from changing the projects until the transaction ends."""
    return [Project(*row) for row in await db.fetch(_GET_MANY_FOR_UPDATE, *scope.args, list(project_ids))]


async def of_plan_for_update(db: Executor, scope: Scope, media_plan_id: UUID) -> Project | None:
    """The project that a media plan is of, kept from changing until the transaction ends.

    Whatever compares sums of budgets holds this lock, so that sums of one project are compared one after another.
    """
    row = await db.fetchrow(_OF_PLAN_FOR_UPDATE, *scope.args, media_plan_id)
    return None if row is None else Project(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    client_id: UUID | None = None,
    statuses: Sequence[str] | None = None,
    ends_from: date | None = None,
    starts_until: date | None = None,
) -> list[Project]:
    """Up to `limit` projects, oldest first, whose id comes after `after`; a filter that is None lets all pass.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        limit: The most projects to return.
        after: Id of the last project of the page before.
        client_id: Only projects of this client itself.
        statuses: Only projects in one of these.
        ends_from: Only projects that end on this day or later.
        starts_until: Only projects that start on this day or earlier; with `ends_from`, those that overlap a period.
    """
    wanted = None if statuses is None else list(statuses)
    rows = await db.fetch(_LIST_PAGE, *scope.args, after, limit, client_id, wanted, ends_from, starts_until)
    return [Project(*row) for row in rows]


async def update(db: Executor, scope: Scope, changed: Project, expected_revision: int | None = None) -> Project | None:
    """Writes a project that was read and changed.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        changed: The project as read, with its new values. Client, author, money spent and times are ignored.
        expected_revision: The revision the change is based on; that of `changed` when None.

    Returns:
        The project as it is now, or None when there is none in scope.

    Raises:
        StaleRevision: It was changed since.
        Invalid: A value is not allowed.
    """
    expected = changed.revision if expected_revision is None else expected_revision
    row = await update_row(
        db, _UPDATE, _REVISION, scope, changed.id, expected,
        changed.name, changed.description, changed.status, changed.budget_total, changed.budget_currency,
        changed.start_date, changed.end_date, changed.brief, changed.performance_rating,
    )  # fmt: skip
    return None if row is None else Project(*row)
