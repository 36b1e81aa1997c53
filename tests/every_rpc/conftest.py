"""A tenant with two of everything, and callers who may use each right: there, elsewhere, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from mrm.accounts.v1 import api_key_service_pb2, integration_service_pb2, service_account_service_pb2
from mrm.common.v1 import options_pb2, time_pb2
from mrm.planning.v1 import media_plan_pb2, media_plan_service_pb2, project_member_pb2, project_pb2
from mrm.statistics.v1 import event_pb2, statistics_file_service_pb2, statistics_service_pb2
from server.accounts.permissions import ALL, PEOPLE_ONLY, ROLE_PERMISSIONS
from server.alerts.raising import raise_alert
from server.planning.benchmark_service import seed_rows
from storage.postgres import benchmarks, clients, emails, jobs, sync_streams, templates, users
from storage.postgres.alerts import Sighting
from storage.postgres.audit import Cause
from tests.campaigns import importing
from tests.conftest import PASSWORD_HASH, Caller, World, impression
from tests.every_rpc.cases import Target
from tests.feedback import asking
from tests.planning import plans
from tests.prompts import writing
from tests.reports import making as reporting


@dataclass
class Tenancy:
    """The tenant, and callers by what they may do.

    Attributes:
        target: The tenant.
        elsewhere: Another tenant's client.
    """

    world: World
    target: Target
    elsewhere: str
    _callers: dict[tuple[str, ...], Caller] = field(default_factory=dict)

    async def with_right(self, permission: str) -> list[Caller]:
        """A key and a person who have a right, in the other tenant only; whoever can have it at all."""
        callers = []
        if permission not in PEOPLE_ONLY:
            callers.append(await self._key("elsewhere", permission, self.elsewhere))
        if roles := [role for role in ROLE_PERMISSIONS if role != "admin" and permission in ROLE_PERMISSIONS[role]]:
            callers.append(await self._user("elsewhere", roles[0], self.elsewhere))
        return callers

    async def without_right(self, permission: str) -> list[Caller]:
        """A key and a person of the tenant who have other rights only."""
        other = next(name for name in sorted(ALL - PEOPLE_ONLY) if name != permission)
        callers = [await self._key("here", other, self.target.client_id)]
        if roles := [role for role in ROLE_PERMISSIONS if permission not in ROLE_PERMISSIONS[role]]:
            callers.append(await self._user("here", roles[-1], self.target.client_id))
        return callers

    async def _key(self, where: str, permission: str, client_id: str) -> Caller:
        name = (where, "key", permission)
        if name not in self._callers:
            value = options_pb2.Permission.Value(f"PERMISSION_{permission}")
            self._callers[name] = await self.world.key([client_id], value)
        return self._callers[name]

    async def _user(self, where: str, role: str, client_id: str) -> Caller:
        name = (where, "user", role)
        if name not in self._callers:
            self._callers[name] = await self.world.user(role, client_id)
        return self._callers[name]


@pytest.fixture(scope="session")
async def tenancy(world: World) -> Tenancy:
    """Made once; the walks change nothing of it."""
    return Tenancy(world, await make_target(world), (await world.client()).client_id)


async def make_target(world: World) -> Target:
    """A tenant with two of everything that is listed."""
    admin, auth = world.admin, world.admin.auth
    client = await world.client(type=1)
    for _ in range(2):
        await world.client(parent_client_id=client.client_id)
    projects = [await world.project(client.client_id) for _ in range(2)]
    campaigns = [await world.campaign(projects[0].project_id) for _ in range(2)]
    media_plans = [await plans.create(admin, projects[0].project_id, 1) for _ in range(2)]
    await plans.step(admin, "submit", media_plans[0].media_plan_id)
    await plans.step(admin, "recall", media_plans[0].media_plan_id)
    for _ in range(2):
        remark = media_plan_pb2.MediaPlanComment(media_plan_id=media_plans[0].media_plan_id, text="Hm.")
        saying = media_plan_service_pb2.CreateMediaPlanCommentRequest(comment=remark)
        await admin.plans.CreateMediaPlanComment(saying, metadata=auth)
    people = [await _person(world, client.client_id) for _ in range(2)]
    role, raci = project_member_pb2.PROJECT_ROLE_ANALYST, project_member_pb2.RACI_RESPONSIBLE
    member = await world.member(projects[0].project_id, people[0], role, raci)
    accounts, keys, integrations = [], [], []
    for number in range(2):
        account = service_account_service_pb2.CreateServiceAccountRequest(service_account={"display_name": uuid4().hex})  # type: ignore[arg-type]
        accounts.append((await admin.service_accounts.CreateServiceAccount(account, metadata=auth)).service_account)
        key = api_key_service_pb2.CreateApiKeyRequest(
            display_name="k",
            permissions=[options_pb2.PERMISSION_CLIENTS_READ],
            client_ids=[client.client_id],
            service_account_id=accounts[0].service_account_id,
        )
        keys.append((await admin.api_keys.CreateApiKey(key, metadata=auth)).api_key)
        connect = integration_service_pb2.ConnectIntegrationRequest(
            client_id=client.client_id,
            platform_account_id=f"account {number}",
            credentials={"vk_ads": {"access_token": uuid4().hex, "refresh_token": uuid4().hex}},  # type: ignore[arg-type]
        )
        integrations.append((await admin.integrations.ConnectIntegration(connect, metadata=auth)).integration)
    async with world.database.transaction("see") as tx:
        there = {str(number): {"name": f"Campaign {number}", "state": "running"} for number in (7, 8)}
        await sync_streams.see_internal(tx, UUID(integrations[0].integration_id), there, datetime.now(UTC))
    await benchmarks.add(world.database, seed_rows())
    tracker = await world.key([client.client_id])
    await _events(tracker, client.client_id, campaigns[0].campaign_id)
    files = [await _file(admin, client.client_id) for _ in range(2)]
    faulty = [importing.row(line, "x", platform=0) for line in (2, 3)]
    imports = [await importing.bring(admin, projects[0].project_id, [faulty]) for _ in range(2)]
    suppressed = [
        await emails.suppress(
            world.database, address=f"{uuid4().hex}@example.com", reason="manual", comment="", created_by=None
        )
        for _ in range(2)
    ]
    prompt = await _prompts(admin, client.client_id)
    return Target(
        client_id=client.client_id,
        project_id=projects[0].project_id,
        campaign_id=campaigns[0].campaign_id,
        media_plan_id=media_plans[0].media_plan_id,
        lineage_id=media_plans[0].lineage_id,
        member_id=member.project_member_id,
        user_id=str(people[0]),
        api_key_id=keys[0].api_key_id,
        service_account_id=accounts[0].service_account_id,
        integration_id=integrations[0].integration_id,
        file_key=files[0],
        job_id=await _jobs(world, client.client_id),
        report_id=await _reports(world, projects[0].project_id),
        alert_id=await _alerts(world, client.client_id, projects[0].project_id, campaigns[0].campaign_id),
        campaign_import_id=imports[0][0].campaign_import_id,
        suppression_id=str(suppressed[0][0].id),
        **prompt,
        feedback_id=await _feedback(world, projects[0], prompt["prompt_version_id"]),
        template_id=await _templates(world, client.client_id),
    )


async def _person(world: World, client_id: str) -> UUID:
    row = await users.create(
        world.database, email=f"{uuid4().hex}@example.com", password_hash=PASSWORD_HASH, role="analyst"
    )
    await clients.add_membership(world.database, user_id=row.id, client_id=UUID(client_id))
    return row.id


async def _jobs(world: World, client_id: str) -> str:
    """Two jobs that nobody does; the id of one."""
    async with world.database.transaction("make_jobs") as tx:
        for _ in range(2):
            made = await jobs.enqueue_internal(
                tx, type="sync_campaign", queue="sync", payload={}, client_id=UUID(client_id), delay=timedelta(days=1)
            )
    return str(made.id)


async def _templates(world: World, client_id: str) -> str:
    """Two templates, and Milvus, without which nothing is searched; the id of one."""
    await world.engines.begin("milvus")
    columns = [{"name": "Clicks", "type": "integer"}]
    for _ in range(2):
        made = await templates.create(
            world.database, client_id=UUID(client_id), name="t", artifact_type="report", columns=columns
        )
    assert made is not None
    return str(made.id)


async def _prompts(admin: Caller, client_id: str) -> dict[str, str]:
    """Two prompts of the client's own, one with two versions, two moves of a label and two experiments; ids of one."""
    await writing.create(admin, client_id=client_id)
    first = await writing.create(admin, client_id=client_id, name=f"of {client_id}")
    second = await writing.version(admin, first.prompt_id)
    await writing.move(admin, first, "staging")
    await writing.move(admin, second, "staging", first)
    for number in range(2):
        experiment = await writing.start(admin, "staging", second, first)
        if number == 0:
            await writing.stop(admin, experiment)
    return {
        "prompt_id": first.prompt_id,
        "prompt_version_id": first.prompt_version_id,
        "prompt_experiment_id": experiment.prompt_experiment_id,
    }


