"""The permission matrix of requirements §12.1, and what a place in a project's team adds to it, over gRPC."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.accounts.v1 import api_key_service_pb2, client_service_pb2
from mrm.accounts.v1 import permission_service_pb2 as permission_pb
from mrm.campaigns.v1 import campaign_service_pb2
from mrm.common.v1 import options_pb2
from mrm.planning.v1 import project_service_pb2, project_team_service_pb2
from mrm.statistics.v1 import statistics_service_pb2
from server.accounts.permissions import PROJECT_ROLES, ROLE_PERMISSIONS
from storage.postgres import clients, project_team
from tests.conftest import Caller, World, failure_of

ROLES = ("admin", "pm", "media_planner", "analyst", "account_manager", "specialist")


@dataclass
class Target:
    """What is acted on: a project with a campaign, and the client of both."""

    client_id: str
    project_id: str
    campaign_id: str


Act = Callable[[Caller, Target], Awaitable[object]]


def update_client(caller: Caller, target: Target) -> Awaitable[object]:
    request = client_service_pb2.UpdateClientRequest(
        client={"client_id": target.client_id, "industry": uuid4().hex},  # type: ignore[arg-type]
        update_mask={"paths": ["industry"]},  # type: ignore[arg-type]
    )
    return caller.clients.UpdateClient(request, metadata=caller.auth)


def update_project(caller: Caller, target: Target) -> Awaitable[object]:
    request = project_service_pb2.UpdateProjectRequest(
        project={"project_id": target.project_id, "description": uuid4().hex},  # type: ignore[arg-type]
        update_mask={"paths": ["description"]},  # type: ignore[arg-type]
    )
    return caller.projects.UpdateProject(request, metadata=caller.auth)


def create_project(caller: Caller, target: Target) -> Awaitable[object]:
    request = project_service_pb2.CreateProjectRequest(
        project={"client_id": target.client_id, "display_name": "New"}  # type: ignore[arg-type]
    )
    return caller.projects.CreateProject(request, metadata=caller.auth)


def add_member(caller: Caller, target: Target) -> Awaitable[object]:
    request = project_team_service_pb2.AddProjectMemberRequest(
        project_member={"project_id": target.project_id, "user_id": str(uuid4()), "role": 3}  # type: ignore[arg-type]
    )
    return caller.teams.AddProjectMember(request, metadata=caller.auth)


def create_campaign(caller: Caller, target: Target) -> Awaitable[object]:
    request = campaign_service_pb2.CreateCampaignRequest(
        campaign={"project_id": target.project_id, "display_name": "New", "platform": 1}  # type: ignore[arg-type]
    )
    return caller.campaigns.CreateCampaign(request, metadata=caller.auth)


def update_campaign(caller: Caller, target: Target) -> Awaitable[object]:
    request = campaign_service_pb2.UpdateCampaignRequest(
        campaign={"campaign_id": target.campaign_id, "display_name": uuid4().hex},  # type: ignore[arg-type]
        update_mask={"paths": ["display_name"]},  # type: ignore[arg-type]
    )
    return caller.campaigns.UpdateCampaign(request, metadata=caller.auth)


def ingest(caller: Caller, target: Target) -> Awaitable[object]:
    request = statistics_service_pb2.IngestEventsRequest(client_id=target.client_id)
    return caller.statistics.IngestEvents(request, metadata=caller.auth)


# Each RPC of the matrix, and the roles that may use it on what they see. The letters of the matrix, written out.
MATRIX: dict[str, tuple[set[str], Act]] = {
    "GetClient": (
        set(ROLES),
        lambda c, t: c.clients.GetClient(client_service_pb2.GetClientRequest(client_id=t.client_id), metadata=c.auth),
    ),
    "UpdateClient": ({"admin", "account_manager"}, update_client),
    "GetProject": (
        set(ROLES),
        lambda c, t: c.projects.GetProject(
            project_service_pb2.GetProjectRequest(project_id=t.project_id), metadata=c.auth
        ),
    ),
    "CreateProject": ({"admin", "pm", "account_manager"}, create_project),
    "UpdateProject": ({"admin", "pm", "account_manager"}, update_project),
    "ListProjectMembers": (
        set(ROLES),
        lambda c, t: c.teams.ListProjectMembers(
            project_team_service_pb2.ListProjectMembersRequest(project_id=t.project_id), metadata=c.auth
        ),
    ),
    "AddProjectMember": ({"admin", "pm", "account_manager"}, add_member),
    "GetCampaign": (
        set(ROLES),
        lambda c, t: c.campaigns.GetCampaign(
            campaign_service_pb2.GetCampaignRequest(campaign_id=t.campaign_id), metadata=c.auth
        ),
    ),
    "CreateCampaign": ({"admin", "pm", "specialist"}, create_campaign),
    "UpdateCampaign": ({"admin", "pm", "specialist"}, update_campaign),
    "GetFreshness": (
        set(ROLES),
        lambda c, t: c.statistics.GetFreshness(
            statistics_service_pb2.GetFreshnessRequest(client_id=t.client_id), metadata=c.auth
        ),
    ),
    "IngestEvents": (set(), ingest),
    "ListApiKeys": (
        {"admin"},
        lambda c, t: c.api_keys.ListApiKeys(api_key_service_pb2.ListApiKeysRequest(), metadata=c.auth),
    ),
}

# RPCs on a project, and the project roles that may use them there, if Responsible or Accountable.
IN_PROJECTS: dict[str, tuple[set[str], Act]] = {
    "UpdateProject": ({"pm", "account_manager"}, update_project),
    "AddProjectMember": ({"pm", "account_manager"}, add_member),
    "CreateCampaign": ({"pm", "specialist"}, create_campaign),
    "UpdateCampaign": ({"pm", "specialist"}, update_campaign),
}


@pytest.fixture(scope="module")
async def people(world: World) -> dict[str, Caller]:
    """Somebody of each role. Whom each test makes a member of what is its own."""
    return {role: await world.user(role) for role in ROLES}


async def outcome(call: Awaitable[object]) -> str:
    """Name of the code that a call ends with. An unknown person to add is found missing only after the right."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        failure = failure_of(error)
        return "OK" if failure.metadata.get("resource_type") == "user" else failure.code.name
    return "OK"


