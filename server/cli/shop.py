"""The demo's account on the sandbox: campaigns whose figures the platform states, and takes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import uuid4
from zoneinfo import ZoneInfo

import grpc
from google.protobuf import field_mask_pb2

from mrm.accounts.v1 import integration_pb2, integration_service_pb2, integration_service_pb2_grpc
from mrm.campaigns.v1 import (
    budget_pb2,
    budget_service_pb2,
    budget_service_pb2_grpc,
    campaign_pb2,
    campaign_service_pb2,
    campaign_service_pb2_grpc,
    sync_service_pb2,
    sync_service_pb2_grpc,
)
from mrm.common.v1 import platform_pb2, time_pb2
from mrm.operations.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from mrm.statistics.v1 import (
    rollup_service_pb2,
    rollup_service_pb2_grpc,
    statistics_service_pb2,
    statistics_service_pb2_grpc,
)
from server.cli.tenant import CURRENCY, TIME_ZONE, Tenant

if TYPE_CHECKING:
    from server.embedded.smtp_sink import Kept, SmtpSink
    from server.sandbox.sandbox import Sandbox

BEFORE, AFTER = 1_000, 940
_PLATFORM: Final = "vk_ads"
_ACCOUNT: Final = "demo"
_NAMES = ("Banners", "Stories")
_KEEPER = "keeper@example.com"
_CALL_SECONDS = 10.0
_PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_AWAITED = (job_pb2.JOB_TYPE_SYNC_CAMPAIGN, job_pb2.JOB_TYPE_SYNC_STATISTICS, job_pb2.JOB_TYPE_ROLLUP_DAILY)
_OPEN = (job_pb2.JOB_STATUS_PENDING, job_pb2.JOB_STATUS_PROCESSING)


@asynccontextmanager
async def stand_in() -> AsyncIterator[Sandbox]:
    """The sandbox, for the length of a block."""
    from server.sandbox.sandbox import Sandbox
    from server.sandbox.serving import serving

    async with serving(Sandbox()) as made:
        yield made


@dataclass(frozen=True, slots=True)
class Shop:
    """A client with an account on VK Ads, as the sandbox plays it.

    Attributes:
        tenant: The client; its campaigns are linked.
        integration_id: The account.
        day: A day that settles still.
    """

    sandbox: Sandbox
    tenant: Tenant
    integration_id: str
    restated: int
    day: str

    @classmethod
    async def make(cls, channel: grpc.aio.Channel, sandbox: Sandbox, session_token: str) -> Shop:
        """Makes client, campaigns and account, connects and links them."""
        opened = sandbox.open(_PLATFORM, _ACCOUNT, campaigns=len(_NAMES))
        client_id, project_id = await Tenant.place(channel, "Sandbox shop", "Social")
        connect = integration_service_pb2.ConnectIntegrationRequest(
            client_id=client_id,
            platform_account_id=_ACCOUNT,
            credentials=integration_pb2.IntegrationCredentials(
                vk_ads=integration_pb2.VkAdsCredentials(
                    access_token=opened["access_token"], refresh_token=opened["refresh_token"]
                )
            ),
            request_id=str(uuid4()),
        )
        accounts = integration_service_pb2_grpc.IntegrationServiceStub(channel)
        integration = (await accounts.ConnectIntegration(connect, timeout=_CALL_SECONDS)).integration
        stub = campaign_service_pb2_grpc.CampaignServiceStub(channel)
        campaigns = {}
        for name, external_id in zip(_NAMES, opened["campaign_ids"], strict=True):
            campaign = campaign_pb2.Campaign(
                project_id=project_id,
                platform=platform_pb2.PLATFORM_VK_ADS,
                display_name=name,
                currency_code=CURRENCY,
            )
            create = campaign_service_pb2.CreateCampaignRequest(campaign=campaign, request_id=str(uuid4()))
            made = (await stub.CreateCampaign(create, timeout=_CALL_SECONDS)).campaign
            link = campaign_service_pb2.LinkExternalCampaignRequest(
                campaign_id=made.campaign_id,
                integration_id=integration.integration_id,
                external_id=str(external_id),
                request_id=str(uuid4()),
            )
            await stub.LinkExternalCampaign(link, timeout=_CALL_SECONDS)
            campaigns[name] = made.campaign_id
        day = datetime.now(ZoneInfo(TIME_ZONE)).date() - timedelta(days=2)
        tenant = Tenant(session_token, client_id, campaigns, "")
        return cls(sandbox, tenant, integration.integration_id, opened["campaign_ids"][0], day.isoformat())

    def restate(self, clicks: int) -> None:
        """Has the platform state the day of the first campaign anew."""
        self.sandbox.restate(self.restated, self.day, clicks=clicks)

    async def sync(self, channel: grpc.aio.Channel) -> None:
        """Has the account read, and waits for that and for the daily figures that follow from it."""
        await self._ask_to_read(channel)
        # What is marked anew waits a moment for more.
        await _until(lambda: self._idle(channel))

    async def arrived(self, channel: grpc.aio.Channel, seen: Callable[[], int]) -> bool:
        """Whether query, feed of restatements and watcher all come to say what the platform says last."""
        return await _until(lambda: self._agree(channel, seen))

    async def revoked(self, channel: grpc.aio.Channel, mails: SmtpSink) -> Kept | None:
        """Has the platform take the account's tokens away; the e-mail that says so, None if none comes."""
        policy = budget_pb2.BudgetAlertPolicy(client_id=self.tenant.client_id, recipient_emails=[_KEEPER])
        update = budget_service_pb2.UpdateBudgetAlertPolicyRequest(
            policy=policy, update_mask=field_mask_pb2.FieldMask(paths=["recipient_emails"]), request_id=str(uuid4())
        )
        stub = budget_service_pb2_grpc.BudgetServiceStub(channel)
        await stub.UpdateBudgetAlertPolicy(update, timeout=_CALL_SECONDS)
        self.sandbox.revoke(f"{_PLATFORM}:{_ACCOUNT}")
        await self._ask_to_read(channel)

        async def told() -> bool:
            return bool(mails.to(_KEEPER))

        return mails.to(_KEEPER)[0] if await _until(told) else None

    async def clicks(self, channel: grpc.aio.Channel) -> int:
        """Clicks of the first campaign on the day."""
        request = statistics_service_pb2.QueryStatisticsRequest(
            dates=time_pb2.DateRange(start_date=self.day, end_date=self.day),
            granularity=time_pb2.GRANULARITY_DAY,
            filter=statistics_service_pb2.StatisticsFilter(campaign_ids=[self.tenant.campaigns[_NAMES[0]]]),
        )
        stub = statistics_service_pb2_grpc.StatisticsServiceStub(channel)
        reply = await stub.QueryStatistics(request, timeout=_CALL_SECONDS)
        return sum(row.metrics.clicks for row in reply.rows)

    async def total(self, channel: grpc.aio.Channel) -> int:
        """Clicks of the first campaign in what the watcher sees."""
        request = statistics_service_pb2.QueryStatisticsRequest(
            dates=time_pb2.DateRange(
                start_date=(datetime.now(ZoneInfo(TIME_ZONE)).date() - timedelta(days=29)).isoformat(),
                end_date=datetime.now(ZoneInfo(TIME_ZONE)).date().isoformat(),
            ),
            granularity=time_pb2.GRANULARITY_TOTAL,
            filter=statistics_service_pb2.StatisticsFilter(campaign_ids=[self.tenant.campaigns[_NAMES[0]]]),
        )
        stub = statistics_service_pb2_grpc.StatisticsServiceStub(channel)
        return sum(row.metrics.clicks for row in (await stub.QueryStatistics(request, timeout=_CALL_SECONDS)).rows)

    async def _ask_to_read(self, channel: grpc.aio.Channel) -> None:
        request = sync_service_pb2.SyncIntegrationRequest(integration_id=self.integration_id, request_id=str(uuid4()))
        stub = sync_service_pb2_grpc.SyncServiceStub(channel)
        await stub.SyncIntegration(request, timeout=_CALL_SECONDS)

    async def _agree(self, channel: grpc.aio.Channel, seen: Callable[[], int]) -> bool:
        request = rollup_service_pb2.ListRestatementsRequest(client_id=self.tenant.client_id)
        stub = rollup_service_pb2_grpc.RollupServiceStub(channel)
        feed = (await stub.ListRestatements(request, timeout=_CALL_SECONDS)).restatements
        told = [(each.before.clicks, each.after.clicks) for each in feed if each.date == self.day]
        return (BEFORE, AFTER) in told and await self.clicks(channel) == AFTER and seen() == await self.total(channel)

    async def _idle(self, channel: grpc.aio.Channel) -> bool:
        wanted = job_service_pb2.JobFilter(client_id=self.tenant.client_id, types=_AWAITED)
        stub = job_service_pb2_grpc.JobServiceStub(channel)
        found = await stub.ListJobs(job_service_pb2.ListJobsRequest(filter=wanted), timeout=_CALL_SECONDS)
        return not any(each.status in _OPEN for each in found.jobs)


async def _until(wanted: Callable[[], Awaitable[bool]]) -> bool:
    """Whether something comes to hold within half a minute."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        held = await wanted()
        if held or time.monotonic() > until:
            return held
        await asyncio.sleep(_LOOK_SECONDS)
