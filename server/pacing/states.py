"""How each budget is being spent: PostgreSQL knows the budgets, ClickHouse the figures that count."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from server.pacing import arithmetic
from server.pacing.arithmetic import PROFILE_DAYS, Flight, Instant, Projection, Spending
from server.statistics.buckets import day_start
from storage.clickhouse import precedence, series
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.metrics import Selection
from storage.postgres import budgets
from storage.postgres.budgets import BudgetCampaign, BudgetPlan, BudgetProject
from storage.postgres.database import Executor
from storage.scope import Scope

Level = Literal["project", "media_plan", "channel", "campaign"]

# Before any figure.
_EVER: Final = date(2000, 1, 1)
_MOST_SUMS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class State:
    """How one budget is being spent, in millionths of `currency`.

    Attributes:
        level: What kind of thing has the budget.
        status: A campaign's status; empty for the others.
        flight: When the money is to be spent; None while that is not planned.
        budget: None if there is none.
        planned: What should have been spent by now; None without budget or flight.
    """

    level: Level
    project_id: UUID
    media_plan_id: UUID | None
    channel_id: UUID | None
    campaign_id: UUID | None
    name: str
    status: str
    currency: str
    flight: Flight | None
    budget: int | None
    spent: int
    planned: int | None
    projection: Projection | None


@dataclass(frozen=True, slots=True)
class Look:
    """What was found at one moment."""

    states: list[State]
    now: Instant


async def look(
    db: Executor,
    clickhouse: ClickHouse,
    scope: Scope,
    projects: Sequence[BudgetProject],
    at: datetime | Instant,
    *,
    media_plan_id: UUID | None = None,
    campaign_id: UUID | None = None,
) -> Look:
    """How the budgets of projects of one client, and all within them, are being spent.

    Args:
        db: Knows the budgets.
        clickhouse: Knows the figures.
        scope: What the caller may touch; the projects lie within it.
        projects: Projects of one client, at least one.
        at: Up to when figures are complete, or count; an instant is one of the client's calendar.
        media_plan_id: Only this version of a plan and what lies within it.
        campaign_id: Only this campaign.
    """
    zone = ZoneInfo(projects[0].time_zone)
    now = at if isinstance(at, Instant) else Instant.of(at, zone)
    ids = [project.id for project in projects]
    lineage_ids = None
    campaigns: list[BudgetCampaign] = []
    if campaign_id is not None:
        campaigns = await budgets.campaigns(db, scope, ids, campaign_id=campaign_id)
        lineage_ids = [each.lineage_id for each in campaigns if each.lineage_id is not None]
    plans = await budgets.plans(db, scope, ids, media_plan_id=media_plan_id, lineage_ids=lineage_ids)
    if campaign_id is None:
        lineage_id = plans[0].lineage_id if media_plan_id is not None and plans else None
        campaigns = await budgets.campaigns(db, scope, ids, lineage_id=lineage_id)
    spendings = await _spendings(clickhouse, projects[0].client_id, ids, campaigns, zone, now)
    top: Level = "campaign" if campaign_id is not None else "project" if media_plan_id is None else "media_plan"
    states: list[State] = []
    for project in projects:
        states += _of_project(
            project,
            [each for each in plans if each.project_id == project.id],
            [each for each in campaigns if each.project_id == project.id],
            _flights(plans),
            spendings,
            now,
            top=top,
        )
    return Look(states, now)


async def _spendings(
    clickhouse: ClickHouse,
    client_id: UUID,
    project_ids: Sequence[UUID],
    campaigns: Sequence[BudgetCampaign],
    zone: ZoneInfo,
    now: Instant,
) -> dict[UUID, Spending]:
    """What each campaign has spent in its own currency, by the figures that count."""
    first = now.day - timedelta(days=PROFILE_DAYS)
    days = [first + timedelta(days=n) for n in range(PROFILE_DAYS)]
    # One bucket for all that was before, one for each complete day, one for the day that runs.
    bounds = [day_start(day, zone) for day in (_EVER, *days, now.day, now.day + timedelta(days=1))]
    starts = dict(zip(bounds[1:-2], days, strict=True))
    bounds = [bounds[0], *(after for before, after in pairwise(bounds) if after > before)]
    only = {each.id for each in campaigns} if len(campaigns) == 1 else None
    selection = Selection(clients=[client_id], projects=project_ids, campaigns=only)
    found = await series.series(
        clickhouse,
        selection,
        bounds,
        ["campaign_id"],
        _MOST_SUMS,
        mixed=await precedence.has_snapshots(clickhouse, [client_id]),
        covered=precedence.covers(bounds, zone),
    )
    currencies = {each.id: each.currency for each in campaigns}
    spendings: dict[UUID, Spending] = {}
    for combination, run in found.items():
        campaign_id = combination.values[0]
        if isinstance(campaign_id, UUID) and currencies.get(campaign_id) == combination.currency:
            costs = {start: figures.cost_micros for start, figures in run.items()}
            spendings[campaign_id] = Spending(
                sum(costs.values()), {starts[start]: cost for start, cost in costs.items() if start in starts}
            )
    return spendings


def _flights(plans: Iterable[BudgetPlan]) -> dict[str, Flight]:
    """Channels that have a flight of their own."""
    return {
        entry["channel_id"]: Flight(date.fromisoformat(entry["start"]), date.fromisoformat(entry["end"]))
        for plan in plans
        for entry in plan.channels
        if "start" in entry
    }


def _of_project(
    project: BudgetProject,
    plans: Sequence[BudgetPlan],
    campaigns: Sequence[BudgetCampaign],
    flights: Mapping[str, Flight],
    spendings: Mapping[UUID, Spending],
    now: Instant,
    *,
    top: Level,
) -> Iterable[State]:
    dates = Flight(project.start, project.end) if project.start and project.end else None
    nothing = Spending(0, {})

    def spent(within: Iterable[BudgetCampaign]) -> Spending:
        return Spending.over([spendings.get(each.id, nothing) for each in within if each.currency == project.currency])

    if top == "project":
        budget = _micros(project.budget)
        yield _state("project", project, project.name, dates, budget, spent(campaigns), now)
    for plan in plans if top != "campaign" else ():
        of_plan = [each for each in campaigns if each.lineage_id == plan.lineage_id]
        channels = [
            _state(
                "channel",
                project,
                plan.name,
                flights.get(entry["channel_id"], dates),
                entry["budget"],
                spent(each for each in of_plan if str(each.channel_id) == entry["channel_id"]),
                now,
                plan=plan,
                channel_id=UUID(entry["channel_id"]),
            )
            for entry in plan.channels
        ]
        planned = [channel.planned for channel in channels if channel.planned is not None]
        yield _state(
            "media_plan",
            project,
            plan.name,
            dates,
            _micros(plan.budget),
            spent(of_plan),
            now,
            plan=plan,
            planned=sum(planned) if channels and len(planned) == len(channels) else None,
        )
        yield from channels
    running = {plan.lineage_id: plan for plan in plans}
    for campaign in campaigns:
        flight = flights.get(str(campaign.channel_id), dates)
        budget = _micros(campaign.budget_total)
        if budget is None and campaign.budget_daily is not None and flight is not None:
            budget = (_micros(campaign.budget_daily) or 0) * flight.days
        yield _state(
            "campaign",
            project,
            campaign.name,
            flight,
            budget,
            spendings.get(campaign.id, nothing),
            now,
            plan=None if campaign.lineage_id is None else running.get(campaign.lineage_id),
            channel_id=campaign.channel_id,
            campaign=campaign,
        )


def _state(
    level: Level,
    project: BudgetProject,
    name: str,
    flight: Flight | None,
    budget: int | None,
    spending: Spending,
    now: Instant,
    *,
    plan: BudgetPlan | None = None,
    channel_id: UUID | None = None,
    campaign: BudgetCampaign | None = None,
    planned: int | None = None,
) -> State:
    if planned is None and level != "media_plan" and budget is not None and flight is not None:
        planned = arithmetic.planned_to_date(budget, flight, now)
    return State(
        level=level,
        project_id=project.id,
        media_plan_id=None if plan is None else plan.id,
        channel_id=channel_id,
        campaign_id=None if campaign is None else campaign.id,
        name=name,
        status="" if campaign is None else campaign.status,
        currency=project.currency if campaign is None else campaign.currency,
        flight=flight,
        budget=budget,
        spent=spending.total,
        planned=planned,
        projection=arithmetic.projection(spending, budget, flight, now),
    )


def _micros(amount: Decimal | None) -> int | None:
    return None if amount is None else int(amount.scaleb(6))
