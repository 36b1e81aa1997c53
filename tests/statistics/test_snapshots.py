"""AppendMetrics and the precedence of sources on real engines, past the pipeline."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import snapshot_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.rpc.errors import InvalidRequest, NotFound
from server.settings import WatchSettings
from server.statistics.feeds import Choice, Feed, Span
from server.statistics.hub import WatchHub
from storage.clickhouse.target import MIGRATIONS, ClickHouseTarget
from storage.migrations import load
from storage.scope import EVERYTHING, Scope
from tests.statistics.conftest import Stores, until
from tests.statistics.desk import (
    ANALYTICS,
    BACKFILL,
    DAY,
    HOUR,
    IMPORT,
    MONTH,
    PLATFORM,
    TOTAL,
    WEEK,
    D,
    Desk,
    H,
    call,
    opened,
    snap,
)  # fmt: skip


@pytest.fixture
async def desk(stores: Stores) -> AsyncIterator[Desk]:
    async with opened(stores) as made:
        yield made


async def test_a_reading_is_restated_down_and_up_and_stale_ones_are_ignored(desk: Desk) -> None:
    client_id, [campaign] = await desk.tenant()
    assert await desk.put(client_id, PLATFORM, 10, snap(campaign, D, (1000, 50, 70), (5, 90))) == (1, 0)
    assert await desk.day(client_id) == (1000, 50, "5", 70, 90)
    # Fraud clicks are taken back.
    assert await desk.put(client_id, PLATFORM, 20, snap(campaign, D, (900, 40, 60), (4, 80))) == (1, 0)
    assert await desk.day(client_id) == (900, 40, "4", 60, 80)
    for version in (20, 19, 10):
        assert await desk.put(client_id, PLATFORM, version, snap(campaign, D, (9, 9, 9), (9, 9))) == (0, 1)
    assert await desk.day(client_id) == (900, 40, "4", 60, 80)
    assert await desk.put(client_id, PLATFORM, 21, snap(campaign, D, (1100, 60, 75), (6, 95))) == (1, 0)
    assert await desk.day(client_id) == (1100, 60, "6", 75, 95)
    # A replay of all of it, out of order, changes nothing; another hour of the same reading is new.
    assert await desk.put(
        client_id, PLATFORM, 21, snap(campaign, D, (1100, 60, 75), (6, 95)), snap(campaign, "2025-11-21", (1, 1, 1))
    ) == (1, 1)
    await desk.stores.clickhouse.execute("OPTIMIZE TABLE campaign_metrics_hourly FINAL")
    assert await desk.day(client_id) == (1100, 60, "6", 75, 95)


async def test_a_reading_may_take_a_group_back(desk: Desk) -> None:
    client_id, [campaign] = await desk.tenant()
    await desk.events(campaign, H, 7, 2)
    await desk.put(client_id, PLATFORM, 1, snap(campaign, D, (1000, 50, 70)))
    assert await desk.day(client_id) == (1000, 50, "2", 70, 20)
    await desk.put(client_id, PLATFORM, 2, snap(campaign, D))
    assert await desk.day(client_id) == (7, 0, "2", 7, 20)


async def test_events_and_a_platform_never_add_up(desk: Desk) -> None:
    client_id, [campaign] = await desk.tenant()
    await desk.events(campaign, H, 7, 2)
    await desk.events(campaign, H + timedelta(days=1), 3)
    await desk.put(client_id, PLATFORM, 1, snap(campaign, D, (1000, 50, 70), (9, 90)))
    assert await desk.rows(client_id, DAY, D, "2025-11-21") == {
        D: (1000, 50, "2", 70, 20),
        "2025-11-21": (3, 0, "0", 3, 0),
    }
    assert await desk.rows(client_id, TOTAL, D, "2025-11-21") == {D: (1003, 50, "2", 73, 20)}
    # Late events change their own figures, not those that count.
    await desk.events(campaign, H, 5)
    assert await desk.day(client_id) == (1000, 50, "2", 70, 20)
    assert await desk.daily_view(client_id) == [
        (D, "platform", "events", 1000, 50, 2.0, 70.0, 20.0),
        ("2025-11-21", "events", "", 3, 0, 0.0, 3.0, 0.0),
    ]


@pytest.mark.parametrize("grain", ["day", "hour"])
async def test_one_source_counts_for_each_group(desk: Desk, grain: str) -> None:
    client_id, campaigns = await desk.tenant(5)
    at: str | datetime = D if grain == "day" else H
    everything, own, delivered, brought, late = campaigns
    await desk.events(everything, H, 2, 2)
    await desk.events(own, H, 2, 2)
    both = ((100, 1, 10), (10, 100))
    await desk.put(
        client_id, BACKFILL, 1, *(snap(each, at, (500, 5, 50), (50, 500)) for each in campaigns if each is not own)
    )
    await desk.put(
        client_id, IMPORT, 1,
        snap(everything, at, (400, 4, 40), (40, 400)), snap(own, at, (400, 4, 40), (40, 400)),
        snap(brought, at, (400, 4, 40)), snap(late, at),
    )  # fmt: skip
    await desk.put(client_id, PLATFORM, 1, snap(everything, at, *both), snap(delivered, at, both[0]))
    await desk.put(client_id, ANALYTICS, 1, snap(everything, at, None, (3, 30)), snap(brought, at, None, (3, 30)))
    request = pb.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date=D, end_date=D),
        granularity=DAY,
        dimensions=[pb.DIMENSION_CAMPAIGN],
        filter=pb.StatisticsFilter(client_ids=[str(client_id)]),
    )
    reply = await desk.query.ask(request, call())
    found = {
        UUID(row.campaign_id): (row.metrics.impressions, row.metrics.conversions, row.metrics.revenue_micros // 10**6)
        for row in reply.rows
    }
    assert found == {
        everything.id: (100, "3", 30),  # platform, analytics
        own.id: (2, "2", 20),  # events before the import, in both
        delivered.id: (100, "50", 500),  # platform, backfill
        brought.id: (400, "3", 30),  # import, analytics
        late.id: (500, "50", 500),  # an import that measured nothing has no say
    }
    view = {row[1:3] for row in await desk.daily_view(client_id)}
    assert view == {
        ("platform", "analytics"), ("events", "events"), ("platform", "backfill"), ("import", "analytics"),
        ("backfill", "backfill"),
    }  # fmt: skip


async def test_platform_outcome_counts_where_nothing_better_does(desk: Desk) -> None:
    client_id, [campaign] = await desk.tenant()
    await desk.put(client_id, IMPORT, 1, snap(campaign, D, (4, 4, 4), (4, 4)))
    assert await desk.day(client_id) == (4, 4, "4", 4, 4)
    await desk.put(client_id, PLATFORM, 1, snap(campaign, H, (1, 1, 1), (1, 1)))
    assert await desk.day(client_id) == (1, 1, "1", 1, 1)
    # A tracker that sees impressions only does not say that nothing came of them.
    await desk.events(campaign, H + timedelta(hours=2), 5)
    assert await desk.day(client_id) == (1, 1, "1", 1, 1)
    assert await desk.daily_view(client_id) == [(D, "platform", "platform", 1, 1, 1.0, 1.0, 1.0)]
    await desk.events(campaign, H + timedelta(hours=3), 2, 2)
    assert await desk.day(client_id) == (1, 1, "2", 1, 20)
    assert (await desk.daily_view(client_id))[0][1:3] == ("platform", "events")


async def test_days_are_not_cut_into_hours(desk: Desk) -> None:
    client_id, [campaign] = await desk.tenant()
    other = H + timedelta(hours=1)
    await desk.events(campaign, H, 7, 2)
    await desk.put(client_id, PLATFORM, 1, snap(campaign, D, (1000, 50, 70)))
    # The platform has the day's delivery, but says nothing of its hours; the outcome is the events'.
    assert await desk.rows(client_id, HOUR, D) == {"20T10": (0, 0, "2", 0, 20)}
    # Its hours, too: hours are shown as such, the day as its own figure, never the sum of both.
    await desk.put(client_id, PLATFORM, 1, snap(campaign, H, (300, 3, 30)), snap(campaign, other, (500, 5, 50)))
    assert await desk.rows(client_id, HOUR, D) == {"20T10": (300, 3, "2", 30, 20), "20T11": (500, 5, "0", 50, 0)}
    assert await desk.day(client_id) == (1000, 50, "2", 70, 20)
    # A period that cuts the day cannot show it as a whole.
    request = pb.QueryStatisticsRequest(
        granularity=TOTAL, filter=pb.StatisticsFilter(client_ids=[str(client_id)])
    )  # fmt: skip
    request.times.start_time.FromDatetime(H)
    request.times.end_time.FromDatetime(H + timedelta(days=1))
    [row] = (await desk.query.ask(request, call())).rows
    assert row.metrics.impressions == 800
    # An hour earlier than all of it, the platform has the day all the same.
    request.times.start_time.FromDatetime(datetime(2025, 11, 20, tzinfo=UTC))
    request.times.end_time.FromDatetime(other)
    [row] = (await desk.query.ask(request, call())).rows
    assert row.metrics.impressions == 300


@pytest.mark.parametrize(
    "zone", ["Europe/Moscow", "UTC", "Asia/Kamchatka", "America/New_York", "Pacific/Auckland", "Pacific/Honolulu"]
)
async def test_a_day_belongs_to_its_date_whatever_zone_is_asked_for(desk: Desk, zone: str) -> None:
    client_id, [campaign] = await desk.tenant(zone="Asia/Vladivostok")
    # The first and the last hour of the client's date.
    begin = datetime(2025, 11, 20, tzinfo=ZoneInfo("Asia/Vladivostok")).astimezone(UTC)
    for at in (begin - timedelta(hours=1), begin, begin + timedelta(hours=23), begin + timedelta(hours=24)):
        await desk.events(campaign, at, 1)
    await desk.put(client_id, PLATFORM, 1, snap(campaign, D, (1000, 50, 70)))
    found = await desk.rows(client_id, DAY, "2025-11-17", "2025-11-24", zone=zone)
    # Of the client's date the events count for nothing; those before and after it do.
    assert sum(figures[0] for figures in found.values()) == 1002
    assert found[D][0] >= 1000
    for granularity in (WEEK, MONTH, TOTAL):
        [figures] = (await desk.rows(client_id, granularity, "2025-11-17", "2025-11-23", zone=zone)).values()
        assert figures[0] == 1002
    assert await desk.rows(client_id, DAY, D, zone="Asia/Vladivostok") == {D: (1000, 50, "0", 70, 0)}


async def test_dates_where_clocks_change(desk: Desk) -> None:
    client_id, [campaign] = await desk.tenant(zone="Europe/Berlin")
    days = [date(2025, 10, 25) + timedelta(days=number) for number in range(3)]
    await desk.put(client_id, PLATFORM, 1, *(snap(campaign, day.isoformat(), (day.day, 0, 0)) for day in days))
    # The day has 25 hours; the event is in its last one.
    await desk.events(campaign, datetime(2025, 10, 26, 22, 30, tzinfo=UTC), 1)
    found = await desk.rows(client_id, DAY, "2025-10-25", "2025-10-27")
    assert {day: figures[0] for day, figures in found.items()} == {day.isoformat(): day.day for day in days}


async def test_clients_are_kept_apart(desk: Desk) -> None:
    one, [mine] = await desk.tenant()
    two, [theirs] = await desk.tenant()
    await desk.events(mine, H, 7)
    await desk.events(theirs, H, 8)
    await desk.put(one, PLATFORM, 5, snap(mine, D, (1000, 50, 70)))
    assert await desk.day(one) == (1000, 50, "0", 70, 0)
    assert await desk.day(two) == (8, 0, "0", 8, 0)
    request = pb.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date=D, end_date=D),
        granularity=TOTAL,
        filter=pb.StatisticsFilter(client_ids=[str(one), str(two)]),
    )
    [row] = (await desk.query.ask(request, call())).rows
    assert row.metrics.impressions == 1008
    with pytest.raises(InvalidRequest) as caught:
        await desk.put(one, PLATFORM, 9, snap(mine, D, (1, 1, 1)), snap(theirs, D, (1, 1, 1)))
    assert caught.value.reason == "EVENTS_INVALID"
    assert [violation.field for violation in caught.value.violations] == ["snapshots[1].campaign_id"]
    assert await desk.day(one) == (1000, 50, "0", 70, 0)


async def test_a_campaigns_currency_and_the_conditions_of_a_reading_are_kept(desk: Desk) -> None:
    client_id, [campaign] = await desk.tenant()
    dollars = await desk.stores.campaign(client_id, currency="USD")
    await desk.put(
        client_id, PLATFORM, 1, snap(campaign, D, (1, 1, 5)), snap(dollars, D, (2, 2, 7)),
        vat_included=True, attribution_model=snapshot_pb2.ATTRIBUTION_MODEL_LAST_CLICK, goal_ids=["12", "7"],
    )  # fmt: skip
    request = pb.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date=D, end_date=D),
        granularity=DAY,
        filter=pb.StatisticsFilter(client_ids=[str(client_id)]),
    )
    rows = (await desk.query.ask(request, call())).rows
    assert [(row.metrics.currency_code, row.metrics.cost_micros) for row in rows] == [
        ("RUB", 5_000_000),
        ("USD", 7_000_000),
    ]
    kept = await desk.stores.clickhouse.fetch(
        f"""SELECT DISTINCT vat_included, attribution_model, goal_ids, has_outcome, source
        FROM campaign_metrics_hourly FINAL WHERE client_id = '{client_id}'"""
    )
    assert kept == [(True, "last_click", ["12", "7"], False, "platform")]


async def test_nothing_is_stored_if_one_snapshot_is_at_fault(desk: Desk) -> None:
    client_id, [campaign] = await desk.tenant(zone="Pacific/Auckland")
    today = datetime.now(ZoneInfo("Pacific/Auckland")).date()
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    good = snap(campaign, D, (1, 1, 1))
    wrong: list[tuple[snapshot_pb2.MetricsSnapshot, str, str]] = [
        (snap(uuid4(), D), "campaign_id", "UNKNOWN_CAMPAIGN"),
        (snap(campaign, "2025-02-30"), "date", "DATE_INVALID"),
        (snap(campaign, "1970-01-01"), "date", "TIME_OUT_OF_RANGE"),
        (snap(campaign, (today + timedelta(days=2)).isoformat()), "date", "TIME_OUT_OF_RANGE"),
        (snap(campaign, H + timedelta(minutes=30)), "hour", "FULL_HOUR"),
        (snap(campaign, H + timedelta(microseconds=1)), "hour", "FULL_HOUR"),
        (snap(campaign, now + timedelta(hours=30)), "hour", "TIME_OUT_OF_RANGE"),
        (snap(campaign, datetime(1969, 1, 1, tzinfo=UTC)), "hour", "TIME_OUT_OF_RANGE"),
        (snap(campaign, H, (2 * 10**12, 0, 0)), "delivery.impressions", "INT64_LTE"),
        (snap(campaign, H, None, (2 * 10**9, 0)), "outcome.conversions_micros", "INT64_LTE"),
    ]
    for snapshot, field, reason in wrong:
        with pytest.raises(InvalidRequest) as caught:
            await desk.put(client_id, PLATFORM, 1, good, snapshot)
        assert caught.value.reason == "EVENTS_INVALID"
        assert [(v.field, v.reason) for v in caught.value.violations] == [(f"snapshots[1].{field}", reason)]
    with pytest.raises(InvalidRequest) as caught:
        await desk.put(client_id, PLATFORM, 1, good, snap(campaign, D, (2, 2, 2)))
    assert [(v.field, v.reason) for v in caught.value.violations] == [("snapshots[1]", "DUPLICATE")]
    with pytest.raises(InvalidRequest) as caught:
        await desk.put(client_id, ANALYTICS, 1, snap(campaign, D, (2, 2, 2)))
    assert [(v.field, v.reason) for v in caught.value.violations] == [("snapshots[0].delivery", "NOT_MEASURED")]
    assert await desk.stores.clickhouse.fetch("SELECT count() FROM campaign_metrics_hourly") == [(0,)]
    # Tomorrow where the client is, and the same instant by hour.
    assert await desk.put(
        client_id, PLATFORM, 1, snap(campaign, (today + timedelta(days=1)).isoformat()), snap(campaign, now)
    ) == (2, 0)


async def test_another_tenants_client_is_not_found(desk: Desk) -> None:
    client_id, [campaign] = await desk.tenant()
    request = pb.AppendMetricsRequest(
        client_id=str(client_id), source=PLATFORM, version=1, snapshots=[snap(campaign, D)]
    )  # fmt: skip
    with pytest.raises(NotFound):
        await desk.append.AppendMetrics(request, call(Scope(client_ids=(uuid4(),))))
    assert (await desk.append.AppendMetrics(request, call(Scope(client_ids=(client_id,))))).stored_count == 1


async def test_readings_that_come_at_once_are_stored_in_order(desk: Desk) -> None:
    client_id, campaigns = await desk.tenant(3)
    days = [(date(2025, 11, 1) + timedelta(days=number)).isoformat() for number in range(20)]

    async def put(version: int) -> tuple[int, int]:
        made = (snap(campaign, day, (version, 0, 0)) for campaign in campaigns for day in days)
        return await desk.put(client_id, PLATFORM, version, *made)

    answers = await asyncio.gather(*(put(version) for version in (3, 1, 8, 5, 2, 7, 4, 6)))
    assert all(sorted(answer) == [0, 60] for answer in answers)
    assert answers[2] == (60, 0)
    assert (await desk.rows(client_id, TOTAL, days[0], days[-1]))[days[0]][0] == 8 * 60


async def test_ten_thousand_snapshots(desk: Desk) -> None:
    client_id, campaigns = await desk.tenant(4)
    hours = [datetime(2025, 8, 1, tzinfo=UTC) + timedelta(hours=number) for number in range(2500)]
    made = [snap(campaign, hour, (10, 1, 1), (1, 2)) for campaign in campaigns for hour in hours]
    assert await desk.put(client_id, PLATFORM, 1, *made) == (10_000, 0)
    assert await desk.put(client_id, PLATFORM, 1, *made) == (0, 10_000)
    [figures] = (await desk.rows(client_id, TOTAL, "2025-08-01", "2025-12-01")).values()
    assert figures == (100_000, 10_000, "10000", 10_000, 20_000)


@pytest.fixture
async def hub(desk: Desk) -> AsyncIterator[WatchHub]:
    # It polls rarely: what comes soon came by a signal.
    hub = WatchHub(desk.stores.database, desk.stores.clickhouse, desk.signals, WatchSettings(tick=0.05, poll=60.0))
    task = asyncio.create_task(hub.run())
    yield hub
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_watchers_see_snapshots_at_once_and_states_grow(desk: Desk, hub: WatchHub) -> None:
    client_id, [campaign] = await desk.tenant(zone="Asia/Vladivostok")
    today = datetime.now(ZoneInfo("Asia/Vladivostok")).date().isoformat()
    now = datetime.now(UTC)
    with hub.subscribe(EVERYTHING, client_id, Span(days=1), Choice(), asyncio.Event()) as mailbox:
        await until(lambda: _ready(mailbox.feed))
        mailbox.take_snapshot()
        seen = [(0, 0, 0)]

        async def sees(impressions: int, conversions: int) -> None:
            async def there() -> bool:
                state = mailbox.feed.states[campaign.id]
                return (state.totals.impressions, state.totals.conversions_micros) == (impressions, conversions * 10**6)

            with suppress(TimeoutError):
                await until(there, 5.0)
            state = mailbox.feed.states[campaign.id]
            totals = (state.totals.impressions, state.totals.conversions_micros // 10**6)
            assert totals == (impressions, conversions)
            assert state.version > seen[-1][0]
            seen.append((state.version, *totals))

        await desk.put(client_id, PLATFORM, 10**18, snap(campaign, today, (1000, 50, 70)))
        await sees(1000, 0)
        await desk.events(campaign, now, 7, 2)
        await sees(1000, 2)
        await desk.put(client_id, PLATFORM, 10**18 + 1, snap(campaign, today, (900, 50, 70)))
        await sees(900, 2)
        await desk.put(client_id, ANALYTICS, 1, snap(campaign, today, None, (5, 5)))
        await sees(900, 5)
        await desk.put(client_id, ANALYTICS, 2, snap(campaign, today, None, (4, 5)))
        await sees(900, 4)
        await desk.put(client_id, PLATFORM, 10**18 + 2, snap(campaign, today))
        await sees(7, 4)
        await desk.events(campaign, now, 1)
        await sees(8, 4)


async def _ready(feed: Feed) -> bool:
    return feed.ready


async def test_figures_that_were_there_before_stay_right(desk: Desk) -> None:
    """Rows written before the migration have no value in its columns."""
    client_id, [campaign] = await desk.tenant()
    await desk.stores.clickhouse.execute(
        f"""INSERT INTO campaign_metrics_hourly
          (client_id, campaign_id, platform, source, grain, hour, project_id, currency, impressions, version)
        VALUES ('{client_id}', '{campaign.id}', 'other', 'events', 'hour', '2025-11-20 10:00:00',
          '{campaign.project_id}', 'RUB', 7, 77)"""
    )
    assert await desk.day(client_id) == (7, 0, "0", 0, 0)
    rows = await desk.stores.clickhouse.fetch(
        "SELECT has_delivery, has_outcome, state_version FROM campaign_metrics_hourly FINAL"
    )
    assert rows == [(True, True, 77)]
    await desk.put(client_id, BACKFILL, 1, snap(campaign, D, (1000, 1, 1), (1, 1)))
    assert await desk.day(client_id) == (7, 0, "1", 0, 1)


async def test_the_migration_may_run_again(desk: Desk) -> None:
    [migration] = [each for each in load(MIGRATIONS) if each.version == "0002_snapshots"]
    client_id, [campaign] = await desk.tenant()
    await desk.put(client_id, PLATFORM, 1, snap(campaign, D, (1000, 1, 1)))
    await ClickHouseTarget(desk.stores.clickhouse, desk.stores.clickhouse_dsn).apply(migration)
    assert await desk.day(client_id) == (1000, 1, "0", 1, 0)
