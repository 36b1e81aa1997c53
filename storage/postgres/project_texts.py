"""What projects are found by: their briefs and media plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from storage.postgres.database import Executor


@dataclass(frozen=True, slots=True)
class ProjectText:
    """A project as searches know it.

    Attributes:
        industry: Of its client.
        rating: 1 to 10 once completed.
        plans: Name, channels and targeting of the latest version of each media plan.
    """

    id: UUID
    client_id: UUID
    name: str
    description: str
    brief: dict[str, Any]
    status: str
    budget: Decimal | None
    currency: str
    rating: int | None
    industry: str
    plans: list[dict[str, Any]]


_FINDABLE = "cl.purged_at IS NULL AND p.status <> 'archived' AND NOT is_client_archived(p.client_id)"

# Projects that can be found. What was imported is no plan of anybody.
_LOAD = f"""
SELECT p.id, p.client_id, p.name, p.description, p.brief, p.status, p.budget_total, p.budget_currency,
  p.performance_rating, cl.industry,
  (SELECT COALESCE(jsonb_agg(jsonb_build_object('name', m.name, 'channels', m.channels, 'targeting', m.targeting)
     ORDER BY m.lineage_id), '[]')
   FROM (SELECT DISTINCT ON (lineage_id) * FROM media_plans
         WHERE project_id = p.id AND NOT imported ORDER BY lineage_id, version DESC) m)
FROM projects p JOIN clients cl ON cl.id = p.client_id
WHERE p.id = ANY ($1::uuid[]) AND {_FINDABLE}"""  # noqa: S608

_PAGE = f"""
SELECT p.id FROM projects p JOIN clients cl ON cl.id = p.client_id
WHERE ($1::uuid IS NULL OR p.id > $1) AND {_FINDABLE} ORDER BY p.id LIMIT $2"""  # noqa: S608


async def load_internal(db: Executor, project_ids: Sequence[UUID]) -> list[ProjectText]:
    """Those of the projects that can be found."""
    return [ProjectText(*row) for row in await db.fetch(_LOAD, list(project_ids))]


async def page_internal(db: Executor, after: UUID | None, limit: int) -> list[UUID]:
    """Ids of projects that can be found, a page by id."""
    return [row[0] for row in await db.fetch(_PAGE, after, limit)]
