# ruff: noqa: S608 - the statements are put together from constants of this package
"""What forecasts and comparisons of media plans with facts need to know of a client and its campaigns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class PlanClient:
    """The client of a project, and the project's days."""

    client_id: UUID
    industry: str
    time_zone: str
    start: date | None
    end: date | None


@dataclass(frozen=True, slots=True)
class PastCampaign:
    """A campaign, and what the newest version of its media plan says of the channel it spends from.

    Attributes:
        channel_type: Kind of advertising; empty without a channel.
        format: Empty without a channel, and for several.
    """

    id: UUID
    name: str
    platform: str
    lineage_id: UUID | None
    channel_id: UUID | None
    channel_type: str
    format: str


# The client of a project.
_CLIENT = f"""
SELECT p.client_id, cl.industry, cl.settings->>'timezone', p.start_date, p.end_date
FROM projects p JOIN clients cl ON cl.id = p.client_id WHERE p.id = $4 AND {visibility.project("p.id")}"""

# The newest campaigns of a client in a currency; those of one media plan, if wanted.
_CAMPAIGNS = f"""
SELECT c.id, c.name, c.platform, c.plan_lineage_id, c.plan_channel_id, COALESCE(ch.type, ''), COALESCE(ch.format, '')
FROM campaigns c JOIN clients cl ON cl.id = c.client_id
LEFT JOIN LATERAL (
  SELECT e.entry->>'type' AS type, e.entry->>'format' AS format
  FROM media_plans m CROSS JOIN jsonb_array_elements(m.channels) AS e (entry)
  WHERE m.lineage_id = c.plan_lineage_id AND e.entry->>'channel_id' = c.plan_channel_id::text
  ORDER BY m.version DESC LIMIT 1) ch ON true
WHERE c.client_id = $4 AND c.currency = $5 AND ($6::uuid IS NULL OR c.plan_lineage_id = $6)
  AND {visibility.project("c.project_id")}
ORDER BY c.id DESC LIMIT $7"""


async def plan_client(db: Executor, scope: Scope, project_id: UUID) -> PlanClient | None:
    """The client of a project."""
    row = await db.fetchrow(_CLIENT, *scope.args, project_id)
    return None if row is None else PlanClient(*row)


async def campaigns(
    db: Executor, scope: Scope, client_id: UUID, currency: str, *, limit: int, lineage_id: UUID | None = None
) -> list[PastCampaign]:
    """A client's campaigns in a currency, newest first.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        client_id: The client.
        currency: The currency.
        limit: Most campaigns.
        lineage_id: Only those of this media plan.
    """
    rows = await db.fetch(_CAMPAIGNS, *scope.args, client_id, currency, lineage_id, limit)
    return [PastCampaign(*row) for row in rows]
