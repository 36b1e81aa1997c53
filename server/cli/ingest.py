"""`mrm ingest`: appends a file of events, and resumes where it stopped."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import grpc
import typer
from rich.markup import escape

import mrm_client
from mrm.statistics.v1 import event_pb2, statistics_service_pb2, statistics_service_pb2_grpc
from mrm_client import CallError, EventsInvalid
from server.cli import remote
from server.cli.console import CommandFailed, err, out, progress, say, tell_retry
from server.cli.events import BadRow, EventReader
from server.cli.rows import Row, RowFile

_CHUNK = 1000
_SHOWN_FAULTS = 20
# How the server names a field of an event of a batch.
_EVENT_PATH = re.compile(r"batch\.events\[(\d+)\]\.?(.*)")


@dataclass
class _Checked:
    """What the first reading of a file found.

    Attributes:
        good: Rows that are events.
        bad_lines: Lines of the others.
        samples: One event of each campaign.
    """

    good: int = 0
    bad_lines: set[int] = field(default_factory=set)
    samples: dict[str, event_pb2.Event] = field(default_factory=dict)
    sample_lines: dict[str, int] = field(default_factory=dict)


@remote.reaching
async def ingest(
    server: remote.Server,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV, NDJSON or Parquet; text may be .gz.")],
    client: Annotated[UUID, typer.Option(help="Client the campaigns belong to.")],
    stream: Annotated[
        str | None, typer.Option(help="Name of the stream. Default: made from the file's hash, so it resumes.")
    ] = None,
    max_errors: Annotated[int, typer.Option(min=0, help="Bad lines to leave out before refusing the file.")] = 0,
    time_zone: Annotated[str | None, typer.Option(help="IANA zone of times that name none.")] = None,
    patience: remote.Patience = 300,
) -> None:
    """Append a file of events to a client's statistics; safe to repeat, and resumes where it stopped.

    Columns: event_time (ISO 8601), campaign_id, event_type (impression, click, conversion); optional: event_id (UUID;
    made from the file's hash, the line and the type if missing), user_id, cost and revenue (in the campaign's currency)
    and conversions, all with at most six decimals. Every other column becomes an attribute.

    The whole file is checked before anything is sent. Bad lines are reported with their numbers; more than --max-errors
    of them and nothing is sent.
    """
    source = RowFile.open(file)
    reader = EventReader(source.sha256, _zone(time_zone))
    checked = await _check(source, reader)
    _report(checked, max_errors)
    async with server.open() as channel:
        await _probe(channel, client, checked)
        await _send(channel, client, stream or f"file-{source.sha256[:32]}", source, reader, checked, patience)


def _zone(name: str | None) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError):
        raise CommandFailed(f"--time-zone: there is no time zone {name}") from None


async def _check(source: RowFile, reader: EventReader) -> _Checked:
    """Reads the file once without sending anything."""
    checked = _Checked()
    told = time.monotonic()
    with out.status(f"checking {escape(source.path.name)}") as status:
        for row in source.rows():
            try:
                event = reader.event(row)
            except BadRow as fault:
                checked.bad_lines.add(row.line)
                if len(checked.bad_lines) <= _SHOWN_FAULTS:
                    err.print(f"line {row.line}: {escape(str(fault))}", soft_wrap=True)
                continue
            checked.good += 1
            if event.campaign_id not in checked.samples:
                checked.samples[event.campaign_id] = event
                checked.sample_lines[event.campaign_id] = row.line
            if checked.good % _CHUNK == 0:
                await asyncio.sleep(0)
                if time.monotonic() - told > 1:
                    told = time.monotonic()
                    status.update(f"checking {escape(source.path.name)}: {checked.good:,} events")
    return checked


def _report(checked: _Checked, max_errors: int) -> None:
    bad = len(checked.bad_lines)
    if bad > _SHOWN_FAULTS:
        err.print(f"... and {bad - _SHOWN_FAULTS} more bad lines")
    if bad > max_errors:
        raise CommandFailed(f"{bad} bad lines, --max-errors is {max_errors}: nothing was sent")
    if not checked.good:
        raise CommandFailed("the file has no events")


async def _probe(channel: grpc.aio.Channel, client: UUID, checked: _Checked) -> None:
    """Sends one event of each campaign, so that a campaign the server does not know stops us before the first batch.

    They come again with their batches and count once, as every repeated event does.
    """
    stub = statistics_service_pb2_grpc.StatisticsServiceStub(channel)
    for batch in mrm_client.batches(checked.samples.values()):
        request = statistics_service_pb2.IngestEventsRequest(client_id=str(client), batch=batch)
        try:
            await stub.IngestEvents(request, timeout=30)
        except grpc.aio.AioRpcError as rpc_error:
            error = CallError.of_rpc(rpc_error)
            raise (_sample_faults(error, batch, checked) or error) from None


def _sample_faults(error: CallError, batch: event_pb2.EventBatch, checked: _Checked) -> CommandFailed | None:
    faults = []
    for path, text in error.violations[:_SHOWN_FAULTS]:
        if found := _EVENT_PATH.fullmatch(path):
            line = checked.sample_lines[batch.events[int(found[1])].campaign_id]
            faults.append(f"line {line}: {found[2]}: {text}")
    return CommandFailed(f"nothing was sent: {'; '.join(faults)}") if faults else None


async def _send(
    channel: grpc.aio.Channel,
    client: UUID,
    stream: str,
    source: RowFile,
    reader: EventReader,
    checked: _Checked,
    patience: float,
) -> None:
    started = time.monotonic()
    try:
        async with mrm_client.Producer(channel, client, stream, patience=patience, on_retry=tell_retry) as producer:
            first = producer.position
            if first > checked.good:
                raise CommandFailed(f"stream {stream} is beyond the end of this file: it belongs to another one")
            if first:
                say(f"resuming after {first:,} events")
            good = (row for row in source.rows() if row.line not in checked.bad_lines)
            with progress("sending", checked.good) as meter:
                async for chunk in _chunks(islice(good, first, None)):
                    await producer.send(reader.unchecked(row) for row in chunk)
                    meter(producer.acknowledged_position)
                await producer.flush()
                meter(producer.acknowledged_position)
    except EventsInvalid as error:
        raise CommandFailed(_with_lines(error, source, checked)) from None
    _summary(producer.counters, checked, time.monotonic() - started)


async def _chunks(rows: Iterator[Row]) -> AsyncIterator[list[Row]]:
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk
        # Lets acknowledgements in, and Ctrl-C.
        await asyncio.sleep(0)


def _with_lines(error: EventsInvalid, source: RowFile, checked: _Checked) -> str:
    """The server's complaints by line: the stream's n-th event is the file's n-th good row."""
    wanted = {error.offset + fault.index: fault for fault in error.event_errors[:_SHOWN_FAULTS]}
    good = (row for row in source.rows() if row.line not in checked.bad_lines)
    found = (
        f"line {row.line}: {wanted[position].field} {wanted[position].message}"
        for position, row in enumerate(good)
        if position in wanted
    )
    return f"the server refused events, nothing after event {error.offset} was stored: " + "; ".join(found)


def _summary(counters: mrm_client.Counters, checked: _Checked, seconds: float) -> None:
    rate = counters.acknowledged / max(seconds, 0.001)
    say(
        f"[green]✓[/] {counters.acknowledged:,} events in {seconds:.1f} s ({rate:,.0f}/s): {counters.stored:,} stored,"
        f" {counters.quarantined:,} put aside, {len(checked.bad_lines):,} bad lines left out,"
        f" {counters.reconnects} reconnects"
    )
    if counters.quarantined:
        err.print("[yellow]events put aside have a time out of bounds; they count in no figure[/]")