RIGHT_OF = {
    "UpdateProject": "PROJECTS_WRITE",
    "AddProjectMember": "PROJECTS_WRITE",
    "CreateCampaign": "CAMPAIGNS_WRITE",
    "UpdateCampaign": "CAMPAIGNS_WRITE",
}


async def check(caller: Caller, right: str, **target: str) -> permission_pb.CheckPermissionResponse:
    """What PermissionService says to a right on a target."""
    request = permission_pb.CheckPermissionRequest(permission=f"PERMISSION_{right}", **target)  # type: ignore[arg-type]
    return await caller.permissions.CheckPermission(request, metadata=caller.auth)


async def listed(caller: Caller, project_id: str = "") -> set[str]:
    """Names of the rights that PermissionService lists, page by page."""
    request, names = permission_pb.ListMyPermissionsRequest(project_id=project_id, page_size=3), set()
    while True:
        reply = await caller.permissions.ListMyPermissions(request, metadata=caller.auth)
        page = {options_pb2.Permission.Name(number).removeprefix("PERMISSION_") for number in reply.permissions}
        assert not names & page
        names |= page
        if not reply.next_page_token:
            return names
        request.page_token = reply.next_page_token


async def target_of(world: World, client_id: str) -> Target:
    project = await world.project(client_id)
    campaign = await world.campaign(project.project_id)
    return Target(client_id, project.project_id, campaign.campaign_id)


