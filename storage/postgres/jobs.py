# ruff: noqa: S608 - the statements are put together from constants of this package
"""Background work. The row is the truth; a queue only tells a worker to look at it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, Transaction, returned
from storage.postgres.ids import new_id
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Job:
    """A row of ``jobs``.

    Attributes:
        trace_id: The request that caused it, if one did.
        progress: What its handler last told, empty before.
        attempts: Tries begun since it was made or retried by hand.
        fence: Number of the present try among all there ever were. Whatever a worker writes names it.
        lease_holder: Who works on it now.
        cancel_requested_at: Since when whoever works on it is asked to stop.
        throttle_key: Of the jobs with one key, at most `throttle_limit` run at a time.
        hold_key: It does not begin while this key is held back.
        held_because: Why its key is held back, if it is; only `get` and `list_page` look.
    """

    id: UUID
    type: str
    queue: str
    status: str
    priority: int
    client_id: UUID | None
    requested_by: UUID | None
    unique_key: str | None
    trace_id: str
    payload: dict[str, Any]
    progress: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    attempts: int
    max_attempts: int
    fence: int
    lease_holder: str | None
    lease_expires_at: datetime | None
    scheduled_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    cancel_requested_at: datetime | None
    throttle_key: str | None
    throttle_limit: int | None
    hold_key: str | None
    revision: int
    created_at: datetime
    updated_at: datetime
    held_because: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A try that has ended.

    Attributes:
        fence: Its number among all tries of the job.
        attempt: Its number since the job was made or retried by hand.
        outcome: ``completed``, ``failed``, ``cancelled``, ``lost`` (its worker was) or ``released`` (uncounted).
    """

    fence: int
    attempt: int
    holder: str
    started_at: datetime
    ended_at: datetime
    outcome: str
    error: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A row of ``job_queues``, and how much waits there.

    Attributes:
        concurrency: Most jobs at a time in the whole cluster; None for no limit but the workers' own.
        due: Jobs that could run now, and those that are held back or throttled.
        later: Jobs whose time has not come.
        running: Jobs somebody works on.
        failed: Jobs that were given up: the dead letters.
        oldest_due_at: Since when the oldest due job waits.
    """

    id: UUID
    name: str
    concurrency: int | None
    paused_at: datetime | None
    pause_reason: str
    revision: int
    updated_at: datetime
    due: int = 0
    later: int = 0
    running: int = 0
    failed: int = 0
    oldest_due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A job that is due, for its queue.

    Attributes:
        number: Tells this delivery of the job from others.
        before: Number of the delivery that led to nothing and is repeated by this one; None for a first one.
    """

    id: UUID
    queue: str
    type: str
    priority: int
    number: int
    before: int | None


_FIELDS = (
    "id", "type", "queue", "status", "priority", "client_id", "requested_by", "unique_key", "trace_id", "payload",
    "progress", "result", "error", "attempts", "max_attempts", "fence", "lease_holder", "lease_expires_at",
    "scheduled_at", "started_at", "completed_at", "cancel_requested_at", "throttle_key", "throttle_limit", "hold_key",
    "revision", "created_at", "updated_at",
)  # fmt: skip
_COLUMNS = ", ".join(f"j.{name}" for name in _FIELDS)
_SEEN = f"{_COLUMNS}, COALESCE((SELECT h.reason FROM job_holds h WHERE h.hold_key = j.hold_key), '')"
_QUEUE_COLUMNS = "q.id, q.name, q.concurrency, q.paused_at, q.pause_reason, q.revision, q.updated_at"

# For a job `j` and its client `cl`: the caller may know of it. What belongs to no tenant is for operators.
_VISIBLE = f"CASE WHEN j.client_id IS NULL THEN $4::boolean ELSE {visibility.CLIENT} END"

# For a job `j` and its queue `q`: nothing but limits keeps it from beginning.
_MAY_BEGIN = """j.status = 'pending' AND j.scheduled_at <= clock_timestamp() AND q.paused_at IS NULL
    AND NOT EXISTS (SELECT FROM job_holds h WHERE h.hold_key = j.hold_key)"""

