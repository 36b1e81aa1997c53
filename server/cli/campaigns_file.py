"""`mrm import campaigns`: a file of campaigns that ran elsewhere before into a project."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import grpc
import typer
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct
from rich.markup import escape

from mrm.campaigns.v1 import campaign_import_pb2, campaign_pb2
from mrm.campaigns.v1 import campaign_import_service_pb2 as pb
from mrm.campaigns.v1.campaign_import_service_pb2_grpc import CampaignImportServiceStub
from mrm.common.v1 import platform_pb2
from mrm_client import CallError
from mrm_client.retries import Retries
from server.cli import mapping, remote
from server.cli.console import CommandFailed, Meter, out, progress, say, tell_retry
from server.cli.events import to_micros
from server.cli.mapping import BadField, Columns, Faults
from server.cli.rows import Row, RowFile
from server.rpc.validation import violations

FIELDS = (
    "external_id", "name", "platform", "account", "currency", "status", "daily_budget", "total_budget", "configuration",
)  # fmt: skip
REQUIRED = ("external_id", "platform")
_PLATFORMS: dict[str, Any] = {
    name.removeprefix("PLATFORM_").lower(): value for name, value in platform_pb2.Platform.items() if value
}
_STATUSES: dict[str, Any] = {
    "paused": campaign_pb2.CAMPAIGN_STATUS_PAUSED,
    "archived": campaign_pb2.CAMPAIGN_STATUS_ARCHIVED,
}
_LARGEST_CONFIGURATION = 64 * 2**10
_CHUNK = 500
# With one row more a request stays far below the server's 4 MiB.
_CHUNK_BYTES = 2**20
_AHEAD = 2
# What the server calls a field -> what it is here.
_NAMES = {
    "display_name": "name",
    "account_id": "account",
    "currency_code": "currency",
    "daily_budget_micros": "daily_budget",
    "total_budget_micros": "total_budget",
}


class OnDuplicate(StrEnum):
    """What happens to rows whose campaign is there already."""

    SKIP = "skip"
    UPDATE = "update"


@remote.reaching
async def campaigns(
    server: remote.Server,
    file: Annotated[Path, typer.Argument(help="CSV, NDJSON or Parquet; text may be .gz.")],
    project: Annotated[UUID, typer.Option(help="Project that the campaigns go to.")],
    columns: mapping.Map = None,
    constants: mapping.Constants = None,
    on_duplicate: Annotated[OnDuplicate, typer.Option(help="For campaigns that are there already.")] = OnDuplicate.SKIP,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Only check, store nothing.")] = False,
    max_errors: mapping.MaxErrors = 0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, for lines that were at fault the last time.")
    ] = False,
    delimiter: mapping.Delimiter = ",",
    encoding: mapping.Encoding = "utf-8",
    patience: remote.Patience = 300,
) -> None:
    """Import campaigns that ran elsewhere before; safe to repeat, and goes on where it stopped.

    Columns: external_id, platform (yandex_direct, vk_ads, other); optional: name, account, currency, status (archived
    unless it says paused), daily_budget and total_budget (at most six decimals), configuration (JSON). Several
    lines for one campaign are one campaign.

    The whole file is checked first, also by the server. Bad lines are listed with their numbers; more than --max-errors
    of them and nothing is stored.
    """
    reader = CampaignReader(Columns.of(FIELDS, columns, constants))
    source = RowFile.open(mapping.existing(file), mapping.dialect(delimiter, encoding))
    reader.columns.check(source, REQUIRED)
    options = pb.CampaignImportOptions(
        project_id=str(project),
        fingerprint=hashlib.sha256(f"{source.sha256}{reader.columns.fingerprint()}".encode()).hexdigest(),
        source_name=file.name[:255],
        on_duplicate=campaign_import_pb2.DuplicateHandling.Value(f"DUPLICATE_HANDLING_{on_duplicate.name}"),
    )
    async with server.open() as channel:
        sender = _Sender(CampaignImportServiceStub(channel), source, reader, patience)
        checked = await _check(sender, options, max_errors)
        if validate_only:
            _summary("would come to", checked.state, checked)
            return
        await _store(sender, options, checked, restart)


class CampaignReader:
    """Turns rows of a file into rows of an import.

    Args:
        columns: Where their fields come from.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def row(self, row: Row) -> pb.CampaignImportRow:
        """A row, as far as it can be told here.

        Raises:
            BadField: A field is not what it should be.
        """
        values = self.columns.values(row)
        for name in REQUIRED:
            if name not in values:
                raise BadField(name, "is missing")
        message = pb.CampaignImportRow(
            line=row.line,
            external_id=_text(values, "external_id"),
            display_name=_text(values, "name"),
            platform=_word(values, "platform", _PLATFORMS),
            account_id=_text(values, "account"),
            currency_code=_text(values, "currency").upper(),
            status=_word(values, "status", _STATUSES),
        )
        for name in ("daily_budget", "total_budget"):
            if name in values:
                try:
                    setattr(message, f"{name}_micros", to_micros(values[name]))
                except ValueError as error:
                    raise BadField(name, str(error)) from None
        if "configuration" in values:
            message.configuration.CopyFrom(_configuration(values["configuration"]))
        # The server says the same, but it may not take a message of any size.
        for found in violations(message)[:1]:
            raise BadField(_NAMES.get(found.field, found.field), found.description)
        return message


@dataclass
class _Checked:
    """What a pass over a file found.

    Attributes:
        faults: Rows at fault, here or for the server.
        rows: Rows that were sent.
        state: What the server says.
    """

    faults: Faults
    rows: int = 0
    state: campaign_import_pb2.CampaignImport = field(default_factory=campaign_import_pb2.CampaignImport)


