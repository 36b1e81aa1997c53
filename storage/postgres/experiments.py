# ruff: noqa: S608 - the statements are put together from constants of this package
"""Experiments between versions of prompts. They change only while the prompt's row is held (see `prompts`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from storage.postgres.database import Executor, Transaction, returned
from storage.postgres.ids import new_id
from storage.postgres.prompts import SEEN, VISIBLE
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Experiment:
    """A row of ``prompt_experiments``, with the client of its prompt and its arms.

    Attributes:
        client_id: Whose own the prompt is; None for the agency's.
        max_acceptance_loss: A share of 1.
        status: ``running`` or ``stopped``.
        started_by: Who started it, if known.
        arm_ids: Its versions, in its order.
        versions: Their numbers.
        weights: Their weights.
    """

    id: UUID
    lineage_id: UUID
    client_id: UUID | None
    label: str
    control_version_id: UUID
    hypothesis: str
    min_sample_count: int
    max_acceptance_loss: float
    status: str
    started_by: UUID | None
    started_at: datetime
    stopped_at: datetime | None
    stop_reason: str
    promoted_version_id: UUID | None
    promoted_by: UUID | None
    revision: int
    arm_ids: list[UUID]
    versions: list[int]
    weights: list[int]


@dataclass(frozen=True, slots=True)
class Counts:
    """What people made of the answers of one version."""

    accepted: int = 0
    edited: int = 0
    rejected: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.accepted + self.edited + self.rejected


def _arms(column: str) -> str:
    return f"""ARRAY (SELECT {column} FROM prompt_experiment_arms a JOIN ai_prompts v ON v.id = a.version_id
    WHERE a.experiment_id = e.id ORDER BY a.position)"""


_COLUMNS = f"""e.id, e.lineage_id, l.client_id, e.label, e.control_version_id, e.hypothesis, e.min_sample_count,
  e.max_acceptance_loss, e.status, e.started_by, e.started_at, e.stopped_at, e.stop_reason, e.promoted_version_id,
  e.promoted_by, e.revision, {_arms("v.id")}, {_arms("v.version")}, {_arms("a.weight")}"""

_FROM = f"{SEEN} JOIN prompt_experiments e ON e.lineage_id = l.id"

# Adds an experiment that runs.
_CREATE = """
WITH made AS (
  INSERT INTO prompt_experiments (id, lineage_id, label, control_version_id, hypothesis, min_sample_count,
    max_acceptance_loss, started_by)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id)
INSERT INTO prompt_experiment_arms (experiment_id, version_id, position, weight)
SELECT made.id, arm.version_id, arm.number - 1, arm.weight
FROM made, unnest($9::uuid[], $10::int[]) WITH ORDINALITY AS arm (version_id, weight, number)"""

# One experiment.
_GET = f"SELECT {_COLUMNS} {_FROM} WHERE e.id = $4 AND {VISIBLE}"

# The experiment that runs under a label.
_RUNNING = f"SELECT {_COLUMNS} {_FROM} WHERE l.id = $4 AND e.label = $5 AND e.status = 'running' AND {VISIBLE}"

# One page of experiments, newest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} {_FROM}
WHERE {VISIBLE}
  AND ($4::uuid IS NULL OR e.id < $4)
  AND ($6::uuid IS NULL OR l.client_id = $6)
  AND ($7::uuid IS NULL OR l.id = $7)
  AND ($8::text[] IS NULL OR e.status = ANY ($8))
ORDER BY e.id DESC LIMIT $5"""

# The experiments that run with a version.
_WITH_VERSION = f"""
SELECT {_COLUMNS} {_FROM} JOIN prompt_experiment_arms w ON w.experiment_id = e.id
WHERE w.version_id = $4 AND e.status = 'running' AND {VISIBLE}"""

# Ends an experiment.
_STOP = f"""
UPDATE prompt_experiments e SET status = 'stopped', stopped_by = $5, stopped_at = now(), stop_reason = $6 {SEEN}
WHERE e.id = $4 AND l.id = e.lineage_id AND e.status = 'running' AND {VISIBLE}"""

# Notes what was promoted of an experiment that has ended.
_PROMOTE = f"""
UPDATE prompt_experiments e SET promoted_version_id = $5, promoted_by = $6, promoted_at = now() {SEEN}
WHERE e.id = $4 AND l.id = e.lineage_id AND {VISIBLE}"""

