"""GetPlanPerformance: what a media plan has reached, against what it planned."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from mrm.common.v1 import money_pb2
from mrm.planning.v1 import forecast_pb2
from mrm.planning.v1 import forecast_service_pb2 as pb
from mrm.statistics.v1 import metrics_pb2
from server.forecasting import convert
from server.pacing.arithmetic import Flight, Instant, planned_to_date
from server.rpc import rights, values
from server.rpc.call import Call
from server.rpc.errors import NotFound
from server.statistics.buckets import day_start
from server.statistics.figures import MICROS, quotient, to_message
from server.statistics.rules import LONGEST_DAYS, MOST_ROWS, QueryTooLarge
from server.statistics.watermark import WatermarkReader
from storage.clickhouse import precedence, series
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.metrics import NO_FIGURES, Figures, Selection
from storage.postgres import forecasts, media_plans
from storage.postgres.database import Database
from storage.postgres.forecasts import PastCampaign, PlanClient
from storage.postgres.media_plans import MediaPlan

_DAY: Final = timedelta(days=1)
_WHOLE_DAY: Final = Fraction(1)
_MOST_CAMPAIGNS: Final = 10_000
_COUNTS: Final = frozenset({"impressions", "clicks", "conversions"})

Days = dict[date, Figures]


@dataclass(frozen=True, slots=True)
class _Channel:
    """A channel, and what happened in it.

    Attributes:
        entry: As the plan has it.
        flight: Its own days or else the project's; None if neither is decided.
        days: Figures of each day of the flight that has some.
    """

    entry: Mapping[str, Any]
    flight: Flight | None
    campaigns: Sequence[UUID]
    days: Days


@dataclass(frozen=True, slots=True)
class _Shown:
    """Which days are shown; an end that is None is open."""

    first: date | None
    last: date | None
    none: bool

    def of(self, flight: Flight, now: Instant) -> list[date]:
        """Those of a flight that are shown."""
        if self.none:
            return []
        first = max(flight.start, self.first or flight.start)
        last = min(flight.end, now.day, self.last or flight.end)
        return [first + _DAY * n for n in range((last - first).days + 1)]


class PerformanceRpcs:
    """RPCs that look back.

    Args:
        database: Knows plans and the watermark.
        clickhouse: Knows the figures.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._watermark = WatermarkReader(database)

    async def GetPlanPerformance(
        self, request: pb.GetPlanPerformanceRequest, call: Call
    ) -> pb.GetPlanPerformanceResponse:
        """Holds a version of a plan against what was reached."""
        shown = _Shown(
            values.day(request.dates.start_date, "dates.start_date"),
            values.day(request.dates.end_date, "dates.end_date"),
            request.without_days,
        )
        plan = await media_plans.get(self._database, call.scope, UUID(request.media_plan_id))
        client = None if plan is None else await forecasts.plan_client(self._database, call.scope, plan.project_id)
        if plan is None or client is None:
            raise NotFound.resource("media_plan", request.media_plan_id)
        if not rights.granting(call.principal, "STATISTICS_READ"):
            raise rights.denied("STATISTICS_READ")
        campaigns = await forecasts.campaigns(
            self._database,
            rights.within(call.principal, "STATISTICS_READ"),
            client.client_id,
            plan.currency,
            limit=_MOST_CAMPAIGNS,
            lineage_id=plan.lineage_id,
        )
        # Read before the figures, which may be newer than it but never older.
        watermark = await self._watermark.instant()
        zone = ZoneInfo(client.time_zone)
        now = Instant.of(watermark or datetime.now(UTC), zone)
        channels = await self._channels(plan, client, campaigns, zone, now)
        rows = sum(len(shown.of(each.flight, now)) for each in channels if each.flight)
        if rows > MOST_ROWS:
            raise QueryTooLarge(f"these are {rows} days of channels: name fewer in dates, or leave them out")
        message = await asyncio.to_thread(_compared, plan.currency, channels, shown, now)
        message.time_zone = client.time_zone
        if watermark is not None:
            message.watermark_time.FromDatetime(watermark)
        return message

    async def _channels(
        self, plan: MediaPlan, client: PlanClient, campaigns: Sequence[PastCampaign], zone: ZoneInfo, now: Instant
    ) -> list[_Channel]:
        dates = Flight(client.start, client.end) if client.start and client.end else None
        flights = {entry["channel_id"]: _flight(entry) or dates for entry in plan.channels}
        begun = [flight for flight in flights.values() if flight and flight.start <= now.day]
        figures: dict[UUID, Days] = {}
        if begun and campaigns:
            first = min(flight.start for flight in begun)
            last = min(now.day, max(flight.end for flight in begun))
            if (last - first).days > LONGEST_DAYS:
                raise QueryTooLarge(f"the plan's flights go back by more than {LONGEST_DAYS} days")
            figures = await self._figures(client.client_id, campaigns, plan.currency, first, last, zone)
        channels = []
        for entry in plan.channels:
            flight = flights[entry["channel_id"]]
            bound = [each.id for each in campaigns if str(each.channel_id) == entry["channel_id"]]
            found: Days = {}
            for day, part in (item for each in bound for item in figures.get(each, {}).items()):
                if flight and flight.start <= day <= flight.end:
                    found[day] = _added(found.get(day, NO_FIGURES), part)
            channels.append(_Channel(entry, flight, sorted(bound), found))
        return channels

    async def _figures(
        self,
        client_id: UUID,
        campaigns: Sequence[PastCampaign],
        currency: str,
        first: date,
        last: date,
        zone: ZoneInfo,
    ) -> dict[UUID, Days]:
        """Figures of campaigns by day, as QueryStatistics tells them."""
        days = [first + _DAY * n for n in range((last - first).days + 1)]
        starts = [day_start(day, zone) for day in [*days, last + _DAY]]
        # A zone that crossed the date line has a day without any instant.
        by_start = {start: day for day, (start, after) in zip(days, pairwise(starts), strict=True) if after > start}
        bounds = [*by_start, starts[-1]]
        found = await series.series(
            self._clickhouse,
            Selection(clients=[client_id], campaigns=[each.id for each in campaigns]),
            bounds,
            ["campaign_id"],
            _MOST_CAMPAIGNS,
            mixed=await precedence.has_snapshots(self._clickhouse, [client_id]),
            covered=precedence.covers(bounds, zone),
        )
        return {
            combination.values[0]: {by_start[start]: figures for start, figures in run.items()}
            for combination, run in found.items()
            if isinstance(combination.values[0], UUID) and combination.currency == currency
        }


