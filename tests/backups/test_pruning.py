"""Old backups go, and with them only what no younger one needs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.backups.postgres import check_log
from server.backups.pruning import prune
from server.backups.vault import BackupFailed, Manifest, Part, Vault
from server.sealing import KeyRing, new_entry
from storage.objects.store import Objects

pytestmark = pytest.mark.bar_h

SYSTEM = "7000000000000000001"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    spool = tmp_path / "spool"
    spool.mkdir()
    return Vault(Objects((tmp_path / "vault").as_uri()), KeyRing.parse(new_entry("k")), spool)


def segment(number: int) -> str:
    return f"00000001{0:08X}{number:08X}"


async def backup(vault: Vault, days: int, number: int, held: list[str], base: str = "", whole: bool = True) -> str:
    """A backup of so many days ago that begins at a file of the log and holds these contents."""
    ended = datetime.now(UTC) - timedelta(days=days)
    backup_id, source = f"{ended:%Y%m%dT%H%M%S}-{number:06x}", vault.spool / "source"
    entries = {name: {"etag": "e", "sha256": name, "stored": f"objects/aa/{name}"} for name in held}
    source.write_text(json.dumps(entries))
    listing = await vault.put(f"backups/{backup_id}/objects/list.json", source)
    dump = await vault.put(f"backups/{backup_id}/postgresql/base.tar", source)
    for name in held:
        await vault.put(f"objects/aa/{name}", source)
    await vault.put(f"wal/{SYSTEM}/{segment(number)}", source)
    details = {"segment": segment(number), "system": SYSTEM}
    parts = [
        Part(store="postgresql", base=base, began=ended, ended=ended, files={"base.tar": dump}, details=details),
        Part(store="objects", began=ended, ended=ended, files={"list.json": listing}),
    ]
    if whole:
        await vault.write_manifest(Manifest(id=backup_id, parts=parts, left_out={}))
    return backup_id


async def test_what_younger_backups_need_stays(vault: Vault) -> None:
    first = await backup(vault, 50, 1, ["old", "shared"])
    torn = await backup(vault, 45, 2, ["torn"], whole=False)
    full = await backup(vault, 31, 3, ["of-full"])
    added = await backup(vault, 29, 4, ["shared", "new"], base=full)
    await vault.put(f"wal/{SYSTEM}/00000002.history", vault.spool / "source")
    gone = await prune(vault, timedelta(days=30))
    assert (gone.backups, gone.contents, gone.log) == ([first], 2, 2)
    assert [manifest.id for manifest in await vault.manifests()] == [full, added]
    assert await vault.keys("objects/") == [f"objects/aa/{name}" for name in ("new", "of-full", "shared")]
    assert await vault.keys("wal/") == [f"wal/{SYSTEM}/{name}" for name in (segment(3), segment(4), "00000002.history")]
    assert not await vault.keys(f"backups/{first}/")
    assert not await vault.keys(f"backups/{torn}/")
    assert await prune(vault, timedelta(days=30)) == type(gone)([], 0, 0)


async def test_the_newest_backup_stays_however_old_it_is(vault: Vault) -> None:
    assert (await prune(vault, timedelta(days=1))).backups == []
    older, newest = await backup(vault, 400, 1, []), await backup(vault, 300, 2, ["kept"])
    assert (await prune(vault, timedelta(days=1))).backups == [older]
    assert [manifest.id for manifest in await vault.manifests()] == [newest]
    assert await vault.keys("objects/") == ["objects/aa/kept"]


async def test_a_gap_in_the_log_is_found(vault: Vault) -> None:
    for number in (5, 6, 8):
        await backup(vault, 10 - number, number, [])
    first, second, third = (manifest.parts[0] for manifest in await vault.manifests())
    assert await check_log(vault, third) == 1
    for part in (first, second):
        with pytest.raises(BackupFailed, match="gap after its file 6"):
            await check_log(vault, part)
    await vault.objects.delete(f"wal/{SYSTEM}/{segment(8)}")
    with pytest.raises(BackupFailed, match="no log"):
        await check_log(vault, third)
