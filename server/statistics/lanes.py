"""Which marks of changed slices are done."""

from storage.clickhouse.rebuild import BUCKET_MILLIS, Lane

MOST_BUCKETS = 4096
"""Buckets of marks looked at in one go."""

_NAMED_BUCKETS = 40


class LaneReader:
    """Remembers how many marks each short bucket of mark time had when they were last worked off.

    What is remembered is bounded by the window of time, not by the number of slices, and a mark that becomes visible
    late is still noticed: its bucket has one more.

    Attributes:
        done: Figures hold everything that was acknowledged before this, in Unix milliseconds.
        clock: ClickHouse's clock when it was last read.

    Args:
        lane: The lane.
        done: Marks before this were worked off earlier, in Unix milliseconds.
        overlap: Milliseconds by which a mark may become visible after its time.
    """

    def __init__(self, lane: Lane, done: int, overlap: int) -> None:
        self.lane = lane
        self.done = done
        self.clock: int | None = None
        self._overlap = overlap
        self._counts: dict[int, int] = {}

    @property
    def since(self) -> int:
        """Where to count from, in Unix milliseconds: the begin of a bucket."""
        return max(0, self.done - self._overlap) // BUCKET_MILLIS * BUCKET_MILLIS

    @property
    def named_from(self) -> int:
        """Bucket from which on the slices are wanted with the counts: few marks come later than that."""
        return max(self._counts, default=self.since // BUCKET_MILLIS) - _NAMED_BUCKETS

    def changed(self, counts: dict[int, int]) -> list[int]:
        """Buckets with other marks than the remembered ones."""
        return [bucket for bucket, count in counts.items() if self._counts.get(bucket) != count]

    def advance(self, counts: dict[int, int], asked: int) -> bool:
        """Remembers marks that are worked off now.

        Args:
            counts: Marks per bucket from `since` on, the oldest `MOST_BUCKETS` of them.
            asked: A time of ClickHouse's clock before it began to count, in Unix milliseconds.

        Returns:
            Whether there may be more to do at once.
        """
        full = len(counts) >= MOST_BUCKETS
        reached = min(asked, (max(counts) + 1) * BUCKET_MILLIS) if full else asked
        self.done = max(self.done, reached)
        first = self.since // BUCKET_MILLIS
        self._counts = {bucket: count for bucket, count in counts.items() if bucket >= first}
        return full
