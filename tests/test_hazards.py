"""The hazards of the source's schema, through the real API: the right number, or a refusal.

Each test names the hazard of the register it answers. Those about PostgreSQL's own rules (H-13, H-30, H-33, H-60 and
others) are in tests/storage/postgres/test_pg_schema.py.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import grpc

from mrm.accounts.v1 import client_pb2
from mrm.common.v1 import options_pb2, platform_pb2, time_pb2
from mrm.statistics.v1 import event_pb2, metrics_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from storage.clickhouse.connect import ClickHouse
from tests.conftest import Caller, Failing, World, impression

CLICK = event_pb2.EVENT_TYPE_CLICK
CONVERSION = event_pb2.EVENT_TYPE_CONVERSION


async def program(world: World, client_id: str) -> Caller:
    """A key that may send and read one client's events."""
    return await world.key(
        [client_id], options_pb2.PERMISSION_STATISTICS_INGEST, options_pb2.PERMISSION_STATISTICS_READ
    )


async def ingest(key: Caller, client_id: str, events: list[event_pb2.Event]) -> None:
    """Sends events in batches of 20 000."""
    for start in range(0, len(events), 20_000):
        batch = event_pb2.EventBatch(events=events[start : start + 20_000])
        reply = await key.statistics.IngestEvents(
            pb.IngestEventsRequest(client_id=client_id, batch=batch), metadata=key.auth
        )
        assert reply.stored_count == len(batch.events)


async def settled(key: Caller, client_id: str) -> None:
    """Waits until everything acknowledged so far is in the figures."""
    now = datetime.now(UTC)
    async with asyncio.timeout(30):
        while True:
            reply = await key.statistics.GetFreshness(pb.GetFreshnessRequest(client_id=client_id), metadata=key.auth)
            if reply.watermark_time.ToDatetime(tzinfo=UTC) > now:
                return
            await asyncio.sleep(0.1)


async def query(
    key: Caller,
    client_id: str,
    *dimensions: int,
    granularity: int = time_pb2.GRANULARITY_TOTAL,
    days: tuple[str, str] | None = None,
    time_zone: str = "",
) -> list[metrics_pb2.MetricsRow]:
    """Figures of a client, of the last three days unless days are given."""
    await settled(key, client_id)
    today = datetime.now(UTC)
    first, last = days or (f"{today - timedelta(days=2):%F}", f"{today + timedelta(days=1):%F}")
    request = pb.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date=first, end_date=last),
        granularity=granularity,  # type: ignore[arg-type]
        dimensions=dimensions,  # type: ignore[arg-type]
        filter=pb.StatisticsFilter(client_ids=[client_id]),
        time_zone=time_zone,
    )
    return list((await key.statistics.QueryStatistics(request, metadata=key.auth)).rows)


async def total(key: Caller, client_id: str) -> metrics_pb2.Metrics:
    """The one row of all figures."""
    [row] = await query(key, client_id)
    return row.metrics


async def test_h01_figures_go_down_when_events_are_taken_back(world: World) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await program(world, client_id)
    events = [impression(campaign_id, cost_micros=10) for _ in range(100)]
    await ingest(key, client_id, events)
    assert (await total(key, client_id)).impressions == 100
    clickhouse = ClickHouse(world.connections.clickhouse_dsn)
    taken = ", ".join(f"'{event.event_id}'" for event in events[:60])
    await clickhouse.execute(
        f"ALTER TABLE campaign_events DELETE WHERE client_id = '{client_id}' AND event_id IN ({taken})"
        " SETTINGS mutations_sync = 2"
    )
    await clickhouse.close()
    await ingest(key, client_id, events[60:61])
    figures = await total(key, client_id)
    assert (figures.impressions, figures.cost_micros) == (40, 400)


async def test_h02_h03_large_counts_and_small_costs_are_exact(world: World) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await program(world, client_id)
    shown = [impression(campaign_id, cost_micros=3700) for _ in range(100_000)]
    converted = [impression(campaign_id) for _ in range(70_000)]
    for event in converted:
        event.event_type = CONVERSION
    await ingest(key, client_id, [*shown, *converted])
    figures = await total(key, client_id)
    assert (figures.impressions, figures.conversions) == (100_000, "70000")
    assert figures.cost_micros == 370_000_000
    assert figures.cpm == "3.7"


