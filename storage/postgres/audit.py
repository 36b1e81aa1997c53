"""The record of every change and who made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from storage.postgres.database import Executor

# Appends one record; the table refuses anything else.
_APPEND = """
INSERT INTO audit_log (actor_kind, actor_id, method, request_id, client_id, project_id, resource_type, resource_id,
  action, diff, cause)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"""


async def append(
    db: Executor,
    *,
    actor_kind: Literal["user", "api_key", "system"],
    actor_id: UUID | None,
    action: str,
    resource_type: str,
    resource_id: UUID | str,
    method: str = "",
    request_id: str = "",
    client_id: UUID | None = None,
    project_id: UUID | None = None,
    diff: Mapping[str, Any] | None = None,
    cause: str = "",
) -> None:
    """Appends a record, in the transaction of the change it tells of.

    Args:
        db: The change's transaction.
        actor_kind: What acted; ``system`` for what the service does by itself.
        actor_id: Which user or key; None exactly for ``system``.
        action: What was done, for example ``pause``.
        resource_type: To what kind of thing, for example ``campaign``.
        resource_id: To which one.
        method: Full name of the RPC, if one was called.
        request_id: The call's request id.
        client_id: The tenant, if it belongs to one.
        project_id: The project, if it belongs to one.
        diff: Field name to ``[before, after]``; secrets must have been replaced.
        cause: Why an automatic action was taken.
    """
    await db.execute(
        _APPEND, actor_kind, actor_id, method, request_id, client_id, project_id, resource_type, str(resource_id),
        action, dict(diff or {}), cause,
    )  # fmt: skip
