"""What a campaign may become, and what it has to fulfil on the way (requirements §11)."""

from collections.abc import Mapping, Set
from typing import Final
from uuid import UUID

from server.rpc.errors import FailedPrecondition
from storage.postgres.campaigns import Campaign

STEPS: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "submit": (frozenset({"draft"}), "pending_moderation"),
    "activate": (frozenset({"pending_moderation"}), "active"),
    "reject": (frozenset({"pending_moderation"}), "draft"),
    "pause": (frozenset({"active"}), "paused"),
    "resume": (frozenset({"paused"}), "active"),
    "archive": (frozenset({"paused", "draft"}), "archived"),
    "restore": (frozenset({"archived"}), "paused"),
}
"""Each step of a campaign's life: from which states it leads, and where."""

TOWARDS_ACTIVE: Final = frozenset({"submit", "activate", "resume"})
"""Steps that want all that an active campaign has: what passes moderation runs without being asked again."""

UNDER_WAY: Final = frozenset({"pending_moderation", "active"})
"""States in which a campaign must keep what those steps wanted of it."""


def check_step(row: Campaign, step: str) -> str:
    """Where a step leads.

    Raises:
        FailedPrecondition: It does not begin where the campaign stands, or is the platform's to take.
    """
    begins, leads = STEPS[step]
    if row.status not in begins:
        raise FailedPrecondition.transition("campaign", row.status, leads)
    if step in ("activate", "reject") and row.integration_id is not None:
        raise FailedPrecondition(
            f"the campaign is {row.status} and its platform decides whether it becomes {leads}; what it says comes "
            "with the next sync",
            metadata={
                "resource_type": "campaign",
                "state": row.status,
                "wanted": leads,
                "decided_by": row.platform,
            },
        )
    return leads


def missing(row: Campaign, project_status: str, runnable: Set[UUID]) -> list[str]:
    """What a campaign lacks to be active.

    Args:
        row: The campaign.
        project_status: State of its project.
        runnable: Those of the media plans of which a version is approved or active.
    """
    connected = row.integration_status == "connected" and bool(row.external_id)
    return [
        name
        for name, there in (
            ("project", project_status not in ("completed", "archived")),
            # What was imported has a plan but no channel: nothing of that plan would pay for it.
            ("media_plan", row.plan_lineage_id in runnable and row.plan_channel_id is not None),
            ("integration", row.platform == "other" or connected),
            ("total_budget", row.budget_total is not None),
        )
        if not there
    ]


_MEANING: Final = {
    "project": "a project that is not over",
    "media_plan": "a media plan of which a version is approved or active",
    "integration": "a link to an account that is connected",
    "total_budget": "a total budget",
}


def check_ready(row: Campaign, wanted: str, project_status: str, runnable: Set[UUID]) -> None:
    """Refuses a step towards active while something is missing.

    Raises:
        FailedPrecondition: Metadata `missing` names what.
    """
    lacking = missing(row, project_status, runnable)
    if lacking:
        raise FailedPrecondition(
            f"the campaign is {row.status} and cannot become {wanted} without "
            + ", ".join(_MEANING[name] for name in lacking),
            metadata={
                "resource_type": "campaign",
                "state": row.status,
                "wanted": wanted,
                "missing": ",".join(lacking),
            },
        )


def check_keeps(before: Campaign, after: Campaign) -> None:
    """Refuses to take from a campaign that is under way what it needed to get there.

    Raises:
        FailedPrecondition: It would lose its media plan or its total budget.
    """
    lost = [
        name
        for name, was, now in (
            ("media_plan", before.plan_lineage_id, after.plan_lineage_id),
            ("total_budget", before.budget_total, after.budget_total),
        )
        if was is not None and now is None
    ]
    if before.status in UNDER_WAY and lost:
        raise FailedPrecondition(
            f"a campaign that is {before.status} keeps {' and '.join(_MEANING[name] for name in lost)}",
            metadata={
                "resource_type": "campaign",
                "state": before.status,
                "wanted": "update",
                "missing": ",".join(lost),
            },
        )
