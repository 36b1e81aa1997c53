"""Many campaigns in one call: each step is answered at its place, and the whole costs a handful of statements."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import grpc
from google.protobuf import struct_pb2
from google.rpc import error_details_pb2

from mrm.campaigns.v1 import campaign_pb2
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from mrm.common.v1 import platform_pb2
from mrm.operations.v1 import change_service_pb2
from tests.campaigns.places import Place, get, mutate, place, rub, step
from tests.conftest import Failing, World


def create(where: Place, **fields: Any) -> pb.CampaignOperation:
    values = {"project_id": where.project_id, "display_name": "New", "platform": platform_pb2.PLATFORM_OTHER, **fields}
    return pb.CampaignOperation(create=campaign_pb2.Campaign(**values))


def change(campaign_id: str, etag: str = "", **fields: Any) -> pb.CampaignOperation:
    wanted = campaign_pb2.Campaign(campaign_id=campaign_id, etag=etag, **fields)
    return pb.CampaignOperation(update=pb.CampaignChange(campaign=wanted, update_mask={"paths": list(fields)}))  # type: ignore[arg-type]


def take(verb: str, campaign_id: str, etag: str = "") -> pb.CampaignOperation:
    return pb.CampaignOperation(**{verb: pb.CampaignStep(campaign_id=campaign_id, etag=etag)})  # type: ignore[arg-type]


def told(response: pb.MutateCampaignsResponse) -> list[str]:
    """The reason of each result's error, or OK."""
    found = []
    for result in response.results:
        info = error_details_pb2.ErrorInfo()
        assert result.HasField("status") != result.HasField("campaign")
        if result.HasField("status"):
            assert result.status.details[0].Unpack(info)
            assert result.status.message
        found.append(info.reason or "OK")
    return found


async def actions(world: World, campaign_id: str) -> list[str]:
    request = change_service_pb2.ListChangesRequest()
    request.filter.resource_id = campaign_id
    return [each.action for each in (await world.admin.changes.ListChanges(request, metadata=world.admin.auth)).changes]


async def mixed(where: Place) -> tuple[list[pb.CampaignOperation], list[str], dict[str, campaign_pb2.Campaign]]:
    """Steps that can be taken and others, and what is said of each."""
    there = {name: await where.campaign(name) for name in ("draft", "active", "paused", "archived")}
    ids = {name: campaign.campaign_id for name, campaign in there.items()}
    steps = [
        (create(where, external_id="ext"), "OK"),
        (take("pause", ids["active"], there["active"].etag), "OK"),
        (take("pause", ids["draft"]), "STATE_FORBIDS"),
        (change(ids["paused"], display_name="Changed"), "OK"),
        (change(ids["paused"], display_name="Again"), "INVALID_FIELDS"),
        (take("restore", ids["archived"], "r0"), "ETAG_MISMATCH"),
        (take("archive", str(uuid4())), "RESOURCE_NOT_FOUND"),
        (create(where, external_id="ext"), "RESOURCE_EXISTS"),
        (create(where, project_id=str(uuid4())), "RESOURCE_NOT_FOUND"),
        (create(where, display_name=""), "INVALID_FIELDS"),
        (pb.CampaignOperation(), "INVALID_FIELDS"),
        (create(where, **{**where.planned, "total_budget": rub(100)}), "OK"),
    ]
    return [each for each, _ in steps], [reason for _, reason in steps], there


async def test_each_step_is_answered_at_its_place(world: World) -> None:
    where = await place(world)
    operations, expected, there = await mixed(where)
    response = await mutate(world.admin, *operations, request_id=(request_id := str(uuid4())))
    assert told(response) == expected
    assert response.success_count == expected.count("OK")
    results = response.results
    assert results[1].campaign == await get(world.admin, there["active"].campaign_id)
    assert results[1].campaign.status == campaign_pb2.CAMPAIGN_STATUS_PAUSED
    assert results[3].campaign.display_name == "Changed"
    assert results[0].campaign == await get(world.admin, results[0].campaign.campaign_id)
    assert await actions(world, results[0].campaign.campaign_id) == ["create"]
    assert "pause" in await actions(world, there["active"].campaign_id)
    assert "pause" not in await actions(world, there["draft"].campaign_id)
    # The same request again is the same reply, and nothing happens twice.
    assert await mutate(world.admin, *operations, request_id=request_id) == response
    assert (await actions(world, there["active"].campaign_id)).count("pause") == 1
    sent = "SELECT count(*) FROM outbox WHERE topic = 'campaign' AND key = $1"
    assert await world.database.fetchval(sent, results[0].campaign.campaign_id) == 1


