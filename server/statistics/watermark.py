"""The watermark: everything acknowledged before this instant is in the figures."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from storage.errors import StoreUnavailable
from storage.postgres import metrics_state
from storage.postgres.database import Database

CURSOR = "metrics"


@dataclass(slots=True)
class Progress:
    """How far the aggregator has come, in Unix milliseconds of ClickHouse's clock.

    Attributes:
        live: Marks before this are done, in the lane of slices that are running.
        late: The same in the lane of older slices.
    """

    live: int = 0
    late: int = 0

    @property
    def watermark(self) -> int:
        """Everything acknowledged before this is in the figures."""
        return min(self.live, self.late)

    def to_position(self) -> dict[str, Any]:
        """As it is stored."""
        return {"live": self.live, "late": self.late}

    @classmethod
    def from_position(cls, position: dict[str, Any]) -> "Progress":
        """As it was stored."""
        return cls(int(position.get("live", 0)), int(position.get("late", 0)))


class WatermarkReader:
    """Reads the watermark; while PostgreSQL is down, the last one read, which then only understates."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known = 0

    async def millis(self) -> int:
        """The watermark in Unix milliseconds; 0 before the aggregator ran first."""
        try:
            cursor = await metrics_state.get_cursor(self._database, CURSOR)
        except (StoreUnavailable, TimeoutError):
            return self._known
        if cursor is not None:
            self._known = max(self._known, Progress.from_position(cursor.position).watermark)
        return self._known

    async def instant(self) -> datetime | None:
        """The watermark as an instant; None before the aggregator ran first."""
        millis = await self.millis()
        return datetime.fromtimestamp(millis / 1000, UTC) if millis else None
