"""ProjectService over gRPC."""

from __future__ import annotations

import grpc
import pytest

from mrm.accounts.v1 import client_pb2
from mrm.common.v1 import money_pb2
from mrm.planning.v1 import project_pb2
from mrm.planning.v1 import project_service_pb2 as pb
from tests.conftest import Failing, World


async def test_a_project_begins_as_a_draft_in_the_clients_currency(world: World) -> None:
    client = await world.client(settings=client_pb2.ClientSettings(currency_code="KZT"))
    project = await world.project(client.client_id, description="Spring", start_date="2026-03-01")
    assert project.status == project_pb2.PROJECT_STATUS_DRAFT
    assert project.spent_budget == money_pb2.Money(currency_code="KZT", micros=0)
    assert not project.HasField("total_budget")
    assert project.creator_id == str(world.admin.user_id)
    got = await world.admin.projects.GetProject(
        pb.GetProjectRequest(project_id=project.project_id), metadata=world.admin.auth
    )
    assert got.project == project


@pytest.mark.parametrize(
    ("fields", "broken"),
    [
        ({"start_date": "2026-02-30"}, "project.start_date"),
        ({"start_date": "tomorrow"}, "project.start_date"),
        ({"start_date": "2026-03-02", "end_date": "2026-03-01"}, "project"),
        ({"total_budget": money_pb2.Money(currency_code="RUB", micros=-1)}, "project.total_budget.micros"),
        ({"total_budget": money_pb2.Money(currency_code="rub", micros=1)}, "project.total_budget.currency_code"),
        ({"display_name": ""}, "project.display_name"),
    ],
)
async def test_bad_values_are_named(world: World, failing: Failing, fields: dict[str, object], broken: str) -> None:
    client = await world.client()
    values = {"client_id": client.client_id, "display_name": "x", **fields}
    request = pb.CreateProjectRequest(project=project_pb2.Project(**values))  # type: ignore[arg-type]
    failure = await failing(world.admin.projects.CreateProject(request, metadata=world.admin.auth))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert broken in failure.fields


async def test_update_replaces_only_masked_fields(world: World, failing: Failing) -> None:
    client = await world.client()
    project = await world.project(
        client.client_id, description="old", total_budget=money_pb2.Money(currency_code="RUB", micros=1_500_000)
    )
    change = project_pb2.Project(project_id=project.project_id, etag=project.etag, description="new")
    request = pb.UpdateProjectRequest(project=change, update_mask={"paths": ["description"]})  # type: ignore[arg-type]
    updated = (await world.admin.projects.UpdateProject(request, metadata=world.admin.auth)).project
    assert (updated.description, updated.display_name) == ("new", project.display_name)
    assert updated.total_budget.micros == 1_500_000
    request.update_mask.paths[:] = ["total_budget"]
    request.project.etag = updated.etag
    cleared = (await world.admin.projects.UpdateProject(request, metadata=world.admin.auth)).project
    assert not cleared.HasField("total_budget")
    request.project.total_budget.CopyFrom(money_pb2.Money(currency_code="USD", micros=1))
    request.project.etag = cleared.etag
    failure = await failing(world.admin.projects.UpdateProject(request, metadata=world.admin.auth))
    assert failure.fields == {"project.total_budget.currency_code": "CURRENCY_MISMATCH"}


async def test_lists_filter_by_client_status_and_overlap(world: World) -> None:
    client = await world.client()
    spring = await world.project(client.client_id, start_date="2026-03-01", end_date="2026-05-31")
    summer = await world.project(client.client_id, start_date="2026-06-01", end_date="2026-08-31")
    await world.project((await world.client()).client_id, start_date="2026-03-01", end_date="2026-05-31")
    request = pb.ListProjectsRequest()
    request.filter.client_id = client.client_id
    request.filter.statuses.append(project_pb2.PROJECT_STATUS_DRAFT)
    listed = await world.admin.projects.ListProjects(request, metadata=world.admin.auth)
    assert [project.project_id for project in listed.projects] == [spring.project_id, summer.project_id]
    request.filter.dates.start_date, request.filter.dates.end_date = "2026-06-15", "2026-07-01"
    listed = await world.admin.projects.ListProjects(request, metadata=world.admin.auth)
    assert [project.project_id for project in listed.projects] == [summer.project_id]
    request.filter.statuses[:] = [project_pb2.PROJECT_STATUS_ARCHIVED]
    assert not (await world.admin.projects.ListProjects(request, metadata=world.admin.auth)).projects


async def test_an_archived_project_is_read_only(world: World, failing: Failing) -> None:
    client = await world.client()
    project = await world.project(client.client_id)
    await world.database.execute(
        "UPDATE projects SET status = 'archived' WHERE id = $1::text::uuid", project.project_id
    )
    change = project_pb2.Project(project_id=project.project_id, description="late")
    request = pb.UpdateProjectRequest(project=change, update_mask={"paths": ["description"]})  # type: ignore[arg-type]
    failure = await failing(world.admin.projects.UpdateProject(request, metadata=world.admin.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_FORBIDS")
    assert failure.metadata["state"] == "archived"


async def test_team_members_see_the_project_but_not_its_client(world: World, failing: Failing) -> None:
    from uuid import UUID

    from mrm.accounts.v1 import client_service_pb2
    from storage.postgres import project_team

    client = await world.client()
    project, other = await world.project(client.client_id), await world.project(client.client_id)
    user = await world.user("specialist")
    assert user.user_id
    await project_team.add(
        world.database, project_id=UUID(project.project_id), user_id=user.user_id, role="specialist", raci="R"
    )
    listed = await user.projects.ListProjects(pb.ListProjectsRequest(), metadata=user.auth)
    assert [each.project_id for each in listed.projects] == [project.project_id]
    hidden = pb.GetProjectRequest(project_id=other.project_id)
    assert (await failing(user.projects.GetProject(hidden, metadata=user.auth))).code == grpc.StatusCode.NOT_FOUND
    get = client_service_pb2.GetClientRequest(client_id=client.client_id)
    assert (await failing(user.clients.GetClient(get, metadata=user.auth))).code == grpc.StatusCode.NOT_FOUND
