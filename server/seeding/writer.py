"""Writes the demo: what is missing, and nothing else.

A person, a client and a project are each there or not, with all that belongs to them, and what is there is left as it
is: edits stay, and what somebody removed does not come back. Figures are readings of version 1, older than any real
one, so that a repeat stores nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import islice
from uuid import UUID
from zoneinfo import ZoneInfo

from mrm.common.v1 import channel_pb2, money_pb2, platform_pb2, time_pb2
from mrm.planning.v1 import media_plan_pb2
from mrm.statistics.v1 import snapshot_pb2
from mrm.statistics.v1.statistics_service_pb2 import AppendMetricsRequest
from server.accounts import convert as accounts
from server.campaigns import convert as campaigning
from server.planning import convert as planning
from server.planning import plan_convert
from server.planning.plan_convert import Frame
from server.rpc.auditing import SYSTEM, append_to, recorder
from server.rpc.call import AuditEntry, AuditRecorder
from server.search import convert as searching
from server.seeding import history, story
from server.seeding.history import Figures
from server.seeding.story import CampaignStory, ClientStory, Person, PlanStory, ProjectStory
from server.settings import Settings
from server.statistics.relay import CampaignDirectory
from server.statistics.snapshots import SnapshotWriter
from storage.clickhouse.connect import ClickHouse
from storage.postgres import (
    campaigns,
    clients,
    media_plan_history,
    media_plans,
    outbox,
    project_team,
    projects,
    templates,
    users,
)
from storage.postgres.audit import Cause
from storage.postgres.clients import Client
from storage.postgres.database import Database, Transaction
from storage.postgres.media_plans import MediaPlan
from storage.postgres.projects import Project
from storage.redis.signals import Signals
from storage.scope import EVERYTHING

_VERSION = 1
_REQUEST = 5000
_SOURCES = {
    "yandex_direct": snapshot_pb2.METRICS_SOURCE_PLATFORM,
    "vk_ads": snapshot_pb2.METRICS_SOURCE_PLATFORM,
    # Nobody synchronises these: somebody imports a report.
    "other": snapshot_pb2.METRICS_SOURCE_IMPORT,
}
_STEPS = {
    "draft": (),
    "approved": ("submit", "approve"),
    "active": ("submit", "approve", "activate"),
    "completed": ("submit", "approve", "activate"),
}
_STATES = {
    "submit": "pending_approval",
    "approve": "approved",
    "activate": "active",
    "supersede": "completed",
    "complete": "completed",
}
_SAID = {
    "submit": "Figures agreed with the client",
    "approve": "Agreed",
    "supersede": "Video added, budgets raised",
    "complete": "The flight is over",
}

Hash = Callable[[str], Awaitable[str]]
"""Makes what is stored of a password."""
Meter = Callable[[int], None]
"""Told how many figures have been written."""


@dataclass(frozen=True, slots=True)
class ProjectSummary:
    """What there is of a project.

    Attributes:
        days: Days with figures.
        spent_micros: What they cost together.
        budget: What it may cost.
    """

    client: Client
    project: Project
    campaigns: int
    days: int
    spent_micros: int
    budget: Decimal | None


@dataclass(slots=True)
class Report:
    """What was done and what there is.

    Attributes:
        people: The people that were made.
        made: How many other things were made, by kind.
        stored: Figures that were written.
        known: Figures that were there.
    """

    people: list[Person] = field(default_factory=list)
    made: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("clients", "templates", "projects", "plans", "campaigns"), 0)
    )
    stored: int = 0
    known: int = 0
    projects: list[ProjectSummary] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Told:
    """A campaign with the figures that there are to be, by day."""

    story: CampaignStory
    days: list[tuple[date, Figures]]


@dataclass(frozen=True, slots=True)
class _Tenant:
    """A client of the demo.

    Attributes:
        made: The day on which it was made.
        told: Its campaigns by project.
    """

    story: ClientStory
    row: Client
    made: date
    told: dict[str, list[_Told]]

    @property
    def zone(self) -> ZoneInfo:
        """Where its hours begin; not what an edit made of the row, or hours would be told twice."""
        return ZoneInfo(self.story.time_zone)


class Demo:
    """Writes the demo.

    Args:
        database: Where people, clients, projects, plans and campaigns go.
        clickhouse: Where figures go.
        signals: Tells watchers that there are new figures.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse, signals: Signals) -> None:
        self._database = database
        self._writer = SnapshotWriter(database, clickhouse, CampaignDirectory(database, clickhouse), signals)
        self._requests: list[AppendMetricsRequest] = []
        self.report = Report()

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings) -> AsyncIterator[Demo]:
        """On the engines that the settings name."""
        database = await Database.open(settings.postgres.dsn.get_secret_value(), min_size=1, max_size=4)
        clickhouse = ClickHouse(settings.clickhouse.dsn.get_secret_value(), connections=2)
        signals = Signals(settings.redis.durable_dsn.get_secret_value())
        try:
            yield cls(database, clickhouse, signals)
        finally:
            await signals.close()
            await clickhouse.close()
            await database.close()

    async def has_strangers(self) -> bool:
        """Whether there are clients that are not the demo's."""
        ours = {story.AGENCY.id, *(each.id for each in story.ADVERTISERS)}
        found = await clients.list_page(self._database, EVERYTHING, limit=len(ours) + 1, include_archived=True)
        return any(row.id not in ours for row in found)

    async def missing(self, people: Sequence[Person]) -> list[Person]:
        """Those of the people who are not there, deleted ones not counted as missing."""
        return [person for person in people if await users.get(self._database, person.id) is None]

    async def write_entities(self, people: Sequence[Person], password: str, hash_password: Hash) -> None:
        """Makes people, clients, projects, teams, plans and campaigns, all together or not at all.

        Args:
            people: Who is missing.
            password: Of all of them.
            hash_password: Makes what is stored of it.

        Raises:
            Conflict: Somebody else has one of the e-mail addresses, or a client of the demo has been purged.
        """
        hashes = {person.role: await hash_password(password) for person in people}
        async with self._database.transaction("seed_demo") as tx:
            record = recorder(append_to(tx), SYSTEM, cause=Cause("operator", description="mrm seed demo"))
            for person in people:
                row = await users.create(
                    tx,
                    email=person.email,
                    password_hash=hashes[person.role],
                    role=person.role,
                    first_name=person.first_name,
                    last_name=person.last_name,
                    user_id=person.id,
                )
                await record(AuditEntry("create", "user", row.id, None, None, None, accounts.recorded_user(row)))
            self.report.people = list(people)
            agency, is_new = await self._client(tx, record, story.AGENCY, None)
            for person in story.PEOPLE if is_new else people:
                if person.role in story.TEAM:
                    await clients.add_membership(tx, user_id=person.id, client_id=agency.id)
                    member = await clients.get_member(tx, EVERYTHING, client_id=agency.id, user_id=person.id)
                    if member is not None:
                        shown = accounts.member(member)
                        await record(AuditEntry("add_member", "client", agency.id, agency.id, None, None, shown))
            tenants = [await self._tenant(tx, record, each, agency) for each in story.ADVERTISERS]
        self._requests = [request for tenant in tenants for request in _requests(tenant)]

    async def _client(
        self, tx: Transaction, record: AuditRecorder, wanted: ClientStory, agency: Client | None
    ) -> tuple[Client, bool]:
        row = await clients.get(tx, EVERYTHING, wanted.id)
        if row is not None:
            return row, False
        row = await clients.create(
            tx,
            name=wanted.name,
            type=wanted.type,
            industry=wanted.industry,
            website=wanted.website,
            settings={"timezone": wanted.time_zone, "currency": wanted.currency, "language": wanted.language},
            parent_client_id=None if agency is None else agency.id,
            client_id=wanted.id,
        )
        await record(AuditEntry("create", "client", row.id, row.id, None, None, accounts.client(row)))
        self.report.made["clients"] += 1
        return row, True

    async def _tenant(self, tx: Transaction, record: AuditRecorder, wanted: ClientStory, agency: Client) -> _Tenant:
        row, new = await self._client(tx, record, wanted, agency)
        if new:
            await self._templates(tx, record, wanted)
        zone = ZoneInfo(wanted.time_zone)
        made, today = row.created_at.astimezone(zone).date(), datetime.now(zone).date()
        told: dict[str, list[_Told]] = {}
        for each in wanted.projects(made):
            project = await projects.get(tx, EVERYTHING, each.id)
            if project is None and not row.read_only:
                project = await self._project(tx, record, wanted, each)
            if project is None:
                continue
            found = await campaigns.list_page(tx, EVERYTHING, limit=1000, project_id=project.id)
            known = {campaign.id: campaign.status for campaign in found}
            told[each.key] = [
                # After the day on which all began, a campaign that somebody paused stands still.
                _Told(
                    campaign,
                    list(
                        campaign.figures(
                            made - timedelta(days=story.HISTORY_DAYS),
                            (today if known[campaign.id] == "active" and not row.read_only else made)
                            - timedelta(days=1),
                        )
                    ),
                )
                for campaign in each.campaigns
                if campaign.id in known
            ]
            self.report.projects.append(_summary(row, project, told[each.key]))
        return _Tenant(wanted, row, made, told)

    async def _templates(self, tx: Transaction, record: AuditRecorder, client: ClientStory) -> None:
        for each in story.TEMPLATES[client.key]:
            row = await templates.create(
                tx,
                client_id=client.id,
                name=each.name,
                artifact_type=each.artifact_type,
                columns=[{"name": name, "type": kind} for name, kind in each.columns],
                sample=[each.sample],
                file_name=each.file_name,
                created_by=story.stable_id("user", "media_planner"),
                template_id=each.id,
            )
            assert row is not None
            await record(AuditEntry("create", "template", row.id, row.client_id, None, None, searching.template(row)))
            self.report.made["templates"] += 1

    async def _project(
        self, tx: Transaction, record: AuditRecorder, client: ClientStory, wanted: ProjectStory
    ) -> Project:
        ids = {person.role: person.id for person in story.PEOPLE}
        project = await projects.create(
            tx,
            client_id=client.id,
            name=wanted.name,
            description=wanted.description,
            status=wanted.status,
            budget_total=Decimal(wanted.budget),
            budget_currency=client.currency,
            start_date=wanted.start,
            end_date=wanted.end,
            created_by=ids["pm"],
            brief=wanted.brief,
            project_id=wanted.id,
        )
        if wanted.rating is not None:
            rated = await projects.update(tx, EVERYTHING, replace(project, performance_rating=wanted.rating))
            assert rated is not None
            project = rated
        shown = planning.project(project)
        await record(AuditEntry("create", "project", project.id, client.id, project.id, None, shown))
        self.report.made["projects"] += 1
        for role, letter in story.TEAM.items():
            place = await project_team.add(tx, project_id=project.id, user_id=ids[role], role=role, raci=letter)
            entry = AuditEntry("add", "project_member", place.id, client.id, project.id, None, planning.member(place))
            await record(entry)
        for plan in wanted.plans:
            await self._plan(tx, record, client, project, plan)
        return project

    async def _plan(
        self, tx: Transaction, record: AuditRecorder, client: ClientStory, project: Project, wanted: PlanStory
    ) -> None:
        """Writes a plan, takes each version as far as it came, and makes the campaigns it pays for."""
        planner, former = story.stable_id("user", "media_planner"), None
        for number, version in enumerate(wanted.versions, start=1):
            columns = plan_convert.writable(
                _plan_message(client, wanted, version.budgets),
                Frame(project.budget_currency, project.start_date, project.end_date),
                {str(each.channel_id) for each in wanted.campaigns},
            )
            row = await media_plans.create(
                tx,
                project_id=project.id,
                currency=project.budget_currency,
                created_by=planner,
                author_ids=[planner],
                lineage_id=wanted.id,
                version=number,
                media_plan_id=story.stable_id("plan version", f"{wanted.key}/{number}"),
                **columns,
            )
            shown = plan_convert.plan(row)
            await record(AuditEntry("create", "media_plan", row.id, client.id, project.id, None, shown))
            for step in _STEPS[version.status]:
                if step == "activate" and former is not None:
                    await _step(tx, record, former, "supersede", superseded_by=row.id)
                row = await _step(tx, record, row, step)
            former = row
        if former is not None and former.status == "active" and wanted.versions[-1].status == "completed":
            await _step(tx, record, former, "complete")
        self.report.made["plans"] += 1
        bound = max(
            (number for number, each in enumerate(wanted.versions, start=1) if each.status != "draft"),
            default=len(wanted.versions),
        )
        for campaign in wanted.campaigns:
            row_ = await campaigns.create(
                tx,
                client_id=client.id,
                project_id=project.id,
                platform=campaign.platform,
                name=campaign.name,
                currency=client.currency,
                status=campaign.status,
                plan_lineage_id=wanted.id,
                plan_version=bound,
                plan_channel_id=campaign.channel_id,
                budget_total=Decimal(campaign.budget),
                campaign_id=campaign.id,
            )
            await outbox.append(tx, "campaign", str(row_.id))
            shown_ = campaigning.campaign(row_)
            await record(AuditEntry("create", "campaign", row_.id, client.id, project.id, None, shown_))
            self.report.made["campaigns"] += 1

    @property
    def figures(self) -> int:
        """How many figures `write_figures` goes through, once the entities are written."""
        return sum(len(request.snapshots) for request in self._requests)

    async def write_figures(self, meter: Meter) -> None:
        """Writes the figures the way AppendMetrics does. Interrupted, it goes on where it stopped when run again."""
        for request in self._requests:
            rows = await self._writer.check(request, EVERYTHING)
            stored = await self._writer.store(request, rows)
            self.report.stored += stored
            self.report.known += len(rows) - stored
            meter(self.report.stored + self.report.known)


