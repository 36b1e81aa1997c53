"""Rows of the campaigns domain as messages, and back."""

from typing import Any

from google.protobuf.json_format import MessageToDict

from mrm.campaigns.v1 import campaign_pb2
from mrm.common.v1 import platform_pb2
from server.rpc.errors import InvalidRequest
from server.rpc.values import EnumWords, etag, money, optional_amount, timestamp
from storage.postgres.campaigns import Campaign

PLATFORMS = EnumWords(platform_pb2.Platform, "PLATFORM_")
CAMPAIGN_STATUSES = EnumWords(campaign_pb2.CampaignStatus, "CAMPAIGN_STATUS_")


def campaign(row: Campaign) -> campaign_pb2.Campaign:
    """A campaign."""
    message = campaign_pb2.Campaign(
        campaign_id=str(row.id),
        etag=etag(row.revision),
        client_id=str(row.client_id),
        project_id=str(row.project_id),
        platform=PLATFORMS.number(row.platform),
        display_name=row.name,
        status=CAMPAIGN_STATUSES.number(row.status),
        currency_code=row.currency,
        daily_budget=money(row.budget_daily, row.currency),
        total_budget=money(row.budget_total, row.currency),
        spent_budget=money(row.budget_spent, row.currency),
        external_id=row.external_id or "",
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        media_plan_lineage_id=str(row.plan_lineage_id or ""),
        plan_channel_id=str(row.plan_channel_id or ""),
        media_plan_version=row.plan_version or 0,
    )
    if row.configuration:
        message.configuration.update(row.configuration)
    return message


def writable(message: campaign_pb2.Campaign, currency: str) -> dict[str, Any]:
    """The columns that a caller may write.

    Raises:
        InvalidRequest: A budget is in another currency, negative, or the daily one above the total one.
    """
    daily = optional_amount(message, "daily_budget", currency)
    total = optional_amount(message, "total_budget", currency)
    if daily is not None and total is not None and daily > total:
        raise InvalidRequest.field("campaign.daily_budget", "BUDGET_ORDER", "must not be above total_budget")
    return {
        "name": message.display_name,
        "budget_daily": daily,
        "budget_total": total,
        "external_id": message.external_id or None,
        "configuration": MessageToDict(message.configuration),
    }
