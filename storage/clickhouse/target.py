"""ClickHouse as a target of the migration runner, and the one table setting that follows the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from storage.clickhouse.connect import STORE, ClickHouse, ClickHouseError, open_client, translated
from storage.migrations import Applied, Migration, MigrationFailed

MIGRATIONS = Path(__file__).parent / "migrations"

_DDL_SECONDS = 120.0
_UNKNOWN_TABLE = frozenset({60, 81})
# Tables whose rows an acknowledgement or the exactness of figures rests on.
_DURABLE_TABLES = (
    "campaign_events",
    "campaign_events_quarantine",
    "dirty_slices",
    "campaign_metrics_slices",
    "campaign_metrics_hourly",
    "snapshot_campaigns",
)

_HISTORY = """CREATE TABLE IF NOT EXISTS schema_migrations
(
    version    String,
    checksum   String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(applied_at)
ORDER BY version"""


class ClickHouseTarget:
    """Migrates one ClickHouse database, and makes the database itself if the server has none of this name.

    ClickHouse has no transactions over DDL: a file must bear to be run again from its start.
    """

    def __init__(self, db: ClickHouse, dsn: str) -> None:
        self._db = db
        self._dsn = dsn

    @property
    def name(self) -> str:
        """Name of the engine."""
        return STORE

    async def history(self) -> Mapping[str, Applied]:
        """What was applied, by version; empty when there is no database or no history table yet."""
        try:
            rows = await self._db.fetch("SELECT version, checksum, applied_at FROM schema_migrations FINAL")
        except ClickHouseError as error:
            if error.code in _UNKNOWN_TABLE:
                return {}
            raise
        return {version: Applied(checksum, applied_at) for version, checksum, applied_at in rows}

    async def prepare(self) -> None:
        """Makes the database and the history table if they are missing."""
        with translated():
            client = await open_client(self._dsn, database="default")
            try:
                await client.command(f"CREATE DATABASE IF NOT EXISTS {self._db.database}")
            finally:
                await client.close()
        await self._db.execute(_HISTORY, timeout=_DDL_SECONDS)

    async def apply(self, migration: Migration) -> None:
        """Runs a migration statement by statement and records it last."""
        for number, statement in enumerate(migration.statements, start=1):
            sql = statement.replace("{database}", self._db.database)
            try:
                await self._db.execute(sql, timeout=_DDL_SECONDS)
            except ClickHouseError as error:
                raise MigrationFailed(f"{migration.version}, statement {number}: {error}") from None
        await self._db.insert_rows(
            "schema_migrations",
            {"version": "String", "checksum": "String"},
            [(migration.version, migration.checksum)],
        )


async def set_durability(db: ClickHouse, fsync_after_insert: bool) -> None:
    """Makes what is written survive power loss, or only the death of a process. Costs an fsync per part.

    Args:
        db: The migrated database.
        fsync_after_insert: Whether inserts wait until their files are on the disk.
    """
    wanted = int(fsync_after_insert)
    rows = await db.fetch(
        "SELECT name, match(create_table_query, 'fsync_after_insert = 1') FROM system.tables"
        " WHERE database = {database:String} AND name IN {names:Array(String)}",
        {"database": db.database, "names": list(_DURABLE_TABLES)},
    )
    for name, current in rows:
        if current != wanted:
            settings = f"fsync_after_insert = {wanted}, fsync_part_directory = {wanted}"
            await db.execute(f"ALTER TABLE {name} MODIFY SETTING {settings}")
