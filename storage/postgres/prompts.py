# ruff: noqa: S608 - the statements are put together from constants of this package
"""Prompts, their versions, and where their labels point.

Whoever changes anything of a prompt locks its row in ``prompt_lineages`` first (`get_for_update`, `add_version`), so
what is read afterwards stays until the transaction ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, Transaction, returned
from storage.postgres.ids import new_id
from storage.postgres.revisions import update_row
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row of ``prompt_lineages``.

    Attributes:
        client_id: Whose own it is; None for the agency's.
        latest_version: The last number given out.
        created_by: Who made it, if known.
    """

    id: UUID
    client_id: UUID | None
    name: str
    category: str
    latest_version: int
    created_by: UUID | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PromptVersion:
    """A row of ``ai_prompts``, with the client of its prompt.

    Attributes:
        template: Its text. Empty in lists, as are variables and metadata.
        variables: As in the table's comment.
        metadata: As in the table's comment.
    """

    id: UUID
    lineage_id: UUID
    client_id: UUID | None
    name: str
    category: str
    version: int
    status: str
    template: str
    variables: list[dict[str, Any]]
    metadata: dict[str, Any]
    change_note: str
    deprecation_reason: str
    created_by: UUID | None
    revision: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Label:
    """A row of ``prompt_labels``, with the number of the version that it points to."""

    id: UUID
    lineage_id: UUID
    name: str
    version_id: UUID
    version: int
    move_count: int
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Move:
    """A row of ``prompt_label_moves``, with the numbers of its versions.

    Attributes:
        kind: ``move``, ``rollback`` or ``promotion``.
        from_version: 0 for the first move of a label.
        undoes: Number of the move that a rollback takes back.
    """

    id: UUID
    label_id: UUID
    number: int
    kind: str
    from_version_id: UUID | None
    from_version: int
    to_version_id: UUID
    to_version: int
    undoes: int | None
    experiment_id: UUID | None
    reason: str
    moved_by: UUID | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Served:
    """What is served under a label.

    Attributes:
        version_id: What the label points to.
        experiment_id: The experiment that runs under it, if one does.
        arm_ids: Its versions, in its order.
        weights: Theirs.
    """

    version_id: UUID
    experiment_id: UUID | None
    arm_ids: list[UUID]
    weights: list[int]


SEEN = "FROM prompt_lineages l LEFT JOIN clients cl ON cl.id = l.client_id"
"""Prompts with their clients, for `VISIBLE`."""

VISIBLE = f"(l.client_id IS NULL OR {visibility.CLIENT})"
"""For a statement with `SEEN`: the agency's prompts are seen by all, a client's own by whoever reaches the client."""

_COLUMNS = "l.id, l.client_id, l.name, l.category, l.latest_version, l.created_by, l.created_at"

_VERSION_COLUMNS = """v.id, v.lineage_id, l.client_id, v.name, v.category, v.version, v.status, v.prompt_template,
  v.variables, v.metadata, v.change_note, v.deprecation_reason, v.created_by, v.revision, v.created_at"""

_VERSIONS = f"{SEEN} JOIN ai_prompts v ON v.lineage_id = l.id"

_LABEL_COLUMNS = "b.id, b.lineage_id, b.name, b.version_id, v.version, b.move_count, b.updated_at"

_MOVE_COLUMNS = """m.id, m.label_id, m.number, m.kind, m.from_version_id, COALESCE(f.version, 0), m.to_version_id,
  t.version, m.undoes, m.experiment_id, m.reason, m.moved_by, m.created_at"""

# Adds a prompt without versions.
_CREATE = f"""
INSERT INTO prompt_lineages AS l (id, client_id, name, category, created_by) VALUES ($1, $2, $3, $4, $5)
RETURNING {_COLUMNS}"""

# One prompt.
_GET = f"SELECT {_COLUMNS} {SEEN} WHERE l.id = $4 AND {VISIBLE}"
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF l"

# One page of prompts, by name.
_LIST_PAGE = f"""
SELECT {_COLUMNS} {SEEN}
WHERE {VISIBLE}
  AND ($4::uuid IS NULL OR (l.name, l.id) > ($10, $4))
  AND ($6::uuid IS NULL OR l.client_id = $6)
  AND (NOT $7 OR l.client_id IS NULL)
  AND ($8 = '' OR l.name = $8)
  AND ($9::text[] IS NULL OR l.category = ANY ($9))
ORDER BY l.name, l.id LIMIT $5"""

