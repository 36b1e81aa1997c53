"""`mrm jobs`: background work, and the queues it waits in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import grpc
import typer
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mrm.operations.v1 import job_pb2
from mrm.operations.v1 import job_service_pb2 as pb
from mrm.operations.v1.job_service_pb2_grpc import JobServiceStub
from mrm_client import CallError
from mrm_client.retries import Retries
from server.cli import remote
from server.cli.console import CommandFailed, out, say, show_rows

commands = typer.Typer(help="Show and steer background work and its queues.", no_args_is_help=True)

_CALL_SECONDS = 10
_BAR_WIDTH = 30
_ENDED = (job_pb2.JOB_STATUS_COMPLETED, job_pb2.JOB_STATUS_FAILED, job_pb2.JOB_STATUS_CANCELLED)


class QueueName(StrEnum):
    """A queue."""

    SYNC = "sync"
    REPORTS = "reports"
    EMAIL = "email"
    MAINTENANCE = "maintenance"


class Status(StrEnum):
    """How far a job is."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


Job = Annotated[UUID, typer.Argument(help="The job.")]
Queue = Annotated[QueueName, typer.Argument(help="The queue.")]


@commands.command("list")
@remote.reaching
async def list_(
    server: remote.Server,
    client: Annotated[UUID | None, typer.Option(help="Only jobs that work for this client.")] = None,
    queue: Annotated[list[QueueName] | None, typer.Option(help="Only of this queue; repeatable.")] = None,
    status: Annotated[list[Status] | None, typer.Option(help="Only those this far; repeatable.")] = None,
    job_type: Annotated[
        list[str] | None, typer.Option("--type", help="Only those that do this, such as sync_statistics; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest to show.")] = 50,
) -> None:
    """Show jobs, newest first. Those with status failed are the dead letters."""
    request = pb.ListJobsRequest(filter=_filter(client, queue, status, job_type))
    found: list[job_pb2.Job] = []
    async with server.open() as channel:
        while len(found) < limit:
            request.page_size = limit - len(found)
            page = await JobServiceStub(channel).ListJobs(request, timeout=_CALL_SECONDS)
            found += page.jobs
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
    show_rows(found, table, line)


@commands.command()
@remote.reaching
async def show(server: remote.Server, job: Job) -> None:
    """Show a job and its tries."""
    async with server.open() as channel:
        reply = await JobServiceStub(channel).GetJob(pb.GetJobRequest(job_id=str(job)), timeout=_CALL_SECONDS)
    say(line(reply.job), markup=False)
    for name in ("payload", "result"):
        if reply.job.HasField(name):
            shown = json_format.MessageToJson(getattr(reply.job, name), indent=None, ensure_ascii=False)
            say(f"{name}: {shown}", markup=False)
    for each in reply.attempts:
        outcome = _word(job_pb2.JobAttempt.Outcome.Name(each.outcome), "OUTCOME_") if each.outcome else "at work"
        because = f": {each.error}" if each.error else ""
        say(f"try {each.attempt} {_time(each.start_time)} by {each.holder}, {outcome}{because}", markup=False)


@commands.command()
@remote.reaching
async def watch(server: remote.Server, job: Job, patience: remote.Patience = 300) -> int:
    """Follow a job until it has ended: a bar on a terminal, a line per change elsewhere.

    Exit code 1 if it was given up or cancelled. Survives restarts of the server.
    """
    async with server.open(watch=True) as channel:
        return await follow(channel, str(job), patience)


@commands.command()
@remote.reaching
async def cancel(server: remote.Server, job: Job) -> None:
    """Cancel a job that waits, or ask whoever works on it to stop."""
    async with server.open() as channel:
        reply = await JobServiceStub(channel).CancelJob(pb.CancelJobRequest(job_id=str(job)), timeout=_CALL_SECONDS)
    say("cancelled" if reply.job.status in _ENDED else "asked to stop")


@commands.command()
@remote.reaching
async def retry(server: remote.Server, job: Job) -> None:
    """Bring a job back that was given up."""
    async with server.open() as channel:
        await JobServiceStub(channel).RetryJob(pb.RetryJobRequest(job_id=str(job)), timeout=_CALL_SECONDS)
    say("waits to be tried again")


