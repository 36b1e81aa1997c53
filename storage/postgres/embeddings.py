"""What is to be embedded, and which collections of vectors there are.

A note says that a thing may have changed; it is written in the transaction of the change (by triggers, or by
`note_internal`) and stays until all live collections of its kind have the thing as it is. `embedding_vectors` remembers
what each collection holds, so that what did not change is not embedded again.
"""

from __future__ import annotations

from collections.abc import Collection as Several
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from storage.postgres.database import Executor, Transaction, returned

ERASURE_TOPIC = "vector_erasure"
"""Outbox topic of purged clients, with the client's id for a key."""


class Note(NamedTuple):
    """A thing that may have changed."""

    id: int
    item_id: UUID


@dataclass(frozen=True, slots=True)
class Collection:
    """A row of ``embedding_collections``.

    Attributes:
        state: ``filling``, ``serving`` or ``retired``.
        fill_until: Has everything once no note in bulk up to this one is left.
        checked_at: When it was last compared with what should be in it.
    """

    name: str
    kind: str
    model: str
    dimension: int
    state: str
    fill_until: int
    created_at: datetime
    served_at: datetime | None
    retired_at: datetime | None
    checked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Stored:
    """What a collection holds of a thing.

    Attributes:
        error: Why it has no vector; empty if it has one.
    """

    item_id: UUID
    client_id: UUID
    content_hash: str
    fields_hash: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """How far a kind is.

    Attributes:
        waiting: Things noted.
        bulk: Of these, noted together with everything of the kind.
        oldest_at: Since when the one that waits longest does.
        vectors: Vectors in each collection, by its name.
        refused: Texts in each collection that the model does not take.
    """

    waiting: int
    bulk: int
    oldest_at: datetime | None
    vectors: dict[str, int]
    refused: dict[str, int]


_COLUMNS = """c.name, c.kind, c.model, c.dimension, c.state, c.fill_until, c.created_at, c.served_at, c.retired_at,
  c.checked_at"""

# Notes things.
_NOTE = "INSERT INTO embedding_notes (kind, item_id, bulk) SELECT $1, i, $3 FROM unnest($2::uuid[]) AS i"

# Whether there is anything to do.
_WAITING = """
SELECT EXISTS (SELECT FROM embedding_notes)
  OR EXISTS (SELECT FROM outbox WHERE topic = $1 AND processed_at IS NULL)"""

# The notes that come next: what people changed before what was noted in bulk.
_TAKE = "SELECT id, item_id FROM embedding_notes WHERE kind = $1 ORDER BY bulk, id LIMIT $2"

# Notes that were dealt with.
_DONE = "DELETE FROM embedding_notes WHERE id = ANY ($1::bigint[])"

# Of several notes of a thing the latest is enough; kept in bulk only if all are.
_COMPACT = """
WITH doubled AS (
  SELECT kind, item_id, max(id) AS last, bool_and(bulk) AS bulk FROM embedding_notes
  GROUP BY kind, item_id HAVING count(*) > 1),
kept AS (
  UPDATE embedding_notes n SET bulk = d.bulk FROM doubled d WHERE n.id = d.last AND n.bulk <> d.bulk)
DELETE FROM embedding_notes n USING doubled d WHERE n.kind = d.kind AND n.item_id = d.item_id AND n.id < d.last"""

_COLLECTIONS = f"SELECT {_COLUMNS} FROM embedding_collections c WHERE $1::text IS NULL OR kind = $1 ORDER BY created_at"  # noqa: S608

_SERVING = f"SELECT {_COLUMNS} FROM embedding_collections c WHERE kind = $1 AND state = 'serving'"  # noqa: S608

# Makes a collection known; it serves at once if there is no other.
_ADD = """
INSERT INTO embedding_collections AS c (name, kind, model, dimension, state, served_at)
SELECT $1, $2, $3, $4, s.state, CASE s.state WHEN 'serving' THEN clock_timestamp() END
FROM (SELECT CASE WHEN EXISTS (SELECT FROM embedding_collections WHERE kind = $2 AND state = 'serving')
  THEN 'filling' ELSE 'serving' END AS state) s
ON CONFLICT (name) DO UPDATE SET state = EXCLUDED.state, served_at = EXCLUDED.served_at, retired_at = NULL"""

