"""What platforms are told of our campaigns: what has changed here, once, and nothing that was not changed here."""

from __future__ import annotations

from uuid import UUID

import pytest

from mrm.campaigns.v1 import campaign_pb2, sync_service_pb2
from mrm.common.v1 import money_pb2
from mrm.planning.v1 import project_service_pb2
from server.jobs.handling import Stores
from server.sandbox.state import Campaign
from tests.campaigns.places import place, rub, step, update
from tests.conftest import Failing, World
from tests.sync.desk import ENTITIES, PLATFORMS, Office, Platform, account, office

pytestmark = pytest.mark.bar_e


def there(desk: Office, external_id: int | str) -> Campaign:
    return desk.sandbox.found(int(external_id))[1]


async def planned(world: World, stores: Stores, platform: Platform, campaigns: int = 0) -> tuple[Office, str]:
    """An account, and a draft of a media plan that runs, so that it can be led through its life."""
    where = await place(world)
    desk = await account(world, stores, platform, where.client_id, where.project_id, campaigns, link=False)
    return desk, await draft(desk, **where.planned)


async def draft(desk: Office, **fields: object) -> str:
    return (await desk.world.campaign(desk.project_id, platform=PLATFORMS[desk.platform], **fields)).campaign_id


async def pushed(desk: Office, campaign_id: str) -> list[object]:
    """What is on record of what the platform was told."""
    rows = await desk.world.database.fetch(
        "SELECT diff FROM audit_log WHERE resource_id = $1 AND action = 'push' ORDER BY seq", campaign_id
    )
    return [row[0] for row in rows]


async def publish(desk: Office, campaign_id: str) -> campaign_pb2.Campaign:
    request = sync_service_pb2.PublishCampaignRequest(campaign_id=campaign_id, integration_id=desk.integration_id)
    return (await desk.admin.syncs.PublishCampaign(request, metadata=desk.admin.auth)).campaign


@pytest.mark.parametrize("platform", ["yandex_direct", "vk_ads"])
async def test_a_campaign_of_ours_lives_its_life_on_the_platform(
    world: World, stores: Stores, platform: Platform
) -> None:
    desk, campaign_id = await planned(world, stores, platform, 1)
    await publish(desk, campaign_id)
    assert [each.creates for each in (await desk.status()).pushes] == [True]

    done = await desk.sync(ENTITIES)
    assert done.result is not None and (done.result["told"], done.result["refused"]) == (1, 0), done
    made = await desk.campaign(campaign_id)
    assert (await desk.status()).pushes == []
    found = there(desk, made.external_id)
    assert (found.name, found.state) == (made.display_name, "suspended")
    assert made.observed.display_name == found.name

    await step(world.admin, "submit", campaign_id)
    await desk.sync(ENTITIES)
    assert found.state == "on"
    desk.sandbox.moderate(found.campaign_id, "accepted")
    await desk.sync(ENTITIES)
    assert (await desk.campaign(campaign_id)).status == campaign_pb2.CAMPAIGN_STATUS_ACTIVE

    await update(world.admin, campaign_id, display_name="Весна", daily_budget=rub(7))
    await step(world.admin, "pause", campaign_id)
    [waiting] = (await desk.status()).pushes
    assert list(waiting.parts) == ["daily_budget", "name", "state"]
    await desk.sync(ENTITIES)
    assert (found.name, found.state, found.daily_micros) == ("Весна", "suspended", 7 * 10**6)
    assert (await desk.status()).pushes == []

    for verb, state in (("archive", "archived"), ("restore", "suspended"), ("resume", "on")):
        await step(world.admin, verb, campaign_id)
        await desk.sync(ENTITIES)
        assert found.state == state
    # What somebody changes there stays: nothing was changed here.
    desk.sandbox.turn(found, "suspended")
    await desk.sync(ENTITIES)
    assert found.state == "suspended"
    shown = await desk.campaign(campaign_id)
    assert shown.status == campaign_pb2.CAMPAIGN_STATUS_ACTIVE
    assert list(shown.effective_reasons) == [campaign_pb2.CAMPAIGN_REASON_PAUSED_ON_PLATFORM]


async def test_a_rejection_comes_back_with_its_reason(world: World, stores: Stores) -> None:
    desk, campaign_id = await planned(world, stores, "yandex_direct")
    await publish(desk, campaign_id)
    await desk.sync(ENTITIES)
    await step(world.admin, "submit", campaign_id)
    await desk.sync(ENTITIES)
    external_id = (await desk.campaign(campaign_id)).external_id
    desk.sandbox.moderate(int(external_id), "rejected", "too loud")
    await desk.sync(ENTITIES)
    rejected = await desk.campaign(campaign_id)
    assert rejected.status == campaign_pb2.CAMPAIGN_STATUS_DRAFT
    assert "too loud" in rejected.rejection_reason
    changes = await world.database.fetch(
        "SELECT action, actor_kind FROM audit_log WHERE resource_id = $1 AND actor_kind = 'system' ORDER BY seq",
        campaign_id,
    )
    actions = [row[0] for row in changes]
    assert actions[0] == "publish"
    assert set(actions[1:]) == {"push", "sync"}