# Adds a job, unless one with its key is waiting or running.
_ENQUEUE = f"""
INSERT INTO jobs AS j (id, type, queue, payload, client_id, requested_by, unique_key, priority, max_attempts,
  scheduled_at, backoff_base, backoff_cap, throttle_key, throttle_limit, hold_key, trace_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + $10::interval, $11, $12, $13, $14, $15, $16)
ON CONFLICT (unique_key) WHERE status IN ('pending', 'processing') DO NOTHING RETURNING {_COLUMNS}"""

# The waiting or running job with a key.
_BY_KEY = f"SELECT {_COLUMNS} FROM jobs j WHERE j.unique_key = $1 AND j.status IN ('pending', 'processing')"

# One job, whoever asks.
_GET_INTERNAL = f"SELECT {_COLUMNS} FROM jobs j WHERE j.id = $1"

# One job.
_GET = f"SELECT {_SEEN} FROM jobs j LEFT JOIN clients cl ON cl.id = j.client_id WHERE j.id = $5 AND {_VISIBLE}"

# One job, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF j"

# One page of jobs, newest first.
_LIST_PAGE = f"""
SELECT {_SEEN} FROM jobs j LEFT JOIN clients cl ON cl.id = j.client_id
WHERE {_VISIBLE}
  AND ($5::uuid IS NULL OR j.id < $5)
  AND ($7::uuid IS NULL OR j.client_id = $7)
  AND ($8::text[] IS NULL OR j.type = ANY ($8))
  AND ($9::text[] IS NULL OR j.queue = ANY ($9))
  AND ($10::text[] IS NULL OR j.status = ANY ($10))
  AND ($11::timestamptz IS NULL OR j.created_at >= $11)
  AND ($12::timestamptz IS NULL OR j.created_at < $12)
  AND ($13::uuid IS NULL OR j.requested_by = $13)
ORDER BY j.id DESC LIMIT $6"""

# The ended tries of a job, newest first.
_ATTEMPTS = """
SELECT fence, attempt, holder, started_at, ended_at, outcome, error FROM job_attempts
WHERE job_id = $1 ORDER BY fence DESC LIMIT $2"""

# What changes of a job while somebody watches it.
_MARKS = "SELECT id, revision, progress FROM jobs WHERE id = ANY ($1)"

# Jobs that are due and not on their queue, or were put there so long ago that the entry may be lost. A paused queue and
# a full limit have none: what cannot begin would only go to the queue and back.
_TAKE_DUE = f"""
WITH open AS (
  SELECT q.*, CASE WHEN q.concurrency IS NULL THEN $2 ELSE LEAST($2, q.concurrency
    - (SELECT count(*) FROM jobs r WHERE r.queue = q.name AND r.status = 'processing')
    - (SELECT count(*) FROM jobs d WHERE d.queue = q.name AND d.status = 'pending' AND d.delivered_at IS NOT NULL))
    END AS free
  FROM job_queues q WHERE q.paused_at IS NULL),
throttled AS (
  SELECT t.throttle_key, min(t.throttle_limit)
    - (SELECT count(*) FROM jobs r WHERE r.throttle_key = t.throttle_key AND r.status = 'processing')
    - (SELECT count(*) FROM jobs d
       WHERE d.throttle_key = t.throttle_key AND d.status = 'pending' AND d.delivered_at IS NOT NULL) AS free
  FROM jobs t
  WHERE t.throttle_key IS NOT NULL AND t.status = 'pending' AND t.delivered_at IS NULL
    AND t.scheduled_at <= clock_timestamp()
  GROUP BY t.throttle_key),
found AS (
  SELECT fresh.id FROM open CROSS JOIN LATERAL (
    SELECT j.id FROM jobs j JOIN job_queues q ON q.name = j.queue
    WHERE j.queue = open.name AND j.delivered_at IS NULL AND j.throttle_key IS NULL AND {_MAY_BEGIN}
    ORDER BY j.priority DESC, j.scheduled_at LIMIT GREATEST(open.free, 0)) fresh
  UNION ALL
  SELECT fresh.id FROM throttled CROSS JOIN LATERAL (
    SELECT j.id FROM jobs j JOIN open q ON q.name = j.queue
    WHERE j.throttle_key = throttled.throttle_key AND j.delivered_at IS NULL AND q.free > 0 AND {_MAY_BEGIN}
    ORDER BY j.priority DESC, j.scheduled_at LIMIT GREATEST(throttled.free, 0)) fresh
  UNION ALL
  SELECT stale.id FROM open CROSS JOIN LATERAL (
    SELECT j.id FROM jobs j JOIN job_queues q ON q.name = j.queue
    WHERE j.queue = open.name AND j.delivered_at < clock_timestamp() - $1::interval AND {_MAY_BEGIN}
    ORDER BY j.delivered_at LIMIT $2) stale),
taken AS (
  SELECT id, delivered_at AS before FROM jobs
  WHERE id IN (SELECT id FROM found LIMIT $2) AND status = 'pending'
    AND (delivered_at IS NULL OR delivered_at < clock_timestamp() - $1::interval)
  FOR UPDATE SKIP LOCKED)
UPDATE jobs j SET delivered_at = clock_timestamp() FROM taken WHERE j.id = taken.id
RETURNING j.id, j.queue, j.type, j.priority, (extract(epoch FROM j.delivered_at) * 1000000)::bigint,
  (extract(epoch FROM taken.before) * 1000000)::bigint"""

