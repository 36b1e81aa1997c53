# ruff: noqa: S608 - the statements are put together from constants of this package
"""Erasing what is measured of a client."""

from __future__ import annotations

from uuid import UUID

from storage.clickhouse.connect import ClickHouse

_TIMEOUT_SECONDS = 20.0
_REWRITE_SECONDS = 600.0
# The dimension last: as long as it is there, an erasure that was interrupted can be seen to be.
_TABLES = (
    "campaign_events",
    "campaign_events_quarantine",
    "dirty_slices",
    "campaign_metrics_slices",
    "campaign_metrics_hourly",
    "snapshot_campaigns",
    "campaigns_dim",
)


async def erase_client_internal(db: ClickHouse, client_id: UUID) -> None:
    """Has every row of a client deleted; `campaigns_dim.reload` then makes its campaigns unknown.

    Rows are hidden at once where they are few, and leave the disk when their parts are merged. May be repeated.
    """
    for table in _TABLES:
        await db.execute(
            f"DELETE FROM {table} WHERE client_id = {{client_id:UUID}}",
            {"client_id": client_id},
            # A table of events may take long to rewrite; only the dimension must be gone before the reload.
            settings={"lightweight_deletes_sync": 2 if table == "campaigns_dim" else 0},
            timeout=_TIMEOUT_SECONDS,
        )


async def left_internal(db: ClickHouse, client_id: UUID) -> int:
    """How many rows of a client can still be read, in all tables."""
    left = 0
    for table in _TABLES:
        [(count,)] = await db.fetch(
            f"SELECT count() FROM {table} WHERE client_id = {{client_id:UUID}}", {"client_id": client_id}
        )
        left += count
    return left


async def rewrite_internal(db: ClickHouse) -> None:
    """Has parts be written anew without the rows that were deleted, which until then are only hidden."""
    for table in _TABLES:
        await db.execute(
            f"ALTER TABLE {table} APPLY DELETED MASK", settings={"mutations_sync": 2}, timeout=_REWRITE_SECONDS
        )
