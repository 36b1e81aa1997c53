"""JobService: what people see and steer, and how workers in any language take part."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.accounts.v1 import session_service_pb2
from mrm.common.v1 import options_pb2
from mrm.operations.v1 import change_service_pb2, job_pb2
from mrm.operations.v1 import job_service_pb2 as pb
from storage.postgres import jobs
from storage.postgres.jobs import Job
from tests.conftest import Caller, Failing, World

pytestmark = pytest.mark.bar_e

LEASE = timedelta(seconds=30)
PENDING, PROCESSING = job_pb2.JOB_STATUS_PENDING, job_pb2.JOB_STATUS_PROCESSING
COMPLETED, FAILED, CANCELLED = job_pb2.JOB_STATUS_COMPLETED, job_pb2.JOB_STATUS_FAILED, job_pb2.JOB_STATUS_CANCELLED


async def make(world: World, client_id: str = "", **fields: Any) -> Job:
    """A job that no worker of the tests takes."""
    values: dict[str, Any] = {
        "type": "sync_campaign",
        "queue": "sync",
        "payload": {"n": 1},
        "backoff_base": timedelta(microseconds=1),
        "client_id": UUID(client_id) if client_id else None,
        **fields,
    }
    async with world.database.transaction("make_job") as tx:
        return await jobs.enqueue_internal(tx, **values)


async def worker(world: World, *client_ids: str) -> Caller:
    """A program that may do the jobs of these clients, or all."""
    return await world.key(list(client_ids), options_pb2.PERMISSION_JOBS_WORK)


async def claim(caller: Caller, job: Job) -> job_pb2.Job:
    request = pb.ClaimJobRequest(job_id=str(job.id), holder="test")
    return (await caller.jobs.ClaimJob(request, metadata=caller.auth)).job


async def see(caller: Caller, job: Job) -> pb.GetJobResponse:
    return await caller.jobs.GetJob(pb.GetJobRequest(job_id=str(job.id)), metadata=caller.auth)


async def test_jobs_are_seen_by_those_who_see_their_client(world: World, failing: Failing) -> None:
    client, other = await world.client(), await world.client()
    mine = [await make(world, client.client_id, priority=number) for number in range(3)]
    unowned = await make(world, type="budget_check")
    analyst, stranger = await world.user("analyst", client.client_id), await world.user("pm", other.client_id)

    async def listed(caller: Caller, **wanted: Any) -> list[str]:
        found: list[str] = []
        request = pb.ListJobsRequest(page_size=2, filter=pb.JobFilter(**wanted))
        while True:
            page = await caller.jobs.ListJobs(request, metadata=caller.auth)
            found += [job.job_id for job in page.jobs]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    newest_first = [str(job.id) for job in reversed(mine)]
    assert await listed(analyst) == newest_first
    assert await listed(stranger) == []
    assert await listed(world.admin, client_id=client.client_id) == newest_first
    assert str(unowned.id) in await listed(world.admin, types=[job_pb2.JOB_TYPE_BUDGET_CHECK])
    of_all = await world.key([], options_pb2.PERMISSION_JOBS_READ)
    assert str(unowned.id) not in await listed(of_all, types=[job_pb2.JOB_TYPE_BUDGET_CHECK])
    assert await listed(of_all, client_id=client.client_id) == newest_first
    for caller, job in [(analyst, unowned), (stranger, mine[0]), (of_all, unowned)]:
        assert (await failing(see(caller, job))).reason == "RESOURCE_NOT_FOUND"
    await jobs.cancel_internal(world.database, mine[0].id)
    assert await listed(analyst, statuses=[CANCELLED]) == newest_first[2:]
    assert await listed(analyst, statuses=[PENDING], queues=[job_pb2.QUEUE_NAME_SYNC]) == newest_first[:2]
    assert await listed(analyst, queues=[job_pb2.QUEUE_NAME_EMAIL]) == []
    assert await listed(analyst, requested_by=str(uuid4())) == []
    assert await listed(analyst, create_times={"start_time": mine[1].created_at, "end_time": mine[2].created_at}) == [
        str(mine[1].id)
    ]
    shown = (await see(analyst, mine[2])).job
    assert (shown.type, shown.queue, shown.priority) == (
        job_pb2.JOB_TYPE_SYNC_CAMPAIGN, job_pb2.QUEUE_NAME_SYNC, 2
    )  # fmt: skip
    assert (dict(shown.payload), shown.max_attempts, shown.status) == ({"n": 1.0}, 3, PENDING)


async def test_a_worker_does_a_job_through_the_service(world: World, failing: Failing) -> None:
    client = await world.client()
    job = await make(world, client.client_id, max_attempts=2)
    caller = await worker(world, client.client_id)
    begun = await claim(caller, job)
    assert (begun.status, begun.attempts, begun.fence, begun.lease_holder) == (PROCESSING, 1, 1, "test")
    assert not (await claim(caller, job)).job_id
    beat = pb.HeartbeatJobRequest(
        job_id=begun.job_id, fence=1, progress=job_pb2.JobProgress(done=1, total=4, note="at it")
    )
    beat.lease.FromTimedelta(timedelta(seconds=100))
    assert not (await caller.jobs.HeartbeatJob(beat, metadata=caller.auth)).cancel_requested
    seen = await see(world.admin, job)
    assert (seen.job.progress.done, seen.job.progress.total, seen.job.progress.note) == (1, 4, "at it")
    assert seen.job.lease_expire_time.seconds - begun.lease_expire_time.seconds > 60
    assert [(each.fence, each.outcome, each.HasField("end_time")) for each in seen.attempts] == [(1, 0, False)]
    failed = pb.FailJobRequest(job_id=begun.job_id, fence=1, error="no luck")
    for _ in range(2):
        reply = await caller.jobs.FailJob(failed, metadata=caller.auth)
        assert (reply.job.status, reply.job.error) == (PENDING, "no luck")
    again = await claim(caller, job)
    assert (again.attempts, again.fence) == (2, 2)
    done = pb.CompleteJobRequest(job_id=begun.job_id, fence=2)
    done.result.update({"rows": 5})
    for _ in range(2):
        completed = (await caller.jobs.CompleteJob(done, metadata=caller.auth)).job
        assert (completed.status, dict(completed.result), completed.error) == (COMPLETED, {"rows": 5.0}, "")
    stale: list[Awaitable[object]] = [
        caller.jobs.HeartbeatJob(pb.HeartbeatJobRequest(job_id=begun.job_id, fence=2), metadata=caller.auth),
        caller.jobs.CompleteJob(pb.CompleteJobRequest(job_id=begun.job_id, fence=1), metadata=caller.auth),
        caller.jobs.FailJob(pb.FailJobRequest(job_id=begun.job_id, fence=2, error="x"), metadata=caller.auth),
        caller.jobs.ReleaseJob(pb.ReleaseJobRequest(job_id=begun.job_id, fence=2), metadata=caller.auth),
    ]
    for call in stale:
        failure = await failing(call)
        assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "JOB_FENCED")
    attempts = (await see(world.admin, job)).attempts
    Outcome = job_pb2.JobAttempt
    assert [(each.attempt, each.outcome, each.error) for each in attempts] == [
        (2, Outcome.OUTCOME_COMPLETED, ""), (1, Outcome.OUTCOME_FAILED, "no luck"),
    ]  # fmt: skip


async def test_a_worker_takes_the_most_urgent_job_of_its_clients(world: World) -> None:
    client, other = await world.client(), await world.client()
    ordinary, urgent = await make(world, client.client_id), await make(world, client.client_id, priority=5)
    await make(world, client.client_id, delay=timedelta(hours=1), priority=9)
    foreign = await make(world, other.client_id, priority=99)
    caller = await worker(world, client.client_id)

    async def take(request_id: str = "") -> str:
        request = pb.ClaimJobRequest(queue=job_pb2.QUEUE_NAME_SYNC, holder="w", request_id=request_id)
        return (await caller.jobs.ClaimJob(request, metadata=caller.auth)).job.job_id

    retried = str(uuid4())
    assert [await take(retried), await take(retried), await take(), await take()] == [
        str(urgent.id), str(urgent.id), str(ordinary.id), ""
    ]  # fmt: skip
    release = pb.ReleaseJobRequest(job_id=str(urgent.id), fence=1)
    for _ in range(2):
        released = (await caller.jobs.ReleaseJob(release, metadata=caller.auth)).job
        assert (released.status, released.attempts) == (PENDING, 0)
    assert await take() == str(urgent.id)
    await jobs.cancel_internal(world.database, foreign.id)


# The transitions of requirements §11 as a caller meets them: state, verb, and the state after it or None for a refusal.
STEPS: list[tuple[str, str, int | None]] = [
    ("pending", "cancel", CANCELLED),
    ("pending", "retry", None),
    ("processing", "cancel", PROCESSING),
    ("processing", "retry", None),
    ("completed", "cancel", None),
    ("completed", "retry", None),
    ("failed", "cancel", None),
    ("failed", "retry", PENDING),
    ("cancelled", "cancel", None),
    ("cancelled", "retry", None),
]


async def in_state(world: World, client_id: str, state: str) -> Job:
    """A job in this state, and one try behind it unless it waits."""
    job = await make(world, client_id)
    if state == "cancelled":
        await jobs.cancel_internal(world.database, job.id)
    elif state != "pending":
        await jobs.claim_internal(world.database, [job.id], "test", LEASE)
    if state == "completed":
        await jobs.complete_internal(world.database, [(job.id, 1, {})])
    elif state == "failed":
        await jobs.fail_internal(world.database, job.id, 1, "no luck", final=True)
    return job


@pytest.mark.parametrize(("state", "verb", "after"), STEPS, ids=[f"{state}-{verb}" for state, verb, _ in STEPS])
async def test_legal_steps_are_taken_and_others_name_both_states(
    world: World, failing: Failing, state: str, verb: str, after: int | None
) -> None:
    job = await in_state(world, (await world.client()).client_id, state)
    admin = world.admin
    steps: dict[str, Callable[[], Awaitable[pb.CancelJobResponse | pb.RetryJobResponse]]] = {
        "cancel": lambda: admin.jobs.CancelJob(pb.CancelJobRequest(job_id=str(job.id)), metadata=admin.auth),
        "retry": lambda: admin.jobs.RetryJob(pb.RetryJobRequest(job_id=str(job.id)), metadata=admin.auth),
    }
    if after is None:
        failure = await failing(steps[verb]())
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_FORBIDS")
        wanted = {"cancel": "cancelled", "retry": "pending"}[verb]
        assert (failure.metadata["state"], failure.metadata["wanted"]) == (state, wanted)
    else:
        assert (await steps[verb]()).job.status == after
    request = change_service_pb2.ListChangesRequest(filter={"resource_id": str(job.id)})  # type: ignore[arg-type]
    recorded = (await admin.changes.ListChanges(request, metadata=admin.auth)).changes
    assert [change.action for change in recorded] == ([verb] if after is not None else [])


async def test_a_running_job_is_asked_to_stop_and_a_dead_letter_comes_back(world: World, failing: Failing) -> None:
    client = await world.client()
    pm, caller = await world.user("pm", client.client_id), await worker(world, client.client_id)
    job = await make(world, client.client_id, unique_key=uuid4().hex)
    first = await claim(caller, job)
    stale = pb.CancelJobRequest(job_id=first.job_id, etag="r999")
    assert (await failing(pm.jobs.CancelJob(stale, metadata=pm.auth))).reason == "ETAG_MISMATCH"
    assert (
        await pm.jobs.CancelJob(pb.CancelJobRequest(job_id=first.job_id), metadata=pm.auth)
    ).job.status == PROCESSING
    beat = pb.HeartbeatJobRequest(job_id=first.job_id, fence=1)
    assert (await caller.jobs.HeartbeatJob(beat, metadata=caller.auth)).cancel_requested
    stopped = pb.FailJobRequest(job_id=first.job_id, fence=1, error="stopped")
    assert (await caller.jobs.FailJob(stopped, metadata=caller.auth)).job.status == CANCELLED
    letter = await make(world, client.client_id, unique_key=job.unique_key)
    await claim(caller, letter)
    given_up = pb.FailJobRequest(job_id=str(letter.id), fence=1, error="refused", final=True)
    dead = (await caller.jobs.FailJob(given_up, metadata=caller.auth)).job
    assert (dead.status, dead.attempts) == (FAILED, 1)
    rival = await make(world, client.client_id, unique_key=job.unique_key)
    retry = pb.RetryJobRequest(job_id=dead.job_id, etag=dead.etag)
    failure = await failing(pm.jobs.RetryJob(retry, metadata=pm.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS")
    await jobs.cancel_internal(world.database, rival.id)
    back = (await pm.jobs.RetryJob(retry, metadata=pm.auth)).job
    assert (back.status, back.attempts, back.error, back.fence) == (PENDING, 0, "", 1)
    assert [each.error for each in (await see(pm, letter)).attempts] == ["refused"]
    denied = await failing(caller.jobs.CancelJob(pb.CancelJobRequest(job_id=dead.job_id), metadata=caller.auth))
    assert denied.reason == "PERMISSION_MISSING"
    await jobs.cancel_internal(world.database, letter.id)


async def test_a_watch_tells_all_until_the_job_has_ended(world: World) -> None:
    client = await world.client()
    pm = await world.user("pm", client.client_id)
    job = await make(world, client.client_id, max_attempts=1)
    told: list[tuple[int, int, str]] = []

    async def watch() -> None:
        request = pb.WatchJobRequest(job_id=str(job.id), heartbeat_interval={"seconds": 1})  # type: ignore[arg-type]
        async for message in pm.jobs.WatchJob(request, metadata=pm.auth):
            if message.HasField("job"):
                told.append((message.job.status, message.job.progress.done, message.job.error))
            else:
                beats.set()

    beats = asyncio.Event()
    watching = asyncio.create_task(watch())

    async def until(state: tuple[int, int, str]) -> None:
        async with asyncio.timeout(10):
            while not told or told[-1] != state:
                await asyncio.sleep(0.02)

    await until((PENDING, 0, ""))
    async with asyncio.timeout(10):
        await beats.wait()
    await jobs.claim_internal(world.database, [job.id], "test", LEASE)
    await until((PROCESSING, 0, ""))
    await jobs.heartbeat_internal(world.database, job.id, 1, LEASE, {"done": 3, "total": 9, "note": ""})
    await until((PROCESSING, 3, ""))
    await jobs.fail_internal(world.database, job.id, 1, "no luck")
    async with asyncio.timeout(10):
        await watching
    assert told[-1] == (FAILED, 3, "no luck")
    assert len(told) == 4
    # What has ended is told once.
    told.clear()
    await watch()
    assert [status for status, _, _ in told] == [FAILED]


async def test_a_watch_ends_with_the_rights_behind_it(world: World) -> None:
    client = await world.client()
    job = await make(world, client.client_id)
    leaving, losing = await world.user("pm", client.client_id), await world.user("pm", client.client_id)
    request = pb.WatchJobRequest(job_id=str(job.id), heartbeat_interval={"seconds": 1})  # type: ignore[arg-type]

    async def end(caller: Caller) -> grpc.StatusCode:
        stream = caller.jobs.WatchJob(request, metadata=caller.auth)
        await stream.read()
        opened.release()
        async with asyncio.timeout(15):
            return await stream.code()  # type: ignore[no-any-return]

    opened = asyncio.Semaphore(0)
    ends = [asyncio.create_task(end(caller)) for caller in (leaving, losing)]
    for _ in ends:
        await opened.acquire()

    await leaving.sessions.Logout(session_service_pb2.LogoutRequest(), metadata=leaving.auth)
    await world.database.execute("DELETE FROM client_memberships WHERE user_id = $1", losing.user_id)
    assert await asyncio.gather(*ends) == [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND]


async def test_queues_are_paused_limited_and_counted_by_operators(world: World, failing: Failing) -> None:
    admin, client = world.admin, await world.client()
    name = job_pb2.QUEUE_NAME_SYNC
    caller = await worker(world)

    async def queue() -> job_pb2.Queue:
        found = await admin.jobs.ListQueues(pb.ListQueuesRequest(), metadata=admin.auth)
        assert len(found.queues) == 4
        return next(each for each in found.queues if each.name == name)

    before = await queue()
    job, later = await make(world, client.client_id), await make(world, client.client_id, delay=timedelta(hours=1))
    dead = await in_state(world, client.client_id, "failed")
    waits = await queue()
    assert (waits.due, waits.later, waits.failed) == (before.due + 1, before.later + 1, before.failed + 1)
    assert waits.HasField("oldest_due_time")
    try:
        pause = pb.PauseQueueRequest(name=name, reason="the platform is down", etag=before.etag)
        paused = (await admin.jobs.PauseQueue(pause, metadata=admin.auth)).queue
        assert (paused.pause_reason, paused.HasField("pause_time")) == ("the platform is down", True)
        assert (await failing(admin.jobs.PauseQueue(pause, metadata=admin.auth))).reason == "ETAG_MISMATCH"
        by_name = pb.ClaimJobRequest(queue=name, holder="w")
        assert not (await claim(caller, job)).job_id
        assert not (await caller.jobs.ClaimJob(by_name, metadata=caller.auth)).HasField("job")
        due = await jobs.take_due_internal(world.database, timedelta(minutes=1), 10_000)
        assert not [each for each in due if each.queue == "sync"]
        update = pb.UpdateQueueRequest(queue=job_pb2.Queue(name=name, concurrency=1))
        update.update_mask.paths.append("concurrency")
        limited = (await admin.jobs.UpdateQueue(update, metadata=admin.auth)).queue
        assert (limited.concurrency, limited.pause_reason) == (1, "the platform is down")
        update.update_mask.paths[:] = ["due"]
        assert (await failing(admin.jobs.UpdateQueue(update, metadata=admin.auth))).reason == "INVALID_FIELDS"
        resume = pb.ResumeQueueRequest(name=name)
        resumed = (await admin.jobs.ResumeQueue(resume, metadata=admin.auth)).queue
        assert (resumed.concurrency, resumed.HasField("pause_time")) == (1, False)
        assert (await failing(admin.jobs.ResumeQueue(resume, metadata=admin.auth))).reason == "STATE_FORBIDS"
        running = [await claim(caller, job), await claim(caller, await make(world, client.client_id))]
        assert len([each for each in running if each.job_id]) == max(0, 1 - waits.running)
    finally:
        async with world.database.transaction("reset") as tx:
            await jobs.update_queue_internal(tx, "sync", concurrency=None, paused_because=None)
    wanted = change_service_pb2.ListChangesRequest(filter={"resource_id": before.queue_id})  # type: ignore[arg-type]
    recorded = (await admin.changes.ListChanges(wanted, metadata=admin.auth)).changes
    # The newest first; other tests steer the queue, too.
    assert [change.action for change in recorded[:3]] == ["resume", "update", "pause"]
    assert {field.path for field in recorded[0].fields} == {"pause_reason", "pause_time"}
    for other in (later, dead):
        await jobs.cancel_internal(world.database, other.id)
    pm = await world.user("pm", client.client_id)
    narrow = await world.key([client.client_id], options_pb2.PERMISSION_JOBS_OPERATE)
    for who in (pm, narrow):
        failure = await failing(who.jobs.ListQueues(pb.ListQueuesRequest(), metadata=who.auth))
        assert failure.reason == "PERMISSION_MISSING"
