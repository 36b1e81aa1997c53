# ruff: noqa: S608 - the statements are put together from constants of this package
"""Reading the record of changes, as a list and as a feed.

The feed goes by ``seq``. Numbers are given out in the order in which transactions write, not in which they commit, so a
lower one may appear later. `head` and `writers` tell how far the record is *settled*: read the head first, then the
writers. Whoever could still bring a number up to that head has inserted into the table by then, and holds a
RowExclusiveLock on it until it ends, which is after its rows can be seen. So when none of those writers is left, every
number up to the head has either appeared or never will. Transactions that write elsewhere, and reading ones such as a
backup, hold nothing back. Prepared transactions, which change their name, are not used by this service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, returned
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Change:
    """A row of ``audit_log``.

    Attributes:
        diff: Path of a field to ``[before, after]``, or to `storage.postgres.audit.REDACTED`.
    """

    seq: int
    at: datetime
    actor_kind: str
    actor_id: UUID | None
    method: str
    request_id: str
    client_id: UUID | None
    project_id: UUID | None
    resource_type: str
    resource_id: str
    action: str
    diff: dict[str, Any]
    cause_kind: str
    cause_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which changes are wanted; a condition that is None lets all pass.

    Attributes:
        readable_types: Kinds of resources the caller may read. Changes of the caller's own account come in any case.
        since: Only changes begun at this instant or later.
        before: Only changes begun earlier than this instant.
    """

    readable_types: Sequence[str] | None
    client_id: UUID | None = None
    project_id: UUID | None = None
    resource_types: Sequence[str] | None = None
    resource_id: str | None = None
    actor_kind: str | None = None
    actor_id: UUID | None = None
    actions: Sequence[str] | None = None
    since: datetime | None = None
    before: datetime | None = None

    @property
    def args(self) -> tuple[object, ...]:
        """The parameters that statements take after those of the scope, in this order."""
        return (
            self.readable_types, self.client_id, self.project_id, self.resource_types, self.resource_id,
            self.actor_kind, self.actor_id, self.actions, self.since, self.before,
        )  # fmt: skip


_COLUMNS = """a.seq, a.at, a.actor_kind, a.actor_id, a.method, a.request_id, a.client_id, a.project_id, a.resource_type,
  a.resource_id, a.action, a.diff, a.cause_kind, a.cause_id, a.cause"""

# Uncorrelated, so that PostgreSQL asks once per statement and not once per row.
_IN_SCOPE = f"""(
  {visibility.EVERYTHING}
  OR a.client_id IN (SELECT cl.id FROM clients cl WHERE {visibility.CLIENT})
  OR a.project_id IN (SELECT t.project_id FROM project_team t WHERE {visibility.TEAM}))"""

# The agency's own prompts are everybody's who may read prompts at all.
_SHARED = """
  a.client_id IS NULL AND a.resource_type IN ('prompt', 'prompt_version', 'prompt_label', 'prompt_experiment')"""

_SELECTED = f"""
  ((({_IN_SCOPE} OR {_SHARED}) AND ($4::text[] IS NULL OR a.resource_type = ANY ($4)))
    OR (a.client_id IS NULL AND a.resource_type = 'user' AND a.resource_id = $2::uuid::text))
  AND ($5::uuid IS NULL OR a.client_id = $5)
  AND ($6::uuid IS NULL OR a.project_id = $6)
  AND ($7::text[] IS NULL OR a.resource_type = ANY ($7))
  AND ($8::text IS NULL OR a.resource_id = $8)
  AND ($9::text IS NULL OR a.actor_kind = $9)
  AND ($10::uuid IS NULL OR a.actor_id = $10)
  AND ($11::text[] IS NULL OR a.action = ANY ($11))
  AND ($12::timestamptz IS NULL OR a.at >= $12)
  AND ($13::timestamptz IS NULL OR a.at < $13)"""

# One page, newest first.
_NEWEST = f"""
SELECT {_COLUMNS} FROM audit_log a
WHERE {_SELECTED} AND a.seq < $14 ORDER BY a.seq DESC LIMIT $15"""

# One page, oldest first.
_OLDEST = f"""
SELECT {_COLUMNS} FROM audit_log a
WHERE {_SELECTED} AND a.seq > $14 AND a.seq <= $16 ORDER BY a.seq LIMIT $15"""

# The highest number that can be seen, and up to where records may be gone.
_HEAD = "SELECT COALESCE((SELECT max(seq) FROM audit_log), 0), floor FROM change_feed"

# Open transactions that have inserted into the table, or are about to.
_WRITERS = """
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND relation = 'audit_log'::regclass
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""

_LAST = 2**63 - 1


async def newest(
    db: Executor, scope: Scope, selection: Selection, *, limit: int, before: int | None = None
) -> list[Change]:
    """Up to `limit` changes in scope, newest first, of those below the number `before`."""
    rows = await db.fetch(_NEWEST, *scope.args, *selection.args, _LAST if before is None else before, limit)
    return [Change(*row) for row in rows]


async def oldest(
    db: Executor, scope: Scope, selection: Selection, *, limit: int, after: int = 0, until: int = _LAST
) -> list[Change]:
    """Up to `limit` changes in scope, oldest first, of those above the number `after` and up to `until`."""
    rows = await db.fetch(_OLDEST, *scope.args, *selection.args, after, limit, until)
    return [Change(*row) for row in rows]


async def head(db: Executor) -> tuple[int, int]:
    """The highest number that can be seen, 0 if there is none, and the floor: records up to it may be gone."""
    top, floor = returned(await db.fetchrow(_HEAD))
    return top, floor


async def writers(db: Executor) -> frozenset[str]:
    """Open transactions that may have records which cannot be seen yet. A name never comes back once it is gone."""
    return frozenset(row[0] for row in await db.fetch(_WRITERS))
