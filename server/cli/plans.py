"""`mrm plan`: media plans as planners read them."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Annotated
from uuid import UUID

import typer
from google.protobuf import struct_pb2
from rich.markup import escape
from rich.table import Table

from mrm.common.v1 import channel_pb2, money_pb2, platform_pb2
from mrm.planning.v1 import media_plan_pb2
from mrm.planning.v1 import media_plan_service_pb2 as pb
from mrm.planning.v1.media_plan_service_pb2_grpc import MediaPlanServiceStub
from server.cli import remote
from server.cli.console import say, show_table

commands = typer.Typer(help="Show media plans and what changed between their versions.", no_args_is_help=True)

Plan = Annotated[UUID, typer.Argument(help="Version of a media plan.")]

_CALL_SECONDS = 10


@commands.command()
@remote.reaching
async def show(server: remote.Server, plan: Plan) -> None:
    """Show a version of a plan: where its money goes, when, and for what."""
    async with server.open() as channel:
        request = pb.GetMediaPlanRequest(media_plan_id=str(plan))
        reply = await MediaPlanServiceStub(channel).GetMediaPlan(request, timeout=_CALL_SECONDS)
    say(title(reply.media_plan), markup=False)
    for text in audience(reply.media_plan.targeting):
        say(text, markup=False)
    show_table(channels(reply.media_plan))


@commands.command()
@remote.reaching
async def diff(
    server: remote.Server,
    base: Annotated[UUID, typer.Argument(help="Version to compare with.")],
    other: Annotated[UUID, typer.Argument(help="Version that is compared.")],
) -> None:
    """Show what changed from one version of a plan to another, and what it does to the money."""
    async with server.open() as channel:
        request = pb.DiffMediaPlansRequest(base_media_plan_id=str(base), other_media_plan_id=str(other))
        reply = await MediaPlanServiceStub(channel).DiffMediaPlans(request, timeout=_CALL_SECONDS)
    say(f"base:  {title(reply.base)}", markup=False)
    say(f"other: {title(reply.other)}", markup=False)
    show_table(differences(reply))


def title(plan: media_plan_pb2.MediaPlan) -> str:
    """A version in a line."""
    state = media_plan_pb2.MediaPlanStatus.Name(plan.status).removeprefix("MEDIA_PLAN_STATUS_").lower()
    text = f"{plan.display_name}, version {plan.version}, {state.replace('_', ' ')}, {money(plan.total_budget)}"
    return f"{text}, beyond the project's budget: {plan.override_reason}" if plan.override_reason else text


def audience(targeting: media_plan_pb2.Targeting) -> list[str]:
    """Whom a plan is to reach, a line for each condition."""
    genders = [media_plan_pb2.Gender.Name(each).removeprefix("GENDER_").lower() for each in targeting.genders]
    ages = [f"{each.min_years}-{each.max_years}" if each.max_years else f"{each.min_years}+" for each in targeting.ages]
    conditions = (("geo", targeting.geo), ("ages", ages), ("genders", genders), ("interests", targeting.interests))
    return [f"{name}: {', '.join(values)}" for name, values in conditions if values]


def channels(plan: media_plan_pb2.MediaPlan) -> Table:
    """The channels with their shares of the money, and the total."""
    shown = Table(box=None, pad_edge=False, show_footer=True)
    shown.add_column("channel", "total", no_wrap=True)
    shown.add_column("platform", no_wrap=True)
    shown.add_column("format")
    shown.add_column("flight", no_wrap=True)
    shown.add_column("budget", money(plan.total_budget), justify="right", no_wrap=True)
    shown.add_column("share", "100.0 %" if plan.total_budget.micros else "", justify="right", no_wrap=True)
    shown.add_column("KPIs", overflow="fold")
    for channel in plan.channels:
        shown.add_row(*(escape(cell) for cell in _cells(channel, plan.total_budget.micros)))
    return shown


def _cells(channel: media_plan_pb2.PlanChannel, total: int) -> list[str]:
    kpis = [f"{metric_name(kpi.metric)} {kpi.target}" for kpi in channel.kpis]
    return [
        channel_pb2.ChannelType.Name(channel.channel_type).removeprefix("CHANNEL_TYPE_").lower(),
        platform_pb2.Platform.Name(channel.platform).removeprefix("PLATFORM_").lower(),
        channel.format,
        _flight(channel),
        money(channel.budget),
        share(channel.budget.micros, total),
        ", ".join(kpis),
    ]


def differences(diff: pb.DiffMediaPlansResponse) -> Table:
    """Every difference in a row: where, what, before, after, and how much money it moves."""
    shown = Table(box=None, pad_edge=False, show_footer=True)
    shown.add_column("where", "total", no_wrap=True)
    shown.add_column("what", no_wrap=True)
    shown.add_column("before", money(diff.base.total_budget), overflow="fold")
    shown.add_column("after", money(diff.other.total_budget), overflow="fold")
    shown.add_column("difference", difference(diff.total_difference), justify="right", no_wrap=True)
    for row in _rows(diff):
        shown.add_row(*(escape(cell) for cell in row))
    return shown


def _rows(diff: pb.DiffMediaPlansResponse) -> Iterator[tuple[str, str, str, str, str]]:
    for field in diff.fields:
        # The total stands in the last line.
        if field.path != "total_budget":
            yield "plan", field.path, value(field, "before"), value(field, "after"), ""
    for channel in diff.removed_channels:
        yield _name(channel), "removed", money(channel.budget), "", difference(_negative(channel.budget))
    for channel in diff.added_channels:
        yield _name(channel), "added", "", money(channel.budget), difference(channel.budget)
    for changed in diff.changed_channels:
        for field in changed.fields:
            if field.path == "budget":
                before, after = money(changed.base.budget), money(changed.other.budget)
                yield _name(changed.other), "budget", before, after, difference(changed.budget_difference)
            else:
                yield _name(changed.other), field.path, value(field, "before"), value(field, "after"), ""


def _name(channel: media_plan_pb2.PlanChannel) -> str:
    kind = channel_pb2.ChannelType.Name(channel.channel_type).removeprefix("CHANNEL_TYPE_").lower()
    platform = platform_pb2.Platform.Name(channel.platform).removeprefix("PLATFORM_").lower()
    # The random end of an id tells channels apart; its beginning is only a time.
    return f"{kind} {platform} {channel.format}".rstrip() + f" ..{channel.channel_id[-6:]}"


def metric_name(metric: media_plan_pb2.KpiMetric.ValueType) -> str:
    """What people call a KPI."""
    name = media_plan_pb2.KpiMetric.Name(metric).removeprefix("KPI_METRIC_")
    return name if len(name) <= 4 else name.lower()


def _flight(channel: media_plan_pb2.PlanChannel) -> str:
    return f"{channel.flight.start_date} - {channel.flight.end_date}" if channel.HasField("flight") else ""


def money(amount: money_pb2.Money) -> str:
    """An amount with two decimals, or as many as it has."""
    whole, part = divmod(abs(amount.micros), 10**6)
    digits = f"{part:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount.micros < 0 else ''}{whole:,}.{digits} {amount.currency_code}"


def difference(amount: money_pb2.Money) -> str:
    """An amount with its sign; nothing for none."""
    if not amount.micros:
        return ""
    return f"{'+' if amount.micros > 0 else ''}{money(amount)}"


def _negative(amount: money_pb2.Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=amount.currency_code, micros=-amount.micros)


def share(micros: int, total: int) -> str:
    """A part of a total in percent, to one decimal; nothing where there is no total."""
    if not total:
        return ""
    return f"{(Decimal(micros) * 100 / Decimal(total)).quantize(Decimal('0.1'), ROUND_HALF_EVEN)} %"


def value(field: pb.PlanFieldChange, side: str) -> str:
    """One side of a difference; nothing for an empty field."""
    if not field.HasField(side):  # type: ignore[arg-type]
        return ""
    return _plain(getattr(field, side))


def _plain(found: struct_pb2.Value) -> str:
    match found.WhichOneof("kind"):
        case "string_value":
            return found.string_value
        case "number_value":
            return f"{found.number_value:g}"
        case "bool_value":
            return str(found.bool_value).lower()
        case "list_value":
            return ", ".join(_plain(each) for each in found.list_value.values)
        case "struct_value":
            parts = found.struct_value.fields
            if parts.keys() == {"start_date", "end_date"}:
                return f"{parts['start_date'].string_value} - {parts['end_date'].string_value}"
            return ", ".join(f"{name} {_plain(parts[name])}" for name in sorted(parts))
        case _:
            return ""
