"""MediaPlanService's steps through a version's life (requirements §11), and its history."""

from uuid import UUID

from mrm.planning.v1 import media_plan_service_pb2 as pb
from server.planning import plan_convert as convert
from server.planning import plan_rules as rules
from server.planning.plan_mail import tell_of_step
from server.rpc import rights
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.rpc.values import optional_id
from storage.postgres import media_plan_history, media_plans
from storage.postgres.database import Database
from storage.postgres.media_plans import MediaPlan


class PlanLifecycleRpcs:
    """Implements the steps, decisions and comments of mrm.planning.v1.MediaPlanService.

    Args:
        database: Where plans live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def SubmitMediaPlan(self, request: pb.SubmitMediaPlanRequest, call: Mutation) -> pb.SubmitMediaPlanResponse:
        """Asks for approval."""
        project, plan = await rules.locked(request, call, "submit")
        await rules.check_fits(call, plan, project)
        submitter = await rights.person(call)
        message = await rules.take(call, plan, "submit", request.comment, submitted_by=submitter)
        await tell_of_step(call, project, plan, "submit", request.comment)
        return pb.SubmitMediaPlanResponse(media_plan=message)

    async def ApproveMediaPlan(
        self, request: pb.ApproveMediaPlanRequest, call: Mutation
    ) -> pb.ApproveMediaPlanResponse:
        """Approves, if the approver had no part in the version and the project can pay for it."""
        project, plan = await rules.locked(request, call, "approve")
        approver = call.principal.principal_id
        part = "wrote" if approver in plan.author_ids else "submitted" if approver == plan.submitted_by else ""
        if part:
            raise FailedPrecondition(
                f"you {part} this version of the media plan: somebody else approves it",
                reason="OWN_WORK",
                metadata={"resource_type": "media_plan", "state": plan.status, "wanted": "approved", "part": part},
            )
        await rules.check_fits(call, plan, project)
        overridden = ""
        try:
            await rules.check_project_budget(call, plan, project)
        except FailedPrecondition:
            overridden = request.override_reason.strip()
            if not overridden:
                raise
        message = await rules.take(
            call, plan, "approve", request.comment, override_reason=overridden, approved_by=approver
        )
        await tell_of_step(call, project, plan, "approve", request.comment)
        return pb.ApproveMediaPlanResponse(media_plan=message)

    async def RejectMediaPlan(self, request: pb.RejectMediaPlanRequest, call: Mutation) -> pb.RejectMediaPlanResponse:
        """Sends a version back to its authors."""
        _check_said(request.comment)
        project, plan = await rules.locked(request, call, "reject")
        message = await rules.take(call, plan, "reject", request.comment, submitted_by=None)
        await tell_of_step(call, project, plan, "reject", request.comment)
        return pb.RejectMediaPlanResponse(media_plan=message)

    async def RecallMediaPlan(self, request: pb.RecallMediaPlanRequest, call: Mutation) -> pb.RecallMediaPlanResponse:
        """Takes a request for approval back."""
        _check_said(request.comment)
        _, plan = await rules.locked(request, call, "recall")
        message = await rules.take(call, plan, "recall", request.comment, submitted_by=None)
        return pb.RecallMediaPlanResponse(media_plan=message)

    async def ActivateMediaPlan(
        self, request: pb.ActivateMediaPlanRequest, call: Mutation
    ) -> pb.ActivateMediaPlanResponse:
        """Lets a version run in place of the one that ran before."""
        project, plan = await rules.locked(request, call, "activate")
        later = [
            each.version
            for each in await media_plans.versions(call.tx, call.scope, plan.lineage_id)
            if each.version > plan.version and each.status in ("active", "completed")
        ]
        if later:
            raise FailedPrecondition(
                f"version {plan.version} is approved and cannot become active: version {max(later)} ran already; "
                "begin a new version with its content",
                metadata={
                    "resource_type": "media_plan",
                    "state": "approved",
                    "wanted": "active",
                    "later_version": str(max(later)),
                },
            )
        await rules.check_fits(call, plan, project)
        response = pb.ActivateMediaPlanResponse()
        former = await media_plans.active_for_update(call.tx, call.scope, plan.lineage_id)
        if former is not None:
            over = await rules.take(call, former, "supersede", request.comment, superseded_by=plan.id)
            response.superseded_media_plan.CopyFrom(over)
        response.media_plan.CopyFrom(await rules.take(call, plan, "activate", request.comment))
        return response

    async def CompleteMediaPlan(
        self, request: pb.CompleteMediaPlanRequest, call: Mutation
    ) -> pb.CompleteMediaPlanResponse:
        """Ends the version that runs."""
        _, plan = await rules.locked(request, call, "complete")
        message = await rules.take(call, plan, "complete", request.comment)
        return pb.CompleteMediaPlanResponse(media_plan=message)

    async def ListMediaPlanDecisions(
        self, request: pb.ListMediaPlanDecisionsRequest, call: Call
    ) -> pb.ListMediaPlanDecisionsResponse:
        """Lists who decided what."""
        page = self._pager.start(request, call)
        plan = await self._plan(request.media_plan_id, call)
        rows, next_token = page.cut(
            await media_plan_history.list_decisions(
                self._database,
                call.scope,
                plan.id,
                limit=page.size + 1,
                after=page.after,
                lineage=request.whole_lineage,
            )
        )
        decisions = [convert.decision(row) for row in rows]
        return pb.ListMediaPlanDecisionsResponse(decisions=decisions, next_page_token=next_token)

    async def CreateMediaPlanComment(
        self, request: pb.CreateMediaPlanCommentRequest, call: Mutation
    ) -> pb.CreateMediaPlanCommentResponse:
        """Says something about a version."""
        wanted = request.comment
        plan = await media_plans.get(call.tx, call.scope, UUID(wanted.media_plan_id))
        if plan is None:
            raise NotFound.resource("media_plan", wanted.media_plan_id)
        if plan.project_status == "archived":
            raise FailedPrecondition.archived("project")
        _check_said(wanted.text, "comment.text")
        channel_id = optional_id(wanted.channel_id)
        if channel_id is not None and str(channel_id) not in rules.channel_budgets(plan):
            raise InvalidRequest.field("comment.channel_id", "CHANNEL_UNKNOWN", "is no channel of this version")
        author_id = call.principal.principal_id
        assert author_id is not None
        row = await media_plan_history.comment(
            call.tx,
            media_plan_id=plan.id,
            project_id=plan.project_id,
            channel_id=channel_id,
            author_id=author_id,
            body=wanted.text,
        )
        comment = convert.comment(row)
        await call.record(AuditEntry("comment", "media_plan", plan.id, plan.client_id, plan.project_id, None, comment))
        return pb.CreateMediaPlanCommentResponse(comment=comment)

    async def ListMediaPlanComments(
        self, request: pb.ListMediaPlanCommentsRequest, call: Call
    ) -> pb.ListMediaPlanCommentsResponse:
        """Lists what was said."""
        page = self._pager.start(request, call)
        plan = await self._plan(request.media_plan_id, call)
        rows, next_token = page.cut(
            await media_plan_history.list_comments(
                self._database,
                call.scope,
                plan.id,
                limit=page.size + 1,
                after=page.after,
                lineage=request.whole_lineage,
            )
        )
        comments = [convert.comment(row) for row in rows]
        return pb.ListMediaPlanCommentsResponse(comments=comments, next_page_token=next_token)

    async def _plan(self, media_plan_id: str, call: Call) -> MediaPlan:
        plan = await media_plans.get(self._database, call.scope, UUID(media_plan_id))
        if plan is None:
            raise NotFound.resource("media_plan", media_plan_id)
        return plan


def _check_said(text: str, field: str = "comment") -> None:
    if not text.strip():
        raise InvalidRequest.field(field, "COMMENT_EMPTY", "says nothing")