async def test_h04_repeats_in_any_batch_count_once(world: World) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await program(world, client_id)
    events = [impression(campaign_id) for _ in range(157)]
    await ingest(key, client_id, events[:100])
    await ingest(key, client_id, events[:100])
    await ingest(key, client_id, events[50:])
    await ingest(key, client_id, list(reversed(events)))
    assert (await total(key, client_id)).impressions == 157


async def test_h05_h24_platforms_stay_apart_by_day(world: World) -> None:
    client = await world.client()
    project = await world.project(client.client_id)
    key = await program(world, client.client_id)
    counts = {platform_pb2.PLATFORM_YANDEX_DIRECT: 3, platform_pb2.PLATFORM_VK_ADS: 9}
    for platform, count in counts.items():
        campaign = await world.campaign(project.project_id, platform=platform)
        await ingest(key, client.client_id, [impression(campaign.campaign_id) for _ in range(count)])
    rows = await query(key, client.client_id, pb.DIMENSION_PLATFORM, granularity=time_pb2.GRANULARITY_DAY)
    assert {row.platform: row.metrics.impressions for row in rows if row.data_present} == counts


async def test_h06_nobody_sees_or_writes_anothers_figures(world: World, failing: Failing) -> None:
    client_id, [campaign_id] = await world.tenant()
    other_id, [other_campaign] = await world.tenant()
    key, other = await program(world, client_id), await program(world, other_id)
    await ingest(key, client_id, [impression(campaign_id)])
    await settled(key, client_id)
    rows = (
        await other.statistics.QueryStatistics(
            pb.QueryStatisticsRequest(
                dates=time_pb2.DateRange(start_date="2020-01-01", end_date="2029-12-31"),
                granularity=time_pb2.GRANULARITY_TOTAL,
            ),
            metadata=other.auth,
        )
    ).rows
    assert not any(row.data_present for row in rows)
    for call in (
        other.statistics.GetFreshness(pb.GetFreshnessRequest(client_id=client_id), metadata=other.auth),
        other.statistics.WatchMetrics(pb.WatchMetricsRequest(client_id=client_id), metadata=other.auth).read(),
        other.statistics.IngestEvents(
            pb.IngestEventsRequest(client_id=client_id, batch=event_pb2.EventBatch(events=[impression(campaign_id)])),
            metadata=other.auth,
        ),
    ):
        assert (await failing(call)).code == grpc.StatusCode.NOT_FOUND
    smuggled = event_pb2.EventBatch(events=[impression(campaign_id), impression(other_campaign)])
    failure = await failing(
        key.statistics.IngestEvents(pb.IngestEventsRequest(client_id=client_id, batch=smuggled), metadata=key.auth)
    )
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "EVENTS_INVALID")
    assert list(failure.fields) == ["batch.events[1].campaign_id"]
    assert (await total(key, client_id)).impressions == 1


async def test_h14_the_identity_of_an_event_includes_its_time(world: World) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await program(world, client_id)
    first = impression(campaign_id)
    moved = event_pb2.Event()
    moved.CopyFrom(first)
    moved.event_time.FromDatetime(first.event_time.ToDatetime() - timedelta(days=1))
    await ingest(key, client_id, [first, first, moved])
    await ingest(key, client_id, [moved])
    assert (await total(key, client_id)).impressions == 2


async def test_h18_conversions_may_be_shared(world: World) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await program(world, client_id)
    shares = [400_000, 600_000, 1]
    events = [impression(campaign_id, conversions_micros=share) for share in shares]
    for event in events:
        event.event_type = CONVERSION
    await ingest(key, client_id, events)
    assert Decimal((await total(key, client_id)).conversions) == Decimal("1.000001")


