"""What tests of campaigns share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from mrm.campaigns.v1 import campaign_pb2
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from mrm.common.v1 import money_pb2, platform_pb2
from storage.postgres import campaigns, integrations
from storage.scope import EVERYTHING
from tests.conftest import Caller, World
from tests.planning import plans

UNIT = 10**6
STATUSES = ("draft", "pending_moderation", "active", "paused", "archived")


def rub(units: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="RUB", micros=units * UNIT)


@dataclass(frozen=True)
class Place:
    """A project whose media plan runs, with two channels of 1 000 roubles, and an account of its client."""

    world: World
    client_id: str
    project_id: str
    lineage_id: str
    channel_ids: tuple[str, str]
    integration_id: str

    @property
    def planned(self) -> dict[str, Any]:
        """Fields of a campaign of the plan's first channel."""
        return {
            "media_plan_lineage_id": self.lineage_id,
            "plan_channel_id": self.channel_ids[0],
            "total_budget": rub(10),
        }

    async def campaign(self, status: str = "draft", *, linked: bool = False, **fields: Any) -> campaign_pb2.Campaign:
        """A campaign of the plan in any state."""
        if linked:
            fields = {"platform": platform_pb2.PLATFORM_YANDEX_DIRECT, **fields}
        made = await self.world.campaign(self.project_id, **{**self.planned, **fields})
        row = await self.row(made.campaign_id)
        change: dict[str, Any] = {"status": status}
        if linked:
            change |= {"integration_id": UUID(self.integration_id), "external_id": uuid4().hex}
        await campaigns.update(self.world.database, EVERYTHING, replace(row, **change))
        return await get(self.world.admin, made.campaign_id)

    async def row(self, campaign_id: str) -> campaigns.Campaign:
        """A campaign as it is stored."""
        row = await campaigns.get(self.world.database, EVERYTHING, UUID(campaign_id))
        assert row is not None
        return row

    async def set(self, campaign_id: str, **columns: Any) -> None:
        """Writes columns of a campaign behind the service's back."""
        await campaigns.update(self.world.database, EVERYTHING, replace(await self.row(campaign_id), **columns))


async def place(world: World) -> Place:
    where = await plans.office(world, 3000 * UNIT)
    plan = await plans.create(where.author, where.project_id, 1000 * UNIT, 1000 * UNIT)
    plan = await plans.approved(where, plan, active=True)
    first, second = (channel.channel_id for channel in plan.channels)
    account = await integrations.create(
        world.database,
        integration_id=integrations.new_integration_id(),
        client_id=UUID(where.client_id),
        platform="yandex_direct",
        credentials={},
        platform_account_id=uuid4().hex,
        token_expires_at=None,
    )
    return Place(world, where.client_id, where.project_id, plan.lineage_id, (first, second), str(account.id))


async def get(caller: Caller, campaign_id: str, *paths: str) -> campaign_pb2.Campaign:
    request = pb.GetCampaignRequest(campaign_id=campaign_id, read_mask={"paths": paths})  # type: ignore[arg-type]
    return (await caller.campaigns.GetCampaign(request, metadata=caller.auth)).campaign


async def step(caller: Caller, verb: str, campaign_id: str, **fields: Any) -> campaign_pb2.Campaign:
    """Takes a step; a rejection gets a reason."""
    name = f"{verb.capitalize()}Campaign"
    if verb == "reject":
        fields = {"reason": "too loud", **fields}
    request = getattr(pb, f"{name}Request")(campaign_id=campaign_id, **fields)
    reply = await getattr(caller.campaigns, name)(request, metadata=caller.auth)
    return reply.campaign  # type: ignore[no-any-return]


async def update(caller: Caller, campaign_id: str, **fields: Any) -> campaign_pb2.Campaign:
    etag = fields.pop("etag", "")
    wanted = campaign_pb2.Campaign(
        campaign_id=campaign_id, etag=etag, **{name: value for name, value in fields.items() if value is not None}
    )
    request = pb.UpdateCampaignRequest(campaign=wanted, update_mask={"paths": list(fields)})  # type: ignore[arg-type]
    return (await caller.campaigns.UpdateCampaign(request, metadata=caller.auth)).campaign


async def mutate(caller: Caller, *operations: pb.CampaignOperation, **fields: Any) -> pb.MutateCampaignsResponse:
    request = pb.MutateCampaignsRequest(operations=operations, **fields)
    return await caller.campaigns.MutateCampaigns(request, metadata=caller.auth)