# Adds a version under the next number. Two at once wait for each other at the prompt's row.
_ADD_VERSION = f"""
WITH seen AS MATERIALIZED (SELECT l.id {SEEN} WHERE l.id = $4 AND {VISIBLE}),
numbered AS (
  UPDATE prompt_lineages l SET latest_version = l.latest_version + 1 FROM seen WHERE l.id = seen.id
  RETURNING l.id, l.client_id, l.name, l.category, l.latest_version),
added AS (
  INSERT INTO ai_prompts (id, lineage_id, name, category, version, prompt_template, variables, metadata, change_note,
    created_by)
  SELECT $5, id, name, category, latest_version, $6, $7, $8, $9, $10 FROM numbered RETURNING *)
SELECT {_VERSION_COLUMNS} FROM added v JOIN numbered l ON l.id = v.lineage_id"""

# The prompt of a version.
_OF_VERSION_FOR_UPDATE = f"SELECT {_COLUMNS} {_VERSIONS} WHERE v.id = $4 AND {VISIBLE} FOR UPDATE OF l"

# One version.
_GET_VERSION = f"SELECT {_VERSION_COLUMNS} {_VERSIONS} WHERE v.id = $4 AND {VISIBLE}"

# One page of a prompt's versions without what they say, newest first.
_LIST_VERSIONS = f"""
SELECT v.id, v.lineage_id, l.client_id, v.name, v.category, v.version, v.status, '', '[]'::jsonb, '{{}}'::jsonb,
  v.change_note, v.deprecation_reason, v.created_by, v.revision, v.created_at
{_VERSIONS}
WHERE l.id = $6 AND {VISIBLE}
  AND ($4::uuid IS NULL OR v.version < (SELECT version FROM ai_prompts WHERE id = $4))
  AND ($7::text[] IS NULL OR v.status = ANY ($7))
ORDER BY v.version DESC LIMIT $5"""

# Changes whether a version may be served, if it still has the expected revision.
_SET_STATUS = f"""
UPDATE ai_prompts v SET status = $6, deprecation_reason = $7 {SEEN}
WHERE v.id = $4 AND l.id = v.lineage_id AND v.revision = $5 AND {VISIBLE} RETURNING {_VERSION_COLUMNS}"""

# The present revision, to tell a stale version from a missing one.
_REVISION = f"SELECT v.revision {_VERSIONS} WHERE v.id = $4 AND {VISIBLE}"

# Labels of some prompts.
_LABELS = f"""
SELECT {_LABEL_COLUMNS} {SEEN} JOIN prompt_labels b ON b.lineage_id = l.id JOIN ai_prompts v ON v.id = b.version_id
WHERE l.id = ANY ($4::uuid[]) AND {VISIBLE} ORDER BY b.name"""

# Makes a label, with the move that tells of it.
_ADD_LABEL = """
WITH made AS (
  INSERT INTO prompt_labels (id, lineage_id, name, version_id) VALUES ($1, $2, $3, $4) RETURNING id)
INSERT INTO prompt_label_moves (id, label_id, number, kind, to_version_id, reason, moved_by)
SELECT $5, id, 1, 'move', $4, $6, $7 FROM made"""

# Moves a label that still points to where it did, with the move that tells of it.
_MOVE_LABEL = """
WITH moved AS (
  UPDATE prompt_labels SET version_id = $3, move_count = move_count + 1, updated_at = clock_timestamp()
  WHERE id = $1 AND version_id = $2 RETURNING id, move_count)
INSERT INTO prompt_label_moves (id, label_id, number, kind, from_version_id, to_version_id, undoes, experiment_id,
  reason, moved_by)
SELECT $4, id, move_count, $5, $2, $3, $6, $7, $8, $9 FROM moved RETURNING id"""

_MOVES = f"""{SEEN} JOIN prompt_labels b ON b.lineage_id = l.id JOIN prompt_label_moves m ON m.label_id = b.id
JOIN ai_prompts t ON t.id = m.to_version_id LEFT JOIN ai_prompts f ON f.id = m.from_version_id"""

# One move, which was just made.
_GET_MOVE = f"SELECT {_MOVE_COLUMNS} {_MOVES} WHERE m.id = $4 AND {VISIBLE}"

