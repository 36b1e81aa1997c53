"""Stores in which each test is alone, on engines started once per run, and ways to fill them past the API."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import asyncpg
import pytest

from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.embedded import Connections, EmbeddedEngines
from server.rpc.call import Call
from server.statistics.query import QueryRpcs
from storage.clickhouse import campaigns_dim
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.target import MIGRATIONS, ClickHouseTarget
from storage.migrations import Runner, load
from storage.postgres import campaigns, clients, projects
from storage.postgres.database import Database
from storage.postgres.migrating import migration_lock, postgres_runner
from tests.conftest import unsynced

_COLUMNS = {
    "client_id": "UUID",
    "campaign_id": "UUID",
    "event_time": "DateTime64(6, 'UTC')",
    "event_id": "UUID",
    "project_id": "UUID",
    "platform": "LowCardinality(String)",
    "event_type": "Enum8('impression' = 1, 'click' = 2, 'conversion' = 3)",
    "cost": "Decimal(18, 6)",
    "revenue": "Decimal(18, 6)",
    "conversions": "Decimal(18, 6)",
    "currency": "LowCardinality(String)",
}


class Queries(QueryRpcs):
    """The RPCs, whose replies are messages again."""

    async def ask(self, request: pb.QueryStatisticsRequest, call: Call) -> pb.QueryStatisticsResponse:
        """QueryStatistics."""
        return pb.QueryStatisticsResponse.FromString(await self.QueryStatistics(request, call))


@dataclass
class Stores:
    """A migrated and empty database in each engine."""

    database: Database
    clickhouse: ClickHouse
    redis_dsn: str
    postgres_dsn: str
    clickhouse_dsn: str
    _names: "itertools.count[int]" = field(default_factory=itertools.count)

    async def client(self, zone: str = "UTC") -> UUID:
        """A client."""
        made = await clients.create(
            self.database, name=f"Client {next(self._names)}", type="direct_advertiser", settings={"timezone": zone}
        )
        return made.id

    async def project(self, client_id: UUID) -> UUID:
        """A project."""
        return (await projects.create(self.database, client_id=client_id, name="Project")).id

    async def campaign(
        self, client_id: UUID, project_id: UUID | None = None, *, platform: str = "other", currency: str = "RUB"
    ) -> campaigns.Campaign:
        """A campaign that ClickHouse knows, too."""
        made = await campaigns.create(
            self.database,
            client_id=client_id,
            project_id=project_id or await self.project(client_id),
            platform=platform,
            name="Campaign",
            currency=currency,
        )
        dimension = campaigns_dim.Dimension(made.id, client_id, made.project_id, platform, currency, "UTC")
        await campaigns_dim.write(self.clickhouse, [dimension], 1)
        await campaigns_dim.reload(self.clickhouse)
        return made

    async def tenant(self, count: int = 1, zone: str = "UTC") -> tuple[UUID, list[campaigns.Campaign]]:
        """A client with campaigns."""
        client_id = await self.client(zone)
        return client_id, [await self.campaign(client_id) for _ in range(count)]

    async def events(
        self,
        campaign: campaigns.Campaign,
        at: datetime,
        *,
        count: int = 1,
        kind: str = "impression",
        cost: str = "0",
        revenue: str = "0",
        conversions: str = "0",
    ) -> list[UUID]:
        """Events as ingest stores them; returns their ids. `conversions`, `cost` and `revenue` are each event's."""
        names = [uuid4() for _ in range(count)]
        rows = [
            (
                campaign.client_id, campaign.id, at, name, campaign.project_id, campaign.platform, kind,
                Decimal(cost), Decimal(revenue), Decimal(conversions), campaign.currency,
            )
            for name in names
        ]  # fmt: skip
        await self.clickhouse.insert_rows("campaign_events", _COLUMNS, rows)
        return names

    async def forget(self, campaign: campaigns.Campaign, at: datetime) -> None:
        """Deletes the events of an instant and marks their slice, as a restatement would."""
        begin = int(at.timestamp()) // 900 * 900
        await self.clickhouse.execute(
            f"ALTER TABLE campaign_events DELETE WHERE campaign_id = '{campaign.id}'"
            f" AND toUnixTimestamp(event_time) = {int(at.timestamp())} SETTINGS mutations_sync = 2"
        )
        await self.clickhouse.execute(
            f"INSERT INTO dirty_slices SELECT '{campaign.client_id}', '{campaign.id}', toDateTime({begin}), now64(3)"
        )

    async def hours(self, client_id: UUID) -> dict[tuple[UUID, datetime], tuple[int, int, Decimal, Decimal, Decimal]]:
        """The hourly figures of a client."""
        rows = await self.clickhouse.fetch(
            "SELECT campaign_id, hour, impressions, clicks, conversions, cost, revenue"
            f" FROM campaign_metrics_hourly FINAL WHERE client_id = '{client_id}'"
        )
        return {(row[0], row[1].replace(tzinfo=UTC)): row[2:] for row in rows}  # type: ignore[misc]


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Waits for what other tasks bring about."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


@pytest.fixture(scope="session")
async def engines(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Connections]:
    engines = EmbeddedEngines(tmp_path_factory.mktemp("stores") / "data")
    connections = await engines.start()
    await unsynced(connections)
    yield connections
    await engines.stop()


@pytest.fixture(scope="session")
async def template(engines: Connections) -> str:
    """Name of a migrated PostgreSQL database, to copy."""
    name = f"template_{uuid4().hex}"
    await _create(engines, name)
    await postgres_runner(_named(engines.postgres_dsn, name)).migrate()
    return name


@pytest.fixture(scope="session")
async def clickhouse_dsn(engines: Connections, template: str) -> str:
    """A migrated ClickHouse database, which each test finds empty: its migrations cost more than most tests."""
    dsn = _named(engines.clickhouse_dsn, "tested")
    clickhouse = ClickHouse(engines.clickhouse_dsn, connections=2)
    await clickhouse.execute("CREATE DATABASE tested")
    await clickhouse.close()
    clickhouse = ClickHouse(dsn, connections=2)
    lock = migration_lock(_named(engines.postgres_dsn, template))
    await Runner(ClickHouseTarget(clickhouse, dsn), load(MIGRATIONS), lock).migrate()
    await clickhouse.close()
    return dsn


@pytest.fixture
async def stores(engines: Connections, template: str, clickhouse_dsn: str) -> AsyncIterator[Stores]:
    name = f"t_{uuid4().hex}"
    await _create(engines, name, template)
    postgres_dsn = _named(engines.postgres_dsn, name)
    clickhouse = ClickHouse(clickhouse_dsn, connections=8)
    await clickhouse.execute("TRUNCATE ALL TABLES FROM tested NOT LIKE 'schema_migrations'")
    await campaigns_dim.reload(clickhouse)
    database = await Database.open(postgres_dsn, min_size=1)
    yield Stores(database, clickhouse, engines.redis_dsn, postgres_dsn, clickhouse_dsn)
    await database.close()
    await clickhouse.close()


async def _create(engines: Connections, name: str, template: str = "template0") -> None:
    connection = await asyncpg.connect(engines.postgres_dsn)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    finally:
        await connection.close()


def _named(dsn: str, database: str) -> str:
    return dsn.rsplit("/", 1)[0] + "/" + database