async def place(world: World, user: Caller, target: Target, role: str, raci: str) -> None:
    """Puts a user on a team, as Accountable in place of whoever made the project."""
    project_id = UUID(target.project_id)
    await world.database.execute("UPDATE project_team SET raci = 'I' WHERE project_id = $1", project_id)
    assert user.user_id
    await project_team.add(world.database, project_id=project_id, user_id=user.user_id, role=role, raci=raci)


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_do_what_the_matrix_says(world: World, people: dict[str, Caller], role: str) -> None:
    target, user = await target_of(world, (await world.client()).client_id), people[role]
    assert user.user_id
    await clients.add_membership(world.database, user_id=user.user_id, client_id=UUID(target.client_id))
    found = {name: await outcome(act(user, target)) for name, (_, act) in MATRIX.items()}
    assert found == {name: "OK" if role in may else "PERMISSION_DENIED" for name, (may, _) in MATRIX.items()}


@pytest.mark.parametrize("role", ROLES[1:])
async def test_outside_the_scope_nothing_exists(world: World, people: dict[str, Caller], role: str) -> None:
    target, user = await target_of(world, (await world.client()).client_id), people[role]
    missing = Target(*(str(uuid4()) for _ in range(3)))
    for name, (_, act) in MATRIX.items():
        there = await outcome(act(user, target))
        assert there == await outcome(act(user, missing)), name
        assert there != "OK"
        if name in IN_PROJECTS:
            assert there == "NOT_FOUND", name


async def test_a_place_in_the_team_gives_the_rights_of_its_role_and_letter(
    world: World, people: dict[str, Caller]
) -> None:
    client_id, analyst = (await world.client()).client_id, people["analyst"]
    for role in PROJECT_ROLES:
        for letter in "RACI":
            target = await target_of(world, client_id)
            await place(world, analyst, target, role, letter)
            for name, (may, act) in IN_PROJECTS.items():
                allowed = role in may and letter in "RA"
                told = await check(analyst, RIGHT_OF[name], project_id=target.project_id)
                assert told.allowed == allowed
                assert (told.because == permission_pb.PERMISSION_BASIS_LETTER_TOO_LOW) == (
                    role in may and letter in "CI"
                )
                assert await outcome(act(analyst, target)) == ("OK" if allowed else "PERMISSION_DENIED"), (
                    role, letter, name,
                )  # fmt: skip
            assert await outcome(MATRIX["GetCampaign"][1](analyst, target)) == "OK"
            assert await outcome(create_project(analyst, target)) == "PERMISSION_DENIED"
            assert await outcome(MATRIX["GetClient"][1](analyst, target)) == "NOT_FOUND"


@pytest.mark.parametrize(
    ("letter", "expected"), [("R", "OK"), ("A", "OK"), ("C", "PERMISSION_DENIED"), ("I", "PERMISSION_DENIED")]
)
async def test_a_role_reaches_through_a_team_only_as_far_as_the_letter(
    world: World, people: dict[str, Caller], letter: str, expected: str
) -> None:
    """A pm everywhere, who is no member of the client, comes to the project by its team alone."""
    target = await target_of(world, (await world.client()).client_id)
    pm = people["pm"]
    await place(world, pm, target, "analyst", letter)
    assert await outcome(update_campaign(pm, target)) == expected


async def test_rights_of_one_project_end_at_its_border(world: World, people: dict[str, Caller]) -> None:
    client_id = (await world.client()).client_id
    own, other = await target_of(world, client_id), await target_of(world, client_id)
    insider, analyst = people["analyst"], await world.user("analyst", client_id)
    for user in (insider, analyst):
        await place(world, user, own, "specialist", "R")
        assert await outcome(update_campaign(user, own)) == "OK"
    assert await outcome(update_campaign(insider, other)) == "NOT_FOUND"
    assert await outcome(update_campaign(analyst, other)) == "PERMISSION_DENIED"


