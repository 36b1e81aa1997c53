"""The rehearsal: a backup of what is there, restored beside it to one second, and compared with it."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg

from server.backups import postgres
from server.backups.restoring import restored
from server.backups.running import run, verify
from server.backups.vault import BackupFailed, Vault
from server.settings import Settings
from storage.clickhouse.connect import ClickHouse
from storage.redis.clients import client

_LOCK_SECONDS = 5
_ATTEMPTS = 5

Print = dict[str, str]
"""By table or kind of key: count and checksum."""


@dataclass
class Report:
    """What a drill found.

    Attributes:
        backup_id: The backup that was restored.
        moment: To which PostgreSQL was recovered.
        equal: Things that came back exactly, by store.
        different: Things that did not, with what was and what came back.
        changing: Things that were written to while they were saved, so that there is nothing to compare with.
        backup_seconds: How long the backup took.
        data_loss: What a failure would have lost at the moment of the drill: time since the log was last stored.
        restore_seconds: From nothing to engines that answer.
    """

    backup_id: str
    moment: datetime
    backup_seconds: float
    data_loss: timedelta
    restore_seconds: float = 0.0
    equal: dict[str, int] = field(default_factory=dict)
    different: list[str] = field(default_factory=list)
    changing: list[str] = field(default_factory=list)

    def compare(self, store: str, before: Print, after: Print, back: Print) -> None:
        """Notes how what came back compares with what was there before and after it was saved."""
        for name in sorted({*before, *after, *back}):
            was = before.get(name, "nothing")
            if was != after.get(name, "nothing"):
                self.changing.append(f"{store} {name}")
            elif was == back.get(name, "nothing"):
                self.equal[store] = self.equal.get(store, 0) + 1
            else:
                self.different.append(f"{store} {name}: {was}, came back as {back.get(name, 'nothing')}")


async def drill(vault: Vault, settings: Settings, folder: Path, *, full: bool = False) -> Report:
    """Takes a backup, restores it into a fresh directory and compares, while others go on writing.

    PostgreSQL is compared exactly: writers wait some milliseconds while one moment is marked (behind a transaction that
    lasts long up to five seconds, five times), and the copy is recovered to that moment. The other stores are compared
    where nothing was written between the start and end of their backup.

    Args:
        vault: Where to and from.
        settings: The installation.
        folder: Where to restore; it stays.
        full: Whether the backup begins anew; otherwise as the schedule would.

    Raises:
        BackupFailed: It cannot be taken or restored.
    """
    dsn, programs = settings.postgres.dsn.get_secret_value(), settings.backup.postgres_programs
    redis_dsn, clickhouse_dsn = (
        settings.redis.durable_dsn.get_secret_value(),
        settings.clickhouse.dsn.get_secret_value(),
    )
    keys, tables = await _of_redis(redis_dsn), await _of_clickhouse(clickhouse_dsn)
    started = time.monotonic()
    manifest = await run(vault, settings, full=full)
    took = time.monotonic() - started
    keys_after, tables_after = await _of_redis(redis_dsn), await _of_clickhouse(clickhouse_dsn)
    await verify(vault, manifest)
    moment, rows, now = await _marked(dsn)
    stored = await postgres.stored_until(vault)
    assert stored is not None
    report = Report(manifest.id, moment, took, now - stored)
    await postgres.ship_log(vault, dsn, programs)
    started = time.monotonic()
    async with restored(vault, manifest, folder, moment) as connections:
        report.restore_seconds = time.monotonic() - started
        connection = await asyncpg.connect(connections.postgres_dsn)
        try:
            back = await _of_postgres(connection)
        finally:
            await connection.close()
        # The restoring itself ends all sessions.
        for found in (rows, back):
            found.pop("public.session_epoch", None)
        report.compare("postgresql", rows, rows, back)
        report.compare("redis", keys, keys_after, await _of_redis(connections.redis_dsn))
        if manifest.part("clickhouse") is not None:
            report.compare("clickhouse", tables, tables_after, await _of_clickhouse(connections.clickhouse_dsn))
    part = manifest.part("objects")
    if part is not None:
        # Each was compared with its checksum on its way back.
        report.equal["objects"] = int(part.details["objects"])
    return report


async def _marked(dsn: str) -> tuple[datetime, Print, datetime]:
    """A moment between commits, everything in PostgreSQL as of then, and the time after a later commit."""
    blocker, reader = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        names = ", ".join(await _tables(reader))
        for _ in range(_ATTEMPTS):
            with suppress(asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                async with reader.transaction(isolation="repeatable_read", readonly=True):
                    async with blocker.transaction():
                        await blocker.execute(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
                        await blocker.execute(f"LOCK TABLE {names} IN SHARE MODE")
                        # The first statement takes the snapshot; nobody can commit a row between it and the clock.
                        moment = await reader.fetchval("SELECT clock_timestamp()")
                    found = await _of_postgres(reader)
                # Recovery stops before the first commit beyond the moment; this is one.
                await blocker.execute("SELECT pg_logical_emit_message(true, 'mrm.backup', '', true)")
                return moment, found, await blocker.fetchval("SELECT clock_timestamp()")
    finally:
        await blocker.close()
        await reader.close()
    raise BackupFailed("a transaction in PostgreSQL lasts too long to mark a moment: try again")


async def _tables(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    """Tables whose rows outlast a crash."""
    rows = await connection.fetch(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname !~ '^pg_'"
        " AND n.nspname <> 'information_schema'"
        " ORDER BY 1"
    )
    return [row[0] for row in rows]


async def _of_postgres(connection: asyncpg.Connection[asyncpg.Record]) -> Print:
    found: Print = {}
    for name in await _tables(connection):
        count, total = await connection.fetchrow(
            f"SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {name} t"  # noqa: S608
        )
        found[name] = f"{count} rows, checksum {total}"
    return found


async def _of_clickhouse(dsn: str) -> Print:
    clickhouse = ClickHouse(dsn, connections=1)
    try:
        names = await clickhouse.fetch(
            # Merges go on while nothing is written; what a table of the latest rows says does not change by them.
            "SELECT name, if(engine LIKE '%Replacing%', ' FINAL', '') FROM system.tables"
            " WHERE database = currentDatabase() AND engine LIKE '%MergeTree' ORDER BY 1"
        )
        found: Print = {}
        for name, final in names:
            rows = await clickhouse.fetch(
                f"SELECT count(), sum(cityHash64(*)) FROM `{name}`{final}",  # noqa: S608 - a name of our own schema
                timeout=3600,
            )
            found[name] = f"{rows[0][0]} rows, checksum {rows[0][1]}"
        return found
    finally:
        await clickhouse.close()


async def _of_redis(dsn: str) -> Print:
    """How many keys of each kind do not expire: those that do are other ones a moment later."""
    redis = client(dsn)
    try:
        found: dict[str, list[bytes]] = {}
        async for key in redis.scan_iter(count=1000):
            name = key if isinstance(key, bytes) else key.encode()
            if await redis.ttl(key) == -1:
                found.setdefault(name.partition(b":")[0].decode(errors="replace"), []).append(name)
        return {kind: f"{len(names)} keys, checksum {_folded(names)}" for kind, names in found.items()}
    finally:
        await redis.aclose()


def _folded(names: list[bytes]) -> str:
    return hashlib.sha256(b"\0".join(sorted(names))).hexdigest()[:16]
