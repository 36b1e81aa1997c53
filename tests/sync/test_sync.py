"""Campaigns and figures of accounts on the sandbox, over real sockets, through the jobs that a worker does."""

from __future__ import annotations

from datetime import date, timedelta
from uuid import UUID

import pytest

from mrm.campaigns.v1 import campaign_pb2, sync_pb2, sync_service_pb2
from server.jobs.handling import Stores
from server.sandbox.figures import daily
from tests.conftest import World
from tests.sync.desk import ENTITIES, STATISTICS, Office, Platform, ago, office, today

pytestmark = pytest.mark.bar_e


def expected(desk: Office, first: date, last: date) -> dict[str, int]:
    """Clicks of each day as the sandbox has them."""
    found = {}
    day = first
    while day <= last:
        figures = [daily(desk.sandbox.state, desk.sandbox.found(each)[1], day) for each in desk.linked]
        found[day.isoformat()] = sum(each.clicks for each in figures)
        day += timedelta(days=1)
    return found


@pytest.mark.parametrize("platform", ["yandex_direct", "vk_ads"])
async def test_campaigns_and_figures_come_in_as_the_platform_has_them(
    world: World, stores: Stores, platform: Platform
) -> None:
    desk = await office(world, stores, platform, campaigns=3, link=False)
    first, second, third = desk.external_ids
    linked = await desk.link(first)
    await desk.link(second)

    done = await desk.sync(ENTITIES)
    assert done.status == "completed", done.error
    assert done.result == {"read": 3, "linked": 2, "gone": 0, "whole": True}
    seen = await desk.campaign(linked)
    assert seen.observed.state == campaign_pb2.OBSERVED_STATE_RUNNING
    assert seen.observed.moderation == campaign_pb2.OBSERVED_MODERATION_ACCEPTED
    assert seen.HasField("last_sync_time")
    unlinked = await world.admin.syncs.ListUnlinkedCampaigns(
        sync_service_pb2.ListUnlinkedCampaignsRequest(
            filter=sync_service_pb2.UnlinkedCampaignFilter(integration_id=desk.integration_id)
        ),
        metadata=world.admin.auth,
    )
    assert [(each.external_id, each.observed.display_name) for each in unlinked.campaigns] == [
        (str(third), "Кампания 3")
    ]

    done = await desk.sync(STATISTICS)
    assert done.status == "completed", done.error
    assert done.result is not None and done.result["campaigns"] == 2
    # What was spent is looked at again.
    asked = "SELECT count(*) FROM jobs WHERE unique_key = $1"
    assert await world.database.fetchval(asked, f"budget_check:{desk.client_id}") == 1
    found = await desk.clicks(ago(30), ago(1))
    assert found == expected(desk, ago(30), ago(1))
    status = await desk.status()
    assert (status.campaign_count, status.unlinked_campaign_count) == (3, 1)
    assert [each.kind for each in status.streams] == [ENTITIES, STATISTICS]
    assert all(each.HasField("success_time") and not each.error for each in status.streams)
    assert status.streams[1].through_date == today().isoformat()
    assert (await desk.integration()).HasField("last_sync_time")

    # Nothing has changed: a platform that can tell is asked for no campaign, and no day gets another figure.
    again = await desk.sync(ENTITIES)
    assert again.result is not None and again.result["whole"] == (platform == "vk_ads")
    assert (await desk.sync(STATISTICS)).status == "completed"
    assert await desk.clicks(ago(30), ago(1)) == found


async def test_a_day_restated_long_ago_is_read_again_where_the_platform_tells(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "yandex_direct", campaigns=2)
    day = ago(20)
    desk.sandbox.restate(desk.external_ids[0], day.isoformat(), clicks=1_000)
    desk.sandbox.restate(desk.external_ids[1], day.isoformat(), clicks=7)
    for each in desk.sandbox.state.restatements[-2:]:
        # The platform counts changes by seconds: those of the present one would be told twice.
        each.at -= timedelta(minutes=1)
    await desk.sync(STATISTICS)
    assert await desk.clicks(day) == {day.isoformat(): 1_007}

    desk.sandbox.restate(desk.external_ids[0], day.isoformat(), clicks=940)
    done = await desk.sync(STATISTICS)
    assert await desk.clicks(day) == {day.isoformat(): 947}
    # Of the campaign that was restated the days since then, of the other one those that still settle.
    assert done.result is not None and done.result["campaign_days"] == 21 + 4

    # Down to nothing: a day without a row is one of zeros.
    desk.sandbox.restate(desk.external_ids[0], day.isoformat(), clicks=0)
    desk.sandbox.restate(desk.external_ids[1], day.isoformat(), clicks=0)
    await desk.sync(STATISTICS)
    assert await desk.clicks(day) == {day.isoformat(): 0}


async def test_somebody_may_wish_older_days_read_again(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=1)
    day = ago(10)
    await desk.sync(STATISTICS)
    desk.sandbox.restate(desk.external_ids[0], day.isoformat(), clicks=5)
    await desk.sync(STATISTICS)
    assert (await desk.clicks(day))[day.isoformat()] != 5
    job = await desk.make(STATISTICS, statistics_from_date=day.isoformat())
    assert (await desk.status()).streams[0].reread_from_date == day.isoformat()
    assert (await desk.attempt(job)).status == "completed"
    assert await desk.clicks(day) == {day.isoformat(): 5}
    assert (await desk.status()).streams[0].reread_from_date == ""


async def test_one_that_the_platform_does_not_know_keeps_no_other_from_being_read(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=2)
    strangers = [await desk.link(each) for each in ("999", "not-a-number")]
    assert (await desk.sync(ENTITIES)).status == "completed"
    done = await desk.sync(STATISTICS)
    assert done.status == "completed", done.error
    assert done.result is not None and done.result["refused"] == ["999"]
    assert await desk.clicks(ago(5), ago(1)) == expected(desk, ago(5), ago(1))
    for each in strangers:
        assert (await desk.campaign(each)).observed.state == campaign_pb2.OBSERVED_STATE_GONE


async def test_of_one_account_and_stream_there_is_one_job(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=1)
    request = sync_service_pb2.SyncIntegrationRequest(integration_id=desk.integration_id)
    first = await world.admin.syncs.SyncIntegration(request, metadata=world.admin.auth)
    second = await world.admin.syncs.SyncIntegration(request, metadata=world.admin.auth)
    assert [each.job_id for each in first.jobs] == [each.job_id for each in second.jobs]
    assert len({each.job_id for each in first.jobs}) == 2
    for each in first.jobs:
        assert (await desk.attempt(await desk.job(UUID(each.job_id)))).status == "completed"
    assert (await desk.status()).streams[0].kind == sync_pb2.SYNC_STREAM_KIND_ENTITIES
