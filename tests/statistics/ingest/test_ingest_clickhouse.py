"""The ClickHouse connection and its migrations, on the engine that ingest's tests have running."""

import asyncio
import time
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from storage import deadline
from storage.clickhouse.connect import ClickHouse, ClickHouseError, database_of
from storage.clickhouse.target import _DURABLE_TABLES as DURABLE_TABLES
from storage.clickhouse.target import MIGRATIONS, ClickHouseTarget, set_durability
from storage.errors import StoreUnavailable
from storage.migrations import MigrationFailed, Runner, load, parse
from storage.postgres.migrating import migration_lock
from tests.statistics.ingest.support import IngestWorld


async def test_errors_have_codes_and_no_text(ingest_world: IngestWorld) -> None:
    with pytest.raises(ClickHouseError) as caught:
        await ingest_world.clickhouse.fetch("SELECT secret_column FROM campaigns_dim")
    assert (caught.value.code, caught.value.name) == (47, "UNKNOWN_IDENTIFIER")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_our_own_rejections_have_a_kind(ingest_world: IngestWorld) -> None:
    for message, kind in (("MRM_REJECT:time", "time"), ("something else", None)):
        with pytest.raises(ClickHouseError) as caught:
            await ingest_world.clickhouse.fetch(f"SELECT throwIf(1, '{message}')")
        assert caught.value.rejection == kind


async def test_a_server_out_of_reach_is_unavailable() -> None:
    clickhouse = ClickHouse("http://mrm:wrong-password@127.0.0.1:1/mrm")
    with pytest.raises(StoreUnavailable) as caught:
        await clickhouse.fetch("SELECT 1")
    assert caught.value.store == "clickhouse"
    assert "127.0.0.1" not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        await clickhouse.ping()
    await clickhouse.close()


async def test_a_wrong_password_is_unavailable(ingest_world: IngestWorld) -> None:
    parts = urlsplit(ingest_world.connections.clickhouse_dsn)
    clickhouse = ClickHouse(f"http://{parts.username}:nope@127.0.0.1:{parts.port}/mrm")
    with pytest.raises(StoreUnavailable):
        await clickhouse.ping()
    await clickhouse.close()


async def test_calls_end_with_the_deadline(ingest_world: IngestWorld) -> None:
    await ingest_world.clickhouse.ping()
    token = deadline.set_deadline(asyncio.get_running_loop().time() + 0.3)
    try:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await ingest_world.clickhouse.fetch("SELECT sleepEachRow(1) FROM numbers(30) SETTINGS max_block_size = 1")
        assert time.monotonic() - begun < 3
    finally:
        deadline.reset_deadline(token)


async def test_the_server_gives_up_by_itself(ingest_world: IngestWorld) -> None:
    with pytest.raises(TimeoutError):
        await ingest_world.clickhouse.fetch(
            "SELECT sleepEachRow(1) FROM numbers(30)", settings={"max_execution_time": 1, "max_block_size": 1}
        )


async def test_long_parameters_and_named_queries(ingest_world: IngestWorld) -> None:
    ids = [uuid4() for _ in range(3000)]
    rows = await ingest_world.clickhouse.fetch(
        "SELECT length({ids:Array(UUID)}), {text:String}", {"ids": ids, "text": "a'b\\c"}, query_id=uuid4().hex
    )
    assert rows == [(3000, "a'b\\c")]


async def test_reads_cannot_write(ingest_world: IngestWorld) -> None:
    with pytest.raises(ClickHouseError) as caught:
        await ingest_world.clickhouse.fetch("INSERT INTO campaigns_dim (version) VALUES (1)")
    assert caught.value.name == "READONLY"


def test_the_url_must_name_a_database_of_its_own() -> None:
    assert database_of("http://u:p@host:8123/mrm?x=1") == "mrm"
    for dsn in ("http://host:8123", "http://host:8123/", "http://host:8123/a-b", "http://host:8123/a/b"):
        with pytest.raises(ValueError, match="name of a database"):
            database_of(dsn)


async def test_migrations_make_their_database_and_can_be_run_again(ingest_world: IngestWorld) -> None:
    name = f"t{uuid4().hex}"
    dsn = ingest_world.connections.clickhouse_dsn.rsplit("/", 1)[0] + "/" + name
    clickhouse = ClickHouse(dsn)
    target = ClickHouseTarget(clickhouse, dsn)
    runner = Runner(target, load(MIGRATIONS), migration_lock(ingest_world.connections.postgres_dsn))
    assert [status.state for status in await runner.status()] == ["pending"] * len(load(MIGRATIONS))
    assert await runner.migrate() == [migration.version for migration in load(MIGRATIONS)]
    assert await runner.migrate() == []
    await runner.check()
    # As after a run that died half-way.
    for migration in load(MIGRATIONS):
        await target.apply(migration)
    with pytest.raises(MigrationFailed, match="statement 2"):
        await target.apply(parse("0999_bad", "SELECT 1;\nSELECT nothing;\n"))
    for wanted in (True, True, False):
        await set_durability(clickhouse, wanted)
        rows = await clickhouse.fetch(
            "SELECT countIf(match(create_table_query, 'fsync_after_insert = 1')) FROM system.tables"
            " WHERE database = {d:String}",
            {"d": name},
        )
        assert rows == [(len(DURABLE_TABLES) if wanted else 0,)]
    await clickhouse.execute(f"DROP DATABASE {name}")
    await clickhouse.close()
