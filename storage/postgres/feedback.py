# ruff: noqa: S608 - the statements are put together from constants of this package
"""Feedback: what people did with the answers of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, NamedTuple
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, Transaction
from storage.scope import Scope

Dimension = Literal["prompt", "version", "label", "category", "client", "project", "experiment"]


class NewFeedback(NamedTuple):
    """Feedback to add; texts are None where there are none."""

    id: UUID
    client_id: UUID
    key: str
    content_hash: bytes
    project_id: UUID | None
    prompt_version_id: UUID
    label: str
    experiment_id: UUID | None
    user_id: UUID | None
    api_key_id: UUID | None
    artifact_type: str | None
    artifact_id: UUID | None
    action: str
    edit_percent: Decimal | None
    input_text: str | None
    output_text: str | None
    edited_text: str | None
    comment: str
    acted_at: datetime | None


class Stored(NamedTuple):
    """Feedback that is there."""

    id: UUID
    content_hash: bytes | None
    edit_percent: Decimal | None


class Place(NamedTuple):
    """What feedback says it is of. Many records share few of these."""

    client_id: UUID
    project_id: UUID | None
    prompt_version_id: UUID
    experiment_id: UUID | None
    user_id: UUID | None


class Standing(NamedTuple):
    """What of a place is there, and in scope."""

    client: bool
    project: bool
    prompt_version: bool
    experiment: bool
    user: bool


@dataclass(frozen=True, slots=True)
class Feedback:
    """A row of ``ai_feedback``, with what its prompt is.

    Attributes:
        edit_percent: How much of the answer was changed: 0 if accepted, None if rejected or not known.
        input_text: None where there is none, in lists, and once erased; likewise the other texts.
    """

    id: UUID
    key: str
    client_id: UUID
    project_id: UUID | None
    user_id: UUID | None
    user_pseudonym: UUID | None
    api_key_id: UUID | None
    artifact_type: str | None
    artifact_id: UUID | None
    prompt_version_id: UUID
    prompt_id: UUID
    prompt_name: str
    prompt_version: int
    category: str
    label: str
    experiment_id: UUID | None
    action: str
    edit_percent: Decimal | None
    comment: str
    acted_at: datetime
    created_at: datetime
    input_text: str | None
    output_text: str | None
    edited_text: str | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which feedback is meant; a condition that is None lets all pass.

    Attributes:
        since: First instant of the decision.
        before: First instant after it.
    """

    client_ids: Sequence[UUID] | None = None
    project_id: UUID | None = None
    user_id: UUID | None = None
    prompt_id: UUID | None = None
    prompt_version_id: UUID | None = None
    categories: Sequence[str] | None = None
    label: str | None = None
    experiment_id: UUID | None = None
    actions: Sequence[str] | None = None
    artifact_id: UUID | None = None
    since: datetime | None = None
    before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What people did with the answers of a group, in all or in one bucket of time.

    Attributes:
        is_total: All groups together; nothing that groups are made by is set.
        bucket: Number of the bucket, from 0; None in all.
        measured: Answers taken that are known to be changed by how much. The figures below are of these.
        p50: Median by nearest rank; `p90` likewise.
    """

    is_total: bool
    bucket: int | None
    prompt_id: UUID | None
    prompt_version_id: UUID | None
    label: str | None
    category: str | None
    client_id: UUID | None
    project_id: UUID | None
    experiment_id: UUID | None
    count: int
    accepted: int
    edited: int
    rejected: int
    measured: int
    mean: Decimal | None
    p50: Decimal | None
    p90: Decimal | None


@dataclass(frozen=True, slots=True)
class PromptName:
    """What a version of a prompt is called."""

    prompt_id: UUID
    name: str
    version: int


@dataclass(frozen=True, slots=True)
class Example:
    """An answer that a person took: as it was, or as the person changed it.

    Attributes:
        id: Id of the feedback.
        lineage_id: The prompt.
        prompt_version_id: The version of it that answered.
        text: What was taken.
        created_at: When the feedback was recorded.
    """

    id: UUID
    client_id: UUID
    project_id: UUID | None
    category: str
    lineage_id: UUID
    prompt_version_id: UUID
    text: str
    created_at: datetime


_TYPES = {
    "id": "uuid",
    "client_id": "uuid",
    "key": "text",
    "content_hash": "bytea",
    "project_id": "uuid",
    "prompt_id": "uuid",
    "label": "text",
    "experiment_id": "uuid",
    "user_id": "uuid",
    "api_key_id": "uuid",
    "artifact_type": "text",
    "artifact_id": "uuid",
    "user_action": "text",
    "edit_distance": "numeric",
    "input_data": "text",
    "output_data": "text",
    "edited_output": "text",
    "feedback_text": "text",
    "acted_at": "timestamptz",
}
COLUMNS = tuple(_TYPES)
"""The columns of `NewFeedback`, in its order."""

_NEW = ", ".join(COLUMNS)
_ARRAYS = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(_TYPES.values(), 1))
_GIVEN = ", ".join("COALESCE(n.acted_at, now())" if name == "acted_at" else f"n.{name}" for name in _TYPES)

# Adds feedback whose keys are new, of clients that are not archived. Many rows share few clients: without the offset,
# the function that looks at a client would be called for each row.
_ADD = f"""
WITH n AS MATERIALIZED (SELECT * FROM unnest({_ARRAYS}) AS n ({_NEW})),
  open AS MATERIALIZED (
    SELECT c.client_id FROM (SELECT DISTINCT client_id FROM n OFFSET 0) c WHERE NOT is_client_archived(c.client_id))
