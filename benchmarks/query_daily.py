"""query.daily: QueryStatistics by day and campaign, over the obvious FINAL GROUP BY through the driver's own client."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import clickhouse_connect
import grpc
from clickhouse_connect.driver.asyncclient import AsyncClient

from benchmarks.harness import Bench, Result, interleaved
from benchmarks.tenants import Tenant, make_tenant
from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from mrm.statistics.v1 import statistics_service_pb2_grpc as rpc
from storage.clickhouse.connect import ClickHouse

ROWS = 10_000_000
CAMPAIGNS = 100
STORED_DAYS = 365
DAYS = 90
QUERIES = 5
BAR = 0.7

_FIGURES = """toUInt64(50 + rand(1) % 5000), toUInt64(rand(2) % 60), toDecimal128(rand(3) % 7, 6) / 2,
  toDecimal128(rand(4) % 90000000, 6) / 1000000, toDecimal128(rand(5) % 900000000, 6) / 1000000, 1"""


async def run(bench: Bench) -> list[Result]:
    """Measures replies of 9 000 rows, one after another."""
    tenant = await make_tenant(bench, bench.count(CAMPAIGNS))
    end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    await _fill(bench, tenant, end)
    driver = await clickhouse_connect.get_async_client(dsn=bench.connections.clickhouse_dsn)
    try:
        async with grpc.aio.insecure_channel(bench.target) as channel:
            value, floor, ratio = await interleaved(
                bench.rounds,
                lambda: _through_grpc(channel, tenant, end),
                lambda: _straight(driver, tenant, end),
                settle=min(1.0, bench.settle),
            )
    finally:
        await driver.close()
    return [Result("query.daily", value, "queries/s", floor, ratio, BAR, ratio >= BAR)]


async def _fill(bench: Bench, tenant: Tenant, end: datetime) -> None:
    """A year of hours of the tenant and of many others, some of them restated."""
    store = ClickHouse(bench.connections.clickhouse_dsn, connections=2)
    hours = STORED_DAYS * 24
    first = int((end - timedelta(days=STORED_DAYS)).timestamp())
    others = max(1, int(ROWS * bench.scale) // hours - len(tenant.campaign_ids))
    mine = ", ".join(f"'{campaign}'" for campaign in tenant.campaign_ids)
    campaign = f"arrayElement([{mine}]::Array(UUID), 1 + intDiv(number, {hours}))"
    other = f"intDiv(number, {hours})"
    try:
        # Inserts of a few million rows each; the months of a year are partitions.
        await _insert(
            store, f"toUUID('{tenant.client_id}')", campaign, first, hours, 0, len(tenant.campaign_ids) * hours, 1
        )
        step = 200
        for begin in range(0, others, step):
            count = min(step, others - begin) * hours
            # A client has a hundred campaigns.
            client = f"reinterpretAsUUID(sipHash128('client', intDiv({other}, {CAMPAIGNS})))"
            await _insert(
                store, client, f"reinterpretAsUUID(sipHash128({other}))", first, hours, begin * hours, count, 1
            )
        recent = first + (STORED_DAYS - 3) * 24 * 3600
        again = f"arrayElement([{mine}]::Array(UUID), 1 + intDiv(number, 72))"
        await _insert(store, f"toUUID('{tenant.client_id}')", again, recent, 72, 0, len(tenant.campaign_ids) * 72, 2)
    finally:
        await store.close()


async def _insert(
    store: ClickHouse, client: str, campaign: str, first: int, hours: int, begin: int, count: int, version: int
) -> None:
    await store.execute(
        f"""INSERT INTO campaign_metrics_hourly (client_id, campaign_id, platform, source, grain, hour, project_id,
          currency, impressions, clicks, conversions, cost, revenue, event_count, version)
        SELECT {client}, {campaign}, 'other', 'events', 'hour', toDateTime({first} + number % {hours} * 3600, 'UTC'),
          toUUID('{UUID(int=1)}'), 'RUB', {_FIGURES}, {version}
        FROM numbers({begin}, {count})""",
        timeout=300.0,
    )


async def _through_grpc(channel: grpc.aio.Channel, tenant: Tenant, end: datetime) -> float:
    stub = rpc.StatisticsServiceStub(channel)
    request = pb.QueryStatisticsRequest(
        dates=time_pb2.DateRange(
            start_date=(end - timedelta(days=DAYS)).date().isoformat(),
            end_date=(end - timedelta(days=1)).date().isoformat(),
        ),
        granularity=time_pb2.GRANULARITY_DAY,
        dimensions=[pb.DIMENSION_CAMPAIGN],
        filter=pb.StatisticsFilter(client_ids=[str(tenant.client_id)]),
        time_zone="UTC",
    )
    begun = time.perf_counter()
    for _ in range(QUERIES):
        reply = await stub.QueryStatistics(request, metadata=tenant.metadata)
        if sum(row.data_present for row in reply.rows) != DAYS * len(tenant.campaign_ids):
            raise RuntimeError(f"{len(reply.rows)} rows")
    return QUERIES / (time.perf_counter() - begun)


async def _straight(driver: AsyncClient, tenant: Tenant, end: datetime) -> float:
    begun = time.perf_counter()
    for _ in range(QUERIES):
        result = await driver.query(
            """SELECT toDate(hour) AS day, campaign_id, sum(impressions), sum(clicks), sum(conversions), sum(cost),
              sum(revenue)
            FROM campaign_metrics_hourly FINAL
            WHERE client_id = {client:UUID} AND source = 'events' AND hour >= {first:DateTime} AND hour < {end:DateTime}
            GROUP BY day, campaign_id ORDER BY day, campaign_id""",
            parameters={"client": tenant.client_id, "first": end - timedelta(days=DAYS), "end": end},
        )
        if len(result.result_rows) != DAYS * len(tenant.campaign_ids):
            raise RuntimeError(f"{len(result.result_rows)} rows")
    return QUERIES / (time.perf_counter() - begun)
