"""Forecasts as messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, Final

from mrm.common.v1 import channel_pb2, money_pb2, platform_pb2, time_pb2
from mrm.planning.v1 import forecast_pb2, media_plan_pb2
from mrm.planning.v1 import forecast_service_pb2 as pb
from mrm.planning.v1.benchmark_service_pb2 import FoundBenchmark
from server.forecasting.model import CLICKS, CONVERSIONS, COST, IMPRESSIONS, REVENUE, Ratio
from server.forecasting.outlook import JUDGED, LEVELS, Fared, Figure, Interval, Outlook, between
from server.forecasting.past import Past
from server.planning import benchmark_service
from server.rpc.values import EnumWords

CHANNEL_TYPES: Final = EnumWords(channel_pb2.ChannelType, "CHANNEL_TYPE_")
PLATFORMS: Final = EnumWords(platform_pb2.Platform, "PLATFORM_")
METRICS: Final = EnumWords(media_plan_pb2.KpiMetric, "KPI_METRIC_")
CHEAPER_IS_BETTER: Final = frozenset({"cpc", "cpm", "cpa"})
"""KPIs of which less is better."""

_FIGURES: Final = {
    IMPRESSIONS: forecast_pb2.FORECAST_FIGURE_IMPRESSIONS,
    CLICKS: forecast_pb2.FORECAST_FIGURE_CLICKS,
    CONVERSIONS: forecast_pb2.FORECAST_FIGURE_CONVERSIONS,
    COST: forecast_pb2.FORECAST_FIGURE_COST,
    REVENUE: forecast_pb2.FORECAST_FIGURE_REVENUE,
}
_AMOUNTS: Final = frozenset({COST, REVENUE})
_WHOLE: Final = frozenset({IMPRESSIONS, CLICKS})
_COUNTS: Final = {"impressions": IMPRESSIONS, "clicks": CLICKS, "conversions": CONVERSIONS}
# Quotients of the budget and a figure: a factor, and the place of the figure.
_COSTS: Final = {"cpm": (1000.0, IMPRESSIONS), "cpc": (1.0, CLICKS), "cpa": (1.0, CONVERSIONS)}
_RATES: Final = {"ctr": Ratio(CLICKS, IMPRESSIONS), "cr": Ratio(CONVERSIONS, CLICKS)}
_BASES: Final = EnumWords(forecast_pb2.ForecastBasis, "FORECAST_BASIS_")
_EVIDENCES: Final = EnumWords(forecast_pb2.ForecastEvidence, "FORECAST_EVIDENCE_")
_ASSUMPTIONS: Final = EnumWords(forecast_pb2.ForecastAssumption, "FORECAST_ASSUMPTION_")
_MOST_CAMPAIGNS: Final = 100
_DAY: Final = timedelta(days=1)
# Floats have up to 309 digits before the point.
_ANY_LENGTH: Final = Context(prec=400)


def decimal(value: float, places: int) -> str:
    """A number in plain notation with at most so many decimals, half to even."""
    return exact(Decimal(value).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN, _ANY_LENGTH))


def exact(value: Decimal) -> str:
    """A decimal in plain notation, without needless digits."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def days(first: date, after: date) -> time_pb2.DateRange:
    """The days from one up to, not including, another."""
    return time_pb2.DateRange(start_date=first.isoformat(), end_date=(after - _DAY).isoformat())


def channel(outlook: Outlook, entry: Mapping[str, Any], past: Past, currency: str) -> forecast_pb2.ChannelForecast:
    """A channel's forecast; `entry` is the channel as the plan has it."""
    wanted = outlook.channel
    message = forecast_pb2.ChannelForecast(
        channel_id=str(wanted.id),
        channel_type=CHANNEL_TYPES.number(wanted.channel_type),
        platform=PLATFORMS.number(wanted.platform),
        format=wanted.format,
        budget=money_pb2.Money(currency_code=currency, micros=wanted.micros),
        figures=figures(outlook.figures, currency),
        kpis=[_kpi(outlook, kpi["metric"], kpi["target"]) for kpi in entry.get("kpis", ())],
        campaigns=_campaigns(outlook, past),
        evidence=_EVIDENCES.number(outlook.evidence),
        benchmarks=_benchmarks(outlook),
        assumptions=[_ASSUMPTIONS.number(each) for each in outlook.assumptions],
    )
    if wanted.start and wanted.end:
        message.flight.CopyFrom(days(wanted.start, wanted.end + _DAY))
    return message


def figures(found: Mapping[int, Figure], currency: str) -> list[forecast_pb2.FigureForecast]:
    """Figures in the order of the contract."""
    return [_figure(place, found[place], currency) for place in _FIGURES if place in found]


def _figure(place: int, figure: Figure, currency: str) -> forecast_pb2.FigureForecast:
    places = 0 if place in _WHOLE else 2
    message = forecast_pb2.FigureForecast(
        figure=_FIGURES[place],
        value=decimal(figure.value, places),
        currency_code=currency if place in _AMOUNTS else "",
        intervals=_intervals(figure.intervals, places),
        basis=_BASES.number(figure.basis) if figure.basis else forecast_pb2.FORECAST_BASIS_UNSPECIFIED,
        benchmark_ids=[str(each) for each in figure.benchmark_ids],
        error_count=figure.errors,
        unknown_channel_ids=[str(each) for each in figure.unknown],
    )
    if figure.own_weight is not None:
        message.own_weight = decimal(figure.own_weight, 4)
        message.benchmark_weight = decimal(1 - figure.own_weight, 4)
    return message


