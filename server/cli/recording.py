"""The recording that the demo replays."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mrm.statistics.v1 import event_pb2
from server.cli.console import CommandFailed
from server.cli.rows import RowFile
from server.statistics.event_ids import derived_id


@dataclass(frozen=True, slots=True)
class Shown:
    """One row: an impression, and a click if it was clicked."""

    line: int
    time: datetime
    campaign: str
    clicked: bool
    user: str
    item: str
    position: str


@dataclass(frozen=True, slots=True)
class Recording:
    """A file of shown advertisements, its times moved to the present.

    Attributes:
        sha256: Digest of the file.
        rows: Its rows, oldest first.
        shift: What was added to every time: whole days, so that hours keep their shape.
    """

    sha256: str
    rows: list[Shown]
    shift: timedelta

    @classmethod
    def load(cls, path: Path, now: datetime | None = None) -> Recording:
        """Reads a file and moves its times so that the last lies within the day before `now`.

        Raises:
            CommandFailed: The file is not such a recording.
        """
        file = RowFile.open(path)
        try:
            rows = sorted((_shown(row.line, row.values) for row in file.rows()), key=lambda row: row.time)
            last = rows[-1].time
        except (KeyError, ValueError, IndexError):
            raise CommandFailed(f"{path} has not the columns of examples/data/README.md") from None
        shift = timedelta(days=((now or datetime.now(UTC)) - last).days)
        return cls(file.sha256, rows, shift)

    @property
    def campaigns(self) -> list[str]:
        """Names of the campaigns."""
        return sorted({row.campaign for row in self.rows})

    @property
    def start(self) -> datetime:
        """Moved time of the first row."""
        return self.rows[0].time + self.shift

    @property
    def end(self) -> datetime:
        """Moved time of the last row."""
        return self.rows[-1].time + self.shift

    @property
    def totals(self) -> dict[str, tuple[int, int]]:
        """(impressions, clicks) of each campaign, counted from the rows alone."""
        shown = Counter(row.campaign for row in self.rows)
        clicked = Counter(row.campaign for row in self.rows if row.clicked)
        return {campaign: (count, clicked[campaign]) for campaign, count in shown.items()}

    def rows_until(self, share: float) -> int:
        """How many rows had happened when this share of the whole time, 0 to 1, had passed."""
        first, last = self.rows[0].time, self.rows[-1].time
        if share >= 1:
            return len(self.rows)
        return bisect_right(self.rows, first + (last - first) * share, key=lambda row: row.time)

    def events(self, row: Shown, campaign_ids: Mapping[str, str]) -> Iterator[event_pb2.Event]:
        """The events a row stands for."""
        kinds = [event_pb2.EVENT_TYPE_IMPRESSION]
        if row.clicked:
            kinds.append(event_pb2.EVENT_TYPE_CLICK)
        for kind in kinds:
            event = event_pb2.Event(
                event_id=derived_id(self.sha256, row.line, kind),
                campaign_id=campaign_ids[row.campaign],
                event_type=kind,
                user_id=row.user,
                attributes={"item_id": row.item, "position": row.position},
            )
            event.event_time.FromDatetime(row.time + self.shift)
            yield event


def _shown(line: int, values: Mapping[str, str]) -> Shown:
    if values["click"] not in ("0", "1"):
        raise ValueError
    return Shown(
        line=line,
        time=datetime.fromisoformat(values["timestamp"]),
        campaign=values["campaign"],
        clicked=values["click"] == "1",
        user=values["user_hash"],
        item=values["item_id"],
        position=values["position"],
    )
