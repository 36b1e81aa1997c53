"""`mrm feedback stats`: how good the answers of prompts are, by what people did with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape
from rich.table import Table

from mrm.ai.v1 import feedback_pb2, prompt_pb2
from mrm.ai.v1 import feedback_service_pb2 as pb
from mrm.ai.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from mrm.common.v1 import time_pb2
from server.cli import remote
from server.cli.console import CommandFailed, say, show_table

commands = typer.Typer(help="Show what people did with the answers of prompts.", no_args_is_help=True)

_CALL_SECONDS = 20


class Dimension(StrEnum):
    """What figures can be broken down by, in words of the command line."""

    PROMPT = "prompt"
    VERSION = "version"
    LABEL = "label"
    CATEGORY = "category"
    CLIENT = "client"
    PROJECT = "project"
    EXPERIMENT = "experiment"


class Trend(StrEnum):
    """Widths of the buckets of a trend."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


_NAMES = {Dimension.VERSION: "PROMPT_VERSION"}

Day = Annotated[datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")]
LastDay = Annotated[datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day.")]


@commands.callback()
def feedback() -> None:
    """Keeps its command a sub-command, however many there are."""


@commands.command()
@remote.reaching
async def stats(
    server: remote.Server,
    by: Annotated[list[Dimension] | None, typer.Option(help="Break down by this; up to four times.")] = None,
    client: Annotated[UUID | None, typer.Option(help="Only of this client.")] = None,
    prompt: Annotated[UUID | None, typer.Option(help="Only on this prompt.")] = None,
    first: Day = None,
    last: LastDay = None,
    trend: Annotated[Trend | None, typer.Option(help="Also by day, week or month; needs --from and --to.")] = None,
) -> None:
    """Show how many answers were accepted, edited and rejected, with 95 % intervals, and how much of them was changed.

    By prompt unless said otherwise, those with most feedback first.
    """
    if (first is None) != (last is None):
        raise CommandFailed("--from and --to go together")
    request = pb.GetFeedbackStatisticsRequest(
        dimensions=[_dimension(each) for each in by or [Dimension.PROMPT]],
        filter=feedback_pb2.FeedbackFilter(
            client_ids=[str(client)] if client else [], prompt_id=str(prompt) if prompt else ""
        ),
    )
    if first is not None and last is not None:
        request.dates.CopyFrom(time_pb2.DateRange(start_date=f"{first:%Y-%m-%d}", end_date=f"{last:%Y-%m-%d}"))
    if trend is not None:
        request.trend_granularity = time_pb2.Granularity.Value(f"GRANULARITY_{trend.name}")
    async with server.open() as channel:
        reply = await FeedbackServiceStub(channel).GetFeedbackStatistics(request, timeout=_CALL_SECONDS)
    show_table(table(reply.groups, reply.total))
    say(f"days of {reply.time_zone}; changed: mean, median and nine of ten", markup=False, style="dim")


def table(groups: Sequence[feedback_pb2.FeedbackGroup], total: feedback_pb2.FeedbackGroup) -> Table:
    """Groups and all together, one a row, each followed by its trend."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("")
    for heading in ("answers", "accepted", "edited", "rejected", "changed"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        _add(shown, " ".join(_names(group)) or "none", group)
    if len(groups) != 1:
        _add(shown, "all", total)
    return shown


def _dimension(word: Dimension) -> feedback_pb2.FeedbackDimension.ValueType:
    return feedback_pb2.FeedbackDimension.Value(f"FEEDBACK_DIMENSION_{_NAMES.get(word, word.name)}")


def _add(shown: Table, name: str, group: feedback_pb2.FeedbackGroup) -> None:
    shown.add_row(escape(name), *_cells(group.figures), style="bold" if group.buckets else None)
    for bucket in group.buckets:
        shown.add_row(f"  {bucket.start_date}", *_cells(bucket.figures))


def _names(group: feedback_pb2.FeedbackGroup) -> Iterable[str]:
    """What a group is called: whatever it was broken down by and is not empty."""
    yield from filter(None, (group.prompt_name, f"v{group.prompt_version}" if group.prompt_version else ""))
    if group.prompt_category:
        yield prompt_pb2.PromptCategory.Name(group.prompt_category).removeprefix("PROMPT_CATEGORY_").lower()
    yield from filter(None, (group.label, group.client_id, group.project_id, group.prompt_experiment_id))


def _cells(figures: feedback_pb2.FeedbackFigures) -> tuple[str, ...]:
    shares = (figures.acceptance_rate, figures.edit_rate, figures.rejection_rate)
    rates = [f"{each.percent} % ({each.low_percent}-{each.high_percent})" if each.percent else "" for each in shares]
    percents = (figures.mean_edit_percent, figures.p50_edit_percent, figures.p90_edit_percent)
    return f"{figures.count:,}", *rates, f"{' / '.join(percents)} %" if figures.measured_count else ""
