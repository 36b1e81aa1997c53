"""Live slices of busy clients are rebuilt aside, so that one client never holds back the figures of the others."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from storage.clickhouse.rebuild import Slice

SLOW_SECONDS = 0.15
"""A rebuild of live slices that takes longer is looked into."""

_QUICK_SECONDS = 0.05
_MOST_ROWS = 100_000
_LEFT_ROWS = 10_000
_KEPT_SECONDS = 60.0
_REVIEW_PAUSE_SECONDS = 5.0


class BusyClients:
    """Which clients have too much going on to be rebuilt with the others, and which of their slices wait.

    Times are those of the monotonic clock, in seconds; instants of figures are Unix milliseconds.
    """

    def __init__(self) -> None:
        self._busy_until: dict[UUID, float] = {}
        self._review_at = 0.0
        self._waiting: set[Slice] = set()
        self._waiting_since: int | None = None
        self._working: list[Slice] = []
        self._working_since: int | None = None

    def split(self, slices: Iterable[Slice], now: float) -> tuple[list[Slice], list[Slice]]:
        """Slices of quiet clients and of busy ones."""
        quiet: list[Slice] = []
        busy: list[Slice] = []
        for each in slices:
            (busy if self._busy_until.get(each.client_id, 0.0) > now else quiet).append(each)
        return quiet, busy

    def should_review(self, now: float) -> bool:
        """Whether to look into a slow rebuild; not again at once."""
        if now < self._review_at:
            return False
        self._review_at = now + _REVIEW_PAUSE_SECONDS
        return True

    def review(self, rows: Mapping[Slice, int], now: float) -> None:
        """Learns how many stored rows slices have.

        Slices of one client lie side by side in the store and are read together, so it is clients that are busy. If
        there are too many rows to rebuild at once, few are left to the quiet ones, which then do not grow slow soon.
        """
        totals: dict[UUID, int] = {}
        for each, count in rows.items():
            totals[each.client_id] = totals.get(each.client_id, 0) + count
        if sum(totals.values()) <= _MOST_ROWS:
            return
        left = _LEFT_ROWS
        for client_id, count in sorted(totals.items(), key=lambda item: item[1]):
            left -= count
            if left < 0:
                self._busy_until[client_id] = now + _KEPT_SECONDS

    def put(self, slices: Iterable[Slice], done: int) -> None:
        """Has slices wait.

        Args:
            slices: The slices.
            done: Figures are complete up to here without them.
        """
        was_empty = not self._waiting
        self._waiting.update(slices)
        if was_empty and self._waiting:
            self._waiting_since = done

    def take(self) -> list[Slice]:
        """The slices that wait, the latest first, to be worked off now."""
        self._working = sorted(self._waiting, key=lambda each: -each.start)
        self._working_since = self._waiting_since
        self._waiting, self._waiting_since = set(), None
        return self._working

    def finish(self, seconds: float, now: float) -> None:
        """They are worked off, in this many seconds; clients for whom that was quick are no longer busy."""
        for client_id in {each.client_id for each in self._working}:
            if seconds < _QUICK_SECONDS:
                self._busy_until.pop(client_id, None)
            else:
                self._busy_until[client_id] = now + _KEPT_SECONDS
        self._busy_until = {client: until for client, until in self._busy_until.items() if until > now}
        self._working, self._working_since = [], None

    def give_back(self) -> None:
        """They could not be worked off and wait again."""
        self._waiting.update(self._working)
        if self._working_since is not None:
            self._waiting_since = self._working_since
        self._working, self._working_since = [], None

    def complete_until(self, done: int) -> int:
        """How far figures are complete, if those of quiet clients are up to `done`."""
        return min([done, *(since for since in (self._waiting_since, self._working_since) if since is not None)])