async def test_all_or_none(world: World, failing: Failing) -> None:
    where = await place(world)
    operations, expected, there = await mixed(where)
    response = await mutate(world.admin, *operations, atomic=True)
    assert told(response) == [reason.replace("OK", "BATCH_ABORTED") for reason in expected]
    assert response.success_count == 0
    assert await get(world.admin, there["active"].campaign_id) == there["active"]
    good = [each for each, reason in zip(operations, expected, strict=True) if reason == "OK"]
    assert told(await mutate(world.admin, *good, atomic=True)) == ["OK"] * len(good)
    # An error found before any step is looked at counts as well.
    assert told(await mutate(world.admin, create(where), pb.CampaignOperation(), atomic=True)) == [
        "BATCH_ABORTED",
        "INVALID_FIELDS",
    ]
    failure = await failing(mutate(world.admin))
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {"operations": "REPEATED_MIN_ITEMS"})


async def test_only_checked_is_not_done(world: World) -> None:
    where = await place(world)
    operations, expected, there = await mixed(where)
    response = await mutate(world.admin, *operations, validate_only=True)
    assert told(response) == expected
    assert response.success_count == expected.count("OK")
    assert response.results[0].campaign.campaign_id == ""
    assert response.results[0].campaign.client_id == where.client_id
    assert response.results[1].campaign.status == campaign_pb2.CAMPAIGN_STATUS_PAUSED
    assert await get(world.admin, there["active"].campaign_id) == there["active"]
    listed = pb.ListCampaignsRequest(filter=pb.CampaignFilter(project_id=where.project_id))
    found = await world.admin.campaigns.ListCampaigns(listed, metadata=world.admin.auth)
    assert len(found.campaigns) == len(there)


async def test_budgets_are_held_against_the_plan_for_all_together(world: World) -> None:
    where = await place(world)
    first = await where.campaign("paused", total_budget=rub(600))
    second = await where.campaign("paused", total_budget=rub(400))
    # One gives what the other takes: alone, the first step would not fit.
    moved = await mutate(
        world.admin,
        change(first.campaign_id, total_budget=rub(700)),
        change(second.campaign_id, total_budget=rub(300)),
    )
    assert told(moved) == ["OK", "OK"]
    # Together too much: those fit that come first.
    operations = [
        take("archive", second.campaign_id),
        *(create(where, **{**where.planned, "total_budget": rub(units)}) for units in (200, 200, 100)),
        create(where, **{**where.planned, "plan_channel_id": where.channel_ids[1], "total_budget": rub(1000)}),
    ]
    expected = ["OK", "OK", "BUDGET_MISMATCH", "OK", "OK"]
    assert told(await mutate(world.admin, *operations, validate_only=True)) == expected
    assert told(await mutate(world.admin, *operations, atomic=True)) == [
        reason.replace("OK", "BATCH_ABORTED") for reason in expected
    ]
    assert told(await mutate(world.admin, *operations)) == expected
    assert told(await mutate(world.admin, take("restore", second.campaign_id))) == ["BUDGET_MISMATCH"]


