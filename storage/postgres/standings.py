# ruff: noqa: S608 - the statements are put together from constants of this package
"""How a caller is related to a client or project: the words that `Scope.standings` are compared with."""

from __future__ import annotations

from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, Row
from storage.scope import Scope

# Whether the caller reaches a client.
_OF_CLIENT = f"SELECT true, '{{}}'::text[] FROM clients cl WHERE cl.id = $4 AND {visibility.CLIENT}"

# Whether the caller reaches the client of a project, and its places in the project's team.
_OF_PROJECT = f"""
SELECT {visibility.CLIENT}, ARRAY (
  SELECT t.role || ':' || t.raci FROM project_team t WHERE t.project_id = p.id AND {visibility.TEAM})
FROM projects p JOIN clients cl ON cl.id = p.client_id WHERE p.id = $4 AND {visibility.project("p.id")}"""

# As for a project, that of a campaign.
_OF_CAMPAIGN = f"""
SELECT {visibility.CLIENT}, ARRAY (
  SELECT t.role || ':' || t.raci FROM project_team t WHERE t.project_id = c.project_id AND {visibility.TEAM})
FROM campaigns c JOIN clients cl ON cl.id = c.client_id WHERE c.id = $4 AND {visibility.project("c.project_id")}"""


async def of_client(db: Executor, scope: Scope, client_id: UUID) -> frozenset[str] | None:
    """``member`` when the client is in scope, None when it is not."""
    return _words(await db.fetchrow(_OF_CLIENT, *scope.args, client_id))


async def of_project(db: Executor, scope: Scope, project_id: UUID) -> frozenset[str] | None:
    """``member``, and role and letter of each place in the team, alone and together; None out of scope."""
    return _words(await db.fetchrow(_OF_PROJECT, *scope.args, project_id))


async def of_campaign(db: Executor, scope: Scope, campaign_id: UUID) -> frozenset[str] | None:
    """As `of_project`, for the project of a campaign."""
    return _words(await db.fetchrow(_OF_CAMPAIGN, *scope.args, campaign_id))


def _words(row: Row | None) -> frozenset[str] | None:
    if row is None:
        return None
    places: list[str] = row[1]
    return frozenset(["member"] * row[0] + places + [place[-1] for place in places])
