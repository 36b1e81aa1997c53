"""Which policy holds for a client or a campaign: its own, the client's, or the defaults."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from server.settings import AlertsSettings
from storage.postgres.budget_policies import BudgetPolicy


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy that holds.

    Attributes:
        campaign_id: The campaign that was asked about; None for the client.
        revision: That of the row of whatever was asked about; 0 if it has none of its own.
        source: Where the values come from.
    """

    client_id: UUID
    campaign_id: UUID | None
    revision: int
    muted: bool
    threshold_percents: tuple[int, ...]
    pacing_low_percent: int
    pacing_high_percent: int
    recipient_emails: tuple[str, ...]
    source: Literal["default", "client", "campaign"]


def holding(
    rows: Iterable[BudgetPolicy], client_id: UUID, campaign_id: UUID | None, settings: AlertsSettings
) -> Policy:
    """The policy that holds for a client, or for one campaign of it.

    Args:
        rows: The client's policies; those of other campaigns are passed over.
        client_id: The client.
        campaign_id: The campaign; None for the client.
        settings: The defaults.
    """
    by_campaign = {row.campaign_id: row for row in rows}
    own, clients = by_campaign.get(campaign_id), by_campaign.get(None)
    row = own or clients
    if row is None:
        return Policy(
            client_id,
            campaign_id,
            0,
            False,
            tuple(sorted(settings.threshold_percents)),
            settings.pacing_low_percent,
            settings.pacing_high_percent,
            (),
            "default",
        )
    return Policy(
        client_id,
        campaign_id,
        0 if own is None else own.revision,
        row.muted,
        tuple(row.threshold_percents),
        row.pacing_low_percent,
        row.pacing_high_percent,
        tuple(row.recipient_emails),
        "client" if row.campaign_id is None else "campaign",
    )
