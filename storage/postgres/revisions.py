"""Writing a row only if nobody has changed it since it was read."""

from __future__ import annotations

from uuid import UUID

from storage.errors import StaleRevision
from storage.postgres.database import Executor, Row
from storage.scope import Scope


async def update_row(
    db: Executor, update_sql: str, revision_sql: str, scope: Scope, row_id: UUID, expected: int, *values: object
) -> Row | None:
    """Runs an update that demands a revision, and tells a stale row from one that is not there.

    Args:
        db: Where to run it.
        update_sql: Takes the scope, the id, the expected revision and `values`, and returns the changed row.
        revision_sql: Takes the scope and the id, and returns the present revision.
        scope: What the caller may touch.
        row_id: The row.
        expected: The revision the change is based on.
        values: The row's new values.

    Returns:
        The changed row, or None when there is none in scope.

    Raises:
        StaleRevision: The row has another revision now.
    """
    row = await db.fetchrow(update_sql, *scope.args, row_id, expected, *values)
    if row is not None:
        return row
    found = await db.fetchval(revision_sql, *scope.args, row_id)
    if found is None:
        return None
    raise StaleRevision(expected, found)
