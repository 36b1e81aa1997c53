"""Jobs, tries and queues as messages."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, struct_pb2

from mrm.operations.v1 import job_pb2
from server.rpc.values import EnumWords, etag, timestamp
from storage.postgres.jobs import Attempt, Job, Queue

TYPES = EnumWords(job_pb2.JobType, "JOB_TYPE_")
STATUSES = EnumWords(job_pb2.JobStatus, "JOB_STATUS_")
QUEUES = EnumWords(job_pb2.QueueName, "QUEUE_NAME_")
_OUTCOMES = EnumWords(job_pb2.JobAttempt.Outcome, "OUTCOME_")


def job(row: Job) -> job_pb2.Job:
    """A job as callers see it."""
    return job_pb2.Job(
        job_id=str(row.id),
        type=TYPES.number(row.type),
        queue=QUEUES.number(row.queue),
        status=STATUSES.number(row.status),
        client_id=_text(row.client_id),
        requested_by=_text(row.requested_by),
        priority=row.priority,
        unique_key=row.unique_key or "",
        trace_id=row.trace_id,
        payload=_struct(row.payload),
        progress=_progress(row.progress),
        result=None if row.result is None else _struct(row.result),
        error=row.error or "",
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        fence=row.fence,
        lease_holder=row.lease_holder or "",
        lease_expire_time=timestamp(row.lease_expires_at),
        schedule_time=timestamp(row.scheduled_at),
        start_time=timestamp(row.started_at),
        end_time=timestamp(row.completed_at),
        cancel_request_time=timestamp(row.cancel_requested_at),
        throttle_key=row.throttle_key or "",
        throttle_limit=row.throttle_limit or 0,
        held_because=row.held_because,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        etag=etag(row.revision),
    )


def attempts(row: Job, ended: list[Attempt]) -> list[job_pb2.JobAttempt]:
    """The tries of a job, newest first, with the one that has not ended."""
    past = [
        job_pb2.JobAttempt(
            fence=each.fence,
            attempt=each.attempt,
            holder=each.holder,
            start_time=timestamp(each.started_at),
            end_time=timestamp(each.ended_at),
            outcome=_OUTCOMES.number(each.outcome),
            error=each.error,
        )
        for each in ended
    ]
    if row.lease_holder is None:
        return past
    present = job_pb2.JobAttempt(
        fence=row.fence, attempt=row.attempts, holder=row.lease_holder, start_time=timestamp(row.started_at)
    )
    return [present, *past]


def queue(row: Queue) -> job_pb2.Queue:
    """A queue as callers see it."""
    return job_pb2.Queue(
        queue_id=str(row.id),
        name=QUEUES.number(row.name),
        concurrency=row.concurrency or 0,
        pause_time=timestamp(row.paused_at),
        pause_reason=row.pause_reason,
        due=row.due,
        later=row.later,
        running=row.running,
        failed=row.failed,
        oldest_due_time=timestamp(row.oldest_due_at),
        etag=etag(row.revision),
    )


def _progress(told: Mapping[str, Any]) -> job_pb2.JobProgress | None:
    if not told:
        return None
    return job_pb2.JobProgress(done=told.get("done", 0), total=told.get("total", 0), note=told.get("note", ""))


def _struct(plain: Mapping[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(dict(plain), struct_pb2.Struct())


def _text(value: object | None) -> str:
    return "" if value is None else str(value)