async def _step(
    tx: Transaction, record: AuditRecorder, plan: MediaPlan, step: str, superseded_by: UUID | None = None
) -> MediaPlan:
    """Takes a version a step on: the planner submits, the pm decides."""
    by = story.stable_id("user", "media_planner" if step == "submit" else "pm")
    changed = replace(plan, status=_STATES[step])
    if step == "submit":
        changed = replace(changed, submitted_by=by)
    elif step == "approve":
        changed = replace(changed, approved_by=by)
    elif step == "supersede":
        changed = replace(changed, superseded_by=superseded_by)
    row = await media_plans.update(tx, EVERYTHING, changed)
    assert row is not None
    await media_plan_history.decide(tx, media_plan_id=row.id, kind=step, decided_by=by, comment=_SAID.get(step, ""))
    before, after = plan_convert.plan(plan), plan_convert.plan(row)
    await record(AuditEntry(step, "media_plan", row.id, row.client_id, row.project_id, before, after))
    return row


def _plan_message(client: ClientStory, wanted: PlanStory, money: Mapping[str, int]) -> media_plan_pb2.MediaPlan:
    return media_plan_pb2.MediaPlan(
        display_name=wanted.name,
        channels=[
            media_plan_pb2.PlanChannel(
                channel_id=str(each.channel_id),
                channel_type=channel_pb2.ChannelType.Value(f"CHANNEL_TYPE_{each.channel.upper()}"),
                platform=platform_pb2.Platform.Value(f"PLATFORM_{each.platform.upper()}"),
                budget=money_pb2.Money(currency_code=client.currency, micros=money[each.key] * 10**6),
                flight=time_pb2.DateRange(start_date=each.start.isoformat(), end_date=each.end.isoformat()),
                kpis=_kpis(each),
            )
            for each in wanted.campaigns
            if each.key in money
        ],
        targeting=media_plan_pb2.Targeting(
            geo=client.geo, ages=[media_plan_pb2.AgeRange(min_years=25, max_years=54)], interests=client.interests
        ),
    )