INSERT INTO ai_feedback ({_NEW})
SELECT {_GIVEN} FROM n WHERE n.client_id IN (SELECT client_id FROM open)
ON CONFLICT ON CONSTRAINT ai_feedback_key DO NOTHING RETURNING id"""

# Feedback by clients and keys.
_BY_KEYS = """
SELECT f.client_id, f.key, f.id, f.content_hash, f.edit_distance
FROM unnest($1::uuid[], $2::text[]) AS k (client_id, key)
JOIN ai_feedback f ON f.client_id = k.client_id AND f.key = k.key"""

# What there is of numbered places. A person must see the client or the project, whatever the right.
_STANDINGS = f"""
SELECT w.number, cl.id IS NOT NULL, p.id IS NOT NULL OR w.project_id IS NULL,
  EXISTS (
    SELECT FROM ai_prompts v JOIN prompt_lineages l ON l.id = v.lineage_id
    WHERE v.id = w.prompt_id AND (l.client_id IS NULL OR l.client_id = ANY (cl.path))),
  w.experiment_id IS NULL OR EXISTS (
    SELECT FROM prompt_experiment_arms a WHERE a.experiment_id = w.experiment_id AND a.version_id = w.prompt_id),
  w.user_id IS NULL OR EXISTS (
    SELECT FROM users u WHERE u.id = w.user_id AND u.status <> 'deleted' AND (
      u.role = 'admin'
      OR EXISTS (SELECT FROM client_memberships m WHERE m.user_id = u.id AND m.client_id = ANY (cl.path))
      OR EXISTS (SELECT FROM project_team t WHERE t.user_id = u.id AND t.project_id = p.id)))
FROM unnest($4::int[], $5::uuid[], $6::uuid[], $7::uuid[], $8::uuid[], $9::uuid[])
  AS w (number, client_id, project_id, prompt_id, experiment_id, user_id)
LEFT JOIN projects p ON p.id = w.project_id AND p.client_id = w.client_id
LEFT JOIN clients cl ON cl.id = w.client_id AND {visibility.project("p.id")}"""

_COLUMNS = """f.id, f.key, f.client_id, f.project_id, f.user_id, f.user_pseudonym, f.api_key_id, f.artifact_type,
  f.artifact_id, f.prompt_id, v.lineage_id, v.name, v.version, v.category, f.label, f.experiment_id, f.user_action,
  f.edit_distance, f.feedback_text, f.acted_at, f.created_at"""

_FROM = "FROM ai_feedback f JOIN clients cl ON cl.id = f.client_id JOIN ai_prompts v ON v.id = f.prompt_id"

_VISIBLE = visibility.project("f.project_id")

# What a `Selection` says, from parameter 4 on.
_SELECTED = """
  ($4::uuid[] IS NULL OR f.client_id = ANY ($4))
  AND ($5::uuid IS NULL OR f.project_id = $5)
  AND ($6::uuid IS NULL OR f.user_id = $6)
  AND ($7::uuid IS NULL OR v.lineage_id = $7)
  AND ($8::uuid IS NULL OR f.prompt_id = $8)
  AND ($9::text[] IS NULL OR v.category = ANY ($9))
  AND ($10::text IS NULL OR f.label = $10)
  AND ($11::uuid IS NULL OR f.experiment_id = $11)
  AND ($12::text[] IS NULL OR f.user_action = ANY ($12))
  AND ($13::uuid IS NULL OR f.artifact_id = $13)
  AND ($14::timestamptz IS NULL OR f.acted_at >= $14)
  AND ($15::timestamptz IS NULL OR f.acted_at < $15)"""

# One feedback with its texts.
_GET = f"SELECT {_COLUMNS}, f.input_data, f.output_data, f.edited_output {_FROM} WHERE f.id = $4 AND {_VISIBLE}"

# One page of feedback without texts, what was recorded last first.
_LIST_PAGE = f"""
SELECT {_COLUMNS}, NULL, NULL, NULL {_FROM}
WHERE {_VISIBLE} AND {_SELECTED} AND ($16::uuid IS NULL OR f.id < $16)
ORDER BY f.id DESC LIMIT $17"""

# What people did, by the dimensions named in parameter 16 and in all, each over the whole time and in the buckets whose
# first instants are parameter 17, if there are any. Groups with most feedback come first.
_FIGURES = f"""
WITH f AS MATERIALIZED (
  SELECT
    CASE WHEN 'prompt' = ANY ($16::text[]) THEN v.lineage_id END AS prompt,
    CASE WHEN 'version' = ANY ($16) THEN f.prompt_id END AS version,
    CASE WHEN 'label' = ANY ($16) THEN f.label END AS label,
    CASE WHEN 'category' = ANY ($16) THEN v.category END AS category,
    CASE WHEN 'client' = ANY ($16) THEN f.client_id END AS client,
    CASE WHEN 'project' = ANY ($16) THEN f.project_id END AS project,
    CASE WHEN 'experiment' = ANY ($16) THEN f.experiment_id END AS experiment,
    width_bucket(f.acted_at, $17::timestamptz[]) - 1 AS bucket, f.user_action, f.edit_distance
  {_FROM} WHERE {_VISIBLE} AND {_SELECTED}),
