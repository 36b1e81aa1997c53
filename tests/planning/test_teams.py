"""ProjectTeamService over gRPC."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.planning.v1 import project_member_pb2, project_service_pb2
from mrm.planning.v1 import project_team_service_pb2 as pb
from storage.postgres import users
from tests.conftest import Caller, Failing, World, failure_of

PM, PLANNER = project_member_pb2.PROJECT_ROLE_PM, project_member_pb2.PROJECT_ROLE_MEDIA_PLANNER
MANAGER = project_member_pb2.PROJECT_ROLE_ACCOUNT_MANAGER
ANALYST, SPECIALIST = project_member_pb2.PROJECT_ROLE_ANALYST, project_member_pb2.PROJECT_ROLE_SPECIALIST
R, A = project_member_pb2.RACI_RESPONSIBLE, project_member_pb2.RACI_ACCOUNTABLE
C, I = project_member_pb2.RACI_CONSULTED, project_member_pb2.RACI_INFORMED  # noqa: E741 - the letters' own names


async def project(world: World) -> str:
    return (await world.project((await world.client()).client_id)).project_id


async def person(world: World) -> UUID:
    """Somebody who never signs in."""
    row = await users.create(world.database, email=f"{uuid4().hex}@example.com", password_hash="!", role="analyst")
    return row.id


async def team(caller: Caller, project_id: str, **fields: object) -> list[project_member_pb2.ProjectMember]:
    request = pb.ListProjectMembersRequest(project_id=project_id, **fields)  # type: ignore[arg-type]
    return list((await caller.teams.ListProjectMembers(request, metadata=caller.auth)).project_members)


async def change(
    caller: Caller, member: project_member_pb2.ProjectMember, **fields: object
) -> project_member_pb2.ProjectMember:
    wanted = project_member_pb2.ProjectMember(
        project_member_id=member.project_member_id,
        etag=member.etag,
        **fields,  # type: ignore[arg-type]
    )
    request = pb.UpdateProjectMemberRequest(project_member=wanted, update_mask={"paths": list(fields)})  # type: ignore[arg-type]
    return (await caller.teams.UpdateProjectMember(request, metadata=caller.auth)).project_member


async def remove(caller: Caller, member: project_member_pb2.ProjectMember, etag: str = "") -> None:
    request = pb.RemoveProjectMemberRequest(project_member_id=member.project_member_id, etag=etag)
    await caller.teams.RemoveProjectMember(request, metadata=caller.auth)


async def transfer(
    caller: Caller, project_id: str, member: project_member_pb2.ProjectMember
) -> pb.TransferAccountabilityResponse:
    request = pb.TransferAccountabilityRequest(project_id=project_id, project_member_id=member.project_member_id)
    return await caller.teams.TransferAccountability(request, metadata=caller.auth)


async def test_whoever_creates_a_project_is_its_accountable(world: World) -> None:
    client = await world.client()
    for creator, role in ((world.admin, PM), (await world.user("account_manager", client.client_id), MANAGER)):
        request = project_service_pb2.CreateProjectRequest(
            project={"client_id": client.client_id, "display_name": "x"}  # type: ignore[arg-type]
        )
        made = await creator.projects.CreateProject(request, metadata=creator.auth)
        [member] = await team(creator, made.project.project_id)
        assert (member.user_id, member.role, member.raci) == (str(creator.user_id), role, A)


async def test_members_are_added_changed_and_removed(world: World, failing: Failing) -> None:
    project_id, user = await project(world), await world.user("specialist")
    assert user.user_id
    member = await world.member(project_id, user.user_id, SPECIALIST, 0)
    assert member.raci == I
    changed = await change(world.admin, member, role=ANALYST, raci=R)
    assert (changed.role, changed.raci) == (ANALYST, R)
    assert changed.etag != member.etag
    failure = await failing(change(world.admin, member, raci=C))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert await team(user, project_id, filter={"user_id": str(user.user_id)}) == [changed]
    assert (await failing(remove(world.admin, changed, member.etag))).reason == "ETAG_MISMATCH"
    await remove(world.admin, changed, changed.etag)
    assert (await failing(remove(world.admin, changed))).code == grpc.StatusCode.NOT_FOUND
    assert (await failing(team(user, project_id))).code == grpc.StatusCode.NOT_FOUND
    rows = await world.database.fetch(
        "SELECT action, diff FROM audit_log WHERE resource_id = $1 ORDER BY seq", member.project_member_id
    )
    assert [row[0] for row in rows] == ["add", "update", "remove"]
    assert rows[1][1]["raci"] == ["RACI_INFORMED", "RACI_RESPONSIBLE"]
    assert rows[2][1]["user_id"] == [str(user.user_id), None]


async def test_one_person_may_have_several_roles_but_each_once(world: World, failing: Failing) -> None:
    project_id, user_id = await project(world), await person(world)
    await world.member(project_id, user_id, SPECIALIST, R)
    analyst = await world.member(project_id, user_id, ANALYST, C)
    failure = await failing(world.member(project_id, user_id, ANALYST, I))
    assert (failure.code, failure.metadata["field"]) == (grpc.StatusCode.ALREADY_EXISTS, "project_member.role")
    assert (await failing(change(world.admin, analyst, role=SPECIALIST))).code == grpc.StatusCode.ALREADY_EXISTS


async def test_a_team_has_exactly_one_accountable(world: World, failing: Failing) -> None:
    project_id, user_id = await project(world), await person(world)
    [first] = await team(world.admin, project_id)
    member = await world.member(project_id, user_id, PM, R)
    for attempt in (
        world.member(project_id, user_id, ANALYST, A),
        change(world.admin, member, raci=A),
        change(world.admin, first, raci=R),
        remove(world.admin, first),
    ):
        failure = await failing(attempt)
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_FORBIDS")
        assert failure.metadata["state"] == "accountable"
    moved = await transfer(world.admin, project_id, member)
    assert (moved.project_member.raci, moved.former_project_member.raci) == (A, R)
    assert [each.raci for each in await team(world.admin, project_id)] == [R, A]
    again = await transfer(world.admin, project_id, member)
    assert again.project_member == moved.project_member
    assert not again.HasField("former_project_member")
    await remove(world.admin, moved.former_project_member)


async def test_of_concurrent_transfers_each_leaves_one_accountable(world: World) -> None:
    project_id = await project(world)
    members = [await world.member(project_id, await person(world), PM, R) for _ in range(4)]
    await asyncio.gather(*(transfer(world.admin, project_id, member) for member in members for _ in range(2)))
    letters = [each.raci for each in await team(world.admin, project_id)]
    assert sorted(letters) == [R, R, R, R, A]


async def test_accountability_is_handed_over_not_taken(world: World, failing: Failing) -> None:
    project_id = await project(world)
    [first] = await team(world.admin, project_id)
    holder, taker = await world.user("specialist"), await world.user("specialist")
    assert holder.user_id and taker.user_id
    held = await world.member(project_id, holder.user_id, SPECIALIST, R)
    wanted = await world.member(project_id, taker.user_id, PM, R)
    await transfer(world.admin, project_id, held)
    failure = await failing(transfer(taker, project_id, wanted))
    assert (failure.code, failure.metadata["permission"]) == (grpc.StatusCode.PERMISSION_DENIED, "PROJECTS_TRANSFER")
    moved = await transfer(holder, project_id, wanted)
    assert (moved.project_member.user_id, moved.project_member.raci) == (str(taker.user_id), A)
    assert (await failing(transfer(holder, project_id, held))).code == grpc.StatusCode.PERMISSION_DENIED
    other = await project(world)
    failure = await failing(transfer(world.admin, other, first))
    assert (failure.code, failure.metadata["resource_type"]) == (grpc.StatusCode.NOT_FOUND, "project_member")


async def test_only_people_who_can_work_join(world: World, failing: Failing) -> None:
    project_id = await project(world)
    assert (await failing(world.member(project_id, uuid4(), PM, R))).metadata["resource_type"] == "user"
    user_id = await person(world)
    member = await world.member(project_id, user_id, PM, R)
    await world.database.execute("UPDATE users SET status = 'suspended' WHERE id = $1", user_id)
    for attempt in (world.member(project_id, user_id, ANALYST, I), transfer(world.admin, project_id, member)):
        failure = await failing(attempt)
        assert (failure.code, failure.metadata["state"]) == (grpc.StatusCode.FAILED_PRECONDITION, "suspended")


async def test_the_team_of_an_archived_project_stays(world: World, failing: Failing) -> None:
    project_id, user_id = await project(world), await person(world)
    member = await world.member(project_id, user_id, PM, R)
    await world.database.execute("UPDATE projects SET status = 'archived' WHERE id = $1", UUID(project_id))
    for attempt in (
        world.member(project_id, user_id, ANALYST, R),
        change(world.admin, member, raci=C),
        remove(world.admin, member),
        transfer(world.admin, project_id, member),
    ):
        assert (await failing(attempt)).metadata["state"] == "archived"


async def test_a_team_is_listed_in_pages_and_by_role_and_letter(world: World, failing: Failing) -> None:
    project_id, user = await project(world), await world.user("pm")
    assert user.user_id
    places = [(PM, R), (PLANNER, C), (ANALYST, C), (SPECIALIST, I)]
    made = [await world.member(project_id, user.user_id, role, raci) for role, raci in places]
    request = pb.ListProjectMembersRequest(project_id=project_id, page_size=2)
    seen: list[project_member_pb2.ProjectMember] = []
    while True:
        reply = await user.teams.ListProjectMembers(request, metadata=user.auth)
        seen += reply.project_members
        if not reply.next_page_token:
            break
        request.page_token = reply.next_page_token
    assert seen[1:] == made
    assert await team(user, project_id, filter={"raci": [C]}) == made[1:3]
    assert await team(user, project_id, filter={"roles": [PM], "raci": [R, I]}) == made[:1]
    assert await team(user, project_id, filter={"roles": [PM], "raci": [C]}) == []
    stranger = await world.user("pm")
    assert (await failing(team(stranger, project_id))).metadata["resource_type"] == "project"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await team(user, project_id, page_token=request.page_token[:-2] + "AA")
    assert failure_of(caught.value).reason == "PAGE_TOKEN_INVALID"
