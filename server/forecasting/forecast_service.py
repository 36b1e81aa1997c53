"""ForecastMediaPlan and CompareScenarios."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from mrm.planning.v1 import forecast_pb2
from mrm.planning.v1 import forecast_service_pb2 as pb
from server.forecasting import convert, past
from server.forecasting.outlook import Figure, Forecaster, PlannedChannel
from server.forecasting.past import Past
from server.pacing.arithmetic import Instant
from server.rpc import rights, values
from server.rpc.call import Call
from server.rpc.errors import InvalidRequest, NotFound
from server.statistics.watermark import WatermarkReader
from storage.clickhouse.connect import ClickHouse
from storage.postgres import benchmarks, forecasts, media_plans
from storage.postgres.database import Database
from storage.postgres.forecasts import PlanClient
from storage.postgres.media_plans import MediaPlan


@dataclass(frozen=True, slots=True)
class _Asked:
    """A plan to forecast: with these budgets, under this name."""

    plan: MediaPlan
    client: PlanClient
    name: str
    budgets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of it."""

    forecasts: list[forecast_pb2.PlanForecast]
    totals: list[dict[int, Figure]]
    backtest: forecast_pb2.ForecastBacktest | None


class ForecastRpcs:
    """RPCs that look ahead.

    Args:
        database: Knows plans, benchmarks and the watermark.
        clickhouse: Knows the past.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._watermark = WatermarkReader(database)

    async def ForecastMediaPlan(self, request: pb.ForecastMediaPlanRequest, call: Call) -> pb.ForecastMediaPlanResponse:
        """Says what a version of a plan will probably reach."""
        asked = await self._asked(request.media_plan_id, call)
        found, watermark = await self._past([asked], call)
        answer = await self._answer([asked], found)
        message = pb.ForecastMediaPlanResponse(
            forecast=answer.forecasts[0],
            backtest=answer.backtest,
            time_zone=asked.client.time_zone,
            watermark_time=values.timestamp(watermark),
        )
        if found.campaigns:
            message.history.CopyFrom(convert.days(found.first, found.today))
        return message

    async def CompareScenarios(self, request: pb.CompareScenariosRequest, call: Call) -> pb.CompareScenariosResponse:
        """Forecasts versions and splits side by side."""
        asked = [
            await self._asked(each.media_plan_id, call, each, f"scenarios[{index}]")
            for index, each in enumerate(request.scenarios)
        ]
        for index, each in enumerate(asked):
            if each.client.client_id != asked[0].client.client_id:
                raise InvalidRequest.field(
                    f"scenarios[{index}].media_plan_id", "OTHER_CLIENT", "is of another client than the first"
                )
            if each.plan.currency != asked[0].plan.currency:
                raise InvalidRequest.field(
                    f"scenarios[{index}].media_plan_id", "CURRENCY_MISMATCH", f"must be in {asked[0].plan.currency}"
                )
        found, watermark = await self._past(asked, call)
        answer = await self._answer(asked, found)
        return pb.CompareScenariosResponse(
            forecasts=answer.forecasts,
            differences=[
                convert.difference(each.name, answer.totals[0], totals, each.plan.currency)
                for each, totals in zip(asked[1:], answer.totals[1:], strict=True)
            ],
            backtest=answer.backtest,
            time_zone=asked[0].client.time_zone,
            watermark_time=values.timestamp(watermark),
        )

    async def _asked(
        self, media_plan_id: str, call: Call, scenario: pb.Scenario | None = None, path: str = ""
    ) -> _Asked:
        plan = await media_plans.get(self._database, call.scope, UUID(media_plan_id))
        client = None if plan is None else await forecasts.plan_client(self._database, call.scope, plan.project_id)
        if plan is None or client is None:
            raise NotFound.resource("media_plan", media_plan_id)
        budgets: dict[str, int] = {entry["channel_id"]: entry["budget"] for entry in plan.channels}
        if scenario is None:
            return _Asked(plan, client, plan.name, budgets)
        named: set[str] = set()
        for index, each in enumerate(scenario.budgets):
            field, channel_id = f"{path}.budgets[{index}]", each.channel_id.lower()
            if channel_id not in budgets:
                raise InvalidRequest.field(f"{field}.channel_id", "CHANNEL_UNKNOWN", "is no channel of this version")
            if channel_id in named:
                raise InvalidRequest.field(f"{field}.channel_id", "CHANNEL_DUPLICATE", "stands in the scenario twice")
            if each.budget.currency_code != plan.currency:
                raise InvalidRequest.field(
                    f"{field}.budget.currency_code", "CURRENCY_MISMATCH", f"must be {plan.currency}"
                )
            if not 0 <= each.budget.micros < 10**18:
                raise InvalidRequest.field(
                    f"{field}.budget.micros", "AMOUNT_OUT_OF_RANGE", f"must be from 0 to below 10^12 {plan.currency}"
                )
            named.add(channel_id)
            budgets[channel_id] = each.budget.micros
        return _Asked(plan, client, scenario.display_name or plan.name, budgets)

    async def _past(self, asked: Sequence[_Asked], call: Call) -> tuple[Past, datetime | None]:
        """What is known of the client before today, as far as the caller may read it."""
        client, currency = asked[0].client, asked[0].plan.currency
        zone = ZoneInfo(client.time_zone)
        watermark = await self._watermark.instant()
        today = Instant.of(watermark or datetime.now(UTC), zone).day
        campaigns = []
        if rights.granting(call.principal, "STATISTICS_READ"):
            scope = rights.within(call.principal, "STATISTICS_READ")
            campaigns = await forecasts.campaigns(
                self._database, scope, client.client_id, currency, limit=past.MOST_CAMPAIGNS
            )
        channels = {UUID(channel_id) for each in asked for channel_id in each.budgets}
        found = await past.read(self._clickhouse, client.client_id, campaigns, channels, today, zone)
        return found, watermark

    async def _answer(self, asked: Sequence[_Asked], found: Past) -> _Answer:
        channels = [await self._channels(each) for each in asked]
        # Numpy holds no other call up from a thread of its own for longer than one of its operations takes.
        return await asyncio.to_thread(_computed, asked, channels, found)

    async def _channels(self, asked: _Asked) -> list[PlannedChannel]:
        geo = asked.plan.targeting.get("geo", [])
        kinds: dict[tuple[str, str, str], Mapping[str, benchmarks.Benchmark]] = {}
        found = []
        for entry in asked.plan.channels:
            kind = entry["platform"], entry["type"], entry.get("format", "")
            if kind not in kinds:
                rows = await benchmarks.best(
                    self._database,
                    industry=asked.client.industry,
                    platform=kind[0],
                    channel=kind[1],
                    format=kind[2],
                    geo=geo[0] if len(geo) == 1 else "",
                    currency=asked.plan.currency,
                )
                kinds[kind] = {row.metric: row for row in rows}
            found.append(_channel(asked, entry, kinds[kind]))
        return found


def _channel(asked: _Asked, entry: Mapping[str, Any], found: Mapping[str, benchmarks.Benchmark]) -> PlannedChannel:
    start, end = asked.client.start, asked.client.end
    if "start" in entry:
        start, end = date.fromisoformat(entry["start"]), date.fromisoformat(entry["end"])
    return PlannedChannel(
        UUID(entry["channel_id"]),
        entry["platform"],
        entry["type"],
        entry.get("format", ""),
        asked.budgets[entry["channel_id"]],
        start,
        end,
        asked.client.industry,
        found,
    )


def _computed(asked: Sequence[_Asked], channels: Sequence[Sequence[PlannedChannel]], found: Past) -> _Answer:
    forecaster = Forecaster(
        found, [each for some in channels for each in some], f"{asked[0].client.client_id}/{found.today}"
    )
    messages, totals = [], []
    for each, some in zip(asked, channels, strict=True):
        outlooks = [forecaster.channel(channel) for channel in some]
        total = forecaster.total(outlooks)
        totals.append(total)
        messages.append(
            forecast_pb2.PlanForecast(
                media_plan_id=str(each.plan.id),
                display_name=each.name,
                version=each.plan.version,
                channels=[
                    convert.channel(outlook, entry, found, each.plan.currency)
                    for outlook, entry in zip(outlooks, each.plan.channels, strict=True)
                ],
                totals=convert.figures(total, each.plan.currency),
            )
        )
    return _Answer(messages, totals, convert.backtest(forecaster.fared(), forecaster.block))
