"""The process that runs jobs: delivers what is due, claims what comes, and cleans up after workers that were lost."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from server.jobs import retention
from server.jobs.handling import Handler, JobCancelled, JobContext, JobFailed, JobPostponed, LeaseLost, Stores
from server.jobs.retention import ApplyRetention
from server.jobs.together import Together
from server.mail import send_job
from server.monitoring.events import JOB_SECONDS, JOBS_ENDED
from server.pacing import check_job
from server.pacing.check_job import CheckBudgets
from server.reports import making as report_making
from server.reports import report_job
from server.retention import archive_job, erase_job
from server.retention.archive_job import ArchivePartition
from server.rpc import logs
from server.search import embed_job, reconcile_job
from server.search.embed_job import EmbedItems
from server.search.reconcile_job import ReconcileVectors
from server.statistics import rollup_job
from server.statistics.rollup_job import RollupDaily
from server.sync import entities_job, statistics_job
from server.sync.making import SyncJob
from storage.errors import StoreError
from storage.postgres import embeddings, jobs
from storage.postgres.database import Executor, Transaction
from storage.postgres.jobs import Job
from storage.redis.queues import JobConsumer, JobQueues

_BATCH = 500
_TOGETHER = 100
_HEARD_SECONDS = 2.0

HANDLERS: Mapping[str, Handler] = {
    retention.TYPE: retention.handle,
    rollup_job.TYPE: rollup_job.handle,
    check_job.TYPE: check_job.handle,
    send_job.TYPE: send_job.handle,
    report_making.TYPE: report_job.handle,
    entities_job.TYPE: entities_job.handle,
    statistics_job.TYPE: statistics_job.handle,
    embed_job.TYPE: embed_job.handle,
    reconcile_job.TYPE: reconcile_job.handle,
    archive_job.TYPE: archive_job.handle,
    erase_job.TYPE: erase_job.handle,
}
"""What this code can do, by the type of job."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job that is made again and again, once in the whole cluster.

    What is to be done for each client, or each account, is one such job whose handler makes a job for each of them with
    `jobs.enqueue_internal`, under a `unique_key` that names client or account: each is then tried, seen, throttled and
    cancelled by itself, and one that still waits or runs is not made twice.

    Attributes:
        name: Names it for good; also the key that keeps a second one from being made while the first one runs.
        every: Time between two.
        type: What to do.
        queue: Whose workers are to do it.
        payload: What its handler needs to know.
        when: Whether there is anything to do; without it there always is.
    """

    name: str
    every: timedelta
    type: str
    queue: str
    payload: Mapping[str, object]
    when: Callable[[Executor], Awaitable[bool]] | None = None


SCHEDULES: Sequence[Schedule] = (
    Schedule(
        "expired_replies",
        timedelta(minutes=10),
        retention.TYPE,
        retention.QUEUE,
        ApplyRetention(table="idempotency_keys").model_dump(),
    ),
    Schedule(
        "ended_jobs", timedelta(hours=6), retention.TYPE, retention.QUEUE, ApplyRetention(table="jobs").model_dump()
    ),
    Schedule(
        archive_job.KEY.removeprefix("schedule:"),
        timedelta(hours=24),
        archive_job.TYPE,
        archive_job.QUEUE,
        ArchivePartition().model_dump(mode="json"),
    ),
    Schedule("budgets", timedelta(hours=1), check_job.TYPE, check_job.QUEUE, CheckBudgets().model_dump(mode="json")),
    Schedule(
        "said_in_emails",
        timedelta(hours=6),
        retention.TYPE,
        retention.QUEUE,
        ApplyRetention(table="emails").model_dump(),
    ),
    Schedule(
        "due_accounts", timedelta(minutes=1), entities_job.TYPE, entities_job.QUEUE, SyncJob().model_dump(mode="json")
    ),
    Schedule(
        "ended_days", timedelta(minutes=5), rollup_job.TYPE, rollup_job.QUEUE, RollupDaily().model_dump(mode="json")
    ),
    Schedule(
        "changed_texts",
        timedelta(seconds=2),
        embed_job.TYPE,
        embed_job.QUEUE,
        EmbedItems().model_dump(),
        embeddings.waiting_internal,
    ),
    Schedule("vectors", timedelta(hours=24), reconcile_job.TYPE, reconcile_job.QUEUE, ReconcileVectors().model_dump()),
)
"""What is done by the clock."""


class JobWorker:
    """Runs jobs. Any number of them share the work, without knowing of each other.

    Args:
        stores: Where jobs and queues are, and what handlers may work on.
        handlers: What can be done, by the type of job.
        schedules: What is done by the clock.
    """

    def __init__(
        self,
        stores: Stores,
        handlers: Mapping[str, Handler] = HANDLERS,
        schedules: Sequence[Schedule] = SCHEDULES,
    ) -> None:
        self._stores = stores
        self._database = stores.database
        self._redis_dsn = stores.settings.redis.durable_dsn.get_secret_value()
        self._settings = stores.settings.jobs
        self._handlers = handlers
        self._schedules = schedules
        self._lease = timedelta(seconds=self._settings.lease)
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid7()}"
        self._running: set[asyncio.Task[None]] = set()
        self._claim = Together(self._claim_all, _TOGETHER)
        self._complete = Together(self._complete_all, _TOGETHER)
        self._room = asyncio.Event()
        self._log = logs.get("worker")

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; then takes nothing new, waits for what runs, and gives back what does not end."""
        queues = JobQueues(self._redis_dsn)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(queues.close)
            loops = [
                asyncio.create_task(self._again("delivery_failed", lambda: self._deliver(queues), self._room)),
                asyncio.create_task(self._again("sweep_failed", self._sweep, asyncio.Event())),
                asyncio.create_task(self._again("schedule_failed", self._schedule, asyncio.Event())),
            ]
            consumers = [
                asyncio.create_task(JobConsumer(self._redis_dsn, queue, concurrency, self._take).run())
                for queue, concurrency in self._settings.concurrency.items()
            ]
            self._log.info("working", queues=list(self._settings.concurrency))
            stopped = asyncio.create_task(stop.wait())
            try:
                ended, _ = await asyncio.wait({stopped, *loops, *consumers}, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    # None but the first ends unless it has a defect: better no worker than half of one.
                    task.result()
            finally:
                stopped.cancel()
                self._log.info("draining", jobs=len(self._running))
                await _end(consumers)
                await self._drain()
                await _end(loops)
        self._log.info("stopped")

    async def _drain(self) -> None:
        if not self._running:
            return
        _, late = await asyncio.wait(self._running, timeout=self._settings.drain_seconds)
        await _end(late)

    async def _again(self, failure: str, work: Callable[[], Awaitable[bool]], news: asyncio.Event) -> None:
        """Does something for ever, with a pause whenever there was nothing to do that news may cut short.

        Survives the loss of the stores.
        """
        while True:
            news.clear()
            try:
                more = await work()
            except (StoreError, TimeoutError) as error:
                self._log.warning(failure, exc_info=error)
                more = False
            if not more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.tick):
                        await news.wait()

    async def _deliver(self, queues: JobQueues) -> bool:
        """Puts what is due on the queues. Should that fail after the rows say it was done, it is repeated later."""
        redeliver = timedelta(seconds=self._settings.redeliver)
        due = await jobs.take_due_internal(self._database, redeliver, _BATCH)
        if due:
            await queues.add(due)
        return len(due) == _BATCH

    async def _sweep(self) -> bool:
        lost = await jobs.sweep_internal(self._database, _BATCH)
        if lost:
            self._log.warning("workers_lost", jobs=lost)
        return lost == _BATCH

    async def _schedule(self) -> bool:
        due = await jobs.due_schedules_internal(self._database, {each.name: each.every for each in self._schedules})
        for schedule in self._schedules:
            if schedule.name not in due:
                continue
            async with self._database.transaction("schedule_job") as tx:
                await _make(tx, schedule)
        return False

    async def _take(self, job_id: UUID) -> None:
        """Does a job that a queue has delivered, if it is still to be done."""
        # The end of the queue's connection, as at shutdown, does not end the job.
        task = asyncio.create_task(self._do(job_id))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.shield(task)

    async def _do(self, job_id: UUID) -> None:
        job = await self._claim(job_id)
        if job is None:
            return
        logs.bind_request(job.trace_id or str(job.id))
        try:
            await self._attempt(job)
        except LeaseLost:
            self._log.warning("lease_lost", job=str(job.id), type=job.type)
        except asyncio.CancelledError:
            await asyncio.shield(jobs.release_internal(self._database, job.id, job.fence))
            raise
        finally:
            if job.throttle_key is not None:
                # Another one may begin now.
                self._room.set()

    async def _claim_all(self, job_ids: Sequence[UUID]) -> list[Job | None]:
        claimed = await jobs.claim_internal(self._database, job_ids, self._holder, self._lease)
        found = {job.id: job for job in claimed}
        left = set(job_ids) - found.keys()
        if left:
            async with self._database.transaction("claim_limited") as tx:
                claimed = await jobs.claim_limited_internal(tx, left, self._holder, self._lease)
            found |= {job.id: job for job in claimed}
        # A delivery and its repetition may come together: one of them is the job.
        return [found.pop(job_id, None) for job_id in job_ids]

    async def _complete_all(self, ended: Sequence[tuple[UUID, int, Mapping[str, object]]]) -> list[bool]:
        done = await jobs.complete_internal(self._database, ended)
        return [job_id in done for job_id, _, _ in ended]

    async def _attempt(self, job: Job) -> None:
        handler = self._handlers.get(job.type)
        begun = time.perf_counter()
        try:
            if handler is None:
                raise JobFailed(f"this worker does not know jobs of type {job.type}")
            result = await self._kept(handler, job)
        except LeaseLost:
            raise
        except JobCancelled:
            status = await jobs.fail_internal(self._database, job.id, job.fence, "cancelled", final=True)
        except JobPostponed as wait:
            released = await jobs.release_internal(self._database, job.id, job.fence, wait.delay, wait.reason)
            status = "postponed" if released else None
        except JobFailed as error:
            status = await jobs.fail_internal(self._database, job.id, job.fence, error.message, final=error.final)
        except Exception as error:
            # Its text may say anything, and whoever sees the job would read it.
            self._log.error("job_failed", job=str(job.id), type=job.type, exc_info=error)
            status = await jobs.fail_internal(
                self._database, job.id, job.fence, f"internal error: {type(error).__name__}"
            )
        else:
            done = await self._complete((job.id, job.fence, result))
            status = "completed" if done else None
        if status is None:
            JOBS_ENDED.labels(job.type, "lease_lost").inc()
            raise LeaseLost
        JOBS_ENDED.labels(job.type, status).inc()
        JOB_SECONDS.labels(job.type).observe(time.perf_counter() - begun)
        self._log.info("job_ended", job=str(job.id), type=job.type, status=status)

    async def _kept(self, handler: Handler, job: Job) -> Mapping[str, object]:
        """Runs a handler and keeps its lease; stops it when the lease is lost."""
        context = JobContext(self._stores, job, self._lease)
        work = asyncio.ensure_future(handler(job, context))
        keeper = asyncio.create_task(self._keep(context))
        try:
            await asyncio.wait({work, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await keeper
            return await work or {}
        finally:
            await _end((work, keeper))

    async def _keep(self, context: JobContext) -> None:
        """Prolongs a lease until it is lost, or cannot be prolonged for as long as it lasts.

        Raises:
            LeaseLost: Always.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._settings.lease
        while True:
            await asyncio.sleep(self._settings.lease / 4)
            begun = loop.time()
            try:
                await context.heartbeat()
                ends = begun + self._settings.lease
            except (StoreError, TimeoutError) as error:
                self._log.warning("heartbeat_failed", exc_info=error)
            if loop.time() >= ends:
                raise LeaseLost


async def _end(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancels tasks and waits for their end, whatever it is."""
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        # asyncio.wait_for, which libraries use, loses a cancellation that comes together with a result: say it again.
        _, waiting = await asyncio.wait(waiting, timeout=_HEARD_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)


async def _make(tx: Transaction, schedule: Schedule) -> None:
    moved = await jobs.move_schedule_internal(tx, schedule.name, schedule.every)
    if moved and (schedule.when is None or await schedule.when(tx)):
        await jobs.enqueue_internal(
            tx,
            type=schedule.type,
            queue=schedule.queue,
            payload=schedule.payload,
            unique_key=f"schedule:{schedule.name}",
        )
