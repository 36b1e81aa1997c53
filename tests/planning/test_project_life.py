"""A project's life: which steps lead where, and what each asks for."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
import pytest

from mrm.campaigns.v1 import campaign_pb2, campaign_service_pb2
from mrm.common.v1 import money_pb2
from mrm.planning.v1 import project_pb2
from mrm.planning.v1 import project_service_pb2 as pb
from tests.conftest import Caller, Failing, World

STATES = ("draft", "active", "paused", "completed", "archived")
LEADS = {
    "activate": {"draft": "active", "paused": "active"},
    "pause": {"active": "paused"},
    "complete": {"active": "completed", "paused": "completed"},
    "archive": {"draft": "archived", "completed": "archived"},
    "restore": {"archived": "completed"},
}
WANTED = {
    "activate": "active",
    "pause": "paused",
    "complete": "completed",
    "archive": "archived",
    "restore": "completed",
}
READY = {
    "total_budget": money_pb2.Money(currency_code="RUB", micros=10**12),
    "start_date": "2026-03-01",
    "end_date": "2026-05-31",
}


async def step(caller: Caller, verb: str, project_id: str, **fields: Any) -> project_pb2.Project:
    name = f"{verb.capitalize()}Project"
    if verb == "complete":
        fields = {"performance_rating": 7, **fields}
    request = getattr(pb, f"{name}Request")(project_id=project_id, **fields)
    reply = await getattr(caller.projects, name)(request, metadata=caller.auth)
    return reply.project  # type: ignore[no-any-return]


async def force(world: World, project_id: str, state: str) -> None:
    await world.database.execute("UPDATE projects SET status = $2 WHERE id = $1", UUID(project_id), state)


@pytest.fixture(scope="module")
async def client_id(world: World) -> str:
    return (await world.client()).client_id


@pytest.mark.bar_d
@pytest.mark.parametrize("verb", LEADS)
@pytest.mark.parametrize("state", STATES)
async def test_every_step_from_every_state(
    world: World, failing: Failing, client_id: str, state: str, verb: str
) -> None:
    project = await world.project(client_id, **READY)
    await force(world, project.project_id, state)
    if state in LEADS[verb]:
        after = await step(world.admin, verb, project.project_id)
        assert project_pb2.ProjectStatus.Name(after.status) == f"PROJECT_STATUS_{LEADS[verb][state].upper()}"
        return
    failure = await failing(step(world.admin, verb, project.project_id))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_FORBIDS")
    assert failure.metadata["state"] == state
    assert failure.metadata["wanted"] == WANTED[verb]
    assert state in failure.message
    assert WANTED[verb] in failure.message
    got = await world.admin.projects.GetProject(
        pb.GetProjectRequest(project_id=project.project_id), metadata=world.admin.auth
    )
    assert project_pb2.ProjectStatus.Name(got.project.status) == f"PROJECT_STATUS_{state.upper()}"


@pytest.mark.parametrize("missing", READY)
async def test_an_active_project_is_whole(world: World, failing: Failing, client_id: str, missing: str) -> None:
    project = await world.project(client_id, **{name: value for name, value in READY.items() if name != missing})
    failure = await failing(step(world.admin, "activate", project.project_id))
    assert failure.metadata["missing"] == missing
    assert missing in failure.message


async def test_an_active_project_has_an_accountable(world: World, failing: Failing, client_id: str) -> None:
    project = await world.project(client_id, **READY)
    await world.database.execute("DELETE FROM project_team WHERE project_id = $1", UUID(project.project_id))
    failure = await failing(step(world.admin, "activate", project.project_id))
    assert failure.metadata["missing"] == "accountable"


async def test_completion_rates_and_asks_about_running_campaigns(
    world: World, failing: Failing, client_id: str
) -> None:
    project = await world.project(client_id, **READY)
    running = [await world.campaign(project.project_id) for _ in range(2)]
    idle = await world.campaign(project.project_id)
    await step(world.admin, "activate", project.project_id)
    await world.database.execute(
        "UPDATE campaigns SET status = 'active' WHERE id = ANY ($1)", [UUID(c.campaign_id) for c in running]
    )
    failure = await failing(step(world.admin, "complete", project.project_id))
    assert failure.metadata["active_campaigns"] == "2"
    done = await step(world.admin, "complete", project.project_id, pause_campaigns=True, performance_rating=9)
    assert done.performance_rating == 9
    for campaign, status in [*((c, "PAUSED") for c in running), (idle, "DRAFT")]:
        got = await world.admin.campaigns.GetCampaign(
            campaign_service_pb2.GetCampaignRequest(campaign_id=campaign.campaign_id), metadata=world.admin.auth
        )
        assert campaign_pb2.CampaignStatus.Name(got.campaign.status) == f"CAMPAIGN_STATUS_{status}"
    recorded = await world.database.fetch(
        "SELECT resource_id, diff->'status' FROM audit_log WHERE project_id = $1 AND action = 'pause'",
        UUID(project.project_id),
    )
    change = ["CAMPAIGN_STATUS_ACTIVE", "CAMPAIGN_STATUS_PAUSED"]
    assert {row[0]: row[1] for row in recorded} == {campaign.campaign_id: change for campaign in running}


@pytest.mark.parametrize("rating", [0, 11, -1])
async def test_ratings_are_one_to_ten(world: World, failing: Failing, client_id: str, rating: int) -> None:
    project = await world.project(client_id, **READY)
    failure = await failing(step(world.admin, "complete", project.project_id, performance_rating=rating))
    assert list(failure.fields) == ["performance_rating"]


async def test_a_step_from_a_stale_state_is_refused(world: World, failing: Failing, client_id: str) -> None:
    project = await world.project(client_id, **READY)
    active = await step(world.admin, "activate", project.project_id, etag=project.etag)
    failure = await failing(step(world.admin, "pause", project.project_id, etag=project.etag))
    assert failure.reason == "ETAG_MISMATCH"
    await step(world.admin, "pause", project.project_id, etag=active.etag)


async def test_only_administrators_take_projects_out_of_the_archive(
    world: World, failing: Failing, client_id: str
) -> None:
    manager = await world.user("pm", client_id)
    project = await world.project(client_id, **READY)
    await step(manager, "archive", project.project_id)
    failure = await failing(step(manager, "restore", project.project_id))
    assert failure.code == grpc.StatusCode.PERMISSION_DENIED
    stranger = await world.user("pm", (await world.client()).client_id)
    failure = await failing(step(stranger, "archive", project.project_id))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    await step(world.admin, "restore", project.project_id)


async def test_a_brief_is_kept_as_given(world: World, failing: Failing, client_id: str) -> None:
    brief = project_pb2.ProjectBrief(objective="Продать весеннюю коллекцию", audience="женщины 25–45")
    brief.extra.update({"tone": ["warm", "calm"], "page": 3})
    project = await world.project(client_id, brief=brief)
    assert project.brief == brief
    change = project_pb2.Project(project_id=project.project_id, brief={"constraints": "no discounts"})  # type: ignore[arg-type]
    request = pb.UpdateProjectRequest(project=change, update_mask={"paths": ["brief.constraints"]})  # type: ignore[arg-type]
    changed = (await world.admin.projects.UpdateProject(request, metadata=world.admin.auth)).project
    assert (changed.brief.objective, changed.brief.constraints) == (brief.objective, "no discounts")
    large = project_pb2.ProjectBrief()
    large.extra.update({"text": "x" * 33_000})
    request = pb.UpdateProjectRequest(
        project=project_pb2.Project(project_id=project.project_id, brief=large),
        update_mask={"paths": ["brief"]},  # type: ignore[arg-type]
    )
    failure = await failing(world.admin.projects.UpdateProject(request, metadata=world.admin.auth))
    assert failure.fields == {"project.brief.extra": "TOO_LARGE"}
