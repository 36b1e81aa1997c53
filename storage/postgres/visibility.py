"""The condition that a row lies within a scope. Its parameters are `Scope.args`, always the first three."""

from __future__ import annotations

CLIENT = """(cl.purged_at IS NULL AND (
  $1::boolean
  OR cl.path && $3::uuid[]
  OR EXISTS (SELECT FROM client_memberships m WHERE m.user_id = $2::uuid AND m.client_id = ANY (cl.path))))"""
"""For a statement whose client is `cl`: the caller is above it, by a key or as a member. Nobody sees a purged one."""


def project(id_column: str) -> str:
    """For a statement whose client is `cl`: as `CLIENT`, or the caller is on the team of the project.

    Args:
        id_column: The column that holds the project's id, a constant of the calling module.
    """
    team = f"SELECT FROM project_team t WHERE t.user_id = $2::uuid AND t.project_id = {id_column}"
    return f"({CLIENT} OR (cl.purged_at IS NULL AND EXISTS ({team})))"
