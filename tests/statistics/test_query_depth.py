"""Breakdowns, the largest and the rest, the period before, totals and the cost guard, on real engines."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.rpc.errors import InvalidRequest
from server.settings import QuerySettings
from server.statistics import rules
from server.statistics.rules import QueryTooLarge
from storage.errors import StoreUnavailable
from storage.postgres import campaigns, clients, metrics_state, users
from storage.postgres.campaigns import Campaign
from storage.postgres.database import Database
from storage.scope import EVERYTHING, Scope
from tests.statistics.conftest import Queries, Stores
from tests.statistics.test_query import DAY, HOUR, MONTH, TOTAL, asked, call, only

_COLUMNS = {
    "client_id": "UUID",
    "campaign_id": "UUID",
    "platform": "LowCardinality(String)",
    "source": "LowCardinality(String)",
    "grain": "Enum8('hour' = 1, 'day' = 2)",
    "hour": "DateTime('UTC')",
    "project_id": "UUID",
    "currency": "LowCardinality(String)",
    "impressions": "UInt64",
    "clicks": "UInt64",
    "conversions": "Decimal(38, 6)",
    "cost": "Decimal(38, 6)",
    "revenue": "Decimal(38, 6)",
    "event_count": "UInt64",
    "version": "UInt64",
}
NOVEMBER = datetime(2025, 11, 2, tzinfo=UTC)


async def measured(
    stores: Stores, campaign: Campaign, at: datetime, shown: int, clicks: int = 0, cost: str = "0", revenue: str = "0"
) -> None:
    """An hour of figures as the rebuild writes them."""
    row = (
        campaign.client_id, campaign.id, campaign.platform, "events", "hour", at, campaign.project_id,
        campaign.currency, shown, clicks, Decimal(0), Decimal(cost), Decimal(revenue), shown + clicks, 1,
    )  # fmt: skip
    await stores.clickhouse.insert_rows("campaign_metrics_hourly", _COLUMNS, [row])


async def planned(stores: Stores, project_id: UUID, client_id: UUID, plan: UUID, channel: UUID | None) -> Campaign:
    """A campaign of a media plan."""
    await stores.database.execute(
        "INSERT INTO plan_lineages (id, project_id, name) VALUES ($1, $2, 'Plan') ON CONFLICT DO NOTHING",
        plan,
        project_id,
    )
    made = await stores.campaign(client_id, project_id)
    changed = await campaigns.update(
        stores.database, EVERYTHING, replace(made, plan_lineage_id=plan, plan_channel_id=channel)
    )
    assert changed is not None
    return changed


@pytest.fixture
def rpcs(stores: Stores) -> Queries:
    return Queries(stores.database, stores.clickhouse)


async def test_figures_are_regrouped_by_media_plan_and_channel(
    stores: Stores, rpcs: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_id = await stores.client()
    project_id = await stores.project(client_id)
    plan, other_plan, channel = uuid4(), uuid4(), uuid4()
    for number, (of_plan, of_channel) in enumerate(
        [(plan, channel), (plan, channel), (plan, None), (other_plan, None)]
    ):
        campaign = await planned(stores, project_id, client_id, of_plan, of_channel)
        await measured(stores, campaign, NOVEMBER, 10**number, 1, "0.1")
    await measured(stores, await stores.campaign(client_id, project_id), NOVEMBER, 10_000)
    wanted = {"filter": only(client_id)}
    by_plan = asked("2025-11-02", "2025-11-02", TOTAL, pb.DIMENSION_MEDIA_PLAN, **wanted)
    reply = await rpcs.ask(by_plan, call())
    assert {row.media_plan_id: row.metrics.impressions for row in reply.rows} == {
        "": 10_000, str(plan): 111, str(other_plan): 1000,
    }  # fmt: skip
    assert [row.metrics.ctr for row in reply.rows if row.media_plan_id == str(plan)] == ["2.702703"]
    assert {row.campaign_id for row in reply.rows} == {""}
    by_channel = asked("2025-11-02", "2025-11-02", TOTAL, pb.DIMENSION_CHANNEL, pb.DIMENSION_CLIENT, **wanted)
    reply = await rpcs.ask(by_channel, call())
    assert {(row.channel_id, row.client_id): row.metrics.impressions for row in reply.rows} == {
        ("", str(client_id)): 11_100, (str(channel), str(client_id)): 11,
    }  # fmt: skip
    both = asked("2025-11-02", "2025-11-02", TOTAL, pb.DIMENSION_MEDIA_PLAN, pb.DIMENSION_CAMPAIGN, **wanted)
    assert len((await rpcs.ask(both, call())).rows) == 5

    # Who may see it may see its plan; and while PostgreSQL is down, what was known is still known.
    member = await users.create(stores.database, email="m@example.com", password_hash="!", role="specialist")
    await clients.add_membership(stores.database, user_id=member.id, client_id=client_id)
    caller = call(Scope(user_id=member.id))
    seen = await rpcs.ask(by_plan, caller)
    assert len(seen.rows) == 3

    async def down(*_: object) -> None:
        raise StoreUnavailable("postgresql")

    for name in ("fetch", "fetchrow", "fetchval"):
        monkeypatch.setattr(Database, name, down)
    assert (await rpcs.ask(by_plan, caller)).rows == seen.rows


async def test_kinds_of_events(stores: Stores, rpcs: Queries) -> None:
    client_id, [campaign, other] = await stores.tenant(2)
    for kind, count, cost in (("impression", 5, "0.5"), ("click", 2, "1"), ("conversion", 1, "0")):
        await stores.events(campaign, NOVEMBER + timedelta(hours=5, minutes=1), count=count, kind=kind, cost=cost)
    await stores.events(other, NOVEMBER + timedelta(days=1, hours=23, minutes=59), count=3)
    await stores.events(other, NOVEMBER + timedelta(days=2), count=30)
    # Figures of the rebuild, or of other sources, are not asked.
    await measured(stores, campaign, NOVEMBER, 1000)
    request = asked("2025-11-02", "2025-11-03", DAY, pb.DIMENSION_EVENT_TYPE, filter=only(client_id))
    request.include_totals = True
    reply = await rpcs.ask(request, call())
    assert [
        (row.start_date, row.event_type, row.metrics.impressions, row.metrics.clicks, row.metrics.cost_micros)
        for row in reply.rows
        if row.data_present
    ] == [
        ("2025-11-02", event_pb2.EVENT_TYPE_CLICK, 0, 2, 2_000_000),
        ("2025-11-02", event_pb2.EVENT_TYPE_CONVERSION, 0, 0, 0),
        ("2025-11-02", event_pb2.EVENT_TYPE_IMPRESSION, 5, 0, 2_500_000),
        ("2025-11-03", event_pb2.EVENT_TYPE_IMPRESSION, 3, 0, 0),
    ]
    assert len(reply.rows) == 6
    assert [(row.metrics.impressions, row.metrics.clicks, row.metrics.ctr) for row in reply.totals] == [(8, 2, "25")]
    request = asked("2025-11-02", "2025-11-03", TOTAL, pb.DIMENSION_CAMPAIGN, pb.DIMENSION_EVENT_TYPE)
    request.filter.client_ids.append(str(client_id))
    assert len((await rpcs.ask(request, call())).rows) == 4


@pytest.mark.parametrize("dimension", [pb.DIMENSION_MEDIA_PLAN, pb.DIMENSION_CHANNEL])
async def test_kinds_of_events_know_no_plan(rpcs: Queries, dimension: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await rpcs.ask(asked("2025-11-02", "2025-11-03", DAY, pb.DIMENSION_EVENT_TYPE, dimension), call())
    assert [violation.field for violation in caught.value.violations] == ["dimensions"]


async def test_kinds_of_events_below_the_raw_floor_are_refused(stores: Stores, rpcs: Queries) -> None:
    await metrics_state.raise_raw_floor(stores.database, NOVEMBER)
    await rpcs.ask(asked("2025-11-02", "2025-11-03", DAY, pb.DIMENSION_EVENT_TYPE), call())
    for request in (
        asked("2025-11-01", "2025-11-03", DAY, pb.DIMENSION_EVENT_TYPE),
        asked("2025-11-02", "2025-11-03", DAY, pb.DIMENSION_EVENT_TYPE, compare_previous=True),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await rpcs.ask(request, call())
        assert [(each.field, each.reason) for each in caught.value.violations] == [("dates", "BEFORE_RAW_FLOOR")]
        assert "2025-11-02T00:00:00Z" in caught.value.message
    # Unless the month below was brought back, as a whole.
    await stores.database.execute(
        """INSERT INTO archive_partitions (id, table_name, month, state, kept_until)
           VALUES (gen_random_uuid(), 'campaign_events', '2025-11-01', 'restored', now() + interval '1 day')"""
    )
    await rpcs.ask(asked("2025-11-01", "2025-11-03", DAY, pb.DIMENSION_EVENT_TYPE), call())
    # Figures by anything else stay.
    await rpcs.ask(asked("2025-11-01", "2025-11-03", DAY, pb.DIMENSION_CAMPAIGN), call())


async def test_the_largest_and_the_rest(stores: Stores, rpcs: Queries) -> None:
    client_id, roubles = await stores.tenant(4)
    dollars = [await stores.campaign(client_id, currency="USD") for _ in range(2)]
    for number, campaign in enumerate(roubles):
        await measured(stores, campaign, NOVEMBER, 100, number, "1")
        await measured(stores, campaign, NOVEMBER + timedelta(days=1), 1000 * (number == 0), 0, "2")
    for number, campaign in enumerate(dollars):
        await measured(stores, campaign, NOVEMBER, 7, number)
    request = asked("2025-11-02", "2025-11-03", DAY, pb.DIMENSION_CAMPAIGN, filter=only(client_id))
    request.top.count, request.top.metric = 1, pb.METRIC_CLICKS
    request.include_totals = True
    reply = await rpcs.ask(request, call())
    assert [
        (row.start_date[-2:], row.other, row.metrics.currency_code, row.metrics.impressions, row.metrics.clicks)
        for row in reply.rows
    ] == sorted(
        [
            ("02", False, "RUB", 100, 3),
            ("02", False, "USD", 7, 1),
            ("02", True, "RUB", 300, 3),
            ("02", True, "USD", 7, 0),
            ("03", False, "RUB", 0, 0),
            ("03", False, "USD", 0, 0),
            ("03", True, "RUB", 1000, 0),
            ("03", True, "USD", 0, 0),
        ],
        key=lambda row: (row[0], row[1], 0 if row[1] else _place(row[2], roubles[3], dollars[1]), row[2]),
    )
    kept = {(row.campaign_id, row.metrics.currency_code) for row in reply.rows if not row.other}
    assert kept == {(str(roubles[3].id), "RUB"), (str(dollars[1].id), "USD")}
    assert {row.campaign_id for row in reply.rows if row.other} == {""}
    # Ratios of sums, not sums or means of ratios; nothing measured is not a zero.
    rest = next(row for row in reply.rows if row.other)
    assert (rest.metrics.ctr, rest.metrics.cpc, rest.metrics.cost_micros) == ("1", "1", 3_000_000)
    assert not next(row for row in reply.rows if row.other and row.metrics.impressions == 0).data_present
    assert [(row.metrics.currency_code, row.metrics.impressions, row.metrics.clicks) for row in reply.totals] == [
        ("RUB", 1400, 6),
        ("USD", 14, 1),
    ]
    [total, _] = reply.totals
    assert (total.start_time, total.end_time) == (reply.rows[0].start_time, reply.rows[-1].end_time)
    request.top.count = 4
    assert not any(row.other for row in (await rpcs.ask(request, call())).rows)


def _place(currency: str, rouble: Campaign, dollar: Campaign) -> str:
    return str(rouble.id if currency == "RUB" else dollar.id)


async def test_top_picks_from_more_than_a_reply_holds(
    stores: Stores, rpcs: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_id, made = await stores.tenant(3)
    for campaign in made:
        await measured(stores, campaign, NOVEMBER, 1)
    request = asked("2025-01-01", "2025-12-31", HOUR, pb.DIMENSION_CAMPAIGN, filter=only(client_id))
    request.ClearField("dates")
    request.times.start_time.FromDatetime(NOVEMBER)
    request.times.end_time.FromDatetime(NOVEMBER + timedelta(hours=5000))
    with pytest.raises(QueryTooLarge):
        await rpcs.ask(request, call())
    request.top.count, request.top.metric = 1, pb.METRIC_IMPRESSIONS
    assert len((await rpcs.ask(request, call())).rows) == 10_000
    monkeypatch.setattr(rules, "MOST_SUMS", 10_000)
    with pytest.raises(QueryTooLarge) as caught:
        await rpcs.ask(request, call())
    assert caught.value.metadata["sum_limit"] == "10000"


async def test_the_period_before(stores: Stores, rpcs: Queries) -> None:
    client_id, [campaign, ended] = await stores.tenant(2)
    for day in range(-3, 3):
        await measured(stores, campaign, NOVEMBER + timedelta(days=day, hours=day + 5), 10 + day, 1)
    await measured(stores, ended, NOVEMBER - timedelta(days=1), 500)
    request = asked("2025-11-02", "2025-11-04", DAY, filter=only(client_id))
    request.compare_previous = request.include_totals = True
    reply = await rpcs.ask(request, call())
    assert [(row.metrics.impressions, row.previous_metrics.impressions) for row in reply.rows] == [
        (10, 7),
        (11, 8),
        (12, 509),
    ]
    assert reply.rows[0].previous_metrics.ctr == "14.285714"
    [total] = reply.totals
    assert (total.metrics.impressions, total.previous_metrics.impressions) == (33, 524)
    # A campaign that ended shows what it had; one with nothing before shows nothing.
    by_campaign = asked("2025-11-02", "2025-11-02", DAY, pb.DIMENSION_CAMPAIGN, filter=only(client_id))
    by_campaign.compare_previous = True
    rows = {row.campaign_id: row for row in (await rpcs.ask(by_campaign, call())).rows}
    assert (rows[str(ended.id)].data_present, rows[str(ended.id)].previous_metrics.impressions) == (False, 500)
    by_campaign.dates.start_date, by_campaign.dates.end_date = "2025-11-05", "2025-11-06"
    reply = await rpcs.ask(by_campaign, call())
    assert [(row.campaign_id, row.previous_metrics.impressions) for row in reply.rows] == [
        (str(campaign.id), 11),
        (str(campaign.id), 12),
    ]
    by_campaign.dates.start_date = by_campaign.dates.end_date = "2025-10-30"
    [row] = (await rpcs.ask(by_campaign, call())).rows
    assert not row.HasField("previous_metrics")
    # The rest is compared, too, and only the period itself decides what is largest.
    by_campaign.dates.start_date = by_campaign.dates.end_date = "2025-11-02"
    by_campaign.top.count, by_campaign.top.metric = 1, pb.METRIC_IMPRESSIONS
    kept, rest = (await rpcs.ask(by_campaign, call())).rows
    assert (kept.campaign_id, kept.previous_metrics.impressions) == (str(campaign.id), 9)
    assert (rest.other, rest.data_present, rest.previous_metrics.impressions) == (True, False, 500)


async def test_the_period_before_where_clocks_change(stores: Stores, rpcs: Queries) -> None:
    client_id, [campaign] = await stores.tenant(zone="Europe/Berlin")
    # The clocks are set back on 26 October: the local midnights below are at 22 and at 23 hours UTC.
    for at, shown in (("2025-10-24T22", 1), ("2025-10-25T21", 2), ("2025-10-25T22", 4), ("2025-10-26T22", 8)):
        await measured(stores, campaign, datetime.fromisoformat(f"{at}:00:00+00:00"), shown)
    await measured(stores, campaign, datetime(2025, 10, 26, 23, tzinfo=UTC), 16)
    request = asked("2025-10-26", "2025-10-26", DAY, filter=only(client_id), compare_previous=True)
    [row] = (await rpcs.ask(request, call())).rows
    assert (row.metrics.impressions, row.previous_metrics.impressions) == (12, 3)
    request.dates.start_date = request.dates.end_date = "2025-10-27"
    [row] = (await rpcs.ask(request, call())).rows
    assert (row.metrics.impressions, row.previous_metrics.impressions) == (16, 12)
    months = asked("2025-10-01", "2025-11-30", MONTH, filter=only(client_id), compare_previous=True)
    assert len((await rpcs.ask(months, call())).rows) == 2
    hours = pb.QueryStatisticsRequest(granularity=HOUR, filter=only(client_id), compare_previous=True)
    hours.times.start_time.FromDatetime(datetime(2025, 10, 25, 22, tzinfo=UTC))
    hours.times.end_time.FromDatetime(datetime(2025, 10, 25, 23, tzinfo=UTC))
    [row] = (await rpcs.ask(hours, call())).rows
    assert (row.metrics.impressions, row.previous_metrics.impressions) == (4, 2)


async def test_totals_of_nothing_and_of_several_buckets(stores: Stores, rpcs: Queries) -> None:
    client_id, [campaign] = await stores.tenant()
    request = asked("2025-11-01", "2025-11-03", DAY, filter=only(client_id), include_totals=True)
    [total] = (await rpcs.ask(request, call())).totals
    assert (total.data_present, total.start_date, total.metrics.conversions) == (False, "2025-11-01", "0")
    await measured(stores, campaign, NOVEMBER, 3, 1, "0.5", "1")
    await measured(stores, campaign, NOVEMBER + timedelta(days=1), 1, 1, "0.25")
    [total] = (await rpcs.ask(request, call())).totals
    assert (total.metrics.impressions, total.metrics.ctr, total.metrics.cpc) == (4, "50", "0.375")
    assert (total.metrics.romi, total.data_present) == ("33.333333", True)


async def test_what_reads_too_much_is_refused_with_a_suggestion(stores: Stores) -> None:
    client_id, [campaign] = await stores.tenant()
    for day in range(10):
        await measured(stores, campaign, NOVEMBER + timedelta(days=day), 1)
        await stores.events(campaign, NOVEMBER + timedelta(days=day))
    strict = Queries(stores.database, stores.clickhouse, QuerySettings(max_read_rows=4))
    request = asked("2025-11-01", "2025-11-20", DAY, filter=only(client_id), compare_previous=True)
    with pytest.raises(QueryTooLarge) as caught:
        await strict.ask(request, call())
    assert caught.value.reason == "QUERY_TOO_LARGE"
    assert caught.value.metadata["estimated_rows"] == "10"
    assert caught.value.metadata["read_row_limit"] == "4"
    suggestion = caught.value.metadata["suggestion"]
    assert suggestion == "ask for about 8 of the 20 days, or leave out compare_previous, or name campaigns"
    assert suggestion in caught.value.message
    by_type = asked("2025-11-01", "2025-11-20", DAY, pb.DIMENSION_EVENT_TYPE, filter=only(client_id))
    with pytest.raises(QueryTooLarge) as caught:
        await strict.ask(by_type, call())
    assert "DIMENSION_EVENT_TYPE" in caught.value.metadata["suggestion"]
    # Another client's rows, and those of other months, are not read.
    await strict.ask(asked("2025-11-01", "2025-11-20", DAY, filter=only(await stores.client())), call())
    await strict.ask(asked("2025-08-01", "2025-08-20", DAY, filter=only(client_id)), call())


async def test_counting_first_where_much_would_be_read(
    stores: Stores, rpcs: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_id, made = await stores.tenant(2)
    for campaign in made:
        await measured(stores, campaign, NOVEMBER, 1)
    monkeypatch.setattr("server.statistics.query._FEW_ROWS", 0)
    request = asked("2025-11-01", "2025-11-20", DAY, pb.DIMENSION_CAMPAIGN, filter=only(client_id))
    assert len((await rpcs.ask(request, call())).rows) == 40
    monkeypatch.setattr(rules, "MOST_ROWS", 39)
    with pytest.raises(QueryTooLarge):
        await rpcs.ask(request, call())


async def test_a_reply_that_no_caller_would_take_is_refused(
    stores: Stores, rpcs: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_id = await stores.client()
    monkeypatch.setattr(rules, "MOST_BYTES", 100)
    with pytest.raises(QueryTooLarge) as caught:
        await rpcs.ask(asked("2025-11-01", "2025-11-20", DAY, filter=only(client_id)), call())
    assert caught.value.metadata["byte_limit"] == "100"