def _kpis(campaign: CampaignStory) -> list[media_plan_pb2.PlanKpi]:
    """Goals that the campaign just about reaches."""
    if campaign.course is None:
        return []
    goals = {
        media_plan_pb2.KPI_METRIC_CTR: campaign.course.ctr * 100,
        media_plan_pb2.KPI_METRIC_CR: campaign.course.cr * 100,
        media_plan_pb2.KPI_METRIC_CPC: campaign.course.cpc * 1.1,
        media_plan_pb2.KPI_METRIC_CPM: campaign.course.cpm * 1.1,
    }
    return [media_plan_pb2.PlanKpi(metric=metric, target=f"{goal:.2f}") for metric, goal in goals.items() if goal]


def _requests(tenant: _Tenant) -> Iterator[AppendMetricsRequest]:
    """The figures of a client as AppendMetrics takes them."""
    told = [each for project in tenant.told.values() for each in project]
    for source in sorted(set(_SOURCES.values())):
        snapshots = (
            snapshot
            for each in told
            if _SOURCES[each.story.platform] == source
            for snapshot in _snapshots(tenant, each)
        )
        while batch := list(islice(snapshots, _REQUEST)):
            yield AppendMetricsRequest(
                client_id=str(tenant.row.id),
                source=source,
                version=_VERSION,
                attribution_model=snapshot_pb2.ATTRIBUTION_MODEL_LAST_SIGNIFICANT_CLICK,
                snapshots=batch,
            )


