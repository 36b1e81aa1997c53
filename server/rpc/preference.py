"""Which calls may read from a replica, so that nobody misses what they have just written."""

import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from server.rpc.policy import Policy
from storage.postgres.replica import allow_replica

HEADER = "x-read-preference"
"""Metadata of a call."""

PRIMARY = "primary"
"""Has a call read what is true now, whatever it costs."""

_MOST_WRITERS = 10_000


class ReadPreference:
    """Remembers who wrote when, for as long as a replica may be behind.

    Args:
        staleness: Seconds that a replica may be behind.
    """

    def __init__(self, staleness: float) -> None:
        self._staleness = staleness
        self._writing: Counter[Hashable] = Counter()
        self._written: dict[Hashable, float] = {}

    @contextmanager
    def of(self, policy: Policy, caller: Hashable, wanted: str) -> Iterator[None]:
        """Has a call that only reads use a replica if that has all that its caller wrote through this process.

        Args:
            policy: Of the method.
            caller: Whose writes it must see.
            wanted: What the call's metadata says.
        """
        if policy.idempotency == "READ_ONLY":
            if wanted != PRIMARY and not self._writing[caller]:
                allow_replica(self._written.get(caller, 0.0))
            yield
            return
        self._writing[caller] += 1
        try:
            yield
        finally:
            self._writing[caller] -= 1
            if not self._writing[caller]:
                del self._writing[caller]
            self._note(caller)

    def _note(self, caller: Hashable) -> None:
        now = time.monotonic()
        if len(self._written) >= _MOST_WRITERS:
            oldest = now - self._staleness
            self._written = {each: at for each, at in self._written.items() if at > oldest}
        self._written[caller] = now