def test_the_matrix_holds_for_rights_whose_rpcs_are_others_tests() -> None:
    may = {
        right: {role for role in ROLES if right in ROLE_PERMISSIONS[role]}
        for right in ("USERS_READ", "USERS_WRITE", "INTEGRATIONS_READ", "INTEGRATIONS_WRITE", "MEDIA_PLANS_WRITE",
                      "MEDIA_PLANS_APPROVE", "PROJECTS_TRANSFER", "CLIENTS_PURGE", "CHANGES_READ")
    }  # fmt: skip
    assert may == {
        "USERS_READ": set(ROLES) - {"specialist"},
        "USERS_WRITE": {"admin"},
        "INTEGRATIONS_READ": {"admin", "pm", "account_manager", "specialist"},
        "INTEGRATIONS_WRITE": {"admin", "account_manager", "specialist"},
        "MEDIA_PLANS_WRITE": {"admin", "pm", "media_planner"},
        "MEDIA_PLANS_APPROVE": {"admin"},
        "PROJECTS_TRANSFER": {"admin", "pm", "account_manager"},
        "CLIENTS_PURGE": {"admin"},
        "CHANGES_READ": set(ROLES),
    }


async def test_a_caller_learns_its_rights_and_what_they_rest_on(world: World, people: dict[str, Caller]) -> None:
    target = await target_of(world, (await world.client()).client_id)
    analyst, admin = people["analyst"], people["admin"]
    key = await world.key([target.client_id], options_pb2.PERMISSION_CAMPAIGNS_READ)
    await place(world, analyst, target, "specialist", "A")
    basis = permission_pb.PermissionBasis
    for caller, right, on, because in (
        (analyst, "CAMPAIGNS_WRITE", {"campaign_id": target.campaign_id}, basis.PERMISSION_BASIS_PROJECT_TEAM),
        (analyst, "MEDIA_PLANS_APPROVE", {"project_id": target.project_id}, basis.PERMISSION_BASIS_PROJECT_TEAM),
        (analyst, "PROJECTS_WRITE", {"project_id": target.project_id}, basis.PERMISSION_BASIS_NOT_HELD),
        (analyst, "CAMPAIGNS_WRITE", {}, basis.PERMISSION_BASIS_NOT_HELD),
        (analyst, "CAMPAIGNS_READ", {}, basis.PERMISSION_BASIS_ROLE),
        (admin, "CLIENTS_PURGE", {"client_id": target.client_id}, basis.PERMISSION_BASIS_ROLE),
        (admin, "STATISTICS_INGEST", {"client_id": target.client_id}, basis.PERMISSION_BASIS_NOT_HELD),
        (key, "CAMPAIGNS_READ", {"campaign_id": target.campaign_id}, basis.PERMISSION_BASIS_API_KEY),
        (key, "CAMPAIGNS_WRITE", {"campaign_id": target.campaign_id}, basis.PERMISSION_BASIS_NOT_HELD),
    ):
        told = await check(caller, right, **on)
        assert (told.because, told.allowed) == (because, because in (1, 2, 3)), (right, on)
    assert await listed(people["pm"]) == ROLE_PERMISSIONS["pm"]
    assert await listed(admin, target.project_id) == ROLE_PERMISSIONS["admin"]
    assert await listed(key, target.project_id) == {"CAMPAIGNS_READ"}
    assert await listed(analyst, target.project_id) == {
        "PROJECTS_READ", "MEDIA_PLANS_READ", "CAMPAIGNS_READ", "STATISTICS_READ", "CHANGES_READ",
        "CAMPAIGNS_WRITE", "CAMPAIGNS_IMPORT", "MEDIA_PLANS_APPROVE", "MEDIA_PLANS_COMMENT", "PROJECTS_TRANSFER",
        "ALERTS_READ", "ALERTS_WRITE", "REPORTS_READ", "REPORTS_WRITE", "FEEDBACK_READ", "FEEDBACK_WRITE", "SEARCH",
    }  # fmt: skip


async def test_asking_about_a_right_reveals_nothing(world: World, people: dict[str, Caller]) -> None:
    target, stranger = await target_of(world, (await world.client()).client_id), await world.user("pm")
    for name in ("client_id", "project_id", "campaign_id"):
        for value in (getattr(target, name), str(uuid4())):
            assert await outcome(check(stranger, "CAMPAIGNS_WRITE", **{name: value})) == "NOT_FOUND"
    assert await outcome(listed(stranger, target.project_id)) == "NOT_FOUND"
