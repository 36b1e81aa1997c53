# ruff: noqa: S608 - the statements are put together from constants of this package
"""Credentials of programs. Only their hashes are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id
from storage.scope import Scope

_TOUCHED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A row of ``api_keys`` without the hash.

    Attributes:
        prefix: The key's first characters, by which people recognise it.
        client_ids: Clients the key reaches, with all clients under them; none when empty and not `all_clients`.
        created_by: The user who made it; None when made at the command line or by another key.
        service_account_id: The program it belongs to, if it belongs to one.
        successor_id: The key that rotation put in its place, if one did.
        family_id: The first key of its chain of rotations, often itself. All of them stand for the same program and
            have the same rights.
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
    service_account_id: UUID | None
    successor_id: UUID | None
    family_id: UUID


_COLUMNS = """k.id, k.name, k.prefix, k.permissions, k.client_ids, k.all_clients, k.created_by, k.created_at,
  k.expires_at, k.revoked_at, k.last_used_at, k.service_account_id, k.successor_id, COALESCE(k.family_id, k.id)"""

# The condition that all of a key's clients lie within a scope.
_IN_SCOPE = f"""({visibility.EVERYTHING} OR NOT k.all_clients AND cardinality(k.client_ids) > 0 AND NOT EXISTS (
  SELECT FROM unnest(k.client_ids) AS reach (id)
  WHERE NOT EXISTS (SELECT FROM clients cl WHERE cl.id = reach.id AND {visibility.CLIENT})))"""

# The condition that a key works.
_WORKS = """k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AND NOT EXISTS (
  SELECT FROM service_accounts a WHERE a.id = k.service_account_id AND a.disabled_at IS NOT NULL)"""

# Adds a key.
_CREATE = f"""
INSERT INTO api_keys AS k (id, name, key_hash, prefix, permissions, client_ids, all_clients, created_by, expires_at,
  service_account_id, family_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING {_COLUMNS}"""

# One key.
_GET = f"SELECT {_COLUMNS} FROM api_keys k WHERE k.id = $4 AND {_IN_SCOPE}"

# One key, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF k"

# One page of keys, oldest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} FROM api_keys k
WHERE ($4::uuid IS NULL OR k.id > $4) AND ($6 OR k.revoked_at IS NULL)
  AND ($7::uuid IS NULL OR k.service_account_id = $7) AND {_IN_SCOPE}
ORDER BY k.id LIMIT $5"""

# Ends a key; the time of the first revocation stays.
_REVOKE = f"""
UPDATE api_keys k SET revoked_at = COALESCE(k.revoked_at, now()) WHERE k.id = $4 AND {_IN_SCOPE} RETURNING {_COLUMNS}"""

# Ends the keys of an account that are not revoked yet.
_REVOKE_ALL_OF = f"""
UPDATE api_keys k SET revoked_at = now() WHERE k.service_account_id = $1 AND k.revoked_at IS NULL
RETURNING {_COLUMNS}"""

# Ends the keys that a user has made and that are not revoked yet, and those that rotation has put in their place.
_REVOKE_MADE_BY = f"""
UPDATE api_keys k SET revoked_at = now() WHERE k.revoked_at IS NULL AND (k.created_by = $1
  OR k.created_by IS NULL AND k.family_id IN (SELECT first.id FROM api_keys first WHERE first.created_by = $1))
RETURNING {_COLUMNS}"""

# Names the key that takes over, and ends the replaced one after the overlap, unless it ends sooner.
_SUCCEED = f"""
UPDATE api_keys k SET successor_id = $2, expires_at = LEAST(k.expires_at, now() + $3::interval)
WHERE k.id = $1 RETURNING {_COLUMNS}"""

# The key a caller has presented, if it works.
_BY_HASH = f"SELECT {_COLUMNS} FROM api_keys k WHERE k.key_hash = $1 AND {_WORKS}"

# Which keys still work, for calls that outlast the moment they were checked.
_ACTIVE_IDS = f"SELECT k.id FROM api_keys k WHERE k.id = ANY ($1::uuid[]) AND {_WORKS}"

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
    service_account_id: UUID | None = None,
    family_id: UUID | None = None,
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
        service_account_id: The program it belongs to, if it belongs to one.
        family_id: The first key of its chain of rotations; None when it is the first itself.
        key_id: Its id; a new one when None.

    Raises:
        Conflict: ``api_keys_hash_key``: the same key exists.
        Invalid: A value is not allowed.
    """
    row = await db.fetchrow(
        _CREATE, key_id or new_id(), name, key_hash, prefix, list(permissions), list(client_ids), all_clients,
        created_by, expires_at, service_account_id, family_id,
    )  # fmt: skip
    return ApiKey(*returned(row))


async def get(db: Executor, scope: Scope, key_id: UUID) -> ApiKey | None:
    """The key with this id, whether or not it works, if all its clients are in scope."""
    row = await db.fetchrow(_GET, *scope.args, key_id)
    return None if row is None else ApiKey(*row)


async def get_for_update(db: Executor, scope: Scope, key_id: UUID) -> ApiKey | None:
    """As `get`, and keeps others from changing the key until the transaction ends."""
    row = await db.fetchrow(_GET_FOR_UPDATE, *scope.args, key_id)
    return None if row is None else ApiKey(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    include_revoked: bool = False,
    service_account_id: UUID | None = None,
) -> list[ApiKey]:
    """Up to `limit` keys with all their clients in scope, oldest first, whose id comes after `after`."""
    rows = await db.fetch(_LIST_PAGE, *scope.args, after, limit, include_revoked, service_account_id)
    return [ApiKey(*row) for row in rows]


async def revoke(db: Executor, scope: Scope, key_id: UUID) -> ApiKey | None:
    """Ends a key for good and returns it; again changes nothing. None when there is none in scope."""
    row = await db.fetchrow(_REVOKE, *scope.args, key_id)
    return None if row is None else ApiKey(*row)


async def revoke_all_of(db: Executor, service_account_id: UUID) -> list[ApiKey]:
    """Ends all keys of an account for good and returns those that were not revoked before."""
    return [ApiKey(*row) for row in await db.fetch(_REVOKE_ALL_OF, service_account_id)]


async def revoke_made_by(db: Executor, user_id: UUID) -> list[ApiKey]:
    """Ends every key that the user has made, who knows the secrets, for good; returns those not revoked before.

    Whoever knows a key can have it rotate itself, so such a successor counts too; one that another user made does not.
    """
    return [ApiKey(*row) for row in await db.fetch(_REVOKE_MADE_BY, user_id)]


async def succeed(db: Executor, key_id: UUID, successor_id: UUID, overlap: timedelta) -> ApiKey:
    """Notes that another key takes over from one that `get_for_update` has locked, and has it end after `overlap`."""
    return ApiKey(*returned(await db.fetchrow(_SUCCEED, key_id, successor_id, overlap)))


async def by_hash(db: Executor, key_hash: bytes) -> ApiKey | None:
    """The key with this SHA-256, unless it is revoked, has expired or belongs to a disabled account."""
    row = await db.fetchrow(_BY_HASH, key_hash)
    return None if row is None else ApiKey(*row)


async def active_ids(db: Executor, key_ids: Sequence[UUID]) -> set[UUID]:
    """Those of `key_ids` whose keys are neither revoked nor expired nor of a disabled account."""
    return {row[0] for row in await db.fetch(_ACTIVE_IDS, list(key_ids))}


async def touch_last_used(db: Executor, key: ApiKey) -> None:
    """Notes that the key, as just read, is used now; asks the database at most once a minute."""
    if key.last_used_at is None or datetime.now(UTC) - key.last_used_at > _TOUCHED_EVERY:
        await db.execute(_TOUCH_LAST_USED, key.id, _TOUCHED_EVERY)
