# ruff: noqa: S608 - the statements are put together from constants of this package
"""Clients: the tenants, and who is a member of which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, Transaction, returned
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
        purge_allowed_at: From when on a requested purge may be confirmed.
        purged_at: When it was erased.
        read_only: It, or an agency above it, is archived.
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
    purge_allowed_at: datetime | None
    purged_at: datetime | None
    read_only: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A membership, with what callers may know of the person.

    Attributes:
        id: The person, by whom members are listed.
        created_at: Since when the person is a member.
    """

    id: UUID
    client_id: UUID
    email: str
    first_name: str
    last_name: str
    role: str
    created_at: datetime


Order = Literal["oldest", "newest", "name"]

# RETURNING shows the new row, but its sub-query still sees the old one: the row itself is looked at apart.
_COLUMNS = """cl.id, cl.parent_client_id, cl.path, cl.name, cl.type, cl.industry, cl.website, cl.settings,
  cl.archived_at, cl.revision, cl.created_at, cl.updated_at, cl.purge_allowed_at, cl.purged_at,
  cl.archived_at IS NOT NULL OR EXISTS (
    SELECT FROM clients above
    WHERE above.id = ANY (cl.path) AND above.id <> cl.id AND above.archived_at IS NOT NULL) AS read_only"""

_DEFAULT_SETTINGS = """'{"timezone": "Europe/Moscow", "currency": "RUB", "language": "ru"}'::jsonb"""

# Adds a client; a trigger computes its path.
_CREATE = f"""
INSERT INTO clients AS cl (id, parent_client_id, name, type, industry, website, settings)
VALUES ($1, $2, $3, $4, $5, $6, {_DEFAULT_SETTINGS} || $7) RETURNING {_COLUMNS}"""

# One client.
_GET = f"SELECT {_COLUMNS} FROM clients cl WHERE cl.id = $4 AND {visibility.CLIENT}"

# One client, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF cl"

# What comes after the client at the end of the page before, whose name is looked up, and in which order.
_ORDERS: dict[Order, tuple[str, str]] = {
    "oldest": ("cl.id > $4", "cl.id"),
    "newest": ("cl.id < $4", "cl.id DESC"),
    "name": (
        "(lower(cl.name), cl.id) > (SELECT lower(last.name), last.id FROM clients last WHERE last.id = $4)",
        "lower(cl.name), cl.id",
    ),
}

# One page of clients, in each order.
_LIST_PAGE = {
    order: f"""
SELECT {_COLUMNS} FROM clients cl
WHERE {visibility.CLIENT}
  AND ($4::uuid IS NULL OR {begin})
  AND ($6::text IS NULL OR cl.type = $6)
  AND ($7::text IS NULL OR cl.industry = $7)
  AND ($8::uuid IS NULL OR cl.parent_client_id = $8)
  AND ($9 OR cl.archived_at IS NULL)
  AND ($10::text IS NULL OR position(lower($10) IN lower(cl.name)) > 0)
  AND ($11::uuid IS NULL OR EXISTS (
    SELECT FROM client_memberships f WHERE f.user_id = $11 AND f.client_id = cl.id))
ORDER BY {by} LIMIT $5"""
    for order, (begin, by) in _ORDERS.items()
}

# Replaces what may change of a client that still has the expected revision.
_UPDATE = f"""
UPDATE clients cl SET parent_client_id = $6, name = $7, type = $8, industry = $9, website = $10,
  settings = {_DEFAULT_SETTINGS} || $11, archived_at = $12, purge_allowed_at = $13
WHERE cl.id = $4 AND cl.revision = $5 AND {visibility.CLIENT} RETURNING {_COLUMNS}"""

# The present revision, to tell a stale client from a missing one.
_REVISION = f"SELECT cl.revision FROM clients cl WHERE cl.id = $4 AND {visibility.CLIENT}"

# Makes a user a member; once is enough.
_ADD_MEMBERSHIP = "INSERT INTO client_memberships (user_id, client_id) VALUES ($1, $2) ON CONFLICT DO NOTHING"

# What is told of a membership.
_MEMBER = "u.id, m.client_id, u.email, u.first_name, u.last_name, u.role, m.created_at"

# One page of the members of a client, by their ids.
_MEMBERS = f"""
SELECT {_MEMBER} FROM client_memberships m JOIN users u ON u.id = m.user_id JOIN clients cl ON cl.id = m.client_id
WHERE m.client_id = $4 AND {visibility.CLIENT} AND ($5::uuid IS NULL OR u.id > $5) ORDER BY u.id LIMIT $6"""

