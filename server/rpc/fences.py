"""Which sessions have ended by PostgreSQL's word, kept in every process so that no call has to ask.

Redis holds the sessions, and loses or regains them as it likes: a crash between the commit that ends a session and its
deletion leaves it there, and a restored backup brings it back. So PostgreSQL remembers what has ended for as long as a
session lives, each process reads that several times a second, and a session counts only if both say so.
"""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from server.rpc import logs
from storage.postgres import session_ends
from storage.postgres.database import Database

# Ends carry a time from before their commit, so each reading goes back by more than a transaction may last.
_OVERLAP = timedelta(minutes=1)
# Beyond the life of a session, for clocks that differ.
_MARGIN = timedelta(hours=1)
_PURGE_SECONDS = 600.0
# A connection that hangs must not keep this process from hearing of what ends.
_READ_SECONDS = 2.0


class SessionFences:
    """A process's copy of what has ended.

    Args:
        database: Where the truth is.
        session_ttl: Life of a session; what ended longer ago need not be remembered.
        interval: Seconds between two readings.
        on_change: Called when something has ended since the last reading.
    """

    def __init__(
        self, database: Database, session_ttl: timedelta, interval: float, on_change: Callable[[], None]
    ) -> None:
        self._database = database
        self._ttl = session_ttl
        self._interval = interval
        self._on_change = on_change
        self._not_before = 0.0
        self._users: dict[UUID, float] = {}
        self._sessions: dict[str, float] = {}
        self._read_until = datetime.now(UTC) - session_ttl - _MARGIN
        self._log = logs.get("fences")

    def ended(self, token_digest: str, user_id: UUID, created_at: float) -> bool:
        """Whether a session that Redis knows has ended nevertheless.

        Args:
            token_digest: SHA-256 of the token in hexadecimal.
            user_id: Whose session.
            created_at: Unix time at which it began.
        """
        return (
            created_at + self._ttl.total_seconds() <= time.time()
            or created_at <= self._not_before
            or created_at <= self._users.get(user_id, 0.0)
            or token_digest in self._sessions
        )

    async def read(self) -> None:
        """Reads what has ended since the last time. Before the first reading nobody may be served.

        Raises:
            storage.errors.StoreUnavailable, TimeoutError: What is known stays.
        """
        ends = await session_ends.since_internal(self._database, self._read_until - _OVERLAP)
        users = {user_id: moment.timestamp() for user_id, moment in ends.users.items()}
        changed = (
            ends.not_before.timestamp() > self._not_before
            or any(moment > self._users.get(user_id, 0.0) for user_id, moment in users.items())
            or not ends.sessions.keys() <= self._sessions.keys()
        )
        self._read_until = ends.now
        if changed:
            self._not_before = ends.not_before.timestamp()
            self._users |= users
            self._sessions |= {name: moment.timestamp() for name, moment in ends.sessions.items()}
            self._on_change()

    async def run(self) -> None:
        """Reads again and again, and forgets what no session can outlive."""
        loop = asyncio.get_running_loop()
        # Several processes start together and need not all purge together.
        purge_at = loop.time() + _PURGE_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - guards nothing
        while True:
            await asyncio.sleep(self._interval)
            try:
                async with asyncio.timeout(_READ_SECONDS):
                    await self.read()
                if loop.time() >= purge_at:
                    purge_at = loop.time() + _PURGE_SECONDS
                    self._forget(self._read_until - self._ttl - _MARGIN)
                    await session_ends.purge_internal(self._database, self._ttl + _MARGIN)
            except Exception as error:
                # Without PostgreSQL nothing can be ended, and what Redis has ended is refused by Redis.
                self._log.warning("fences_not_read", exc_info=error)

    def _forget(self, before: datetime) -> None:
        oldest = before.timestamp()
        self._users = {user_id: moment for user_id, moment in self._users.items() if moment > oldest}
        self._sessions = {name: moment for name, moment in self._sessions.items() if moment > oldest}
