# ruff: noqa: S608 - the statements are put together from constants of this package
"""How far each producer's event stream is durably stored, and who may write to it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream opened for writing.

    Attributes:
        next_offset: Offset the next batch must begin at.
        writer_epoch: What `advance` takes; the writer before cannot advance any more.
    """

    next_offset: int
    writer_epoch: int


@dataclass(frozen=True, slots=True)
class EventStream:
    """A row of ``event_streams``."""

    client_id: UUID
    stream_id: str
    next_offset: int
    writer: UUID
    writer_epoch: int
    updated_at: datetime


# Makes the stream if it is new, and fences the writer before.
_OPEN = f"""
INSERT INTO event_streams AS s (client_id, stream_id, writer)
SELECT cl.id, $5::text, $6::uuid FROM clients cl WHERE cl.id = $4 AND {visibility.CLIENT}
ON CONFLICT (client_id, stream_id) DO UPDATE
SET writer = excluded.writer, writer_epoch = s.writer_epoch + 1, updated_at = now()
RETURNING next_offset, writer_epoch"""

# Moves the offset, if it is where the writer left it and no other writer has opened the stream.
_ADVANCE = """
UPDATE event_streams SET next_offset = $5, updated_at = now()
WHERE client_id = $1 AND stream_id = $2 AND writer_epoch = $3 AND next_offset = $4 RETURNING true"""

# One stream.
_GET = f"""
SELECT s.client_id, s.stream_id, s.next_offset, s.writer, s.writer_epoch, s.updated_at
FROM event_streams s JOIN clients cl ON cl.id = s.client_id
WHERE s.client_id = $4 AND s.stream_id = $5 AND {visibility.CLIENT}"""


async def open_stream(db: Executor, scope: Scope, client_id: UUID, stream_id: str, writer: UUID) -> Opened | None:
    """Opens a client's stream for a writer, making it if it is new; the writer before is fenced.

    Returns:
        Where to go on and under which epoch, or None when the client is not in scope.

    Raises:
        Invalid: ``event_streams_stream_id_length``.
    """
    row = await db.fetchrow(_OPEN, *scope.args, client_id, stream_id, writer)
    return None if row is None else Opened(*row)


async def advance(
    db: Executor, client_id: UUID, stream_id: str, writer_epoch: int, from_offset: int, to_offset: int
) -> bool:
    """Moves a stream's offset once the events between are durable.

    Needs no scope: only who has opened the stream knows its epoch.

    Returns:
        False when another writer has opened the stream, or the offset is not `from_offset`.
    """
    return await db.fetchval(_ADVANCE, client_id, stream_id, writer_epoch, from_offset, to_offset) is not None


async def get(db: Executor, scope: Scope, client_id: UUID, stream_id: str) -> EventStream | None:
    """A client's stream."""
    row = await db.fetchrow(_GET, *scope.args, client_id, stream_id)
    return None if row is None else EventStream(*row)
