# ruff: noqa: S608 - the statements are put together from constants of this package
"""Templates: what clients' files look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor
from storage.postgres.ids import new_id
from storage.postgres.revisions import update_row
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Template:
    """A row of ``templates``.

    Attributes:
        columns: ``{name, type}`` each, types in the words of the contract; an unknown one is empty.
        sample: Rows of text, scrubbed.
        aliases: Other names under which columns came, as they are compared, to the column's name.
        file_sha256: Of the file it was made from; None if it was described.
    """

    id: UUID
    client_id: UUID
    name: str
    artifact_type: str
    file_name: str
    file_sha256: bytes | None
    columns: list[dict[str, str]]
    sample: list[list[str]]
    aliases: dict[str, str]
    use_count: int
    last_used_at: datetime | None
    created_by: UUID | None
    revision: int
    created_at: datetime
    updated_at: datetime


_COLUMNS = """t.id, t.client_id, t.name, t.artifact_type, t.file_name, t.file_sha256, t.columns, t.sample, t.aliases,
  t.use_count, t.last_used_at, t.created_by, t.revision, t.created_at, t.updated_at"""
_FROM = "FROM templates t JOIN clients cl ON cl.id = t.client_id"

# Adds a template; nothing is returned if the client has one of the same file.
_CREATE = f"""
INSERT INTO templates AS t (id, client_id, name, artifact_type, file_name, file_sha256, columns, sample, created_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (client_id, artifact_type, file_sha256) WHERE file_sha256 IS NOT NULL DO NOTHING RETURNING {_COLUMNS}"""

# The template of a file.
_OF_FILE = f"""
SELECT {_COLUMNS} {_FROM}
WHERE t.client_id = $4 AND t.artifact_type = $5 AND t.file_sha256 = $6 AND {visibility.CLIENT}"""

# Some templates.
_GET_MANY = f"SELECT {_COLUMNS} {_FROM} WHERE t.id = ANY ($4::uuid[]) AND {visibility.CLIENT} ORDER BY t.id"

# One template, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"SELECT {_COLUMNS} {_FROM} WHERE t.id = $4 AND {visibility.CLIENT} FOR UPDATE OF t"

# One page of templates, oldest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} {_FROM}
WHERE {visibility.CLIENT}
  AND ($4::uuid IS NULL OR t.id > $4)
  AND ($6::uuid IS NULL OR t.client_id = $6)
  AND ($7::text[] IS NULL OR t.artifact_type = ANY ($7))
ORDER BY t.id LIMIT $5"""

# The templates that are used most, to compare a file with.
_CANDIDATES = f"""
SELECT {_COLUMNS} {_FROM}
WHERE {visibility.CLIENT}
  AND ($5::uuid IS NULL OR t.client_id = $5)
  AND ($6::text[] IS NULL OR t.artifact_type = ANY ($6))
ORDER BY t.use_count DESC, t.id DESC LIMIT $4"""

# Templates that can be found, whoever asks.
_LOAD = f"""
SELECT {_COLUMNS} {_FROM}
WHERE t.id = ANY ($1::uuid[]) AND cl.purged_at IS NULL AND NOT is_client_archived(t.client_id)"""

# Ids of all of them, a page by id.
_PAGE = f"""
SELECT t.id {_FROM}
WHERE ($1::uuid IS NULL OR t.id > $1) AND cl.purged_at IS NULL AND NOT is_client_archived(t.client_id)
ORDER BY t.id LIMIT $2"""

# Replaces what may change of a template that still has the expected revision.
_UPDATE = f"""
UPDATE templates t SET name = $6, artifact_type = $7, columns = $8, sample = $9, aliases = $10
FROM clients cl WHERE t.id = $4 AND cl.id = t.client_id AND t.revision = $5 AND {visibility.CLIENT}
RETURNING {_COLUMNS}"""

# The present revision, to tell a stale template from a missing one.
_REVISION = f"SELECT t.revision {_FROM} WHERE t.id = $4 AND {visibility.CLIENT}"

# Counts a use, and keeps what was learned.
_USE = f"""
UPDATE templates t SET use_count = use_count + 1, last_used_at = clock_timestamp(), aliases = t.aliases || $5
FROM clients cl WHERE t.id = $4 AND cl.id = t.client_id AND {visibility.CLIENT} RETURNING {_COLUMNS}"""

# Forgets a template.
_DELETE = f"""
DELETE FROM templates t USING clients cl
WHERE t.id = $4 AND cl.id = t.client_id AND {visibility.CLIENT} RETURNING t.id"""


async def create(
    db: Executor,
    *,
    client_id: UUID,
    name: str,
    artifact_type: str,
    columns: Sequence[Mapping[str, str]],
    sample: Sequence[Sequence[str]] = (),
    file_name: str = "",
    file_sha256: bytes | None = None,
    created_by: UUID | None = None,
    template_id: UUID | None = None,
) -> Template | None:
    """Adds a template; None if the client has one of the same file. The caller has checked that it may add one.

    Raises:
        Invalid: A value is not allowed, or the client does not exist.
        Archived: The client is archived.
    """
    row = await db.fetchrow(
        _CREATE, template_id or new_id(), client_id, name, artifact_type, file_name, file_sha256,
        [dict(column) for column in columns], [list(cells) for cells in sample], created_by,
    )  # fmt: skip
    return None if row is None else Template(*row)


async def of_file(
    db: Executor, scope: Scope, client_id: UUID, artifact_type: str, file_sha256: bytes
) -> Template | None:
    """The template that a file of these bytes made."""
    row = await db.fetchrow(_OF_FILE, *scope.args, client_id, artifact_type, file_sha256)
    return None if row is None else Template(*row)


async def get(db: Executor, scope: Scope, template_id: UUID) -> Template | None:
    """The template with this id."""
    return next(iter(await get_many(db, scope, [template_id])), None)


async def get_many(db: Executor, scope: Scope, template_ids: Sequence[UUID]) -> list[Template]:
    """Those of the templates in scope, by id."""
    return [Template(*row) for row in await db.fetch(_GET_MANY, *scope.args, list(template_ids))]


async def get_for_update(db: Executor, scope: Scope, template_id: UUID) -> Template | None:
    """As `get`, and keeps others from changing the template until the transaction ends."""
    row = await db.fetchrow(_GET_FOR_UPDATE, *scope.args, template_id)
    return None if row is None else Template(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    client_id: UUID | None = None,
    artifact_types: Sequence[str] | None = None,
) -> list[Template]:
    """Up to `limit` templates, oldest first, whose id comes after `after`; a filter that is None lets all pass."""
    wanted = None if artifact_types is None else list(artifact_types)
    rows = await db.fetch(_LIST_PAGE, *scope.args, after, limit, client_id, wanted)
    return [Template(*row) for row in rows]


async def candidates(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    client_id: UUID | None = None,
    artifact_types: Sequence[str] | None = None,
) -> list[Template]:
    """Up to `limit` templates, those that are used most first; a filter that is None lets all pass."""
    wanted = None if artifact_types is None else list(artifact_types)
    return [Template(*row) for row in await db.fetch(_CANDIDATES, *scope.args, limit, client_id, wanted)]


async def update(db: Executor, scope: Scope, changed: Template) -> Template | None:
    """Writes a template that was read and changed: name, kind, columns, sample and aliases.

    Returns:
        The template as it is now, or None when there is none in scope.

    Raises:
        StaleRevision: It was changed since.
        Invalid: A value is not allowed.
        Archived: The client is archived.
    """
    row = await update_row(
        db, _UPDATE, _REVISION, scope, changed.id, changed.revision,
        changed.name, changed.artifact_type, changed.columns, changed.sample, changed.aliases,
    )  # fmt: skip
    return None if row is None else Template(*row)


async def use(db: Executor, scope: Scope, template_id: UUID, aliases: Mapping[str, Any]) -> Template | None:
    """Counts a use of a template, and keeps other names of its columns."""
    row = await db.fetchrow(_USE, *scope.args, template_id, dict(aliases))
    return None if row is None else Template(*row)


async def delete(db: Executor, scope: Scope, template_id: UUID) -> bool:
    """Forgets a template; False if there is none in scope."""
    return await db.fetchval(_DELETE, *scope.args, template_id) is not None


async def load_internal(db: Executor, template_ids: Sequence[UUID]) -> list[Template]:
    """Those of the templates that can be found."""
    return [Template(*row) for row in await db.fetch(_LOAD, list(template_ids))]


async def page_internal(db: Executor, after: UUID | None, limit: int) -> list[UUID]:
    """Ids of templates that can be found, a page by id."""
    return [row[0] for row in await db.fetch(_PAGE, after, limit)]
