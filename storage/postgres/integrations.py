# ruff: noqa: S608 - the statements are put together from constants of this package
"""Clients' accounts on advertising platforms, with their sealed credentials."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, Transaction, returned
from storage.postgres.ids import new_id
from storage.postgres.revisions import update_row
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Integration:
    """A row of ``client_integrations``.

    Attributes:
        credentials: The sealed envelope, or empty once disconnected. Never leaves the server.
        paused: The client, or an agency above it, is archived.
        settings: ``mrm.campaigns.v1.SyncSettings`` as JSON.
    """

    id: UUID
    client_id: UUID
    platform: str
    status: str
    credentials: dict[str, str]
    platform_account_id: str
    last_synced_at: datetime | None
    last_error: str
    last_error_at: datetime | None
    token_expires_at: datetime | None
    revision: int
    created_at: datetime
    updated_at: datetime
    paused: bool
    settings: dict[str, Any]

    def __repr__(self) -> str:
        return f"Integration(id={self.id}, platform={self.platform}, status={self.status})"


_COLUMNS = """i.id, i.client_id, i.platform, i.status, i.credentials, i.platform_account_id, i.last_synced_at,
  i.last_error, i.last_error_at, i.token_expires_at, i.revision, i.created_at, i.updated_at,
  is_client_archived(i.client_id) AS paused, i.settings"""

# Adds an integration.
_CREATE = f"""
INSERT INTO client_integrations AS i (id, client_id, platform, credentials, platform_account_id, token_expires_at)
VALUES ($1, $2, $3, $4, $5, $6) RETURNING {_COLUMNS}"""

# One integration.
_GET = f"""
SELECT {_COLUMNS} FROM client_integrations i JOIN clients cl ON cl.id = i.client_id
WHERE i.id = $4 AND {visibility.CLIENT}"""

# One integration, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF i"

# The integration of a platform account, kept from changing.
_BY_ACCOUNT = f"""
SELECT {_COLUMNS} FROM client_integrations i JOIN clients cl ON cl.id = i.client_id
WHERE i.client_id = $4 AND i.platform = $5 AND i.platform_account_id = $6 AND {visibility.CLIENT} FOR UPDATE OF i"""

# One page of integrations, oldest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} FROM client_integrations i JOIN clients cl ON cl.id = i.client_id
WHERE {visibility.CLIENT}
  AND ($4::uuid IS NULL OR i.id > $4)
  AND ($6::uuid IS NULL OR i.client_id = $6)
  AND ($7::text IS NULL OR i.platform = $7)
  AND ($8::text IS NULL OR i.status = $8)
ORDER BY i.id LIMIT $5"""

# Replaces what may change of an integration that still has the expected revision.
_UPDATE = f"""
UPDATE client_integrations i SET status = $6, credentials = $7, last_error = $8, last_error_at = $9,
  token_expires_at = $10
FROM clients cl
WHERE i.id = $4 AND cl.id = i.client_id AND i.revision = $5 AND {visibility.CLIENT} RETURNING {_COLUMNS}"""

# Accounts that can be asked.
_CONNECTED = f"""
SELECT {_COLUMNS} FROM client_integrations i
WHERE i.id = ANY ($1::uuid[]) AND i.status = 'connected' AND NOT is_client_archived(i.client_id) ORDER BY i.id"""

# Sets how an account is read.
_CONFIGURE = f"""
UPDATE client_integrations i SET settings = $5 FROM clients cl
WHERE i.id = $4 AND cl.id = i.client_id AND {visibility.CLIENT} RETURNING {_COLUMNS}"""

# Replaces credentials that are still the ones which were renewed.
_RENEW = """
UPDATE client_integrations SET credentials = $3, token_expires_at = $4 WHERE id = $1 AND credentials = $2
RETURNING true"""

# The present revision, to tell a stale integration from a missing one.
_REVISION = f"""
SELECT i.revision FROM client_integrations i JOIN clients cl ON cl.id = i.client_id
WHERE i.id = $4 AND {visibility.CLIENT}"""

# How many credentials each key seals.
_KEY_USE = """
SELECT credentials->>'key_id', count(*) FROM client_integrations WHERE credentials <> '{}' GROUP BY 1 ORDER BY 1"""

# Some credentials that are not under the key that seals now, kept from changing; those that another process holds are
# left to it.
_SEALED_OTHERWISE = """
SELECT id, client_id, credentials FROM client_integrations
WHERE credentials <> '{}' AND credentials->>'key_id' <> $1 AND ($2::uuid IS NULL OR id > $2)
ORDER BY id LIMIT $3 FOR UPDATE SKIP LOCKED"""

# Replaces an envelope by another one of the same credentials.
_RESEAL = "UPDATE client_integrations SET credentials = $2 WHERE id = $1"


