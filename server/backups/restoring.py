"""Restoring a whole backup into a fresh data directory of embedded engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

from server.backups import clickhouse, objects, postgres, redis
from server.backups.running import base_of
from server.backups.vault import BackupFailed, Manifest, Vault
from server.embedded import Connections, EmbeddedEngines
from server.embedded.clickhouse import ClickHouseEngine
from server.embedded.directory import DataDirectory
from server.embedded.postgres import PostgresEngine
from storage.clickhouse.connect import ClickHouse
from storage.objects.store import Objects
from storage.postgres import session_ends
from storage.postgres.database import Database


@asynccontextmanager
async def restored(
    vault: Vault, manifest: Manifest, folder: Path, until: datetime | None = None
) -> AsyncIterator[Connections]:
    """Restores a backup and runs engines on it for the length of a block; the directory stays.

    PostgreSQL recovers to `until`, or as far as its log is stored; Redis, ClickHouse and the objects come back as they
    were saved. Everybody has to sign in again: a session that was ended since must not come back to life.

    Args:
        vault: Where from.
        manifest: Which backup.
        folder: The data directory, empty or not there yet.
        until: The moment to which PostgreSQL recovers.

    Raises:
        BackupFailed: It cannot be done.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BackupFailed(f"{folder} is not empty: a backup is restored into a directory of its own")
    await _lay_out(vault, manifest, folder, until)
    engines = EmbeddedEngines(folder, behind=False)
    try:
        connections = await engines.start()
        part = manifest.part("clickhouse")
        if part is not None:
            await _fill_clickhouse(vault, manifest, connections, folder)
        part = manifest.part("objects")
        if part is not None:
            files = Objects((folder / "objects").resolve().as_uri())
            try:
                await objects.restore(vault, part, files)
            finally:
                await files.close()
        database = await Database.open(connections.postgres_dsn, min_size=1, max_size=1)
        try:
            async with database.transaction("end_sessions") as tx:
                await session_ends.end_all(tx)
        finally:
            await database.close()
        yield connections
    finally:
        await engines.stop()


async def _lay_out(vault: Vault, manifest: Manifest, folder: Path, until: datetime | None) -> None:
    """What has to lie there before the engines start."""
    directory = DataDirectory(folder)
    directory.open()
    try:
        part = manifest.part("postgresql")
        if part is None:
            raise BackupFailed(f"backup {manifest.id} does not hold PostgreSQL")
        await postgres.restore(vault, part, await base_of(vault, part), PostgresEngine(directory), until)
        part = manifest.part("redis")
        if part is not None:
            await redis.restore(vault, part, folder / "valkey")
    finally:
        directory.close()


async def _fill_clickhouse(vault: Vault, manifest: Manifest, connections: Connections, folder: Path) -> None:
    part = manifest.part("clickhouse")
    assert part is not None
    database = ClickHouse(connections.clickhouse_dsn, connections=1)
    try:
        directory = folder.resolve() / ClickHouseEngine.name / "backups"
        await clickhouse.restore(vault, part, await base_of(vault, part), database, directory)
    finally:
        await database.close()
