"""CampaignService over gRPC."""

from __future__ import annotations

from uuid import uuid4

import grpc
import pytest
from google.protobuf import struct_pb2

from mrm.campaigns.v1 import campaign_pb2
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from mrm.common.v1 import money_pb2, options_pb2, platform_pb2
from tests.conftest import Failing, World


def rub(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="RUB", micros=micros)


async def test_a_campaign_inherits_client_and_currency(world: World) -> None:
    client = await world.client()
    project = await world.project(client.client_id, total_budget=money_pb2.Money(currency_code="EUR", micros=1))
    configuration = struct_pb2.Struct()
    configuration.update({"strategy": {"kind": "clicks", "limits": [1, 2.5, None]}, "имя": "да"})
    campaign = await world.campaign(project.project_id, configuration=configuration, external_id=" 42 ")
    assert campaign.client_id == client.client_id
    assert campaign.currency_code == "EUR"
    assert campaign.status == campaign_pb2.CAMPAIGN_STATUS_DRAFT
    assert campaign.configuration == configuration
    got = await world.admin.campaigns.GetCampaign(
        pb.GetCampaignRequest(campaign_id=campaign.campaign_id), metadata=world.admin.auth
    )
    assert got.campaign == campaign


@pytest.mark.parametrize(
    ("fields", "broken"),
    [
        ({"platform": 0}, "campaign.platform"),
        ({"platform": 77}, "campaign.platform"),
        ({"daily_budget": rub(2), "total_budget": rub(1)}, "campaign.daily_budget"),
        ({"daily_budget": rub(-1)}, "campaign.daily_budget.micros"),
        ({"total_budget": money_pb2.Money(currency_code="USD", micros=1)}, "campaign.total_budget.currency_code"),
        ({"currency_code": "rubles"}, "campaign.currency_code"),
        ({"display_name": "x" * 256}, "campaign.display_name"),
    ],
)
async def test_bad_values_are_named(world: World, failing: Failing, fields: dict[str, object], broken: str) -> None:
    project = await world.project((await world.client()).client_id)
    values = {
        "project_id": project.project_id,
        "display_name": "x",
        "platform": platform_pb2.PLATFORM_VK_ADS,
        **fields,
    }
    request = pb.CreateCampaignRequest(campaign=campaign_pb2.Campaign(**values))  # type: ignore[arg-type]
    failure = await failing(world.admin.campaigns.CreateCampaign(request, metadata=world.admin.auth))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert broken in failure.fields


async def test_an_external_id_is_taken_once_per_client_and_platform(world: World, failing: Failing) -> None:
    project = await world.project((await world.client()).client_id)
    await world.campaign(project.project_id, external_id="ext-1")
    await world.campaign(project.project_id, external_id="ext-1", platform=platform_pb2.PLATFORM_VK_ADS)
    request = pb.CreateCampaignRequest(
        campaign=campaign_pb2.Campaign(
            project_id=project.project_id,
            display_name="twin",
            external_id="ext-1",
            platform=platform_pb2.PLATFORM_OTHER,
        )
    )
    failure = await failing(world.admin.campaigns.CreateCampaign(request, metadata=world.admin.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS")


async def test_update_keeps_what_the_mask_leaves_out(world: World, failing: Failing) -> None:
    _, [campaign_id] = await world.tenant()
    change = campaign_pb2.Campaign(campaign_id=campaign_id, daily_budget=rub(1_000_000), display_name="ignored")
    request = pb.UpdateCampaignRequest(campaign=change, update_mask={"paths": ["daily_budget"]})  # type: ignore[arg-type]
    updated = (await world.admin.campaigns.UpdateCampaign(request, metadata=world.admin.auth)).campaign
    assert updated.daily_budget == rub(1_000_000)
    assert updated.display_name != "ignored"
    request.campaign.campaign_id = str(uuid4())
    failure = await failing(world.admin.campaigns.UpdateCampaign(request, metadata=world.admin.auth))
    assert (failure.code, failure.metadata["resource_type"]) == (grpc.StatusCode.NOT_FOUND, "campaign")


@pytest.mark.parametrize("path", ["platform", "project_id", "client_id", "currency_code", "status", "spent_budget"])
async def test_what_a_campaign_is_never_changes(world: World, failing: Failing, path: str) -> None:
    _, [campaign_id] = await world.tenant()
    request = pb.UpdateCampaignRequest(
        campaign=campaign_pb2.Campaign(campaign_id=campaign_id),
        update_mask={"paths": [path]},  # type: ignore[arg-type]
    )
    failure = await failing(world.admin.campaigns.UpdateCampaign(request, metadata=world.admin.auth))
    assert failure.fields == {"update_mask": "FIELD_NOT_WRITABLE"}


async def test_lists_filter_and_stay_in_scope(world: World) -> None:
    client_id, ids = await world.tenant(campaigns=3)
    other_id, _ = await world.tenant(campaigns=2)
    request = pb.ListCampaignsRequest()
    request.filter.client_id = client_id
    listed = await world.admin.campaigns.ListCampaigns(request, metadata=world.admin.auth)
    assert [campaign.campaign_id for campaign in listed.campaigns] == ids
    request.filter.platforms.append(platform_pb2.PLATFORM_VK_ADS)
    assert not (await world.admin.campaigns.ListCampaigns(request, metadata=world.admin.auth)).campaigns
    key = await world.key([client_id], options_pb2.PERMISSION_CAMPAIGNS_READ)
    listed = await key.campaigns.ListCampaigns(pb.ListCampaignsRequest(), metadata=key.auth)
    assert [campaign.campaign_id for campaign in listed.campaigns] == ids
    foreign = pb.ListCampaignsRequest()
    foreign.filter.client_id = other_id
    assert not (await key.campaigns.ListCampaigns(foreign, metadata=key.auth)).campaigns