# One page of moves, newest first by the clock of the database: ids are made by servers, whose clocks differ.
_LIST_MOVES = f"""
SELECT {_MOVE_COLUMNS} {_MOVES}
WHERE l.id = $6 AND {VISIBLE}
  AND ($4::uuid IS NULL OR (m.created_at, m.id) < (SELECT created_at, id FROM prompt_label_moves WHERE id = $4))
  AND ($7 = '' OR b.name = $7)
ORDER BY m.created_at DESC, m.id DESC LIMIT $5"""

# The last move of a label that was not taken back, and no rollback itself.
_STANDING = f"""
SELECT {_MOVE_COLUMNS} {_MOVES}
WHERE m.label_id = $4 AND {VISIBLE} AND m.kind <> 'rollback' AND NOT EXISTS (
  SELECT FROM prompt_label_moves r WHERE r.label_id = m.label_id AND r.undoes = m.number)
ORDER BY m.number DESC LIMIT 1"""

# What is served under a label to a client, whose own prompt goes before the agency's, or to nobody in particular.
_SERVED = f"""
SELECT b.version_id, e.id,
  ARRAY (SELECT a.version_id FROM prompt_experiment_arms a WHERE a.experiment_id = e.id ORDER BY a.position),
  ARRAY (SELECT a.weight FROM prompt_experiment_arms a WHERE a.experiment_id = e.id ORDER BY a.position)
{SEEN} JOIN prompt_labels b ON b.lineage_id = l.id AND b.name = $5
LEFT JOIN prompt_experiments e ON e.lineage_id = l.id AND e.label = b.name AND e.status = 'running'
WHERE l.name = $4 AND (l.client_id IS NULL OR l.client_id = $6::uuid) AND {VISIBLE}
ORDER BY l.client_id IS NULL LIMIT 1"""


async def create(
    tx: Transaction,
    *,
    client_id: UUID | None,
    name: str,
    category: str,
    created_by: UUID | None,
    prompt_id: UUID | None = None,
) -> Prompt:
    """Adds a prompt without versions. The caller has checked that it may write for the client, or for the agency.

    Raises:
        Conflict: ``prompt_lineages_name_key``: there is one of this name.
        Archived: The client is archived.
    """
    return Prompt(*returned(await tx.fetchrow(_CREATE, prompt_id or new_id(), client_id, name, category, created_by)))


async def get(db: Executor, scope: Scope, prompt_id: UUID) -> Prompt | None:
    """The prompt with this id."""
    row = await db.fetchrow(_GET, *scope.args, prompt_id)
    return None if row is None else Prompt(*row)


async def get_for_update(tx: Transaction, scope: Scope, prompt_id: UUID) -> Prompt | None:
    """As `get`, and keeps everything of the prompt from changing until the transaction ends."""
    row = await tx.fetchrow(_GET_FOR_UPDATE, *scope.args, prompt_id)
    return None if row is None else Prompt(*row)


async def of_version_for_update(tx: Transaction, scope: Scope, version_id: UUID) -> Prompt | None:
    """As `get_for_update`, for the prompt of a version."""
    row = await tx.fetchrow(_OF_VERSION_FOR_UPDATE, *scope.args, version_id)
    return None if row is None else Prompt(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    after_name: str = "",
    client_id: UUID | None = None,
    agency_wide: bool = False,
    name: str = "",
    categories: Sequence[str] | None = None,
) -> list[Prompt]:
    """Prompts by name.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        limit: Most prompts.
        after: Only those that come after this one.
        after_name: Its name.
        client_id: Only this client's own.
        agency_wide: Only the agency's.
        name: Only those of this name, unless empty.
        categories: Only those for these purposes.
    """
    rows = await db.fetch(_LIST_PAGE, *scope.args, after, limit, client_id, agency_wide, name, categories, after_name)
    return [Prompt(*row) for row in rows]


async def add_version(
    tx: Transaction,
    scope: Scope,
    prompt_id: UUID,
    *,
    template: str,
    variables: Sequence[Mapping[str, Any]],
    metadata: Mapping[str, Any],
    change_note: str,
    created_by: UUID | None,
    version_id: UUID | None = None,
) -> PromptVersion | None:
    """Adds a version under the next number; None when the prompt is not in scope.

    Raises:
        Archived: The client is archived.
    """
    row = await tx.fetchrow(
        _ADD_VERSION, *scope.args, prompt_id, version_id or new_id(), template, list(variables), dict(metadata),
        change_note, created_by,
    )  # fmt: skip
    return None if row is None else PromptVersion(*row)