grouped AS (
  SELECT GROUPING(prompt) = 1 AS is_total, GROUPING(bucket) = 1 AS is_whole, bucket,
    prompt, version, label, category, client, project, experiment,
    count(*) AS count, count(*) FILTER (WHERE user_action = 'accepted') AS accepted,
    count(*) FILTER (WHERE user_action = 'edited') AS edited,
    count(*) FILTER (WHERE user_action = 'rejected') AS rejected,
    count(edit_distance) AS measured, avg(edit_distance) AS mean,
    percentile_disc(ARRAY[0.5, 0.9]) WITHIN GROUP (ORDER BY edit_distance) AS ranks
  FROM f GROUP BY GROUPING SETS (
    (prompt, version, label, category, client, project, experiment),
    (prompt, version, label, category, client, project, experiment, bucket), (), (bucket)))
SELECT is_total, CASE WHEN NOT is_whole THEN bucket END, prompt, version, label, category, client, project, experiment,
  count, accepted, edited, rejected, measured, mean, ranks[1], ranks[2]
FROM grouped WHERE is_whole OR cardinality($17) > 0
ORDER BY is_total DESC, is_whole DESC, count DESC, prompt, version, label, category, client, project, experiment, bucket
LIMIT $18"""

# What versions of prompts are called, and what prompts are, by their newest version.
_NAMES = """
SELECT v.id, v.lineage_id, v.name, v.version FROM ai_prompts v WHERE v.id = ANY ($1::uuid[])
UNION ALL
SELECT l.id, l.id, l.name, 0 FROM prompt_lineages l WHERE l.id = ANY ($2::uuid[])"""

# Puts a pseudonym into the place of a person, another one in each client's feedback, and takes what the person said.
_ERASE_PERSON = """
WITH lots AS MATERIALIZED (
  SELECT c.client_id, gen_random_uuid() AS pseudonym
  FROM (SELECT DISTINCT client_id FROM ai_feedback WHERE user_id = $1) c)
