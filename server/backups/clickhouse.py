"""ClickHouse: its own backups of the whole database, full or with what changed since the last full one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from server.backups.vault import BackupFailed, Manifest, Part, Vault
from storage.clickhouse.connect import ClickHouse

_SECONDS = 6 * 3600.0
_FILE = "database.tar"


async def save(vault: Vault, clickhouse: ClickHouse, directory: Path, backup_id: str, base: Manifest | None) -> Part:
    """Takes a backup.

    Args:
        vault: Where to.
        clickhouse: The database.
        directory: Where the server writes backups and this process reads them.
        backup_id: The backup that it becomes part of.
        base: The full backup to which it only adds what has changed since; None for a full one.
    """
    began = datetime.now(UTC)
    name, below = f"{backup_id}.tar", ""
    try:
        if base is not None:
            await _bring(vault, _part(base), directory / f"{base.id}.tar")
            below = f" SETTINGS base_backup = File('{base.id}.tar')"
        await clickhouse.execute(f"BACKUP DATABASE `{clickhouse.database}` TO File('{name}'){below}", timeout=_SECONDS)
        stored = await vault.put(f"backups/{backup_id}/clickhouse/{_FILE}", directory / name)
    finally:
        for each in (backup_id, *([base.id] if base is not None else [])):
            (directory / f"{each}.tar").unlink(missing_ok=True)
    return Part(
        store="clickhouse",
        base=base.id if base is not None else "",
        began=began,
        ended=datetime.now(UTC),
        files={_FILE: stored},
        details={"database": clickhouse.database},
    )


async def restore(vault: Vault, part: Part, base: Part | None, clickhouse: ClickHouse, directory: Path) -> None:
    """Fills an empty database from a backup; arguments as for `save`, `base` being the part of the full one."""
    try:
        await _bring(vault, part, directory / "restored.tar")
        below = ""
        if base is not None:
            await _bring(vault, base, directory / "full.tar")
            below = " SETTINGS base_backup = File('full.tar')"
        await clickhouse.execute(
            f"RESTORE DATABASE `{part.details['database']}` AS `{clickhouse.database}`"
            f" FROM File('restored.tar'){below}",
            timeout=_SECONDS,
        )
    finally:
        for name in ("restored.tar", "full.tar"):
            (directory / name).unlink(missing_ok=True)


async def _bring(vault: Vault, part: Part, target: Path) -> None:
    await vault.fetch(part.files[_FILE].key, target)


def _part(manifest: Manifest) -> Part:
    part = manifest.part("clickhouse")
    if part is None:
        raise BackupFailed(f"backup {manifest.id} does not hold ClickHouse")
    return part
