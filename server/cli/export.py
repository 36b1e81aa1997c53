"""`mrm export`: a client's figures into a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Protocol
from uuid import UUID

import grpc
import typer
from rich.markup import escape
from rich.status import Status

import mrm_client
from mrm.common.v1 import time_pb2
from mrm.statistics.v1.statistics_file_service_pb2 import WriteStatisticsFileRequest
from mrm.statistics.v1.statistics_file_service_pb2_grpc import StatisticsFileServiceStub
from mrm_client import CallError
from server.cli import remote
from server.cli.console import CommandFailed, out, say

_FRESH_STARTS = 3
_TELL_SECONDS = 2.0


class Bucket(StrEnum):
    """Width of the rows."""

    HOUR = "hour"
    DAY = "day"


class Sink(Protocol):
    """Takes tables of one schema."""

    def write(self, table: Any) -> None:
        """Appends a table."""


@remote.reaching
async def export(
    server: remote.Server,
    client: Annotated[UUID, typer.Option(help="Client whose campaigns are exported.")],
    first: Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")],
    last: Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day.")],
    file: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="FILE.parquet, FILE.arrow or FILE.csv.")
    ] = None,
    to_objects: Annotated[
        str | None, typer.Option(help="NAME.parquet: write the file into object storage instead of here.")
    ] = None,
    by: Annotated[Bucket, typer.Option(help="One row for each campaign and what.")] = Bucket.DAY,
    time_zone: Annotated[str, typer.Option(help="IANA zone whose days count. Default: the client's.")] = "",
    patience: remote.Patience = 300,
) -> None:
    """Export a client's figures into a Parquet, Arrow or CSV file, one row for each campaign and day or hour.

    Survives restarts of the server, and the file appears only when it is whole. With --to-objects the server itself
    writes a Parquet file into object storage, under the client's prefix. Amounts are exact decimals in the
    campaign's currency; times are UTC.
    """
    if (file is None) == (to_objects is None):
        raise CommandFailed("name exactly one of --out and --to-objects")
    if file is not None and file.suffix not in _SINKS:
        raise CommandFailed(f"--out must end with one of {', '.join(_SINKS)}")
    async with server.open() as channel:
        days = (first.date(), last.date())
        started = time.monotonic()
        if file is None:
            await _write(channel, client, days, by, time_zone, to_objects or "")
            return
        rows = await _export(channel, client, days, by, time_zone, patience, file)
        say(f"{rows:,} rows in {escape(str(file))}, {time.monotonic() - started:.1f} s")


async def _write(
    channel: grpc.aio.Channel, client: UUID, days: tuple[date, date], by: Bucket, time_zone: str, name: str
) -> None:
    """Has the server write the file into object storage."""
    started = time.monotonic()
    request = WriteStatisticsFileRequest(
        client_id=str(client),
        file_name=name,
        dates=time_pb2.DateRange(start_date=days[0].isoformat(), end_date=days[1].isoformat()),
        granularity=time_pb2.GRANULARITY_DAY if by is Bucket.DAY else time_pb2.GRANULARITY_HOUR,
        time_zone=time_zone,
    )
    with out.status("writing ...") as status:
        async for reply in StatisticsFileServiceStub(channel).WriteStatisticsFile(request):
            status.update(f"writing ... {reply.row_count:,} rows")
    seconds = time.monotonic() - started
    say(f"{reply.row_count:,} rows, {reply.file.size_bytes:,} bytes in {escape(reply.file.key)}, {seconds:.1f} s")
    say(f"sha256 {reply.file.sha256}")


async def _export(
    channel: grpc.aio.Channel,
    client: UUID,
    days: tuple[date, date],
    by: Bucket,
    time_zone: str,
    patience: float,
    file: Path,
) -> int:
    """Writes the file; returns its rows. Begins anew if figures are restated while the connection is lost."""
    partial = file.with_name(f".{file.name}.part")
    attempts = 0
    with out.status("exporting ...") as status:
        try:
            while True:
                try:
                    rows = await _attempt(channel, client, days, by, time_zone, patience, partial, status)
                    partial.replace(file)
                    return rows
                except CallError as error:
                    attempts += 1
                    if error.reason != "EXPORT_OUTDATED" or attempts > _FRESH_STARTS:
                        raise
                    say("figures were restated while the server was away, beginning anew")
        finally:
            partial.unlink(missing_ok=True)


async def _attempt(
    channel: grpc.aio.Channel,
    client: UUID,
    days: tuple[date, date],
    by: Bucket,
    time_zone: str,
    patience: float,
    partial: Path,
    status: Status,
) -> int:
    # Imported here because it is slow to load and `mrm --help` does not need it.
    import pyarrow as pa

    def tell(error: CallError, pause: float) -> None:
        say(f"{error}; trying again in {pause:.0f} s", markup=False)

    parts = mrm_client.export(
        channel,
        start=days[0],
        end=days[1],
        daily=by is Bucket.DAY,
        client_ids=[client],
        time_zone=time_zone,
        patience=patience,
        on_retry=tell,
    )
    rows, told = 0, time.monotonic()
    with ExitStack() as stack:
        sink: Sink | None = None
        async with aclosing(parts):
            async for part in parts:
                table = pa.ipc.open_stream(part.arrow).read_all()
                if sink is None:
                    kind = _SINKS[partial.with_suffix("").suffix]
                    sink = stack.enter_context(kind(partial, table.schema))
                sink.write(table)
                rows += part.row_count
                now = time.monotonic()
                if now - told >= _TELL_SECONDS or out.is_terminal:
                    told = now
                    status.update(f"exporting ... {rows:,} rows")
                    if not out.is_terminal:
                        say(f"{rows:,} rows")
    return rows


@contextmanager
def _parquet(file: Path, schema: Any) -> Iterator[Sink]:
    from pyarrow import parquet

    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        yield _Tables(writer.write_table)


@contextmanager
def _arrow(file: Path, schema: Any) -> Iterator[Sink]:
    from pyarrow import ipc

    with ipc.new_file(file, schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        yield _Tables(writer.write_table)


@contextmanager
def _csv(file: Path, schema: Any) -> Iterator[Sink]:
    from pyarrow import csv

    with csv.CSVWriter(file, schema) as writer:
        yield _Tables(writer.write_table)


class _Tables:
    def __init__(self, write: Any) -> None:
        self.write = write


_SINKS = {".parquet": _parquet, ".arrow": _arrow, ".csv": _csv}
