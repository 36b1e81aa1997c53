"""ProjectService's steps through a project's life (requirements §11)."""

from dataclasses import replace
from typing import Any, Final, Protocol
from uuid import UUID

from mrm.campaigns.v1 import campaign_pb2
from mrm.planning.v1 import project_pb2
from mrm.planning.v1 import project_service_pb2 as pb
from server.planning import convert
from server.rpc.call import AuditEntry, Mutation
from server.rpc.errors import FailedPrecondition, NotFound
from server.rpc.values import check_etag
from server.sync.making import push_soon
from storage.postgres import campaign_pushes, campaigns, project_team, projects
from storage.postgres.projects import Project

STEPS: Final = {
    "draft": frozenset({"active", "archived"}),
    "active": frozenset({"paused", "completed"}),
    "paused": frozenset({"active", "completed"}),
    "completed": frozenset({"archived"}),
    "archived": frozenset({"completed"}),
}
"""Where each state of a project leads. That only an administrator leads it out of the archive is a matter of rights."""


class StepRequest(Protocol):
    """What the requests for all steps have in common."""

    @property
    def project_id(self) -> str:
        """UUID of the project."""

    @property
    def etag(self) -> str:
        """The project's etag, or nothing."""


class LifecycleRpcs:
    """Implements the steps of mrm.planning.v1.ProjectService."""

    async def ActivateProject(self, request: pb.ActivateProjectRequest, call: Mutation) -> pb.ActivateProjectResponse:
        """Starts or resumes a project that has all it needs to run."""
        row = await _locked(request, call, "active")
        missing = [
            name
            for name, there in (
                ("total_budget", row.budget_total is not None),
                ("start_date", row.start_date is not None),
                ("end_date", row.end_date is not None),
                ("accountable", await project_team.list_page(call.tx, call.scope, row.id, limit=1, raci=["A"])),
            )
            if not there
        ]
        if missing:
            raise FailedPrecondition(
                f"the project needs {', '.join(missing)} to become active",
                metadata={
                    "resource_type": "project",
                    "state": row.status,
                    "wanted": "active",
                    "missing": ",".join(missing),
                },
            )
        return pb.ActivateProjectResponse(project=await _step(call, row, "activate", status="active"))

    async def PauseProject(self, request: pb.PauseProjectRequest, call: Mutation) -> pb.PauseProjectResponse:
        """Halts a project."""
        row = await _locked(request, call, "paused")
        return pb.PauseProjectResponse(project=await _step(call, row, "pause", status="paused"))

    async def CompleteProject(self, request: pb.CompleteProjectRequest, call: Mutation) -> pb.CompleteProjectResponse:
        """Ends and rates a project, and pauses what still runs in it if asked to."""
        row = await _locked(request, call, "completed", by="complete")
        running = await campaigns.active_of_project(call.tx, call.scope, row.id)
        if running and not request.pause_campaigns:
            raise FailedPrecondition(
                f"{len(running)} campaigns of the project are active: pause them first, or set pause_campaigns",
                metadata={
                    "resource_type": "project",
                    "state": row.status,
                    "wanted": "completed",
                    "active_campaigns": str(len(running)),
                },
            )
        await campaigns.pause(call.tx, call.scope, running)
        await push_soon(call.tx, await campaign_pushes.accounts_internal(call.tx, running))
        before = campaign_pb2.Campaign(status=campaign_pb2.CAMPAIGN_STATUS_ACTIVE)
        after = campaign_pb2.Campaign(status=campaign_pb2.CAMPAIGN_STATUS_PAUSED)
        for campaign_id in running:
            await call.record(AuditEntry("pause", "campaign", campaign_id, row.client_id, row.id, before, after))
        project = await _step(call, row, "complete", status="completed", performance_rating=request.performance_rating)
        return pb.CompleteProjectResponse(project=project)

    async def ArchiveProject(self, request: pb.ArchiveProjectRequest, call: Mutation) -> pb.ArchiveProjectResponse:
        """Puts a project away."""
        row = await _locked(request, call, "archived")
        return pb.ArchiveProjectResponse(project=await _step(call, row, "archive", status="archived"))

    async def RestoreProject(self, request: pb.RestoreProjectRequest, call: Mutation) -> pb.RestoreProjectResponse:
        """Takes a project back from the archive."""
        row = await _locked(request, call, "completed", by="restore")
        return pb.RestoreProjectResponse(project=await _step(call, row, "restore", status="completed"))


async def _locked(request: StepRequest, call: Mutation, wanted: str, by: str = "") -> Project:
    """The project, kept from changing, from which a step leads to the wanted state.

    Two steps lead to "completed": out of the archive only restoring, out of the others only completing.
    """
    row = await projects.get_for_update(call.tx, call.scope, UUID(request.project_id))
    if row is None:
        raise NotFound.resource("project", request.project_id)
    check_etag(request.etag, row.revision)
    if wanted not in STEPS[row.status] or (by and (by == "restore") != (row.status == "archived")):
        raise FailedPrecondition.transition("project", row.status, wanted)
    return row


async def _step(call: Mutation, row: Project, action: str, **changes: Any) -> project_pb2.Project:
    stored = await projects.update(call.tx, call.scope, replace(row, **changes))
    if stored is None:
        raise NotFound.resource("project", str(row.id))
    project = convert.project(stored)
    await call.record(AuditEntry(action, "project", row.id, row.client_id, row.id, convert.project(row), project))
    return project
