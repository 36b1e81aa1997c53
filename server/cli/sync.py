"""`mrm sync`: accounts on platforms, read now or looked at."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID, uuid4

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.markup import escape
from rich.table import Table

from mrm.campaigns.v1 import sync_pb2
from mrm.campaigns.v1 import sync_service_pb2 as pb
from mrm.campaigns.v1.sync_service_pb2_grpc import SyncServiceStub
from server.cli import jobs, remote
from server.cli.console import say, show_rows

commands = typer.Typer(help="Read accounts on platforms, and see how far they are.", no_args_is_help=True)

Account = Annotated[UUID, typer.Argument(help="The account (integration).")]

_CALL_SECONDS = 10


@commands.command()
@remote.reaching
async def now(
    server: remote.Server,
    account: Account,
    first: Annotated[
        datetime | None,
        typer.Option("--from", formats=["%Y-%m-%d"], help="Read figures again from this day on."),
    ] = None,
    patience: remote.Patience = 300,
) -> int:
    """Have an account read now and follow that: campaigns, then figures. Exit code 1 if something failed."""
    request = pb.SyncIntegrationRequest(
        integration_id=str(account),
        statistics_from_date="" if first is None else first.date().isoformat(),
        request_id=str(uuid4()),
    )
    async with server.open(watch=True) as channel:
        made = await SyncServiceStub(channel).SyncIntegration(request, timeout=_CALL_SECONDS)
        codes = [await jobs.follow(channel, each.job_id, patience) for each in made.jobs]
        return max(codes, default=0)


@commands.command()
@remote.reaching
async def status(server: remote.Server, account: Account) -> None:
    """Show how far an account has been read, what went wrong, and what it has still to be told."""
    async with server.open() as channel:
        request = pb.GetSyncStatusRequest(integration_id=str(account))
        found = (await SyncServiceStub(channel).GetSyncStatus(request, timeout=_CALL_SECONDS)).status
    show_rows(found.streams, table, line)
    say(f"{found.campaign_count:,} campaigns there, {found.unlinked_campaign_count:,} of them linked to none here")
    for push in found.pushes:
        what = "create it" if push.creates else ", ".join(push.parts)
        state = f"refused: {push.error}" if push.refused else "to be told"
        say(f"campaign {push.campaign_id}: {what}: {state}", markup=False)


@commands.command()
@remote.reaching
async def unlinked(server: remote.Server, account: Account) -> None:
    """Show campaigns of an account that none of ours is linked to, a line each."""
    async with server.open() as channel:
        request = pb.ListUnlinkedCampaignsRequest(
            filter=pb.UnlinkedCampaignFilter(integration_id=str(account)), page_size=500
        )
        async for page in remote.pages(SyncServiceStub(channel).ListUnlinkedCampaigns, request, _CALL_SECONDS):
            for each in page.campaigns:
                say(f"{each.external_id} {each.observed.display_name}", markup=False)


def table(streams: Iterable[sync_pb2.SyncStream]) -> Table:
    """Streams to be read at once."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("stream", "last read", "up to", "failures"):
        shown.add_column(heading, no_wrap=True)
    shown.add_column("", overflow="fold")
    for each in streams:
        cells = (_kind(each), _read(each), each.through_date, str(each.failure_count or ""), _fault(each))
        shown.add_row(*(escape(cell) for cell in cells))
    return shown


def line(stream: sync_pb2.SyncStream) -> str:
    """One stream in a line."""
    through = f" up to {stream.through_date}" if stream.through_date else ""
    fault = f": {_fault(stream)}" if stream.fault else ""
    return f"{_kind(stream)} read {_read(stream)}{through}{fault}"


def _read(stream: sync_pb2.SyncStream) -> str:
    if not stream.HasField("success_time"):
        return "never"
    return f"{_time(stream.success_time)}, {stream.lag.ToTimedelta().total_seconds():,.0f} s ago"


def _kind(stream: sync_pb2.SyncStream) -> str:
    return sync_pb2.SyncStreamKind.Name(stream.kind).removeprefix("SYNC_STREAM_KIND_").lower()


def _fault(stream: sync_pb2.SyncStream) -> str:
    if not stream.fault:
        return ""
    word = sync_pb2.SyncFault.Name(stream.fault).removeprefix("SYNC_FAULT_").lower().replace("_", " ")
    return f"{word}: {stream.error}"


def _time(moment: Timestamp) -> str:
    return moment.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
