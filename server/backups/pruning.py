"""Forgetting old backups, and nothing that a younger one still needs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from server.backups import objects, postgres
from server.backups.vault import Manifest, Vault


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted.

    Attributes:
        backups: Ids of the backups that are gone.
        contents: Files of the object storage that no backup holds any more.
        log: Files of PostgreSQL's log from before the oldest backup that is left.
    """

    backups: list[str]
    contents: int
    log: int


async def prune(vault: Vault, keep: timedelta) -> Pruned:
    """Deletes backups that ended longer ago than `keep`; the newest one stays however old it is.

    A full backup stays as long as one that stands on it. Run it on the machine that takes the backups: it waits for one
    that is being taken there, and knows nothing of others.
    """
    async with vault.alone("run"):
        oldest = datetime.now(UTC) - keep
        found = await vault.manifests()
        young = [manifest for manifest in found if _ended(manifest) >= oldest] or found[-1:]
        needed = {manifest.id for manifest in young} | {part.base for manifest in young for part in manifest.parts}
        left = [manifest for manifest in found if manifest.id in needed]
        gone = [manifest for manifest in found if manifest.id not in needed]
        for manifest in gone:
            # Its manifest first: a backup of which something is missing must not look whole.
            await vault.forget_manifest(manifest.id)
        await _delete_files(vault, {manifest.id for manifest in left}, f"{oldest:%Y%m%dT%H%M%S}")
        if not left:
            return Pruned([], 0, 0)
        contents = await _delete_contents(vault, left)
        log = 0
        parts = [part for manifest in left if (part := manifest.part("postgresql")) is not None]
        for system in {part.details["system"] for part in parts}:
            log += await postgres.prune_log(vault, [part for part in parts if part.details["system"] == system])
        return Pruned([manifest.id for manifest in gone], contents, log)


async def _delete_files(vault: Vault, left: set[str], oldest: str) -> None:
    """Files of backups that are gone, and old ones of backups that never became whole."""
    for key in await vault.keys("backups/"):
        backup_id = key.split("/")[1]
        if backup_id not in left and backup_id < oldest:
            await vault.objects.delete(key)


async def _delete_contents(vault: Vault, left: list[Manifest]) -> int:
    held: set[str] = set()
    for manifest in left:
        part = manifest.part("objects")
        if part is not None:
            held |= {entry["stored"] for entry in (await objects.listed(vault, part)).values()}
    dead = [key for key in await vault.keys("objects/") if key not in held]
    for key in dead:
        await vault.objects.delete(key)
    return len(dead)


def _ended(manifest: Manifest) -> datetime:
    return max(part.ended for part in manifest.parts)
