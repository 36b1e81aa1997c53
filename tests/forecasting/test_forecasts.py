"""ForecastService on the running service: what it says, what that rests on, and nothing that it does not know."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import grpc
import pytest

from mrm.common.v1 import channel_pb2, money_pb2, options_pb2, platform_pb2, time_pb2
from mrm.planning.v1 import forecast_pb2, media_plan_pb2
from mrm.planning.v1 import forecast_service_pb2 as pb
from mrm.statistics.v1 import snapshot_pb2, statistics_service_pb2
from server.forecasting import outlook
from server.forecasting.model import CLICKS, CONVERSIONS, COST, IMPRESSIONS, REVENUE, Ratio
from server.pacing.arithmetic import Flight, Instant, planned_to_date
from storage.postgres import benchmarks
from storage.postgres.benchmarks import Benchmark
from tests.conftest import Caller, World
from tests.planning import plans
from tests.planning.plans import UNIT, Office, channel, flight

ZONE = ZoneInfo("Europe/Moscow")
WEEKS = 26
SEARCH, NETWORK, VIDEO = 0, 1, 2
FIGURE = forecast_pb2.ForecastFigure
KPI = media_plan_pb2.KpiMetric


@dataclass(frozen=True)
class Planned:
    """A client with half a year of search campaigns, and a plan: search, which it knows; a network, which benchmarks
    know; video, which nobody knows.

    Attributes:
        today: The day on which the figures end, which has some too.
        daily: Figures of the campaign that spends from the plan, by day.
    """

    where: Office
    plan: media_plan_pb2.MediaPlan
    campaign_id: str
    today: date
    daily: dict[date, tuple[int, int, int, int, int]]
    industry: str


def median(metric: str, industry: str, p50: str, currency: str = "") -> Benchmark:
    middle = Decimal(p50)
    return Benchmark(
        uuid4(), industry, "yandex_direct", "display", "", "", date(2026, 1, 1), date(2026, 6, 30), metric,
        middle / 2, middle, middle * 2, 50, "a survey", currency, "2026-1",
    )  # fmt: skip


async def tell(
    world: World, client_id: str, campaign_id: str, daily: dict[date, tuple[int, int, int, int, int]]
) -> None:
    """Has a platform say what a campaign reached."""
    key = await world.key([client_id])
    request = statistics_service_pb2.AppendMetricsRequest(
        client_id=client_id,
        source=snapshot_pb2.METRICS_SOURCE_PLATFORM,
        version=1,
        attribution_model=snapshot_pb2.ATTRIBUTION_MODEL_LAST_CLICK,
        snapshots=[
            snapshot_pb2.MetricsSnapshot(
                campaign_id=campaign_id,
                date=day.isoformat(),
                delivery={"impressions": shown, "clicks": clicks, "cost_micros": cost},  # type: ignore[arg-type]
                outcome={"conversions_micros": bought * UNIT, "revenue_micros": revenue},  # type: ignore[arg-type]
            )
            for day, (shown, clicks, bought, cost, revenue) in daily.items()
        ],
    )
    await key.statistics.AppendMetrics(request, metadata=key.auth)


def days(today: date, factor: int) -> dict[date, tuple[int, int, int, int, int]]:
    """Half a year of a campaign: 40 to 60 impressions and 2 clicks to the rouble, give or take, and today a quarter."""
    found = {}
    for back in range(7 * WEEKS, -1, -1):
        part = factor * (7 + (back * 5) % 4) * (1 if back else 0.25)
        cost = round(100 * part) * UNIT
        clicks = int(200 * part * (0.9 + 0.1 * ((back * 7) % 3)))
        found[today - timedelta(days=back)] = (int(5000 * part), clicks, clicks // 50, cost, clicks // 50 * 900 * UNIT)
    return found


@pytest.fixture(scope="module")
async def planned(world: World) -> AsyncIterator[Planned]:
    async with plans.without_seeds(world):
        yield await prepared(world)


async def prepared(world: World) -> Planned:
    today = datetime.now(ZONE).date()
    industry = f"industry {uuid4().hex}"
    await benchmarks.add(
        world.database,
        [median("cpm", industry, "200", "RUB"), median("cpc", industry, "20", "RUB"), median("ctr", industry, "1")],
    )
    start, end = today - timedelta(days=20), today + timedelta(days=7)
    where = await plans.office(
        world,
        None,
        start_date=f"{today - timedelta(days=200)}",
        end_date=f"{today + timedelta(days=60)}",
    )
    await world.database.execute("UPDATE clients SET industry = $2 WHERE id = $1", UUID(where.client_id), industry)
    plan = await plans.create(
        where.author,
        where.project_id,
        channels=[
            channel(
                28_000 * UNIT,
                flight=flight(f"{start}", f"{end}"),
                kpis=[
                    {"metric": KPI.KPI_METRIC_CPC, "target": "0.1"},
                    {"metric": KPI.KPI_METRIC_CTR, "target": "3"},
                    {"metric": KPI.KPI_METRIC_CLICKS, "target": "42000"},
                    {"metric": KPI.KPI_METRIC_ROAS, "target": "1"},
                ],
            ),
            channel(
                10_000 * UNIT,
                channel_type=channel_pb2.CHANNEL_TYPE_DISPLAY,
                kpis=[{"metric": KPI.KPI_METRIC_CPC, "target": "19"}, {"metric": KPI.KPI_METRIC_CR, "target": "1"}],
            ),
            channel(5_000 * UNIT, channel_type=channel_pb2.CHANNEL_TYPE_VIDEO, platform=platform_pb2.PLATFORM_VK_ADS),
        ],
    )
    await plans.approved(where, plan, active=True)
    bound = await world.campaign(
        where.project_id,
        platform=platform_pb2.PLATFORM_YANDEX_DIRECT,
        media_plan_lineage_id=plan.lineage_id,
        plan_channel_id=plan.channels[SEARCH].channel_id,
        total_budget=plans.rub(28_000 * UNIT),
    )
    daily = days(today, 1)
    await tell(world, where.client_id, bound.campaign_id, daily)
    # Of the same platform, of no known kind.
    other = await world.campaign(where.project_id, platform=platform_pb2.PLATFORM_YANDEX_DIRECT)
    await tell(world, where.client_id, other.campaign_id, days(today, 2))
    return Planned(where, plan, bound.campaign_id, today, daily, industry)


async def forecast(caller: Caller, plan_id: str) -> pb.ForecastMediaPlanResponse:
    request = pb.ForecastMediaPlanRequest(media_plan_id=plan_id)
    return await caller.forecasts.ForecastMediaPlan(request, metadata=caller.auth)


async def performance(caller: Caller, plan_id: str, **fields: object) -> pb.GetPlanPerformanceResponse:
    request = pb.GetPlanPerformanceRequest(media_plan_id=plan_id, **fields)  # type: ignore[arg-type]
    return await caller.forecasts.GetPlanPerformance(request, metadata=caller.auth)


def by_figure(found: object) -> dict[int, forecast_pb2.FigureForecast]:
    return {each.figure: each for each in found}  # type: ignore[attr-defined]


@pytest.mark.bar_f
async def test_a_forecast_names_what_it_rests_on(planned: Planned) -> None:
    reply = await forecast(planned.where.author, planned.plan.media_plan_id)
    search, network, video = reply.forecast.channels
    assert [each.channel_id for each in reply.forecast.channels] == [each.channel_id for each in planned.plan.channels]

    # Its own past: 50 impressions and 2 clicks to the rouble.
    found = by_figure(search.figures)
    assert list(found) == sorted(FIGURE.values())[1:]
    assert search.evidence == forecast_pb2.FORECAST_EVIDENCE_CHANNEL
    assert [each.campaign_id for each in search.campaigns] == [planned.campaign_id]
    assert search.campaigns[0].week_count == WEEKS
    assert search.campaigns[0].dates.end_date == f"{planned.today - timedelta(days=1)}"
    clicks = found[FIGURE.FORECAST_FIGURE_CLICKS]
    assert 27_000 * 2 * 0.9 < int(clicks.value) < 28_000 * 2 * 1.02
    assert clicks.basis == forecast_pb2.FORECAST_BASIS_OWN_ERRORS and clicks.error_count > 30
    assert (clicks.own_weight, clicks.benchmark_weight) == ("1", "0") and not clicks.benchmark_ids
    levels = {each.level_percent: (float(each.low), float(each.high)) for each in clicks.intervals}
    assert levels[50][0] >= levels[80][0] > 0 and levels[80][1] >= levels[50][1] > int(clicks.value)
    cost = found[FIGURE.FORECAST_FIGURE_COST]
    assert (cost.value, cost.currency_code, len(cost.intervals)) == ("28000", "RUB", 0)
    assert found[FIGURE.FORECAST_FIGURE_REVENUE].currency_code == "RUB"
    outlooks = {each.metric: each.outlook for each in search.kpis}
    assert outlooks == {
        KPI.KPI_METRIC_CPC: forecast_pb2.KPI_OUTLOOK_UNLIKELY,
        KPI.KPI_METRIC_CTR: forecast_pb2.KPI_OUTLOOK_LIKELY,
        KPI.KPI_METRIC_CLICKS: forecast_pb2.KPI_OUTLOOK_LIKELY,
        KPI.KPI_METRIC_ROAS: forecast_pb2.KPI_OUTLOOK_LIKELY,
    }

    # Benchmarks and campaigns of the same platform, weighed against each other.
    found = by_figure(network.figures)
    assert network.evidence == forecast_pb2.FORECAST_EVIDENCE_PLATFORM and len(network.campaigns) == 2
    shown = found[FIGURE.FORECAST_FIGURE_IMPRESSIONS]
    assert 0 < float(shown.own_weight) <= 1
    assert {each.benchmark.metric for each in network.benchmarks} <= {1, 2, 3}
    assert all(each.industry_matched for each in network.benchmarks)
    assert forecast_pb2.FORECAST_ASSUMPTION_NO_SEASON in network.assumptions
    assert network.kpis[0].benchmark_median == "20"

    # Nobody knows: cost is what the plan says, and nothing is made up.
    assert list(by_figure(video.figures)) == [FIGURE.FORECAST_FIGURE_COST]
    assert video.evidence == forecast_pb2.FORECAST_EVIDENCE_NONE and not video.campaigns and not video.benchmarks

    totals = by_figure(reply.forecast.totals)
    assert totals[FIGURE.FORECAST_FIGURE_COST].value == "43000"
    assert list(totals[FIGURE.FORECAST_FIGURE_CLICKS].unknown_channel_ids) == [video.channel_id]
    assert int(totals[FIGURE.FORECAST_FIGURE_CLICKS].value) == pytest.approx(
        int(clicks.value) + int(found[FIGURE.FORECAST_FIGURE_CLICKS].value), abs=1
    )
    assert [each.level_percent for each in totals[FIGURE.FORECAST_FIGURE_CLICKS].intervals] == [50, 80, 95]

    assert reply.history == time_pb2.DateRange(
        start_date=f"{planned.today - timedelta(weeks=WEEKS)}", end_date=f"{planned.today - timedelta(days=1)}"
    )
    assert reply.time_zone == "Europe/Moscow"
    backtest = by_figure(reply.backtest.figures)  # type: ignore[assignment]
    assert set(backtest) == set(FIGURE.values()) - {0, FIGURE.FORECAST_FIGURE_COST}
    assert all(each.flight_count > 0 for each in reply.backtest.figures)
    assert all(0 <= float(each.coverage_percent) <= 100 for each in reply.backtest.figures)
    assert all(float(each.median_error_percent) < 20 for each in reply.backtest.figures)


async def test_the_same_question_gets_the_same_answer(planned: Planned) -> None:
    replies = [await forecast(planned.where.author, planned.plan.media_plan_id) for _ in range(2)]
    for reply in replies:
        reply.ClearField("watermark_time")
    assert replies[0] == replies[1]


async def test_without_a_right_to_figures_only_benchmarks_tell(world: World, planned: Planned) -> None:
    key = await world.key([planned.where.client_id], options_pb2.PERMISSION_MEDIA_PLANS_READ)
    reply = await forecast(key, planned.plan.media_plan_id)
    search, network, _ = reply.forecast.channels
    assert list(by_figure(search.figures)) == [FIGURE.FORECAST_FIGURE_COST]
    assert not reply.HasField("history") and not reply.HasField("backtest")
    shown = by_figure(network.figures)[FIGURE.FORECAST_FIGURE_IMPRESSIONS]
    # 10 000 RUB at 200 RUB a thousand, and quartiles of half and twice as much.
    assert (shown.value, shown.own_weight, shown.benchmark_weight) == ("50000", "0", "1")
    assert shown.basis == forecast_pb2.FORECAST_BASIS_BENCHMARK_QUARTILES
    half = shown.intervals[0]
    assert (half.level_percent, half.low, half.high) == (50, "25000", "100000")
    assert network.kpis[0].value == "20" and network.kpis[0].outlook == forecast_pb2.KPI_OUTLOOK_OPEN
    assert not network.kpis[1].HasField("value")
    assert forecast_pb2.FORECAST_ASSUMPTION_BENCHMARKS_HOLD in network.assumptions
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await performance(key, planned.plan.media_plan_id)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.bar_f
async def test_scenarios_are_compared_with_the_first(planned: Planned) -> None:
    author, plan_id = planned.where.author, planned.plan.media_plan_id
    search, network, video = (each.channel_id for each in planned.plan.channels)
    request = pb.CompareScenariosRequest(
        scenarios=[
            pb.Scenario(media_plan_id=plan_id, budgets=[{"channel_id": video, "budget": plans.rub(0)}]),  # type: ignore[list-item]
            pb.Scenario(
                media_plan_id=plan_id,
                display_name="more search",
                budgets=[
                    {"channel_id": video, "budget": plans.rub(0)},  # type: ignore[list-item]
                    {"channel_id": search, "budget": plans.rub(38_000 * UNIT)},  # type: ignore[list-item]
                    {"channel_id": network, "budget": plans.rub(0)},  # type: ignore[list-item]
                ],
            ),
        ]
    )
    reply = await author.forecasts.CompareScenarios(request, metadata=author.auth)
    assert [each.display_name for each in reply.forecasts] == ["Plan", "more search"]
    [compared] = reply.differences
    found = {each.figure: each for each in compared.figures}
    assert found[FIGURE.FORECAST_FIGURE_COST].value == "0"
    clicks = found[FIGURE.FORECAST_FIGURE_CLICKS]
    totals = [by_figure(each.totals)[FIGURE.FORECAST_FIGURE_CLICKS] for each in reply.forecasts]
    assert int(clicks.value) == pytest.approx(int(totals[1].value) - int(totals[0].value), abs=1)
    low, high = (float(each) for each in (clicks.intervals[1].low, clicks.intervals[1].high))
    assert low < int(clicks.value) < high
    # What search alone does is common to both, so that the difference is known better than both sums together.
    assert high - low < sum(float(each.intervals[1].high) - float(each.intervals[1].low) for each in totals)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param(
            lambda s, p: s.budgets.add(channel_id=str(uuid4()), budget=plans.rub(1)), "channel_id", id="foreign"
        ),
        pytest.param(
            lambda s, p: s.budgets.extend(
                [pb.ScenarioBudget(channel_id=p.channels[0].channel_id, budget=plans.rub(1))] * 2
            ),
            "channel_id",
            id="twice",
        ),
        pytest.param(
            lambda s, p: s.budgets.add(
                channel_id=p.channels[0].channel_id, budget=money_pb2.Money(currency_code="USD", micros=1)
            ),
            "currency_code",
            id="currency",
        ),
        pytest.param(
            lambda s, p: s.budgets.add(channel_id=p.channels[0].channel_id, budget=plans.rub(-1)), "micros", id="amount"
        ),
    ],
)
async def test_scenarios_fit_their_plan(
    planned: Planned, change: Callable[[pb.Scenario, media_plan_pb2.MediaPlan], object], field: str
) -> None:
    author, plan_id = planned.where.author, planned.plan.media_plan_id
    request = pb.CompareScenariosRequest(scenarios=[pb.Scenario(media_plan_id=plan_id) for _ in range(2)])
    change(request.scenarios[1], planned.plan)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await author.forecasts.CompareScenarios(request, metadata=author.auth)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    trailing = dict(refused.value.trailing_metadata() or ())
    assert field.encode() in trailing["grpc-status-details-bin"]


async def test_scenarios_are_of_one_client(world: World, planned: Planned) -> None:
    elsewhere = await plans.office(world)
    other = await plans.create(world.admin, elsewhere.project_id, 1)
    request = pb.CompareScenariosRequest(
        scenarios=[pb.Scenario(media_plan_id=each) for each in (planned.plan.media_plan_id, other.media_plan_id)]
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.admin.forecasts.CompareScenarios(request, metadata=world.admin.auth)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    # A plan without any past or benchmark is forecast to cost what it costs.
    alone = await forecast(world.admin, other.media_plan_id)
    assert [each.value for each in alone.forecast.totals if each.figure == FIGURE.FORECAST_FIGURE_COST] == ["0"]


@pytest.mark.bar_f
async def test_plan_and_fact_are_those_of_statistics_and_of_pacing(planned: Planned) -> None:
    author = planned.where.author
    reply = await performance(author, planned.plan.media_plan_id)
    search, network, video = reply.channels
    now = Instant.of(reply.watermark_time.ToDatetime(tzinfo=UTC), ZONE)
    run = Flight(planned.today - timedelta(days=20), planned.today + timedelta(days=7))
    query = statistics_service_pb2.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date=f"{run.start}", end_date=f"{now.day}"),
        granularity=time_pb2.GRANULARITY_DAY,
        filter=statistics_service_pb2.StatisticsFilter(campaign_ids=[planned.campaign_id]),
        include_totals=True,
    )
    facts = await author.statistics.QueryStatistics(query, metadata=author.auth)
    assert search.actual == facts.totals[0].metrics
    assert [each.actual for each in search.days] == [row.metrics for row in facts.rows]
    assert [each.date for each in search.days] == [row.start_date for row in facts.rows]

    planned_by_now = planned_to_date(28_000 * UNIT, run, now)
    assert search.planned_to_date == plans.rub(planned_by_now)
    assert search.deviation == plans.rub(search.actual.cost_micros - planned_by_now)
    assert float(search.pacing) == pytest.approx(search.actual.cost_micros / planned_by_now, rel=1e-5)
    assert sum(each.planned.micros for each in search.days) == planned_by_now == search.days[-1].planned_to_date.micros
    assert search.days[-1].spent_to_date.micros == search.actual.cost_micros
    assert list(search.campaign_ids) == [planned.campaign_id]

    kpis = {each.metric: each for each in search.kpis}
    cpc, clicks = kpis[KPI.KPI_METRIC_CPC], kpis[KPI.KPI_METRIC_CLICKS]
    assert (cpc.actual, cpc.target_to_date, cpc.status) == (search.actual.cpc, "0.1", forecast_pb2.KPI_STATUS_BEHIND)
    assert clicks.actual == str(search.actual.clicks)
    assert float(clicks.target_to_date) == pytest.approx(planned_to_date(42_000 * UNIT, run, now) / UNIT)
    assert clicks.status == (
        forecast_pb2.KPI_STATUS_BEHIND if float(clicks.deviation) < 0 else forecast_pb2.KPI_STATUS_ON_TRACK
    )
    # A channel of the project's days in which nothing has happened.
    assert network.flight.start_date == f"{planned.today - timedelta(days=200)}"
    assert not network.actual.impressions and network.pacing == "0" and not network.kpis[1].HasField("actual")
    total = reply.total
    assert total.actual == search.actual and total.budget == plans.rub(43_000 * UNIT)
    assert total.planned_to_date.micros == sum(each.planned_to_date.micros for each in reply.channels)
    assert len(total.days) == len(video.days) == 201

    some = await performance(
        author,
        planned.plan.media_plan_id,
        dates=time_pb2.DateRange(
            start_date=f"{run.start + timedelta(days=3)}", end_date=f"{run.start + timedelta(days=5)}"
        ),
    )
    assert list(some.channels[SEARCH].days) == list(search.days[3:6])
    assert list(some.total.days) == list(total.days[-18:-15])
    none = await performance(author, planned.plan.media_plan_id, without_days=True)
    assert not none.total.days and none.channels[SEARCH].actual == search.actual


async def test_plans_without_days_have_nothing_planned(world: World) -> None:
    where = await plans.office(world)
    plan = await plans.create(where.author, where.project_id, 5 * UNIT)
    reply = await performance(where.author, plan.media_plan_id)
    for each in (reply.total, *reply.channels):
        assert each.budget == plans.rub(5 * UNIT) and each.actual.cost_micros == 0
        assert not each.HasField("planned_to_date") and not each.HasField("pacing") and not each.HasField("flight")


async def test_what_would_be_too_much_is_refused(world: World) -> None:
    where = await plans.office(world, start_date="1990-01-01", end_date="2100-12-31")
    plan = await plans.create(where.author, where.project_id, UNIT)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await performance(where.author, plan.media_plan_id)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    # Without a campaign there is nothing to read; the days alone are too many.
    assert "days of channels" in (refused.value.details() or "")
    few = time_pb2.DateRange(start_date="1990-01-01", end_date="1990-01-02")
    assert len((await performance(where.author, plan.media_plan_id, dates=few)).total.days) == 2
    await plans.approved(where, plan)
    await world.campaign(
        where.project_id,
        platform=platform_pb2.PLATFORM_YANDEX_DIRECT,
        media_plan_lineage_id=plan.lineage_id,
        plan_channel_id=plan.channels[0].channel_id,
        total_budget=plans.rub(UNIT),
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await performance(where.author, plan.media_plan_id, without_days=True)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "go back by more than 3653 days" in (refused.value.details() or "")


@pytest.mark.parametrize(
    ("metrics", "ratio", "middle"),
    [
        pytest.param({"cpm": "200"}, Ratio(IMPRESSIONS, COST), 5.0, id="impressions"),
        pytest.param({"cpc": "20", "ctr": "1"}, Ratio(IMPRESSIONS, COST), 5.0, id="impressions by clicks"),
        pytest.param({"cpm": "200", "ctr": "1"}, Ratio(CLICKS, COST), 0.05, id="clicks by impressions"),
        pytest.param({"cpc": "20", "cr": "2"}, Ratio(CONVERSIONS, COST), 0.001, id="conversions by clicks"),
        pytest.param({"cpa": "500", "cpc": "1"}, Ratio(CONVERSIONS, COST), 0.002, id="conversions"),
        pytest.param({"roas": "3"}, Ratio(REVENUE, COST), 3.0, id="revenue"),
        pytest.param({"ctr": "1"}, Ratio(CLICKS, IMPRESSIONS), 0.01, id="rate"),
    ],
)
def test_benchmarks_are_made_into_what_money_buys(metrics: dict[str, str], ratio: Ratio, middle: float) -> None:
    rows = {metric: median(metric, "x", p50) for metric, p50 in metrics.items()}
    found = outlook.of_benchmarks(rows, ratio)
    assert found is not None
    assert found.middle == pytest.approx(middle)
    # Quartiles of half and twice the median; factors add their variances.
    assert found.sigma == pytest.approx(1.0276 * len(found.ids) ** 0.5, rel=1e-3)
    assert outlook.of_benchmarks({}, ratio) is None
