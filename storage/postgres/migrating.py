"""PostgreSQL as a target of migrations, and the lock under which all migrations run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from storage.errors import StoreUnavailable
from storage.migrations import Applied, Lock, Migration, MigrationFailed, MigrationLocked, Runner, load
from storage.postgres.failures import STORE, translated

DIRECTORY = Path(__file__).with_name("migrations")
"""Where PostgreSQL's migrations are."""

_LOCK_KEY = 0x4D524D31
_POLL_SECONDS = 0.05
_CONNECT_SECONDS = 10.0

_CREATE_HISTORY = """
CREATE TABLE IF NOT EXISTS schema_migrations (
  version TEXT PRIMARY KEY,
  checksum TEXT NOT NULL,
  applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE schema_migrations IS 'Which migrations this database has, by file.'"""

# Whether anything was ever applied here.
_HAS_HISTORY = "SELECT to_regclass('schema_migrations') IS NOT NULL"

# What was applied.
_HISTORY = "SELECT version, checksum, applied_at FROM schema_migrations"

# Records a migration; a second one in the same moment waits here and fails.
_RECORD = "INSERT INTO schema_migrations (version, checksum) VALUES ($1, $2)"

# Takes the lock of all migrations, for as long as the session lasts.
_TRY_LOCK = "SELECT pg_try_advisory_lock($1)"


class PostgresTarget:
    """One PostgreSQL database, over a direct connection: a session's settings must survive between transactions."""

    name = STORE

    def __init__(self, dsn: str, *, lock_seconds: float = 4.0, statement_seconds: float = 300.0) -> None:
        """Names the database.

        Args:
            dsn: Where it is; not through a pooler.
            lock_seconds: The longest a statement may wait for a table that callers are using: while it waits, they
                queue up behind it. A migration that meets this limit fails and can be run again.
            statement_seconds: The longest a statement may run.
        """
        self._dsn = dsn
        self._lock_seconds = lock_seconds
        self._statement_seconds = statement_seconds

    async def history(self) -> dict[str, Applied]:
        """What was applied, by version."""
        async with _connected(self._dsn) as connection:
            with translated():
                if not await connection.fetchval(_HAS_HISTORY):
                    return {}
                rows = await connection.fetch(_HISTORY)
        return {version: Applied(checksum, applied_at) for version, checksum, applied_at in rows}

    async def prepare(self) -> None:
        """Makes the history table if there is none."""
        async with _connected(self._dsn) as connection:
            with translated():
                await connection.execute(_CREATE_HISTORY)

    async def apply(self, migration: Migration) -> None:
        """Runs a migration and records it, in one transaction unless it says otherwise.

        Raises:
            MigrationFailed: A statement failed.
        """
        async with _connected(self._dsn) as connection:
            try:
                await self._limit(connection)
                if migration.transactional:
                    async with connection.transaction():
                        await connection.execute(_RECORD, migration.version, migration.checksum)
                        await connection.execute(migration.sql)
                else:
                    for statement in migration.statements:
                        await connection.execute(statement)
                    await connection.execute(_RECORD, migration.version, migration.checksum)
            except asyncpg.PostgresError as error:
                # The text is about a file of our own and holds no caller's data; without it nobody could repair this.
                raise MigrationFailed(f"{migration.version}: {error.sqlstate} {error.message}") from None

    async def _limit(self, connection: Any) -> None:
        await connection.execute(f"SET lock_timeout = {round(self._lock_seconds * 1000)}")
        await connection.execute(f"SET statement_timeout = {round(self._statement_seconds * 1000)}")


def migration_lock(dsn: str, *, wait_seconds: float = 120.0) -> Lock:
    """Makes the lock that one run of migrations holds, for whichever engine.

    It is polled for: a session that waits inside PostgreSQL would hold up CREATE INDEX CONCURRENTLY, which waits for
    every older snapshot, for ever.

    Args:
        dsn: Where PostgreSQL is; not through a pooler.
        wait_seconds: How long to wait for another run to end.
    """

    @asynccontextmanager
    async def locked() -> AsyncIterator[None]:
        async with _connected(dsn) as connection:
            try:
                async with asyncio.timeout(wait_seconds):
                    await _take(connection)
            except TimeoutError:
                raise MigrationLocked("another run of migrations has not ended in time") from None
            yield

    return locked


async def _take(connection: Any) -> None:
    with translated():
        while not await connection.fetchval(_TRY_LOCK, _LOCK_KEY):  # noqa: ASYNC110 - waits for another process
            await asyncio.sleep(_POLL_SECONDS)


def postgres_runner(dsn: str) -> Runner:
    """The runner of PostgreSQL's own migrations."""
    return Runner(PostgresTarget(dsn), load(DIRECTORY), migration_lock(dsn))


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Any]:
    """Lends a connection of its own; closing it releases its locks."""
    with translated():
        try:
            connection = await asyncpg.connect(
                dsn, timeout=_CONNECT_SECONDS, server_settings={"application_name": "mrm-migrate"}
            )
        except TimeoutError:
            raise StoreUnavailable(STORE, "connect timeout") from None
    try:
        yield connection
    finally:
        await connection.close()
