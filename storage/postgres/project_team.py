# ruff: noqa: S608 - the statements are put together from constants of this package
"""Who works on a project, and as what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id
from storage.postgres.revisions import update_row
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class TeamMember:
    """A row of ``project_team``. A user may be on a team several times, in different roles.

    Attributes:
        raci: ``R``, ``A`` (one per project), ``C`` or ``I``.
    """

    id: UUID
    project_id: UUID
    user_id: UUID
    role: str
    raci: str
    assigned_at: datetime
    revision: int
    updated_at: datetime


_COLUMNS = "t.id, t.project_id, t.user_id, t.role, t.raci, t.assigned_at, t.revision, t.updated_at"

# The visibility condition has a `t` of its own, which is the caller's place in the team, not the one that is read.
_VISIBLE = visibility.project("p.id")

_IN_SCOPE = "FROM project_team t JOIN projects p ON p.id = t.project_id JOIN clients cl ON cl.id = p.client_id"

# Puts a user on a project's team.
_ADD = f"""
INSERT INTO project_team AS t (id, project_id, user_id, role, raci) VALUES ($1, $2, $3, $4, $5) RETURNING {_COLUMNS}"""

# One place in a team.
_GET = f"SELECT {_COLUMNS} {_IN_SCOPE} WHERE t.id = $4 AND {_VISIBLE}"

# One page of a project's team, in the order of joining.
_LIST_PAGE = f"""
SELECT {_COLUMNS} {_IN_SCOPE}
WHERE t.project_id = $6 AND {_VISIBLE}
  AND ($4::uuid IS NULL OR t.id > $4)
  AND ($7::uuid IS NULL OR t.user_id = $7)
  AND ($8::text[] IS NULL OR t.role = ANY ($8))
  AND ($9::text[] IS NULL OR t.raci = ANY ($9))
ORDER BY t.id LIMIT $5"""

# Changes a place that still has the expected revision.
_UPDATE = f"""
UPDATE project_team t SET role = $6, raci = $7 FROM projects p JOIN clients cl ON cl.id = p.client_id
WHERE t.id = $4 AND p.id = t.project_id AND t.revision = $5 AND {_VISIBLE} RETURNING {_COLUMNS}"""

# Takes somebody from a team whose place still has the expected revision.
_REMOVE = f"""
DELETE FROM project_team t USING projects p JOIN clients cl ON cl.id = p.client_id
WHERE t.id = $4 AND p.id = t.project_id AND t.revision = $5 AND {_VISIBLE} RETURNING {_COLUMNS}"""

# The present revision, to tell a stale place from a missing one.
_REVISION = f"SELECT t.revision {_IN_SCOPE} WHERE t.id = $4 AND {_VISIBLE}"

# Makes another member Accountable and the present one Responsible. One statement, because whoever hands the
# accountability over may have the right to do so only until then. The second update reads from the first, which makes
# it come later: no two are Accountable at any time.
_TRANSFER = f"""
WITH seen AS MATERIALIZED (
  SELECT p.id FROM projects p JOIN clients cl ON cl.id = p.client_id WHERE p.id = $4 AND {_VISIBLE}),
former AS (
  UPDATE project_team t SET raci = 'R' FROM seen
  WHERE t.project_id = seen.id AND t.raci = 'A' AND t.id <> $5 RETURNING {_COLUMNS}),
successor AS (
  UPDATE project_team t SET raci = 'A' FROM seen
  WHERE t.project_id = seen.id AND t.id = $5 AND (SELECT count(*) FROM former) >= 0 RETURNING {_COLUMNS})
SELECT * FROM successor UNION ALL SELECT * FROM former"""


async def add(db: Executor, *, project_id: UUID, user_id: UUID, role: str, raci: str = "I") -> TeamMember:
    """Puts a user on a project's team. The caller has checked that it may change the team.

    Raises:
        Conflict: ``project_team_member_key``: the user has this role already; ``project_team_one_accountable``: the
            project has an Accountable already.
        Invalid: A value is not allowed, or the project or user does not exist.
    """
    return TeamMember(*returned(await db.fetchrow(_ADD, new_id(), project_id, user_id, role, raci)))


async def get(db: Executor, scope: Scope, member_id: UUID) -> TeamMember | None:
    """The place in a team with this id, of a project in scope."""
    row = await db.fetchrow(_GET, *scope.args, member_id)
    return None if row is None else TeamMember(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    project_id: UUID,
    *,
    limit: int,
    after: UUID | None = None,
    user_id: UUID | None = None,
    roles: Sequence[str] | None = None,
    raci: Sequence[str] | None = None,
) -> list[TeamMember]:
    """Up to `limit` of a project's team, in the order of joining, whose id comes after `after`.

    A filter that is None lets all pass. Empty when the project is not in scope.
    """
    rows = await db.fetch(
        _LIST_PAGE, *scope.args, after, limit, project_id, user_id,
        None if roles is None else list(roles), None if raci is None else list(raci),
    )  # fmt: skip
    return [TeamMember(*row) for row in rows]


async def update(db: Executor, scope: Scope, changed: TeamMember) -> TeamMember | None:
    """Writes role and letter of a place that was read and changed.

    Returns:
        The place as it is now, or None when there is none in scope.

    Raises:
        StaleRevision: It was changed since.
        Conflict: As `add`.
    """
    row = await update_row(
        db, _UPDATE, _REVISION, scope, changed.id, changed.revision, changed.role, changed.raci
    )  # fmt: skip
    return None if row is None else TeamMember(*row)


async def remove(db: Executor, scope: Scope, member: TeamMember) -> TeamMember | None:
    """Takes somebody from a team.

    Returns:
        The place as it was, or None when there is none in scope.

    Raises:
        StaleRevision: It was changed since it was read.
    """
    row = await update_row(db, _REMOVE, _REVISION, scope, member.id, member.revision)
    return None if row is None else TeamMember(*row)


async def transfer(
    db: Executor, scope: Scope, project_id: UUID, successor_id: UUID
) -> tuple[TeamMember, TeamMember | None] | None:
    """Makes a member of a team Accountable, and whoever was Responsible, at once.

    Returns:
        The successor and the former Accountable, if there was another; None when the successor is not on the team of a
        project in scope. The caller then rolls back.
    """
    rows = [TeamMember(*row) for row in await db.fetch(_TRANSFER, *scope.args, project_id, successor_id)]
    successor = next((member for member in rows if member.id == successor_id), None)
    if successor is None:
        return None
    return successor, next((member for member in rows if member.id != successor_id), None)
