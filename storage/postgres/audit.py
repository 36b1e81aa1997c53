# ruff: noqa: S608 - the statements are put together from constants of this package
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

_COLUMNS = {
    "actor_kind": "text",
    "actor_id": "uuid",
    "action": "text",
    "resource_type": "text",
    "resource_id": "text",
    "method": "text",
    "request_id": "text",
    "client_id": "uuid",
    "project_id": "uuid",
    "diff": "jsonb",
    "cause_kind": "text",
    "cause_id": "text",
    "cause": "text",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Who changed what, and why.

    Attributes:
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

    actor_kind: Literal["user", "api_key", "system"]
    actor_id: UUID | None
    action: str
    resource_type: str
    resource_id: UUID | str
    method: str = ""
    request_id: str = ""
    client_id: UUID | None = None
    project_id: UUID | None = None
    diff: Mapping[str, Any] | None = None
    cause: Cause = BY_CALL


def insert_statement(first: int) -> str:
    """The statement that appends records; what `columns` makes of them are its parameters from number `first` on."""
    arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(_COLUMNS.values(), first))
    return f"INSERT INTO audit_log ({', '.join(_COLUMNS)}) SELECT * FROM unnest({arrays})"


_APPEND = insert_statement(1)


def columns(records: Sequence[Record]) -> list[list[Any]]:
    """Records, column by column."""
    rows = [
        (
            each.actor_kind,
            each.actor_id,
            each.action,
            each.resource_type,
            str(each.resource_id),
            each.method,
            each.request_id,
            each.client_id,
            each.project_id,
            dict(each.diff or {}),
            each.cause.kind,
            each.cause.id,
            each.cause.description,
        )
        for each in records
    ]
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in _COLUMNS]


async def append(db: Executor, *records: Record) -> None:
    """Appends records, in the transaction of the changes they tell of and after taking those changes' locks."""
    if records:
        await db.execute(_APPEND, *columns(records))