# Makes waiting jobs, chosen by `wanted`, running ones.
_BEGIN = f"""
UPDATE jobs j SET status = 'processing', attempts = attempts + 1, fence = fence + 1, lease_holder = $2,
  lease_expires_at = clock_timestamp() + $3::interval, started_at = clock_timestamp(), delivered_at = NULL,
  progress = '{{}}', error = NULL
FROM wanted WHERE j.id = wanted.id RETURNING {_COLUMNS}"""

# Begins tries of jobs that no limit concerns.
_CLAIM = f"""
WITH wanted AS (
  SELECT j.id FROM jobs j JOIN job_queues q ON q.name = j.queue
  WHERE j.id = ANY ($1) AND {_MAY_BEGIN} AND q.concurrency IS NULL AND j.throttle_key IS NULL
  ORDER BY j.id FOR UPDATE OF j)
{_BEGIN}"""

# What limits jobs that could otherwise begin, most urgent first.
_LIMITS = f"""
SELECT j.id, CASE WHEN q.concurrency IS NOT NULL THEN 'queue ' || q.name END, 'throttle ' || j.throttle_key
FROM jobs j JOIN job_queues q ON q.name = j.queue
WHERE j.id = ANY ($1) AND {_MAY_BEGIN} ORDER BY j.priority DESC, j.scheduled_at"""

# Has whoever counts what runs under these limits wait for the others; in one order, so that nobody waits in a circle.
_LOCK_LIMITS = """
SELECT pg_advisory_xact_lock(k) FROM (
  SELECT DISTINCT hashtextextended(name, 0) AS k FROM unnest($1::text[]) AS name ORDER BY 1 OFFSET 0) locks"""

# Begins a try of a job if its limits leave room for it.
_CLAIM_LIMITED = f"""
WITH wanted AS (
  SELECT j.id FROM jobs j JOIN job_queues q ON q.name = j.queue
  WHERE j.id = $1 AND {_MAY_BEGIN}
    AND (q.concurrency IS NULL
      OR q.concurrency > (SELECT count(*) FROM jobs r WHERE r.queue = j.queue AND r.status = 'processing'))
    AND (j.throttle_key IS NULL OR j.throttle_limit
      > (SELECT count(*) FROM jobs r WHERE r.throttle_key = j.throttle_key AND r.status = 'processing'))
  FOR UPDATE OF j)
{_BEGIN}"""

# Has jobs delivered again as soon as they may begin.
_PUT_BACK = "UPDATE jobs SET delivered_at = NULL WHERE id = ANY ($1) AND status = 'pending'"

# The most urgent job of a queue that could begin, kept for the transaction.
_NEXT = f"""
SELECT j.id FROM jobs j JOIN job_queues q ON q.name = j.queue LEFT JOIN clients cl ON cl.id = j.client_id
WHERE {_VISIBLE} AND j.queue = $5 AND {_MAY_BEGIN}
  AND (j.throttle_key IS NULL OR j.throttle_limit
    > (SELECT count(*) FROM jobs r WHERE r.throttle_key = j.throttle_key AND r.status = 'processing'))
ORDER BY j.priority DESC, j.scheduled_at LIMIT 1 FOR UPDATE OF j SKIP LOCKED"""

# Prolongs the lease of a try that still holds, and notes what it has told.
_HEARTBEAT = """
UPDATE jobs SET lease_expires_at = clock_timestamp() + $3::interval, progress = COALESCE($4, progress)
WHERE id = $1 AND fence = $2 AND status = 'processing' RETURNING cancel_requested_at IS NOT NULL"""

