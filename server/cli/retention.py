"""`mrm retention`: archived months, and clients of which nothing may go."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table

from mrm.operations.v1 import retention_pb2
from mrm.operations.v1 import retention_service_pb2 as pb
from mrm.operations.v1.retention_service_pb2_grpc import RetentionServiceStub
from server.cli import remote
from server.cli.console import say, show_rows

commands = typer.Typer(help="Show what is kept, archive old months, bring them back.", no_args_is_help=True)

_CALL_SECONDS = 30


class TableName(StrEnum):
    """A table whose old months are archived."""

    CAMPAIGN_EVENTS = "campaign_events"
    CAMPAIGN_STATISTICS = "campaign_statistics"


@commands.command()
@remote.reaching
async def status(
    server: remote.Server,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many of the newest months to show.")] = 24,
) -> None:
    """Show the rules, whether they are kept to, and the archive."""
    async with server.open() as channel:
        stub = RetentionServiceStub(channel)
        found = await stub.GetRetentionStatus(pb.GetRetentionStatusRequest(), timeout=_CALL_SECONDS)
        page = await stub.ListArchiveMonths(pb.ListArchiveMonthsRequest(page_size=limit), timeout=_CALL_SECONDS)
    for rule in found.rules:
        due = f"; {rule.due_month_count} months to go" if rule.due_month_count else ""
        say(f"{rule.data}: {rule.kept}{due}", markup=False)
    if not found.has_object_storage:
        say("no object storage is configured: nothing is archived, and so nothing dropped")
    if found.first_open_month:
        say(f"events are taken from {found.first_open_month} on")
    show_rows(page.archive_months, _table, _line)


@commands.command()
@remote.reaching
async def run(server: remote.Server) -> None:
    """Have old months archived and dropped now."""
    async with server.open() as channel:
        reply = await RetentionServiceStub(channel).RunRetention(pb.RunRetentionRequest(), timeout=_CALL_SECONDS)
    say(f"job {reply.job_id}")


@commands.command()
@remote.reaching
async def restore(
    server: remote.Server,
    table: Annotated[TableName, typer.Argument(help="The table.")],
    month: Annotated[str, typer.Argument(help="The month, as YYYY-MM.")],
) -> None:
    """Have an archived month brought back for a while."""
    number = retention_pb2.ArchiveTable.Value(f"ARCHIVE_TABLE_{table.name}")
    request = pb.RestoreArchiveMonthRequest(table=number, month=month)
    async with server.open() as channel:
        reply = await RetentionServiceStub(channel).RestoreArchiveMonth(request, timeout=_CALL_SECONDS)
    say(f"job {reply.job_id}")


@commands.command()
@remote.reaching
async def hold(
    server: remote.Server,
    client: Annotated[UUID, typer.Argument(help="The client.")],
    reason: Annotated[str, typer.Argument(help="Why.")],
) -> None:
    """Keep everything of a client."""
    request = pb.SetLegalHoldRequest(client_id=str(client), reason=reason)
    async with server.open() as channel:
        await RetentionServiceStub(channel).SetLegalHold(request, timeout=_CALL_SECONDS)
    say("held")


@commands.command()
@remote.reaching
async def lift(server: remote.Server, client: Annotated[UUID, typer.Argument(help="The client.")]) -> None:
    """Hold a client no longer."""
    async with server.open() as channel:
        await RetentionServiceStub(channel).LiftLegalHold(
            pb.LiftLegalHoldRequest(client_id=str(client)), timeout=_CALL_SECONDS
        )
    say("lifted")


def _line(each: retention_pb2.ArchiveMonth) -> str:
    return " ".join(_cells(each))


def _cells(each: retention_pb2.ArchiveMonth) -> tuple[str, ...]:
    table = retention_pb2.ArchiveTable.Name(each.table).removeprefix("ARCHIVE_TABLE_").lower()
    state = retention_pb2.ArchiveState.Name(each.state).removeprefix("ARCHIVE_STATE_").lower()
    return table, each.month, state, str(each.client_count), str(each.row_count), str(each.size_bytes)


def _table(found: Iterable[retention_pb2.ArchiveMonth]) -> Table:
    table = Table("table", "month", "state", "clients", "rows", "bytes")
    for each in found:
        table.add_row(*_cells(each))
    return table
