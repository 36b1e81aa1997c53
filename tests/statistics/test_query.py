"""QueryStatistics and GetFreshness on real engines, past the pipeline."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from mrm.common.v1 import platform_pb2, time_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.rpc.call import Call, Principal
from server.rpc.errors import InvalidRequest, NotFound
from server.settings import MetricsSettings
from server.statistics.aggregator import Leader
from server.statistics.rules import QueryTooLarge
from server.statistics.watermark import Progress
from storage.errors import StoreUnavailable
from storage.postgres import clients, project_team, users
from storage.postgres.database import Database
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


def call(scope: Scope = EVERYTHING) -> Call:
    return Call("/x", "test", Principal("user", uuid4(), frozenset(), scope))


def asked(
    first: str, last: str, granularity: int = DAY, *dimensions: int, **fields: object
) -> pb.QueryStatisticsRequest:
    days = time_pb2.DateRange(start_date=first, end_date=last)
    return pb.QueryStatisticsRequest(dates=days, granularity=granularity, dimensions=dimensions, **fields)  # type: ignore[arg-type]


def only(*client_ids: UUID) -> pb.StatisticsFilter:
    return pb.StatisticsFilter(client_ids=[str(each) for each in client_ids])


@pytest.fixture
async def signals(stores: Stores) -> AsyncIterator[Signals]:
    signals = Signals(stores.redis_dsn)
    yield signals
    await signals.close()


@pytest.fixture
async def leader(stores: Stores, signals: Signals) -> Leader:
    return Leader(stores.database, stores.clickhouse, signals, MetricsSettings(), 1, Progress())


@pytest.fixture
def rpcs(stores: Stores) -> Queries:
    return Queries(stores.database, stores.clickhouse)


async def work(leader: Leader) -> None:
    for reader in (leader._live, leader._late):
        while await leader.tick(reader, 2):
            pass
    await leader.commit()


async def test_every_bucket_appears_and_zero_is_not_nothing(stores: Stores, leader: Leader, rpcs: Queries) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, datetime(2025, 11, 2, 5, tzinfo=UTC), count=3)
    await stores.events(
        campaign, datetime(2025, 11, 3, 5, tzinfo=UTC), kind="conversion", conversions="0.4", cost="1.5"
    )
    await stores.events(campaign, datetime(2025, 11, 4, 5, tzinfo=UTC))
    await work(leader)
    await stores.forget(campaign, datetime(2025, 11, 4, 5, tzinfo=UTC))
    await work(leader)
    reply = await rpcs.ask(asked("2025-11-01", "2025-11-05", filter=only(client_id)), call())
    assert [(row.start_date, row.data_present, row.metrics.impressions) for row in reply.rows] == [
        ("2025-11-01", False, 0),
        ("2025-11-02", True, 3),
        ("2025-11-03", True, 0),
        ("2025-11-04", True, 0),
        ("2025-11-05", False, 0),
    ]
    metrics = reply.rows[2].metrics
    assert (metrics.conversions, metrics.cost_micros, metrics.cpa, metrics.romi) == ("0.4", 1_500_000, "3.75", "-100")
    assert not metrics.HasField("ctr")
    assert reply.rows[0].metrics.conversions == "0"
    assert reply.watermark_time.seconds > 0
    assert reply.time_zone == "UTC"


@pytest.mark.bar_b
@pytest.mark.parametrize("zone", ["Europe/Moscow", "UTC", "Asia/Vladivostok", "Europe/Berlin"])
async def test_day_totals_are_the_sums_of_local_days(stores: Stores, leader: Leader, rpcs: Queries, zone: str) -> None:
    client_id, [campaign] = await stores.tenant(zone=zone)
    begin = datetime(2025, 10, 24, tzinfo=UTC)
    expected: dict[str, int] = {}
    for hour in range(0, 24 * 5, 5):
        at = begin + timedelta(hours=hour, minutes=30)
        await stores.events(campaign, at, count=hour % 3 + 1)
        local = at.astimezone(ZoneInfo(zone)).date().isoformat()
        expected[local] = expected.get(local, 0) + hour % 3 + 1
    await work(leader)
    request = asked("2025-10-23", "2025-10-31", filter=only(client_id))
    reply = await rpcs.ask(request, call())
    assert reply.time_zone == zone
    found = {row.start_date: row.metrics.impressions for row in reply.rows if row.data_present}
    assert found == expected
    total = await rpcs.ask(asked("2025-10-23", "2025-10-31", TOTAL, filter=only(client_id)), call())
    assert [row.metrics.impressions for row in total.rows] == [sum(expected.values())]


async def test_days_weeks_and_months_where_clocks_change(stores: Stores, rpcs: Queries) -> None:
    def lengths(reply: pb.QueryStatisticsResponse) -> list[int]:
        return [(row.end_time.seconds - row.start_time.seconds) // 3600 for row in reply.rows]

    autumn = await rpcs.ask(asked("2025-10-25", "2025-10-27", time_zone="Europe/Berlin"), call())
    assert lengths(autumn) == [24, 25, 24]
    spring = await rpcs.ask(asked("2025-03-29", "2025-03-31", time_zone="Europe/Berlin"), call())
    assert lengths(spring) == [24, 23, 24]
    hours = await rpcs.ask(asked("2025-10-26", "2025-10-26", HOUR, time_zone="Europe/Berlin"), call())
    assert lengths(hours) == [1] * 25
    assert {row.start_date for row in hours.rows} == {""}
    weeks = await rpcs.ask(asked("2025-12-24", "2026-01-06", WEEK, time_zone="Europe/Berlin"), call())
    assert [row.start_date for row in weeks.rows] == ["2025-12-24", "2025-12-29", "2026-01-05"]
    months = await rpcs.ask(asked("2025-01-15", "2025-04-01", MONTH, time_zone="Europe/Berlin"), call())
    assert [row.start_date for row in months.rows] == ["2025-01-15", "2025-02-01", "2025-03-01", "2025-04-01"]
    assert lengths(months)[1:3] == [28 * 24, 31 * 24 - 1]


async def test_instants_must_be_full_hours(stores: Stores, rpcs: Queries) -> None:
    request = pb.QueryStatisticsRequest(granularity=HOUR)
    request.times.start_time.FromSeconds(1_760_000_400 - 1_760_000_400 % 3600)
    request.times.end_time.FromSeconds(request.times.start_time.seconds + 7200)
    assert len((await rpcs.ask(request, call())).rows) == 2
    request.times.end_time.seconds += 1
    with pytest.raises(InvalidRequest) as caught:
        await rpcs.ask(request, call())
    assert caught.value.violations[0].field == "times.end_time"


@pytest.mark.parametrize(
    ("first", "last", "field"),
    [
        ("2026-02-30", "2026-03-01", "dates.start_date"),
        ("2026-01-01", "2026-13-01", "dates.end_date"),
        ("2010-01-01", "2026-01-01", "dates"),
        ("0001-01-01", "0001-01-02", "dates.start_date"),
        ("9999-12-30", "9999-12-31", "dates.start_date"),
        ("2026-01-02", "2026-01-01", "dates"),
    ],
)
async def test_bad_days_are_named(rpcs: Queries, first: str, last: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await rpcs.ask(asked(first, last), call())
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Asia/Kathmandu", "Mars/Olympus", "../etc/passwd", "Europe"])
async def test_zones_that_do_not_fit_are_refused(rpcs: Queries, zone: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await rpcs.ask(asked("2026-01-01", "2026-01-02", time_zone=zone), call())
    assert caught.value.reason == "TIME_ZONE_UNSUPPORTED"


async def test_dimensions_currencies_and_order(stores: Stores, leader: Leader, rpcs: Queries) -> None:
    client_id = await stores.client()
    project_id = await stores.project(client_id)
    yandex = await stores.campaign(client_id, project_id, platform="yandex_direct")
    vk = await stores.campaign(client_id, project_id, platform="vk_ads", currency="USD")
    at = datetime(2025, 11, 2, 5, tzinfo=UTC)
    await stores.events(yandex, at, count=100)
    await stores.events(vk, at + timedelta(days=1), count=900)
    await work(leader)
    request = asked("2025-11-02", "2025-11-03", DAY, pb.DIMENSION_PLATFORM, pb.DIMENSION_CAMPAIGN)
    request.filter.CopyFrom(only(client_id))
    reply = await rpcs.ask(request, call())
    assert [
        (row.start_date, row.platform, row.campaign_id, row.metrics.currency_code, row.metrics.impressions)
        for row in reply.rows
    ] == [
        ("2025-11-02", platform_pb2.PLATFORM_VK_ADS, str(vk.id), "USD", 0),
        ("2025-11-02", platform_pb2.PLATFORM_YANDEX_DIRECT, str(yandex.id), "RUB", 100),
        ("2025-11-03", platform_pb2.PLATFORM_VK_ADS, str(vk.id), "USD", 900),
        ("2025-11-03", platform_pb2.PLATFORM_YANDEX_DIRECT, str(yandex.id), "RUB", 0),
    ]
    assert {row.client_id for row in reply.rows} == {""}
    request = asked("2025-11-02", "2025-11-03", TOTAL, pb.DIMENSION_CLIENT, pb.DIMENSION_PROJECT)
    request.filter.client_ids.append(str(client_id))
    request.filter.platforms.append(platform_pb2.PLATFORM_VK_ADS)
    reply = await rpcs.ask(request, call())
    assert [(row.client_id, row.project_id, row.metrics.impressions) for row in reply.rows] == [
        (str(client_id), str(project_id), 900)
    ]


async def test_too_many_rows_are_refused_before_they_are_read(stores: Stores, leader: Leader, rpcs: Queries) -> None:
    with pytest.raises(QueryTooLarge):
        await rpcs.ask(asked("2025-01-01", "2026-12-31", HOUR), call())
    client_id, campaigns = await stores.tenant(2)
    for campaign in campaigns:
        await stores.events(campaign, datetime(2025, 11, 2, 5, tzinfo=UTC))
    await work(leader)
    request = asked("2025-01-01", "2025-12-31", HOUR, pb.DIMENSION_CAMPAIGN, filter=only(client_id))
    with pytest.raises(QueryTooLarge) as caught:
        await rpcs.ask(request, call())
    assert caught.value.metadata["row_limit"] == "10000"
    request.ClearField("dimensions")
    assert len((await rpcs.ask(request, call())).rows) == 365 * 24


async def test_scopes(stores: Stores, leader: Leader, rpcs: Queries) -> None:
    at = datetime(2025, 11, 2, 5, tzinfo=UTC)
    mine, other = await stores.client(), await stores.client()
    seen, hidden = await stores.campaign(other), await stores.campaign(other)
    await stores.events(await stores.campaign(mine), at, count=1)
    await stores.events(seen, at, count=10)
    await stores.events(hidden, at, count=100)
    await work(leader)
    member = await users.create(stores.database, email="m@example.com", password_hash="!", role="specialist")
    await clients.add_membership(stores.database, user_id=member.id, client_id=mine)
    await project_team.add(stores.database, project_id=seen.project_id, user_id=member.id, role="specialist")
    scope = Scope(user_id=member.id)

    async def total(wanted: pb.StatisticsFilter | None = None, scope: Scope = scope) -> int:
        request = asked("2025-11-01", "2025-11-30", TOTAL, filter=wanted)
        return sum(row.metrics.impressions for row in (await rpcs.ask(request, call(scope))).rows)

    assert await total() == 11
    assert await total(only(mine)) == 1
    assert await total(pb.StatisticsFilter(project_ids=[str(seen.project_id)])) == 10
    assert await total(pb.StatisticsFilter(campaign_ids=[str(seen.id)])) == 10
    assert await total(pb.StatisticsFilter(campaign_ids=[str(seen.id)], client_ids=[str(mine)])) == 0
    assert await total(scope=EVERYTHING) == 111
    assert await total(scope=Scope()) == 0
    for wanted in (
        only(other),
        only(mine, uuid4()),
        pb.StatisticsFilter(project_ids=[str(hidden.project_id)]),
        pb.StatisticsFilter(campaign_ids=[str(seen.id), str(hidden.id)]),
    ):
        with pytest.raises(NotFound):
            await total(wanted)
    with pytest.raises(NotFound):
        await rpcs.GetFreshness(pb.GetFreshnessRequest(client_id=str(other)), call(scope))


async def test_while_postgresql_is_down_known_scopes_still_read(
    stores: Stores, leader: Leader, rpcs: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, datetime(2025, 11, 2, 5, tzinfo=UTC), count=3)
    await work(leader)
    request, caller = asked("2025-11-02", "2025-11-02", filter=only(client_id)), call(Scope(client_ids=(client_id,)))
    first = await rpcs.ask(request, caller)

    async def down(*_: object) -> None:
        raise StoreUnavailable("postgresql")

    for name in ("fetch", "fetchrow", "fetchval"):
        monkeypatch.setattr(Database, name, down)
    assert await rpcs.ask(request, caller) == first
    with pytest.raises(StoreUnavailable):
        await rpcs.ask(request, call(Scope(client_ids=(uuid4(),))))


async def test_freshness(stores: Stores, leader: Leader, rpcs: Queries) -> None:
    client_id, [campaign, other] = await stores.tenant(2)
    request = pb.GetFreshnessRequest(client_id=str(client_id))
    empty = await rpcs.GetFreshness(request, call())
    assert not empty.HasField("last_event_time")
    assert not empty.HasField("watermark_time")
    last = datetime(2025, 11, 2, 5, 7, 9, 123456, tzinfo=UTC)
    await stores.events(campaign, last)
    await stores.events(other, last - timedelta(minutes=1))
    assert (await rpcs.GetFreshness(request, call())).dirty_slice_count == 2
    await work(leader)
    reply = await rpcs.GetFreshness(request, call())
    assert reply.last_event_time.ToDatetime(UTC) == last
    assert reply.dirty_slice_count == 0
    assert abs(reply.watermark_time.ToDatetime(UTC) - datetime.now(UTC)) < timedelta(seconds=10)
    assert reply.raw_floor_time.seconds == 0
    await stores.clickhouse.execute(
        f"INSERT INTO campaign_events_quarantine (client_id, reason) VALUES ('{client_id}', 'too_old')"
    )
    assert (await rpcs.GetFreshness(request, call())).quarantined_count == 1


async def test_sums_are_exact_beyond_floating_point(stores: Stores, leader: Leader, rpcs: Queries) -> None:
    client_id, [campaign] = await stores.tenant()
    for cost in ("900000000000.000001", "0.000001", "99999999999.999999"):
        await stores.events(campaign, datetime(2025, 11, 2, 5, tzinfo=UTC), cost=cost)
    await work(leader)
    day = date(2025, 11, 2).isoformat()
    [row] = (await rpcs.ask(asked(day, day, filter=only(client_id)), call())).rows
    assert Decimal(row.metrics.cost_micros).scaleb(-6) == Decimal("1000000000000.000001")
