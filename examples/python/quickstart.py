"""From signing in to live figures: everything a program needs of this service, in the order it needs it.

It runs against a service with an administrator (`make up`, then `mrm admin create --email admin@example.com`)::

    MRM_ADMIN_PASSWORD='...' python examples/python/quickstart.py
"""

import asyncio
import os
from contextlib import aclosing
from datetime import UTC, datetime
from uuid import uuid4

import grpc

import mrm_client
from mrm.accounts.v1 import api_key_service_pb2, client_pb2, client_service_pb2, session_service_pb2
from mrm.accounts.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from mrm.accounts.v1.client_service_pb2_grpc import ClientServiceStub
from mrm.accounts.v1.session_service_pb2_grpc import SessionServiceStub
from mrm.campaigns.v1 import campaign_pb2, campaign_service_pb2
from mrm.campaigns.v1.campaign_service_pb2_grpc import CampaignServiceStub
from mrm.common.v1 import options_pb2, platform_pb2
from mrm.operations.v1 import change_service_pb2
from mrm.operations.v1.change_service_pb2_grpc import ChangeServiceStub
from mrm.planning.v1 import project_pb2, project_service_pb2
from mrm.planning.v1.project_service_pb2_grpc import ProjectServiceStub
from mrm.statistics.v1 import event_pb2

TARGET = os.environ.get("MRM_TARGET", "127.0.0.1:50051")
EMAIL = os.environ.get("MRM_ADMIN_EMAIL", "admin@example.com")
PASSWORD = os.environ["MRM_ADMIN_PASSWORD"]
SECONDS = 5  # every call has a deadline


async def sign_in() -> str:
    """A person signs in; the token goes with every call from then on."""
    async with mrm_client.channel(TARGET) as channel:
        request = session_service_pb2.LoginRequest(email=EMAIL, password=PASSWORD)
        reply = await SessionServiceStub(channel).Login(request, timeout=SECONDS)
    print("signed in as", reply.user.email)
    return reply.session_token


async def create_campaign(channel: grpc.aio.Channel) -> tuple[str, str]:
    """A client, its project, its campaign. The `request_id` makes sending a call again safe."""
    client = client_pb2.Client(display_name="Rosebud", type=client_pb2.CLIENT_TYPE_DIRECT_ADVERTISER)
    create_client = client_service_pb2.CreateClientRequest(client=client, request_id=str(uuid4()))
    client = (await ClientServiceStub(channel).CreateClient(create_client, timeout=SECONDS)).client
    project = project_pb2.Project(client_id=client.client_id, display_name="Spring")
    create_project = project_service_pb2.CreateProjectRequest(project=project, request_id=str(uuid4()))
    project = (await ProjectServiceStub(channel).CreateProject(create_project, timeout=SECONDS)).project
    campaign = campaign_pb2.Campaign(
        project_id=project.project_id, platform=platform_pb2.PLATFORM_OTHER, display_name="Banner"
    )
    create_campaign = campaign_service_pb2.CreateCampaignRequest(campaign=campaign, request_id=str(uuid4()))
    campaign = (await CampaignServiceStub(channel).CreateCampaign(create_campaign, timeout=SECONDS)).campaign
    print("created campaign", campaign.display_name)
    return client.client_id, campaign.campaign_id


async def create_key(channel: grpc.aio.Channel, client_id: str) -> str:
    """A program that sends events gets a key of its own; its secret is shown this once."""
    request = api_key_service_pb2.CreateApiKeyRequest(
        display_name="tracker",
        permissions=[options_pb2.PERMISSION_STATISTICS_INGEST],
        client_ids=[client_id],
        request_id=str(uuid4()),
    )
    return (await ApiKeyServiceStub(channel).CreateApiKey(request, timeout=SECONDS)).secret


async def append(key: str, client_id: str, events: list[event_pb2.Event]) -> None:
    """The stream has a name, and the server knows how far it got: whoever opens it again goes on from there."""
    async with (
        mrm_client.channel(TARGET, key) as channel,
        mrm_client.Producer(channel, client_id, "tracker-1") as producer,
    ):
        print("appending from event", producer.position)
        await producer.send(events[producer.position :])
    print("stored", producer.counters.stored, "events")  # leaving the block waited for the acknowledgement


async def watch(token: str, client_id: str, impressions: int) -> None:
    """Live figures: each state is whole, and broken connections are resumed."""
    async with (
        mrm_client.channel(TARGET, token, watch=True) as channel,
        aclosing(mrm_client.watch(channel, client_id)) as states,
    ):
        async for state in states:
            seen = sum(campaign.metrics.impressions for campaign in state.campaigns.values())
            print("impressions:", seen)
            if seen >= impressions:
                break


async def follow_changes(channel: grpc.aio.Channel, client_id: str) -> None:
    """Who changed what, each change exactly once: from the oldest, until the campaign's creation came by."""
    of_client = change_service_pb2.ChangeFilter(client_id=client_id)
    request = change_service_pb2.GetOldestChangeTokenRequest(filter=of_client)
    token = (await ChangeServiceStub(channel).GetOldestChangeToken(request, timeout=SECONDS)).resume_token
    async with aclosing(mrm_client.watch_changes(channel, of_client, resume_token=token)) as batches:
        async for batch in batches:
            for change in batch.changes:
                print("change:", change.action, change.resource_type)
                if change.resource_type == "campaign":
                    return


async def make_a_mistake(channel: grpc.aio.Channel) -> None:
    """A refusal has a code for the program, a text for people, and says which field is at fault."""
    try:
        request = campaign_service_pb2.GetCampaignRequest(campaign_id="no such thing")
        await CampaignServiceStub(channel).GetCampaign(request, timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        refusal = mrm_client.CallError.of_rpc(error)
        print("refused:", refusal.code.name, refusal.reason, dict(refusal.violations))


async def main() -> None:
    """All of it."""
    token = await sign_in()
    async with mrm_client.channel(TARGET, token) as channel:
        client_id, campaign_id = await create_campaign(channel)
        key = await create_key(channel, client_id)
        events = [
            event_pb2.Event(event_id=str(uuid4()), campaign_id=campaign_id, event_type=event_pb2.EVENT_TYPE_IMPRESSION)
            for _ in range(10)
        ]
        for event in events:
            event.event_time.FromDatetime(datetime.now(UTC))
        await append(key, client_id, events[:6])
        await append(key, client_id, events)  # as after a crash: the first six are not sent again
        await watch(token, client_id, impressions=10)
        await follow_changes(channel, client_id)
        await make_a_mistake(channel)


if __name__ == "__main__":
    asyncio.run(main())