async def test_nobody_reaches_further_with_many_than_with_one(world: World) -> None:
    where, elsewhere = await place(world), await place(world)
    mine, foreign = await where.campaign("active"), await elsewhere.campaign("active")
    specialist = await world.user("specialist", where.client_id)
    analyst = await world.user("analyst", elsewhere.client_id)
    assert analyst.user_id
    operations = [
        take("pause", foreign.campaign_id),
        take("pause", mine.campaign_id),
        create(elsewhere),
        create(where),
    ]
    assert told(await mutate(specialist, *operations)) == ["RESOURCE_NOT_FOUND", "OK", "RESOURCE_NOT_FOUND", "OK"]
    # Who sees a campaign by a place in its team, but may not change it, is told so.
    await world.member(elsewhere.project_id, specialist.user_id, 5, 3)  # type: ignore[arg-type]
    assert told(await mutate(specialist, *operations[:1], *operations[2:])) == [
        "PERMISSION_MISSING",
        "PERMISSION_MISSING",
        "OK",
    ]
    assert (await get(world.admin, foreign.campaign_id)).status == campaign_pb2.CAMPAIGN_STATUS_ACTIVE
    await world.database.execute("UPDATE clients SET archived_at = now() WHERE id = $1", UUID(elsewhere.client_id))
    both = [take("pause", foreign.campaign_id), create(elsewhere), take("resume", mine.campaign_id)]
    assert told(await mutate(world.admin, *both)) == ["STATE_FORBIDS", "STATE_FORBIDS", "OK"]


async def test_what_cannot_be_stored_is_told_at_its_place(world: World) -> None:
    where = await place(world)
    infinite = struct_pb2.Struct()
    infinite.fields["bid"].number_value = float("inf")
    broken = [
        {"display_name": "  "},
        {"display_name": "a\x00b"},
        {"external_id": " "},
        {"total_budget": rub(10**12)},
        {"configuration": {"list": [{"a": "\x00"}]}},
        {"configuration": infinite},
        {"settings": {"other": {"source": "\x00"}}},
        {"settings": {"vk_ads": {}}},
    ]
    response = await mutate(world.admin, *(create(where, **fields) for fields in [*broken, {}]))
    assert told(response) == ["INVALID_FIELDS"] * len(broken) + ["OK"]


async def test_many_at_once_lose_nothing(world: World) -> None:
    where = await place(world)
    made = [await where.campaign("paused", total_budget=rub(100)) for _ in range(10)]
    ids = [campaign.campaign_id for campaign in made]

    async def raise_all(order: list[str]) -> int:
        # Each fits alone, and only one of all calls can have it all.
        steps = [change(campaign_id, total_budget=rub(100)) for campaign_id in order]
        return (
            await mutate(world.admin, *steps, create(where, **{**where.planned, "total_budget": rub(1)}))
        ).success_count

    async def flip(campaign_id: str) -> None:
        await step(world.admin, "resume", campaign_id)
        await step(world.admin, "pause", campaign_id)

    await where.set(ids[0], budget_total=Decimal(98))
    counts = await asyncio.gather(
        *(raise_all(ids[1:] if number % 2 else ids[:0:-1]) for number in range(6)), *(flip(each) for each in ids[1:4])
    )
    assert sorted(count for count in counts if count is not None) == [9, 9, 9, 9, 10, 10]
    taken = "SELECT sum(budget_total) FROM campaigns WHERE plan_channel_id = $1"
    assert await world.database.fetchval(taken, UUID(where.channel_ids[0])) == 1000


async def test_a_thousand_in_one_call(world: World) -> None:
    where = await place(world)
    drafts = [create(where, display_name=f"Bulk {number}") for number in range(1000)]
    made = await mutate(world.admin, *drafts, read_mask={"paths": ["campaign_id", "display_name"]})
    assert made.success_count == 1000
    ids = [result.campaign.campaign_id for result in made.results]
    assert made.results[0].campaign == campaign_pb2.Campaign(campaign_id=ids[0], display_name="Bulk 0")
    assert [result.campaign.display_name for result in made.results] == [f"Bulk {number}" for number in range(1000)]
    archived = await mutate(world.admin, *(take("archive", campaign_id) for campaign_id in ids))
    assert archived.success_count == 1000
    assert [result.campaign.campaign_id for result in archived.results] == ids
    assert (await step(world.admin, "restore", ids[-1])).status == campaign_pb2.CAMPAIGN_STATUS_PAUSED
