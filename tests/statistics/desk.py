"""What tests of snapshots act through: AppendMetrics, queries and the rebuild on stores of their own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import snapshot_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.rpc.call import Call, Principal
from server.rpc.validation import validate
from server.settings import MetricsSettings
from server.statistics.aggregator import Leader
from server.statistics.relay import CampaignDirectory
from server.statistics.snapshots import SnapshotRpcs, SnapshotWriter
from server.statistics.watermark import Progress
from storage.clickhouse import campaigns_dim
from storage.postgres.campaigns import Campaign
from storage.redis.signals import Signals
from storage.scope import EVERYTHING, Scope
from tests.statistics.conftest import Queries, Stores

HOUR, DAY, WEEK, MONTH, TOTAL = (
    time_pb2.GRANULARITY_HOUR,
    time_pb2.GRANULARITY_DAY,
    time_pb2.GRANULARITY_WEEK,
    time_pb2.GRANULARITY_MONTH,
    time_pb2.GRANULARITY_TOTAL,
)
PLATFORM, ANALYTICS, IMPORT, BACKFILL = (
    snapshot_pb2.METRICS_SOURCE_PLATFORM,
    snapshot_pb2.METRICS_SOURCE_ANALYTICS,
    snapshot_pb2.METRICS_SOURCE_IMPORT,
    snapshot_pb2.METRICS_SOURCE_BACKFILL,
)
D, H = "2025-11-20", datetime(2025, 11, 20, 10, tzinfo=UTC)
Figures = tuple[int, int, str, int, int]


def call(scope: Scope = EVERYTHING) -> Call:
    return Call("/x", "test", Principal("service", uuid4(), frozenset(), scope))


def snap(
    campaign: Campaign | UUID, at: str | datetime, delivery: tuple[int, int, int] | None = None,
    outcome: tuple[int, int] | None = None,
) -> snapshot_pb2.MetricsSnapshot:  # fmt: skip
    """A snapshot of a day (a text) or an hour; amounts in units."""
    name = campaign if isinstance(campaign, UUID) else campaign.id
    made = snapshot_pb2.MetricsSnapshot(campaign_id=str(name))
    if isinstance(at, str):
        made.date = at
    else:
        made.hour.FromDatetime(at)
    if delivery is not None:
        impressions, clicks, cost = delivery
        made.delivery.CopyFrom(
            snapshot_pb2.MetricsSnapshot.Delivery(impressions=impressions, clicks=clicks, cost_micros=cost * 10**6)
        )
    if outcome is not None:
        conversions, revenue = outcome
        made.outcome.CopyFrom(
            snapshot_pb2.MetricsSnapshot.Outcome(conversions_micros=conversions * 10**6, revenue_micros=revenue * 10**6)
        )
    return made


@dataclass
class Desk:
    """What the tests act through."""

    stores: Stores
    append: SnapshotRpcs
    query: Queries
    leader: Leader
    signals: Signals

    async def tenant(self, count: int = 1, zone: str = "UTC") -> tuple[UUID, list[Campaign]]:
        """A client whose zone ClickHouse knows, too."""
        client_id, campaigns = await self.stores.tenant(count, zone)
        dimensions = [
            campaigns_dim.Dimension(each.id, client_id, each.project_id, each.platform, each.currency, zone)
            for each in campaigns
        ]
        await campaigns_dim.write(self.stores.clickhouse, dimensions, 2)
        await campaigns_dim.reload(self.stores.clickhouse)
        return client_id, campaigns

    async def put(
        self, client_id: UUID, source: int, version: int, *snapshots: snapshot_pb2.MetricsSnapshot, **fields: object
    ) -> tuple[int, int]:
        """Appends snapshots: how many were stored and how many were stale."""
        request = pb.AppendMetricsRequest(
            client_id=str(client_id), source=source, version=version, snapshots=snapshots, **fields  # type: ignore[arg-type]
        )  # fmt: skip
        validate(request)
        reply = await self.append.AppendMetrics(request, call())
        return reply.stored_count, reply.stale_count

    async def events(self, campaign: Campaign, at: datetime, count: int, conversions: int = 0) -> None:
        """Impressions that cost 1 each, and conversions worth 10 each, with their figures."""
        await self.stores.events(campaign, at, count=count, cost="1")
        if conversions:
            await self.stores.events(campaign, at, count=conversions, kind="conversion", conversions="1", revenue="10")
        await self.work()

    async def work(self) -> None:
        """Has events become figures."""
        for reader in (self.leader._live, self.leader._late):
            while await self.leader.tick(reader, 2):
                pass
        await self.leader.commit()

    async def rows(
        self, client_id: UUID, granularity: int, first: str, last: str = "", *, zone: str = "", **fields: object
    ) -> dict[str, Figures]:
        """Figures by first day of the bucket (or hour), where anything was measured."""
        request = pb.QueryStatisticsRequest(
            dates=time_pb2.DateRange(start_date=first, end_date=last or first),
            granularity=granularity,  # type: ignore[arg-type]
            filter=pb.StatisticsFilter(client_ids=[str(client_id)]),
            time_zone=zone,
            **fields,  # type: ignore[arg-type]
        )
        reply = await self.query.ask(request, call())
        return {
            row.start_date or row.start_time.ToDatetime().strftime("%dT%H"): (
                row.metrics.impressions, row.metrics.clicks, row.metrics.conversions,
                row.metrics.cost_micros // 10**6, row.metrics.revenue_micros // 10**6,
            )
            for row in reply.rows
            if row.data_present
        }  # fmt: skip

    async def day(self, client_id: UUID, first: str = D) -> Figures | None:
        """Figures of one day."""
        return (await self.rows(client_id, DAY, first)).get(first)

    async def daily_view(self, client_id: UUID) -> list[tuple[object, ...]]:
        """What the daily view says."""
        return await self.stores.clickhouse.fetch(
            f"""SELECT toString(date), delivery_source, outcome_source, impressions, clicks, toFloat64(conversions),
              toFloat64(cost), toFloat64(revenue)
            FROM campaign_daily_stats WHERE client_id = '{client_id}' ORDER BY campaign_id, date"""
        )


@asynccontextmanager
async def opened(stores: Stores) -> AsyncIterator[Desk]:
    """A desk on stores."""
    signals = Signals(stores.redis_dsn)
    directory = CampaignDirectory(stores.database, stores.clickhouse)
    yield Desk(
        stores,
        SnapshotRpcs(SnapshotWriter(stores.database, stores.clickhouse, directory, signals)),
        Queries(stores.database, stores.clickhouse),
        Leader(stores.database, stores.clickhouse, signals, MetricsSettings(), 1, Progress()),
        signals,
    )
    await signals.close()