class _Sender:
    """Sends a file, as often as it takes.

    Args:
        stub: The service.
        source: The file.
        reader: Reads its rows.
        patience: Seconds without an answer until it gives up.
    """

    def __init__(self, stub: Any, source: RowFile, reader: CampaignReader, patience: float) -> None:
        self._stub = stub
        self.source = source
        self.reader = reader
        self._patience = patience

    async def send(self, options: pb.CampaignImportOptions, meter: Meter) -> _Checked:
        """Sends all rows that are any; a stream that breaks is begun again."""
        retries = Retries(self._patience, tell_retry)
        while True:
            done = _Checked(Faults(self.reader.columns))
            try:
                async for reply in self._stream(options, done):
                    done.state = reply.campaign_import
                    for found in reply.errors:
                        done.faults.add(found.line, _NAMES.get(found.field, found.field), found.message)
                    meter(done.rows)
                    retries.succeeded()
                    # Once is enough: now the server knows how far it is.
                    options.restart = False
                return done
            except grpc.aio.AioRpcError as rpc_error:
                await retries.pause_or_raise(CallError.of_rpc(rpc_error))

    async def _stream(
        self, options: pb.CampaignImportOptions, done: _Checked
    ) -> AsyncIterator[pb.ImportCampaignsResponse]:
        begun: asyncio.Future[campaign_import_pb2.CampaignImport] = asyncio.get_running_loop().create_future()
        # Few requests ahead of their answers: neither side holds more than that of the file.
        ahead = asyncio.Semaphore(_AHEAD)

        async def requests() -> AsyncIterator[pb.ImportCampaignsRequest]:
            yield pb.ImportCampaignsRequest(options=options)
            state = await begun
            if state.state == campaign_import_pb2.CAMPAIGN_IMPORT_STATE_COMPLETED:
                return
            rows = self._rows(done, 0 if options.validate_only else state.acknowledged_line)
            for request in _requests(rows):
                await ahead.acquire()
                yield request
            yield pb.ImportCampaignsRequest(last=True)

        async for reply in self._stub.ImportCampaigns(requests()):
            if begun.done():
                ahead.release()
            else:
                begun.set_result(reply.campaign_import)
            yield reply

    def _rows(self, done: _Checked, after: int) -> Iterator[pb.CampaignImportRow]:
        """The rows after a line that are any; the others are noted."""
        for row in self.source.rows():
            if row.line <= after:
                continue
            try:
                message = self.reader.row(row)
            except BadField as fault:
                done.faults.add(row.line, fault.field, str(fault))
                continue
            done.rows += 1
            yield message


def _requests(rows: Iterator[pb.CampaignImportRow]) -> Iterator[pb.ImportCampaignsRequest]:
    """Rows in requests that the server takes."""
    request, size = pb.ImportCampaignsRequest(), 0
    for row in rows:
        request.rows.append(row)
        size += row.ByteSize()
        if len(request.rows) == _CHUNK or size >= _CHUNK_BYTES:
            yield request
            request, size = pb.ImportCampaignsRequest(), 0
    if request.rows:
        yield request


async def _check(sender: _Sender, options: pb.CampaignImportOptions, max_errors: int) -> _Checked:
    """Has all rows checked, and nothing stored."""
    checking = pb.CampaignImportOptions()
    checking.CopyFrom(options)
    checking.validate_only = True
    name = escape(sender.source.path.name)
    with out.status(f"checking {name}") as status:
        checked = await sender.send(checking, lambda rows: status.update(f"checking {name}: {rows:,} rows"))
    checked.faults.show()
    bad = len(checked.faults.lines)
    if bad > max_errors:
        raise CommandFailed(f"{bad:,} bad lines, --max-errors is {max_errors}: nothing was stored")
    if not checked.rows:
        raise CommandFailed("the file has no campaigns")
    return checked


async def _store(sender: _Sender, options: pb.CampaignImportOptions, checked: _Checked, restart: bool) -> None:
    options.restart = restart
    started = time.monotonic()
    with progress("importing", checked.rows, "rows") as meter:
        stored = await sender.send(options, meter)
    if not stored.rows:
        say("all of this file was taken before: nothing is new (--restart takes it again)")
    elif stored.rows < checked.rows:
        say(f"went on after {checked.rows - stored.rows:,} rows")
    if stored.faults.lines - checked.faults.lines:
        stored.faults.show()
    _summary(f"in {time.monotonic() - started:.1f} s", stored.state, checked)


def _summary(how: str, state: campaign_import_pb2.CampaignImport, checked: _Checked) -> None:
    bad = len(checked.faults.lines)
    say(
        f"[green]✓[/] {state.row_count:,} rows {how}: {state.created_count:,} created, {state.updated_count:,} updated,"
        f" {state.skipped_count:,} skipped, {state.failed_count:,} failed; {bad:,} bad lines left out"
        + (f" [dim](import {state.campaign_import_id})[/]" if state.campaign_import_id else "")
    )


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name, "")
    if isinstance(value, bool | dict | list):
        raise BadField(name, "is neither text nor a number")
    return str(value)


def _word(values: dict[str, Any], name: str, known: dict[str, Any]) -> Any:
    if name not in values:
        return 0
    word = str(values[name]).lower()
    if word not in known:
        raise BadField(name, f"is none of {', '.join(known)}")
    return known[word]


def _configuration(value: Any) -> Struct:
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        # Exact numbers of the file become what JSON has.
        found = ParseDict(json.loads(json.dumps(parsed, default=float)), Struct())
    except (ValueError, TypeError, AttributeError, ParseError, RecursionError):
        raise BadField("configuration", "is no JSON object") from None
    if found.ByteSize() > _LARGEST_CONFIGURATION:
        raise BadField("configuration", "is larger than 64 KiB")
    return found
