# ruff: noqa: S608 - the statements are put together from constants of this package
"""Internal programs, which own API keys. They belong to no tenant."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A row of ``service_accounts`` that is not deleted.

    Attributes:
        disabled_at: Since when none of its keys works, if they do not.
    """

    id: UUID
    name: str
    description: str
    disabled_at: datetime | None
    revision: int
    created_at: datetime
    updated_at: datetime


_COLUMNS = "id, name, description, disabled_at, revision, created_at, updated_at"

# Adds an account.
_CREATE = f"INSERT INTO service_accounts (id, name, description) VALUES ($1, $2, $3) RETURNING {_COLUMNS}"

# One account.
_GET = f"SELECT {_COLUMNS} FROM service_accounts WHERE id = $1 AND deleted_at IS NULL"

# One account, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE"

# One page of accounts, oldest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} FROM service_accounts
WHERE deleted_at IS NULL AND ($1::uuid IS NULL OR id > $1) AND NOT ($3 AND disabled_at IS NOT NULL)
ORDER BY id LIMIT $2"""

# Writes what may change of an account; the time of the first disabling stays.
_UPDATE = f"""
UPDATE service_accounts SET name = $2, description = $3,
  disabled_at = CASE WHEN $4 THEN COALESCE(disabled_at, now()) END
WHERE id = $1 AND deleted_at IS NULL RETURNING {_COLUMNS}"""

# Ends an account for good.
_DELETE = "UPDATE service_accounts SET deleted_at = now() WHERE id = $1 AND deleted_at IS NULL"


async def create(db: Executor, *, name: str, description: str = "") -> ServiceAccount:
    """Adds an account.

    Raises:
        Conflict: ``service_accounts_name_key``: another one has this name, in any letter case.
        Invalid: A value is not allowed.
    """
    return ServiceAccount(*returned(await db.fetchrow(_CREATE, new_id(), name, description)))


async def get(db: Executor, account_id: UUID) -> ServiceAccount | None:
    """The account with this id, disabled or not."""
    row = await db.fetchrow(_GET, account_id)
    return None if row is None else ServiceAccount(*row)


async def get_for_update(db: Executor, account_id: UUID) -> ServiceAccount | None:
    """As `get`, and keeps others from changing the account or giving it keys until the transaction ends."""
    row = await db.fetchrow(_GET_FOR_UPDATE, account_id)
    return None if row is None else ServiceAccount(*row)


async def list_page(
    db: Executor, *, limit: int, after: UUID | None = None, enabled_only: bool = False
) -> list[ServiceAccount]:
    """Up to `limit` accounts, oldest first, whose id comes after `after`."""
    return [ServiceAccount(*row) for row in await db.fetch(_LIST_PAGE, after, limit, enabled_only)]


async def update(
    db: Executor, account_id: UUID, *, name: str, description: str, disabled: bool
) -> ServiceAccount | None:
    """Writes what may change of an account that `get_for_update` has locked.

    Raises:
        Conflict: ``service_accounts_name_key``: another one has this name, in any letter case.
    """
    row = await db.fetchrow(_UPDATE, account_id, name, description, disabled)
    return None if row is None else ServiceAccount(*row)


async def delete(db: Executor, account_id: UUID) -> None:
    """Ends an account for good. Its keys must have been revoked in the same transaction."""
    await db.execute(_DELETE, account_id)
