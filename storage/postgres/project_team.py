# ruff: noqa: S608 - the statements are put together from constants of this package
"""Who works on a project, and as what."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class TeamMember:
    """A row of ``project_team``.

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


_COLUMNS = "t.id, t.project_id, t.user_id, t.role, t.raci, t.assigned_at, t.revision"

# Puts a user on a project's team.
_ADD = f"""
INSERT INTO project_team AS t (id, project_id, user_id, role, raci) VALUES ($1, $2, $3, $4, $5) RETURNING {_COLUMNS}"""

# A project's team, in the order of joining.
_LIST = f"""
SELECT {_COLUMNS} FROM project_team t JOIN projects p ON p.id = t.project_id JOIN clients cl ON cl.id = p.client_id
WHERE t.project_id = $4 AND {visibility.project("p.id")} ORDER BY t.id"""


async def add(db: Executor, *, project_id: UUID, user_id: UUID, role: str, raci: str = "I") -> TeamMember:
    """Puts a user on a project's team. The caller has checked that it may change the team.

    Raises:
        Conflict: ``project_team_member_key``: the user has this role already; ``project_team_one_accountable``: the
            project has an Accountable already.
        Invalid: A value is not allowed, or the project or user does not exist.
    """
    return TeamMember(*returned(await db.fetchrow(_ADD, new_id(), project_id, user_id, role, raci)))


async def list_members(db: Executor, scope: Scope, project_id: UUID) -> list[TeamMember]:
    """The team of a project, in the order of joining; empty when the project is not in scope."""
    return [TeamMember(*row) for row in await db.fetch(_LIST, *scope.args, project_id)]