# Feedback by version and action.
_COUNTS = f"""
SELECT a.version_id, count(*) FILTER (WHERE f.user_action = 'accepted'),
  count(*) FILTER (WHERE f.user_action = 'edited'), count(*) FILTER (WHERE f.user_action = 'rejected')
{_FROM} JOIN prompt_experiment_arms a ON a.experiment_id = e.id
LEFT JOIN ai_feedback f ON f.experiment_id = e.id AND f.prompt_id = a.version_id
WHERE e.id = $4 AND {VISIBLE} GROUP BY a.version_id"""


async def create(
    tx: Transaction,
    scope: Scope,
    *,
    prompt_id: UUID,
    label: str,
    control_version_id: UUID,
    arm_ids: Sequence[UUID],
    weights: Sequence[int],
    hypothesis: str,
    min_sample_count: int,
    max_acceptance_loss: float,
    started_by: UUID | None,
) -> Experiment:
    """Adds an experiment that runs, with versions of a locked prompt.

    Args:
        tx: The transaction that holds the prompt.
        scope: What the caller may touch.
        prompt_id: The prompt.
        label: Name of the label under which it runs.
        control_version_id: What the label points to.
        arm_ids: Its versions.
        weights: Theirs.
        hypothesis: What is expected.
        min_sample_count: Judged answers of each version before one is promoted.
        max_acceptance_loss: How much less often one may be accepted, as a share of 1.
        started_by: Who, if known.

    Raises:
        Archived: The client is archived.
    """
    experiment_id = new_id()
    await tx.execute(
        _CREATE, experiment_id, prompt_id, label, control_version_id, hypothesis, min_sample_count,
        max_acceptance_loss, started_by, list(arm_ids), list(weights),
    )  # fmt: skip
    return Experiment(*returned(await tx.fetchrow(_GET, *scope.args, experiment_id)))


async def get(db: Executor, scope: Scope, experiment_id: UUID) -> Experiment | None:
    """The experiment with this id."""
    row = await db.fetchrow(_GET, *scope.args, experiment_id)
    return None if row is None else Experiment(*row)


async def running(db: Executor, scope: Scope, prompt_id: UUID, label: str) -> Experiment | None:
    """The experiment that runs under a label."""
    row = await db.fetchrow(_RUNNING, *scope.args, prompt_id, label)
    return None if row is None else Experiment(*row)


async def running_with(db: Executor, scope: Scope, version_id: UUID) -> list[Experiment]:
    """The experiments that run with a version."""
    return [Experiment(*row) for row in await db.fetch(_WITH_VERSION, *scope.args, version_id)]


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    client_id: UUID | None = None,
    prompt_id: UUID | None = None,
    statuses: Sequence[str] | None = None,
) -> list[Experiment]:
    """Experiments, newest first.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        limit: Most experiments.
        after: Only those started before this one.
        client_id: Only those with this client's own prompts.
        prompt_id: Only those with this prompt.
        statuses: Only those that are this.
    """
    rows = await db.fetch(_LIST_PAGE, *scope.args, after, limit, client_id, prompt_id, statuses)
    return [Experiment(*row) for row in rows]


async def stop(tx: Transaction, scope: Scope, experiment_id: UUID, *, by: UUID | None, reason: str) -> Experiment:
    """Ends an experiment of a locked prompt; one that has ended stays as it is.

    Raises:
        Archived: The client is archived.
    """
    await tx.execute(_STOP, *scope.args, experiment_id, by, reason)
    return Experiment(*returned(await tx.fetchrow(_GET, *scope.args, experiment_id)))


async def promote(tx: Transaction, scope: Scope, experiment_id: UUID, *, version_id: UUID, by: UUID) -> Experiment:
    """Notes which version of an experiment that has ended was promoted."""
    await tx.execute(_PROMOTE, *scope.args, experiment_id, version_id, by)
    return Experiment(*returned(await tx.fetchrow(_GET, *scope.args, experiment_id)))


async def counts(db: Executor, scope: Scope, experiment_id: UUID) -> dict[UUID, Counts]:
    """What people made of the answers of each version of an experiment."""
    rows = await db.fetch(_COUNTS, *scope.args, experiment_id)
    return {version_id: Counts(*found) for version_id, *found in rows}
