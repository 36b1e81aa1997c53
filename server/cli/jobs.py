"""`mrm jobs`: background work, and the queues it waits in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
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
from server.cli.console import CommandFailed, out, run, say
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir

if TYPE_CHECKING:
    from mrm.operations.v1.job_service_pb2_grpc import JobServiceAsyncStub

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


@commands.command("list")
def list_(
    client: Annotated[UUID | None, typer.Option(help="Only jobs that work for this client.")] = None,
    queue: Annotated[list[QueueName] | None, typer.Option(help="Only of this queue; repeatable.")] = None,
    status: Annotated[list[Status] | None, typer.Option(help="Only those this far; repeatable.")] = None,
    job_type: Annotated[
        list[str] | None, typer.Option("--type", help="Only those that do this, such as sync_statistics; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many of the newest to show.")] = 50,
    target: remote.Target = None,
    token: remote.Token = None,
    token_file: remote.TokenFile = None,
    tls: remote.Tls = None,
    ca_file: remote.CaFile = None,
    certificate: remote.Certificate = None,
    key: remote.Key = None,
    server_name: remote.ServerName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show jobs, newest first. Those with status failed are the dead letters."""
    encryption = remote.Encryption(tls, ca_file, certificate, key, server_name)
    _run(
        lambda stub: _list(stub, _filter(client, queue, status, job_type), limit),
        target,
        token,
        token_file,
        encryption,
        data_dir,
    )


