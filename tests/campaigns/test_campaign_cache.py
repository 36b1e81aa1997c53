"""The list of a project comes from the cache where it can, and is never older than the call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from uuid import UUID

import pytest

from mrm.campaigns.v1 import campaign_pb2
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from server.campaigns.cache import MOST_CAMPAIGNS, CampaignCache, CampaignList
from storage.postgres import campaigns
from storage.redis.campaign_cache import KEPT_SECONDS, CampaignListStore
from storage.redis.multiplex import MultiplexedRedis
from storage.scope import EVERYTHING, Scope
from tests.campaigns.places import mutate, place, rub, update
from tests.conftest import Caller, World


@pytest.fixture
async def redis(world: World) -> AsyncIterator[MultiplexedRedis]:
    opened = await MultiplexedRedis.open(world.connections.redis_dsn)
    yield opened
    await opened.close()


async def listed(caller: Caller, project_id: str, *paths: str, size: int = 0) -> dict[str, campaign_pb2.Campaign]:
    """The campaigns of a project by their names, read page by page."""
    request = pb.ListCampaignsRequest(
        filter=pb.CampaignFilter(project_id=project_id),
        page_size=size,
        read_mask={"paths": paths},  # type: ignore[arg-type]
    )
    found: dict[str, campaign_pb2.Campaign] = {}
    while True:
        reply = await caller.campaigns.ListCampaigns(request, metadata=caller.auth)
        found |= {campaign.display_name: campaign for campaign in reply.campaigns}
        request.page_token = reply.next_page_token
        if not reply.next_page_token:
            return found


async def test_a_list_is_kept_until_something_changes(world: World, redis: MultiplexedRedis) -> None:
    where = await place(world)
    made = [await where.campaign(display_name=f"Name {number}", linked=True) for number in range(3)]
    key = f"cache:campaigns:{where.project_id}"
    plain = {campaign.display_name: campaign for campaign in made}
    assert await listed(world.admin, where.project_id) == plain
    assert 0 < await redis.execute("TTL", key) <= KEPT_SECONDS
    kept = await redis.execute("GET", key)
    # What is kept is what is shown, in every cut of it.
    forged = kept.replace(b"Name 1", b"Forged")
    await redis.execute("SET", key, forged)
    names = ["Name 0", "Forged", "Name 2"]
    assert list(await listed(world.admin, where.project_id)) == names
    assert list(await listed(world.admin, where.project_id, size=1)) == names
    assert await listed(world.admin, where.project_id, "display_name", size=2) == {
        name: campaign_pb2.Campaign(display_name=name) for name in names
    }
    # Nobody else sees it, and whoever has lost sight of the project sees nothing of it either.
    assert await listed(await world.user("specialist"), where.project_id) == {}
    # Whatever changes, whoever changes it and however: an old entry is an old entry.
    for sql in (
        "UPDATE campaigns SET budget_spent = budget_spent + 1 WHERE project_id = $1",
        "UPDATE campaigns SET last_synced_at = now() WHERE project_id = $1",
        """UPDATE client_integrations SET status = 'error'
           WHERE client_id = (SELECT client_id FROM projects WHERE id = $1)""",
    ):
        await world.database.execute(sql, UUID(where.project_id))
        assert "Forged" not in await listed(world.admin, where.project_id), sql
        await redis.execute("SET", key, (await redis.execute("GET", key)).replace(b"Name 1", b"Forged"))
        assert "Forged" in await listed(world.admin, where.project_id), sql
    await update(world.admin, made[0].campaign_id, display_name="Changed")
    await redis.execute("SET", key, forged)
    assert list(await listed(world.admin, where.project_id)) == ["Changed", "Name 1", "Name 2"]


async def test_no_read_after_a_commit_is_stale(world: World) -> None:
    where = await place(world)
    made = [await where.campaign(display_name=f"Name {number}", total_budget=rub(100)) for number in range(4)]

    async def through_the_service(campaign: campaign_pb2.Campaign) -> None:
        for units in range(1, 16):
            await update(world.admin, campaign.campaign_id, daily_budget=rub(units))
            seen = (await listed(world.admin, where.project_id))[campaign.display_name]
            assert seen.daily_budget == rub(units)

    async def through_another_process(campaign: campaign_pb2.Campaign) -> None:
        for spent in range(1, 16):
            await world.database.execute(
                "UPDATE campaigns SET budget_spent = $2 WHERE id = $1", UUID(campaign.campaign_id), Decimal(spent)
            )
            seen = (await listed(world.admin, where.project_id))[campaign.display_name]
            assert seen.spent_budget == rub(spent)

    async def onlooker() -> None:
        newest = 0
        for _ in range(30):
            seen = (await listed(world.admin, where.project_id))[made[0].display_name]
            assert seen.daily_budget.micros >= newest, "time ran backwards"
            newest = seen.daily_budget.micros

    await asyncio.gather(
        *(through_the_service(campaign) for campaign in made[:2]),
        *(through_another_process(campaign) for campaign in made[2:]),
        *(onlooker() for _ in range(3)),
    )


async def test_many_who_ask_at_once_make_one_list(world: World, redis: MultiplexedRedis) -> None:
    where = await place(world)
    await where.campaign()

    class Counting(CampaignListStore):
        written = 0

        async def write(self, project_id: UUID, data: bytes) -> bool:
            Counting.written += 1
            return await super().write(project_id, data)

    cache = CampaignCache(world.database, Counting(redis))
    project_id = UUID(where.project_id)
    lists = await asyncio.gather(*(cache.read(EVERYTHING, project_id) for _ in range(20)))
    assert all(each == lists[0] for each in lists)
    assert lists[0] is not None
    assert len(lists[0].parts) == 1
    assert Counting.written == 1
    assert await cache.read(Scope(), project_id) == CampaignList([], [])


async def test_without_redis_and_for_large_projects_the_list_is_read_page_by_page(
    world: World, redis: MultiplexedRedis
) -> None:
    where = await place(world)
    await where.campaign()
    project_id = UUID(where.project_id)
    away = MultiplexedRedis("redis://127.0.0.1:1/0")
    assert await CampaignCache(world.database, CampaignListStore(away)).read(EVERYTHING, project_id) is None
    operation = pb.CampaignOperation(
        create=campaign_pb2.Campaign(project_id=where.project_id, display_name="One of many", platform=3)
    )
    await mutate(world.admin, *[operation] * MOST_CAMPAIGNS)
    cache = CampaignCache(world.database, CampaignListStore(redis))
    assert await cache.read(EVERYTHING, project_id) is None
    reply = await world.admin.campaigns.ListCampaigns(
        pb.ListCampaignsRequest(filter=pb.CampaignFilter(project_id=where.project_id), page_size=500),
        metadata=world.admin.auth,
    )
    assert len(reply.campaigns) == 500
    assert reply.next_page_token


async def test_large_campaigns_are_cut_into_pages_that_fit(world: World, redis: MultiplexedRedis) -> None:
    where = await place(world)
    large = {"text": "x" * 60_000}
    operation = pb.CampaignOperation(
        create=campaign_pb2.Campaign(project_id=where.project_id, display_name="Large", platform=3, configuration=large)
    )
    made = 0
    for count in (60, 10):
        mask = {"paths": ["campaign_id"]}
        made += (await mutate(world.admin, *[operation] * count, read_mask=mask)).success_count
        request = pb.ListCampaignsRequest(filter=pb.CampaignFilter(project_id=where.project_id), page_size=500)
        for order in (pb.CAMPAIGN_ORDER_UNSPECIFIED, pb.CAMPAIGN_ORDER_NAME):
            request.order_by, request.page_token = order, ""
            ids: list[str] = []
            pages = 0
            while pages == 0 or request.page_token:
                reply = await world.admin.campaigns.ListCampaigns(request, metadata=world.admin.auth)
                ids += [campaign.campaign_id for campaign in reply.campaigns]
                request.page_token = reply.next_page_token
                pages += 1
            assert ids == sorted(set(ids))
            assert (len(ids), pages) == (made, 2)
        kept = await redis.execute("GET", f"cache:campaigns:{where.project_id}")
        assert len(kept) < 100, "too long to be kept"


async def test_each_commit_makes_another_state(world: World) -> None:
    where = await place(world)
    campaign = await where.campaign(linked=True)
    project_id = UUID(where.project_id)

    async def state() -> campaigns.ProjectState:
        found = await campaigns.project_state(world.database, EVERYTHING, project_id, 10)
        assert found is not None
        summed, rows = await campaigns.all_of_project(world.database, EVERYTHING, project_id, 10)
        assert (summed, len(rows)) == (found, found.number)
        return found

    states = [await state()]
    row = await where.row(campaign.campaign_id)
    await where.set(campaign.campaign_id, name="Other")
    states.append(await state())
    await where.set(campaign.campaign_id, name=row.name)
    states.append(await state())
    await where.set(campaign.campaign_id, integration_id=None)
    states.append(await state())
    await campaigns.create_many(
        world.database, [replace(row, id=UUID(int=2**127 + row.id.int % 2**100), external_id=None)]
    )
    states.append(await state())
    # A transaction may write what a younger one wrote before: numbers of transactions go up and down.
    other = await where.campaign()
    spend = "UPDATE campaigns SET budget_spent = budget_spent + 1 WHERE id = ANY ($1::uuid[])"
    both = [UUID(campaign.campaign_id), UUID(other.campaign_id)]
    await world.database.execute(spend, both[:1])
    async with world.database.transaction("older") as tx:
        await tx.execute("SELECT pg_current_xact_id()")
        await world.database.execute(spend, both[1:])
        states.append(await state())
        await tx.execute(spend, both)
    states.append(await state())
    assert len(set(states)) == len(states)