async def create(
    db: Executor,
    *,
    integration_id: UUID,
    client_id: UUID,
    platform: str,
    credentials: Mapping[str, str],
    platform_account_id: str,
    token_expires_at: datetime | None,
) -> Integration:
    """Adds a connected integration. The caller has checked that it may add one for the client.

    Raises:
        Conflict: ``client_integrations_account_key``: the client has one for this account.
    """
    row = await db.fetchrow(
        _CREATE, integration_id, client_id, platform, dict(credentials), platform_account_id, token_expires_at
    )
    return Integration(*returned(row))


def new_integration_id() -> UUID:
    """An id for `create`, which the credentials must be bound to before they are stored."""
    return new_id()


async def get(db: Executor, scope: Scope, integration_id: UUID) -> Integration | None:
    """The integration with this id."""
    row = await db.fetchrow(_GET, *scope.args, integration_id)
    return None if row is None else Integration(*row)


async def get_for_update(db: Executor, scope: Scope, integration_id: UUID) -> Integration | None:
    """As `get`, and keeps others from changing it until the transaction ends."""
    row = await db.fetchrow(_GET_FOR_UPDATE, *scope.args, integration_id)
    return None if row is None else Integration(*row)


async def by_account(
    tx: Transaction, scope: Scope, *, client_id: UUID, platform: str, platform_account_id: str
) -> Integration | None:
    """The client's integration of a platform account, whatever its status, kept from changing."""
    row = await tx.fetchrow(_BY_ACCOUNT, *scope.args, client_id, platform, platform_account_id)
    return None if row is None else Integration(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    client_id: UUID | None = None,
    platform: str | None = None,
    status: str | None = None,
) -> list[Integration]:
    """Up to `limit` integrations, oldest first, whose id comes after `after`; a filter that is None lets all pass."""
    rows = await db.fetch(_LIST_PAGE, *scope.args, after, limit, client_id, platform, status)
    return [Integration(*row) for row in rows]


async def update(db: Executor, scope: Scope, changed: Integration) -> Integration | None:
    """Writes status, credentials, error and token end of an integration that was read and changed.

    Returns:
        The integration as it is now, or None when there is none in scope.

    Raises:
        StaleRevision: It was changed since.
    """
    row = await update_row(
        db, _UPDATE, _REVISION, scope, changed.id, changed.revision,
        changed.status, changed.credentials, changed.last_error, changed.last_error_at, changed.token_expires_at,
    )  # fmt: skip
    return None if row is None else Integration(*row)


async def configure(
    db: Executor, scope: Scope, integration_id: UUID, settings: Mapping[str, Any]
) -> Integration | None:
    """Sets how an account is read; None when there is none in scope."""
    row = await db.fetchrow(_CONFIGURE, *scope.args, integration_id, dict(settings))
    return None if row is None else Integration(*row)


async def connected_internal(db: Executor, integration_ids: Collection[UUID]) -> list[Integration]:
    """Those of some accounts that can be asked: connected, and of no archived client."""
    rows = await db.fetch(_CONNECTED, list(integration_ids)) if integration_ids else []
    return [Integration(*row) for row in rows]


async def renew_internal(
    db: Executor,
    integration_id: UUID,
    before: Mapping[str, str],
    credentials: Mapping[str, str],
    expires_at: datetime | None,
) -> bool:
    """Replaces credentials by renewed ones; False if they are others by now, and nothing is changed."""
    return bool(await db.fetchval(_RENEW, integration_id, dict(before), dict(credentials), expires_at))


async def key_use_internal(db: Executor) -> dict[str, int]:
    """How many integrations have credentials under each key, by key id."""
    return {row[0]: row[1] for row in await db.fetch(_KEY_USE)}


async def reseal_internal(
    tx: Transaction,
    key_id: str,
    reseal: Callable[[UUID, UUID, Mapping[str, str]], dict[str, Any] | None],
    *,
    after: UUID | None,
    limit: int,
) -> tuple[UUID | None, int]:
    """Brings up to `limit` credentials under the key that seals now.

    What is done is known by the rows themselves, so that this can stop anywhere and begin anew. An integration gets a
    new revision: whoever was about to change it reads it again.

    Args:
        tx: Where to run it.
        key_id: The key that seals now.
        reseal: Makes the new envelope from id, client and envelope; None leaves it as it is.
        after: Id of the last row looked at before.
        limit: The most rows to look at.

    Returns:
        Id of the last row looked at, None when there are no more; and how many envelopes were replaced.
    """
    rows = await tx.fetch(_SEALED_OTHERWISE, key_id, after, limit)
    done = 0
    for integration_id, client_id, envelope in rows:
        fresh = reseal(integration_id, client_id, envelope)
        if fresh is not None:
            await tx.execute(_RESEAL, integration_id, fresh)
            done += 1
    return (rows[-1][0] if rows else None), done
