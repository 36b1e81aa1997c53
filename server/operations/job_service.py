"""JobService for people: what is to be done, how far it is, and the queues it waits in."""

from uuid import UUID

from mrm.operations.v1 import job_pb2
from mrm.operations.v1 import job_service_pb2 as pb
from server.operations import job_convert
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, NotFound
from server.rpc.paging import Pager
from server.rpc.rights import denied
from server.rpc.values import apply_mask, check_etag, moment, optional_id
from storage.postgres import jobs
from storage.postgres.database import Database
from storage.postgres.jobs import Job, Queue

_ATTEMPTS = 100


class JobRpcs:
    """Implements the RPCs of mrm.operations.v1.JobService by which jobs and queues are seen and steered.

    Args:
        database: Where jobs live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def GetJob(self, request: pb.GetJobRequest, call: Call) -> pb.GetJobResponse:
        """Reads one job."""
        row = await jobs.get(self._database, call.scope, UUID(request.job_id), unowned=sees_unowned(call))
        if row is None:
            raise NotFound.resource("job", request.job_id)
        ended = await jobs.attempts_internal(self._database, row.id, _ATTEMPTS)
        return pb.GetJobResponse(job=job_convert.job(row), attempts=job_convert.attempts(row, ended)[:_ATTEMPTS])

    async def ListJobs(self, request: pb.ListJobsRequest, call: Call) -> pb.ListJobsResponse:
        """Lists visible jobs."""
        page = self._pager.start(request, call)
        wanted = request.filter
        times = wanted.create_times if wanted.HasField("create_times") else None
        rows, next_token = page.cut(
            await jobs.list_page(
                self._database,
                call.scope,
                unowned=sees_unowned(call),
                limit=page.size + 1,
                after=page.after,
                client_id=optional_id(wanted.client_id),
                types=job_convert.TYPES.optional_words(wanted.types),
                queues=job_convert.QUEUES.optional_words(wanted.queues),
                statuses=job_convert.STATUSES.optional_words(wanted.statuses),
                since=None if times is None else moment(times.start_time),
                before=None if times is None else moment(times.end_time),
                requested_by=optional_id(wanted.requested_by),
            )
        )
        return pb.ListJobsResponse(jobs=[job_convert.job(row) for row in rows], next_page_token=next_token)

    async def CancelJob(self, request: pb.CancelJobRequest, call: Mutation) -> pb.CancelJobResponse:
        """Cancels a job, or has it stopped."""
        row = await _locked(call, request.job_id, request.etag)
        changed = await jobs.cancel_internal(call.tx, row.id)
        if changed is None:
            raise FailedPrecondition.transition("job", row.status, "cancelled")
        job = job_convert.job(changed)
        if row.cancel_requested_at is None:
            await call.record(AuditEntry("cancel", "job", row.id, row.client_id, None, job_convert.job(row), job))
        return pb.CancelJobResponse(job=job)

    async def RetryJob(self, request: pb.RetryJobRequest, call: Mutation) -> pb.RetryJobResponse:
        """Brings a dead letter back."""
        row = await _locked(call, request.job_id, request.etag)
        changed = await jobs.retry_internal(call.tx, row.id)
        if changed is None:
            raise FailedPrecondition.transition("job", row.status, "pending")
        job = job_convert.job(changed)
        await call.record(AuditEntry("retry", "job", row.id, row.client_id, None, job_convert.job(row), job))
        return pb.RetryJobResponse(job=job)

    async def ListQueues(self, request: pb.ListQueuesRequest, call: Call) -> pb.ListQueuesResponse:
        """Lists the queues."""
        _check_operator(call)
        page = self._pager.start(request, call)
        found = await jobs.queues_internal(self._database)
        rows, next_token = page.cut([row for row in found if page.after is None or row.id > page.after])
        return pb.ListQueuesResponse(queues=[job_convert.queue(row) for row in rows], next_page_token=next_token)

    async def PauseQueue(self, request: pb.PauseQueueRequest, call: Mutation) -> pb.PauseQueueResponse:
        """Pauses a queue everywhere."""
        row = await _locked_queue(call, request.name, request.etag)
        await jobs.update_queue_internal(call.tx, row.name, concurrency=row.concurrency, paused_because=request.reason)
        return pb.PauseQueueResponse(queue=await _changed_queue(call, "pause", row))

    async def ResumeQueue(self, request: pb.ResumeQueueRequest, call: Mutation) -> pb.ResumeQueueResponse:
        """Lets a queue go on."""
        row = await _locked_queue(call, request.name, request.etag)
        if row.paused_at is None:
            raise FailedPrecondition.transition("queue", "running", "running")
        await jobs.update_queue_internal(call.tx, row.name, concurrency=row.concurrency, paused_because=None)
        return pb.ResumeQueueResponse(queue=await _changed_queue(call, "resume", row))

    async def UpdateQueue(self, request: pb.UpdateQueueRequest, call: Mutation) -> pb.UpdateQueueResponse:
        """Sets a queue's limit."""
        row = await _locked_queue(call, request.queue.name, request.queue.etag)
        wanted = apply_mask(job_convert.queue(row), request.queue, request.update_mask, {"concurrency"}, "queue")
        await jobs.update_queue_internal(
            call.tx,
            row.name,
            concurrency=wanted.concurrency or None,
            paused_because=None if row.paused_at is None else row.pause_reason,
        )
        return pb.UpdateQueueResponse(queue=await _changed_queue(call, "update", row))


def sees_unowned(call: Call) -> bool:
    """Whether the caller may know of jobs that work for no client."""
    return call.scope.everything and "JOBS_OPERATE" in call.principal.permissions


def _check_operator(call: Call) -> None:
    # A key for some clients only has nothing to say over the queues of all.
    if not call.scope.everything:
        raise denied("JOBS_OPERATE")


async def _locked(call: Mutation, job_id: str, etag: str) -> Job:
    """A job to change, as its caller knows it."""
    row = await jobs.get_for_update(call.tx, call.scope, UUID(job_id), unowned=sees_unowned(call))
    if row is None:
        raise NotFound.resource("job", job_id)
    check_etag(etag, row.revision)
    return row


async def _locked_queue(call: Mutation, name: int, etag: str) -> Queue:
    _check_operator(call)
    row = await jobs.lock_queue_internal(call.tx, job_convert.QUEUES.word(name))
    check_etag(etag, row.revision)
    return row


async def _changed_queue(call: Mutation, action: str, before: Queue) -> job_pb2.Queue:
    """The queue as it is now; the change is recorded without what waits there, which is no part of it."""
    changed = await jobs.lock_queue_internal(call.tx, before.name)
    await call.record(
        AuditEntry(action, "job_queue", before.id, None, None, job_convert.queue(before), job_convert.queue(changed))
    )
    [counted] = await jobs.queues_internal(call.tx, before.name)
    return job_convert.queue(counted)