_STOP_FILLING = """
UPDATE embedding_collections SET state = 'retired', retired_at = clock_timestamp()
WHERE kind = $1 AND state = 'filling'"""

# Until where a collection has to be filled.
_FILL_UNTIL = """
UPDATE embedding_collections SET fill_until = COALESCE((SELECT max(id) FROM embedding_notes), 0) WHERE name = $1"""

# Whether a collection that is being filled has everything.
_FILLED = """
SELECT NOT EXISTS (SELECT FROM embedding_notes n WHERE n.kind = c.kind AND n.bulk AND n.id <= c.fill_until)
FROM embedding_collections c WHERE c.name = $1 AND c.state = 'filling' FOR UPDATE"""

_RETIRE = """
UPDATE embedding_collections SET state = 'retired', retired_at = clock_timestamp()
WHERE kind = $1 AND state = 'serving'"""

_SERVE = """
UPDATE embedding_collections SET state = 'serving', served_at = clock_timestamp()
WHERE name = $1 AND state = 'filling'"""

_RETIRED = f"""
SELECT {_COLUMNS} FROM embedding_collections c
WHERE state = 'retired' AND retired_at < clock_timestamp() - $1::interval"""  # noqa: S608

_EMPTY = """
DELETE FROM embedding_vectors v USING embedding_collections c
WHERE v.collection = $1 AND c.name = v.collection AND c.state = 'retired'"""
_REMOVE = "DELETE FROM embedding_collections WHERE name = $1 AND state = 'retired'"

_CHECKED = "UPDATE embedding_collections SET checked_at = clock_timestamp() WHERE name = $1"

# What a collection holds of things.
_STORED = """
SELECT item_id, client_id, content_hash, fields_hash, error FROM embedding_vectors
WHERE collection = $1 AND item_id = ANY ($2::uuid[])"""

_STORED_PAGE = """
SELECT item_id, client_id, content_hash, fields_hash, error FROM embedding_vectors
WHERE collection = $1 AND ($2::uuid IS NULL OR item_id > $2) ORDER BY item_id LIMIT $3"""

_PUT = """
INSERT INTO embedding_vectors (collection, item_id, client_id, content_hash, fields_hash, error)
SELECT $1, * FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[])
ON CONFLICT (collection, item_id) DO UPDATE SET client_id = EXCLUDED.client_id, content_hash = EXCLUDED.content_hash,
  fields_hash = EXCLUDED.fields_hash, error = EXCLUDED.error, written_at = clock_timestamp()"""

_FORGET = "DELETE FROM embedding_vectors WHERE collection = $1 AND item_id = ANY ($2::uuid[])"
_FORGET_ALL = "DELETE FROM embedding_vectors WHERE collection = $1"
_FORGET_CLIENT = "DELETE FROM embedding_vectors WHERE client_id = $1"

_COUNTS = """
SELECT count(DISTINCT item_id), count(DISTINCT item_id) FILTER (WHERE bulk), min(noted_at)
FROM embedding_notes WHERE kind = $1"""

_COUNT_VECTORS = """
SELECT c.name, count(v.item_id) FILTER (WHERE v.error = ''), count(v.item_id) FILTER (WHERE v.error <> '')
FROM embedding_collections c LEFT JOIN embedding_vectors v ON v.collection = c.name
WHERE c.kind = $1 GROUP BY c.name"""


async def note_internal(db: Executor, kind: str, item_ids: Several[UUID], *, bulk: bool = False) -> None:
    """Notes that things may have changed, or are gone; in the transaction of the change.

    Args:
        db: Where to run it.
        kind: Their kind.
        item_ids: The things.
        bulk: Everybody's changes go before them.
    """
    await db.execute(_NOTE, kind, list(item_ids), bulk)


async def waiting_internal(db: Executor) -> bool:
    """Whether anything is to be embedded, or a client's vectors to be erased."""
    return bool(await db.fetchval(_WAITING, ERASURE_TOPIC))


async def take_internal(db: Executor, kind: str, limit: int) -> list[Note]:
    """The notes of a kind that come next. They stay: `done_internal` takes them away."""
    return [Note(*row) for row in await db.fetch(_TAKE, kind, limit)]


