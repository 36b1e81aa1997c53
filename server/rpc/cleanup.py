"""Forgets stored replies whose time is over."""

import asyncio

from server.rpc import logs
from storage.errors import StoreError
from storage.postgres import idempotency
from storage.postgres.database import Database

_BATCH = 10_000


class ReplyCleaner:
    """Deletes expired replies of mutations, so that the table holds one day's.

    Every process does it, without a lease: each deletion skips what another one holds, so together they are no slower
    and none of them has to be the one that lives.

    Args:
        database: Where the replies are.
        interval: Seconds between two looks.
    """

    def __init__(self, database: Database, interval: float = 600.0) -> None:
        self._database = database
        self._interval = interval
        self._log = logs.get("reply_cleaner")

    async def run(self) -> None:
        """Cleans until cancelled, for the first time at once. Survives the loss of the store."""
        while True:
            try:
                while await idempotency.purge_expired(self._database, _BATCH) == _BATCH:
                    pass
            except (StoreError, TimeoutError) as error:
                self._log.warning("replies_not_cleaned", exc_info=error)
            await asyncio.sleep(self._interval)
