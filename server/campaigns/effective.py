"""Whether a campaign really runs: what we want, what its platform says, and the state of its account, put together."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from mrm.campaigns.v1 import campaign_pb2 as pb
from mrm.common.v1 import money_pb2
from server.rpc.values import EnumWords, timestamp
from storage.postgres.campaigns import Campaign

STATES = EnumWords(pb.ObservedState, "OBSERVED_STATE_")
MODERATION = EnumWords(pb.ObservedModeration, "OBSERVED_MODERATION_")
PAYMENT = EnumWords(pb.ObservedPayment, "OBSERVED_PAYMENT_")

_BY_STATE: Final = {
    "off": pb.CAMPAIGN_REASON_PAUSED_ON_PLATFORM,
    "suspended": pb.CAMPAIGN_REASON_PAUSED_ON_PLATFORM,
    "ended": pb.CAMPAIGN_REASON_ENDED_ON_PLATFORM,
    "archived": pb.CAMPAIGN_REASON_ARCHIVED_ON_PLATFORM,
    "gone": pb.CAMPAIGN_REASON_GONE_ON_PLATFORM,
}
_BY_MODERATION: Final = {
    "draft": pb.CAMPAIGN_REASON_IN_MODERATION,
    "pending": pb.CAMPAIGN_REASON_IN_MODERATION,
    "rejected": pb.CAMPAIGN_REASON_REJECTED,
}
_BY_ACCOUNT: Final = {
    "error": pb.CAMPAIGN_REASON_INTEGRATION_ERROR,
    "disconnected": pb.CAMPAIGN_REASON_INTEGRATION_DISCONNECTED,
}
# They say that nobody knows, not that it does not run.
_UNSURE: Final = frozenset({*_BY_ACCOUNT.values(), pb.CAMPAIGN_REASON_NOT_SYNCED})
_REST: Final = {
    "archived": pb.CAMPAIGN_EFFECTIVE_STATUS_ARCHIVED,
    "draft": pb.CAMPAIGN_EFFECTIVE_STATUS_DRAFT,
    "pending_moderation": pb.CAMPAIGN_EFFECTIVE_STATUS_PENDING,
    "paused": pb.CAMPAIGN_EFFECTIVE_STATUS_PAUSED,
}


def effective(row: Campaign) -> tuple[pb.CampaignEffectiveStatus.ValueType, list[pb.CampaignReason.ValueType]]:
    """Whether a campaign runs, and why that is so, the weightiest reason first."""
    if row.status in ("archived", "paused"):
        reasons = [pb.CAMPAIGN_REASON_PAUSED_BY_US] if row.status == "paused" else []
        if row.observed.get("state") == "running" and row.observed.get("payment") != "disallowed":
            reasons.append(pb.CAMPAIGN_REASON_RUNNING_AGAINST_WISH)
        return _REST[row.status], reasons
    if row.status == "draft":
        return _REST["draft"], [pb.CAMPAIGN_REASON_REJECTED] if row.rejection_reason else []
    reasons = _obstacles(row)
    # A platform may go on past our total: that is told, but is no obstacle.
    told = [*reasons, pb.CAMPAIGN_REASON_BUDGET_SPENT] if _spent(row) else reasons
    if row.status == "pending_moderation":
        return _REST["pending_moderation"], told
    if not reasons:
        return pb.CAMPAIGN_EFFECTIVE_STATUS_RUNNING, told
    if pb.CAMPAIGN_REASON_ENDED_ON_PLATFORM in reasons:
        return pb.CAMPAIGN_EFFECTIVE_STATUS_ENDED, told
    if _UNSURE.issuperset(reasons):
        return pb.CAMPAIGN_EFFECTIVE_STATUS_UNKNOWN, told
    return pb.CAMPAIGN_EFFECTIVE_STATUS_STOPPED, told


def _obstacles(row: Campaign) -> list[pb.CampaignReason.ValueType]:
    """What keeps a campaign from running."""
    if row.platform == "other":
        return []
    if row.integration_id is None or not row.external_id:
        return [pb.CAMPAIGN_REASON_NOT_LINKED]
    seen = row.observed
    found = [
        _BY_STATE.get(seen.get("state", "")),
        _BY_MODERATION.get(seen.get("moderation", "")),
        pb.CAMPAIGN_REASON_OUT_OF_FUNDS if seen.get("payment") == "disallowed" else None,
        _BY_ACCOUNT.get(row.integration_status or ""),
        None if seen else pb.CAMPAIGN_REASON_NOT_SYNCED,
    ]
    return [reason for reason in found if reason is not None]


def _spent(row: Campaign) -> bool:
    return row.budget_total is not None and row.budget_spent >= row.budget_total


def observation(seen: dict[str, Any]) -> pb.CampaignObservation:
    """What a platform said, as a message."""
    message = pb.CampaignObservation(
        state=STATES.number(seen.get("state", "")),
        moderation=MODERATION.number(seen.get("moderation", "")),
        payment=PAYMENT.number(seen.get("payment", "")),
        reasons=seen.get("reasons", ()),
        display_name=seen.get("name", ""),
    )
    if "at" in seen:
        message.observe_time.CopyFrom(timestamp(datetime.fromisoformat(seen["at"])))  # type: ignore[arg-type]
    for field in ("daily_budget", "total_budget"):
        if field in seen:
            getattr(message, field).CopyFrom(money_pb2.Money(**seen[field]))
    return message
