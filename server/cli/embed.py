"""`mrm embed`: the vectors by which things are found, and work on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Annotated
from uuid import uuid4

import grpc
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mrm.ai.v1 import embedding_pb2
from mrm.ai.v1 import embedding_service_pb2 as pb
from mrm.ai.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from server.cli import jobs, remote
from server.cli.console import CommandFailed, out, say, show_rows

commands = typer.Typer(help="Look after the vectors by which search finds things.", no_args_is_help=True)

Kind = Annotated[str, typer.Argument(help="Which things, for example project.")]

_CALL_SECONDS = 10
_POLL_SECONDS = 0.5
_STATES = embedding_pb2.EmbeddingCollectionState


@commands.command()
@remote.reaching
async def status(server: remote.Server) -> int:
    """Show how far the vectors are: a table on a terminal, a line each elsewhere. Exit code 1 if Milvus is away."""
    async with server.open() as channel:
        reply = await _status(channel)
    show_rows([(kind, each) for kind in reply.kinds for each in _collections(kind)], table, line)
    if not reply.model:
        say("no Milvus is configured: nothing is found by meaning", style="red")
    elif not reply.available:
        say("Milvus does not answer; what changes meanwhile is embedded afterwards", style="red")
    return 0 if reply.available else 1


@commands.command("run")
@remote.reaching
async def run_(server: remote.Server, patience: remote.Patience = 300) -> int:
    """Embed what waits, with progress. Exit code 1 if that failed."""
    async with server.open(watch=True) as channel:
        request = pb.RunEmbeddingRequest(request_id=str(uuid4()))
        reply = await EmbeddingServiceStub(channel).RunEmbedding(request, timeout=_CALL_SECONDS)
        return await jobs.follow(channel, reply.job_id, patience)


@commands.command()
@remote.reaching
async def check(
    server: remote.Server,
    kind: Annotated[str, typer.Option(help="Only these things.")] = "",
    patience: remote.Patience = 300,
) -> int:
    """Compare the vectors with what they stand for, and put right what differs. Exit code 1 if that failed."""
    async with server.open(watch=True) as channel:
        request = pb.ReconcileEmbeddingsRequest(kind=kind, request_id=str(uuid4()))
        reply = await EmbeddingServiceStub(channel).ReconcileEmbeddings(request, timeout=_CALL_SECONDS)
        return await jobs.follow(channel, reply.job_id, patience) or await _drained(channel, kind, patience)


@commands.command()
@remote.reaching
async def rebuild(server: remote.Server, kind: Kind, patience: remote.Patience = 3600) -> int:
    """Embed all things of a kind anew, with progress; searches find them meanwhile. Exit code 1 if that failed."""
    async with server.open(watch=True) as channel:
        request = pb.ReembedKindRequest(kind=kind, request_id=str(uuid4()))
        reply = await EmbeddingServiceStub(channel).ReembedKind(request, timeout=_CALL_SECONDS)
        return await jobs.follow(channel, reply.job_id, patience) or await _drained(channel, kind, patience)


async def _drained(channel: grpc.aio.Channel, kind: str, patience: float) -> int:
    """Waits until nothing of a kind, or of any, is left to be embedded."""
    until = time.monotonic() + patience
    with ExitStack() as stack:
        progress: Progress | None = None
        if out.is_terminal:
            columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            progress = stack.enter_context(Progress(*columns, console=out, transient=True))
            task = progress.add_task("", total=None)
        total = 0
        while True:
            reply = await _status(channel)
            left = sum(each.waiting_count for each in reply.kinds if kind in ("", each.name))
            if not left:
                break
            if time.monotonic() > until:
                raise CommandFailed(f"{left} things still wait; is a worker running, and Milvus?")
            total = max(total, left)
            if progress is not None:
                progress.update(task, total=total, completed=total - left)
            await asyncio.sleep(_POLL_SECONDS)
    say("everything is embedded")
    return 0


async def _status(channel: grpc.aio.Channel) -> pb.GetEmbeddingStatusResponse:
    return await EmbeddingServiceStub(channel).GetEmbeddingStatus(pb.GetEmbeddingStatusRequest(), timeout=_CALL_SECONDS)


def _collections(kind: embedding_pb2.EmbeddingKind) -> list[embedding_pb2.EmbeddingCollection]:
    """Its collections; one without a name before there are any."""
    return list(kind.collections) or [embedding_pb2.EmbeddingCollection()]


def line(row: tuple[embedding_pb2.EmbeddingKind, embedding_pb2.EmbeddingCollection]) -> str:
    """A collection in a line."""
    kind, found = row
    return f"{kind.name}: {_waits(kind)}; {found.name or 'no collection'} {' '.join(_told(found))}".strip()


def table(rows: Iterable[tuple[embedding_pb2.EmbeddingKind, embedding_pb2.EmbeddingCollection]]) -> Table:
    """Collections to be read at once."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("kind", "waiting", "collection", "state", "vectors", "model", "compared"):
        shown.add_column(heading, no_wrap=True)
    for kind, found in rows:
        told = _told(found) or ("", "", "", "")
        shown.add_row(kind.name, _waits(kind), found.name or "-", *told)
    return shown


def _waits(kind: embedding_pb2.EmbeddingKind) -> str:
    if not kind.waiting_count:
        return "nothing waits"
    since = kind.oldest_wait_time.ToDatetime(tzinfo=UTC)
    return f"{kind.waiting_count} wait, {max(0, int((datetime.now(UTC) - since).total_seconds()))} s"


def _told(found: embedding_pb2.EmbeddingCollection) -> tuple[str, ...]:
    if not found.name:
        return ()
    refused = f" ({found.refused_count} refused)" if found.refused_count else ""
    return (
        _STATES.Name(found.state).removeprefix("EMBEDDING_COLLECTION_STATE_").lower(),
        f"{found.vector_count} vectors{refused}",
        f"{found.model}, {found.dimension}",
        f"compared {found.check_time.ToJsonString()}" if found.HasField("check_time") else "never compared",
    )