UPDATE ai_feedback f SET user_id = NULL, user_pseudonym = lots.pseudonym, feedback_text = '', content_hash = NULL
FROM lots WHERE f.user_id = $1 AND f.client_id = lots.client_id"""

_EXAMPLE = """f.id, f.client_id, f.project_id, v.category, v.lineage_id, f.prompt_id,
  COALESCE(f.edited_output, f.output_data), f.created_at"""

_TAKEN = """(f.user_action = 'accepted' AND f.output_data IS NOT NULL
  OR f.user_action = 'edited' AND f.edited_output IS NOT NULL)"""

# Examples in scope by their ids.
_EXAMPLES = f"SELECT {_EXAMPLE} {_FROM} WHERE f.id = ANY ($4::uuid[]) AND {_TAKEN} AND {_VISIBLE}"

# Examples by their ids, whoever asks; none of clients that are gone.
_EXAMPLES_INTERNAL = f"SELECT {_EXAMPLE} {_FROM} WHERE f.id = ANY ($1::uuid[]) AND {_TAKEN} AND cl.purged_at IS NULL"

# Some examples in the order of their ids.
_EXAMPLES_AFTER = f"""
SELECT {_EXAMPLE} {_FROM}
WHERE {_TAKEN} AND cl.purged_at IS NULL AND ($1::uuid IS NULL OR f.id > $1) ORDER BY f.id LIMIT $2"""


async def standings(db: Executor, scope: Scope, places: Sequence[Place]) -> list[Standing]:
    """What of each place is there and in scope: a client, or a project of it that the caller is on the team of.

    A version must be of a prompt of the agency's, the client's or somebody's above it, and an arm of the experiment;
    the person must see the client or the project.
    """
    columns = [list(column) for column in zip(*places, strict=True)] if places else [[]] * 5
    rows = await db.fetch(_STANDINGS, *scope.args, list(range(len(places))), *columns)
    found = {row[0]: Standing(*row[1:]) for row in rows}
    return [found[number] for number in range(len(places))]


async def add_internal(tx: Transaction, rows: Sequence[NewFeedback]) -> dict[UUID, Stored | None]:
    """Adds feedback, all by one statement.

    Args:
        tx: The transaction.
        rows: Feedback whose places the callers were found to reach.

    Returns:
        For each row that was not added, by its id: the feedback that has its key already; None if its client is
        archived.
    """
    added = {row[0] for row in await tx.fetch(_ADD, *(list(column) for column in zip(*rows, strict=True)))}
    left = [row for row in rows if row.id not in added]
    if not left:
        return {}
    there = await tx.fetch(_BY_KEYS, [row.client_id for row in left], [row.key for row in left])
    by_key = {(row[0], row[1]): Stored(*row[2:]) for row in there}
    return {row.id: by_key.get((row.client_id, row.key)) for row in left}


async def get(db: Executor, scope: Scope, feedback_id: UUID) -> Feedback | None:
    """The feedback with this id, with its texts."""
    row = await db.fetchrow(_GET, *scope.args, feedback_id)
    return None if row is None else Feedback(*row)


async def list_page(
    db: Executor, scope: Scope, selection: Selection, *, limit: int, after: UUID | None = None
) -> list[Feedback]:
    """Up to `limit` feedback without texts, what was recorded last first, recorded before `after`."""
    rows = await db.fetch(_LIST_PAGE, *scope.args, *_conditions(selection), after, limit)
    return [Feedback(*row) for row in rows]


async def figures(
    db: Executor,
    scope: Scope,
    selection: Selection,
    *,
    dimensions: Sequence[Dimension],
    buckets: Sequence[datetime] = (),
    limit: int,
) -> list[Figures]:
    """What people did with answers: all groups together first, then each group, those with most feedback first.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        selection: Which feedback counts; with buckets, none decided before the first of them.
        dimensions: What makes a group.
        buckets: First instants of the parts of time that are counted as well, in order; those without feedback are left
            out of the answer. Rows of buckets come after all others.
        limit: Most rows.
    """
    rows = await db.fetch(_FIGURES, *scope.args, *_conditions(selection), list(dimensions), list(buckets), limit)
    return [Figures(*row) for row in rows]


async def prompt_names_internal(
    db: Executor, version_ids: Sequence[UUID], prompt_ids: Sequence[UUID]
) -> dict[UUID, PromptName]:
    """What versions and prompts are called, by their ids. The caller has seen feedback on them."""
    rows = await db.fetch(_NAMES, list(version_ids), list(prompt_ids))
    return {row[0]: PromptName(*row[1:]) for row in rows}


async def erase_person_internal(tx: Transaction, user_id: UUID) -> None:
    """Takes out of all feedback who the person was, and what the person said, in the transaction of the deletion."""
    await tx.execute(_ERASE_PERSON, user_id)


async def examples(db: Executor, scope: Scope, feedback_ids: Sequence[UUID]) -> list[Example]:
    """Those of the feedback in scope that are answers which people took, in no order."""
    return [Example(*row) for row in await db.fetch(_EXAMPLES, *scope.args, list(feedback_ids))]


async def examples_internal(db: Executor, feedback_ids: Sequence[UUID]) -> list[Example]:
    """Those of the feedback that are answers which people took, in no order; for the service's own work on them."""
    return [Example(*row) for row in await db.fetch(_EXAMPLES_INTERNAL, list(feedback_ids))]


async def examples_after_internal(db: Executor, after: UUID | None, limit: int) -> list[Example]:
    """Up to `limit` answers that people took, in the order of their ids, after the id `after`.

    For whoever looks at all of them. A row whose transaction took long may appear behind an id that was passed already.
    """
    return [Example(*row) for row in await db.fetch(_EXAMPLES_AFTER, after, limit)]


def _conditions(selection: Selection) -> tuple[object, ...]:
    return astuple(selection)