# Keeps a try from being taken over until the transaction ends.
_HOLD = "SELECT true FROM jobs WHERE id = $1 AND fence = $2 AND status = 'processing' FOR UPDATE"

# Columns of a try as the job knows it before it ends.
_TRY = "j.id, j.fence, j.attempts, j.lease_holder, j.started_at"

# Ends tries well.
_COMPLETE = f"""
WITH ended AS (
  SELECT {_TRY}, given.result FROM unnest($1::uuid[], $2::bigint[], $3::jsonb[]) AS given (id, fence, result)
  JOIN jobs j ON j.id = given.id AND j.fence = given.fence
  WHERE j.status = 'processing' ORDER BY j.id FOR UPDATE OF j),
noted AS (
  INSERT INTO job_attempts (job_id, fence, attempt, holder, started_at, ended_at, outcome)
  SELECT id, fence, attempts, lease_holder, started_at, clock_timestamp(), 'completed' FROM ended)
UPDATE jobs j SET status = 'completed', completed_at = clock_timestamp(), result = ended.result, error = NULL,
  lease_holder = NULL, lease_expires_at = NULL
FROM ended WHERE j.id = ended.id RETURNING j.id"""

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
  SELECT {_TRY}, $4 OR attempts >= max_attempts AS final FROM jobs j
  WHERE id = $1 AND fence = $2 AND status = 'processing' FOR UPDATE),
done AS (UPDATE jobs j SET error = $3, {_AFTERWARDS} FROM ended WHERE j.id = ended.id RETURNING j.id, j.status),
noted AS (
  INSERT INTO job_attempts (job_id, fence, attempt, holder, started_at, ended_at, outcome, error)
  SELECT ended.id, fence, attempts, lease_holder, started_at, clock_timestamp(),
    CASE done.status WHEN 'cancelled' THEN 'cancelled' ELSE 'failed' END, $3
  FROM ended JOIN done ON done.id = ended.id)
SELECT status FROM done"""

# Ends the tries whose workers have not been heard of.
_SWEEP = f"""
WITH ended AS (
  SELECT {_TRY}, attempts >= max_attempts AS final FROM jobs j
  WHERE status = 'processing' AND lease_expires_at <= clock_timestamp()
  ORDER BY lease_expires_at LIMIT $1 FOR UPDATE SKIP LOCKED),
done AS (
  UPDATE jobs j SET error = 'the worker was lost', {_AFTERWARDS} FROM ended WHERE j.id = ended.id
  RETURNING j.id, j.status)
INSERT INTO job_attempts (job_id, fence, attempt, holder, started_at, ended_at, outcome, error)
SELECT ended.id, fence, attempts, lease_holder, started_at, clock_timestamp(),
  CASE done.status WHEN 'cancelled' THEN 'cancelled' ELSE 'lost' END, 'the worker was lost'
FROM ended JOIN done ON done.id = ended.id"""

# Gives a try back that was not to blame, as if it had not been begun; not to those who would begin it anew if somebody
# wants it cancelled.
_RELEASE = f"""
WITH ended AS (
  SELECT {_TRY} FROM jobs j WHERE id = $1 AND fence = $2 AND status = 'processing' FOR UPDATE),
done AS (
  UPDATE jobs j SET attempts = j.attempts - 1, lease_holder = NULL, lease_expires_at = NULL, delivered_at = NULL,
    scheduled_at = GREATEST(j.scheduled_at, clock_timestamp() + $3::interval), error = NULLIF($4, ''),
    status = CASE WHEN cancel_requested_at IS NULL THEN 'pending' ELSE 'cancelled' END,
    completed_at = CASE WHEN cancel_requested_at IS NOT NULL THEN clock_timestamp() END
  FROM ended WHERE j.id = ended.id)
