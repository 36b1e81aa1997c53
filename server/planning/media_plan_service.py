"""MediaPlanService: versioned media plans."""

from dataclasses import replace
from decimal import Decimal
from typing import Final
from uuid import UUID

from mrm.planning.v1 import media_plan_pb2
from mrm.planning.v1 import media_plan_service_pb2 as pb
from server.planning import plan_convert as convert
from server.planning import plan_rules as rules
from server.planning.plan_convert import Frame
from server.rpc import rights
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, optional_id, required_id
from storage.postgres import campaigns, media_plans, projects
from storage.postgres.database import Database
from storage.postgres.media_plans import MediaPlan

WRITABLE: Final = frozenset({"display_name", "total_budget", "channels", "targeting"})
_MOST_NAMED = 10


class MediaPlanService:
    """Implements what writes, reads and compares versions in mrm.planning.v1.MediaPlanService.

    Args:
        database: Where plans live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def CreateMediaPlan(self, request: pb.CreateMediaPlanRequest, call: Mutation) -> pb.CreateMediaPlanResponse:
        """Begins a plan."""
        wanted = request.media_plan
        project = await projects.get_for_update(call.tx, call.scope, UUID(wanted.project_id))
        if project is None:
            raise NotFound.resource("project", wanted.project_id)
        rules.check_project_open(project.status, "create")
        author = await rights.person(call)
        row = await media_plans.create(
            call.tx,
            project_id=project.id,
            currency=project.budget_currency,
            **convert.writable(wanted, rules.frame(project), ()),
            created_by=_user(call),
            author_ids=[] if author is None else [author],
        )
        return pb.CreateMediaPlanResponse(media_plan=await _created(call, row))

    async def GetMediaPlan(self, request: pb.GetMediaPlanRequest, call: Call) -> pb.GetMediaPlanResponse:
        """Reads one version."""
        row = await self._read(request.media_plan_id, call)
        return pb.GetMediaPlanResponse(media_plan=convert.plan(row))

    async def ListMediaPlans(self, request: pb.ListMediaPlansRequest, call: Call) -> pb.ListMediaPlansResponse:
        """Lists visible versions."""
        page = self._pager.start(request, call)
        wanted = request.filter
        rows, next_token = page.cut(
            await media_plans.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                project_id=optional_id(wanted.project_id),
                client_id=optional_id(wanted.client_id),
                lineage_id=optional_id(wanted.lineage_id),
                statuses=convert.PLAN_STATUSES.optional_words(wanted.statuses),
            )
        )
        return pb.ListMediaPlansResponse(media_plans=[convert.plan(row) for row in rows], next_page_token=next_token)

    async def UpdateMediaPlan(self, request: pb.UpdateMediaPlanRequest, call: Mutation) -> pb.UpdateMediaPlanResponse:
        """Changes a draft."""
        plan_id = required_id(request.media_plan.media_plan_id, "media_plan.media_plan_id")
        row = await media_plans.get_for_update(call.tx, call.scope, plan_id)
        if row is None:
            raise NotFound.resource("media_plan", str(plan_id))
        check_etag(request.media_plan.etag, row.revision)
        rules.check_draft(row, "updated")
        rules.check_project_open(row.project_status, "update")
        before = convert.plan(row)
        after = apply_mask(before, request.media_plan, request.update_mask, WRITABLE, "media_plan")
        validate(after, "media_plan")
        columns = convert.writable(
            after, Frame(row.currency, row.project_start, row.project_end), await _known(call, row, after)
        )
        author = await rights.person(call)
        authors = row.author_ids if author is None or author in row.author_ids else [*row.author_ids, author]
        stored = await media_plans.update(call.tx, call.scope, replace(row, **columns, author_ids=authors))
        if stored is None:
            raise NotFound.resource("media_plan", str(plan_id))
        plan = convert.plan(stored, (row, before))
        entry = AuditEntry("update", "media_plan", stored.id, stored.client_id, stored.project_id, before, plan)
        await call.record(entry)
        return pb.UpdateMediaPlanResponse(media_plan=plan)

    async def CreateMediaPlanVersion(
        self, request: pb.CreateMediaPlanVersionRequest, call: Mutation
    ) -> pb.CreateMediaPlanVersionResponse:
        """Begins the next version with the content of another one."""
        plan_id = UUID(request.media_plan_id)
        project = await projects.of_plan_for_update(call.tx, call.scope, plan_id)
        base = None if project is None else await media_plans.get(call.tx, call.scope, plan_id)
        if project is None or base is None:
            raise NotFound.resource("media_plan", request.media_plan_id)
        rules.check_project_open(project.status, "create")
        versions = await media_plans.versions(call.tx, call.scope, base.lineage_id)
        for each in versions:
            if each.status in ("draft", "pending_approval"):
                raise FailedPrecondition(
                    f"version {each.version} of the plan is {each.status}: a plan has one draft at a time",
                    metadata={
                        "resource_type": "media_plan",
                        "state": each.status,
                        "wanted": "draft",
                        "media_plan_id": str(each.id),
                        "version": str(each.version),
                    },
                )
        author = await rights.person(call)
        row = await media_plans.create(
            call.tx,
            project_id=project.id,
            name=base.name,
            total_budget=base.total_budget or Decimal(),
            currency=base.currency,
            channels=base.channels,
            targeting=base.targeting,
            created_by=_user(call),
            author_ids=[] if author is None else [author],
            lineage_id=base.lineage_id,
            version=versions[-1].version + 1,
        )
        return pb.CreateMediaPlanVersionResponse(media_plan=await _created(call, row))

    async def DiffMediaPlans(self, request: pb.DiffMediaPlansRequest, call: Call) -> pb.DiffMediaPlansResponse:
        """Compares two versions."""
        base = await self._read(request.base_media_plan_id, call)
        other = await self._read(request.other_media_plan_id, call)
        if base.lineage_id != other.lineage_id:
            raise InvalidRequest.field("other_media_plan_id", "OTHER_LINEAGE", "is a version of another plan")
        return convert.diff(base, other)

    async def DeleteMediaPlan(self, request: pb.DeleteMediaPlanRequest, call: Mutation) -> pb.DeleteMediaPlanResponse:
        """Removes a draft."""
        plan_id = UUID(request.media_plan_id)
        project = await projects.of_plan_for_update(call.tx, call.scope, plan_id)
        row = None if project is None else await media_plans.get_for_update(call.tx, call.scope, plan_id)
        if project is None or row is None:
            raise NotFound.resource("media_plan", request.media_plan_id)
        check_etag(request.etag, row.revision)
        rules.check_draft(row, "deleted")
        rules.check_project_open(project.status, "delete")
        held = [
            each
            for each in await campaigns.bound(call.tx, call.scope, row.lineage_id)
            if each.plan_version == row.version
        ]
        if held:
            names = ", ".join(repr(each.name) for each in held[:_MOST_NAMED])
            raise FailedPrecondition(
                f"{len(held)} campaigns are bound under version {row.version} of the plan: {names}",
                metadata={
                    "resource_type": "media_plan",
                    "state": "bound",
                    "wanted": "deleted",
                    "campaign_ids": ",".join(str(each.id) for each in held[:_MOST_NAMED]),
                },
            )
        await media_plans.delete(call.tx, call.scope, row)
        await call.record(
            AuditEntry("delete", "media_plan", row.id, row.client_id, row.project_id, convert.plan(row), None)
        )
        return pb.DeleteMediaPlanResponse()

    async def _read(self, media_plan_id: str, call: Call) -> MediaPlan:
        row = await media_plans.get(self._database, call.scope, UUID(media_plan_id))
        if row is None:
            raise NotFound.resource("media_plan", media_plan_id)
        return row


def _user(call: Mutation) -> UUID | None:
    return call.principal.principal_id if call.principal.kind == "user" else None


async def _created(call: Mutation, row: MediaPlan) -> media_plan_pb2.MediaPlan:
    plan = convert.plan(row)
    await call.record(AuditEntry("create", "media_plan", row.id, row.client_id, row.project_id, None, plan))
    return plan


async def _known(call: Mutation, row: MediaPlan, wanted: media_plan_pb2.MediaPlan) -> set[str]:
    """Ids of the channels that a draft may name: its own, and those of the plan's other versions."""
    known = set(rules.channel_budgets(row))
    others = {channel.channel_id.lower() for channel in wanted.channels if channel.channel_id} - known
    if others:
        ids = [UUID(each) for each in others]
        known |= {str(each) for each in await media_plans.known_channels(call.tx, call.scope, row.lineage_id, ids)}
    return known
