"""The stores that ingest needs, started once."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from server.embedded import EmbeddedEngines
from server.statistics.relay import CampaignDirectory, CampaignRelay
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.target import MIGRATIONS, ClickHouseTarget
from storage.migrations import Runner, load
from storage.postgres.database import Database
from storage.postgres.migrating import migration_lock, postgres_runner
from tests.conftest import unsynced
from tests.statistics.ingest.support import IngestWorld


@pytest.fixture(scope="session")
async def ingest_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[IngestWorld]:
    """Engines of ingest's own, which its tests may kill."""
    engines = EmbeddedEngines(tmp_path_factory.mktemp("ingest") / "data")
    connections = await engines.start()
    try:
        await unsynced(connections)
        database = await Database.open(connections.postgres_dsn, min_size=1, max_size=8)
        clickhouse = ClickHouse(connections.clickhouse_dsn)
        await postgres_runner(connections.postgres_dsn).migrate()
        target = ClickHouseTarget(clickhouse, connections.clickhouse_dsn)
        await Runner(target, load(MIGRATIONS), migration_lock(connections.postgres_dsn)).migrate()
        relay = CampaignRelay(database, clickhouse, holder=uuid4().hex, lease_ttl=2.0)
        directory = CampaignDirectory(database, clickhouse)
        yield IngestWorld(engines, connections, database, clickhouse, relay, directory)
        await clickhouse.close()
        await database.close()
    finally:
        await engines.stop()