INSERT INTO job_attempts (job_id, fence, attempt, holder, started_at, ended_at, outcome, error)
SELECT id, fence, attempts, lease_holder, started_at, clock_timestamp(), 'released', $4 FROM ended"""

# Ends waiting jobs, and asks whoever works on one to stop.
_CANCEL = """
UPDATE jobs j SET cancel_requested_at = COALESCE(cancel_requested_at, clock_timestamp()),
  status = CASE status WHEN 'pending' THEN 'cancelled' ELSE status END,
  completed_at = CASE status WHEN 'pending' THEN clock_timestamp() END"""
_CANCEL_ONE = f"{_CANCEL} WHERE j.id = $1 AND j.status IN ('pending', 'processing') RETURNING {_COLUMNS}"
_CANCEL_HELD = f"""
WITH mine AS (
  SELECT id FROM jobs WHERE hold_key = $1 AND status IN ('pending', 'processing') ORDER BY id FOR UPDATE)
{_CANCEL} FROM mine WHERE j.id = mine.id"""

# Holds back and lets go.
_HOLD_BACK = """
INSERT INTO job_holds (hold_key, reason) VALUES ($1, $2) ON CONFLICT (hold_key) DO UPDATE SET reason = $2"""
_LET_GO = "DELETE FROM job_holds WHERE hold_key = $1"

# The queues, with how much waits there: the one statement behind lists and gauges.
_QUEUES = f"""
SELECT {_QUEUE_COLUMNS}, COALESCE(o.due, 0), COALESCE(o.later, 0), COALESCE(o.running, 0), COALESCE(f.failed, 0),
  o.oldest_due_at
FROM job_queues q
LEFT JOIN (
  SELECT queue, count(*) FILTER (WHERE due) AS due, count(*) FILTER (WHERE NOT due AND status = 'pending') AS later,
    count(*) FILTER (WHERE status = 'processing') AS running, min(scheduled_at) FILTER (WHERE due) AS oldest_due_at
  FROM (
    SELECT queue, status, scheduled_at, status = 'pending' AND scheduled_at <= clock_timestamp() AS due FROM jobs
    WHERE status IN ('pending', 'processing')) open
  GROUP BY queue) o ON o.queue = q.name
LEFT JOIN (SELECT queue, count(*) AS failed FROM jobs WHERE status = 'failed' GROUP BY queue) f ON f.queue = q.name
WHERE $1::text IS NULL OR q.name = $1
ORDER BY q.id"""

# Keeps a queue from changing until the transaction ends.
_LOCK_QUEUE = f"SELECT {_QUEUE_COLUMNS} FROM job_queues q WHERE name = $1 FOR UPDATE"

# Writes what may change of a queue.
_UPDATE_QUEUE = """
UPDATE job_queues SET concurrency = $2, pause_reason = COALESCE($3, ''),
  paused_at = CASE WHEN $3 IS NULL THEN NULL ELSE COALESCE(paused_at, clock_timestamp()) END
WHERE name = $1"""

# Lets a job that was given up be tried again from the first attempt.
_RETRY = f"""
UPDATE jobs j SET status = 'pending', attempts = 0, scheduled_at = clock_timestamp(), completed_at = NULL,
  delivered_at = NULL, error = NULL
WHERE j.id = $1 AND j.status = 'failed' RETURNING {_COLUMNS}"""

# Which schedules are due.
_DUE_SCHEDULES = """
SELECT given.name FROM unnest($1::text[], $2::interval[]) AS given (name, every)
LEFT JOIN job_schedules s ON s.name = given.name
WHERE s.name IS NULL OR s.next_at <= clock_timestamp() OR s.next_at > clock_timestamp() + given.every"""

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
    throttle_key: str | None = None,
    throttle_limit: int | None = None,
    hold_key: str | None = None,
    trace_id: str = "",
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
        throttle_key: Of the jobs with this key at most `throttle_limit` run at a time in the whole cluster, for
            instance those of one account on a platform. The others wait, which costs them no attempt.
        throttle_limit: See `throttle_key`; give both or neither.
        hold_key: Names what can be held back together, see `hold_back_internal`.
        trace_id: Id of the request that causes it.

    Returns:
        The new job, or the one that has the key.
    """
    while True:
        row = await tx.fetchrow(
            _ENQUEUE, new_id(), type, queue, dict(payload), client_id, requested_by, unique_key, priority,
            max_attempts, delay, backoff_base, backoff_cap, throttle_key, throttle_limit, hold_key, trace_id,
        )  # fmt: skip
        # The one that had the key may have ended since.
        row = row or await tx.fetchrow(_BY_KEY, unique_key)
        if row is not None:
            return Job(*row)


