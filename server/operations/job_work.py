"""JobService for workers: whoever takes an entry from a queue, in whatever language, begins and ends its try here."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any
from uuid import UUID

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from mrm.operations.v1 import job_service_pb2 as pb
from server.operations import job_convert
from server.rpc.call import Call, Mutation
from server.rpc.errors import Aborted, NotFound
from server.settings import JobsSettings
from storage.postgres import jobs
from storage.postgres.database import Database
from storage.postgres.jobs import Job

_ATTEMPTS = 100


class JobWorkRpcs:
    """Implements the RPCs of mrm.operations.v1.JobService by which jobs are done.

    What they change is not in the record of changes: the tries of a job are their own record.

    Args:
        database: Where jobs live.
        settings: How long a claim holds.
    """

    def __init__(self, database: Database, settings: JobsSettings) -> None:
        self._database = database
        self._lease = timedelta(seconds=settings.lease)

    async def ClaimJob(self, request: pb.ClaimJobRequest, call: Mutation) -> pb.ClaimJobResponse:
        """Begins a try, if there is something to do."""
        wanted: UUID | None
        if request.WhichOneof("target") == "job_id":
            wanted = UUID(request.job_id)
            if await jobs.get(call.tx, call.scope, wanted, unowned=call.scope.everything) is None:
                raise NotFound.resource("job", request.job_id)
        else:
            queue = job_convert.QUEUES.word(request.queue)
            wanted = await jobs.next_id(call.tx, call.scope, queue, unowned=call.scope.everything)
            if wanted is None:
                return pb.ClaimJobResponse()
        lease = self._lease_of(request)
        claimed = await jobs.claim_internal(call.tx, [wanted], request.holder, lease)
        claimed = claimed or await jobs.claim_limited_internal(call.tx, [wanted], request.holder, lease)
        return pb.ClaimJobResponse(job=job_convert.job(claimed[0]) if claimed else None)

    async def HeartbeatJob(self, request: pb.HeartbeatJobRequest, call: Call) -> pb.HeartbeatJobResponse:
        """Prolongs a claim."""
        row = await self._seen(request.job_id, call)
        told: dict[str, Any] | None = None
        if request.HasField("progress"):
            progress = request.progress
            told = {"done": progress.done, "total": progress.total, "note": progress.note}
        asked = await jobs.heartbeat_internal(self._database, row.id, request.fence, self._lease_of(request), told)
        if asked is None:
            raise _fenced()
        return pb.HeartbeatJobResponse(cancel_requested=asked)

    async def CompleteJob(self, request: pb.CompleteJobRequest, call: Call) -> pb.CompleteJobResponse:
        """Ends a try well."""
        row = await self._seen(request.job_id, call)
        result = json_format.MessageToDict(request.result)
        if not await jobs.complete_internal(self._database, [(row.id, request.fence, result)]):
            await self._check_ended(row, request.fence, {"completed"})
        return pb.CompleteJobResponse(job=job_convert.job(await self._seen(request.job_id, call)))

    async def FailJob(self, request: pb.FailJobRequest, call: Call) -> pb.FailJobResponse:
        """Ends a try that failed."""
        row = await self._seen(request.job_id, call)
        if not await jobs.fail_internal(self._database, row.id, request.fence, request.error, final=request.final):
            await self._check_ended(row, request.fence, {"failed", "cancelled"})
        return pb.FailJobResponse(job=job_convert.job(await self._seen(request.job_id, call)))

    async def ReleaseJob(self, request: pb.ReleaseJobRequest, call: Call) -> pb.ReleaseJobResponse:
        """Gives a try back."""
        row = await self._seen(request.job_id, call)
        if not await jobs.release_internal(self._database, row.id, request.fence):
            await self._check_ended(row, request.fence, {"released"})
        return pb.ReleaseJobResponse(job=job_convert.job(await self._seen(request.job_id, call)))

    async def _seen(self, job_id: str, call: Call) -> Job:
        row = await jobs.get(self._database, call.scope, UUID(job_id), unowned=call.scope.everything)
        if row is None:
            raise NotFound.resource("job", job_id)
        return row

    async def _check_ended(self, row: Job, fence: int, outcomes: Collection[str]) -> None:
        """A report that comes again changes nothing and is no error; one of a try that ended otherwise is."""
        ended = await jobs.attempts_internal(self._database, row.id, _ATTEMPTS)
        if not any(each.fence == fence and each.outcome in outcomes for each in ended):
            raise _fenced()

    def _lease_of(self, request: Message) -> timedelta:
        given: Duration = request.lease  # type: ignore[attr-defined]
        return given.ToTimedelta() if request.HasField("lease") else self._lease


def _fenced() -> Aborted:
    return Aborted("the try is no longer the present one: stop", reason="JOB_FENCED")