def _intervals(found: Mapping[int, Interval], places: int) -> list[forecast_pb2.ForecastInterval]:
    return [
        forecast_pb2.ForecastInterval(
            level_percent=level, low=decimal(found[level][0], places), high=decimal(found[level][1], places)
        )
        for level in LEVELS
        if level in found and math.isfinite(found[level][1])
    ]


def _campaigns(outlook: Outlook, past: Past) -> list[forecast_pb2.ForecastCampaign]:
    costs = past.panel.values[COST]
    found = []
    for series in sorted(outlook.series, key=lambda n: (-int((costs[n] > 0).sum()), past.campaigns[n].id)):
        weeks = (costs[series] > 0).nonzero()[0]
        found.append(
            forecast_pb2.ForecastCampaign(
                campaign_id=str(past.campaigns[series].id),
                display_name=past.campaigns[series].name,
                dates=days(past.week(int(weeks[0])), past.week(int(weeks[-1]) + 1)),
                week_count=len(weeks),
            )
        )
    return found[:_MOST_CAMPAIGNS]


def _benchmarks(outlook: Outlook) -> list[FoundBenchmark]:
    used = {each for figure in outlook.figures.values() for each in figure.benchmark_ids}
    rows = [row for row in outlook.channel.benchmarks.values() if row.id in used]
    rows.sort(key=lambda row: benchmark_service.METRICS.number(row.metric))
    return [benchmark_service.answer(row, outlook.channel.industry) for row in rows]


def _kpi(outlook: Outlook, metric: str, target: str) -> forecast_pb2.KpiForecast:
    message = forecast_pb2.KpiForecast(metric=METRICS.number(metric), target=target)
    benchmark = outlook.channel.benchmarks.get(metric)
    if benchmark is not None:
        message.benchmark_median = decimal(float(benchmark.p50), 6)
    found = _of_kpi(outlook, metric)
    if found is None:
        return message
    value, bounds = found
    message.value = decimal(value, 6)
    message.intervals.extend(_intervals(bounds, 6))
    if JUDGED in bounds:
        low, high = bounds[JUDGED]
        goal = float(target)
        worst, best = (-high, -low) if metric in CHEAPER_IS_BETTER else (low, high)
        goal = -goal if metric in CHEAPER_IS_BETTER else goal
        if worst >= goal:
            message.outlook = forecast_pb2.KPI_OUTLOOK_LIKELY
        elif best >= goal:
            message.outlook = forecast_pb2.KPI_OUTLOOK_OPEN
        else:
            message.outlook = forecast_pb2.KPI_OUTLOOK_UNLIKELY
    return message


def _of_kpi(outlook: Outlook, metric: str) -> tuple[float, Mapping[int, Interval]] | None:
    """What a KPI will probably be, and between which bounds."""
    budget = outlook.channel.budget
    if metric in _RATES:
        rate = outlook.rates.get(_RATES[metric])
        return None if rate is None else _mapped(rate, lambda each: 100 * each)
    if metric in _COUNTS:
        count = outlook.figures.get(_COUNTS[metric])
        return None if count is None else _mapped(count, lambda each: each)
    if metric in _COSTS:
        factor, place = _COSTS[metric]
        figure = outlook.figures.get(place)
        if figure is None or figure.value <= 0:
            return None
        return _mapped(figure, lambda each: factor * budget / each if each > 0 else math.inf)
    revenue = outlook.figures.get(REVENUE)
    if revenue is None:
        return None
    return _mapped(revenue, lambda each: each / budget if metric == "roas" else 100 * (each / budget - 1))


def _mapped(figure: Figure, change: Callable[[float], float]) -> tuple[float, Mapping[int, Interval]]:
    bounds = {}
    for level, (low, high) in figure.intervals.items():
        changed = change(low), change(high)
        bounds[level] = (min(changed), max(changed))
    return change(figure.value), bounds


def backtest(fared: tuple[date, date, Mapping[int, Fared]] | None, block: int) -> forecast_pb2.ForecastBacktest | None:
    """How the method fared."""
    if fared is None:
        return None
    first, after, found = fared
    message = forecast_pb2.ForecastBacktest(dates=days(first, after), flight_weeks=block)
    for place in (each for each in _FIGURES if each in found):
        each = found[place]
        figure = message.figures.add(
            figure=_FIGURES[place], flight_count=each.flights, coverage_percent=decimal(100 * each.covered, 1)
        )
        if each.error is not None:
            figure.median_error_percent = decimal(100 * each.error, 1)
    return message


def difference(
    name: str, first: Mapping[int, Figure], other: Mapping[int, Figure], currency: str
) -> pb.ScenarioDifference:
    """What a scenario reaches more than the first; where a channel is unknown to one of them nothing is compared."""
    message = pb.ScenarioDifference(display_name=name)
    for place, number in _FIGURES.items():
        if place not in first or place not in other or first[place].unknown or other[place].unknown:
            continue
        base, figure = first[place], other[place]
        places = 0 if place in _WHOLE else 2
        shown = message.figures.add(
            figure=number,
            value=decimal(figure.value - base.value, places),
            currency_code=currency if place in _AMOUNTS else "",
        )
        if base.value > 0:
            shown.percent = decimal(100 * (figure.value - base.value) / base.value, 2)
        if base.draw is not None and figure.draw is not None:
            shown.intervals.extend(_intervals(between(figure.draw() - base.draw()), places))
    return message
