"""Jobs: the row is the truth, so neither a killed worker nor a wiped Redis loses one or does one twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import redis.asyncio as redis

from server.jobs.handling import JobContext, JobFailed, LeaseLost, Stores
from server.jobs.worker import HANDLERS, SCHEDULES, JobWorker, _end
from server.settings import JobQueue, JobsSettings, environment
from storage.postgres import jobs
from storage.postgres.jobs import Job
from storage.scope import EVERYTHING
from tests.conftest import World

pytestmark = pytest.mark.bar_e

ROOT = Path(__file__).parents[2]
LEASE = timedelta(seconds=30)
FULL = os.environ.get("MRM_BARS") == "full"


async def make(world: World, queue: str = "sync", **fields: object) -> Job:
    """A job of its own. No worker of the tests takes from the queue `sync`."""
    values = {"type": "send_email", "payload": {}, "backoff_base": timedelta(milliseconds=1), **fields}
    async with world.database.transaction("make_job") as tx:
        return await jobs.enqueue_internal(tx, queue=queue, **values)  # type: ignore[arg-type]


async def claim(world: World, job: Job, holder: str = "test", lease: timedelta = LEASE) -> Job | None:
    """What comes of a delivery."""
    claimed = await jobs.claim_internal(world.database, [job.id], holder, lease)
    if not claimed:
        async with world.database.transaction("claim") as tx:
            claimed = await jobs.claim_limited_internal(tx, [job.id], holder, lease)
    return claimed[0] if claimed else None


async def complete(world: World, job: Job, result: dict[str, object] | None = None) -> bool:
    """Ends the try that this is well; whether it was the present one."""
    return bool(await jobs.complete_internal(world.database, [(job.id, job.fence, result or {})]))


async def begin(world: World, job: Job, lease: timedelta = LEASE) -> Job:
    """Claims a job as soon as it is due."""
    for _ in range(100):
        claimed = await claim(world, job, lease=lease)
        if claimed is not None:
            return claimed
        await asyncio.sleep(0.01)
    raise AssertionError("cannot be claimed")


async def now(world: World, job: Job) -> Job:
    found = await jobs.get_internal(world.database, job.id)
    assert found is not None
    return found


async def outcomes(world: World, job: Job) -> list[tuple[int, str, str]]:
    rows = await world.database.fetch(
        "SELECT attempt, outcome, error FROM job_attempts WHERE job_id = $1 ORDER BY fence", job.id
    )
    return [tuple(row) for row in rows]


async def test_of_many_deliveries_one_becomes_a_try(world: World) -> None:
    job = await make(world)
    claims = await asyncio.gather(*(claim(world, job, f"w{n}") for n in range(20)))
    [claimed] = [claim for claim in claims if claim is not None]
    assert (claimed.status, claimed.attempts, claimed.fence) == ("processing", 1, 1)
    assert await complete(world, claimed, {"n": 1})
    assert await claim(world, job) is None


async def test_a_try_that_was_taken_over_changes_nothing(world: World, stores: Stores) -> None:
    job = await make(world)
    stale = await begin(world, job, timedelta(milliseconds=1))
    await asyncio.sleep(0.01)
    await jobs.sweep_internal(world.database)
    fresh = await begin(world, job)
    assert fresh.fence == stale.fence + 1
    context = JobContext(stores, stale, LEASE)
    with pytest.raises(LeaseLost):
        await context.progress(1, 2)
    with pytest.raises(LeaseLost):
        async with context.transaction("stale"):
            raise AssertionError("let in")
    assert not await complete(world, stale, {"by": "stale"})
    assert await jobs.fail_internal(world.database, job.id, stale.fence, "stale", final=True) is None
    assert not await jobs.release_internal(world.database, job.id, stale.fence)
    assert await complete(world, fresh, {"by": "fresh"})
    done = await now(world, job)
    assert (done.status, done.result, done.error) == ("completed", {"by": "fresh"}, None)
    assert await outcomes(world, job) == [(1, "lost", "the worker was lost"), (2, "completed", "")]


async def test_jobs_that_ended_long_ago_are_forgotten_with_their_tries(world: World) -> None:
    old, recent = await make(world), await make(world)
    for job in (old, recent):
        claimed = await begin(world, job)
        await complete(world, claimed)
    await world.database.execute("UPDATE jobs SET completed_at = now() - interval '91 days' WHERE id = $1", old.id)
    assert await jobs.purge_ended_internal(world.database, timedelta(days=90)) == 1
    assert await jobs.get_internal(world.database, old.id) is None
    assert await outcomes(world, old) == []
    assert (await now(world, recent)).status == "completed"


async def test_the_pause_before_a_try_is_bounded_and_jittered(world: World) -> None:
    sql = """SELECT n, min(p), max(p), count(DISTINCT p) FROM (
      SELECT n, extract(epoch FROM job_pause(n, '5 seconds', '15 minutes'))::float8 AS p
      FROM generate_series(0, 40) n, generate_series(1, 300)) pauses GROUP BY n"""
    for attempts, least, most, different in await world.database.fetch(sql):
        bound = min(900.0, 5.0 * 2 ** (max(attempts, 1) - 1))
        assert 0 <= least < bound / 4
        assert bound / 2 < most <= bound
        assert different > 250


async def test_one_key_is_one_job_however_many_make_it(world: World) -> None:
    key = uuid4().hex
    made = await asyncio.gather(*(make(world, unique_key=key) for _ in range(50)))
    assert len({job.id for job in made}) == 1
    claimed = await begin(world, made[0])
    assert (await make(world, unique_key=key)).id == claimed.id
    await complete(world, claimed)
    assert (await make(world, unique_key=key)).id != claimed.id


async def test_what_fails_too_often_is_given_up_and_can_be_replayed(world: World) -> None:
    job = await make(world, max_attempts=2)
    for expected in ("pending", "failed"):
        claimed = await begin(world, job)
        assert await jobs.fail_internal(world.database, job.id, claimed.fence, "no luck") == expected
    assert await claim(world, job) is None
    given_up = await now(world, job)
    assert (given_up.attempts, given_up.error) == (2, "no luck")
    again = await jobs.retry_internal(world.database, job.id)
    assert again is not None
    assert (again.status, again.attempts, again.fence) == ("pending", 0, 2)
    assert await jobs.retry_internal(world.database, job.id) is None
    claimed = await begin(world, job)
    assert await jobs.fail_internal(world.database, job.id, claimed.fence, "hopeless", final=True) == "failed"
    assert [attempt for attempt, _, _ in await outcomes(world, job)] == [1, 2, 1]


async def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_when_it_agrees(world: World) -> None:
    waiting, agreeing, deaf, lost = [await make(world) for _ in range(4)]
    cancelled = await jobs.cancel_internal(world.database, waiting.id)
    assert cancelled is not None and cancelled.status == "cancelled"
    assert await claim(world, waiting) is None
    assert await jobs.cancel_internal(world.database, waiting.id) is None
    runs = {
        job.id: await begin(world, job, LEASE if job is not lost else timedelta(milliseconds=1))
        for job in (agreeing, deaf, lost)
    }
    for run in runs.values():
        asked = await jobs.cancel_internal(world.database, run.id)
        assert asked is not None and asked.status == "processing"
    assert await jobs.heartbeat_internal(world.database, agreeing.id, 1, LEASE) is True
    assert await jobs.fail_internal(world.database, agreeing.id, 1, "cancelled") == "cancelled"
    assert await complete(world, runs[deaf.id])
    await asyncio.sleep(0.01)
    await jobs.sweep_internal(world.database)
    assert [(await now(world, job)).status for job in (agreeing, deaf, lost)] == ["cancelled", "completed", "cancelled"]


async def test_cancelling_and_claiming_at_once_leaves_no_job_in_between(world: World) -> None:
    for _ in range(20):
        job = await make(world)
        claimed, cancelled = await asyncio.gather(claim(world, job), jobs.cancel_internal(world.database, job.id))
        assert cancelled is not None
        if claimed is None:
            assert (await now(world, job)).status == "cancelled"
        else:
            assert await jobs.heartbeat_internal(world.database, job.id, claimed.fence, LEASE) in (True, False)
            assert (
                await jobs.fail_internal(world.database, job.id, claimed.fence, "cancelled", final=True) == "cancelled"
            )


async def test_a_schedule_makes_one_job_however_many_look(world: World) -> None:
    name = uuid4().hex

    async def look() -> bool:
        async with world.database.transaction("look") as tx:
            return await jobs.move_schedule_internal(tx, name, timedelta(hours=1))

    assert sum(await asyncio.gather(*(look() for _ in range(20)))) == 1
    await world.database.execute("UPDATE job_schedules SET next_at = now() - interval '1 minute' WHERE name = $1", name)
    assert sum(await asyncio.gather(*(look() for _ in range(20)))) == 1


def fast(stores: Stores, queue: JobQueue) -> Stores:
    """Stores of a worker that takes from this queue alone, and looks often."""
    jobs_settings = JobsSettings(tick=0.05, concurrency={queue: 2})
    return replace(stores, settings=stores.settings.model_copy(update={"jobs": jobs_settings}))


@asynccontextmanager
async def working(world: World, worker: JobWorker) -> AsyncIterator[None]:
    """A worker in this process."""
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await task


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_two_workers_forget_expired_replies_by_the_clock_once(world: World, stores: Stores) -> None:
    await world.database.execute("DELETE FROM job_schedules WHERE name = ANY ($1)", [each.name for each in SCHEDULES])
    begun = datetime.now(UTC)
    principal = uuid4()
    await world.database.execute(
        """INSERT INTO idempotency_keys (principal_id, method, request_id, request_hash, response, expires_at)
        VALUES ($1, 'm', $2, '\\x00', '\\x00', now() - interval '1 day')""",
        principal, uuid4(),
    )  # fmt: skip
    workers = [JobWorker(fast(stores, "maintenance"), HANDLERS) for _ in range(2)]
    # Others are made only when there is something to do.
    wanted = sum(each.type == "apply_retention" for each in SCHEDULES)
    made = "SELECT status FROM jobs WHERE type = 'apply_retention' AND created_at >= $1"

    async def all_done() -> bool:
        rows = await world.database.fetch(made, begun)
        return len(rows) >= wanted and all(row[0] == "completed" for row in rows)

    async with working(world, workers[0]), working(world, workers[1]):
        await until(all_done)
    assert len(await world.database.fetch(made, begun)) == wanted
    kept = await world.database.fetchval("SELECT count(*) FROM idempotency_keys WHERE principal_id = $1", principal)
    assert kept == 0


async def test_the_text_of_an_unforeseen_error_stays_inside(world: World, stores: Stores) -> None:
    async def handle(job: Job, context: JobContext) -> None:
        if job.payload["foreseen"]:
            raise JobFailed("the address is refused", final=True)
        raise RuntimeError("password=hunter2")

    worker = JobWorker(fast(stores, "reports"), {"generate_report": handle}, ())
    made = [
        await make(world, "reports", type="generate_report", payload={"foreseen": foreseen})
        for foreseen in (True, False)
    ]

    async def ended() -> bool:
        return all([(await now(world, job)).status == "failed" for job in made])

    async with working(world, worker):
        await until(ended)
    told, hidden = [await now(world, job) for job in made]
    assert (told.error, told.attempts) == ("the address is refused", 1)
    assert (hidden.error, hidden.attempts) == ("internal error: RuntimeError", 3)


@asynccontextmanager
async def process(world: World, seconds: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process that can be killed."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.operations.job_worker", str(seconds),
        cwd=ROOT, env={**os.environ, **environment(world.settings), "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"},
    )  # fmt: skip
    try:
        yield worker
    finally:
        if worker.returncode is None:
            worker.terminate()
        async with asyncio.timeout(30):
            await worker.wait()


async def completed(world: World, ids: list[UUID]) -> bool:
    left: int = await world.database.fetchval(
        "SELECT count(*) FROM jobs WHERE id = ANY ($1) AND status <> 'completed'", ids
    )
    return left == 0


@pytest.fixture(scope="module")
async def effects(world: World) -> AsyncIterator[None]:
    await world.database.execute("CREATE TABLE job_effects (job_id UUID PRIMARY KEY)")
    yield
    await world.database.execute("DROP TABLE job_effects")


@pytest.mark.timeout(1800 if FULL else 300)
@pytest.mark.usefixtures("effects")
async def test_killed_workers_and_a_wiped_redis_lose_nothing(world: World) -> None:
    count, kills = (500, 20) if FULL else (60, 3)
    client = redis.Redis.from_url(world.connections.redis_dsn)
    made = [await make(world, "email", max_attempts=kills + 3) for _ in range(count)]
    ids = [job.id for job in made]
    for number in range(kills):
        async with process(world, 0.1) as worker:
            begun = datetime.now(UTC)
            # A busy machine needs long to start a worker.
            await until(lambda begun=begun: _busy(world, ids, begun), 90)  # type: ignore[misc]
            await asyncio.sleep(random.uniform(0, 0.1))
            worker.send_signal(signal.SIGKILL)
        if number == 1:
            # Sessions of other tests lie beside the queues.
            async for key in client.scan_iter("queue:*"):
                await client.delete(key)
    await client.aclose()
    async with AsyncExitStack() as stack:
        begun = datetime.now(UTC)
        for _ in range(2):
            await stack.enter_async_context(process(world, 0.01))
        await until(lambda: _busy(world, ids, begun), 90)
        # What the killed ones had is taken from them as soon as somebody works.
        await until(lambda: _none_is_stuck(world, ids), 5)
        await until(lambda: completed(world, ids), 90)
    once = """SELECT count(*) FROM (
      SELECT job_id FROM job_attempts WHERE job_id = ANY ($1) AND outcome = 'completed'
      GROUP BY job_id HAVING count(*) = 1) one"""
    assert await world.database.fetchval(once, ids) == count
    assert await world.database.fetchval("SELECT count(*) FROM job_effects WHERE job_id = ANY ($1)", ids) == count
    assert await world.database.fetchval("SELECT bool_and(attempts <= max_attempts) FROM jobs WHERE id = ANY ($1)", ids)
    lost = await world.database.fetchval(
        "SELECT count(*) FROM job_attempts WHERE job_id = ANY ($1) AND outcome = 'lost'", ids
    )
    assert lost > 0


async def _none_is_stuck(world: World, ids: list[UUID]) -> bool:
    """Whether all that somebody works on is within its lease."""
    sql = "SELECT count(*) FROM jobs WHERE id = ANY ($1) AND lease_expires_at < clock_timestamp()"
    return not await world.database.fetchval(sql, ids)


async def test_the_end_of_a_task_is_asked_for_until_it_is_heard() -> None:
    heard = 0

    async def deaf() -> None:
        nonlocal heard
        while heard < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                heard += 1

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await _end((task,))
    assert heard == 2


@pytest.mark.usefixtures("effects")
async def test_a_worker_that_is_told_to_end_gives_its_jobs_back(world: World) -> None:
    job = await make(world, "email")
    async with process(world, 60) as worker:
        await until(lambda: _is(world, job, "processing"))
        worker.terminate()
        async with asyncio.timeout(20):
            assert await worker.wait() == 0
    back = await now(world, job)
    assert (back.status, back.attempts) == ("pending", 0)
    assert await outcomes(world, job) == [(1, "released", "")]


async def _is(world: World, job: Job, status: str) -> bool:
    return (await now(world, job)).status == status


async def _busy(world: World, ids: list[UUID], since: datetime) -> bool:
    """Whether a worker begun since then works, or all is done."""
    sql = "SELECT count(*) FROM jobs WHERE id = ANY ($1) AND status = 'processing' AND started_at > $2"
    return bool(await world.database.fetchval(sql, ids, since)) or await completed(world, ids)


async def test_limits_of_a_queue_and_of_an_account_hold_over_all_who_claim(world: World) -> None:
    key = uuid4().hex
    made = [await make(world, throttle_key=key, throttle_limit=3) for _ in range(20)]
    ids = [job.id for job in made]

    async def many(number: int) -> list[Job]:
        async with world.database.transaction("claim") as tx:
            return await jobs.claim_limited_internal(tx, ids, f"w{number}", LEASE)

    for _ in range(6):
        claimed = [job for batch in await asyncio.gather(*(many(number) for number in range(4))) for job in batch]
        assert len(claimed) == len({job.id for job in claimed}) == 3
        await jobs.complete_internal(world.database, [(job.id, job.fence, {}) for job in claimed])
    assert await world.database.fetchval("SELECT sum(attempts) FROM jobs WHERE id = ANY ($1)", ids) == 18
    alone = await make(world)
    async with world.database.transaction("limit") as tx:
        await jobs.update_queue_internal(tx, "sync", concurrency=1, paused_because=None)
    try:
        running = await world.database.fetchval(
            "SELECT count(*) FROM jobs WHERE queue = 'sync' AND status = 'processing'"
        )
        first = [job for job in (await asyncio.gather(*(claim(world, job) for job in [alone, *made]))) if job]
        assert len(first) == max(0, 1 - running)
    finally:
        async with world.database.transaction("limit") as tx:
            await jobs.update_queue_internal(tx, "sync", concurrency=None, paused_because=None)
    await jobs.cancel_internal(world.database, alone.id)


async def test_what_is_held_back_waits_and_what_is_not_does_not(world: World) -> None:
    key = uuid4().hex
    held, free = await make(world, hold_key=key), await make(world)
    async with world.database.transaction("hold") as tx:
        await jobs.hold_back_internal(tx, key, "the platform refuses the account")
        await jobs.hold_back_internal(tx, key, "it still does")
    assert await claim(world, held) is None
    assert await claim(world, free) is not None
    due = {each.id for each in await jobs.take_due_internal(world.database, timedelta(minutes=1), 10_000)}
    assert held.id not in due
    seen = await jobs.get(world.database, EVERYTHING, held.id, unowned=True)
    assert seen is not None and (seen.status, seen.attempts, seen.held_because) == ("pending", 0, "it still does")
    async with world.database.transaction("hold") as tx:
        assert await jobs.let_go_internal(tx, key)
        assert not await jobs.let_go_internal(tx, key)
    running = await claim(world, held)
    assert running is not None
    waiting = await make(world, hold_key=key)
    async with world.database.transaction("hold") as tx:
        assert await jobs.cancel_held_internal(tx, key) == 2
    assert await jobs.heartbeat_internal(world.database, held.id, running.fence, LEASE) is True
    assert (await now(world, waiting)).status == "cancelled"
    assert await jobs.release_internal(world.database, held.id, running.fence)
    assert (await now(world, held)).status == "cancelled"