def _compared(
    currency: str, channels: Sequence[_Channel], shown: _Shown, now: Instant
) -> pb.GetPlanPerformanceResponse:
    return pb.GetPlanPerformanceResponse(
        channels=[_performance(each, currency, shown, now) for each in channels],
        total=_total(channels, currency, shown, now),
    )


def _performance(channel: _Channel, currency: str, shown: _Shown, now: Instant) -> forecast_pb2.ChannelPerformance:
    entry, flight = channel.entry, channel.flight
    actual = _sum(channel.days.values())
    message = forecast_pb2.ChannelPerformance(
        channel_id=entry["channel_id"],
        channel_type=convert.CHANNEL_TYPES.number(entry["type"]),
        platform=convert.PLATFORMS.number(entry["platform"]),
        format=entry.get("format", ""),
        budget=_money(entry["budget"], currency),
        actual=to_message(actual, currency),
        campaign_ids=[str(each) for each in channel.campaigns],
    )
    if flight is not None:
        message.flight.CopyFrom(convert.days(flight.start, flight.end + _DAY))
        _pace(message, planned_to_date(entry["budget"], flight, now), actual.cost_micros, currency)
        spent = sum(part.cost_micros for day, part in channel.days.items() if day < _first(shown, flight))
        for day in shown.of(flight, now):
            spent += channel.days.get(day, NO_FIGURES).cost_micros
            message.days.append(_day(day, [channel], spent, currency, now))
    message.kpis.extend(
        _kpi(each["metric"], each["target"], message.actual, flight, now) for each in entry.get("kpis", ())
    )
    return message


