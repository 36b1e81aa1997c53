# ruff: noqa: S608 - the statements are put together from constants of this package
"""Credentials of internal services. Only their hashes are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id

_TOUCHED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A row of ``api_keys`` without the hash.

    Attributes:
        prefix: The key's first characters, by which people recognise it.
        client_ids: Clients the key reaches, with all clients under them; none when empty and not `all_clients`.
        created_by: The user who made it; None when made at the command line.
    """

    id: UUID
    name: str
    prefix: str
    permissions: list[str]
    client_ids: list[UUID]
    all_clients: bool
    created_by: UUID | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


_COLUMNS = """id, name, prefix, permissions, client_ids, all_clients, created_by, created_at, expires_at, revoked_at,
  last_used_at"""

# Adds a key.
_CREATE = f"""
INSERT INTO api_keys (id, name, key_hash, prefix, permissions, client_ids, all_clients, created_by, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING {_COLUMNS}"""

# One page of keys, oldest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} FROM api_keys
WHERE ($1::uuid IS NULL OR id > $1) AND ($3 OR revoked_at IS NULL) ORDER BY id LIMIT $2"""

# Ends a key; the time of the first revocation stays.
_REVOKE = f"UPDATE api_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE id = $1 RETURNING {_COLUMNS}"

# The key a caller has presented, if it still works.
_BY_HASH = f"""
SELECT {_COLUMNS} FROM api_keys
WHERE key_hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"""

# Which keys still work, for calls that outlast the moment they were checked.
_ACTIVE_IDS = """
SELECT id FROM api_keys
WHERE id = ANY ($1::uuid[]) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"""

# Notes a use, unless another call has lately.
_TOUCH_LAST_USED = """
UPDATE api_keys SET last_used_at = now()
WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < now() - $2::interval)"""


async def create(
    db: Executor,
    *,
    name: str,
    key_hash: bytes,
    prefix: str,
    permissions: Sequence[str],
    client_ids: Sequence[UUID] = (),
    all_clients: bool = False,
    created_by: UUID | None = None,
    expires_at: datetime | None = None,
    key_id: UUID | None = None,
) -> ApiKey:
    """Adds a key.

    Args:
        db: Where to run it.
        name: What the key is for.
        key_hash: SHA-256 of the key.
        prefix: The key's first characters.
        permissions: What it may do, in the words of the method options.
        client_ids: Which clients it reaches, with all clients under them.
        all_clients: It reaches every client; then `client_ids` must be empty.
        created_by: The user who makes it.
        expires_at: When it stops working; never when None.
        key_id: Its id; a new one when None.

    Raises:
        Conflict: ``api_keys_hash_key``: the same key exists.
        Invalid: A value is not allowed.
    """
    row = await db.fetchrow(
        _CREATE, key_id or new_id(), name, key_hash, prefix, list(permissions), list(client_ids), all_clients,
        created_by, expires_at,
    )  # fmt: skip
    return ApiKey(*returned(row))


async def list_page(
    db: Executor, *, limit: int, after: UUID | None = None, include_revoked: bool = False
) -> list[ApiKey]:
    """Up to `limit` keys, oldest first, whose id comes after `after`."""
    return [ApiKey(*row) for row in await db.fetch(_LIST_PAGE, after, limit, include_revoked)]


async def revoke(db: Executor, key_id: UUID) -> ApiKey | None:
    """Ends a key for good and returns it; again changes nothing. None when there is none."""
    row = await db.fetchrow(_REVOKE, key_id)
    return None if row is None else ApiKey(*row)


async def by_hash(db: Executor, key_hash: bytes) -> ApiKey | None:
    """The key with this SHA-256, unless it is revoked or has expired."""
    row = await db.fetchrow(_BY_HASH, key_hash)
    return None if row is None else ApiKey(*row)


async def active_ids(db: Executor, key_ids: Sequence[UUID]) -> set[UUID]:
    """Those of `key_ids` whose keys are neither revoked nor expired."""
    return {row[0] for row in await db.fetch(_ACTIVE_IDS, list(key_ids))}


async def touch_last_used(db: Executor, key: ApiKey) -> None:
    """Notes that the key, as just read, is used now; asks the database at most once a minute."""
    if key.last_used_at is None or datetime.now(UTC) - key.last_used_at > _TOUCHED_EVERY:
        await db.execute(_TOUCH_LAST_USED, key.id, _TOUCHED_EVERY)
