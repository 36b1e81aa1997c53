# ruff: noqa: S608 - the statements are put together from constants of this package
"""When clients, and single campaigns of theirs, are told about budgets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from storage.errors import StaleRevision
from storage.postgres import visibility
from storage.postgres.database import Executor
from storage.postgres.ids import new_id
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """A row of ``budget_alert_policies``.

    Attributes:
        project_id: The campaign's; None for a client's own policy.
        campaign_id: None for a client's own policy.
        muted: Nobody is told anything.
        pacing_low_percent: Below this the spending stays behind the plan.
        pacing_high_percent: Above this it runs ahead.
        recipient_emails: Who is told beside the people who work on it.
    """

    id: UUID
    client_id: UUID
    project_id: UUID | None
    campaign_id: UUID | None
    muted: bool
    threshold_percents: list[int]
    pacing_low_percent: int
    pacing_high_percent: int
    recipient_emails: list[str]
    revision: int
    created_at: datetime
    updated_at: datetime


_COLUMNS = """b.id, b.client_id, b.project_id, b.campaign_id, b.muted, b.threshold_percents, b.pacing_low_percent,
  b.pacing_high_percent, b.recipient_emails, b.revision, b.created_at, b.updated_at"""

# The policies of a client, its own first.
_OF_CLIENT = f"""
SELECT {_COLUMNS} FROM budget_alert_policies b JOIN clients cl ON cl.id = b.client_id
WHERE b.client_id = $4 AND ($5::uuid IS NULL OR b.campaign_id IS NULL OR b.campaign_id = $5)
  AND (b.campaign_id IS NULL AND $6 OR {visibility.project("b.project_id")})
ORDER BY b.campaign_id NULLS FIRST"""

# Adds a policy, unless there is one.
_ADD = f"""
INSERT INTO budget_alert_policies AS b (id, client_id, project_id, campaign_id, muted, threshold_percents,
  pacing_low_percent, pacing_high_percent, recipient_emails)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING RETURNING {_COLUMNS}"""

# Replaces a policy that still has the expected revision.
_REPLACE = f"""
UPDATE budget_alert_policies b SET muted = $3, threshold_percents = $4, pacing_low_percent = $5,
  pacing_high_percent = $6, recipient_emails = $7
WHERE b.id = $1 AND b.revision = $2 RETURNING {_COLUMNS}"""


async def of_client(db: Executor, scope: Scope, client_id: UUID, campaign_id: UUID | None = None) -> list[BudgetPolicy]:
    """The client's own policy and those of its campaigns, which override it; the client's own first.

    A project's team sees the client's own policy with that of a campaign, because it holds for the campaign as well:
    the caller has found the campaign in scope.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        client_id: The client.
        campaign_id: Only this campaign's policy beside the client's.
    """
    rows = await db.fetch(_OF_CLIENT, *scope.args, client_id, campaign_id, campaign_id is not None)
    return [BudgetPolicy(*row) for row in rows]


async def put_internal(
    db: Executor,
    present: BudgetPolicy | None,
    *,
    client_id: UUID,
    project_id: UUID | None,
    campaign_id: UUID | None,
    muted: bool,
    threshold_percents: list[int],
    pacing_low_percent: int,
    pacing_high_percent: int,
    recipient_emails: list[str],
) -> BudgetPolicy:
    """Writes the policy of a client or campaign that the caller has found in scope.

    Args:
        db: Where to run it.
        present: The policy as it was read; None if there was none.
        client_id: The client.
        project_id: The campaign's project.
        campaign_id: The campaign; None for the client's own.
        muted: See `BudgetPolicy`, as for the others.
        threshold_percents: Percents of a budget.
        pacing_low_percent: Percent of what is planned.
        pacing_high_percent: Percent of what is planned.
        recipient_emails: Addresses.

    Raises:
        StaleRevision: Somebody else wrote it meanwhile.
    """
    values = (muted, threshold_percents, pacing_low_percent, pacing_high_percent, recipient_emails)
    if present is None:
        row = await db.fetchrow(_ADD, new_id(), client_id, project_id, campaign_id, *values)
    else:
        row = await db.fetchrow(_REPLACE, present.id, present.revision, *values)
    if row is None:
        raise StaleRevision(0 if present is None else present.revision, 0)
    return BudgetPolicy(*row)
