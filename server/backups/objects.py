"""Object storage: a list of everything in it with checksums, and a copy of each content, stored once."""

from __future__ import annotations

import hashlib
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from server.backups.vault import BackupFailed, File, Manifest, Part, Vault
from storage.errors import NotFound
from storage.objects.store import Objects

_LIST = "list.json"
_PAGE = 1000
Listed = dict[str, dict[str, str]]
"""By key: `etag` as it was, `sha256` of the bytes, `stored` where the copy lies."""


async def save(vault: Vault, objects: Objects, backup_id: str, before: Manifest | None) -> Part:
    """Copies what the last backup does not have yet, and lists everything.

    Args:
        vault: Where to.
        objects: The service's storage.
        backup_id: The backup that it becomes part of.
        before: The last backup; what has not changed since is not read again.
    """
    began = datetime.now(UTC)
    earlier = before.part("objects") if before is not None else None
    known = await listed(vault, earlier) if earlier is not None else {}
    copies = {entry["sha256"]: entry["stored"] for entry in known.values()}
    found: Listed = {}
    after = ""
    while page := await objects.list("", after=after, limit=_PAGE):
        for each in page:
            entry = known.get(each.key)
            if entry is None or entry["etag"] != each.etag:
                try:
                    entry = await _copy(vault, objects, each.key, each.etag, copies)
                except NotFound:
                    # Deleted or replaced since it was listed: it is in the next backup as it is then.
                    continue
            found[each.key] = entry
        after = page[-1].key
    with tempfile.NamedTemporaryFile("w", dir=vault.spool) as text:
        json.dump(found, text)
        text.flush()
        stored = await vault.put(f"backups/{backup_id}/objects/{_LIST}", Path(text.name))
    return Part(
        store="objects",
        began=began,
        ended=datetime.now(UTC),
        files={_LIST: stored},
        details={"objects": str(len(found))},
    )


async def listed(vault: Vault, part: Part) -> Listed:
    """Everything that was in the storage."""
    with tempfile.NamedTemporaryFile(dir=vault.spool) as file:
        await vault.fetch(part.files[_LIST].key, Path(file.name))
        found: Listed = json.loads(Path(file.name).read_bytes())
        return found


async def check(vault: Vault, part: Part) -> int:
    """Reads every copy back and returns how many there are.

    Raises:
        BackupFailed: One is damaged, or not what was listed.
    """
    copies = {entry["stored"]: entry["sha256"] for entry in (await listed(vault, part)).values()}
    for stored, digest in copies.items():
        with tempfile.NamedTemporaryFile(dir=vault.spool) as file:
            await _fetch(vault, stored, digest, Path(file.name))
    return len(copies)


async def restore(vault: Vault, part: Part, objects: Objects) -> int:
    """Puts everything back where it was, checked against its checksum; returns how many objects."""
    found = await listed(vault, part)
    for key, entry in found.items():
        with tempfile.NamedTemporaryFile(dir=vault.spool) as file:
            await _fetch(vault, entry["stored"], entry["sha256"], Path(file.name))
            await objects.put(key, Path(file.name))
    return len(found)


async def _copy(vault: Vault, objects: Objects, key: str, etag: str, copies: dict[str, str]) -> dict[str, str]:
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=vault.spool) as file:
        async for piece in objects.get(key, etag=etag):
            digest.update(piece)
            file.write(piece)
        file.flush()
        sha256 = digest.hexdigest()
        if sha256 not in copies:
            stored: File = await vault.put(f"objects/{sha256[:2]}/{sha256}", Path(file.name))
            copies[sha256] = stored.key
    return {"etag": etag, "sha256": sha256, "stored": copies[sha256]}


async def _fetch(vault: Vault, stored: str, sha256: str, target: Path) -> None:
    await vault.fetch(stored, target)
    with target.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise BackupFailed(f"{stored} is not what was listed")
