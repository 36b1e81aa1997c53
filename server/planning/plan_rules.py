"""What a media plan may become, and what it has to fulfil on the way (requirements §2.6 and §11)."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any, Final, Protocol
from uuid import UUID

from mrm.planning.v1 import media_plan_pb2
from server import budgets
from server.planning import plan_convert as convert
from server.planning.plan_convert import Frame
from server.rpc.call import AuditEntry, Mutation
from server.rpc.errors import FailedPrecondition, NotFound
from server.rpc.values import check_etag
from storage.postgres import campaigns, media_plan_history, media_plans, projects
from storage.postgres.media_plans import MediaPlan
from storage.postgres.projects import Project

STEPS: Final = {
    "submit": ("draft", "pending_approval"),
    "approve": ("pending_approval", "approved"),
    "reject": ("pending_approval", "draft"),
    "recall": ("pending_approval", "draft"),
    "activate": ("approved", "active"),
    "complete": ("active", "completed"),
}
"""Each step of a version's life: from which state it leads, and where."""

# Steps that a project which is over still needs, to tidy up.
_TIDYING = frozenset({"reject", "recall", "complete", "delete"})


class StepRequest(Protocol):
    """What the requests for all steps have in common."""

    @property
    def media_plan_id(self) -> str:
        """UUID of the version."""

    @property
    def etag(self) -> str:
        """The version's etag, or nothing."""

    @property
    def comment(self) -> str:
        """What there is to say about the step."""


def frame(project: Project) -> Frame:
    """What a project gives to its plans."""
    return Frame(project.budget_currency, project.start_date, project.end_date)


def check_project_open(status: str, step: str) -> None:
    """Refuses steps within a project that is over."""
    if status == "archived" or (status == "completed" and step not in _TIDYING):
        raise FailedPrecondition(
            f"the project is {status}: its media plans stay as they are",
            metadata={"resource_type": "project", "state": status, "wanted": "active"},
        )


def check_draft(plan: MediaPlan, wanted: str) -> None:
    """Refuses to write what is no draft."""
    if plan.status != "draft":
        raise FailedPrecondition(
            f"the media plan is {plan.status} and only a draft can be {wanted}: recall it, or go on with a new version",
            metadata={"resource_type": "media_plan", "state": plan.status, "wanted": wanted},
        )


async def locked(request: StepRequest, call: Mutation, step: str) -> tuple[Project, MediaPlan]:
    """A version from which a step leads on, and its project; neither changes until the call ends.

    The project is locked first: steps compare sums over it, which must not change meanwhile.

    Raises:
        NotFound: There is no such version in scope.
        EtagMismatch: It changed.
        FailedPrecondition: No such step leads from its state, or the project is over.
    """
    plan_id = UUID(request.media_plan_id)
    project = await projects.of_plan_for_update(call.tx, call.scope, plan_id)
    plan = None if project is None else await media_plans.get_for_update(call.tx, call.scope, plan_id)
    if project is None or plan is None:
        raise NotFound.resource("media_plan", request.media_plan_id)
    check_etag(request.etag, plan.revision)
    before, after = STEPS[step]
    if plan.status != before:
        raise FailedPrecondition.transition("media_plan", plan.status, after)
    check_project_open(project.status, step)
    return project, plan


async def take(
    call: Mutation, plan: MediaPlan, step: str, comment: str, *, override_reason: str = "", **changes: Any
) -> media_plan_pb2.MediaPlan:
    """Writes a step with its decision and record."""
    state = "completed" if step == "supersede" else STEPS[step][1]
    stored = await media_plans.update(
        call.tx,
        call.scope,
        replace(plan, status=state, override_reason=override_reason or plan.override_reason, **changes),
    )
    if stored is None:
        raise NotFound.resource("media_plan", str(plan.id))
    await media_plan_history.decide(
        call.tx,
        media_plan_id=plan.id,
        kind=step,
        decided_by=call.principal.principal_id if call.principal.kind == "user" else None,
        comment=comment,
        override_reason=override_reason,
    )
    message = convert.plan(stored)
    await call.record(
        AuditEntry(step, "media_plan", plan.id, plan.client_id, plan.project_id, convert.plan(plan), message)
    )
    return message


async def check_fits(call: Mutation, plan: MediaPlan, project: Project) -> None:
    """A version that is to be decided on is whole, and leaves its lineage's campaigns what they have.

    Raises:
        FailedPrecondition: It is not, or does not.
    """
    if not plan.channels:
        raise FailedPrecondition(
            "the media plan has no channels",
            metadata={"resource_type": "media_plan", "state": "empty", "wanted": "whole"},
        )
    check_flights(plan, frame(project))
    total = convert.micros(plan.total_budget) or 0
    budgets.check_plan([entry["budget"] for entry in plan.channels], total, plan.currency)
    bound = await campaigns.bound(call.tx, call.scope, plan.lineage_id)
    budgets.check_campaigns(shares(bound), channel_budgets(plan), total, plan.currency, plan.version)


def check_flights(plan: MediaPlan, within: Frame) -> None:
    """Refuses flights that leave the project's dates, which may have moved since they were written."""
    for index, entry in enumerate(plan.channels):
        if "start" in entry and convert.outside(
            date.fromisoformat(entry["start"]), date.fromisoformat(entry["end"]), within
        ):
            raise FailedPrecondition(
                f"the flight of channels[{index}], {entry['start']} to {entry['end']}, leaves the project's dates",
                metadata={
                    "resource_type": "media_plan",
                    "state": "flight_outside_project",
                    "wanted": "flight_within_project",
                    "field": f"channels[{index}].flight",
                    "channel_id": entry["channel_id"],
                },
            )


def shares(bound: Sequence[campaigns.BoundCampaign]) -> list[budgets.Share]:
    """What campaigns take of a plan; archived ones take nothing."""
    return [
        budgets.Share(each.id, each.name, str(each.plan_channel_id), convert.micros(each.budget_total) or 0)
        for each in bound
        if each.status != "archived"
    ]


def channel_budgets(plan: MediaPlan) -> dict[str, int]:
    """A plan's channels with their budgets in millionths."""
    return {entry["channel_id"]: entry["budget"] for entry in plan.channels}


async def check_project_budget(call: Mutation, plan: MediaPlan, project: Project) -> None:
    """The project can pay for this version beside the approved plans of its other lineages.

    Raises:
        FailedPrecondition: It cannot.
    """
    found = await media_plans.committed(call.tx, call.scope, project.id)
    committed = {lineage_id: convert.micros(total) or 0 for lineage_id, total in found.items()}
    # A version that runs already may be the dearer one.
    committed[plan.lineage_id] = max(convert.micros(plan.total_budget) or 0, committed.get(plan.lineage_id, 0))
    budgets.check_project(committed.values(), convert.micros(project.budget_total), project.budget_currency)
