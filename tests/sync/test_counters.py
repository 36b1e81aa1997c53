"""Conversions and revenue as a counter has them, beside delivery as the platform has it."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import pytest

from mrm.campaigns.v1 import sync_pb2, sync_service_pb2
from mrm.common.v1 import money_pb2
from mrm.statistics.v1 import snapshot_pb2
from server.jobs.handling import Stores
from tests.conftest import Failing, World
from tests.sync.desk import STATISTICS, Office, account, ago, office

pytestmark = pytest.mark.bar_e


async def set_goals(desk: Office, *goals: sync_pb2.ConversionGoal, model: int = 0) -> sync_pb2.SyncSettings:
    request = sync_service_pb2.ConfigureSyncRequest(
        integration_id=desk.integration_id,
        settings=sync_pb2.SyncSettings(goals=goals, attribution_model=model),  # type: ignore[arg-type]
    )
    return (await desk.admin.syncs.ConfigureSync(request, metadata=desk.admin.auth)).settings


async def outcome(desk: Office) -> dict[str, tuple[Decimal, int]]:
    """Conversions and revenue in micros of the last days by campaign, as ClickHouse has them from the counter."""
    rows = await desk.stores.clickhouse.fetch(
        f"""SELECT toString(campaign_id), toString(sum(conversions)), toInt64(sum(revenue) * 1000000)
        FROM campaign_metrics_hourly FINAL
        WHERE client_id = '{desk.client_id}' AND source = 'analytics' GROUP BY campaign_id"""
    )
    return {row[0]: (Decimal(row[1]), int(row[2])) for row in rows}


async def test_delivery_is_the_platforms_and_outcome_the_counters(
    world: World, stores: Stores, failing: Failing
) -> None:
    direct = await office(world, stores, "yandex_direct", campaigns=1)
    vk = await account(world, stores, "vk_ads", direct.client_id, direct.project_id, 1)
    counter = await account(
        world, stores, "yandex_metrika", direct.client_id, direct.project_id, 0, sources=[direct.key, vk.key]
    )
    stranger = await vk.link("31415926")
    for each in (direct, vk, counter):
        done = await each.sync(STATISTICS)
        assert done.status == "completed", done.error
    both = [*direct.linked.values(), *vk.linked.values()]
    found = await outcome(counter)
    # Direct's campaign is known by its number, the other one by its tag; of the third the counter knows nothing.
    assert sorted(found) == sorted(both)
    assert all(conversions > 0 and revenue > 0 for conversions, revenue in found.values())
    assert stranger not in found

    [row] = (await direct.total()).rows
    assert row.metrics.clicks == sum((await direct.clicks(ago(40), ago(0))).values()) > 0
    assert Decimal(row.metrics.conversions) == sum(each[0] for each in found.values())
    assert row.metrics.revenue_micros == sum(each[1] for each in found.values())

    # The platforms' own figures come again and again, and leave the counter's alone.
    await direct.sync(STATISTICS)
    assert (await direct.total()).rows[0].metrics.revenue_micros == row.metrics.revenue_micros

    # Only one goal counts, and somebody says what it is worth.
    lead, _ = counter.sandbox.state.accounts[counter.key].goals
    worth = money_pb2.Money(currency_code="RUB", micros=250 * 10**6)
    goal = sync_pb2.ConversionGoal(goal_id=str(lead.goal_id), display_name=lead.name, value=worth)
    assert (await failing(set_goals(counter, goal, goal))).fields == {"settings.goals": "GOAL_DUPLICATE"}
    stored = await set_goals(counter, goal, model=snapshot_pb2.ATTRIBUTION_MODEL_LAST_CLICK)
    assert stored == (await counter.status()).settings
    before = found
    await counter.sync(STATISTICS, statistics_from_date=ago(40).isoformat())
    found = await outcome(counter)
    for campaign_id, (conversions, revenue) in found.items():
        assert conversions < before[campaign_id][0]
        assert revenue == conversions * 250 * 10**6
    models = await stores.clickhouse.fetch(
        f"""SELECT DISTINCT attribution_model, goal_ids FROM campaign_metrics_hourly FINAL
        WHERE client_id = '{direct.client_id}' AND source = 'analytics'
          AND hour >= toDateTime('{ago(29)} 00:00:00', 'UTC')"""
    )
    assert [tuple(each) for each in models] == [("last_click", [str(lead.goal_id)])]


async def test_figures_of_another_currency_are_left_out_and_named(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "yandex_direct", campaigns=2, link=False, currency="BYN")
    rouble = await desk.link(desk.external_ids[0])
    fitting = await desk.link(desk.external_ids[1], currency_code="BYN")
    done = await desk.sync(STATISTICS)
    assert done.result is not None and done.result["other_currency"] == [rouble]
    rows = await stores.clickhouse.fetch(
        f"SELECT DISTINCT campaign_id FROM campaign_metrics_hourly WHERE client_id = '{desk.client_id}'"
    )
    assert [row[0] for row in rows] == [UUID(fitting)]
