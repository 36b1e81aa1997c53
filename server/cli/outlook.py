"""`mrm plan forecast` and `mrm plan fact`: what a media plan will probably reach, and what it has reached."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from mrm.common.v1 import channel_pb2, platform_pb2
from mrm.planning.v1 import forecast_pb2
from mrm.planning.v1 import forecast_service_pb2 as pb
from mrm.planning.v1.forecast_service_pb2_grpc import ForecastServiceStub
from server.cli import remote
from server.cli.console import say, show_table
from server.cli.plans import Plan, commands, metric_name

_CALL_SECONDS = 20
_SHOWN_LEVEL = 80
_WIDTH = 16
_LARGE = 4
_MOST_DAYS = 14
_ASSUMPTIONS = {
    forecast_pb2.FORECAST_ASSUMPTION_BUDGET_SPENT: "the budget is spent",
    forecast_pb2.FORECAST_ASSUMPTION_PROPORTIONAL: "money buys at any spend what it buys now",
    forecast_pb2.FORECAST_ASSUMPTION_NO_SEASON: "the last weeks go on, without seasons",
    forecast_pb2.FORECAST_ASSUMPTION_FOUR_WEEKS: "channels without days run for four weeks",
    forecast_pb2.FORECAST_ASSUMPTION_ERRORS_OF_SHORTER_FLIGHTS: "errors are those of shorter or nearer flights",
    forecast_pb2.FORECAST_ASSUMPTION_BEYOND_PAST_SPEND: "nothing is known of spending as much a day",
    forecast_pb2.FORECAST_ASSUMPTION_BENCHMARKS_HOLD: "benchmarks hold for the client",
}


@commands.command()
@remote.reaching
async def forecast(server: remote.Server, plan: Plan) -> None:
    """Show what a version of a plan will probably reach, with 80 % intervals and what they rest on."""
    async with server.open() as channel:
        request = pb.ForecastMediaPlanRequest(media_plan_id=str(plan))
        reply = await ForecastServiceStub(channel).ForecastMediaPlan(request, timeout=_CALL_SECONDS)
    say(f"{reply.forecast.display_name}, version {reply.forecast.version}", markup=False)
    show_table(figures(reply.forecast))
    if any(each.kpis for each in reply.forecast.channels):
        show_table(outlooks(reply.forecast))
    for text in notes(reply):
        say(text, markup=False)


@commands.command()
@remote.reaching
async def fact(server: remote.Server, plan: Plan) -> None:
    """Show what a version of a plan has reached by now, against what it planned."""
    async with server.open() as channel:
        request = pb.GetPlanPerformanceRequest(media_plan_id=str(plan))
        reply = await ForecastServiceStub(channel).GetPlanPerformance(request, timeout=_CALL_SECONDS)
    as_of, currency = reply.watermark_time.ToJsonString(), reply.total.budget.currency_code
    say(f"as of {as_of}, days of {reply.time_zone}, amounts in {currency}", markup=False)
    show_table(pacing(reply))
    if any(each.kpis for each in reply.channels):
        show_table(targets(reply))
    for text in days(reply.total):
        say(text, markup=False)


def figures(plan: forecast_pb2.PlanForecast) -> Table:
    """Every figure of every channel with its interval, drawn from zero to its upper end."""
    shown = Table(box=None, pad_edge=False)
    for title in ("figure", "forecast", "80 % interval", "", "own past"):
        shown.add_column(title, justify="left" if title in ("figure", "") else "right", no_wrap=True)
    for row in _figure_rows(plan):
        shown.add_row(*(escape(cell) for cell in row))
    return shown


def _figure_rows(plan: forecast_pb2.PlanForecast) -> Iterator[tuple[str, ...]]:
    parts = [(name(each), each.figures) for each in plan.channels]
    for title, found in [*parts, ("total", plan.totals)]:
        yield title, "", "", "", ""
        for figure in found:
            word = forecast_pb2.ForecastFigure.Name(figure.figure).removeprefix("FORECAST_FIGURE_").lower()
            interval = next((each for each in figure.intervals if each.level_percent == _SHOWN_LEVEL), None)
            unit = f" {figure.currency_code}" if figure.currency_code else ""
            bounds = f"{grouped(interval.low)} - {grouped(interval.high)}" if interval else ""
            bar = span(float(interval.low), float(figure.value), float(interval.high)) if interval else ""
            own = f"{float(figure.own_weight):.0%}" if figure.HasField("own_weight") else ""
            if figure.unknown_channel_ids:
                own = f"{len(figure.unknown_channel_ids)} unknown"
            yield f"  {word}", grouped(figure.value) + unit, bounds, bar, own


def span(low: float, value: float, high: float) -> str:
    """An interval as a line from zero to its upper end."""
    if high <= 0:
        return ""
    first, middle, last = (min(_WIDTH - 1, round(each / high * (_WIDTH - 1))) for each in (low, value, high))
    return "".join(
        "●" if at == middle else "━" if first <= at <= last else "·" if at < first else " " for at in range(_WIDTH)
    ).rstrip()


def outlooks(plan: forecast_pb2.PlanForecast) -> Table:
    """The KPIs of the channels: what is wanted, what is forecast."""
    shown = Table(box=None, pad_edge=False)
    for title in ("channel", "KPI", "target", "forecast", "80 % interval", "benchmark", "outlook"):
        shown.add_column(title, no_wrap=True)
    for channel in plan.channels:
        for kpi in channel.kpis:
            interval = next((each for each in kpi.intervals if each.level_percent == _SHOWN_LEVEL), None)
            outlook = forecast_pb2.KpiOutlook.Name(kpi.outlook).removeprefix("KPI_OUTLOOK_").lower()
            shown.add_row(
                escape(name(channel)),
                metric_name(kpi.metric),
                kpi.target,
                short(kpi.value),
                f"{short(interval.low)} - {short(interval.high)}" if interval else "",
                short(kpi.benchmark_median),
                "" if outlook == "unspecified" else outlook,
            )
    return shown


def notes(reply: pb.ForecastMediaPlanResponse) -> Iterator[str]:
    """What a forecast takes for granted, and how the method fares."""
    assumed = sorted({each for channel in reply.forecast.channels for each in channel.assumptions})
    if assumed:
        yield f"assumed: {'; '.join(_ASSUMPTIONS[each] for each in assumed if each in _ASSUMPTIONS)}"
    for figure in reply.backtest.figures:
        word = forecast_pb2.ForecastFigure.Name(figure.figure).removeprefix("FORECAST_FIGURE_").lower()
        error = f", off by {figure.median_error_percent} % in the middle" if figure.median_error_percent else ""
        yield f"backtest: {word}: {figure.coverage_percent} % of {figure.flight_count} flights within 80 %{error}"
    if not reply.HasField("backtest"):
        yield "backtest: the client's past is too short"


def pacing(reply: pb.GetPlanPerformanceResponse) -> Table:
    """Money and figures of the channels, planned and actual."""
    shown = Table(box=None, pad_edge=False)
    for title in ("channel", "flight", "budget", "planned by now", "spent", "deviation", "pacing", "impressions"):
        shown.add_column(title, justify="left" if title in ("channel", "flight") else "right", no_wrap=True)
    for title in ("clicks", "conversions", "revenue"):
        shown.add_column(title, justify="right", no_wrap=True)
    for channel in (*reply.channels, reply.total):
        planned = channel.HasField("planned_to_date")
        cells = (
            name(channel) if channel.channel_id else "total",
            f"{channel.flight.start_date} - {channel.flight.end_date}" if channel.HasField("flight") else "",
            amount(channel.budget.micros),
            amount(channel.planned_to_date.micros) if planned else "",
            amount(channel.actual.cost_micros),
            amount(channel.deviation.micros) if planned else "",
            f"{float(channel.pacing):.0%}" if channel.HasField("pacing") else "",
            f"{channel.actual.impressions:,}",
            f"{channel.actual.clicks:,}",
            grouped(channel.actual.conversions),
            amount(channel.actual.revenue_micros),
        )
        shown.add_row(*(escape(cell) for cell in cells))
    return shown


def targets(reply: pb.GetPlanPerformanceResponse) -> Table:
    """The KPIs of the channels: what is wanted, what was reached."""
    shown = Table(box=None, pad_edge=False)
    for title in ("channel", "KPI", "target", "by now", "actual", "deviation", "status"):
        shown.add_column(title, no_wrap=True)
    for channel in reply.channels:
        for kpi in channel.kpis:
            status = forecast_pb2.KpiStatus.Name(kpi.status).removeprefix("KPI_STATUS_").lower().replace("_", " ")
            shown.add_row(
                escape(name(channel)),
                metric_name(kpi.metric),
                kpi.target,
                short(kpi.target_to_date),
                short(kpi.actual),
                short(kpi.deviation),
                "" if status == "unspecified" else status,
            )
    return shown


def days(total: forecast_pb2.ChannelPerformance) -> Iterator[str]:
    """The last days of a plan as bars: spent, with a mark at what was planned."""
    shown = total.days[-_MOST_DAYS:]
    largest = max((max(each.planned.micros, each.actual.cost_micros) for each in shown), default=0)
    if not largest:
        return
    for each in shown:
        spent, planned = (
            round(micros / largest * (_WIDTH - 1)) for micros in (each.actual.cost_micros, each.planned.micros)
        )
        bar = "".join("│" if at == planned else "█" if at < spent else " " for at in range(_WIDTH))
        yield f"{each.date} {bar} {amount(each.actual.cost_micros)} of {amount(each.planned.micros)}"


def name(channel: forecast_pb2.ChannelForecast | forecast_pb2.ChannelPerformance) -> str:
    """What people call a channel; the random end of its id tells it from others like it."""
    kind = channel_pb2.ChannelType.Name(channel.channel_type).removeprefix("CHANNEL_TYPE_").lower()
    platform = platform_pb2.Platform.Name(channel.platform).removeprefix("PLATFORM_").lower()
    return f"{kind} {platform} {channel.format}".rstrip() + f" ..{channel.channel_id[-6:]}"


def grouped(decimal: str) -> str:
    """A decimal with its thousands apart; a large one without its fraction."""
    whole, dot, part = decimal.partition(".")
    if len(whole) > _LARGE:
        return f"{round(float(decimal)):,}"
    return f"{int(whole or 0):,}{dot}{part}"


def amount(micros: int) -> str:
    """An amount with two decimals, a large one with none."""
    return f"{micros / 10**6:,.0f}" if abs(micros) >= 10**10 else f"{micros / 10**6:,.2f}"


def short(decimal: str) -> str:
    """A decimal of at most two places; nothing for none."""
    return f"{float(decimal):,.2f}".rstrip("0").rstrip(".") if decimal else ""
