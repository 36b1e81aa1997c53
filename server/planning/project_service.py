"""ProjectService: the frames in which media plans and campaigns live."""

from dataclasses import replace
from typing import Final
from uuid import UUID

from mrm.planning.v1 import project_service_pb2 as pb
from server import budgets
from server.accounts.permissions import PROJECT_ROLES
from server.planning import convert
from server.planning.plan_convert import micros
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, day, optional_id, required_id
from storage.postgres import clients, media_plans, project_team, projects
from storage.postgres.database import Database

WRITABLE: Final = frozenset({"display_name", "description", "total_budget", "start_date", "end_date", "brief"})


class ProjectService:
    """Implements mrm.planning.v1.ProjectService.

    Args:
        database: Where projects live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def CreateProject(self, request: pb.CreateProjectRequest, call: Mutation) -> pb.CreateProjectResponse:
        """Makes a project in state draft. The person who makes it answers for it until somebody else does."""
        wanted = request.project
        client = await clients.get(call.tx, call.scope, UUID(wanted.client_id))
        if client is None:
            raise NotFound.resource("client", wanted.client_id)
        if client.archived_at is not None:
            raise FailedPrecondition("the client is archived", metadata={"state": "archived", "wanted": "active"})
        currency = wanted.total_budget.currency_code or str(client.settings["currency"])
        row = await projects.create(
            call.tx,
            client_id=client.id,
            budget_currency=currency,
            **convert.writable(wanted, currency),
            created_by=call.principal.principal_id if call.principal.kind == "user" else None,
        )
        project = convert.project(row)
        await call.record(AuditEntry("create", "project", row.id, row.client_id, row.id, None, project))
        if row.created_by is not None:
            role = call.principal.role if call.principal.role in PROJECT_ROLES else "pm"
            # Recorded with the project: its author is who answers for it.
            await project_team.add(call.tx, project_id=row.id, user_id=row.created_by, role=role, raci="A")
        return pb.CreateProjectResponse(project=project)

    async def GetProject(self, request: pb.GetProjectRequest, call: Call) -> pb.GetProjectResponse:
        """Reads one project."""
        row = await projects.get(self._database, call.scope, UUID(request.project_id))
        if row is None:
            raise NotFound.resource("project", request.project_id)
        return pb.GetProjectResponse(project=convert.project(row))

    async def ListProjects(self, request: pb.ListProjectsRequest, call: Call) -> pb.ListProjectsResponse:
        """Lists visible projects."""
        page = self._pager.start(request, call)
        wanted = request.filter
        rows, next_token = page.cut(
            await projects.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                client_id=optional_id(wanted.client_id),
                statuses=convert.PROJECT_STATUSES.optional_words(wanted.statuses),
                ends_from=day(wanted.dates.start_date, "filter.dates.start_date"),
                starts_until=day(wanted.dates.end_date, "filter.dates.end_date"),
            )
        )
        return pb.ListProjectsResponse(projects=[convert.project(row) for row in rows], next_page_token=next_token)

    async def UpdateProject(self, request: pb.UpdateProjectRequest, call: Mutation) -> pb.UpdateProjectResponse:
        """Changes a project that is not archived."""
        project_id = required_id(request.project.project_id, "project.project_id")
        row = await projects.get_for_update(call.tx, call.scope, project_id)
        if row is None:
            raise NotFound.resource("project", str(project_id))
        check_etag(request.project.etag, row.revision)
        if row.status == "archived":
            raise FailedPrecondition(
                "an archived project is read only", metadata={"state": "archived", "wanted": "update"}
            )
        before = convert.project(row)
        after = apply_mask(before, request.project, request.update_mask, WRITABLE, "project")
        validate(after, "project")
        if row.status == "active" and not (after.start_date and after.end_date and after.HasField("total_budget")):
            raise InvalidRequest.field("project", "ACTIVE_INCOMPLETE", "an active project keeps its budget and dates")
        changed = replace(row, **convert.writable(after, row.budget_currency))
        limit, former = micros(changed.budget_total), micros(row.budget_total)
        if limit is not None and (former is None or limit < former):
            committed = await media_plans.committed(call.tx, call.scope, row.id)
            budgets.check_project([micros(total) or 0 for total in committed.values()], limit, row.budget_currency)
        stored = await projects.update(call.tx, call.scope, changed)
        if stored is None:
            raise NotFound.resource("project", str(project_id))
        project = convert.project(stored)
        await call.record(AuditEntry("update", "project", stored.id, stored.client_id, stored.id, before, project))
        return pb.UpdateProjectResponse(project=project)