@pytest.mark.parametrize("how", ["cut", "killed"])
async def test_a_creation_whose_answer_was_lost_is_looked_up_not_repeated(
    world: World, stores: Stores, how: str
) -> None:
    desk, campaign_id = await planned(world, stores, "vk_ads", 1)
    there_is = desk.sandbox.state.accounts[desk.key]
    name = (await publish(desk, campaign_id)).display_name
    # Somebody has one of the same name there already, which is not ours.
    desk.sandbox.create(there_is, name)
    job = await desk.make(ENTITIES)
    desk.sandbox.misbehave("lost", platform="vk_ads", path="ad_plans.json", method="POST")
    failed = await desk.attempt(job)
    assert failed.status == "pending" and "cannot be reached" in (failed.error or "")
    named = [each.campaign_id for each in there_is.campaigns.values() if each.name == name]
    assert len(named) == 2
    if how == "killed":
        # As if the worker had died before it could note anything of the failure.
        await world.database.execute(
            "UPDATE sync_streams SET failures = 0, reason = '', error = '' WHERE integration_id = $1",
            UUID(desk.integration_id),
        )
    done = await desk.attempt(job)
    assert done.status == "completed", done.error
    assert [each.campaign_id for each in there_is.campaigns.values() if each.name == name] == named
    assert (await desk.campaign(campaign_id)).external_id == str(named[1])


async def test_what_is_refused_is_kept_and_not_repeated_until_it_changes(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=1)
    [external_id] = desk.external_ids
    campaign_id = desk.linked[external_id]
    # Linking takes over what is there: the names differ, and nobody is told.
    await desk.sync(ENTITIES)
    assert there(desk, external_id).name == "Кампания 1"
    await update(world.admin, campaign_id, daily_budget=money_pb2.Money(currency_code="RUB", micros=1_234_567))
    done = await desk.sync(ENTITIES)
    assert done.status == "completed" and done.result is not None and done.result["refused"] == 1
    [push] = (await desk.status()).pushes
    assert (push.refused, push.error) == (True, "VK Ads takes no parts of a kopeck")
    assert "refused" not in ((await desk.sync(ENTITIES)).result or {})
    assert await pushed(desk, campaign_id) == [{"refused": [None, push.error]}]
    await update(world.admin, campaign_id, daily_budget=rub(5))
    assert not (await desk.status()).pushes[0].refused
    await desk.sync(ENTITIES)
    assert there(desk, external_id).daily_micros == 5 * 10**6
    assert (await pushed(desk, campaign_id))[-1] == {"told": [None, ["daily_budget"]]}
    assert (await desk.status()).pushes == []


async def test_only_a_draft_of_the_right_platform_is_published(world: World, stores: Stores, failing: Failing) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=1)
    [linked] = desk.linked.values()
    assert (await failing(publish(desk, linked))).reason == "STATE_FORBIDS"
    other = (await world.campaign(desk.project_id)).campaign_id
    assert (await failing(publish(desk, other))).fields == {"integration_id": "PLATFORM_MISMATCH"}
    elsewhere = await office(world, stores, "vk_ads", campaigns=0)
    assert (await failing(publish(elsewhere, await draft(desk)))).fields == {"integration_id": "ACCOUNT_FOREIGN"}


async def test_a_project_that_ends_halts_its_campaigns_on_the_platform_soon(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=1)
    [external_id] = desk.external_ids
    await desk.sync(ENTITIES)
    await world.database.execute("UPDATE campaigns SET status = 'active' WHERE id = $1", UUID(desk.linked[external_id]))
    await world.database.execute("DELETE FROM campaign_pushes WHERE campaign_id = $1", UUID(desk.linked[external_id]))
    await world.database.execute("UPDATE projects SET status = 'active' WHERE id = $1", UUID(desk.project_id))
    request = project_service_pb2.CompleteProjectRequest(
        project_id=desk.project_id, performance_rating=4, pause_campaigns=True
    )
    await world.admin.projects.CompleteProject(request, metadata=world.admin.auth)
    waiting = await world.database.fetch(
        "SELECT id, type FROM jobs WHERE client_id = $1 AND status = 'pending'", UUID(desk.client_id)
    )
    [job_id] = [row[0] for row in waiting if row[1] == "sync_campaign"]
    await desk.attempt(await desk.job(job_id))
    assert there(desk, external_id).state == "suspended"