@commands.command()
def show(
    job: Annotated[UUID, typer.Argument(help="The job.")],
    target: remote.Target = None,
    token: remote.Token = None,
    token_file: remote.TokenFile = None,
    tls: remote.Tls = None,
    ca_file: remote.CaFile = None,
    certificate: remote.Certificate = None,
    key: remote.Key = None,
    server_name: remote.ServerName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show a job and its tries."""
    encryption = remote.Encryption(tls, ca_file, certificate, key, server_name)
    _run(lambda stub: _show(stub, str(job)), target, token, token_file, encryption, data_dir)


@commands.command()
def watch(
    job: Annotated[UUID, typer.Argument(help="The job.")],
    patience: Annotated[float, typer.Option(min=0, help="Seconds to keep trying while the server is away.")] = 300,
    target: remote.Target = None,
    token: remote.Token = None,
    token_file: remote.TokenFile = None,
    tls: remote.Tls = None,
    ca_file: remote.CaFile = None,
    certificate: remote.Certificate = None,
    key: remote.Key = None,
    server_name: remote.ServerName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Follow a job until it has ended: a bar on a terminal, a line per change elsewhere.

    Exit code 1 if it was given up or cancelled. Survives restarts of the server.
    """
    encryption = remote.Encryption(tls, ca_file, certificate, key, server_name)
    _run(lambda stub: follow(stub, str(job), patience), target, token, token_file, encryption, data_dir)


@commands.command()
def cancel(
    job: Annotated[UUID, typer.Argument(help="The job.")],
    target: remote.Target = None,
    token: remote.Token = None,
    token_file: remote.TokenFile = None,
    tls: remote.Tls = None,
    ca_file: remote.CaFile = None,
    certificate: remote.Certificate = None,
    key: remote.Key = None,
    server_name: remote.ServerName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Cancel a job that waits, or ask whoever works on it to stop."""
    encryption = remote.Encryption(tls, ca_file, certificate, key, server_name)
    _run(lambda stub: _cancel(stub, str(job)), target, token, token_file, encryption, data_dir)


@commands.command()
def retry(
    job: Annotated[UUID, typer.Argument(help="The job.")],
    target: remote.Target = None,
    token: remote.Token = None,
    token_file: remote.TokenFile = None,
    tls: remote.Tls = None,
    ca_file: remote.CaFile = None,
    certificate: remote.Certificate = None,
    key: remote.Key = None,
    server_name: remote.ServerName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Bring a job back that was given up."""
    encryption = remote.Encryption(tls, ca_file, certificate, key, server_name)
    _run(lambda stub: _retry(stub, str(job)), target, token, token_file, encryption, data_dir)


@commands.command()
def queues(
    once: Annotated[bool, typer.Option("--once", help="Show the present state and end.")] = False,
    target: remote.Target = None,
    token: remote.Token = None,
    token_file: remote.TokenFile = None,
    tls: remote.Tls = None,
    ca_file: remote.CaFile = None,
    certificate: remote.Certificate = None,
    key: remote.Key = None,
    server_name: remote.ServerName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show what waits in the queues and for how long: live on a terminal, once elsewhere."""
    encryption = remote.Encryption(tls, ca_file, certificate, key, server_name)
    _run(lambda stub: _queues(stub, once), target, token, token_file, encryption, data_dir)


@commands.command()
def pause(
    queue: Annotated[QueueName, typer.Argument(help="The queue.")],
    reason: Annotated[str, typer.Option(help="Why, for whoever wonders.")],
    target: remote.Target = None,
    token: remote.Token = None,
    token_file: remote.TokenFile = None,
    tls: remote.Tls = None,
    ca_file: remote.CaFile = None,
    certificate: remote.Certificate = None,
    key: remote.Key = None,
    server_name: remote.ServerName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Keep jobs of a queue from beginning, in the whole cluster. Running ones go on."""
    encryption = remote.Encryption(tls, ca_file, certificate, key, server_name)
    _run(lambda stub: _pause(stub, queue, reason), target, token, token_file, encryption, data_dir)


@commands.command()
def resume(
    queue: Annotated[QueueName, typer.Argument(help="The queue.")],
    target: remote.Target = None,
    token: remote.Token = None,
    token_file: remote.TokenFile = None,
    tls: remote.Tls = None,
    ca_file: remote.CaFile = None,
    certificate: remote.Certificate = None,
    key: remote.Key = None,
    server_name: remote.ServerName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Let the jobs of a paused queue begin."""
    encryption = remote.Encryption(tls, ca_file, certificate, key, server_name)
    _run(lambda stub: _resume(stub, queue), target, token, token_file, encryption, data_dir)


@commands.command()
def limit(
    queue: Annotated[QueueName, typer.Argument(help="The queue.")],
    jobs: Annotated[int, typer.Argument(min=0, help="Most at a time in the whole cluster; 0 for no limit.")],
    target: remote.Target = None,
    token: remote.Token = None,
    token_file: remote.TokenFile = None,
    tls: remote.Tls = None,
    ca_file: remote.CaFile = None,
    certificate: remote.Certificate = None,
    key: remote.Key = None,
    server_name: remote.ServerName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Set how many jobs of a queue run at a time."""
    encryption = remote.Encryption(tls, ca_file, certificate, key, server_name)
    _run(lambda stub: _limit(stub, queue, jobs), target, token, token_file, encryption, data_dir)


def _run(
    work: Callable[[JobServiceAsyncStub], Awaitable[int]],
    target: str | None,
    token: str | None,
    token_file: Path | None,
    encryption: remote.Encryption,
    data_dir: Path,
) -> None:
    remote.quiet_grpc()

    async def command() -> int:
        async with remote.open_channel(target, token, token_file, encryption, data_dir, watch=True) as channel:
            return await work(JobServiceStub(channel))

    run(command())


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


async def _list(stub: JobServiceAsyncStub, wanted: pb.JobFilter, limit: int) -> int:
    request = pb.ListJobsRequest(filter=wanted)
    found: list[job_pb2.Job] = []
    while len(found) < limit:
        request.page_size = limit - len(found)
        page = await stub.ListJobs(request, timeout=_CALL_SECONDS)
        found += page.jobs
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    if out.is_terminal:
        out.print(table(found))
    else:
        for job in found:
            say(line(job), markup=False)
    return 0


async def _show(stub: JobServiceAsyncStub, job_id: str) -> int:
    reply = await stub.GetJob(pb.GetJobRequest(job_id=job_id), timeout=_CALL_SECONDS)
    say(line(reply.job), markup=False)
    for name in ("payload", "result"):
        if reply.job.HasField(name):
            shown = json_format.MessageToJson(getattr(reply.job, name), indent=None, ensure_ascii=False)
            say(f"{name}: {shown}", markup=False)
    for each in reply.attempts:
        outcome = _word(job_pb2.JobAttempt.Outcome.Name(each.outcome), "OUTCOME_") if each.outcome else "at work"
        because = f": {each.error}" if each.error else ""
        say(f"try {each.attempt} {_time(each.start_time)} by {each.holder}, {outcome}{because}", markup=False)
    return 0


async def follow(stub: JobServiceAsyncStub, job_id: str, patience: float) -> int:
    """Shows a job until it has ended; returns the exit code, 0 if it was completed."""
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


async def _cancel(stub: JobServiceAsyncStub, job_id: str) -> int:
    job = (await stub.CancelJob(pb.CancelJobRequest(job_id=job_id), timeout=_CALL_SECONDS)).job
    say("cancelled" if job.status in _ENDED else "asked to stop")
    return 0


async def _retry(stub: JobServiceAsyncStub, job_id: str) -> int:
    await stub.RetryJob(pb.RetryJobRequest(job_id=job_id), timeout=_CALL_SECONDS)
    say("waits to be tried again")
    return 0


async def _queues(stub: JobServiceAsyncStub, once: bool) -> int:
    async def look() -> Table:
        found = await stub.ListQueues(pb.ListQueuesRequest(), timeout=_CALL_SECONDS)
        return queue_table(found.queues, datetime.now(UTC))

    if once or not out.is_terminal:
        out.print(await look())
        return 0
    with Live(await look(), console=out, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(1)
            live.update(await look(), refresh=True)


async def _pause(stub: JobServiceAsyncStub, queue: QueueName, reason: str) -> int:
    await stub.PauseQueue(pb.PauseQueueRequest(name=_number(queue), reason=reason), timeout=_CALL_SECONDS)
    say(f"{queue} is paused")
    return 0


async def _resume(stub: JobServiceAsyncStub, queue: QueueName) -> int:
    await stub.ResumeQueue(pb.ResumeQueueRequest(name=_number(queue)), timeout=_CALL_SECONDS)
    say(f"{queue} goes on")
    return 0


async def _limit(stub: JobServiceAsyncStub, queue: QueueName, jobs: int) -> int:
    request = pb.UpdateQueueRequest(queue=job_pb2.Queue(name=_number(queue), concurrency=jobs))
    request.update_mask.paths.append("concurrency")
    await stub.UpdateQueue(request, timeout=_CALL_SECONDS)
    say(f"{queue}: at most {jobs} at a time" if jobs else f"{queue}: no limit but the workers' own")
    return 0


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