async def done_internal(tx: Transaction, note_ids: Several[int]) -> None:
    """Takes notes away that were dealt with. What was noted since stays."""
    await tx.execute(_DONE, list(note_ids))


async def compact_internal(db: Executor) -> None:
    """Leaves one note of each thing, for when they pile up because nobody deals with them."""
    await db.execute(_COMPACT)


async def collections_internal(db: Executor, kind: str | None = None) -> list[Collection]:
    """The collections of a kind, or of all, oldest first."""
    return [Collection(*row) for row in await db.fetch(_COLLECTIONS, kind)]


async def serving(db: Executor, kind: str) -> Collection | None:
    """The collection that searches of a kind ask; its name goes with its model, so read both by one call.

    It says nothing of any tenant.
    """
    row = await db.fetchrow(_SERVING, kind)
    return None if row is None else Collection(*row)


async def add_collection_internal(tx: Transaction, name: str, kind: str, model: str, dimension: int) -> None:
    """Makes a collection known, which exists in Milvus. It serves at once if none does, and is filled otherwise.

    A collection that was being filled until now is given up for it. Note everything of the kind in bulk afterwards, and
    call `fill_until_now_internal`.
    """
    await tx.execute(_STOP_FILLING, kind)
    await tx.execute(_ADD, name, kind, model, dimension)


async def stop_filling_internal(db: Executor, kind: str) -> None:
    """Gives up the collection that is being filled."""
    await db.execute(_STOP_FILLING, kind)


async def fill_until_now_internal(tx: Transaction, name: str) -> None:
    """Has a collection count as filled once the notes that are there now are gone."""
    await tx.execute(_FILL_UNTIL, name)


async def switch_internal(tx: Transaction, kind: str, name: str) -> bool:
    """Has a collection serve that has been filled; False if it lacks something or is not being filled."""
    if not await tx.fetchval(_FILLED, name):
        return False
    await tx.execute(_RETIRE, kind)
    await tx.execute(_SERVE, name)
    return True


async def retired_internal(db: Executor, longer_than: timedelta) -> list[Collection]:
    """Collections that have not served for so long."""
    return [Collection(*row) for row in await db.fetch(_RETIRED, longer_than)]


async def remove_internal(db: Executor, name: str) -> None:
    """Forgets a retired collection, which is gone from Milvus."""
    await db.execute(_EMPTY, name)
    await db.execute(_REMOVE, name)


async def checked_internal(db: Executor, name: str) -> None:
    """Remembers that a collection was compared with what should be in it."""
    await db.execute(_CHECKED, name)


async def stored_internal(db: Executor, collection: str, item_ids: Several[UUID]) -> dict[UUID, Stored]:
    """What a collection holds of things."""
    return {row[0]: Stored(*row) for row in await db.fetch(_STORED, collection, list(item_ids))}


async def stored_page_internal(db: Executor, collection: str, after: UUID | None, limit: int) -> list[Stored]:
    """A page of what a collection holds, by id."""
    return [Stored(*row) for row in await db.fetch(_STORED_PAGE, collection, after, limit)]


async def put_internal(tx: Transaction, collection: str, rows: Sequence[Stored]) -> None:
    """Remembers what was written to a collection."""
    columns = zip(*((r.item_id, r.client_id, r.content_hash, r.fields_hash, r.error) for r in rows), strict=True)
    if rows:
        await tx.execute(_PUT, collection, *(list(column) for column in columns))


async def forget_internal(db: Executor, collection: str, item_ids: Several[UUID] | None = None) -> None:
    """Forgets what a collection holds of things, or of everything: it is written again when it is noted."""
    if item_ids is None:
        await db.execute(_FORGET_ALL, collection)
    else:
        await db.execute(_FORGET, collection, list(item_ids))


async def forget_client_internal(tx: Transaction, client_id: UUID) -> None:
    """Forgets what all collections held of a client."""
    await tx.execute(_FORGET_CLIENT, client_id)


async def counts_internal(db: Executor, kind: str) -> Counts:
    """How far a kind is."""
    row = returned(await db.fetchrow(_COUNTS, kind))
    found = await db.fetch(_COUNT_VECTORS, kind)
    return Counts(row[0], row[1], row[2], {each[0]: each[1] for each in found}, {each[0]: each[2] for each in found})
