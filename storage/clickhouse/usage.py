"""What is stored of a client, by day of UTC."""

from __future__ import annotations

from datetime import date
from typing import NamedTuple
from uuid import UUID

from storage.clickhouse.connect import ClickHouse


class DayFigures(NamedTuple):
    """Events of a day that are in the figures, and rows of hourly and daily figures of that day."""

    events: int
    rows: int


# From the figures, which know each event once and stay when raw events are gone.
_DAYS = """
SELECT toDate(hour, 'UTC') AS day, sum(event_count), count()
FROM campaign_metrics_hourly FINAL
WHERE client_id = {client:UUID} AND hour >= fromUnixTimestamp({start:Int64}) AND hour < fromUnixTimestamp({end:Int64})
GROUP BY day"""


async def days_internal(store: ClickHouse, client_id: UUID, start: int, end: int) -> dict[date, DayFigures]:
    """The days of a client that have figures. The caller has seen that the client may be seen.

    Args:
        store: Where figures are.
        client_id: The client.
        start: Begin of the first day in Unix seconds.
        end: End of the last one, which is not included.
    """
    rows = await store.fetch(_DAYS, {"client": str(client_id), "start": start, "end": end})
    return {day: DayFigures(events, count) for day, events, count in rows}
