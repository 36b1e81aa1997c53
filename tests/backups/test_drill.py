"""A backup of everything, restored beside to one second while others write, is what was there."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr

from server.backups import postgres
from server.backups.drill import drill
from server.backups.running import chosen, run, verify
from server.backups.vault import BackupFailed, Vault, opened_vault
from server.embedded import EmbeddedEngines
from server.sealing import new_entry
from server.settings import Settings, environment
from storage.clickhouse.connect import ClickHouse
from storage.errors import NotFound
from storage.objects.store import Objects
from storage.redis.clients import client
from tests.cli.conftest import Mrm
from tests.conftest import World

pytestmark = pytest.mark.bar_h

FULL = os.environ.get("MRM_BARS") == "full"
ROWS = 1_000_000 if FULL else 20_000
DRILLS = 5 if FULL else 1


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not below pytest's own directory, which only root may enter.
    made = Path(tempfile.mkdtemp(prefix="mrm-backup-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def settings(world: World, folder: Path) -> Settings:
    """Those of the service, with a place for backups."""
    found = world.settings.model_copy(deep=True)
    found.backup.url = (folder / "backups").as_uri()
    found.backup.keyring = SecretStr(new_entry("of-backups"))
    found.backup.spool = folder / "spool"
    found.backup.clickhouse_directory = world.clickhouse_backups
    found.objects.url = (folder / "files").as_uri()
    return found


@asynccontextmanager
async def writing(dsn: str) -> AsyncIterator[list[int]]:
    """Somebody who commits rows, each of its own, as fast as they go; gives the numbers that were acknowledged."""
    acked: list[int] = []
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "CREATE TABLE backup_probe (id bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp(), filling text)"
    )
    await connection.execute(
        "INSERT INTO backup_probe SELECT -i, clock_timestamp(), md5(i::text) FROM generate_series(1, $1::int) i", ROWS
    )

    async def write() -> None:
        while True:
            await connection.execute("INSERT INTO backup_probe VALUES ($1)", len(acked) + 1)
            acked.append(len(acked) + 1)
            await asyncio.sleep(0.005)

    task = asyncio.create_task(write())
    try:
        yield acked
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await connection.close()
        after = await asyncpg.connect(dsn)
        await after.execute("DROP TABLE backup_probe")
        await after.execute("SELECT pg_drop_replication_slot($1)", postgres.SLOT)
        await after.close()


async def test_a_drill_while_others_write_brings_everything_back(
    world: World, settings: Settings, folder: Path
) -> None:
    dsn = settings.postgres.dsn.get_secret_value()
    clickhouse = ClickHouse(settings.clickhouse.dsn.get_secret_value(), connections=1)
    files, redis = Objects(settings.objects.url or ""), client(settings.redis.durable_dsn.get_secret_value())
    try:
        for name, content in {"clients/a/one.csv": b"1", "clients/b/same.csv": b"1", "two.bin": b"2" * 100}.items():
            await files.put(name, content)
        await redis.set("backup_probe:1", "kept")
        await clickhouse.execute("CREATE TABLE backup_probe (n UInt64) ENGINE = MergeTree ORDER BY n")
        await clickhouse.execute("INSERT INTO backup_probe SELECT number FROM numbers({rows:UInt64})", {"rows": ROWS})
        async with writing(dsn) as acked, opened_vault(settings) as vault:
            first = await run(vault, settings, full=True)
            assert {part.store: part.base for part in first.parts} == dict.fromkeys(
                ("postgresql", "redis", "clickhouse", "objects"), ""
            )
            await clickhouse.execute("INSERT INTO backup_probe SELECT number + 10000000 FROM numbers(1000)")
            for number in range(DRILLS):
                report = await drill(vault, settings, folder / f"drill-{number}")
                assert not report.different
                assert report.equal["postgresql"] > 40
                assert report.equal["objects"] == 3
                assert report.equal["clickhouse"] > 3
                assert report.equal["redis"] > 0
                second = await chosen(vault, report.backup_id)
                assert [part.store for part in second.parts if part.base == first.id] == ["postgresql", "clickhouse"]
                print(
                    f"backup {report.backup_seconds:.1f} s, restore {report.restore_seconds:.1f} s,"
                    f" loss {report.data_loss.total_seconds():.1f} s, {report.equal}, changing {report.changing}"
                )
            contents = await vault.keys("objects/")
            assert len(contents) == 2, "equal contents are stored once"
            assert len(acked) > 100
            await damaged_is_found(vault, first.id)
    finally:
        await clickhouse.execute("DROP TABLE IF EXISTS backup_probe")
        await redis.delete("backup_probe:1")
        await redis.aclose()
        await clickhouse.close()
        await files.close()


@pytest.mark.skipif(not FULL, reason="starts a dozen processes; `make bars`")
async def test_the_commands_take_list_verify_and_restore_to_a_moment(
    world: World, settings: Settings, folder: Path
) -> None:
    mrm = Mrm(folder)
    variables = environment(settings)
    dsn = settings.postgres.dsn.get_secret_value()
    async with writing(dsn) as acked:
        assert (await mrm("backup", "run", **variables)).code == 0
        await asyncio.sleep(1)
        known, moment = len(acked), datetime.now(UTC)
        await asyncio.sleep(1)
        beyond = len(acked)
        logged = await mrm("backup", "wal", "--once", **variables)
        assert logged.out.startswith("stored until"), logged.err
        shown = await mrm("backup", "list", **variables)
        assert "postgresql,redis,clickhouse,objects" in shown.out, shown.err
        verified = await mrm("backup", "verify", **variables)
        assert verified.code == 0, verified.err
        back = await mrm("backup", "restore", folder / "back", "--until", moment.isoformat(), **variables)
        assert back.code == 0, back.err
        again = await mrm("backup", "restore", folder / "back", **variables)
        assert "not empty" in again.err
        late = await mrm("backup", "restore", folder / "late", "--until", "2199-01-01T00:00:00Z", **variables)
        assert "stored log ends before" in late.err
    engines = EmbeddedEngines(folder / "back", behind=False)
    try:
        connections = await engines.start()
        connection = await asyncpg.connect(connections.postgres_dsn)
        assert known <= await connection.fetchval("SELECT max(id) FROM backup_probe") < beyond
        assert await connection.fetchval("SELECT count(*) FROM backup_probe WHERE at > $1", moment) == 0
        await connection.close()
    finally:
        await engines.stop()


async def damaged_is_found(vault: Vault, backup_id: str) -> None:
    """One changed byte in a file that an incremental backup stands on, and a log that was lost."""
    manifest = await chosen(vault)
    assert "files of the log" in (await verify(vault, manifest))["postgresql"]
    key = f"backups/{backup_id}/postgresql/pg_wal.tar"
    before = await vault.read(key)
    await vault.objects.put(key, before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(BackupFailed, match="damaged"):
        await verify(vault, manifest)
    with pytest.raises(BackupFailed, match="damaged"):
        await vault.fetch(key, vault.spool / "never")
    await vault.objects.put(key, before[: len(before) // 2])
    with pytest.raises(BackupFailed, match="damaged"):
        await vault.fetch(key, vault.spool / "never")
    await vault.objects.delete(key)
    with pytest.raises(NotFound):
        await verify(vault, manifest)
