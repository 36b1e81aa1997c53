"""What the rebuilding of metrics must not lose: versions, cursors and the raw floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from storage.errors import FencedOut
from storage.postgres.database import Executor, returned

_SEQUENCE_BITS = 40
_EPOCH_LIMIT = 1 << (63 - _SEQUENCE_BITS)


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far something has read, and under which lease epoch that was noted."""

    position: dict[str, Any]
    epoch: int


# The next of the numbers that never repeat.
_NEXT_VERSION = "SELECT nextval('metric_version_seq')"

# One cursor.
_GET_CURSOR = "SELECT position, epoch FROM metric_cursors WHERE name = $1"

# Moves a cursor unless it was moved under a later epoch.
_MOVE_CURSOR = """
INSERT INTO metric_cursors AS c (name, position, epoch) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET position = excluded.position, epoch = excluded.epoch, updated_at = now()
WHERE c.epoch <= excluded.epoch RETURNING true"""

# The raw floor.
_GET_RAW_FLOOR = "SELECT raw_floor FROM metric_settings"

# Raises the raw floor; a lower one leaves it.
_RAISE_RAW_FLOOR = """
UPDATE metric_settings SET raw_floor = GREATEST(raw_floor, $1), updated_at = now() RETURNING raw_floor"""


async def next_version(db: Executor, epoch: int) -> int:
    """A version for metric rows, above all versions of this and earlier epochs. Take it before reading.

    Args:
        db: Where to run it.
        epoch: Epoch of the lease under which the rows are written.

    Raises:
        ValueError: The epoch does not fit beside the sequence in 63 bits.
    """
    if not 0 < epoch < _EPOCH_LIMIT:
        raise ValueError("epoch out of range")
    return epoch << _SEQUENCE_BITS | int(await db.fetchval(_NEXT_VERSION))


async def get_cursor(db: Executor, name: str) -> Cursor | None:
    """The cursor of this name; None when it was never moved."""
    row = await db.fetchrow(_GET_CURSOR, name)
    return None if row is None else Cursor(*row)


async def move_cursor(db: Executor, name: str, position: Mapping[str, Any], epoch: int) -> None:
    """Moves a cursor under a lease epoch.

    Raises:
        FencedOut: It was moved under a later epoch: the caller has lost its lease and must stop.
    """
    if await db.fetchval(_MOVE_CURSOR, name, dict(position), epoch) is None:
        raise FencedOut("cursor was moved under a later epoch")


async def get_raw_floor(db: Executor) -> datetime:
    """The time before which raw events may be gone, so that nothing before it may be rebuilt from them."""
    floor: datetime = returned(await db.fetchrow(_GET_RAW_FLOOR))[0]
    return floor


async def raise_raw_floor(db: Executor, floor: datetime) -> datetime:
    """Raises the raw floor to `floor`, unless it is higher already, and returns where it is."""
    raised: datetime = returned(await db.fetchrow(_RAISE_RAW_FLOOR, floor))[0]
    return raised
