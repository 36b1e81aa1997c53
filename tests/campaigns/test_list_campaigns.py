"""Lists of campaigns: filters, orders, pages, masks."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from mrm.campaigns.v1 import campaign_pb2
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from mrm.common.v1 import platform_pb2
from tests.campaigns.places import Place, get, place, update
from tests.conftest import Failing, World


@dataclass(frozen=True)
class Shelf:
    """Campaigns of one project by their names, made in this order."""

    where: Place
    campaigns: dict[str, campaign_pb2.Campaign]

    async def names(self, size: int = 0, **fields: Any) -> list[str]:
        """Names of what is listed, read page by page."""
        found: list[str] = []
        order = fields.pop("order_by", 0)
        wanted = pb.CampaignFilter(**{"client_id": self.where.client_id, **fields})
        request = pb.ListCampaignsRequest(filter=wanted, page_size=size, order_by=order)
        admin = self.where.world.admin
        while True:
            reply = await admin.campaigns.ListCampaigns(request, metadata=admin.auth)
            found += [campaign.display_name for campaign in reply.campaigns]
            request.page_token = reply.next_page_token
            if not reply.next_page_token:
                return found


@pytest.fixture(scope="module")
async def shelf(world: World) -> Shelf:
    where = await place(world)
    made = {
        "beta 50%": await where.campaign("active", display_name="beta 50%"),
        "Alpha": await where.campaign("paused", display_name="Alpha", linked=True),
        "gamma": await where.campaign("draft", display_name="gamma", platform=platform_pb2.PLATFORM_VK_ADS),
        "alpha": await world.campaign(where.project_id, display_name="alpha", external_id="x-1"),
    }
    for spent, name in ((5, "gamma"), (5, "Alpha"), (9, "alpha")):
        await world.database.execute(
            "UPDATE campaigns SET budget_spent = $2 WHERE id = $1::text::uuid", made[name].campaign_id, Decimal(spent)
        )
    made["Alpha"] = await update(world.admin, made["Alpha"].campaign_id, configuration={"a": 1})
    made["gamma"] = await update(world.admin, made["gamma"].campaign_id, configuration={"a": 1})
    return Shelf(where, made)


async def test_filters(shelf: Shelf) -> None:
    where = shelf.where
    since = Timestamp()
    since.CopyFrom(shelf.campaigns["gamma"].update_time)
    for fields, names in (
        ({}, ["beta 50%", "Alpha", "gamma", "alpha"]),
        ({"project_id": where.project_id, "statuses": [3, 4]}, ["beta 50%", "Alpha"]),
        ({"platforms": [platform_pb2.PLATFORM_VK_ADS]}, ["gamma"]),
        ({"media_plan_lineage_id": where.lineage_id}, ["beta 50%", "Alpha", "gamma"]),
        ({"plan_channel_id": where.channel_ids[1]}, []),
        ({"integration_id": where.integration_id}, ["Alpha"]),
        ({"external_id": "x-1"}, ["alpha"]),
        ({"name_contains": "ALPHA"}, ["Alpha", "alpha"]),
        ({"name_contains": "0%"}, ["beta 50%"]),
        ({"name_contains": "%"}, ["beta 50%"]),
        ({"updated_since": since}, ["gamma"]),
        ({"name_contains": "a", "statuses": [1]}, ["gamma", "alpha"]),
    ):
        assert await shelf.names(**fields) == names, fields


@pytest.mark.parametrize(
    ("order", "names"),
    [
        (pb.CAMPAIGN_ORDER_UNSPECIFIED, ["beta 50%", "Alpha", "gamma", "alpha"]),
        (pb.CAMPAIGN_ORDER_NEWEST, ["alpha", "gamma", "Alpha", "beta 50%"]),
        (pb.CAMPAIGN_ORDER_NAME, ["Alpha", "alpha", "beta 50%", "gamma"]),
        (pb.CAMPAIGN_ORDER_MOST_SPENT, ["alpha", "gamma", "Alpha", "beta 50%"]),
    ],
    ids=["oldest", "newest", "name", "spent"],
)
async def test_orders_hold_over_pages(shelf: Shelf, order: int, names: list[str]) -> None:
    for size in (1, 3, 0):
        assert await shelf.names(size, order_by=order) == names


async def test_the_last_changed_come_first(shelf: Shelf) -> None:
    for size in (1, 0):
        assert (await shelf.names(size, order_by=pb.CAMPAIGN_ORDER_LAST_CHANGED))[:2] == ["gamma", "Alpha"]


async def test_only_what_is_asked_for_is_read(shelf: Shelf, failing: Failing) -> None:
    admin, campaign = shelf.where.world.admin, shelf.campaigns["gamma"]
    part = await get(admin, campaign.campaign_id, "display_name", "total_budget.micros")
    assert part == campaign_pb2.Campaign(display_name="gamma", total_budget={"micros": 10_000_000})  # type: ignore[arg-type]
    request = pb.ListCampaignsRequest(
        filter=pb.CampaignFilter(project_id=shelf.where.project_id),
        read_mask={"paths": ["display_name"]},  # type: ignore[arg-type]
    )
    listed = await admin.campaigns.ListCampaigns(request, metadata=admin.auth)
    assert list(listed.campaigns) == [campaign_pb2.Campaign(display_name=name) for name in shelf.campaigns]
    failure = await failing(get(admin, campaign.campaign_id, "no_such_field"))
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, {"read_mask": "FIELD_UNKNOWN"})


async def test_a_token_holds_the_longest_name(world: World) -> None:
    project = await world.project((await world.client()).client_id)
    for _ in range(2):
        await world.campaign(project.project_id, display_name="\U0001f600" * 255)
    request = pb.ListCampaignsRequest(page_size=1, order_by=pb.CAMPAIGN_ORDER_NAME)
    request.filter.project_id = project.project_id
    first = await world.admin.campaigns.ListCampaigns(request, metadata=world.admin.auth)
    request.page_token = first.next_page_token
    second = await world.admin.campaigns.ListCampaigns(request, metadata=world.admin.auth)
    assert len(second.campaigns) == 1
    assert second.campaigns != first.campaigns


async def test_a_token_is_of_its_order(shelf: Shelf, failing: Failing) -> None:
    admin = shelf.where.world.admin
    request = pb.ListCampaignsRequest(page_size=1, order_by=pb.CAMPAIGN_ORDER_NAME)
    request.page_token = (await admin.campaigns.ListCampaigns(request, metadata=admin.auth)).next_page_token
    request.order_by = pb.CAMPAIGN_ORDER_MOST_SPENT
    failure = await failing(admin.campaigns.ListCampaigns(request, metadata=admin.auth))
    assert failure.reason == "PAGE_TOKEN_INVALID"