def _snapshots(tenant: _Tenant, told: _Told) -> Iterator[snapshot_pb2.MetricsSnapshot]:
    hourly = tenant.made - timedelta(days=story.HOURLY_DAYS)
    for day, figures in told.days:
        if day < hourly:
            yield _snapshot(told.story, figures, date=day.isoformat())
            continue
        for start, part in history.hours_of(told.story.key, figures, day, tenant.zone):
            yield _snapshot(told.story, part, hour=start)


def _snapshot(
    campaign: CampaignStory, figures: Figures, *, date: str = "", hour: int | None = None
) -> snapshot_pb2.MetricsSnapshot:
    message = snapshot_pb2.MetricsSnapshot(
        campaign_id=str(campaign.id),
        delivery=snapshot_pb2.MetricsSnapshot.Delivery(
            impressions=figures.impressions, clicks=figures.clicks, cost_micros=figures.cost_micros
        ),
        outcome=snapshot_pb2.MetricsSnapshot.Outcome(
            conversions_micros=figures.conversions * 10**6, revenue_micros=figures.revenue_micros
        ),
    )
    if hour is None:
        message.date = date
    else:
        message.hour.seconds = hour
    return message


def _summary(client: Client, project: Project, told: Sequence[_Told]) -> ProjectSummary:
    days = {day for each in told for day, _ in each.days}
    spent = sum(figures.cost_micros for each in told for _, figures in each.days)
    return ProjectSummary(client, project, len(told), len(days), spent, project.budget_total)