def _total(channels: Sequence[_Channel], currency: str, shown: _Shown, now: Instant) -> forecast_pb2.ChannelPerformance:
    actual = _sum(part for each in channels for part in each.days.values())
    budget = sum(each.entry["budget"] for each in channels)
    message = forecast_pb2.ChannelPerformance(
        budget=_money(budget, currency),
        actual=to_message(actual, currency),
        campaign_ids=[str(campaign) for each in channels for campaign in each.campaigns],
    )
    flights = [each.flight for each in channels if each.flight]
    if not flights or any(each.flight is None and each.entry["budget"] for each in channels):
        return message
    whole = Flight(min(flight.start for flight in flights), max(flight.end for flight in flights))
    message.flight.CopyFrom(convert.days(whole.start, whole.end + _DAY))
    planned = sum(planned_to_date(each.entry["budget"], each.flight, now) for each in channels if each.flight)
    _pace(message, planned, actual.cost_micros, currency)
    first = _first(shown, whole)
    spent = sum(part.cost_micros for each in channels for day, part in each.days.items() if day < first)
    for day in shown.of(whole, now):
        spent += sum(each.days.get(day, NO_FIGURES).cost_micros for each in channels)
        message.days.append(_day(day, channels, spent, currency, now))
    return message


def _pace(message: forecast_pb2.ChannelPerformance, planned: int, spent: int, currency: str) -> None:
    message.planned_to_date.CopyFrom(_money(planned, currency))
    message.deviation.CopyFrom(_money(spent - planned, currency))
    pacing = quotient(spent, planned)
    if pacing is not None:
        message.pacing = pacing


def _day(
    day: date, channels: Sequence[_Channel], spent: int, currency: str, now: Instant
) -> forecast_pb2.DayPerformance:
    ends = Instant(day, _WHOLE_DAY if day < now.day else now.elapsed)
    begins = Instant(day, Fraction(0))
    due = before = 0
    for each in channels:
        if each.flight:
            due += planned_to_date(each.entry["budget"], each.flight, ends)
            before += planned_to_date(each.entry["budget"], each.flight, begins)
    return forecast_pb2.DayPerformance(
        date=day.isoformat(),
        planned=_money(due - before, currency),
        planned_to_date=_money(due, currency),
        spent_to_date=_money(spent, currency),
        actual=to_message(_sum(each.days.get(day, NO_FIGURES) for each in channels), currency),
    )


def _kpi(
    metric: str, target: str, actual: metrics_pb2.Metrics, flight: Flight | None, now: Instant
) -> forecast_pb2.KpiPerformance:
    message = forecast_pb2.KpiPerformance(metric=convert.METRICS.number(metric), target=target)
    begun = flight is not None and now.day >= flight.start
    if metric not in _COUNTS:
        message.target_to_date = target
    elif flight is not None:
        due = planned_to_date(int(Decimal(target).scaleb(6)), flight, now)
        message.target_to_date = quotient(due, MICROS) or "0"
    if metric in _COUNTS:
        message.actual = str(getattr(actual, metric))
    elif actual.HasField(metric):  # type: ignore[arg-type]
        message.actual = getattr(actual, metric)
    if message.HasField("actual") and message.HasField("target_to_date"):
        deviation = Decimal(message.actual) - Decimal(message.target_to_date)
        message.deviation = convert.exact(deviation)
        behind = deviation > 0 if metric in convert.CHEAPER_IS_BETTER else deviation < 0
        if begun:
            message.status = forecast_pb2.KPI_STATUS_BEHIND if behind else forecast_pb2.KPI_STATUS_ON_TRACK
    return message


def _flight(entry: Mapping[str, Any]) -> Flight | None:
    if "start" not in entry:
        return None
    return Flight(date.fromisoformat(entry["start"]), date.fromisoformat(entry["end"]))


def _first(shown: _Shown, flight: Flight) -> date:
    """The first day that is shown of a flight."""
    return max(flight.start, shown.first or flight.start)


def _sum(parts: Iterable[Figures]) -> Figures:
    total = NO_FIGURES
    for part in parts:
        total = _added(total, part)
    return total


def _added(one: Figures, other: Figures) -> Figures:
    return Figures(*(a + b for a, b in zip(one, other, strict=True)))


def _money(micros: int, currency: str) -> money_pb2.Money:
    return money_pb2.Money(currency_code=currency, micros=micros)
