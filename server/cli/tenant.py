"""The demo's client with everything it needs, made through the API like anybody else's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar
from uuid import uuid4
from zoneinfo import ZoneInfo

import grpc

import mrm_client
from mrm.accounts.v1 import (
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    client_pb2,
    client_service_pb2,
    client_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from mrm.campaigns.v1 import campaign_pb2, campaign_service_pb2, campaign_service_pb2_grpc
from mrm.common.v1 import options_pb2, platform_pb2, time_pb2
from mrm.planning.v1 import project_pb2, project_service_pb2, project_service_pb2_grpc
from mrm.statistics.v1 import statistics_service_pb2, statistics_service_pb2_grpc

TIME_ZONE = "Europe/Moscow"
CURRENCY = "RUB"
_CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """A client with a project and campaigns.

    Attributes:
        session_token: Of the administrator who made it.
        client_id: The client.
        campaigns: Campaign ids by name.
        api_key: May append events for the client.
    """

    session_token: str
    client_id: str
    campaigns: dict[str, str]
    api_key: str

    # A week that ends today touches eight of the client's days.
    window: ClassVar = statistics_service_pb2.WATCH_WINDOW_LAST_30_DAYS

    @classmethod
    async def make(cls, target: str, email: str, password: str, names: list[str]) -> Tenant:
        """Signs in and makes everything."""
        async with mrm_client.channel(target) as channel:
            request = session_service_pb2.LoginRequest(email=email, password=password)
            login = await session_service_pb2_grpc.SessionServiceStub(channel).Login(request, timeout=_CALL_SECONDS)
        async with mrm_client.channel(target, login.session_token) as channel:
            client_id, project_id = await cls.place(channel, "Open Bandit demo", "Fashion shop")
            campaigns = {name: await _campaign(channel, project_id, name) for name in names}
            return cls(login.session_token, client_id, campaigns, await _key(channel, client_id))

    @staticmethod
    async def place(channel: grpc.aio.Channel, client: str, project: str) -> tuple[str, str]:
        """Makes a client and a project with these names; returns their ids."""
        client_id = await _client(channel, client)
        return client_id, await _project(channel, client_id, project)

    async def totals(self, channel: grpc.aio.Channel, start: datetime, end: datetime) -> dict[str, tuple[int, int]]:
        """(impressions, clicks) of each campaign by name, over the client's days from `start` to `end`."""
        zone = ZoneInfo(TIME_ZONE)
        days = time_pb2.DateRange(
            start_date=f"{start.astimezone(zone):%Y-%m-%d}", end_date=f"{end.astimezone(zone):%Y-%m-%d}"
        )
        request = statistics_service_pb2.QueryStatisticsRequest(
            dates=days,
            granularity=time_pb2.GRANULARITY_TOTAL,
            dimensions=[statistics_service_pb2.DIMENSION_CAMPAIGN],
            filter=statistics_service_pb2.StatisticsFilter(client_ids=[self.client_id]),
        )
        stub = statistics_service_pb2_grpc.StatisticsServiceStub(channel)
        reply = await stub.QueryStatistics(request, timeout=_CALL_SECONDS)
        names = {campaign_id: name for name, campaign_id in self.campaigns.items()}
        return {
            names.get(row.campaign_id, row.campaign_id): (row.metrics.impressions, row.metrics.clicks)
            for row in reply.rows
            if row.campaign_id
        }


async def _client(channel: grpc.aio.Channel, name: str) -> str:
    client = client_pb2.Client(
        display_name=name,
        type=client_pb2.CLIENT_TYPE_DIRECT_ADVERTISER,
        settings=client_pb2.ClientSettings(time_zone=TIME_ZONE, currency_code=CURRENCY),
    )
    request = client_service_pb2.CreateClientRequest(client=client, request_id=str(uuid4()))
    reply = await client_service_pb2_grpc.ClientServiceStub(channel).CreateClient(request, timeout=_CALL_SECONDS)
    return reply.client.client_id


async def _project(channel: grpc.aio.Channel, client_id: str, name: str) -> str:
    project = project_pb2.Project(client_id=client_id, display_name=name)
    request = project_service_pb2.CreateProjectRequest(project=project, request_id=str(uuid4()))
    reply = await project_service_pb2_grpc.ProjectServiceStub(channel).CreateProject(request, timeout=_CALL_SECONDS)
    return reply.project.project_id


async def _campaign(channel: grpc.aio.Channel, project_id: str, name: str) -> str:
    campaign = campaign_pb2.Campaign(
        project_id=project_id, platform=platform_pb2.PLATFORM_OTHER, display_name=name, currency_code=CURRENCY
    )
    request = campaign_service_pb2.CreateCampaignRequest(campaign=campaign, request_id=str(uuid4()))
    stub = campaign_service_pb2_grpc.CampaignServiceStub(channel)
    return (await stub.CreateCampaign(request, timeout=_CALL_SECONDS)).campaign.campaign_id


async def _key(channel: grpc.aio.Channel, client_id: str) -> str:
    request = api_key_service_pb2.CreateApiKeyRequest(
        display_name="demo producer",
        permissions=[options_pb2.PERMISSION_STATISTICS_INGEST],
        client_ids=[client_id],
        request_id=str(uuid4()),
    )
    stub = api_key_service_pb2_grpc.ApiKeyServiceStub(channel)
    return (await stub.CreateApiKey(request, timeout=_CALL_SECONDS)).secret