# One membership.
_MEMBERSHIP = f"""
SELECT {_MEMBER} FROM client_memberships m JOIN users u ON u.id = m.user_id JOIN clients cl ON cl.id = m.client_id
WHERE m.client_id = $4 AND {visibility.CLIENT} AND u.id = $5"""

# Ends a membership.
_REMOVE_MEMBERSHIP = (
    """
DELETE FROM client_memberships m USING clients cl
WHERE m.user_id = $5 AND m.client_id = $4 AND cl.id = m.client_id AND """
    + visibility.CLIENT
)

# Whether there are clients under this one that are not purged.
_HAS_CHILDREN = f"""
SELECT EXISTS (
  SELECT FROM clients child JOIN clients cl ON cl.id = child.parent_client_id
  WHERE cl.id = $4 AND child.purged_at IS NULL AND {visibility.CLIENT})"""

# Whether a campaign of the client, or of one under it, runs in a platform account of an agency that is neither in the
# subtree nor above its new place.
_USES_ACCOUNTS_OUTSIDE = f"""
SELECT EXISTS (
  SELECT FROM clients cl
  JOIN clients owner ON owner.path @> ARRAY[cl.id]
  JOIN campaigns c ON c.client_id = owner.id
  JOIN client_integrations i ON i.id = c.integration_id
  JOIN clients holder ON holder.id = i.client_id
  WHERE cl.id = $4 AND {visibility.CLIENT} AND NOT holder.path @> ARRAY[cl.id] AND holder.id <> ALL ($5::uuid[]))"""

# The statements that erase a client, in this order: the first one opens the archive for the others.
_PURGE = f"""
UPDATE clients cl SET purged_at = now(), name = 'purged', industry = '', website = '',
  settings = {_DEFAULT_SETTINGS} || jsonb_build_object('timezone', cl.settings->>'timezone')
WHERE cl.id = $4 AND cl.revision = $5 AND {visibility.CLIENT} RETURNING {_COLUMNS}"""
_OWN_PROMPTS = "SELECT id FROM prompt_lineages WHERE client_id = $1"
_PURGE_REST = (
    "DELETE FROM client_memberships WHERE client_id = $1",
    "DELETE FROM project_team WHERE project_id IN (SELECT id FROM projects WHERE client_id = $1)",
    """UPDATE client_integrations SET status = 'disconnected', credentials = '{}', platform_account_id = id::text,
       settings = '{}', last_error = '' WHERE client_id = $1""",
    """DELETE FROM platform_campaigns
       WHERE integration_id IN (SELECT id FROM client_integrations WHERE client_id = $1)""",
    "UPDATE projects SET name = 'purged', description = '', brief = '{}' WHERE client_id = $1",
    "DELETE FROM templates WHERE client_id = $1",
    "UPDATE campaign_imports SET source_name = '' WHERE client_id = $1",
    "UPDATE backfills SET source_name = '' WHERE client_id = $1",
    """UPDATE campaigns SET name = 'purged', external_id = NULL, configuration = '{}', settings = '{}', observed = '{}',
       rejection_reason = '' WHERE client_id = $1""",
    "DELETE FROM campaign_pushes WHERE campaign_id IN (SELECT id FROM campaigns WHERE client_id = $1)",
    """UPDATE ai_feedback SET key = id::text, content_hash = NULL, input_data = NULL, output_data = NULL,
       edited_output = NULL, feedback_text = '' WHERE client_id = $1""",
    "UPDATE prompt_lineages SET name = id::text WHERE client_id = $1",
    f"""UPDATE ai_prompts SET prompt_template = '', variables = '[]', metadata = '{{}}', change_note = '',
       deprecation_reason = '' WHERE lineage_id IN ({_OWN_PROMPTS})""",
    f"""UPDATE prompt_label_moves SET reason = '' WHERE label_id IN (
       SELECT id FROM prompt_labels WHERE lineage_id IN ({_OWN_PROMPTS}))""",
    f"UPDATE prompt_experiments SET hypothesis = '', stop_reason = '' WHERE lineage_id IN ({_OWN_PROMPTS})",
)

# A client and the agencies above it.
_PATH = "SELECT path FROM clients WHERE id = $1"