async def test_h19_ratios_are_exact_and_absent_without_denominator(world: World) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await program(world, client_id)
    await ingest(key, client_id, [impression(campaign_id, cost_micros=1_000_000)])
    figures = await total(key, client_id)
    assert figures.ctr == "0"
    assert not figures.HasField("cpc")
    assert not figures.HasField("cr")
    assert not figures.HasField("cpa")
    assert (figures.romi, figures.roas) == ("-100", "0")
    events = [impression(campaign_id) for _ in range(14)]
    for event in events[:3]:
        event.event_type = CLICK
    for event in events[3:]:
        event.event_type = CONVERSION
    await ingest(key, client_id, events)
    figures = await total(key, client_id)
    # 11 conversions from 3 clicks: a rate above 100 is right, and it never ends.
    assert figures.cr == "366.666667"
    assert figures.cpc == "0.333333"
    assert figures.ctr == "300"


async def test_h21_days_are_the_clients_own(world: World) -> None:
    client_id, [campaign_id] = await world.tenant(settings=client_pb2.ClientSettings(time_zone="Europe/Moscow"))
    key = await program(world, client_id)
    yesterday = (datetime.now(UTC) - timedelta(days=1)).replace(hour=21, minute=30, second=0, microsecond=0)
    await ingest(key, client_id, [impression(campaign_id, yesterday)])
    days = (f"{yesterday:%F}", f"{yesterday + timedelta(days=1):%F}")
    by_zone = {}
    for zone in ("", "UTC", "Asia/Vladivostok"):
        rows = await query(key, client_id, granularity=time_pb2.GRANULARITY_DAY, days=days, time_zone=zone)
        by_zone[zone] = [row.metrics.impressions for row in rows]
    # 21:30 UTC is half past midnight in Moscow.
    assert by_zone == {"": [0, 1], "UTC": [1, 0], "Asia/Vladivostok": [0, 1]}


async def test_h25_a_measured_zero_is_not_nothing(world: World) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await program(world, client_id)
    event = impression(campaign_id, conversions_micros=0)
    event.event_type = CONVERSION
    await ingest(key, client_id, [event])
    rows = await query(key, client_id, granularity=time_pb2.GRANULARITY_DAY)
    assert sorted(row.data_present for row in rows) == [False, False, False, True]
    assert all(row.metrics.conversions == "0" for row in rows)


async def test_h57_events_out_of_time_are_put_aside_and_counted(world: World) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await program(world, client_id)
    now = datetime.now(UTC)
    batch = event_pb2.EventBatch(
        events=[
            impression(campaign_id),
            impression(campaign_id, now + timedelta(days=1)),
            impression(campaign_id, now - timedelta(days=4000)),
        ]
    )
    request = pb.IngestEventsRequest(client_id=client_id, batch=batch)
    for _ in range(2):
        reply = await key.statistics.IngestEvents(request, metadata=key.auth)
        assert (reply.stored_count, reply.quarantined_count) == (1, 2)
    assert (await total(key, client_id)).impressions == 1
    fresh = await key.statistics.GetFreshness(pb.GetFreshnessRequest(client_id=client_id), metadata=key.auth)
    assert fresh.quarantined_count == 2


async def test_bad_queries_name_the_field(world: World, failing: Failing) -> None:
    client_id, _ = await world.tenant()
    key = await program(world, client_id)

    async def broken(**fields: object) -> dict[str, str]:
        values = {"granularity": time_pb2.GRANULARITY_DAY, **fields}
        request = pb.QueryStatisticsRequest(**values)  # type: ignore[arg-type]
        failure = await failing(key.statistics.QueryStatistics(request, metadata=key.auth))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        return failure.fields

    good = time_pb2.DateRange(start_date="2026-01-01", end_date="2026-01-31")
    assert "period" in await broken()
    assert any(
        "start_date" in field
        for field in await broken(dates=time_pb2.DateRange(start_date="2026-02-30", end_date="2026-03-01"))
    )
    assert await broken(dates=good, time_zone="Asia/Kolkata") == {"time_zone": "TIME_ZONE_NOT_WHOLE_HOURS"}
    assert "granularity" in await broken(dates=good, granularity=0)
    some_id = str(uuid4())
    request = pb.QueryStatisticsRequest(
        dates=good, granularity=time_pb2.GRANULARITY_DAY, filter=pb.StatisticsFilter(campaign_ids=[some_id])
    )
    failure = await failing(key.statistics.QueryStatistics(request, metadata=key.auth))
    assert (failure.code, failure.metadata["resource_id"]) == (grpc.StatusCode.NOT_FOUND, some_id)
