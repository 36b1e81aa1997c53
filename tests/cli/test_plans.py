"""`mrm plan`, as a process against the running service, and what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mrm.common.v1 import money_pb2
from mrm.planning.v1 import media_plan_pb2
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
