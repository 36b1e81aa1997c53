"""ProjectTeamService: who works on a project and how far they answer for it."""

from dataclasses import replace
from typing import Final
from uuid import UUID

from mrm.planning.v1 import project_team_service_pb2 as pb
from server.planning import convert
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import AlreadyExists, DomainError, FailedPrecondition, NotFound
from server.rpc.paging import Pager
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, optional_id, required_id
from storage.errors import Conflict
from storage.postgres import project_team, projects, users
from storage.postgres.database import Database
from storage.postgres.project_team import TeamMember
from storage.postgres.projects import Project

WRITABLE: Final = frozenset({"role", "raci"})


class ProjectTeamService:
    """Implements mrm.planning.v1.ProjectTeamService.

    Every change locks the project first, so that changes of one team come one after another.

    Args:
        database: Where teams live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def AddProjectMember(
        self, request: pb.AddProjectMemberRequest, call: Mutation
    ) -> pb.AddProjectMemberResponse:
        """Puts a person on the team."""
        wanted = request.project_member
        project = await _locked(call, UUID(wanted.project_id))
        user_id = UUID(wanted.user_id)
        await _check_active(call, user_id)
        try:
            row = await project_team.add(
                call.tx,
                project_id=project.id,
                user_id=user_id,
                role=convert.PROJECT_ROLES.word(wanted.role),
                raci=convert.letter(wanted.raci),
            )
        except Conflict as conflict:
            raise _refusal(conflict) from None
        await call.record(_entry("add", project, None, row))
        return pb.AddProjectMemberResponse(project_member=convert.member(row))

    async def UpdateProjectMember(
        self, request: pb.UpdateProjectMemberRequest, call: Mutation
    ) -> pb.UpdateProjectMemberResponse:
        """Changes role or letter."""
        member_id = required_id(request.project_member.project_member_id, "project_member.project_member_id")
        row = await _member(call, member_id)
        project = await _locked(call, row.project_id)
        check_etag(request.project_member.etag, row.revision)
        after = apply_mask(convert.member(row), request.project_member, request.update_mask, WRITABLE, "project_member")
        validate(after, "project_member")
        raci = convert.letter(after.raci)
        if row.raci == "A" and raci != "A":
            raise _accountable_stays()
        changed = replace(row, role=convert.PROJECT_ROLES.word(after.role), raci=raci)
        try:
            stored = await project_team.update(call.tx, call.scope, changed)
        except Conflict as conflict:
            raise _refusal(conflict) from None
        if stored is None:
            raise NotFound.resource("project_member", str(member_id))
        await call.record(_entry("update", project, row, stored))
        return pb.UpdateProjectMemberResponse(project_member=convert.member(stored))

    async def RemoveProjectMember(
        self, request: pb.RemoveProjectMemberRequest, call: Mutation
    ) -> pb.RemoveProjectMemberResponse:
        """Takes a person from the team in one role."""
        row = await _member(call, UUID(request.project_member_id))
        project = await _locked(call, row.project_id)
        check_etag(request.etag, row.revision)
        if row.raci == "A":
            raise _accountable_stays()
        if await project_team.remove(call.tx, call.scope, row) is None:
            raise NotFound.resource("project_member", request.project_member_id)
        await call.record(_entry("remove", project, row, None))
        return pb.RemoveProjectMemberResponse()

    async def ListProjectMembers(
        self, request: pb.ListProjectMembersRequest, call: Call
    ) -> pb.ListProjectMembersResponse:
        """Lists the team."""
        page = self._pager.start(request, call)
        project_id, wanted = UUID(request.project_id), request.filter
        rows, next_token = page.cut(
            await project_team.list_page(
                self._database,
                call.scope,
                project_id,
                limit=page.size + 1,
                after=page.after,
                user_id=optional_id(wanted.user_id),
                roles=convert.PROJECT_ROLES.optional_words(wanted.roles),
                raci=convert.optional_letters(wanted.raci),
            )
        )
        if not rows and await projects.get(self._database, call.scope, project_id) is None:
            raise NotFound.resource("project", request.project_id)
        members = [convert.member(row) for row in rows]
        return pb.ListProjectMembersResponse(project_members=members, next_page_token=next_token)

    async def TransferAccountability(
        self, request: pb.TransferAccountabilityRequest, call: Mutation
    ) -> pb.TransferAccountabilityResponse:
        """Makes another member Accountable."""
        project = await _locked(call, UUID(request.project_id))
        row = await _member(call, UUID(request.project_member_id))
        if row.project_id != project.id:
            raise NotFound.resource("project_member", request.project_member_id)
        if row.raci == "A":
            return pb.TransferAccountabilityResponse(project_member=convert.member(row))
        await _check_active(call, row.user_id)
        moved = await project_team.transfer(call.tx, call.scope, project.id, row.id)
        if moved is None:
            raise NotFound.resource("project_member", request.project_member_id)
        successor, former = moved
        response = pb.TransferAccountabilityResponse(project_member=convert.member(successor))
        if former is not None:
            response.former_project_member.CopyFrom(convert.member(former))
            await call.record(_entry("transfer", project, replace(former, raci="A"), former))
        await call.record(_entry("transfer", project, row, successor))
        return response


async def _locked(call: Mutation, project_id: UUID) -> Project:
    project = await projects.get_for_update(call.tx, call.scope, project_id)
    if project is None:
        raise NotFound.resource("project", str(project_id))
    if project.status == "archived":
        raise FailedPrecondition("an archived project is read only", metadata={"state": "archived", "wanted": "update"})
    return project


async def _member(call: Mutation, member_id: UUID) -> TeamMember:
    row = await project_team.get(call.tx, call.scope, member_id)
    if row is None:
        raise NotFound.resource("project_member", str(member_id))
    return row


async def _check_active(call: Mutation, user_id: UUID) -> None:
    user = await users.get(call.tx, user_id)
    if user is None or user.status == "deleted":
        raise NotFound.resource("user", str(user_id))
    if user.status != "active":
        raise FailedPrecondition(f"the user is {user.status}", metadata={"state": user.status, "wanted": "active"})


def _refusal(conflict: Conflict) -> DomainError:
    if conflict.constraint == "project_team_one_accountable":
        return FailedPrecondition(
            "the project has an Accountable already: transfer the accountability",
            metadata={"state": "accountable", "wanted": "accountable"},
        )
    return AlreadyExists("this person has this role in the project already", metadata={"field": "project_member.role"})


def _accountable_stays() -> FailedPrecondition:
    return FailedPrecondition(
        "this is the project's Accountable: transfer the accountability first",
        metadata={"state": "accountable", "wanted": "replaced"},
    )


def _entry(action: str, project: Project, before: TeamMember | None, after: TeamMember | None) -> AuditEntry:
    known = after or before
    assert known is not None
    return AuditEntry(
        action,
        "project_member",
        known.id,
        project.client_id,
        project.id,
        None if before is None else convert.member(before),
        None if after is None else convert.member(after),
    )