async def get_internal(db: Executor, job_id: UUID) -> Job | None:
    """The job with this id, whoever asks."""
    row = await db.fetchrow(_GET_INTERNAL, job_id)
    return None if row is None else Job(*row)


async def get(db: Executor, scope: Scope, job_id: UUID, *, unowned: bool = False) -> Job | None:
    """The job with this id.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        job_id: The job.
        unowned: Whether the caller may know of jobs that work for no client.
    """
    row = await db.fetchrow(_GET, *scope.args, unowned, job_id)
    return None if row is None else Job(*row)


async def get_for_update(tx: Transaction, scope: Scope, job_id: UUID, *, unowned: bool = False) -> Job | None:
    """As `get`, and keeps others from changing it until the transaction ends."""
    row = await tx.fetchrow(_GET_FOR_UPDATE, *scope.args, unowned, job_id)
    return None if row is None else Job(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    unowned: bool,
    limit: int,
    after: UUID | None = None,
    client_id: UUID | None = None,
    types: Sequence[str] | None = None,
    queues: Sequence[str] | None = None,
    statuses: Sequence[str] | None = None,
    since: datetime | None = None,
    before: datetime | None = None,
    requested_by: UUID | None = None,
) -> list[Job]:
    """Up to `limit` jobs, newest first, older than `after`; a filter that is None lets all pass.

    `since` and `before` bound when they were made; `unowned` is as for `get`.
    """
    rows = await db.fetch(
        _LIST_PAGE, *scope.args, unowned, after, limit, client_id, types, queues, statuses, since, before, requested_by
    )
    return [Job(*row) for row in rows]


async def attempts_internal(db: Executor, job_id: UUID, limit: int) -> list[Attempt]:
    """The last tries of a job that have ended, newest first. The caller has checked that the job may be seen."""
    return [Attempt(*row) for row in await db.fetch(_ATTEMPTS, job_id, limit)]


async def marks_internal(db: Executor, job_ids: Collection[UUID]) -> dict[UUID, tuple[int, dict[str, Any]]]:
    """Revision and progress of jobs: whether one of them differs says whether there is something to tell."""
    return {row[0]: (row[1], row[2]) for row in await db.fetch(_MARKS, list(job_ids))}


async def take_due_internal(db: Executor, redeliver_after: timedelta, limit: int) -> list[Delivery]:
    """Up to `limit` jobs that are to be put on their queues now, each for one caller.

    Args:
        db: Where to run it.
        redeliver_after: After this long a delivery that led to no claim is repeated.
        limit: The most to take.
    """
    return [Delivery(*row) for row in await db.fetch(_TAKE_DUE, redeliver_after, limit)]


async def claim_internal(db: Executor, job_ids: Collection[UUID], holder: str, lease: timedelta) -> list[Job]:
    """Begins tries of those jobs that are waiting, due and under no limit.

    Of the others some may be limited: ask `claim_limited_internal`. The rest was delivered too often, or too late.
    """
    return [Job(*row) for row in await db.fetch(_CLAIM, list(job_ids), holder, lease)]


async def claim_limited_internal(
    tx: Transaction, job_ids: Collection[UUID], holder: str, lease: timedelta
) -> list[Job]:
    """As `claim_internal`, for jobs under limits, which hold over the whole cluster.

    Jobs that may not begin now are delivered again when they may; that costs them no attempt.
    """
    found = await tx.fetch(_LIMITS, list(job_ids))
    names = [name for _, *both in found for name in both if name is not None]
    if names:
        await tx.execute(_LOCK_LIMITS, names)
    begun = [await tx.fetchrow(_CLAIM_LIMITED, job_id, holder, lease) for job_id, *_ in found]
    claimed = [Job(*row) for row in begun if row is not None]
    left = set(job_ids) - {job.id for job in claimed}
    if left:
        await tx.execute(_PUT_BACK, sorted(left))
    return claimed


async def next_id(tx: Transaction, scope: Scope, queue: str, *, unowned: bool) -> UUID | None:
    """The most urgent job of a queue that could begin now, kept for this transaction; None when there is none."""
    found: UUID | None = await tx.fetchval(_NEXT, *scope.args, unowned, queue)
    return found


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


