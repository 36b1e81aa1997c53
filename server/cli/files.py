"""`mrm import [file]`: a Parquet or Arrow file through object storage into a client's statistics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import grpc
import typer
import typer.core
from rich.markup import escape

from mrm.statistics.v1 import snapshot_pb2
from mrm.statistics.v1 import statistics_file_service_pb2 as pb
from mrm.statistics.v1.statistics_file_service_pb2_grpc import StatisticsFileServiceStub
from mrm_client import CallError
from server.cli import campaigns_file, remote
from server.cli.console import CommandFailed, Meter, progress, say

_PIECE_BYTES = 1 << 20
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0


class Rows(StrEnum):
    """What the rows of a file are."""

    EVENTS = "events"
    METRICS = "metrics"


class Source(StrEnum):
    """Where figures come from."""

    PLATFORM = "platform"
    ANALYTICS = "analytics"
    IMPORT = "import"
    BACKFILL = "backfill"


class _FileByDefault(typer.core.TyperGroup):
    """`mrm import FILE` is `mrm import file FILE`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name, or the one for files of statistics."""
        known = bool(args) and args[0] in self.list_commands(ctx)
        return super().resolve_command(ctx, args if known else ["file", *args])


commands = typer.Typer(
    cls=_FileByDefault,
    help="Import files: of statistics, through object storage (`mrm import FILE`), or of campaigns.",
    no_args_is_help=True,
    context_settings={"ignore_unknown_options": True},
)
commands.command()(campaigns_file.campaigns)


@commands.command("file")
@remote.reaching
async def import_(
    server: remote.Server,
    file: Annotated[str, typer.Argument(help="FILE.parquet or FILE.arrow here, or the key of one in object storage.")],
    client: Annotated[UUID, typer.Option(help="Client the campaigns belong to.")],
    rows: Annotated[Rows, typer.Option("--as", help="What the rows are.")] = Rows.EVENTS,
    source: Annotated[Source, typer.Option(help="Where figures come from (--as metrics).")] = Source.IMPORT,
    version: Annotated[
        int, typer.Option(min=0, help="Order of readings (--as metrics); default: the present time. Keep it to repeat.")
    ] = 0,
    patience: remote.Patience = 300,
) -> None:
    """Import a Parquet or Arrow file of events or of hourly or daily figures; safe to repeat.

    The file is put into object storage, checked as a whole and stored from there; a file with a single fault is refused
    before anything is stored. Events may lie at any time since the raw floor. `describe
    mrm.statistics.v1.StatisticsFileService` names the columns.
    """
    async with server.open() as channel:
        stub = StatisticsFileServiceStub(channel)
        key = file if file.startswith("clients/") else await _upload(stub, client, Path(file))
        await _import(_caller(stub, client, key, rows, source, version), patience)


async def _upload(stub: Any, client: UUID, path: Path) -> str:
    """Puts a file into object storage; returns its key."""
    size = _size(path)

    async def requests(meter: Meter) -> AsyncIterator[pb.UploadStatisticsFileRequest]:
        yield pb.UploadStatisticsFileRequest(client_id=str(client), file_name=path.name)
        sent = 0
        with path.open("rb") as opened:
            while piece := await asyncio.to_thread(opened.read, _PIECE_BYTES):
                yield pb.UploadStatisticsFileRequest(data=piece)
                sent += len(piece)
                meter(sent)

    with progress("uploading", size, "bytes") as meter:
        replies = [reply async for reply in stub.UploadStatisticsFile(requests(meter))]
    [reply] = replies
    say(f"stored as {escape(reply.file.key)}")
    return str(reply.file.key)


def _size(path: Path) -> int:
    if not path.is_file():
        raise CommandFailed(f"{path}: no such file")
    return path.stat().st_size


Caller = Callable[[str], Any]


def _caller(stub: Any, client: UUID, key: str, rows: Rows, source: Source, version: int) -> Caller:
    """What begins the import, or goes on from a token."""
    if rows is Rows.EVENTS:
        return lambda token: stub.ImportEvents(
            pb.ImportEventsRequest(client_id=str(client), key=key, resume_token=token)
        )
    reading = version or time.time_ns() // 1_000_000
    return lambda token: stub.ImportMetrics(
        pb.ImportMetricsRequest(
            client_id=str(client),
            key=key,
            source=snapshot_pb2.MetricsSource.Value(f"METRICS_SOURCE_{source.name}"),
            version=reading,
            resume_token=token,
        )
    )


async def _import(call: Caller, patience: float) -> None:
    token, pause, silent_since = "", _FIRST_PAUSE_SECONDS, time.monotonic()
    while True:
        try:
            async for reply in _followed(call(token)):
                # None while rows are checked, again after a reconnect.
                token = reply.resume_token or token
                pause, silent_since = _FIRST_PAUSE_SECONDS, time.monotonic()
            return
        except grpc.aio.AioRpcError as rpc_error:
            error = CallError.of_rpc(rpc_error)
            if error.code != grpc.StatusCode.UNAVAILABLE or time.monotonic() - silent_since > patience:
                raise _with_rows(error) from None
            say(f"{error}; trying again in {pause:.1f} s", markup=False)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


async def _followed(call: Any) -> AsyncIterator[Any]:
    """The messages of an import, each shown."""
    started = time.monotonic()
    replies = aiter(call)
    reply = await anext(replies)
    total = reply.total_row_count
    with progress("checking", total, "rows") as meter:
        while reply.phase == pb.IMPORT_PHASE_CHECKING:
            yield reply
            meter(reply.row_count)
            reply = await anext(replies)
    with progress("storing", total, "rows") as meter:
        while reply.phase != pb.IMPORT_PHASE_DONE:
            yield reply
            meter(reply.row_count)
            reply = await anext(replies)
    yield reply
    aside = (
        f"{reply.quarantined_count:,} put aside because they lie in the future"
        if isinstance(reply, pb.ImportEventsResponse)
        else f"{reply.stale_count:,} stale"
    )
    seconds = time.monotonic() - started
    say(f"[green]✓[/] {total:,} rows in {seconds:.1f} s: {reply.stored_count:,} stored, {aside}")


def _with_rows(error: CallError) -> Exception:
    """The faults of a refused file, a line each."""
    if not error.violations:
        return error
    return CommandFailed(
        "the file is refused, nothing is stored: " + "; ".join(f"{p}: {t}" for p, t in error.violations)
    )