async def _reports(world: World, project_id: str) -> str:
    """Two reports that are ready; the id of one."""
    for _ in range(2):
        report = await reporting.ready(world, project_id)
    return report.report_id


async def _feedback(world: World, project: project_pb2.Project, version_id: str) -> str:
    """Two answers that somebody took; the id of what was said of one."""
    place = asking.Desk(project.client_id, project.project_id, "", [version_id])
    taken = [place.record(project_id=project.project_id) for _ in range(2)]
    return (await asking.batch(world.admin, *taken))[0].feedback_id


async def _alerts(world: World, client_id: str, project_id: str, campaign_id: str) -> str:
    """Two alerts of a campaign; the id of one."""
    async with world.database.transaction("raise_alerts") as tx:
        for number in range(2):
            seen = Sighting(
                client_id=UUID(client_id),
                kind="overspend",
                severity="critical",
                dedupe_key=f"test:{number}",
                summary="spent too much",
                details={},
                project_id=UUID(project_id),
                campaign_id=UUID(campaign_id),
            )
            raised = await raise_alert(tx, seen, cause=Cause("job", "test"), settings=world.settings.alerts)
    assert raised is not None
    return str(raised.alert.id)


async def _events(tracker: Caller, client_id: str, campaign_id: str) -> None:
    """One event that counts, and two that are put aside."""
    old = datetime.now(UTC) - timedelta(days=4000)
    events = [impression(campaign_id), impression(campaign_id, old), impression(campaign_id, old)]
    batch = event_pb2.EventBatch(events=events)
    request = statistics_service_pb2.IngestEventsRequest(client_id=client_id, batch=batch)
    reply = await tracker.statistics.IngestEvents(request, metadata=tracker.auth)
    assert (reply.stored_count, reply.quarantined_count) == (1, 2)


async def _file(caller: Caller, client_id: str) -> str:
    request = statistics_file_service_pb2.WriteStatisticsFileRequest(
        client_id=client_id,
        file_name=f"{uuid4().hex}.parquet",
        dates=time_pb2.DateRange(start_date="2026-01-01", end_date="2026-01-02"),
        granularity=time_pb2.GRANULARITY_DAY,
    )
    key = ""
    async for part in caller.files.WriteStatisticsFile(request, metadata=caller.auth):
        key = part.file.key or key
    return key
