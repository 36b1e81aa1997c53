"""The bonds of campaigns to channels of media plans, and that the plans can pay for them all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from server import budgets
from server.rpc.call import Mutation
from server.rpc.errors import FailedPrecondition, InvalidRequest
from storage.postgres import campaigns, media_plans
from storage.postgres.campaigns import BoundCampaign, Campaign
from storage.postgres.media_plans import MediaPlan


@dataclass(frozen=True, slots=True)
class Wanted:
    """A campaign as it is to be bound.

    Attributes:
        project_id: Its project, which is locked: sums of one project are compared one after another.
        currency: Of its budget.
        budget_total: Its total budget.
        lineage_id: The plan it is to be bound to; None for none.
        channel_id: The channel of that plan.
        version: The version under which it is bound to this channel already; None if it is not.
    """

    project_id: UUID
    currency: str
    budget_total: Decimal | None
    lineage_id: UUID | None
    channel_id: UUID | None
    version: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """What a campaign takes from a channel, in millionths."""

    lineage_id: UUID
    channel_id: str
    micros: int


class PlanBook:
    """What the campaigns of some media plans take from them, and what they would take after changes.

    Args:
        plans: The versions that campaigns may be bound to.
        bound: The campaigns that are bound now.
    """

    def __init__(self, plans: Iterable[MediaPlan], bound: Iterable[BoundCampaign]) -> None:
        self._plans: defaultdict[UUID, list[MediaPlan]] = defaultdict(list)
        for plan in plans:
            self._plans[plan.lineage_id].append(plan)
        self._channels = {
            plan.id: {entry["channel_id"]: entry["budget"] for entry in plan.channels}
            for versions in self._plans.values()
            for plan in versions
        }
        self._places: dict[UUID, Place] = {}
        self._taken: defaultdict[UUID, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        for each in bound:
            if each.status != "archived":
                self.put(each.id, _place(each.plan_lineage_id, each.plan_channel_id, each.budget_total))

    @classmethod
    async def open(cls, call: Mutation, lineage_ids: Iterable[UUID]) -> PlanBook:
        """The book of some plans, whose projects are locked."""
        wanted = sorted(set(lineage_ids))
        if not wanted:
            return cls((), ())
        plans = await media_plans.current(call.tx, call.scope, *wanted)
        return cls(plans, await campaigns.bound(call.tx, call.scope, *wanted))

    def columns(self, wanted: Wanted) -> dict[str, Any]:
        """The columns of a campaign's bond.

        Raises:
            InvalidRequest: Half of the bond is missing, the project has no such plan, the plan no such channel, or the
                campaign no total budget in the plan's currency.
        """
        if wanted.version is not None and wanted.channel_id is None:
            # What was imported belongs to a plan without channels, and counts against no budget.
            return {"plan_lineage_id": wanted.lineage_id, "plan_version": wanted.version, "plan_channel_id": None}
        if wanted.lineage_id is None or wanted.channel_id is None:
            if wanted.lineage_id is not None or wanted.channel_id is not None:
                absent = "plan_channel_id" if wanted.channel_id is None else "media_plan_lineage_id"
                raise InvalidRequest.field(f"campaign.{absent}", "PLAN_INCOMPLETE", "a plan and a channel go together")
            return {"plan_lineage_id": None, "plan_version": None, "plan_channel_id": None}
        current = self._plans.get(wanted.lineage_id)
        if not current or current[0].project_id != wanted.project_id:
            raise InvalidRequest.field("campaign.media_plan_lineage_id", "PLAN_UNKNOWN", "is no plan of this project")
        offering = self._offering(wanted.lineage_id, str(wanted.channel_id))
        if not offering:
            raise InvalidRequest.field("campaign.plan_channel_id", "CHANNEL_UNKNOWN", "is no channel of this plan")
        if wanted.currency != current[0].currency:
            raise InvalidRequest.field("campaign.currency_code", "CURRENCY_MISMATCH", f"must be {current[0].currency}")
        if wanted.budget_total is None:
            raise InvalidRequest.field(
                "campaign.total_budget", "BUDGET_MISSING", "a campaign of a plan has a total budget"
            )
        return {
            "plan_lineage_id": wanted.lineage_id,
            "plan_version": wanted.version or offering[0].version,
            "plan_channel_id": wanted.channel_id,
        }

    def put(self, campaign_id: UUID, place: Place | None) -> Place | None:
        """Has a campaign take something else than before, or nothing; returns what it took before."""
        before = self._places.pop(campaign_id, None)
        if before is not None:
            self._taken[before.lineage_id][before.channel_id] -= before.micros
        if place is not None:
            self._places[campaign_id] = place
            self._taken[place.lineage_id][place.channel_id] += place.micros
        return before

    def check(self, place: Place) -> None:
        """The channel and its plan can pay for all that is taken from them.

        Raises:
            FailedPrecondition: They cannot, or no version of the plan has the channel any more.
        """
        offering = self._offering(place.lineage_id, place.channel_id)
        if not offering:
            raise FailedPrecondition(
                "no version of the media plan that may run has the campaign's channel any more",
                metadata={"resource_type": "media_plan", "state": "dropped", "channel_id": place.channel_id},
            )
        # Whatever was approved keeps its promise; a draft counts only where there is nothing else.
        deciding = [plan for plan in offering if plan.status in ("approved", "active")] or offering[:1]
        for plan in deciding:
            channels = self._channels[plan.id]
            # Campaigns of channels that only another version has are that version's matter.
            known = [
                budgets.Share(UUID(int=0), "", channel_id, micros)
                for channel_id, micros in self._taken[place.lineage_id].items()
                if channel_id in channels and micros
            ]
            total = int((plan.total_budget or Decimal()).scaleb(6))
            budgets.check_campaigns(known, channels, total, plan.currency, plan.version)

    def _offering(self, lineage_id: UUID, channel_id: str) -> list[MediaPlan]:
        return [plan for plan in self._plans.get(lineage_id, ()) if channel_id in self._channels[plan.id]]


def place_of(row: Campaign) -> Place | None:
    """What a campaign takes; nothing if it is archived or bound to no plan."""
    if row.status == "archived":
        return None
    return _place(row.plan_lineage_id, row.plan_channel_id, row.budget_total)


def _place(lineage_id: UUID | None, channel_id: UUID | None, total: Decimal | None) -> Place | None:
    if lineage_id is None or channel_id is None or total is None:
        return None
    return Place(lineage_id, str(channel_id), int(total.scaleb(6)))
