# ruff: noqa: S608 - the statements are put together from constants of this package
"""Background work. The row is the truth; a queue only tells a worker to look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from storage.postgres.database import Executor, Transaction
from storage.postgres.ids import new_id


@dataclass(frozen=True, slots=True)
class Job:
    """A row of ``jobs``.

    Attributes:
        progress: What its handler last told, empty before.
        attempts: Tries begun since it was made or retried by hand.
        fence: Number of the present try among all there ever were. Whatever a worker writes names it.
        cancel_requested_at: Since when whoever works on it is asked to stop.
    """

    id: UUID
    type: str
    queue: str
    status: str
    priority: int
    client_id: UUID | None
    requested_by: UUID | None
    unique_key: str | None
    payload: dict[str, Any]
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    attempts: int
    max_attempts: int
    fence: int
    scheduled_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    cancel_requested_at: datetime | None
    revision: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """A job that is due, for its queue.

    Attributes:
        fence: Tries there were so far, so that a queue can tell a repeated delivery from one of the next try.
    """

    id: UUID
    queue: str
    type: str
    fence: int
    priority: int


_FIELDS = (
    "id", "type", "queue", "status", "priority", "client_id", "requested_by", "unique_key", "payload", "progress",
    "result", "error", "attempts", "max_attempts", "fence", "scheduled_at", "started_at", "completed_at",
    "cancel_requested_at", "revision", "created_at", "updated_at",
)  # fmt: skip
_COLUMNS = ", ".join(f"j.{name}" for name in _FIELDS)

# Adds a job, unless one with its key is waiting or running.
_ENQUEUE = f"""
INSERT INTO jobs AS j (id, type, queue, payload, client_id, requested_by, unique_key, priority, max_attempts,
  scheduled_at, backoff_base, backoff_cap)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + $10::interval, $11, $12)
ON CONFLICT (unique_key) WHERE status IN ('pending', 'processing') DO NOTHING RETURNING {_COLUMNS}"""

# The waiting or running job with a key.
_BY_KEY = f"SELECT {_COLUMNS} FROM jobs j WHERE j.unique_key = $1 AND j.status IN ('pending', 'processing')"

# One job.
_GET = f"SELECT {_COLUMNS} FROM jobs j WHERE j.id = $1"

# Jobs that are due and not on their queue, or were put there so long ago that the entry may be lost.
_TAKE_DUE = """
UPDATE jobs SET delivered_at = clock_timestamp() WHERE id IN (
  SELECT id FROM jobs
  WHERE status = 'pending' AND scheduled_at <= clock_timestamp()
    AND (delivered_at IS NULL OR delivered_at < clock_timestamp() - $1::interval)
  ORDER BY delivered_at NULLS FIRST, scheduled_at LIMIT $2 FOR UPDATE SKIP LOCKED)
RETURNING id, queue, type, fence, priority"""

# Begins a try of a waiting job that is due.
_CLAIM = f"""
WITH j AS (
  UPDATE jobs SET status = 'processing', attempts = attempts + 1, fence = fence + 1, lease_holder = $2,
    lease_expires_at = clock_timestamp() + $3::interval, started_at = clock_timestamp(), delivered_at = NULL,
    progress = '{{}}', error = NULL
  WHERE id = $1 AND status = 'pending' AND scheduled_at <= clock_timestamp() RETURNING *),
begun AS (
  INSERT INTO job_attempts (job_id, fence, attempt, holder) SELECT id, fence, attempts, lease_holder FROM j)
SELECT {_COLUMNS} FROM j"""

# Prolongs the lease of a try that still holds, and notes what it has told.
_HEARTBEAT = """
UPDATE jobs SET lease_expires_at = clock_timestamp() + $3::interval, progress = COALESCE($4, progress)
WHERE id = $1 AND fence = $2 AND status = 'processing' RETURNING cancel_requested_at IS NOT NULL"""

# Keeps a try from being taken over until the transaction ends.
_HOLD = "SELECT true FROM jobs WHERE id = $1 AND fence = $2 AND status = 'processing' FOR UPDATE"

# Ends a try well.
_COMPLETE = """
WITH j AS (
  UPDATE jobs SET status = 'completed', completed_at = clock_timestamp(), result = $3, error = NULL,
    lease_holder = NULL, lease_expires_at = NULL
  WHERE id = $1 AND fence = $2 AND status = 'processing' RETURNING id, fence)
