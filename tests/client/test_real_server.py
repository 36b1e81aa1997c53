"""The client helper against the service itself."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import NAMESPACE_OID, uuid4, uuid5

import grpc
import pytest

import mrm_client
from mrm.campaigns.v1 import campaign_service_pb2, campaign_service_pb2_grpc
from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as service_pb2
from mrm_client import CallError, EventsInvalid, Producer, StreamFenced

if TYPE_CHECKING:
    from tests.conftest import World


def made(campaign_id: str, count: int) -> list[event_pb2.Event]:
    """The same events each time: replaying them must change nothing."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    events = []
    for number in range(count):
        event = event_pb2.Event(
            event_id=str(uuid5(NAMESPACE_OID, f"{campaign_id}:{number}")),
            campaign_id=campaign_id,
            event_type=event_pb2.EVENT_TYPE_IMPRESSION,
        )
        event.event_time.FromDatetime(start + timedelta(milliseconds=number))
        events.append(event)
    return events


async def test_events_are_stored_once_and_watched(world: World) -> None:
    client_id, (campaign_id,) = await world.tenant()
    key = await world.key([client_id])
    events = made(campaign_id, 5000)
    async with (
        mrm_client.channel(world.target, key.token) as ingesting,
        mrm_client.channel(world.target, world.admin.token, watch=True) as watching,
    ):
        async with Producer(ingesting, client_id, "a", max_batch_events=700) as producer:
            await producer.send(events[:3000])
        assert producer.counters.stored == 3000
        async with Producer(ingesting, client_id, "a") as producer:
            assert producer.position == 3000
            await producer.send(event_pb2.EventBatch(events=events[producer.position :]))
        async with Producer(ingesting, client_id, "replayed") as producer:
            await producer.send(events)
        watch = mrm_client.watch(watching, client_id, window=service_pb2.WATCH_WINDOW_LAST_7_DAYS)
        async with asyncio.timeout(30), aclosing(watch) as states:
            async for state in states:
                campaign = state.campaigns.get(campaign_id)
                if campaign is not None and campaign.metrics.impressions >= 5000:
                    break
        await asyncio.sleep(1)
        async with aclosing(
            mrm_client.watch(
                watching, client_id, resume_token=state.resume_token, window=service_pb2.WATCH_WINDOW_LAST_7_DAYS
            )
        ) as states:
            resumed = await anext(states)
        assert resumed.kind == "snapshot"
        assert resumed.campaigns[campaign_id].metrics.impressions == 5000


async def test_a_second_producer_fences_the_first(world: World) -> None:
    client_id, (campaign_id,) = await world.tenant()
    key = await world.key([client_id])
    events = made(campaign_id, 20)
    async with mrm_client.channel(world.target, key.token) as channel:
        first = await Producer(channel, client_id, "s").__aenter__()
        await first.send(events[:10])
        await first.flush()
        async with Producer(channel, client_id, "s") as second:
            assert second.position == 10
            with pytest.raises(StreamFenced):
                await first.send(events[10:])
                await first.__aexit__(None, None, None)
            await second.send(events[10:])


async def test_malformed_events_are_named(world: World) -> None:
    client_id, (campaign_id,) = await world.tenant()
    key = await world.key([client_id])
    events = made(campaign_id, 10)
    events[7].campaign_id = str(uuid4())
    async with mrm_client.channel(world.target, key.token) as channel:
        with pytest.raises(EventsInvalid) as caught:
            async with Producer(channel, client_id, "s") as producer:
                await producer.send(events)
    (fault,) = caught.value.event_errors
    assert caught.value.offset + fault.index == 7
    assert fault.reason == event_pb2.EVENT_ERROR_REASON_UNKNOWN_CAMPAIGN


async def test_stubs_work_on_the_channel_and_errors_explain(world: World) -> None:
    async with mrm_client.channel(world.target, world.admin.token) as channel:
        stub = campaign_service_pb2_grpc.CampaignServiceStub(channel)
        request = campaign_service_pb2.GetCampaignRequest(campaign_id=str(uuid4()))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetCampaign(request, timeout=5)
    error = CallError.of_rpc(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert error.metadata["resource_id"] == request.campaign_id
