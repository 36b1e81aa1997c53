"""`mrm plan`, as a process against the running service, and what it prints."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console

from mrm.common.v1 import money_pb2
from mrm.planning.v1 import forecast_pb2, media_plan_pb2
from server.cli import outlook
from server.cli.plans import difference, money, share
from tests.planning import plans
from tests.planning.plans import UNIT, approved, change, channel, create, flight, version

from .conftest import Mrm

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.mark.bar_d
async def test_a_planner_reads_a_plan_and_what_changed(mrm: Mrm, world: World) -> None:
    where = await plans.office(world, 10_000_000 * UNIT)
    first = await create(
        where.author,
        where.project_id,
        channels=[
            channel(
                1_500_000 * UNIT,
                format="text [x]",
                flight=flight("2026-03-01", "2026-03-31"),
                kpis=[{"metric": media_plan_pb2.KPI_METRIC_CTR, "target": "1.5"}],
            ),
            channel(500_000 * UNIT + 250_000),
        ],
        targeting=media_plan_pb2.Targeting(geo=["RU-MOW"], ages=[media_plan_pb2.AgeRange(min_years=25)]),
    )
    await approved(where, first)
    second = await version(where.author, first.media_plan_id)
    kept = second.channels[0]
    kept.budget.micros, kept.kpis[0].target, kept.flight.end_date = 1_600_000 * UNIT, "2", "2026-04-30"
    await change(
        where.author, second.media_plan_id, channels=[kept, channel(7 * UNIT)], total_budget=None, display_name="New"
    )
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": where.author.token}

    shown = await mrm("plan", "show", first.media_plan_id, **server)
    assert shown.code == 0, shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines == [
        "Plan, version 1, approved, 2,000,000.25 RUB",
        "geo: RU-MOW",
        "ages: 25+",
        "channel platform format flight budget share KPIs",
        "search yandex_direct text [x] 2026-03-01 - 2026-03-31 1,500,000.00 RUB 75.0 % CTR 1.5",
        "search yandex_direct 500,000.25 RUB 25.0 %",
        "total 2,000,000.25 RUB 100.0 %",
    ]

    compared = await mrm("plan", "diff", first.media_plan_id, second.media_plan_id, **server)
    assert compared.code == 0, compared.err
    lines = [" ".join(line.split()) for line in compared.out.splitlines()]
    place, gone = f"search yandex_direct text [x] ..{kept.channel_id[-6:]}", first.channels[1].channel_id[-6:]
    new = (await plans.get(where.author, second.media_plan_id)).channels[1].channel_id[-6:]
    assert lines == [
        "base: Plan, version 1, approved, 2,000,000.25 RUB",
        "other: New, version 2, draft, 1,600,007.00 RUB",
        "where what before after difference",
        "plan display_name Plan New",
        f"search yandex_direct ..{gone} removed 500,000.25 RUB -500,000.25 RUB",
        f"search yandex_direct ..{new} added 7.00 RUB +7.00 RUB",
        f"{place} budget 1,500,000.00 RUB 1,600,000.00 RUB +100,000.00 RUB",
        f"{place} flight 2026-03-01 - 2026-03-31 2026-03-01 - 2026-04-30",
        f"{place} kpis.ctr 1.5 2",
        "total 2,000,000.25 RUB 1,600,007.00 RUB -399,993.25 RUB",
    ]


def test_amounts_are_shown_exactly() -> None:
    def rub(micros: int) -> money_pb2.Money:
        return money_pb2.Money(currency_code="RUB", micros=micros)

    assert [money(rub(micros)) for micros in (0, 1, -1_500_000, 10**18 - 1)] == [
        "0.00 RUB",
        "0.000001 RUB",
        "-1.50 RUB",
        "999,999,999,999.999999 RUB",
    ]
    assert [difference(rub(micros)) for micros in (0, 1, -1)] == ["", "+0.000001 RUB", "-0.000001 RUB"]
    assert [share(*pair) for pair in ((1, 3), (0, 5), (1, 0))] == ["33.3 %", "0.0 %", ""]


async def test_a_planner_sees_what_a_plan_will_reach_and_has_reached(mrm: Mrm, world: World) -> None:
    today = datetime.now(ZoneInfo("Europe/Moscow")).date()
    where = await plans.office(world, 10_000 * UNIT)
    plan = await create(
        where.author,
        where.project_id,
        channels=[
            channel(
                1000 * UNIT,
                flight=flight(f"{today - timedelta(days=9)}", f"{today + timedelta(days=90)}"),
                kpis=[{"metric": media_plan_pb2.KPI_METRIC_CLICKS, "target": "1000"}],
            )
        ],
    )
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": where.author.token}

    place = f"search yandex_direct ..{plan.channels[0].channel_id[-6:]}"
    async with plans.without_seeds(world):
        seen = await mrm("plan", "forecast", plan.media_plan_id, **server)
    assert seen.code == 0, seen.err
    lines = [" ".join(line.split()) for line in seen.out.splitlines()]
    assert lines == [
        "Plan, version 1",
        "figure forecast 80 % interval own past",
        place,
        "cost 1,000 RUB",
        "total",
        "cost 1,000 RUB",
        "channel KPI target forecast 80 % interval benchmark outlook",
        f"{place} clicks 1000",
        "assumed: the budget is spent; money buys at any spend what it buys now",
        "backtest: the client's past is too short",
    ]

    seen = await mrm("plan", "fact", plan.media_plan_id, **server)
    assert seen.code == 0, seen.err
    lines = [" ".join(line.split()) for line in seen.out.splitlines()]
    assert lines[0].startswith("as of ") and lines[0].endswith("days of Europe/Moscow, amounts in RUB")
    assert lines[2].startswith(f"{place} {today - timedelta(days=9)} - {today + timedelta(days=90)} 1,000.00")
    assert lines[3].startswith("total ") and " 0.00 " in lines[3]
    assert re.fullmatch(rf"{place} clicks 1000 \d+(\.\d+)? 0 -\d+(\.\d+)? behind", lines[5]), lines[5]
    assert len(lines) == 16 and lines[6].startswith(f"{today - timedelta(days=9)} ")
    assert lines[6].endswith("0.00 of 10.00")


def test_forecasts_are_drawn_and_shortened() -> None:
    bar = outlook.span(50, 75, 100)
    assert len(bar) == 16 and (bar.index("━"), bar.index("●"), bar[0]) == (8, 11, "·")
    assert outlook.span(0, 0, 0) == ""
    figure = forecast_pb2.FigureForecast(
        figure=forecast_pb2.FORECAST_FIGURE_REVENUE,
        value="1234567.5",
        currency_code="RUB",
        intervals=[forecast_pb2.ForecastInterval(level_percent=80, low="1000000", high="2000000")],
        own_weight="0.75",
        benchmark_weight="0.25",
        error_count=40,
    )
    total = forecast_pb2.FigureForecast(
        figure=forecast_pb2.FORECAST_FIGURE_CLICKS, value="7", unknown_channel_ids=["x"]
    )
    table = outlook.figures(
        forecast_pb2.PlanForecast(channels=[forecast_pb2.ChannelForecast(figures=[figure])], totals=[total])
    )
    recorded = Console(record=True, width=200)
    recorded.print(table)
    text = " ".join(recorded.export_text().split())
    assert "revenue 1,234,568 RUB 1,000,000 - 2,000,000" in text
    assert "━●━━━━━━ 75% total clicks 7 1 unknown" in text
