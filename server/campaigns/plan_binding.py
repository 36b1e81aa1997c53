"""The bond of a campaign to a channel of a media plan, and that the plan can pay for it."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from server import budgets
from server.rpc.call import Mutation
from server.rpc.errors import InvalidRequest
from storage.postgres import campaigns, media_plans
from storage.postgres.media_plans import MediaPlan


@dataclass(frozen=True, slots=True)
class Wanted:
    """A campaign as it is to be.

    Attributes:
        campaign_id: Its id; None for a new one.
        project_id: Its project, which is locked: sums of one project are compared one after another.
        name: Its name.
        currency: Of its budget.
        budget_total: Its total budget.
        lineage_id: The plan it is to be bound to; None for none.
        channel_id: The channel of that plan.
        version: The version under which it is bound to this channel already; None if it is not.
    """

    campaign_id: UUID | None
    project_id: UUID
    name: str
    currency: str
    budget_total: Decimal | None
    lineage_id: UUID | None
    channel_id: UUID | None
    version: int | None


async def bind(call: Mutation, wanted: Wanted) -> dict[str, Any]:
    """The columns of a campaign's bond.

    Raises:
        InvalidRequest: Half of the bond is missing, the project has no such plan, the plan no such channel, or the
            campaign no total budget in the plan's currency.
        FailedPrecondition: The channel or the plan cannot pay for the campaign.
    """
    if wanted.version is not None and wanted.channel_id is None:
        # What was imported belongs to a plan without channels, and counts against no budget.
        return {
            "plan_lineage_id": wanted.lineage_id,
            "plan_version": wanted.version,
            "plan_channel_id": None,
        }
    if wanted.lineage_id is None or wanted.channel_id is None:
        if wanted.lineage_id is not None or wanted.channel_id is not None:
            missing = "plan_channel_id" if wanted.channel_id is None else "media_plan_lineage_id"
            raise InvalidRequest.field(f"campaign.{missing}", "PLAN_INCOMPLETE", "a plan and a channel go together")
        return {"plan_lineage_id": None, "plan_version": None, "plan_channel_id": None}
    current = await media_plans.current(call.tx, call.scope, wanted.lineage_id, wanted.project_id)
    if not current:
        raise InvalidRequest.field("campaign.media_plan_lineage_id", "PLAN_UNKNOWN", "is no plan of this project")
    channel_id = str(wanted.channel_id)
    offering = [plan for plan in current if channel_id in _channels(plan)]
    if not offering:
        raise InvalidRequest.field("campaign.plan_channel_id", "CHANNEL_UNKNOWN", "is no channel of this plan")
    if wanted.currency != current[0].currency:
        raise InvalidRequest.field("campaign.currency_code", "CURRENCY_MISMATCH", f"must be {current[0].currency}")
    if wanted.budget_total is None:
        raise InvalidRequest.field("campaign.total_budget", "BUDGET_MISSING", "a campaign of a plan has a total budget")
    others = [
        budgets.Share(each.id, each.name, str(each.plan_channel_id), int(each.budget_total.scaleb(6)))
        for each in await campaigns.bound(call.tx, call.scope, wanted.lineage_id)
        if each.id != wanted.campaign_id and each.status != "archived"
    ]
    ours = budgets.Share(wanted.campaign_id or UUID(int=0), wanted.name, channel_id, int(wanted.budget_total.scaleb(6)))
    # Whatever was approved keeps its promise; a draft counts only where there is nothing else.
    deciding = [plan for plan in offering if plan.status in ("approved", "active")] or offering[:1]
    for plan in deciding:
        channels = _channels(plan)
        # Campaigns of channels that only another version has are that version's matter.
        known = [share for share in [*others, ours] if share.channel_id in channels]
        total = int((plan.total_budget or Decimal()).scaleb(6))
        budgets.check_campaigns(known, channels, total, plan.currency, plan.version)
    return {
        "plan_lineage_id": wanted.lineage_id,
        "plan_version": wanted.version or offering[0].version,
        "plan_channel_id": wanted.channel_id,
    }


def _channels(plan: MediaPlan) -> dict[str, int]:
    return {entry["channel_id"]: entry["budget"] for entry in plan.channels}
