# ruff: noqa: S608 - the statements are put together from constants of this package
"""What was decided about media plans, and what was said about them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Decision:
    """A row of ``media_plan_decisions``. `version` is the plan's; `decided_by` is None for an API key."""

    id: UUID
    media_plan_id: UUID
    version: int
    kind: str
    decided_by: UUID | None
    comment: str
    override_reason: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Comment:
    """A row of ``media_plan_comments``. `channel_id` is None for one about the whole plan."""

    id: UUID
    media_plan_id: UUID
    channel_id: UUID | None
    author_id: UUID
    body: str
    created_at: datetime


# Adds a decision.
_DECIDE = """
INSERT INTO media_plan_decisions (id, media_plan_id, kind, decided_by, comment, override_reason)
VALUES ($1, $2, $3, $4, $5, $6)"""

# Adds a comment.
_COMMENT = """
INSERT INTO media_plan_comments (id, media_plan_id, project_id, channel_id, author_id, body)
VALUES ($1, $2, $3, $4, $5, $6) RETURNING id, media_plan_id, channel_id, author_id, body, created_at"""

# Of the rows `r` of a version or of its whole lineage, one page.
_PAGE = f"""
JOIN media_plans m ON m.id = r.media_plan_id JOIN projects p ON p.id = m.project_id
JOIN clients cl ON cl.id = p.client_id
WHERE {visibility.project("m.project_id")}
  AND CASE WHEN $7 THEN m.lineage_id = (SELECT lineage_id FROM media_plans WHERE id = $6) ELSE m.id = $6 END
  AND ($4::uuid IS NULL OR r.id > $4)
ORDER BY r.id LIMIT $5"""

# One page of decisions, oldest first.
_DECISIONS = f"""
SELECT r.id, r.media_plan_id, m.version, r.kind, r.decided_by, r.comment, r.override_reason, r.created_at
FROM media_plan_decisions r {_PAGE}"""

# One page of comments, oldest first.
_COMMENTS = f"""
SELECT r.id, r.media_plan_id, r.channel_id, r.author_id, r.body, r.created_at FROM media_plan_comments r {_PAGE}"""


async def decide(
    db: Executor,
    *,
    media_plan_id: UUID,
    kind: str,
    decided_by: UUID | None,
    comment: str = "",
    override_reason: str = "",
) -> None:
    """Adds a decision, in the transaction of the step that it led to.

    Raises:
        Invalid: ``media_plan_decisions_explained``: such a decision needs a comment.
    """
    await db.execute(_DECIDE, new_id(), media_plan_id, kind, decided_by, comment, override_reason)


async def comment(
    db: Executor, *, media_plan_id: UUID, project_id: UUID, channel_id: UUID | None, author_id: UUID, body: str
) -> Comment:
    """Adds a comment. The caller has checked that its author may comment on the plan.

    Raises:
        Invalid: ``media_plan_comments_body_given``.
        Archived: The client is archived.
    """
    row = await db.fetchrow(_COMMENT, new_id(), media_plan_id, project_id, channel_id, author_id, body)
    return Comment(*returned(row))


async def list_decisions(
    db: Executor, scope: Scope, media_plan_id: UUID, *, limit: int, after: UUID | None = None, lineage: bool = False
) -> list[Decision]:
    """Up to `limit` decisions about a version, or about all of its lineage, oldest first."""
    return [Decision(*row) for row in await db.fetch(_DECISIONS, *scope.args, after, limit, media_plan_id, lineage)]


async def list_comments(
    db: Executor, scope: Scope, media_plan_id: UUID, *, limit: int, after: UUID | None = None, lineage: bool = False
) -> list[Comment]:
    """Up to `limit` comments on a version, or on all of its lineage, oldest first."""
    return [Comment(*row) for row in await db.fetch(_COMMENTS, *scope.args, after, limit, media_plan_id, lineage)]
