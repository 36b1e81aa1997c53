"""What tests of the synchronisation act through: accounts on the sandbox, and jobs done by the real worker's code."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Literal
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from mrm.accounts.v1 import integration_pb2, integration_service_pb2
from mrm.campaigns.v1 import campaign_pb2, campaign_service_pb2, sync_pb2, sync_service_pb2
from mrm.common.v1 import platform_pb2, time_pb2
from mrm.statistics.v1 import statistics_service_pb2
from server.jobs.handling import Stores
from server.jobs.worker import HANDLERS, JobWorker
from server.sandbox.sandbox import Sandbox
from storage.postgres import jobs
from storage.postgres.jobs import Job
from storage.scope import EVERYTHING
from tests.conftest import Caller, World

Platform = Literal["yandex_direct", "vk_ads", "yandex_metrika"]
ENTITIES, STATISTICS = sync_pb2.SYNC_STREAM_KIND_ENTITIES, sync_pb2.SYNC_STREAM_KIND_STATISTICS
PLATFORMS = {"yandex_direct": platform_pb2.PLATFORM_YANDEX_DIRECT, "vk_ads": platform_pb2.PLATFORM_VK_ADS}
LEASE = timedelta(seconds=30)


def today() -> date:
    """The day that runs where the accounts are."""
    return datetime.now(ZoneInfo("Europe/Moscow")).date()


def ago(days: int) -> date:
    """A day that is over."""
    return today() - timedelta(days=days)


def credentials(platform: Platform, name: str, tokens: dict[str, Any]) -> integration_pb2.IntegrationCredentials:
    """What an account is connected with."""
    access, refresh = tokens["access_token"], tokens["refresh_token"]
    made = integration_pb2.IntegrationCredentials()
    match platform:
        case "yandex_direct":
            made.yandex_direct.oauth_token, made.yandex_direct.refresh_token = access, refresh
            made.yandex_direct.client_login = name
        case "vk_ads":
            made.vk_ads.access_token, made.vk_ads.refresh_token = access, refresh
        case _:
            made.yandex_metrika.oauth_token, made.yandex_metrika.refresh_token = access, refresh
            made.yandex_metrika.counter_id = int(name)
    return made


@dataclass
class Office:
    """A client with an account on the sandbox.

    Attributes:
        key: Of the account at the sandbox.
        external_ids: The campaigns that it has there.
    """

    world: World
    stores: Stores
    platform: Platform
    client_id: str
    project_id: str
    key: str
    integration_id: str
    external_ids: list[int]
    linked: dict[int, str] = field(default_factory=dict)

    @property
    def sandbox(self) -> Sandbox:
        return self.world.platforms

    @property
    def admin(self) -> Caller:
        return self.world.admin

    async def link(self, external_id: int | str, **fields: object) -> str:
        """A campaign of ours that is the one there."""
        made = await self.world.campaign(self.project_id, platform=PLATFORMS[self.platform], **fields)
        request = campaign_service_pb2.LinkExternalCampaignRequest(
            campaign_id=made.campaign_id, integration_id=self.integration_id, external_id=str(external_id)
        )
        await self.admin.campaigns.LinkExternalCampaign(request, metadata=self.admin.auth)
        if isinstance(external_id, int):
            self.linked[external_id] = made.campaign_id
        return made.campaign_id

    async def campaign(self, campaign_id: str) -> campaign_pb2.Campaign:
        request = campaign_service_pb2.GetCampaignRequest(campaign_id=campaign_id)
        return (await self.admin.campaigns.GetCampaign(request, metadata=self.admin.auth)).campaign

    async def integration(self) -> integration_pb2.Integration:
        request = integration_service_pb2.GetIntegrationRequest(integration_id=self.integration_id)
        return (await self.admin.integrations.GetIntegration(request, metadata=self.admin.auth)).integration

    async def status(self) -> sync_pb2.SyncStatus:
        request = sync_service_pb2.GetSyncStatusRequest(integration_id=self.integration_id)
        return (await self.admin.syncs.GetSyncStatus(request, metadata=self.admin.auth)).status

    def request(self, stream: int, **fields: object) -> sync_service_pb2.SyncIntegrationRequest:
        return sync_service_pb2.SyncIntegrationRequest(
            integration_id=self.integration_id,
            streams=[stream],  # type: ignore[list-item]
            **fields,  # type: ignore[arg-type]
        )

    async def make(self, stream: int, **fields: object) -> Job:
        """The job that reads a stream."""
        reply = await self.admin.syncs.SyncIntegration(self.request(stream, **fields), metadata=self.admin.auth)
        return await self.job(UUID(reply.jobs[0].job_id))

    async def sync(self, stream: int, **fields: object) -> Job:
        """Reads a stream; the job as it then is."""
        return await self.attempt(await self.make(stream, **fields))

    async def attempt(self, job: Job) -> Job:
        """One try of a job, whenever it is due."""
        database = self.world.database
        await database.execute("UPDATE jobs SET scheduled_at = now() WHERE id = $1", job.id)
        async with database.transaction("claim") as tx:
            claimed = await jobs.claim_limited_internal(tx, [job.id], "test", LEASE)
        assert claimed, "it may not begin"
        await JobWorker(self.stores, HANDLERS, ())._attempt(claimed[0])
        return await self.job(job.id)

    async def job(self, job_id: UUID) -> Job:
        found = await jobs.get(self.world.database, EVERYTHING, job_id)
        assert found is not None
        return found

    async def clicks(self, first: date, last: date | None = None) -> dict[str, int]:
        """Clicks of each day as QueryStatistics has them, where anything was measured."""
        request = statistics_service_pb2.QueryStatisticsRequest(
            dates=time_pb2.DateRange(start_date=first.isoformat(), end_date=(last or first).isoformat()),
            granularity=time_pb2.GRANULARITY_DAY,
            filter=statistics_service_pb2.StatisticsFilter(client_ids=[self.client_id]),
        )
        reply = await self.admin.statistics.QueryStatistics(request, metadata=self.admin.auth)
        return {row.start_date: row.metrics.clicks for row in reply.rows if row.data_present}

    async def total(self) -> statistics_service_pb2.QueryStatisticsResponse:
        """Everything of the last 40 days, in one row."""
        request = statistics_service_pb2.QueryStatisticsRequest(
            dates=time_pb2.DateRange(start_date=ago(40).isoformat(), end_date=ago(0).isoformat()),
            granularity=time_pb2.GRANULARITY_TOTAL,
            filter=statistics_service_pb2.StatisticsFilter(client_ids=[self.client_id]),
        )
        return await self.admin.statistics.QueryStatistics(request, metadata=self.admin.auth)

    async def alerts(self) -> list[tuple[str, str]]:
        """Kind and status of every alert of the client."""
        rows = await self.world.database.fetch(
            "SELECT kind, status FROM alerts WHERE client_id = $1 ORDER BY id", UUID(self.client_id)
        )
        return [(row[0], row[1]) for row in rows]


async def office(
    world: World, stores: Stores, platform: Platform, *, campaigns: int = 2, link: bool = True, **opening: Any
) -> Office:
    """A client of its own with an account of its own, whose campaigns are linked."""
    client = await world.client()
    project = await world.project(client.client_id)
    return await account(world, stores, platform, client.client_id, project.project_id, campaigns, link, **opening)


async def account(
    world: World,
    stores: Stores,
    platform: Platform,
    client_id: str,
    project_id: str,
    campaigns: int,
    link: bool = True,
    **opening: Any,
) -> Office:
    """An account of a client, connected."""
    name = str(uuid4().int)[:9] if platform == "yandex_metrika" else f"shop-{uuid4().hex[:8]}"
    tokens = world.platforms.open(platform, name, campaigns=campaigns, **opening)
    request = integration_service_pb2.ConnectIntegrationRequest(
        client_id=client_id, platform_account_id=name, credentials=credentials(platform, name, tokens)
    )
    made = (await world.admin.integrations.ConnectIntegration(request, metadata=world.admin.auth)).integration
    found = Office(
        world, stores, platform, client_id, project_id, f"{platform}:{name}", made.integration_id,
        tokens["campaign_ids"],
    )  # fmt: skip
    if link:
        for each in found.external_ids:
            await found.link(each)
    return found
