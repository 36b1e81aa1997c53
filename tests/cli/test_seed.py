"""The demo: twice is once, edits stay, and the figures are exactly the ones that were made up."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, tzinfo
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console

from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import metrics_pb2, statistics_service_pb2
from server import budgets
from server.cli import seed
from server.cli.console import CommandFailed
from server.seeding import history, story
from server.seeding.history import Figures
from server.seeding.writer import Report
from storage.clickhouse.connect import ClickHouse
from storage.postgres import campaigns, media_plans, project_team, projects, users
from storage.scope import EVERYTHING
from tests.conftest import PASSWORD, World

from .conftest import Mrm

# Jobs of the running server write these, or are told by them what to look at; everything else is data.
_OF_JOBS = ("leases", "outbox", "metric_settings", "metric_cursors", "rollup_marks", "client_usage")


@dataclass(frozen=True)
class Seeded:
    report: Report
    made: dict[str, date]

    def days(self, client: story.ClientStory) -> tuple[date, date]:
        """The year of a client."""
        made = self.made[client.key]
        return made - timedelta(days=story.HISTORY_DAYS), made - timedelta(days=1)

    def campaigns(self, client: story.ClientStory) -> list[story.CampaignStory]:
        return [each for project in client.projects(self.made[client.key]) for each in project.campaigns]


@pytest.fixture(scope="module")
async def seeded(world: World) -> Seeded:
    await world.client()  # somebody else's
    report = await seed.seed_demo(world.settings, PASSWORD, yes=True)
    made = {
        each.key: row.created_at.astimezone(ZoneInfo(each.time_zone)).date()
        for each in story.ADVERTISERS
        for row in {summary.client.id: summary.client for summary in report.projects}.values()
        if row.id == each.id
    }
    return Seeded(report, made)


async def state(world: World) -> dict[str, object]:
    """Number and checksum of the rows of all tables, and sums of all figures of the demo."""
    tables = await world.database.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    found: dict[str, object] = {}
    for (table,) in tables:
        if table not in _OF_JOBS:
            row = await world.database.fetchrow(f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {table} t")
            found[table] = tuple(row or ())
    ids = ", ".join(f"'{each.id}'" for each in story.ADVERTISERS)
    clickhouse = ClickHouse(world.connections.clickhouse_dsn, connections=1)
    try:
        found["figures"] = await clickhouse.fetch(
            f"""SELECT client_id, campaign_id, grain, source, count(), sum(impressions), sum(clicks), sum(conversions),
              sum(cost), sum(revenue), sum(version), sum(state_version) FROM campaign_metrics_hourly
            WHERE client_id IN ({ids}) GROUP BY ALL ORDER BY ALL"""
        )
    finally:
        await clickhouse.close()
    return found


async def query(
    world: World, client: story.ClientStory, days: tuple[date, date], granularity: int, *dimensions: int
) -> list[metrics_pb2.MetricsRow]:
    request = statistics_service_pb2.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date=f"{days[0]}", end_date=f"{days[1]}"),
        granularity=granularity,  # type: ignore[arg-type]
        dimensions=dimensions,  # type: ignore[arg-type]
        filter=statistics_service_pb2.StatisticsFilter(client_ids=[str(client.id)]),
    )
    reply = await world.admin.statistics.QueryStatistics(request, metadata=world.admin.auth)
    return list(reply.rows)


def figures_of(metrics: metrics_pb2.Metrics) -> Figures:
    return Figures(
        metrics.impressions,
        metrics.clicks,
        metrics.cost_micros,
        int(metrics.conversions),
        metrics.revenue_micros,
    )


@pytest.mark.bar_d
async def test_figures_of_the_year_are_exactly_those_made_up(world: World, seeded: Seeded) -> None:
    dimension = statistics_service_pb2.DIMENSION_CAMPAIGN
    for client in story.ADVERTISERS:
        days = seeded.days(client)
        expected = {
            str(each.id): sum((figures for _, figures in each.figures(*days)), Figures())
            for each in seeded.campaigns(client)
            if each.course is not None
        }
        rows = await query(world, client, days, time_pb2.GRANULARITY_TOTAL, dimension)
        assert {row.campaign_id: figures_of(row.metrics) for row in rows} == expected
        assert {row.metrics.currency_code for row in rows} == {client.currency}
        # What was told by the hour is there by the day, in the client's own days.
        by_day: dict[str, Figures] = defaultdict(Figures)
        for each in seeded.campaigns(client):
            for day, figures in each.figures(*days):
                by_day[day.isoformat()] += figures
        found = await query(world, client, days, time_pb2.GRANULARITY_DAY)
        got = {row.start_date: row for row in found}
        assert {day: figures_of(row.metrics) for day, row in got.items()} == by_day
        assert len(got) == story.HISTORY_DAYS
        assert all(row.metrics.impressions > 0 for row in got.values())


def test_ratios_are_plausible_and_anomalies_are_there(seeded: Seeded) -> None:
    bounds = {"search": (0.03, 0.25), "display": (0.002, 0.02), "social": (0.005, 0.02), "video": (0.002, 0.01)}
    for client in story.ADVERTISERS:
        for each in seeded.campaigns(client):
            days = dict(each.figures(*seeded.days(client)))
            if not days:
                continue
            total = sum(days.values(), Figures())
            low, high = bounds[each.channel]
            assert low < total.clicks / total.impressions < high, each.key
            assert 0.003 < total.conversions / total.clicks < 0.12, each.key
            assert each.course is not None
            silent = [day for day, figures in days.items() if figures == Figures()]
            assert len(silent) == (4 if each.course.pause else 0), each.key
            if each.course.spike:
                first, last, _ = each.course.spike
                before = sum((days[first - timedelta(days=n)] for n in range(1, 8)), Figures())
                during = sum((figures for day, figures in days.items() if first <= day <= last), Figures())
                assert during.cost_micros / during.clicks > 2 * before.cost_micros / before.clicks


@pytest.mark.parametrize("zone", ["Europe/Moscow", "Europe/Berlin", "America/New_York", "Asia/Kolkata"])
@pytest.mark.parametrize("day", [date(2026, 3, 8), date(2026, 3, 29), date(2026, 10, 25), date(2026, 11, 1)])
def test_hours_add_up_to_their_day(zone: str, day: date) -> None:
    course = history.Course(5000, 0.05, 0.1, history.RUSSIAN_RETAIL, cpc=30, order_value=1000)
    for course_ in (course, replace(course, cpc=0.0, cpm=200, ctr=0.0), replace(course, impressions=3, ctr=0.5)):
        total = history.of_day("x", course_, day, day)
        hours = list(history.hours_of("x", total, day, ZoneInfo(zone)))
        assert sum((figures for _, figures in hours), Figures()) == total
        assert len(hours) in (23, 24, 25)
        assert all(min(vars_of(figures)) >= 0 for _, figures in hours)


def vars_of(figures: Figures) -> tuple[int, ...]:
    return (figures.impressions, figures.clicks, figures.cost_micros, figures.conversions, figures.revenue_micros)


def test_black_friday() -> None:
    assert [history.black_friday(year) for year in (2024, 2025, 2026)] == [
        date(2024, 11, 29),
        date(2025, 11, 28),
        date(2026, 11, 27),
    ]
    retail = history.RUSSIAN_RETAIL
    assert retail.demand(date(2025, 11, 28)) > 2 * retail.demand(date(2025, 11, 20))
    assert retail.demand(date(2026, 1, 1)) < 0.5 * retail.demand(date(2025, 12, 18))


@pytest.mark.bar_d
async def test_budgets_fit_and_every_project_has_one_accountable(world: World, seeded: Seeded) -> None:
    states = set()
    for client in story.ADVERTISERS:
        for wanted in client.projects(seeded.made[client.key]):
            project = await projects.get(world.database, EVERYTHING, wanted.id)
            assert project is not None and project.budget_total is not None
            states.add(project.status)
            team = await project_team.list_page(world.database, EVERYTHING, project.id, limit=100, raci=["A"])
            assert len(team) == 1
            limit = int(project.budget_total.scaleb(6))
            committed = await media_plans.committed(world.database, EVERYTHING, project.id)
            budgets.check_project((int(each.scaleb(6)) for each in committed.values()), limit, client.currency)
            for plan in wanted.plans:
                bound = await campaigns.bound(world.database, EVERYTHING, plan.id)
                (current, *_) = await media_plans.current(world.database, EVERYTHING, plan.id)
                assert len(bound) == len(plan.campaigns) and current.total_budget is not None
                shares = [
                    budgets.Share(each.id, each.name, str(each.plan_channel_id), int(each.budget_total.scaleb(6)))
                    for each in bound
                ]
                channels = {entry["channel_id"]: entry["budget"] for entry in current.channels}
                total = int(current.total_budget.scaleb(6))
                budgets.check_campaigns(shares, channels, total, client.currency, current.version)
                for campaign in plan.campaigns:
                    spent = sum(figures.cost_micros for _, figures in campaign.figures(*seeded.days(client)))
                    assert spent < campaign.budget * 10**6
    assert states == {"draft", "active", "paused", "completed", "archived"}


@pytest.mark.bar_d
async def test_twice_is_once_and_an_edit_stays(world: World, seeded: Seeded, mrm: Mrm) -> None:
    edited = seeded.campaigns(story.RETAIL)[0]
    row = await campaigns.get(world.database, EVERYTHING, edited.id)
    assert row is not None
    await campaigns.update(world.database, EVERYTHING, replace(row, name="Ours now", status="paused"))
    before = await state(world)
    engines = {
        "MRM_POSTGRES__DSN": world.connections.postgres_dsn,
        "MRM_CLICKHOUSE__DSN": world.connections.clickhouse_dsn,
        "MRM_REDIS__DURABLE_DSN": world.connections.redis_dsn,
    }
    again = await mrm("seed", "demo", "--yes", **engines)
    assert again.code == 0, again.err
    assert "added: 0 people, 0 clients, 0 templates, 0 projects, 0 plans, 0 campaigns, 0 figures" in again.out
    assert "password, shown" not in again.out and str(story.RETAIL.id) in again.out
    assert await state(world) == before
    kept = await campaigns.get(world.database, EVERYTHING, edited.id)
    assert kept is not None and (kept.name, kept.status) == ("Ours now", "paused")


async def test_a_day_later_only_that_day_is_added(
    world: World, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Tomorrow:
            moment = datetime.now(tz) + timedelta(days=1)
            return cls.fromtimestamp(moment.timestamp(), tz)

    later = seeded.campaigns(story.PROPERTY)[0]
    row = await campaigns.get(world.database, EVERYTHING, later.id)
    assert row is not None
    await campaigns.update(world.database, EVERYTHING, replace(row, status="paused"))
    monkeypatch.setattr("server.seeding.writer.datetime", Tomorrow)
    report = await seed.seed_demo(world.settings, PASSWORD, yes=True)
    running = [
        each
        for project in (story.RETAIL, story.PROPERTY)
        for each in seeded.campaigns(project)
        if (found := await campaigns.get(world.database, EVERYTHING, each.id)) and found.status == "active"
    ]
    # Neither Moscow nor Dubai has summer time.
    assert report.stored == 24 * len(running) > 0
    assert later not in running
    assert report.known == seeded.report.stored


async def test_people_of_the_demo_sign_in_and_see_its_clients(world: World, seeded: Seeded) -> None:
    # Beside other clients there is no administrator of the demo, who would see them.
    assert [person.role for person in seeded.report.people] == [
        each.role for each in story.PEOPLE if each.role != "admin"
    ]
    assert await users.get(world.database, story.stable_id("user", "admin")) is None
    pm = await world.sign_in("pm@demo.example")
    request = statistics_service_pb2.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date="2020-01-01", end_date="2020-01-02"),
        granularity=time_pb2.GRANULARITY_TOTAL,
        filter=statistics_service_pb2.StatisticsFilter(client_ids=[str(each.id) for each in story.ADVERTISERS]),
    )
    await pm.statistics.QueryStatistics(request, metadata=pm.auth)


@pytest.mark.parametrize(("password", "said"), [("too short", "MRM_DEMO_PASSWORD must have"), (PASSWORD, "e-mail")])
async def test_what_cannot_be_made_whole_is_not_begun(
    world: World, seeded: Seeded, monkeypatch: pytest.MonkeyPatch, password: str, said: str
) -> None:
    before = await state(world)
    # Other ids: everything is missing again, but its people's addresses are taken.
    monkeypatch.setattr(story, "_NAMESPACE", uuid4())
    with pytest.raises(CommandFailed, match=said):
        await seed.seed_demo(world.settings, password, yes=True)
    monkeypatch.undo()
    assert await state(world) == before


async def test_other_clients_are_refused(world: World, seeded: Seeded) -> None:
    with pytest.raises(CommandFailed, match="--yes"):
        await seed.seed_demo(world.settings, PASSWORD, yes=False)


def test_the_password_is_shown_once(seeded: Seeded, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Console(record=True, width=200)
    monkeypatch.setattr("server.cli.console.out", recorded)
    monkeypatch.setattr(seed, "out", recorded)
    seed._show(seeded.report, "secret-of-the-demo")
    text = recorded.export_text()
    assert text.count("secret-of-the-demo") == 1
    assert "Tower B" in text and "AED" in text
