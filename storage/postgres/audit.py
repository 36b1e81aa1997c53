"""The record of every change and who made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from storage.postgres.database import Executor

REDACTED = True
"""Stands in a diff for both values of a secret."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a change was made.

    Attributes:
        kind: ``user`` for a call, ``job``, ``platform`` for what was seen there, ``operator`` for the command line.
        id: Which job, or the integration whose platform reported it.
        description: Explanation for people.
    """

    kind: Literal["user", "job", "platform", "operator"]
    id: str = ""
    description: str = ""


BY_CALL = Cause("user")
"""A caller wished it."""

# Appends one record; the table refuses anything else.
_APPEND = """
INSERT INTO audit_log (actor_kind, actor_id, method, request_id, client_id, project_id, resource_type, resource_id,
  action, diff, cause_kind, cause_id, cause)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"""

# Appends records that differ only in what changed.
_APPEND_ALIKE = """
INSERT INTO audit_log (actor_kind, actor_id, method, request_id, client_id, project_id, resource_type, action,
  cause_kind, cause_id, cause, resource_id, diff)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, r.resource_id, r.diff
FROM unnest($12::text[], $13::jsonb[]) AS r (resource_id, diff)"""


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
    cause: Cause = BY_CALL,
) -> None:
    """Appends a record, in the transaction of the change it tells of and after taking that change's locks.

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
        diff: Path of a field to ``[before, after]``, or to `REDACTED`.
        cause: Why.
    """
    await db.execute(
        _APPEND, actor_kind, actor_id, method, request_id, client_id, project_id, resource_type, str(resource_id),
        action, dict(diff or {}), cause.kind, cause.id, cause.description,
    )  # fmt: skip


async def append_alike(
    db: Executor,
    changes: Sequence[tuple[UUID, Mapping[str, Any]]],
    *,
    actor_kind: Literal["user", "api_key", "system"],
    actor_id: UUID | None,
    action: str,
    resource_type: str,
    method: str = "",
    request_id: str = "",
    client_id: UUID | None = None,
    project_id: UUID | None = None,
    cause: Cause = BY_CALL,
) -> None:
    """As `append` for many things of one kind to which the same was done, in one statement.

    Args:
        db: The changes' transaction.
        changes: Id and diff of each.
        actor_kind: As in `append`, as the others.
        actor_id: Which user or key.
        action: What was done.
        resource_type: To what kind of thing.
        method: Full name of the RPC.
        request_id: The call's request id.
        client_id: The tenant of all of them.
        project_id: The project of all of them.
        cause: Why.
    """
    await db.execute(
        _APPEND_ALIKE, actor_kind, actor_id, method, request_id, client_id, project_id, resource_type, action,
        cause.kind, cause.id, cause.description, [str(resource_id) for resource_id, _ in changes],
        [dict(diff) for _, diff in changes],
    )  # fmt: skip
