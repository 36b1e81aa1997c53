"""Budgets over the running service: their state, policies, and the job that tells people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from mrm.campaigns.v1 import budget_pb2
from mrm.campaigns.v1 import budget_service_pb2 as pb
from mrm.common.v1 import money_pb2, options_pb2, time_pb2
from mrm.operations.v1 import alert_pb2, alert_service_pb2
from mrm.planning.v1 import project_service_pb2
from mrm.statistics.v1 import snapshot_pb2, statistics_service_pb2
from server.jobs.handling import JobContext, Stores
from server.pacing import check_job
from storage.postgres import jobs
from tests.conftest import Failing, World
from tests.planning import plans

pytestmark = pytest.mark.bar_e

ZONE = ZoneInfo("Europe/Moscow")
TODAY = datetime.now(UTC).astimezone(ZONE).date()
UNIT = 1_000_000


def rub(units: float) -> money_pb2.Money:
    return money_pb2.Money(currency_code="RUB", micros=int(units * UNIT))


async def running(world: World, budget: int = 1000) -> plans.Office:
    """A project that began ten days ago and ends in nine: half of its time is over within today."""
    where = await plans.office(
        world,
        budget * UNIT,
        start_date=(TODAY - timedelta(days=10)).isoformat(),
        end_date=(TODAY + timedelta(days=9)).isoformat(),
    )
    request = project_service_pb2.ActivateProjectRequest(project_id=where.project_id)
    await world.admin.projects.ActivateProject(request, metadata=world.admin.auth)
    return where


async def spend(world: World, client_id: str, campaign_id: str, daily: dict[int, float], version: int = 1) -> None:
    """What a platform says was spent so many days ago."""
    key = await world.key([client_id], options_pb2.PERMISSION_STATISTICS_INGEST)
    request = statistics_service_pb2.AppendMetricsRequest(
        client_id=client_id,
        source=snapshot_pb2.METRICS_SOURCE_PLATFORM,
        version=version,
        snapshots=[
            snapshot_pb2.MetricsSnapshot(
                campaign_id=campaign_id,
                date=(TODAY - timedelta(days=ago)).isoformat(),
                delivery=snapshot_pb2.MetricsSnapshot.Delivery(impressions=10, clicks=1, cost_micros=int(cost * UNIT)),
            )
            for ago, cost in daily.items()
        ],
    )
    await key.statistics.AppendMetrics(request, metadata=key.auth)


async def statuses(world: World, **target: str) -> list[budget_pb2.BudgetStatus]:
    request = pb.GetBudgetStatusRequest(**target)
    reply = await world.admin.budgets.GetBudgetStatus(request, metadata=world.admin.auth)
    assert reply.time_zone == "Europe/Moscow"
    assert abs(reply.watermark_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(seconds=60)
    return list(reply.statuses)


async def test_the_levels_of_a_project(world: World) -> None:
    where = await running(world)
    flight = time_pb2.DateRange(
        start_date=(TODAY - timedelta(days=10)).isoformat(), end_date=(TODAY - timedelta(days=1)).isoformat()
    )
    early, late = plans.channel(400 * UNIT), plans.channel(600 * UNIT)
    early.flight.CopyFrom(flight)
    plan = await plans.create(where.author, where.project_id, channels=[early, late])
    plan = await plans.approved(where, plan, active=True)
    bound = await world.campaign(
        where.project_id,
        media_plan_lineage_id=plan.lineage_id,
        plan_channel_id=plan.channels[0].channel_id,
        total_budget=rub(400),
    )
    free = await world.campaign(where.project_id, daily_budget=rub(10))
    await spend(world, where.client_id, bound.campaign_id, {ago: 30 for ago in range(1, 11)})
    await spend(world, where.client_id, free.campaign_id, {1: 7, 2: 7, 0: 1})
    found = await statuses(world, project_id=where.project_id)
    project, planned, first, second, *campaigns = found
    assert [each.level for each in found] == [1, 2, 3, 3, 4, 4]
    assert project.spent == rub(315)
    assert (project.remaining, project.spent_percent) == (rub(685), "31.5")
    assert 500 * UNIT <= project.planned_to_date.micros <= 550 * UNIT
    assert abs(Decimal(project.pacing) - Decimal(315 * UNIT) / project.planned_to_date.micros) < Decimal("1e-6")
    assert (first.planned_to_date, first.spent, first.pacing) == (rub(400), rub(300), "0.75")
    assert (second.spent, second.flight.start_date) == (rub(0), project.flight.start_date)
    assert planned.planned_to_date.micros == rub(400).micros + second.planned_to_date.micros
    assert (planned.spent, planned.media_plan_id) == (rub(300), plan.media_plan_id)
    assert [each.campaign_id for each in campaigns] == [bound.campaign_id, free.campaign_id]
    assert (campaigns[0].flight, campaigns[0].budget) == (flight, rub(400))
    # The flight is over, so nothing comes any more.
    assert campaigns[0].projection.projected_total == rub(300)
    assert (campaigns[1].budget, campaigns[1].projection.daily_average) == (rub(200), rub(2))
    assert campaigns[1].projection.method == budget_pb2.PROJECTION_METHOD_RUN_RATE_7_DAYS
    assert (await statuses(world, campaign_id=bound.campaign_id)) == [campaigns[0]]
    of_plan = await statuses(world, media_plan_id=plan.media_plan_id)
    assert [each.level for each in of_plan] == [2, 3, 3, 4]


async def test_what_cannot_be_computed_is_absent(world: World) -> None:
    client = await world.client()
    project = await world.project(client.client_id)
    campaign = await world.campaign(project.project_id)
    [status] = await statuses(world, campaign_id=campaign.campaign_id)
    assert status.spent == rub(0)
    absent = ("flight", "budget", "planned_to_date", "pacing", "remaining", "spent_percent", "projection")
    assert [name for name in absent if status.HasField(name)] == []  # type: ignore[arg-type]
    free = await world.campaign(project.project_id, total_budget=rub(0))
    [status] = await statuses(world, campaign_id=free.campaign_id)
    assert status.remaining == rub(0) and not status.HasField("spent_percent")


async def check(world: World, stores: Stores, client_id: str) -> dict[str, int]:
    async with world.database.transaction("check") as tx:
        await check_job.enqueue_check(tx, UUID(client_id))
    job_id = await world.database.fetchval(
        "SELECT id FROM jobs WHERE unique_key = $1 AND status = 'pending'", f"budget_check:{client_id}"
    )
    [job] = await jobs.claim_internal(world.database, [job_id], "test", timedelta(seconds=30))
    result = await check_job.handle(job, JobContext(stores, job, timedelta(seconds=30)))
    await jobs.complete_internal(world.database, [(job.id, job.fence, result)])
    return dict(result)


async def live(world: World, client_id: str) -> list[tuple[int, str]]:
    wanted = alert_service_pb2.AlertFilter(client_id=client_id, statuses=[alert_pb2.ALERT_STATUS_OPEN])
    request = alert_service_pb2.ListAlertsRequest(filter=wanted)
    reply = await world.admin.alerts.ListAlerts(request, metadata=world.admin.auth)
    return sorted((alert.kind, alert.details.budget.display_name) for alert in reply.alerts)


async def test_the_check_tells_and_takes_back(world: World, stores: Stores) -> None:
    where = await running(world)
    campaign = await world.campaign(where.project_id, display_name="Brand", total_budget=rub(100))
    policy = budget_pb2.BudgetAlertPolicy(
        client_id=where.client_id, pacing_low_percent=0, pacing_high_percent=1000,
        recipient_emails=["boss@customer.example"],
    )  # fmt: skip
    change = pb.UpdateBudgetAlertPolicyRequest(
        policy=policy, update_mask=FieldMask(paths=["pacing_low_percent", "pacing_high_percent", "recipient_emails"])
    )
    await world.admin.budgets.UpdateBudgetAlertPolicy(change, metadata=world.admin.auth)
    await spend(world, where.client_id, campaign.campaign_id, {9: 85})
    assert await check(world, stores, where.client_id) == {"seen": 1, "told": 1, "over": 0}
    assert await live(world, where.client_id) == [(alert_pb2.ALERT_KIND_BUDGET_THRESHOLD, "Brand")]
    # Looked at again, nobody is told again.
    assert await check(world, stores, where.client_id) == {"seen": 1, "told": 0, "over": 0}
    await spend(world, where.client_id, campaign.campaign_id, {9: 101}, version=2)
    assert await check(world, stores, where.client_id) == {"seen": 1, "told": 1, "over": 1}
    assert await live(world, where.client_id) == [(alert_pb2.ALERT_KIND_OVERSPEND, "Brand")]
    sent = await world.database.fetch(
        "SELECT content->>'kind' FROM emails WHERE client_id = $1 AND address = 'boss@customer.example' ORDER BY id",
        where.client_id,
    )
    assert [row[0] for row in sent] == ["budget_threshold", "overspend"]
    # The platform takes clicks back.
    await spend(world, where.client_id, campaign.campaign_id, {9: 20}, version=3)
    assert await check(world, stores, where.client_id) == {"seen": 0, "told": 0, "over": 1}
    assert await live(world, where.client_id) == []


async def test_the_clock_has_every_running_client_looked_at(world: World, stores: Stores) -> None:
    where = await running(world)
    async with world.database.transaction("clock") as tx:
        made = await jobs.enqueue_internal(tx, type="budget_check", queue="sync", payload={}, unique_key=uuid4().hex)
    [job] = await jobs.claim_internal(world.database, [made.id], "test", timedelta(seconds=30))
    await check_job.handle(job, JobContext(stores, job, timedelta(seconds=30)))
    key = f"budget_check:{where.client_id}"
    assert await world.database.fetchval("SELECT count(*) FROM jobs WHERE unique_key = $1", key) == 1


async def test_policies_are_inherited_and_written_with_care(world: World, failing: Failing) -> None:
    client_id, [campaign_id] = await world.tenant()
    service, auth = world.admin.budgets, world.admin.auth

    async def read(**target: str) -> budget_pb2.BudgetAlertPolicy:
        return (await service.GetBudgetAlertPolicy(pb.GetBudgetAlertPolicyRequest(**target), metadata=auth)).policy

    async def write(*paths: str, **fields: object) -> budget_pb2.BudgetAlertPolicy:
        policy = budget_pb2.BudgetAlertPolicy(**fields)  # type: ignore[arg-type]
        request = pb.UpdateBudgetAlertPolicyRequest(policy=policy, update_mask=FieldMask(paths=paths))
        return (await service.UpdateBudgetAlertPolicy(request, metadata=auth)).policy

    default = await read(client_id=client_id)
    assert (list(default.threshold_percents), default.source, default.etag) == ([50, 80, 100], 1, "r0")
    clients = await write("threshold_percents", client_id=client_id, etag="r0", threshold_percents=[90, 10])
    assert (list(clients.threshold_percents), clients.source, clients.etag) == ([10, 90], 2, "r1")
    inherited = await read(campaign_id=campaign_id)
    assert (list(inherited.threshold_percents), inherited.source, inherited.etag) == ([10, 90], 2, "r0")
    own = await write("muted", campaign_id=campaign_id, muted=True)
    assert (own.muted, list(own.threshold_percents), own.source) == (True, [10, 90], 3)
    assert (await failing(write("muted", campaign_id=campaign_id, etag="r0"))).reason == "ETAG_MISMATCH"
    both = await failing(write("muted", campaign_id=campaign_id, client_id=client_id))
    assert both.fields == {"policy": "TARGET_AMBIGUOUS"}
    band = await failing(write("pacing_low_percent", client_id=client_id, pacing_low_percent=200))
    assert band.reason == "INVALID_FIELDS"
    address = await failing(write("recipient_emails", client_id=client_id, recipient_emails=["x\r\nBcc: y@z.example"]))
    assert address.reason == "INVALID_FIELDS"