async def complete_internal(db: Executor, ended: Sequence[tuple[UUID, int, Mapping[str, Any]]]) -> set[UUID]:
    """Ends tries well.

    Args:
        db: Where to run it.
        ended: Job, fence and result of each.

    Returns:
        The jobs that are completed by this. Of the others the try is no longer the present one, and nothing is changed.
    """
    ids, fences, results = zip(*ended, strict=True)
    rows = await db.fetch(_COMPLETE, list(ids), list(fences), [dict(result) for result in results])
    return {row[0] for row in rows}


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


async def release_internal(
    db: Executor, job_id: UUID, fence: int, delay: timedelta = timedelta(0), reason: str = ""
) -> bool:
    """Gives a try back uncounted, because its worker ends or it has to wait for somebody else.

    Args:
        db: Where to run it.
        job_id: The job.
        fence: The try.
        delay: How long to wait before the next one.
        reason: What it waits for, for people; never a secret.

    Returns:
        False when it is no longer the present one.
    """
    return await db.execute(_RELEASE, job_id, fence, delay, reason) == "INSERT 0 1"


async def sweep_internal(db: Executor, limit: int = 500) -> int:
    """Ends up to `limit` tries whose lease is over, and returns how many there were."""
    tag = await db.execute(_SWEEP, limit)
    return int(tag.removeprefix("INSERT 0 "))


async def cancel_internal(db: Executor, job_id: UUID) -> Job | None:
    """Cancels a waiting job at once, or asks for a running one to stop; None when it is neither."""
    row = await db.fetchrow(_CANCEL_ONE, job_id)
    return None if row is None else Job(*row)


async def hold_back_internal(tx: Transaction, hold_key: str, reason: str) -> None:
    """Keeps all jobs with this key, also later ones, from beginning until `let_go_internal`; running ones go on.

    Args:
        tx: Transaction of what causes it.
        hold_key: See `enqueue_internal`.
        reason: Why, for people; shown with the jobs.
    """
    await tx.execute(_HOLD_BACK, hold_key, reason)


async def let_go_internal(tx: Transaction, hold_key: str) -> bool:
    """Lets jobs that were held back begin; False when they were not."""
    return await tx.execute(_LET_GO, hold_key) == "DELETE 1"


async def cancel_held_internal(tx: Transaction, hold_key: str) -> int:
    """Cancels all waiting jobs with this key and asks running ones to stop; returns how many there were."""
    return int((await tx.execute(_CANCEL_HELD, hold_key)).removeprefix("UPDATE "))


async def retry_internal(db: Executor, job_id: UUID) -> Job | None:
    """Puts a job that was given up back, with all its attempts before it; None when it is not given up.

    Raises:
        Conflict: ``jobs_unique_key``: another job has taken its key since.
    """
    row = await db.fetchrow(_RETRY, job_id)
    return None if row is None else Job(*row)


async def queues_internal(db: Executor, name: str | None = None) -> list[Queue]:
    """The queues, or one of them, with how much waits there and for how long."""
    return [Queue(*row) for row in await db.fetch(_QUEUES, name)]


async def lock_queue_internal(tx: Transaction, name: str) -> Queue:
    """A queue, without how much waits there, kept from changing until the transaction ends."""
    return Queue(*returned(await tx.fetchrow(_LOCK_QUEUE, name)))


async def update_queue_internal(
    tx: Transaction, name: str, *, concurrency: int | None, paused_because: str | None
) -> None:
    """Sets a queue's limit, and pauses it for a reason or, with None, lets it go on.

    It holds at once and wherever jobs are claimed, whatever Redis knows.
    """
    await tx.execute(_UPDATE_QUEUE, name, concurrency, paused_because)


async def due_schedules_internal(db: Executor, every: Mapping[str, timedelta]) -> set[str]:
    """Which schedules, given with the time between two, may be due; `move_schedule_internal` decides."""
    return {row[0] for row in await db.fetch(_DUE_SCHEDULES, list(every), list(every.values()))}


async def move_schedule_internal(tx: Transaction, name: str, every: timedelta) -> bool:
    """Whether a schedule is due, for one caller in the whole cluster; make its job in the same transaction."""
    return await tx.fetchval(_MOVE_SCHEDULE, name, every) is not None


async def purge_ended_internal(db: Executor, older_than: timedelta, limit: int = 10_000) -> int:
    """Deletes up to `limit` jobs that ended longer ago than `older_than` and returns how many it deleted."""
    tag = await db.execute(_PURGE_ENDED, older_than, limit)
    return int(tag.removeprefix("DELETE "))
