"""Messages to other stores, written in the transaction of the change that causes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from storage.postgres.database import Executor, Transaction, returned


@dataclass(frozen=True, slots=True)
class Message:
    """A row of ``outbox`` not yet processed.

    Attributes:
        id: Grows in the order of writing, not of committing: a lower one may appear later.
        key: What the message is about, for example a campaign's id.
    """

    id: int
    topic: str
    key: str
    payload: dict[str, Any]
    created_at: datetime


# Adds a message.
_APPEND = "INSERT INTO outbox (topic, key, payload) VALUES ($1, $2, $3) RETURNING id"

# Adds a message for each key.
_APPEND_ALL = "INSERT INTO outbox (topic, key) SELECT $1, k.key FROM unnest($2::text[]) AS k (key)"

# The oldest waiting messages of a topic, kept from other takers until the transaction ends.
_TAKE_BATCH = """
SELECT id, topic, key, payload, created_at FROM outbox
WHERE topic = $1 AND processed_at IS NULL ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED"""

# Marks messages as processed.
_MARK_PROCESSED = "UPDATE outbox SET processed_at = now() WHERE id = ANY ($1::bigint[]) AND processed_at IS NULL"

# Forgets processed messages, a bounded number at a time.
_PURGE_PROCESSED = """
DELETE FROM outbox WHERE id IN (
  SELECT id FROM outbox WHERE processed_at < now() - $1::interval ORDER BY processed_at LIMIT $2)"""


async def append(db: Executor, topic: str, key: str, payload: Mapping[str, Any] | None = None) -> int:
    """Adds a message, in the transaction of the change that causes it, and returns its id."""
    return int(returned(await db.fetchrow(_APPEND, topic, key, dict(payload or {})))[0])


async def append_all(db: Executor, topic: str, keys: Sequence[str]) -> None:
    """Adds a message for each key, as `append` does for one."""
    await db.execute(_APPEND_ALL, topic, list(keys))


async def take_batch(tx: Transaction, topic: str, limit: int) -> list[Message]:
    """The oldest waiting messages of a topic, which nobody else gets while the transaction lasts.

    Deliver them, then `mark_processed` in the same transaction. When that fails they come again: delivery is at least
    once, and consumers read the present state rather than trust the payload.
    """
    return [Message(*row) for row in await tx.fetch(_TAKE_BATCH, topic, limit)]


async def mark_processed(tx: Transaction, ids: Sequence[int]) -> None:
    """Marks messages as delivered."""
    await tx.execute(_MARK_PROCESSED, list(ids))


async def purge_processed(db: Executor, older_than: timedelta, limit: int = 10_000) -> int:
    """Deletes up to `limit` messages processed longer ago than `older_than` and returns how many it deleted."""
    tag = await db.execute(_PURGE_PROCESSED, older_than, limit)
    return int(tag.removeprefix("DELETE "))
