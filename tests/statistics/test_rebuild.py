"""Figures rebuilt from events on a real ClickHouse."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from storage.clickhouse import rebuild
from storage.clickhouse.rebuild import Slice
from storage.postgres.campaigns import Campaign
from tests.statistics.conftest import Stores

HOUR = datetime(2025, 11, 20, 10, tzinfo=UTC)


def slice_of(campaign: Campaign, at: datetime) -> Slice:
    return Slice(campaign.client_id, campaign.id, int(at.timestamp()) // 900 * 900)


async def test_figures_of_an_hour_are_those_of_its_events(stores: Stores) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, HOUR, count=10)
    await stores.events(campaign, HOUR + timedelta(minutes=20), count=2, kind="click", cost="1.5")
    await stores.events(campaign, HOUR + timedelta(minutes=59), kind="conversion", revenue="7", conversions="0.4")
    await rebuild.rebuild(
        stores.clickhouse, [slice_of(campaign, HOUR + timedelta(minutes=m)) for m in (0, 15, 45)], 1, 2
    )
    assert await stores.hours(client_id) == {
        (campaign.id, HOUR): (10, 2, Decimal("0.4"), Decimal(3), Decimal(7)),
    }


async def test_a_vanished_slice_becomes_zero(stores: Stores) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, HOUR, count=3)
    await rebuild.rebuild(stores.clickhouse, [slice_of(campaign, HOUR)], 1, 2)
    await stores.forget(campaign, HOUR)
    await rebuild.rebuild(stores.clickhouse, [slice_of(campaign, HOUR)], 2, 2)
    assert await stores.hours(client_id) == {(campaign.id, HOUR): (0, 0, 0, 0, 0)}


async def test_the_larger_version_prevails_whenever_it_was_written(stores: Stores) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, HOUR, count=3)
    await rebuild.rebuild(stores.clickhouse, [slice_of(campaign, HOUR)], 2 << 40, 2)
    await stores.events(campaign, HOUR, count=4)
    await rebuild.rebuild(stores.clickhouse, [slice_of(campaign, HOUR)], 1 << 40 | 999, 2)
    assert (await stores.hours(client_id))[campaign.id, HOUR][0] == 3
    await rebuild.rebuild(stores.clickhouse, [slice_of(campaign, HOUR)], 2 << 40 | 1, 2)
    assert (await stores.hours(client_id))[campaign.id, HOUR][0] == 7


async def test_replayed_events_count_once(stores: Stores) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, HOUR, count=5)
    await stores.clickhouse.execute("INSERT INTO campaign_events SELECT * FROM campaign_events")
    await rebuild.rebuild(stores.clickhouse, [slice_of(campaign, HOUR)], 1, 2)
    assert (await stores.hours(client_id))[campaign.id, HOUR][0] == 5


async def test_a_thousand_slices_at_once(stores: Stores) -> None:
    client_id, [campaign] = await stores.tenant()
    starts = [HOUR + timedelta(minutes=15 * number) for number in range(1000)]
    for start in starts[::100]:
        await stores.events(campaign, start)
    await rebuild.rebuild(stores.clickhouse, [slice_of(campaign, start) for start in starts], 1, 2)
    hours = await stores.hours(client_id)
    assert len(hours) == 250
    assert sum(figures[0] for figures in hours.values()) == 10


async def test_a_campaign_the_dictionary_lacks_keeps_what_its_events_say(stores: Stores) -> None:
    client_id, [campaign] = await stores.tenant()
    unknown = Slice(client_id, UUID(int=7), int(HOUR.timestamp()))
    await stores.events(campaign, HOUR)
    await stores.clickhouse.execute("TRUNCATE TABLE campaigns_dim")
    await stores.clickhouse.execute(f"SYSTEM RELOAD DICTIONARY {stores.clickhouse.database}.campaigns_dict")
    await rebuild.rebuild(stores.clickhouse, [slice_of(campaign, HOUR), unknown], 1, 2)
    rows = await stores.clickhouse.fetch("SELECT campaign_id, platform, currency FROM campaign_metrics_hourly FINAL")
    assert rows == [(campaign.id, "other", "RUB")]


async def test_a_rebuild_reads_only_its_ranges_of_the_key(stores: Stores) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.clickhouse.execute(
        f"""INSERT INTO campaign_events (client_id, campaign_id, event_time, event_id, event_type)
        SELECT '{client_id}', '{campaign.id}', toDateTime64('2025-11-20 00:00:00', 6, 'UTC') + number % 86400,
          generateUUIDv4(), 'click' FROM numbers(1000000)"""
    )
    await stores.clickhouse.execute("OPTIMIZE TABLE campaign_events FINAL")
    statement = rebuild.slices_statement(stores.clickhouse.database, [slice_of(campaign, HOUR)], 1)
    select = statement[statement.index("WITH") :]
    plan = "\n".join(row[0] for row in await stores.clickhouse.fetch(f"EXPLAIN indexes = 1 {select}"))
    granules = re.findall(r"Granules: (\d+)/(\d+)", plan[plan.index("PrimaryKey") :])
    assert int(granules[0][1]) > 100
    assert int(granules[0][0]) <= 4
