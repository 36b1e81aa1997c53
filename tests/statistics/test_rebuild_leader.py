"""The aggregator: what it picks up, what it leaves alone, and that only the latest leader counts."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from server.settings import MetricsSettings
from server.statistics.aggregator import CHANNEL, Aggregator, Leader
from server.statistics.busy import BusyClients
from server.statistics.lanes import MOST_BUCKETS, LaneReader
from server.statistics.watermark import Progress, WatermarkReader
from storage.clickhouse.rebuild import Slice
from storage.errors import FencedOut
from storage.postgres import metrics_state
from storage.redis.signals import Signals
from tests.statistics.conftest import Stores, until

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
SETTINGS = MetricsSettings(tick=0.05, lease_ttl=1.0, mark_overlap=timedelta(seconds=5))


@pytest.fixture
async def signals(stores: Stores) -> AsyncIterator[Signals]:
    signals = Signals(stores.redis_dsn)
    yield signals
    await signals.close()


def leader_of(stores: Stores, signals: Signals, epoch: int = 1, progress: Progress | None = None) -> Leader:
    return Leader(stores.database, stores.clickhouse, signals, SETTINGS, epoch, progress or Progress())


async def work(leader: Leader) -> None:
    for reader in (leader._live, leader._late):
        while await leader.tick(reader, 2):
            pass
    await leader.commit()


async def test_marked_slices_are_rebuilt_once(stores: Stores, signals: Signals) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, NOW, count=3)
    await stores.events(campaign, NOW - timedelta(days=40), count=2)
    leader = leader_of(stores, signals)
    await work(leader)
    hours = await stores.hours(client_id)
    assert {at: figures[0] for (_, at), figures in hours.items()} == {NOW: 3, NOW - timedelta(days=40): 2}
    before = await stores.clickhouse.fetch("SELECT max(version), count() FROM campaign_metrics_slices")
    await work(leader)
    assert await stores.clickhouse.fetch("SELECT max(version), count() FROM campaign_metrics_slices") == before


async def test_late_rows_and_restatements_down_to_zero(stores: Stores, signals: Signals) -> None:
    client_id, [campaign] = await stores.tenant()
    leader = leader_of(stores, signals)
    await stores.events(campaign, NOW, count=3)
    await work(leader)
    await stores.events(campaign, NOW + timedelta(seconds=1), count=4)
    await work(leader)
    assert (await stores.hours(client_id))[campaign.id, NOW][0] == 7
    await stores.forget(campaign, NOW)
    await work(leader)
    assert (await stores.hours(client_id))[campaign.id, NOW][0] == 4
    await stores.forget(campaign, NOW + timedelta(seconds=1))
    await work(leader)
    assert (await stores.hours(client_id))[campaign.id, NOW][0] == 0


async def test_an_old_leader_loses(stores: Stores, signals: Signals) -> None:
    client_id, [campaign] = await stores.tenant()
    old, new = leader_of(stores, signals, 1), leader_of(stores, signals, 2)
    await stores.events(campaign, NOW, count=3)
    await work(new)
    await stores.events(campaign, NOW, count=1)
    with pytest.raises(FencedOut):
        await work(old)
    # What it has written is there, under a version that never prevails.
    assert (await stores.hours(client_id))[campaign.id, NOW][0] == 3
    await work(new)
    assert (await stores.hours(client_id))[campaign.id, NOW][0] == 4


async def test_nothing_below_the_raw_floor_is_rebuilt(stores: Stores, signals: Signals) -> None:
    client_id, [campaign] = await stores.tenant()
    old = NOW - timedelta(days=90)
    await stores.events(campaign, old, count=5)
    leader = leader_of(stores, signals)
    await work(leader)
    await metrics_state.raise_raw_floor(stores.database, old + timedelta(minutes=10))
    await stores.forget(campaign, old)
    await stores.events(campaign, old + timedelta(minutes=11))
    await stores.events(campaign, old + timedelta(minutes=15))
    await work(leader)
    # The slice that the floor cuts keeps its figures; the one above it counts.
    assert (await stores.hours(client_id))[campaign.id, old][0] == 5 + 1


async def test_a_lost_mark_is_found_by_the_sweep(stores: Stores, signals: Signals) -> None:
    client_id, [campaign] = await stores.tenant()
    leader = leader_of(stores, signals)
    await stores.events(campaign, NOW, count=3)
    await stores.events(campaign, NOW - timedelta(hours=2), count=4)
    await work(leader)
    await stores.clickhouse.execute(
        f"""INSERT INTO campaign_events (client_id, campaign_id, event_time, event_id, event_type, ingest_time)
        VALUES ('{client_id}', '{campaign.id}', toDateTime64({NOW.timestamp()}, 6) + 1, generateUUIDv4(), 'click',
          now() - 60)"""
    )
    await stores.clickhouse.execute("TRUNCATE TABLE dirty_slices")
    await work(leader)
    assert (await stores.hours(client_id))[campaign.id, NOW][:2] == (3, 0)
    await leader.sweep_once()
    assert (await stores.hours(client_id))[campaign.id, NOW][:2] == (3, 1)
    versions = "SELECT max(version) FROM campaign_metrics_slices"
    after = await stores.clickhouse.fetch(versions)
    await leader.sweep_once()
    assert await stores.clickhouse.fetch(versions) == after


async def test_the_watermark_moves_when_idle_and_signals_name_what_changed(stores: Stores, signals: Signals) -> None:
    client_id, [campaign] = await stores.tenant()
    heard: list[bytes] = []
    standing = asyncio.Event()

    async def listen() -> None:
        async for payload in signals.listen(CHANNEL):
            if payload is None:
                standing.set()
            else:
                heard.append(payload)

    aggregator = Aggregator(stores.database, stores.clickhouse, signals, SETTINGS, holder="one")
    tasks = [asyncio.create_task(listen())]
    await standing.wait()
    tasks.append(asyncio.create_task(aggregator.run()))
    watermark = WatermarkReader(stores.database)

    async def passed(millis: float) -> bool:
        return await watermark.millis() > millis

    async def named() -> bool:
        return any(str(client_id) in json.loads(payload)["clients"] for payload in heard)

    try:
        await until(lambda: passed(0))
        first = await watermark.millis()
        await until(lambda: passed(first + 1000))
        await stores.events(campaign, NOW)
        acknowledged = datetime.now(UTC).timestamp() * 1000
        await until(lambda: passed(acknowledged))
        assert (await stores.hours(client_id))[campaign.id, NOW][0] == 1
        await until(named)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_process_leads_and_the_next_takes_over(stores: Stores, signals: Signals) -> None:
    client_id, [campaign] = await stores.tenant()
    names = ("one", "two")
    running = {
        name: asyncio.create_task(Aggregator(stores.database, stores.clickhouse, signals, SETTINGS, holder=name).run())
        for name in names
    }

    async def holder() -> str:
        return str(await stores.database.fetchval("SELECT holder FROM leases"))

    async def held() -> bool:
        return await holder() in names

    async def counted() -> bool:
        return bool(await stores.hours(client_id))

    try:
        await until(held)
        first = await holder()
        running[first].cancel()
        await asyncio.gather(running[first], return_exceptions=True)
        await stores.events(campaign, NOW)
        await until(counted)
        assert await holder() != first
    finally:
        for task in running.values():
            task.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)


async def test_busy_clients_are_rebuilt_aside_and_hold_the_watermark_back(stores: Stores, signals: Signals) -> None:
    (busy_id, [busy]), (quiet_id, [quiet]) = await stores.tenant(), await stores.tenant()
    leader = leader_of(stores, signals)
    await work(leader)
    slices = [Slice(each.client_id, each.id, int(NOW.timestamp())) for each in (busy, quiet)]
    leader._busy.review(dict(zip(slices, (200_000, 3), strict=True)), time.monotonic())
    await stores.events(busy, NOW, count=5)
    await stores.events(quiet, NOW, count=5)
    await work(leader)
    assert (len(await stores.hours(busy_id)), len(await stores.hours(quiet_id))) == (0, 1)
    held = leader._busy.complete_until(leader._live.done)
    assert held < leader._live.done
    assert leader._progress.live == held
    await leader.rebuild_busy(1)
    await leader.commit()
    assert len(await stores.hours(busy_id)) == 1
    assert leader._progress.live == leader._live.done


def test_clients_are_busy_while_their_rebuild_takes_long() -> None:
    clients, one, two = BusyClients(), Slice(UUID(int=1), UUID(int=1), 900), Slice(UUID(int=2), UUID(int=2), 900)
    clients.review({one: 90_000, two: 10_000}, now=0.0)
    assert clients.split([one, two], 1.0) == ([one, two], [])
    clients.review({one: 90_001, two: 10_000}, now=0.0)
    assert clients.split([one, two], 1.0) == ([two], [one])
    clients.put([one], done=5)
    clients.put([one], done=7)
    assert clients.take() == [one]
    clients.put([one], done=8)
    assert clients.complete_until(9) == 5
    clients.give_back()
    assert clients.complete_until(9) == 5
    assert clients.take() == [one]
    clients.finish(0.4, now=50.0)
    assert clients.complete_until(9) == 9
    assert clients.split([one], 100.0) == ([], [one])
    assert clients.split([one], 111.0) == ([one], [])
    clients.put([one], done=9)
    assert clients.take() == [one]
    clients.finish(0.01, now=100.0)
    assert clients.split([one], 101.0) == ([one], [])


def test_a_mark_that_becomes_visible_late_is_noticed() -> None:
    reader = LaneReader("live", 0, overlap=5000)
    assert reader.changed({100: 2, 101: 1}) == [100, 101]
    assert not reader.advance({100: 2, 101: 1}, asked=101 * 50 + 49)
    assert reader.changed({100: 2, 101: 1}) == []
    assert reader.changed({100: 3, 101: 1}) == [100]


def test_what_is_remembered_is_bounded_and_pages_follow_each_other() -> None:
    reader = LaneReader("late", 0, overlap=5000)
    page = {bucket: 1 for bucket in range(1000, 1000 + MOST_BUCKETS)}
    assert reader.advance(page, asked=10**9)
    assert reader.done == (1000 + MOST_BUCKETS) * 50
    assert reader.since == reader.done - 5000
    assert len(reader._counts) == 100
    assert not reader.advance({}, asked=10**9)
    assert reader.done == 10**9
