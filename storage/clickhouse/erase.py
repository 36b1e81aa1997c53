# ruff: noqa: S608 - the statements are put together from constants of this package
"""Erasing what is measured of a client."""

from __future__ import annotations

from uuid import UUID

from storage.clickhouse.connect import ClickHouse

_TIMEOUT_SECONDS = 20.0
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
