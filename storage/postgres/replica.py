"""A replica that takes reads off the primary, while it is known to be as far as the reader must see."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from storage.errors import StoreError
from storage.postgres.failures import translate

if TYPE_CHECKING:
    from storage.postgres.database import Database

_POLL_SECONDS: Final = 0.1
_ANSWER_SECONDS: Final = 2.0
# A replica that is an hour behind need not be remembered by tenths of a second.
_MOST_ASKED: Final = 600

# Where the primary's log ends.
_WRITTEN = "SELECT pg_current_wal_lsn()"

# Up to where a replica has replayed it; nothing once it has been promoted.
_REPLAYED = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END"

_seen_since: ContextVar[float | None] = ContextVar("seen_since", default=None)

_log = logging.getLogger(__name__)


def allow_replica(since: float) -> None:
    """Lets single statements of the running task read from a replica.

    Args:
        since: Whatever was committed before this time (`time.monotonic`) must be seen.
    """
    _seen_since.set(since)


class Replica:
    """What is known of how far a replica is. `run` it beside the server.

    Args:
        primary: The primary, by connections that calls do not compete for.
        database: The replica.
        staleness: A replica that is further behind than these seconds is not read from.
    """

    def __init__(self, primary: Database, database: Database, staleness: float) -> None:
        self.database = database
        self._primary = primary
        self._staleness = staleness
        self._asked: deque[tuple[float, int]] = deque(maxlen=_MOST_ASKED)
        self._seen = float("-inf")
        self._reachable = True

    def serves(self) -> bool:
        """Whether the running task may read from it now."""
        since = _seen_since.get()
        return since is not None and self._seen >= max(since, time.monotonic() - self._staleness)

    async def run(self) -> None:
        """Compares where both are, for ever."""
        while True:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._compare()
            except (StoreError, TimeoutError) as error:
                self._note(False, type(translate(error)).__name__)
            else:
                self._note(True, "")
            await asyncio.sleep(_POLL_SECONDS)

    async def _compare(self) -> None:
        # Before asking: what was committed by now lies before the position that is told.
        now = time.monotonic()
        self._asked.append((now, await self._primary.fetchval(_WRITTEN)))
        replayed: int | None = await self.database.fetchval(_REPLAYED)
        while replayed is not None and self._asked and self._asked[0][1] <= replayed:
            self._seen = self._asked.popleft()[0]

    def _note(self, reachable: bool, reason: str) -> None:
        if reachable != self._reachable:
            self._reachable = reachable
            _log.warning("replica_%s %s", "followed" if reachable else "lost", reason)
