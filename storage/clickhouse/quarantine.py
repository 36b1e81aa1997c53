"""Events that were put aside because of their time, read back page by page."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from storage.clickhouse.connect import ClickHouse

# Copies of one event may lie in several partitions, so they are counted as one here, not by FINAL. Ids are compared as
# text: ClickHouse orders UUIDs by their second half first. The events themselves are read for the page alone.
_PAGE = """
SELECT
    toUnixTimestamp64Milli(quarantine_time) AS at,
    campaign_id,
    toUnixTimestamp64Micro(event_time) AS happened,
    event_id,
    toString(reason),
    hex(event)
FROM campaign_events_quarantine
WHERE client_id = {client:UUID}
    AND (campaign_id, event_time, event_id, quarantine_time) IN
    (
        SELECT campaign_id, event_time, event_id, max(quarantine_time) AS latest
        FROM campaign_events_quarantine
        WHERE client_id = {client:UUID}
            AND (empty({campaigns:Array(UUID)}) OR has({campaigns:Array(UUID)}, campaign_id))
        GROUP BY campaign_id, event_time, event_id
        HAVING
            (
                toUnixTimestamp64Milli(latest), toString(campaign_id), toUnixTimestamp64Micro(event_time),
                toString(event_id)
            ) > ({at:Int64}, {campaign:String}, {happened:Int64}, {event:String})
            AND (empty({reason:String}) OR toString(argMax(reason, quarantine_time)) = {reason:String})
        ORDER BY latest, toString(campaign_id), event_time, toString(event_id)
        LIMIT {limit:UInt32}
    )
ORDER BY at, toString(campaign_id), happened, toString(event_id)
LIMIT 1 BY campaign_id, event_time, event_id"""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a row stands in the order of the quarantine.

    Attributes:
        quarantine_time: Milliseconds of Unix time.
        event_time: Microseconds of Unix time.
    """

    quarantine_time: int
    campaign_id: UUID
    event_time: int
    event_id: UUID


BEGINNING = Position(-(2**62), UUID(int=0), 0, UUID(int=0))
"""Before the first row."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An event that was put aside.

    Attributes:
        position: Its place in the order.
        reason: ``too_old`` or ``in_future``.
        event: The event as serialized.
    """

    position: Position
    reason: str
    event: bytes


async def page(
    db: ClickHouse,
    client_ids: Collection[UUID],
    client_id: UUID,
    *,
    after: Position,
    limit: int,
    campaign_id: UUID | None = None,
    reason: str = "",
) -> list[Kept]:
    """A client's quarantine from a position on, oldest first.

    Args:
        db: Where it is.
        client_ids: The clients in the caller's scope.
        client_id: The client.
        after: Position of the last row seen.
        limit: Most rows.
        campaign_id: Only events of this campaign.
        reason: Only events put aside for this reason; all if empty.

    Returns:
        The events; none when the client is not in scope.
    """
    if client_id not in client_ids:
        return []
    rows = await db.fetch(
        _PAGE,
        {
            "client": client_id,
            "campaigns": [] if campaign_id is None else [campaign_id],
            "reason": reason,
            "at": after.quarantine_time,
            "campaign": str(after.campaign_id),
            "happened": after.event_time,
            "event": str(after.event_id),
            "limit": limit,
        },
    )
    return [Kept(Position(row[0], row[1], row[2], row[3]), row[4], bytes.fromhex(row[5])) for row in rows]