# Which of some clients are archived, by themselves or under an agency.
_ARCHIVED = "SELECT id FROM clients WHERE id = ANY ($1::uuid[]) AND is_client_archived(id)"

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
    name_contains: str | None = None,
    member_id: UUID | None = None,
    order: Order = "oldest",
) -> list[Client]:
    """Up to `limit` clients that come after the client `after`; a filter that is None lets all pass.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        limit: The most clients to return.
        after: Id of the last client of the page before.
        type: Only this kind.
        industry: Only this line of business.
        parent_client_id: Only direct children of this agency.
        include_archived: Also clients that are archived themselves.
        name_contains: Only clients with this in their name, in any case.
        member_id: Only clients of which this user is a member directly.
        order: In which order.
    """
    rows = await db.fetch(
        _LIST_PAGE[order], *scope.args, after, limit, type, industry, parent_client_id, include_archived, name_contains,
        member_id,
    )  # fmt: skip
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
        changed.archived_at, changed.purge_allowed_at,
    )  # fmt: skip
    return None if row is None else Client(*row)


async def add_membership(db: Executor, *, user_id: UUID, client_id: UUID) -> None:
    """Lets a user see a client and all clients under it; nothing happens when the user already may.

    Raises:
        Invalid: The user or the client does not exist.
    """
    await db.execute(_ADD_MEMBERSHIP, user_id, client_id)


async def list_members(
    db: Executor, scope: Scope, client_id: UUID, *, limit: int, after: UUID | None = None
) -> list[Member]:
    """Up to `limit` members of the client itself, by user id, after the user `after`."""
    return [Member(*row) for row in await db.fetch(_MEMBERS, *scope.args, client_id, after, limit)]


async def get_member(db: Executor, scope: Scope, *, client_id: UUID, user_id: UUID) -> Member | None:
    """A membership of the client itself."""
    row = await db.fetchrow(_MEMBERSHIP, *scope.args, client_id, user_id)
    return None if row is None else Member(*row)


async def remove_membership(db: Executor, scope: Scope, *, client_id: UUID, user_id: UUID) -> bool:
    """Ends a membership of the client itself; returns whether there was one."""
    return await db.execute(_REMOVE_MEMBERSHIP, *scope.args, client_id, user_id) != "DELETE 0"


async def has_children(db: Executor, scope: Scope, client_id: UUID) -> bool:
    """Whether clients are directly under this one, purged ones not counted."""
    return bool(await db.fetchval(_HAS_CHILDREN, *scope.args, client_id))


async def uses_accounts_outside(db: Executor, scope: Scope, client_id: UUID, above: Sequence[UUID]) -> bool:
    """Whether a campaign of the client, or of one under it, would be cut off from its platform account by a move.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        client_id: The client to move.
        above: The clients above its new place.
    """
    return bool(await db.fetchval(_USES_ACCOUNTS_OUTSIDE, *scope.args, client_id, list(above)))


async def purge(tx: Transaction, scope: Scope, client: Client) -> Client | None:
    """Erases what PostgreSQL holds of a client that was read for update: names, credentials, members, teams.

    Names, credentials and texts that may change are gone with this transaction. The rows themselves, frozen ones too,
    and what other stores hold go with the job of the erasure (`storage.postgres.erasures`).

    Returns:
        What is left, or None when it is not in scope or was changed since.
    """
    row = await tx.fetchrow(_PURGE, *scope.args, client.id, client.revision)
    if row is None:
        return None
    for statement in _PURGE_REST:
        await tx.execute(statement, client.id)
    return Client(*row)


async def visible_ids(db: Executor, scope: Scope, client_ids: Sequence[UUID] | None = None) -> list[UUID]:
    """Ids of the clients in scope, in order; only those among `client_ids` when given.

    A project's team sees the project but not its client, so a client seen here is seen as a whole.
    """
    rows = await db.fetch(_VISIBLE_IDS, *scope.args, None if client_ids is None else list(client_ids))
    return [row[0] for row in rows]


async def archived_internal(db: Executor, client_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the clients that are archived, by themselves or under an agency. The caller has seen what is theirs."""
    return {row[0] for row in await db.fetch(_ARCHIVED, list(client_ids))}


async def path_internal(db: Executor, client_id: UUID) -> list[UUID]:
    """A client and the agencies above it, from the top. The caller has seen what is the client's."""
    return list(await db.fetchval(_PATH, client_id) or ())
