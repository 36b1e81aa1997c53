"""Taking whole backups, and checking what is stored."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from server.backups import clickhouse, objects, postgres, redis
from server.backups.vault import BackupFailed, Manifest, Part, Store, Vault
from server.settings import Settings
from server.stores import object_storage
from storage.clickhouse.connect import ClickHouse
from storage.postgres import monitoring
from storage.postgres.database import Database

FULL_EVERY = timedelta(hours=24)
"""A backup begins anew when the last full one is older than this."""

_REBUILT = "not stored: `mrm embed` makes the vectors again from PostgreSQL"
_KEYRING = "not stored, or a thief of the backups could open the credentials in them: keep a copy elsewhere"


def _quiet(text: str) -> None:
    del text


async def run(vault: Vault, settings: Settings, *, full: bool = False, say: Callable[[str], None] = _quiet) -> Manifest:
    """Takes a backup of every store: a full one when `full` or when the last one is a day old.

    Raises:
        BackupFailed: A store could not be saved; nothing of this backup counts then.
    """
    async with vault.alone("run"):
        return await _run(vault, settings, full, say)


async def _run(vault: Vault, settings: Settings, full: bool, say: Callable[[str], None]) -> Manifest:
    earlier = await vault.manifests()
    now = datetime.now(UTC)
    backup_id = f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    left_out = {"milvus": _REBUILT, "keyring": _KEYRING}

    def base(store: Store) -> Manifest | None:
        fulls = [m for m in earlier if (part := m.part(store)) is not None and not part.base]
        if full or not fulls:
            return None
        last = fulls[-1].part(store)
        return fulls[-1] if last is not None and now - last.began < FULL_EVERY else None

    parts: list[Part] = []

    def saved(part: Part) -> None:
        parts.append(part)
        say(f"{part.store}: {'what changed since ' + part.base if part.base else 'full'}")

    dsn, programs = settings.postgres.dsn.get_secret_value(), settings.backup.postgres_programs
    # The log first, so that the slot keeps it from before the backup on.
    await postgres.ship_log(vault, dsn, programs)
    saved(await postgres.save(vault, dsn, programs, backup_id, base("postgresql")))
    saved(await redis.save(vault, settings.redis.durable_dsn.get_secret_value(), backup_id))
    if settings.backup.clickhouse_directory is None:
        left_out["clickhouse"] = "MRM_BACKUP__CLICKHOUSE_DIRECTORY is not set"
    else:
        database = ClickHouse(settings.clickhouse.dsn.get_secret_value(), connections=1)
        try:
            directory = settings.backup.clickhouse_directory
            saved(await clickhouse.save(vault, database, directory, backup_id, base("clickhouse")))
        finally:
            await database.close()
    files = object_storage(settings.objects)
    if files is None:
        left_out["objects"] = "the service has no object storage"
    else:
        try:
            saved(await objects.save(vault, files, backup_id, earlier[-1] if earlier else None))
        finally:
            await files.close()
    await postgres.ship_log(vault, dsn, programs)
    manifest = Manifest(id=backup_id, parts=parts, left_out=left_out)
    await vault.write_manifest(manifest)
    postgresql = await Database.open(dsn, min_size=1, max_size=1)
    try:
        for part in parts:
            await monitoring.reach_internal(postgresql, f"backup.{part.store}")
    finally:
        await postgresql.close()
    return manifest


async def chosen(vault: Vault, backup_id: str = "", until: datetime | None = None) -> Manifest:
    """A backup by its id; else the newest, of those whose PostgreSQL part ended before `until`.

    Raises:
        BackupFailed: There is none.
    """
    for manifest in reversed(await vault.manifests()):
        part = manifest.part("postgresql")
        early = until is None or (part is not None and part.ended <= until)
        if backup_id == manifest.id or (not backup_id and early):
            if not early:
                raise BackupFailed(f"backup {backup_id} was taken after {until}: choose an earlier one")
            return manifest
    raise BackupFailed(f"there is no backup {backup_id}" if backup_id else "there is no backup from before that time")


async def base_of(vault: Vault, part: Part) -> Part | None:
    """The part of the full backup that one stands on, None if it stands alone.

    Raises:
        BackupFailed: It is gone.
    """
    if not part.base:
        return None
    found = (await chosen(vault, part.base)).part(part.store)
    if found is None:
        raise BackupFailed(f"backup {part.base} does not hold {part.store}")
    return found


async def verify(vault: Vault, manifest: Manifest) -> dict[str, str]:
    """Reads everything that a backup needs, and says by store what was found good.

    Raises:
        BackupFailed: Something is damaged or missing.
        storage.errors.NotFound: A file is gone.
    """
    found: dict[str, str] = {}
    for part in manifest.parts:
        base = await base_of(vault, part)
        files = [*part.files.values(), *(base.files.values() if base is not None else ())]
        for file in files:
            await vault.check(file)
        found[part.store] = f"{len(files)} files"
        if part.store == "postgresql":
            found[part.store] += f", {await postgres.check_log(vault, part)} files of the log behind it"
        if part.store == "objects":
            found[part.store] += f", {await objects.check(vault, part)} contents"
    return found
