"""BackfillService over gRPC: chunks once, other sources above it, live figures beside it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from uuid import UUID, uuid4

import grpc

from mrm.common.v1 import options_pb2, time_pb2
from mrm.statistics.v1 import backfill_service_pb2 as pb
from mrm.statistics.v1 import event_pb2, snapshot_pb2, statistics_service_pb2
from server.statistics.aggregator import CHANNEL
from storage.redis.signals import Signals
from tests.conftest import Caller, Failing, World, impression


def chunk(client_id: str, fingerprint: str, *snapshots: snapshot_pb2.MetricsSnapshot) -> pb.StoreBackfillChunkRequest:
    return pb.StoreBackfillChunkRequest(
        client_id=client_id, fingerprint=fingerprint, month="2020-04", source_name="old.csv", snapshots=snapshots
    )


def day(campaign_id: str, date: str, impressions: int, micros: int = 0) -> snapshot_pb2.MetricsSnapshot:
    snapshot = snapshot_pb2.MetricsSnapshot(campaign_id=campaign_id, date=date)
    snapshot.delivery.impressions, snapshot.delivery.cost_micros = impressions, micros
    snapshot.outcome.conversions_micros = snapshot.outcome.revenue_micros = micros
    return snapshot


async def shown(world: World, client_id: str) -> int:
    """Impressions of April 2020, as queries show them."""
    request = statistics_service_pb2.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date="2020-04-01", end_date="2020-04-30"),
        granularity=time_pb2.GRANULARITY_TOTAL,
        filter=statistics_service_pb2.StatisticsFilter(client_ids=[client_id]),
    )
    reply = await world.admin.statistics.QueryStatistics(request, metadata=world.admin.auth)
    return sum(row.metrics.impressions for row in reply.rows)


async def stored(key: Caller, client_id: str, fingerprint: str) -> pb.GetBackfillResponse:
    request = pb.GetBackfillRequest(client_id=client_id, fingerprint=fingerprint)
    return await key.backfills.GetBackfill(request, metadata=key.auth)


async def test_a_chunk_is_stored_once_and_read_back(world: World) -> None:
    client_id, [campaign] = await world.tenant()
    key = await world.key([client_id])
    file, later = uuid4().hex * 2, uuid4().hex * 2
    assert not (await stored(key, client_id, file)).backfill.chunks
    days = [day(campaign, "2020-04-01", 3, 10**15), day(campaign, "2020-04-30", 4, 1)]
    first = await key.backfills.StoreBackfillChunk(chunk(client_id, file, *days), metadata=key.auth)
    assert (first.chunk.month, first.chunk.snapshot_count, first.already_stored) == ("2020-04", 2, False)
    # The ledger decides, not what is sent under the same name.
    other = chunk(client_id, file, day(campaign, "2020-04-01", 999))
    again = await key.backfills.StoreBackfillChunk(other, metadata=key.auth)
    assert (again.chunk, again.already_stored) == (first.chunk, True)
    found = await stored(key, client_id, file)
    assert (found.totals.snapshot_count, found.totals.impressions) == (2, 7)
    assert found.totals.cost_micros == found.totals.conversions_micros == found.totals.revenue_micros == str(10**15 + 1)
    assert await shown(world, client_id) == 7

    # A crash between figures and ledger: the chunk comes again and changes nothing.
    await world.database.execute(
        "DELETE FROM backfill_chunks WHERE backfill_id IN (SELECT id FROM backfills WHERE client_id = $1)",
        UUID(client_id),
    )
    again = await key.backfills.StoreBackfillChunk(chunk(client_id, file, *days), metadata=key.auth)
    assert (again.chunk.snapshot_count, again.chunk.stale_count, again.already_stored) == (2, 0, False)
    assert await shown(world, client_id) == 7

    # A file begun later wins, day by day, and says so of the earlier one.
    newer = await key.backfills.StoreBackfillChunk(
        chunk(client_id, later, day(campaign, "2020-04-01", 1)), metadata=key.auth
    )
    assert newer.chunk.stale_count == 0
    assert await shown(world, client_id) == 5
    assert (await stored(key, client_id, file)).totals.impressions == 4


async def test_wrong_chunks_are_refused(world: World, failing: Failing) -> None:
    client_id, [campaign] = await world.tenant()
    _, [foreign] = await world.tenant()
    key = await world.key([client_id])
    reader = await world.key([client_id], options_pb2.PERMISSION_STATISTICS_READ)
    hour = snapshot_pb2.MetricsSnapshot(campaign_id=campaign)
    hour.hour.FromJsonString("2020-04-01T00:00:00Z")
    for snapshot, field, reason in (
        (day(campaign, "2020-05-01", 1), "snapshots[0].date", "OTHER_MONTH"),
        (hour, "snapshots[0].date", "OTHER_MONTH"),
        (day(campaign, "2020-04-31", 1), "snapshots[0].date", "DATE_INVALID"),
        (day(foreign, "2020-04-01", 1), "snapshots[0].campaign_id", "UNKNOWN_CAMPAIGN"),
    ):
        request = chunk(client_id, uuid4().hex * 2, snapshot)
        failure = await failing(key.backfills.StoreBackfillChunk(request, metadata=key.auth))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        assert failure.fields == {field: reason}
        assert not (await stored(key, client_id, request.fingerprint)).backfill.chunks
    request = chunk(client_id, uuid4().hex * 2, day(campaign, "2020-04-01", 1))
    failure = await failing(reader.backfills.StoreBackfillChunk(request, metadata=reader.auth))
    assert failure.code == grpc.StatusCode.PERMISSION_DENIED


async def test_a_platform_prevails_and_live_figures_go_on(world: World) -> None:
    client_id, [campaign] = await world.tenant()
    key = await world.key([client_id])

    async def live() -> None:
        for _ in range(5):
            batch = event_pb2.EventBatch(events=[impression(campaign)])
            await key.statistics.IngestEvents(
                statistics_service_pb2.IngestEventsRequest(client_id=client_id, batch=batch), metadata=key.auth
            )

    async def past() -> None:
        for number in range(1, 11):
            request = chunk(client_id, uuid4().hex * 2, day(campaign, f"2020-04-{number:02}", 10))
            await key.backfills.StoreBackfillChunk(request, metadata=key.auth)

    await asyncio.gather(live(), past())
    assert await shown(world, client_id) == 100
    platform = statistics_service_pb2.AppendMetricsRequest(
        client_id=client_id,
        source=snapshot_pb2.METRICS_SOURCE_PLATFORM,
        version=1,
        snapshots=[day(campaign, "2020-04-01", 1)],
    )
    await key.statistics.AppendMetrics(platform, metadata=key.auth)
    assert await shown(world, client_id) == 91


async def test_the_past_is_no_news(world: World) -> None:
    client_id, [campaign] = await world.tenant()
    key = await world.key([client_id])
    signals = Signals(world.settings.redis.durable_dsn.get_secret_value())
    heard: list[str] = []
    listening, ended = asyncio.Event(), asyncio.Event()

    async def listen() -> None:
        async with aclosing(signals.listen(CHANNEL)) as messages:
            async for message in messages:
                listening.set()
                if message is not None and client_id.encode() in message:
                    heard.append("news")
                if message == b"end":
                    ended.set()

    async def platform() -> None:
        request = statistics_service_pb2.AppendMetricsRequest(
            client_id=client_id,
            source=snapshot_pb2.METRICS_SOURCE_PLATFORM,
            version=1,
            snapshots=[day(campaign, "2020-04-02", 1)],
        )
        await key.statistics.AppendMetrics(request, metadata=key.auth)

    task = asyncio.create_task(listen())
    await listening.wait()
    request = chunk(client_id, uuid4().hex * 2, day(campaign, "2020-04-01", 1))
    await key.backfills.StoreBackfillChunk(request, metadata=key.auth)
    heard.append("backfilled")
    await platform()
    # Redis keeps the order of what is published.
    await signals.publish(CHANNEL, b"end")
    async with asyncio.timeout(10):
        await ended.wait()
    task.cancel()
    await signals.close()
    assert heard == ["backfilled", "news"]
