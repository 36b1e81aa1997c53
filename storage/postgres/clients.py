# ruff: noqa: S608 - the statements are put together from constants of this package
"""Clients: the tenants, and who is a member of which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id
from storage.postgres.revisions import update_row
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Client:
    """A row of ``clients``.

    Attributes:
        path: All ancestors from the root down, and the client itself.
        settings: ``timezone``, ``currency`` and ``language`` are always there; other keys are kept.
        archived_at: Since when it is archived, if it is.
    """

    id: UUID
    parent_client_id: UUID | None
    path: list[UUID]
    name: str
    type: str
    industry: str
    website: str
    settings: dict[str, Any]
    archived_at: datetime | None
    revision: int
    created_at: datetime
    updated_at: datetime


_COLUMNS = """cl.id, cl.parent_client_id, cl.path, cl.name, cl.type, cl.industry, cl.website, cl.settings,
  cl.archived_at, cl.revision, cl.created_at, cl.updated_at"""

_DEFAULT_SETTINGS = """'{"timezone": "Europe/Moscow", "currency": "RUB", "language": "ru"}'::jsonb"""

# Adds a client; a trigger computes its path.
_CREATE = f"""
INSERT INTO clients AS cl (id, parent_client_id, name, type, industry, website, settings)
VALUES ($1, $2, $3, $4, $5, $6, {_DEFAULT_SETTINGS} || $7) RETURNING {_COLUMNS}"""

# One client.
_GET = f"SELECT {_COLUMNS} FROM clients cl WHERE cl.id = $4 AND {visibility.CLIENT}"

# One client, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF cl"

# One page of clients, oldest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} FROM clients cl
WHERE {visibility.CLIENT}
  AND ($4::uuid IS NULL OR cl.id > $4)
  AND ($6::text IS NULL OR cl.type = $6)
  AND ($7::text IS NULL OR cl.industry = $7)
  AND ($8::uuid IS NULL OR cl.parent_client_id = $8)
  AND ($9 OR cl.archived_at IS NULL)
ORDER BY cl.id LIMIT $5"""

# Replaces what may change of a client that still has the expected revision.
_UPDATE = f"""
UPDATE clients cl SET parent_client_id = $6, name = $7, type = $8, industry = $9, website = $10,
  settings = {_DEFAULT_SETTINGS} || $11, archived_at = $12
WHERE cl.id = $4 AND cl.revision = $5 AND {visibility.CLIENT} RETURNING {_COLUMNS}"""

# The present revision, to tell a stale client from a missing one.
_REVISION = f"SELECT cl.revision FROM clients cl WHERE cl.id = $4 AND {visibility.CLIENT}"

# Makes a user a member; once is enough.
_ADD_MEMBERSHIP = "INSERT INTO client_memberships (user_id, client_id) VALUES ($1, $2) ON CONFLICT DO NOTHING"

# Ids of the clients in scope, or of those among the given ones.
_VISIBLE_IDS = f"""
SELECT cl.id FROM clients cl WHERE ($4::uuid[] IS NULL OR cl.id = ANY ($4)) AND {visibility.CLIENT} ORDER BY cl.id"""


async def create(
    db: Executor,
    *,
    name: str,
    type: str,
    industry: str = "",
    website: str = "",
    settings: Mapping[str, Any] | None = None,
    parent_client_id: UUID | None = None,
    client_id: UUID | None = None,
) -> Client:
    """Adds a client. The caller has checked that it may add one under `parent_client_id`.

    Settings left out take their defaults: Europe/Moscow, RUB, ru.

    Raises:
        Invalid: A value is not allowed, for example ``clients_settings_timezone``, or the parent does not exist.
    """
    row = await db.fetchrow(
        _CREATE, client_id or new_id(), parent_client_id, name, type, industry, website, dict(settings or {})
    )
    return Client(*returned(row))


async def get(db: Executor, scope: Scope, client_id: UUID) -> Client | None:
    """The client with this id, archived or not."""
    row = await db.fetchrow(_GET, *scope.args, client_id)
    return None if row is None else Client(*row)


async def get_for_update(db: Executor, scope: Scope, client_id: UUID) -> Client | None:
    """As `get`, and keeps others from changing the client until the transaction ends."""
    row = await db.fetchrow(_GET_FOR_UPDATE, *scope.args, client_id)
    return None if row is None else Client(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    type: str | None = None,
    industry: str | None = None,
    parent_client_id: UUID | None = None,
    include_archived: bool = False,
) -> list[Client]:
    """Up to `limit` clients, oldest first, whose id comes after `after`; a filter that is None lets all pass."""
    rows = await db.fetch(_LIST_PAGE, *scope.args, after, limit, type, industry, parent_client_id, include_archived)
    return [Client(*row) for row in rows]


async def update(db: Executor, scope: Scope, changed: Client, expected_revision: int | None = None) -> Client | None:
    """Writes a client that was read and changed.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        changed: The client as read, with its new values. `path` and the times are ignored.
        expected_revision: The revision the change is based on; that of `changed` when None.

    Returns:
        The client as it is now, or None when there is none in scope.

    Raises:
        StaleRevision: It was changed since.
        Invalid: A value is not allowed, for example ``clients_no_cycle``.
    """
    expected = changed.revision if expected_revision is None else expected_revision
    row = await update_row(
        db, _UPDATE, _REVISION, scope, changed.id, expected,
        changed.parent_client_id, changed.name, changed.type, changed.industry, changed.website, changed.settings,
        changed.archived_at,
    )  # fmt: skip
    return None if row is None else Client(*row)


async def add_membership(db: Executor, *, user_id: UUID, client_id: UUID) -> None:
    """Lets a user see a client and all clients under it; nothing happens when the user already may.

    Raises:
        Invalid: The user or the client does not exist.
    """
    await db.execute(_ADD_MEMBERSHIP, user_id, client_id)


async def visible_ids(db: Executor, scope: Scope, client_ids: Sequence[UUID] | None = None) -> list[UUID]:
    """Ids of the clients in scope, in order; only those among `client_ids` when given.

    A project's team sees the project but not its client, so a client seen here is seen as a whole.
    """
    rows = await db.fetch(_VISIBLE_IDS, *scope.args, None if client_ids is None else list(client_ids))
    return [row[0] for row in rows]
