# ruff: noqa: S608 - the statements are put together from constants of this package
"""Replies of mutations, kept so that a repeated request gets the same reply instead of a second effect."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from storage.errors import Conflict, IdempotencyMismatch
from storage.postgres import audit
from storage.postgres.audit import Record
from storage.postgres.database import Executor, Transaction, returned

KEPT_FOR = timedelta(hours=24)
"""How long a reply is replayed."""

# Claims the key, or takes it over once its reply has expired. Waits for a transaction that is claiming the same key.
_CLAIM = """
INSERT INTO idempotency_keys AS k (principal_id, method, request_id, request_hash, expires_at)
VALUES ($1, $2, $3, $4, now() + $5)
ON CONFLICT (principal_id, method, request_id) DO UPDATE
SET request_hash = excluded.request_hash, response = NULL, created_at = now(), expires_at = excluded.expires_at
WHERE k.expires_at <= now()
RETURNING true"""

# What an earlier request under the same key was and got.
_STORED = """
SELECT request_hash, response FROM idempotency_keys WHERE principal_id = $1 AND method = $2 AND request_id = $3"""

# Keeps the reply under the claimed key, and what was changed for it.
_STORE = f"""
WITH recorded AS ({audit.insert_statement(5)})
UPDATE idempotency_keys SET response = $4 WHERE principal_id = $1 AND method = $2 AND request_id = $3"""

# Forgets expired replies, a bounded number at a time.
_PURGE_EXPIRED = """
DELETE FROM idempotency_keys WHERE (principal_id, method, request_id) IN (
  SELECT principal_id, method, request_id FROM idempotency_keys
  WHERE expires_at <= now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)"""


async def claim(
    tx: Transaction,
    principal_id: UUID,
    method: str,
    request_id: UUID,
    request_hash: bytes,
    *,
    kept_for: timedelta = KEPT_FOR,
) -> bytes | None:
    """Claims a request id within the mutation's transaction, or finds the reply given under it before.

    Two requests under one id that run at the same time are served one after the other: the second waits until the
    first one's transaction has ended.

    Args:
        tx: The mutation's transaction.
        principal_id: Who asks.
        method: Full name of the method.
        request_id: The id the caller chose.
        request_hash: Hash of the request, without the id.
        kept_for: How long the reply is to be replayed.

    Returns:
        The reply to give again, or None when the mutation is to run, followed by `store` in the same transaction.

    Raises:
        IdempotencyMismatch: The id was used for a different request.
    """
    if await tx.fetchval(_CLAIM, principal_id, method, request_id, request_hash, kept_for):
        return None
    known_hash, response = returned(await tx.fetchrow(_STORED, principal_id, method, request_id))
    if known_hash != request_hash:
        raise IdempotencyMismatch("request id already used for a different request")
    if response is None:
        raise Conflict("idempotency_keys_unanswered")
    reply: bytes = response
    return reply


async def store(
    tx: Transaction,
    principal_id: UUID,
    method: str,
    request_id: UUID,
    response: bytes,
    records: Sequence[Record] = (),
) -> None:
    """Keeps the reply of a mutation whose request id was claimed in the same transaction, and records its changes.

    Both in one statement: a mutation is mostly its statements' way to the database and back.
    """
    await tx.execute(_STORE, principal_id, method, request_id, response, *audit.columns(records))


async def purge_expired(db: Executor, limit: int = 10_000) -> int:
    """Deletes up to `limit` expired replies and returns how many it deleted."""
    tag = await db.execute(_PURGE_EXPIRED, limit)
    return int(tag.removeprefix("DELETE "))