UPDATE job_attempts a SET ended_at = clock_timestamp(), outcome = 'completed'
FROM j WHERE a.job_id = j.id AND a.fence = j.fence"""

# What becomes of a try that ended otherwise: cancelled if that was asked for, given up for good, or tried again.
_AFTERWARDS = """
    status = CASE WHEN j.cancel_requested_at IS NOT NULL THEN 'cancelled' WHEN ended.final THEN 'failed'
      ELSE 'pending' END,
    completed_at = CASE WHEN j.cancel_requested_at IS NOT NULL OR ended.final THEN clock_timestamp() END,
    scheduled_at = CASE WHEN j.cancel_requested_at IS NOT NULL OR ended.final THEN j.scheduled_at
      ELSE clock_timestamp() + job_pause(j.attempts, j.backoff_base, j.backoff_cap) END,
    lease_holder = NULL, lease_expires_at = NULL, delivered_at = NULL"""

# Ends a try that failed.
_FAIL = f"""
WITH ended AS (
  SELECT id, fence, $4 OR attempts >= max_attempts AS final FROM jobs
  WHERE id = $1 AND fence = $2 AND status = 'processing' FOR UPDATE),
done AS (
  UPDATE jobs j SET error = $3, {_AFTERWARDS} FROM ended WHERE j.id = ended.id RETURNING j.id, j.fence, j.status),
noted AS (
  UPDATE job_attempts a SET ended_at = clock_timestamp(), error = $3,
    outcome = CASE done.status WHEN 'cancelled' THEN 'cancelled' ELSE 'failed' END
  FROM done WHERE a.job_id = done.id AND a.fence = done.fence)
SELECT status FROM done"""

# Ends the tries whose workers have not been heard of.
_SWEEP = f"""
WITH ended AS (
  SELECT id, fence, attempts >= max_attempts AS final FROM jobs
  WHERE status = 'processing' AND lease_expires_at <= clock_timestamp()
  ORDER BY lease_expires_at LIMIT $1 FOR UPDATE SKIP LOCKED),
done AS (
  UPDATE jobs j SET error = 'the worker was lost', {_AFTERWARDS} FROM ended WHERE j.id = ended.id
  RETURNING j.id, j.fence, j.status)
UPDATE job_attempts a SET ended_at = clock_timestamp(), error = 'the worker was lost',
  outcome = CASE done.status WHEN 'cancelled' THEN 'cancelled' ELSE 'lost' END
FROM done WHERE a.job_id = done.id AND a.fence = done.fence"""

# Gives a try back that was not to blame, as if it had not been begun.
_RELEASE = """
WITH j AS (
  UPDATE jobs SET status = 'pending', attempts = attempts - 1, lease_holder = NULL, lease_expires_at = NULL,
    delivered_at = NULL
  WHERE id = $1 AND fence = $2 AND status = 'processing' RETURNING id, fence)
UPDATE job_attempts a SET ended_at = clock_timestamp(), outcome = 'released'
FROM j WHERE a.job_id = j.id AND a.fence = j.fence"""

# Ends a waiting job, or asks whoever works on it to stop.
_CANCEL = f"""
UPDATE jobs j SET cancel_requested_at = COALESCE(cancel_requested_at, clock_timestamp()),
  status = CASE status WHEN 'pending' THEN 'cancelled' ELSE status END,
  completed_at = CASE status WHEN 'pending' THEN clock_timestamp() END
WHERE j.id = $1 AND j.status IN ('pending', 'processing') RETURNING {_COLUMNS}"""

# Lets a job that was given up be tried again from the first attempt.
_RETRY = f"""
UPDATE jobs j SET status = 'pending', attempts = 0, scheduled_at = clock_timestamp(), completed_at = NULL,
  delivered_at = NULL, error = NULL
WHERE j.id = $1 AND j.status = 'failed' RETURNING {_COLUMNS}"""

# Moves a schedule on if its time has come. Of several processes the first moves it, the others find it moved.
_MOVE_SCHEDULE = """
INSERT INTO job_schedules AS s (name, next_at) VALUES ($1, clock_timestamp() + $2::interval)
ON CONFLICT (name) DO UPDATE SET next_at = clock_timestamp() + $2::interval
WHERE s.next_at <= clock_timestamp() OR s.next_at > clock_timestamp() + $2::interval
RETURNING true"""

# Forgets jobs that ended long ago, with their tries.
_PURGE_ENDED = """
WITH old AS (
  SELECT id FROM jobs WHERE completed_at < now() - $1::interval ORDER BY completed_at LIMIT $2 FOR UPDATE SKIP LOCKED),
