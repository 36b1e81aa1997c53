# ruff: noqa: S608 - the statements are put together from constants of this package
"""Files of historical figures, and which of their chunks are stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor
from storage.postgres.ids import new_id
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Backfill:
    """A row of ``backfills``."""

    id: UUID
    client_id: UUID
    fingerprint: str
    source_name: str
    version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Chunk:
    """A row of ``backfill_chunks``."""

    month: str
    part: int
    snapshot_count: int
    stale_count: int


_COLUMNS = "b.id, b.client_id, b.fingerprint, b.source_name, b.version, b.created_at"

# One file.
_GET = f"""
SELECT {_COLUMNS} FROM backfills b JOIN clients cl ON cl.id = b.client_id
WHERE b.client_id = $4 AND b.fingerprint = $5 AND {visibility.CLIENT}"""

# Begins a file, with a version above those of all files before it; milliseconds since 1970 unless a clock was set back.
_BEGIN = f"""
INSERT INTO backfills (id, client_id, fingerprint, source_name, version)
SELECT $6, cl.id, $5, $7, GREATEST((extract(epoch FROM clock_timestamp()) * 1000)::bigint,
  (SELECT max(b.version) + 1 FROM backfills b WHERE b.client_id = cl.id))
FROM clients cl WHERE cl.id = $4 AND {visibility.CLIENT}
ON CONFLICT DO NOTHING"""

# The chunks of a file.
_CHUNKS = f"""
SELECT k.month, k.part, k.snapshot_count, k.stale_count
FROM backfill_chunks k JOIN backfills b ON b.id = k.backfill_id JOIN clients cl ON cl.id = b.client_id
WHERE k.backfill_id = $4 AND {visibility.CLIENT} ORDER BY k.month, k.part"""

# One chunk.
_CHUNK = f"""
SELECT k.month, k.part, k.snapshot_count, k.stale_count
FROM backfill_chunks k JOIN backfills b ON b.id = k.backfill_id JOIN clients cl ON cl.id = b.client_id
WHERE k.backfill_id = $4 AND k.month = $5 AND k.part = $6 AND {visibility.CLIENT}"""

# Notes a chunk as stored.
_STORED = """
INSERT INTO backfill_chunks (backfill_id, month, part, snapshot_count, stale_count)
VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING"""


async def get(db: Executor, scope: Scope, client_id: UUID, fingerprint: str) -> Backfill | None:
    """A file of a client."""
    row = await db.fetchrow(_GET, *scope.args, client_id, fingerprint)
    return None if row is None else Backfill(*row)


async def begin(db: Executor, scope: Scope, client_id: UUID, fingerprint: str, source_name: str) -> Backfill | None:
    """A file of a client, begun now unless it was before; None when the client is not in scope."""
    # Of two files that begin in the same millisecond one finds its version taken.
    for _ in range(2):
        found = await get(db, scope, client_id, fingerprint)
        if found is not None:
            return found
        await db.execute(_BEGIN, *scope.args, client_id, fingerprint, new_id(), source_name)
    return await get(db, scope, client_id, fingerprint)


async def chunks(db: Executor, scope: Scope, backfill_id: UUID) -> list[Chunk]:
    """The chunks of a file that are stored, by month and part."""
    return [Chunk(*row) for row in await db.fetch(_CHUNKS, *scope.args, backfill_id)]


async def chunk(db: Executor, scope: Scope, backfill_id: UUID, month: str, part: int) -> Chunk | None:
    """A chunk, if it is stored."""
    row = await db.fetchrow(_CHUNK, *scope.args, backfill_id, month, part)
    return None if row is None else Chunk(*row)


async def note(db: Executor, backfill_id: UUID, stored: Chunk) -> None:
    """Notes a chunk as stored, unless somebody has done so at the same time."""
    await db.execute(_STORED, backfill_id, stored.month, stored.part, stored.snapshot_count, stored.stale_count)
