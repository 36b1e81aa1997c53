"""`mrm rollup run` and `mrm restatements`: daily figures made anew, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID, uuid4

import typer
from rich.markup import escape
from rich.table import Table

from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import rollup_pb2
from mrm.statistics.v1 import rollup_service_pb2 as pb
from mrm.statistics.v1.rollup_service_pb2_grpc import RollupServiceStub
from server.cli import jobs, remote
from server.cli.console import show_rows

commands = typer.Typer(help="Look after the daily figures of campaigns.", no_args_is_help=True)

Day = Annotated[datetime, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")]
LastDay = Annotated[datetime, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day; it must be over.")]

_CALL_SECONDS = 10
_FIGURES = ("impressions", "clicks", "conversions", "cost_micros", "revenue_micros")


@commands.command("run")
@remote.reaching
async def run_rollup(
    server: remote.Server,
    client: Annotated[UUID, typer.Option(help="The client.")],
    first: Day,
    last: LastDay,
    patience: remote.Patience = 300,
) -> int:
    """Roll days up again, with progress. Days whose figures are right are left alone. Exit code 1 if it failed."""
    request = pb.RunRollupRequest(
        client_id=str(client),
        dates=time_pb2.DateRange(start_date=first.date().isoformat(), end_date=last.date().isoformat()),
        request_id=str(uuid4()),
    )
    async with server.open(watch=True) as channel:
        reply = await RollupServiceStub(channel).RunRollup(request, timeout=_CALL_SECONDS)
        return await jobs.follow(channel, reply.job_id, patience)


@remote.reaching
async def restatements(
    server: remote.Server,
    client: Annotated[UUID, typer.Option(help="The client.")],
    project: Annotated[UUID | None, typer.Option(help="Only of this project.")] = None,
    campaign: Annotated[list[UUID] | None, typer.Option(help="Only of this campaign; repeatable.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Only made since then, UTC.")
    ] = None,
) -> None:
    """Show what daily figures said before and what they say since: a table on a terminal, a line each elsewhere."""
    wanted = pb.RestatementFilter(project_id=str(project or ""), campaign_ids=[str(each) for each in campaign or []])
    if since is not None:
        wanted.since_time.FromDatetime(since.replace(tzinfo=UTC))
    request = pb.ListRestatementsRequest(client_id=str(client), filter=wanted, page_size=500)
    found: list[rollup_pb2.Restatement] = []
    async with server.open() as channel:
        async for page in remote.pages(RollupServiceStub(channel).ListRestatements, request, _CALL_SECONDS):
            found += page.restatements
    show_rows(found, table, line)


def line(told: rollup_pb2.Restatement) -> str:
    """A restatement in a line."""
    return f"{told.restate_time.ToJsonString()} {told.date} campaign {told.campaign_id} {', '.join(changes(told))}"


def table(found: Iterable[rollup_pb2.Restatement]) -> Table:
    """Restatements to be read at once."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("time", "day", "campaign", "why"):
        shown.add_column(heading, no_wrap=True)
    shown.add_column("figures", overflow="fold")
    for told in found:
        cause = rollup_pb2.RestatementCause.Name(told.cause).removeprefix("RESTATEMENT_CAUSE_").lower()
        cells = (told.restate_time.ToJsonString(), told.date, told.campaign_id, cause.replace("_", " "))
        shown.add_row(*cells, escape("\n".join(changes(told))))
    return shown


def changes(told: rollup_pb2.Restatement) -> list[str]:
    """The figures that became others: name, before and after."""
    pairs = [(name, getattr(told.before, name), getattr(told.after, name)) for name in _FIGURES]
    return [
        f"{name.removesuffix('_micros')} {_plain(name, before)} -> {_plain(name, after)}"
        for name, before, after in pairs
        if before != after
    ]


def _plain(name: str, value: int | str) -> str:
    if not name.endswith("_micros"):
        return str(value)
    whole, part = divmod(int(value), 10**6)
    return f"{whole}.{part:06d}".rstrip("0").rstrip(".")