async def get_version(db: Executor, scope: Scope, version_id: UUID) -> PromptVersion | None:
    """The version with this id."""
    row = await db.fetchrow(_GET_VERSION, *scope.args, version_id)
    return None if row is None else PromptVersion(*row)


async def versions_page(
    db: Executor,
    scope: Scope,
    prompt_id: UUID,
    *,
    limit: int,
    after: UUID | None = None,
    statuses: Sequence[str] | None = None,
) -> list[PromptVersion]:
    """Versions of a prompt without what they say, newest first; none when the prompt is not in scope."""
    rows = await db.fetch(_LIST_VERSIONS, *scope.args, after, limit, prompt_id, statuses)
    return [PromptVersion(*row) for row in rows]


async def set_status(
    tx: Transaction, scope: Scope, version: PromptVersion, status: str, reason: str
) -> PromptVersion | None:
    """Says whether a version that was read may be served, and why not.

    Returns:
        The version as it is now, or None when there is none in scope.

    Raises:
        StaleRevision: It was changed since.
        Archived: The client is archived.
    """
    row = await update_row(tx, _SET_STATUS, _REVISION, scope, version.id, version.revision, status, reason)
    return None if row is None else PromptVersion(*row)


async def labels(db: Executor, scope: Scope, prompt_ids: Sequence[UUID]) -> list[Label]:
    """The labels of some prompts, by name."""
    return [Label(*row) for row in await db.fetch(_LABELS, *scope.args, list(prompt_ids))]


async def label(db: Executor, scope: Scope, prompt_id: UUID, name: str) -> Label | None:
    """The label of a prompt with this name."""
    return next((each for each in await labels(db, scope, [prompt_id]) if each.name == name), None)


async def move_label(
    tx: Transaction,
    scope: Scope,
    prompt_id: UUID,
    name: str,
    *,
    present: Label | None,
    to_version_id: UUID,
    reason: str,
    moved_by: UUID | None,
    kind: str = "move",
    undoes: int | None = None,
    experiment_id: UUID | None = None,
) -> tuple[Label, Move]:
    """Points a label of a locked prompt to a version of it, or makes it, and tells of that.

    Args:
        tx: The transaction that holds the prompt.
        scope: What the caller may touch.
        prompt_id: The prompt.
        name: Of the label.
        present: The label as it was read under the lock; None if there is none.
        to_version_id: The version.
        reason: Why.
        moved_by: Who, if known.
        kind: ``move``, ``rollback`` or ``promotion``.
        undoes: Number of the move that a rollback takes back.
        experiment_id: The experiment that a promotion follows.

    Returns:
        The label as it is now, and the move.

    Raises:
        Archived: The client is archived.
    """
    move_id = new_id()
    if present is None:
        await tx.execute(_ADD_LABEL, new_id(), prompt_id, name, to_version_id, move_id, reason, moved_by)
    else:
        returned(
            await tx.fetchrow(
                _MOVE_LABEL, present.id, present.version_id, to_version_id, move_id, kind, undoes, experiment_id,
                reason, moved_by,
            )
        )  # fmt: skip
    now = await label(tx, scope, prompt_id, name)
    assert now is not None
    return now, Move(*returned(await tx.fetchrow(_GET_MOVE, *scope.args, move_id)))


async def standing_move(db: Executor, scope: Scope, label_id: UUID) -> Move | None:
    """The move by which a label is where it is: the last one that was not taken back."""
    row = await db.fetchrow(_STANDING, *scope.args, label_id)
    return None if row is None else Move(*row)


async def moves_page(
    db: Executor, scope: Scope, prompt_id: UUID, *, limit: int, after: UUID | None = None, label: str = ""
) -> list[Move]:
    """Moves of the labels of a prompt, or of one of them, newest first; none when the prompt is not in scope."""
    rows = await db.fetch(_LIST_MOVES, *scope.args, after, limit, prompt_id, label)
    return [Move(*row) for row in rows]


async def served(db: Executor, scope: Scope, name: str, label: str, client_id: UUID | None) -> Served | None:
    """What is served under a label of the prompt with a name.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        name: Of the prompt.
        label: Name of the label.
        client_id: For whom; its own prompt goes before the agency's.
    """
    row = await db.fetchrow(_SERVED, *scope.args, name, label, client_id)
    return None if row is None else Served(*row)
