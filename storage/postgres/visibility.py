"""The condition that a row lies within a scope. Its parameters are `Scope.args`, always the first three."""

from __future__ import annotations

EVERYTHING = "'everything' = ANY ($1::text[])"
"""The caller reaches all tenants."""

CLIENT = f"""(cl.purged_at IS NULL AND (
  {EVERYTHING}
  OR cl.path && $3::uuid[]
  OR 'member' = ANY ($1) AND EXISTS (
    SELECT FROM client_memberships m WHERE m.user_id = $2::uuid AND m.client_id = ANY (cl.path))))"""
"""For a statement whose client is `cl`: the caller is above it, by a key or as a member. Nobody sees a purged one."""

TEAM = "t.user_id = $2::uuid AND (t.raci = ANY ($1::text[]) OR t.role || ':' || t.raci = ANY ($1))"
"""For a row `t` of `project_team`: it is the caller's, and such a place in the team counts in the scope."""


def project(id_column: str) -> str:
    """For a statement whose client is `cl`: as `CLIENT`, or the caller is on the team of the project.

    Args:
        id_column: The column that holds the project's id, a constant of the calling module.
    """
    team = f"SELECT FROM project_team t WHERE t.project_id = {id_column} AND {TEAM}"
    return f"({CLIENT} OR (cl.purged_at IS NULL AND EXISTS ({team})))"
