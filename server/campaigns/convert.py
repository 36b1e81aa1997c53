"""Rows of the campaigns domain as messages, and back."""

import json
from typing import Any, Final

from mrm.campaigns.v1 import campaign_pb2
from mrm.common.v1 import platform_pb2
from server.campaigns import effective, platform_settings, storable
from server.rpc.errors import InvalidRequest
from server.rpc.values import EnumWords, etag, json_of, money, optional_amount, timestamp
from storage.postgres.campaigns import Campaign

PLATFORMS = EnumWords(platform_pb2.Platform, "PLATFORM_")
CAMPAIGN_STATUSES = EnumWords(campaign_pb2.CampaignStatus, "CAMPAIGN_STATUS_")
_LARGEST_CONFIGURATION: Final = 64 * 1024


def campaign(row: Campaign) -> campaign_pb2.Campaign:
    """A campaign."""
    status, reasons = effective.effective(row)
    currency = row.currency
    message = campaign_pb2.Campaign(
        campaign_id=str(row.id),
        etag=etag(row.revision),
        client_id=str(row.client_id),
        project_id=str(row.project_id),
        platform=PLATFORMS.number(row.platform),
        display_name=row.name,
        status=CAMPAIGN_STATUSES.number(row.status),
        currency_code=currency,
        daily_budget=money(row.budget_daily, currency),
        total_budget=money(row.budget_total, currency),
        spent_budget=money(row.budget_spent, currency),
        external_id=row.external_id or "",
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        media_plan_lineage_id=str(row.plan_lineage_id or ""),
        plan_channel_id=str(row.plan_channel_id or ""),
        media_plan_version=row.plan_version or 0,
        integration_id=str(row.integration_id or ""),
        last_sync_time=timestamp(row.last_synced_at),
        effective_status=status,
        effective_reasons=reasons,
        rejection_reason=row.rejection_reason,
    )
    if row.budget_total is not None:
        message.remaining_budget.CopyFrom(money(row.budget_total - row.budget_spent, currency))  # type: ignore[arg-type]
    if row.configuration:
        message.configuration.update(row.configuration)
    if row.settings:
        message.settings.CopyFrom(platform_settings.message(row.settings))
    if row.observed:
        message.observed.CopyFrom(effective.observation(row.observed))
    return message


def writable(message: campaign_pb2.Campaign, platform: str, currency: str, before: Campaign | None) -> dict[str, Any]:
    """The columns that a caller may write.

    Args:
        message: The campaign as it is to be.
        platform: Its platform.
        currency: Its currency.
        before: The campaign as it is; None for a new one.

    Raises:
        InvalidRequest: A budget is in another currency, negative, or the daily one above the total one; settings are of
            another platform; something is too large, or cannot be stored.
    """
    daily = optional_amount(message, "daily_budget", currency)
    total = optional_amount(message, "total_budget", currency)
    if daily is not None and total is not None and daily > total:
        raise InvalidRequest.field("campaign.daily_budget", "BUDGET_ORDER", "must not be above total_budget")
    known = {} if before is None else before.settings
    columns = {
        "name": message.display_name,
        "budget_daily": daily,
        "budget_total": total,
        "external_id": message.external_id or None,
        "configuration": _configuration(message) if message.HasField("configuration") else {},
        "settings": platform_settings.stored(message.settings, known, platform, currency)
        if message.HasField("settings")
        else {},
    }
    storable.check(columns)
    return columns


def _configuration(message: campaign_pb2.Campaign) -> dict[str, Any]:
    configuration = json_of(message.configuration, "campaign.configuration")
    if len(json.dumps(configuration, ensure_ascii=False).encode()) > _LARGEST_CONFIGURATION:
        raise InvalidRequest.field("campaign.configuration", "TOO_LARGE", "must be at most 64 KiB as JSON")
    return configuration
