# ruff: noqa: S608 - the statements are put together from constants of this package
"""How far each producer's event stream is durably stored, and who may write to it."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class Move:
    """How far a writer has brought a stream.

    Attributes:
        writer_epoch: Proves that the stream is still the writer's.
        from_offset: Where it left the stream.
        to_offset: Where the next batch must begin now.
    """

    client_id: UUID
    stream_id: str
    writer_epoch: int
    from_offset: int
    to_offset: int


# Makes the stream if it is new, and fences the writer before.
_OPEN = f"""
INSERT INTO event_streams AS s (client_id, stream_id, writer)
SELECT cl.id, $5::text, $6::uuid FROM clients cl WHERE cl.id = $4 AND {visibility.CLIENT}
ON CONFLICT (client_id, stream_id) DO UPDATE
SET writer = excluded.writer, writer_epoch = s.writer_epoch + 1, updated_at = now()
RETURNING next_offset, writer_epoch"""

# Moves the offsets that are where their writers left them and whose streams no other writer has opened. The rows are
# locked in order, so that two processes never wait for each other.
_ADVANCE = """
WITH moves AS (
  SELECT s.client_id, s.stream_id, m.to_offset
  FROM event_streams s
  JOIN unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
    AS m (client_id, stream_id, writer_epoch, from_offset, to_offset)
    ON s.client_id = m.client_id AND s.stream_id = m.stream_id
    AND s.writer_epoch = m.writer_epoch AND s.next_offset = m.from_offset
  ORDER BY s.client_id, s.stream_id
  FOR UPDATE OF s
)
UPDATE event_streams s SET next_offset = moves.to_offset, updated_at = now()
FROM moves WHERE s.client_id = moves.client_id AND s.stream_id = moves.stream_id
RETURNING s.client_id, s.stream_id"""

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


async def advance(db: Executor, moves: Sequence[Move]) -> set[tuple[UUID, str]]:
    """Moves the offsets of streams once the events between are durable.

    Needs no scope: only who has opened a stream knows its epoch.

    Args:
        moves: At most one for each stream.

    Returns:
        Client and name of the streams that were moved. The others were opened by another writer, or their offset is not
        `from_offset`.
    """
    rows = await db.fetch(
        _ADVANCE,
        [move.client_id for move in moves],
        [move.stream_id for move in moves],
        [move.writer_epoch for move in moves],
        [move.from_offset for move in moves],
        [move.to_offset for move in moves],
    )
    return {(row[0], row[1]) for row in rows}


async def get(db: Executor, scope: Scope, client_id: UUID, stream_id: str) -> EventStream | None:
    """A client's stream."""
    row = await db.fetchrow(_GET, *scope.args, client_id, stream_id)
    return None if row is None else EventStream(*row)