tries AS (DELETE FROM job_attempts WHERE job_id IN (SELECT id FROM old))
DELETE FROM jobs WHERE id IN (SELECT id FROM old)"""


async def enqueue_internal(
    tx: Transaction,
    *,
    type: str,
    queue: str,
    payload: Mapping[str, Any],
    client_id: UUID | None = None,
    requested_by: UUID | None = None,
    unique_key: str | None = None,
    priority: int = 0,
    max_attempts: int = 3,
    delay: timedelta = timedelta(0),
    backoff_base: timedelta = timedelta(seconds=5),
    backoff_cap: timedelta = timedelta(minutes=15),
) -> Job:
    """Adds a job in the transaction of what causes it; nothing more is needed for it to be run.

    Args:
        tx: The transaction.
        type: What to do.
        queue: Whose workers are to do it.
        payload: What its handler needs to know; never a secret.
        client_id: The tenant it works for, if it works for one.
        requested_by: The user who wished it, if one did.
        unique_key: While a job with this key waits or runs, that one is the job.
        priority: Higher is sooner.
        max_attempts: Tries before it is given up.
        delay: How long to wait before the first one.
        backoff_base: Longest pause after the first failed try; doubled after each further one.
        backoff_cap: Longest pause after any.

    Returns:
        The new job, or the one that has the key.
    """
    while True:
        row = await tx.fetchrow(
            _ENQUEUE, new_id(), type, queue, dict(payload), client_id, requested_by, unique_key, priority,
            max_attempts, delay, backoff_base, backoff_cap,
        )  # fmt: skip
        # The one that had the key may have ended since.
        row = row or await tx.fetchrow(_BY_KEY, unique_key)
        if row is not None:
            return Job(*row)


async def get_internal(db: Executor, job_id: UUID) -> Job | None:
    """The job with this id."""
    row = await db.fetchrow(_GET, job_id)
    return None if row is None else Job(*row)


async def take_due_internal(db: Executor, redeliver_after: timedelta, limit: int) -> list[Delivery]:
    """Up to `limit` jobs that are to be put on their queues now, each for one caller.

    Args:
        db: Where to run it.
        redeliver_after: After this long a delivery that led to no claim is repeated.
        limit: The most to take.
    """
    return [Delivery(*row) for row in await db.fetch(_TAKE_DUE, redeliver_after, limit)]


async def claim_internal(db: Executor, job_id: UUID, holder: str, lease: timedelta) -> Job | None:
    """Begins a try; None when the job is not waiting, or not due: the delivery was a repetition, or too late."""
    row = await db.fetchrow(_CLAIM, job_id, holder, lease)
    return None if row is None else Job(*row)


async def heartbeat_internal(
    db: Executor, job_id: UUID, fence: int, lease: timedelta, progress: Mapping[str, Any] | None = None
) -> bool | None:
    """Prolongs a lease: whether the try is asked to stop, None when it is no longer the present one."""
    asked: bool | None = await db.fetchval(
        _HEARTBEAT, job_id, fence, lease, None if progress is None else dict(progress)
    )
    return asked


async def hold_internal(tx: Transaction, job_id: UUID, fence: int) -> bool:
    """Keeps the try the present one until the transaction ends; False when it is not any more."""
    return await tx.fetchval(_HOLD, job_id, fence) is not None


async def complete_internal(db: Executor, job_id: UUID, fence: int, result: Mapping[str, Any]) -> bool:
    """Ends a try well; False when it is no longer the present one, and nothing is changed."""
    return await db.execute(_COMPLETE, job_id, fence, dict(result)) == "UPDATE 1"


async def fail_internal(db: Executor, job_id: UUID, fence: int, error: str, *, final: bool = False) -> str | None:
    """Ends a try that failed, and decides what becomes of the job.

    Args:
        db: Where to run it.
        job_id: The job.
        fence: The try.
        error: Explanation for people; never a secret.
        final: Whether another try would fail as well.

    Returns:
        The job's status now: ``pending`` when it will be tried again, ``failed`` when it is given up, ``cancelled``
        when that was asked for; None when the try is no longer the present one, and nothing is changed.
    """
    status: str | None = await db.fetchval(_FAIL, job_id, fence, error, final)
    return status


async def release_internal(db: Executor, job_id: UUID, fence: int) -> bool:
    """Gives a try back uncounted, because its worker ends; False when it is no longer the present one."""
    return await db.execute(_RELEASE, job_id, fence) == "UPDATE 1"


async def sweep_internal(db: Executor, limit: int = 500) -> int:
    """Ends up to `limit` tries whose lease is over, and returns how many there were."""
    tag = await db.execute(_SWEEP, limit)
    return int(tag.removeprefix("UPDATE "))


async def cancel_internal(db: Executor, job_id: UUID) -> Job | None:
    """Cancels a waiting job at once, or asks for a running one to stop; None when it is neither."""
    row = await db.fetchrow(_CANCEL, job_id)
    return None if row is None else Job(*row)


async def retry_internal(db: Executor, job_id: UUID) -> Job | None:
    """Puts a job that was given up back, with all its attempts before it; None when it is not given up.

    Raises:
        Conflict: ``jobs_unique_key``: another job has taken its key since.
    """
    row = await db.fetchrow(_RETRY, job_id)
    return None if row is None else Job(*row)


async def move_schedule_internal(tx: Transaction, name: str, every: timedelta) -> bool:
    """Whether a schedule is due, for one caller in the whole cluster; make its job in the same transaction."""
    return await tx.fetchval(_MOVE_SCHEDULE, name, every) is not None


async def purge_ended_internal(db: Executor, older_than: timedelta, limit: int = 10_000) -> int:
    """Deletes up to `limit` jobs that ended longer ago than `older_than` and returns how many it deleted."""
    tag = await db.execute(_PURGE_ENDED, older_than, limit)
    return int(tag.removeprefix("DELETE "))