@commands.command()
@remote.reaching
async def queues(
    server: remote.Server,
    once: Annotated[bool, typer.Option("--once", help="Show the present state and end.")] = False,
) -> None:
    """Show what waits in the queues and for how long: live on a terminal, once elsewhere."""
    async with server.open() as channel:
        stub = JobServiceStub(channel)

        async def look() -> Table:
            found = await stub.ListQueues(pb.ListQueuesRequest(), timeout=_CALL_SECONDS)
            return queue_table(found.queues, datetime.now(UTC))

        if once or not out.is_terminal:
            out.print(await look())
            return
        with Live(await look(), console=out, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(1)
                live.update(await look(), refresh=True)


@commands.command()
@remote.reaching
async def pause(
    server: remote.Server,
    queue: Queue,
    reason: Annotated[str, typer.Option(help="Why, for whoever wonders.")],
) -> None:
    """Keep jobs of a queue from beginning, in the whole cluster. Running ones go on."""
    request = pb.PauseQueueRequest(name=_number(queue), reason=reason)
    async with server.open() as channel:
        await JobServiceStub(channel).PauseQueue(request, timeout=_CALL_SECONDS)
    say(f"{queue} is paused")


@commands.command()
@remote.reaching
async def resume(server: remote.Server, queue: Queue) -> None:
    """Let the jobs of a paused queue begin."""
    async with server.open() as channel:
        await JobServiceStub(channel).ResumeQueue(pb.ResumeQueueRequest(name=_number(queue)), timeout=_CALL_SECONDS)
    say(f"{queue} goes on")


@commands.command()
@remote.reaching
async def limit(
    server: remote.Server,
    queue: Queue,
    jobs: Annotated[int, typer.Argument(min=0, help="Most at a time in the whole cluster; 0 for no limit.")],
) -> None:
    """Set how many jobs of a queue run at a time."""
    request = pb.UpdateQueueRequest(queue=job_pb2.Queue(name=_number(queue), concurrency=jobs))
    request.update_mask.paths.append("concurrency")
    async with server.open() as channel:
        await JobServiceStub(channel).UpdateQueue(request, timeout=_CALL_SECONDS)
    say(f"{queue}: at most {jobs} at a time" if jobs else f"{queue}: no limit but the workers' own")


def _filter(
    client: UUID | None, queue: list[QueueName] | None, status: list[Status] | None, job_type: list[str] | None
) -> pb.JobFilter:
    try:
        types = [job_pb2.JobType.Value(f"JOB_TYPE_{name.upper()}") for name in job_type or ()]
    except ValueError:
        known = ", ".join(_word(name, "JOB_TYPE_") for name in job_pb2.JobType.keys()[1:])
        raise CommandFailed(f"--type is one of {known}") from None
    return pb.JobFilter(
        client_id=str(client or ""),
        types=types,
        queues=[_number(name) for name in queue or ()],
        statuses=[job_pb2.JobStatus.Value(f"JOB_STATUS_{name.upper()}") for name in status or ()],
    )


async def follow(channel: grpc.aio.Channel, job_id: str, patience: float) -> int:
    """Shows a job until it has ended; returns the exit code, 0 if it was completed."""
    stub = JobServiceStub(channel)
    job: job_pb2.Job | None = None
    with ExitStack() as stack:
        live = stack.enter_context(Live(Text(job_id), console=out)) if out.is_terminal else None

        def tell(text: str) -> None:
            if live is None:
                say(text, markup=False)
            else:
                live.update(Text(text))

        retries = Retries(patience, lambda error, pause: tell(f"{error}; trying again in {pause:.0f} s"))
        while job is None or job.status not in _ENDED:
            try:
                async for message in stub.WatchJob(pb.WatchJobRequest(job_id=job_id)):
                    retries.succeeded()
                    if message.HasField("job"):
                        job = message.job
                        tell(line(job))
            except grpc.aio.AioRpcError as error:
                await retries.pause_or_raise(CallError.of_rpc(error))
    return 0 if job.status == job_pb2.JOB_STATUS_COMPLETED else 1


def table(found: Iterable[job_pb2.Job]) -> Table:
    """Jobs to be read at once."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("made", "job", "type", "status", "tries"):
        shown.add_column(heading, no_wrap=True)
    shown.add_column("what of it", overflow="fold")
    for job in found:
        tries = f"{job.attempts}/{job.max_attempts}"
        cells = (_time(job.create_time), job.job_id, _type(job), _status(job), tries, _remark(job))
        shown.add_row(*(escape(cell) for cell in cells))
    return shown


def line(job: job_pb2.Job) -> str:
    """One job in a line."""
    head = f"{job.job_id} {_type(job)} {_status(job)} {job.attempts}/{job.max_attempts}"
    remark = _remark(job)
    return f"{head}: {remark}" if remark else head


def queue_table(queues: Iterable[job_pb2.Queue], now: datetime) -> Table:
    """The queues, with how much waits in each."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("queue")
    for heading in ("due", "oldest", "later", "running", "limit", "failed"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("", overflow="fold")
    for queue in queues:
        age = ""
        if queue.HasField("oldest_due_time"):
            age = f"{max(0.0, (now - queue.oldest_due_time.ToDatetime(UTC)).total_seconds()):,.0f} s"
        figures = (queue.due, age, queue.later, queue.running, queue.concurrency or "", queue.failed)
        state = f"[yellow]paused[/]: {escape(queue.pause_reason)}" if queue.HasField("pause_time") else ""
        name = _word(job_pb2.QueueName.Name(queue.name), "QUEUE_NAME_")
        shown.add_row(name, *(f"{each:,}" if isinstance(each, int) else each for each in figures), state)
    return shown


def _remark(job: job_pb2.Job) -> str:
    if job.status not in _ENDED and job.HasField("cancel_request_time"):
        return "asked to stop"
    if job.status == job_pb2.JOB_STATUS_PROCESSING and job.HasField("progress"):
        return _course(job.progress)
    return job.held_because or job.error


def _course(progress: job_pb2.JobProgress) -> str:
    if not progress.total:
        return f"{progress.done:,} {progress.note}".rstrip()
    share = min(1.0, progress.done / progress.total)
    bar = "━" * round(share * _BAR_WIDTH)
    return f"{bar:╌<{_BAR_WIDTH}} {progress.done:,}/{progress.total:,} {progress.note}".rstrip()


def _time(moment: Timestamp) -> str:
    return moment.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _type(job: job_pb2.Job) -> str:
    return _word(job_pb2.JobType.Name(job.type), "JOB_TYPE_")


def _status(job: job_pb2.Job) -> str:
    return _word(job_pb2.JobStatus.Name(job.status), "JOB_STATUS_")


def _number(queue: QueueName) -> job_pb2.QueueName.ValueType:
    return job_pb2.QueueName.Value(f"QUEUE_NAME_{queue.upper()}")


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
