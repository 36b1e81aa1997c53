"""Slices that take long to rebuild are rebuilt aside, so that one busy client never holds back the others."""

from collections.abc import Iterable, Mapping

from storage.clickhouse.rebuild import Slice

SLOW_SECONDS = 0.15
"""A rebuild of live slices that takes longer is looked into."""

_MOST_ROWS = 100_000
_LEFT_ROWS = 10_000
_KEPT_SECONDS = 60.0
_REVIEW_PAUSE_SECONDS = 5.0
_MOST_SLICES = 50_000


class HeavySlices:
    """Which slices are heavy, and which of them wait to be rebuilt."""

    def __init__(self) -> None:
        self._until: dict[Slice, float] = {}
        self._review_at = 0.0
        self._waiting: set[Slice] = set()
        self._waiting_since: int | None = None
        self._working: list[Slice] = []
        self._working_since: int | None = None

    def split(self, slices: Iterable[Slice], now: float) -> tuple[list[Slice], list[Slice]]:
        """Light ones and heavy ones; `now` by the monotonic clock."""
        light: list[Slice] = []
        heavy: list[Slice] = []
        for each in slices:
            (heavy if self._until.get(each, 0.0) > now else light).append(each)
        return light, heavy

    def should_review(self, now: float) -> bool:
        """Whether to look into a slow rebuild; not again at once."""
        if now < self._review_at:
            return False
        self._review_at = now + _REVIEW_PAUSE_SECONDS
        return True

    def review(self, rows: Mapping[Slice, int], now: float) -> None:
        """Learns how many stored rows slices have.

        If there are too many to rebuild at once, the largest slices are heavy from now on; few rows are left to the
        light ones, so that they do not grow slow again soon.
        """
        if sum(rows.values()) <= _MOST_ROWS:
            return
        left = _LEFT_ROWS
        for each, count in sorted(rows.items(), key=lambda item: item[1]):
            left -= count
            if left < 0:
                self._until[each] = now + _KEPT_SECONDS
        if len(self._until) > _MOST_SLICES:
            self._until = {each: until for each, until in self._until.items() if until > now}

    def put(self, slices: Iterable[Slice], done: int) -> None:
        """Has slices wait.

        Args:
            slices: The slices.
            done: Figures are complete up to here without them, in Unix milliseconds.
        """
        before = len(self._waiting)
        self._waiting.update(slices)
        if not before and self._waiting:
            self._waiting_since = done

    def take(self) -> list[Slice]:
        """The slices that wait, to be worked off now."""
        self._working = sorted(self._waiting, key=lambda each: -each.start)
        self._working_since = self._waiting_since
        self._waiting, self._waiting_since = set(), None
        return self._working

    def finish(self, seconds: float, now: float) -> None:
        """They are worked off; they stay heavy if it took long."""
        for each in self._working:
            if seconds > SLOW_SECONDS:
                self._until[each] = now + _KEPT_SECONDS
            else:
                self._until.pop(each, None)
        self._working, self._working_since = [], None

    def give_back(self) -> None:
        """They could not be worked off and wait again."""
        self._waiting.update(self._working)
        if self._working_since is not None:
            self._waiting_since = self._working_since
        self._working, self._working_since = [], None

    def complete_until(self, done: int) -> int:
        """How far the figures are complete, if those of light slices are up to `done`."""
        return min([done, *(since for since in (self._waiting_since, self._working_since) if since is not None)])
