"""`mrm budget`: how money is being spent, beside how it should be."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape
from rich.table import Table

from mrm.campaigns.v1 import budget_pb2
from mrm.campaigns.v1 import budget_service_pb2 as pb
from mrm.campaigns.v1.budget_service_pb2_grpc import BudgetServiceStub
from server.cli import remote
from server.cli.console import CommandFailed, say, show_table
from server.cli.plans import money

commands = typer.Typer(help="Show how budgets are being spent.", no_args_is_help=True)

_CALL_SECONDS = 15
_BAR_CELLS = 20
_LEVELS = {
    budget_pb2.BUDGET_LEVEL_PROJECT: "project",
    budget_pb2.BUDGET_LEVEL_MEDIA_PLAN: "plan",
    budget_pb2.BUDGET_LEVEL_CHANNEL: "channel",
    budget_pb2.BUDGET_LEVEL_CAMPAIGN: "campaign",
}
_INDENTED = (budget_pb2.BUDGET_LEVEL_CHANNEL, budget_pb2.BUDGET_LEVEL_CAMPAIGN)


@commands.callback()
def budget() -> None:
    """Keeps its command a sub-command, however many there are."""


@commands.command()
@remote.reaching
async def show(
    server: remote.Server,
    project: Annotated[UUID | None, typer.Option(help="A project, with all that lies within it.")] = None,
    plan: Annotated[UUID | None, typer.Option(help="A version of a media plan.")] = None,
    campaign: Annotated[UUID | None, typer.Option(help="A campaign.")] = None,
) -> None:
    """Show what is spent of each budget, whether that is ahead of the plan, and when it will be used up.

    In the bar, █ is spent and │ is where the spending should be by now.
    """
    named = {"project_id": project, "media_plan_id": plan, "campaign_id": campaign}
    wanted = {name: str(value) for name, value in named.items() if value is not None}
    if len(wanted) != 1:
        raise CommandFailed("name one of --project, --plan and --campaign")
    async with server.open() as channel:
        request = pb.GetBudgetStatusRequest(**wanted)
        reply = await BudgetServiceStub(channel).GetBudgetStatus(request, timeout=_CALL_SECONDS)
    show_table(table(reply.statuses))
    say(f"as of {reply.watermark_time.ToJsonString()}, days of {reply.time_zone}", markup=False, style="dim")


def table(statuses: Iterable[budget_pb2.BudgetStatus]) -> Table:
    """Budgets, one a row."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("", "name", "flight"):
        shown.add_column(heading)
    for heading in ("budget", "spent"):
        shown.add_column(heading, justify="right")
    shown.add_column("", no_wrap=True)
    for heading in ("pacing", "by the end"):
        shown.add_column(heading, justify="right")
    shown.add_column("used up")
    for each in statuses:
        ahead = each.projection
        shown.add_row(
            ("  " if each.level in _INDENTED else "") + _LEVELS.get(each.level, ""),
            escape(each.display_name),
            f"{each.flight.start_date} - {each.flight.end_date}" if each.HasField("flight") else "",
            money(each.budget) if each.HasField("budget") else "",
            money(each.spent),
            bar(each),
            _percent(each.pacing) if each.HasField("pacing") else "",
            money(ahead.projected_total) if ahead.HasField("projected_total") else "",
            ahead.exhaustion_date,
            style="bold" if each.level == budget_pb2.BUDGET_LEVEL_PROJECT else None,
        )
    return shown


def bar(status: budget_pb2.BudgetStatus) -> str:
    """What is spent of a budget, and where it should be; empty without a budget."""
    if not status.budget.micros:
        return ""
    spent = min(_cells(status.spent.micros, status.budget.micros), _BAR_CELLS)
    cells = ["█"] * spent + ["░"] * (_BAR_CELLS - spent)
    if status.HasField("planned_to_date"):
        cells[min(_cells(status.planned_to_date.micros, status.budget.micros), _BAR_CELLS - 1)] = "│"
    over = status.spent.micros > status.budget.micros
    return "".join(cells) + ("!" if over else "")


def _cells(part: int, whole: int) -> int:
    return part * _BAR_CELLS // whole


def _percent(ratio: str) -> str:
    return f"{(Decimal(ratio) * 100).quantize(Decimal('0.1'), ROUND_HALF_EVEN)} %"
