"""WatchMetrics as callers meet it: the running service, real HTTP/2 windows, generated stubs."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import grpc
import pytest

import mrm_client
from mrm.common.v1 import options_pb2
from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from mrm.statistics.v1 import statistics_service_pb2_grpc as rpc
from tests.conftest import Caller, Failing, World, impression

RIGHTS = (options_pb2.PERMISSION_STATISTICS_INGEST, options_pb2.PERMISSION_STATISTICS_READ)
HEARTBEAT_SECONDS = 1
PATIENCE_SECONDS = 30


async def count(caller: Caller, client_id: str, *campaign_ids: str, times: int = 1) -> None:
    """Lets impressions of campaigns be acknowledged."""
    batch = event_pb2.EventBatch(events=[impression(each) for each in campaign_ids for _ in range(times)])
    reply = await caller.statistics.IngestEvents(
        pb.IngestEventsRequest(client_id=client_id, batch=batch), metadata=caller.auth
    )
    assert reply.stored_count == times * len(campaign_ids)


async def heard(call: Any, *kinds: str) -> pb.WatchMetricsResponse:
    """The next message of one of the kinds; those that say nothing new are passed over."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            message = await call.read()
            assert isinstance(message, pb.WatchMetricsResponse), "the stream has ended"
            kind = message.WhichOneof("kind")
            assert kind
            if kind in kinds:
                return message
            assert kind in ("checkpoint", "heartbeat"), f"{kind} instead of {kinds}"


def shown(message: pb.WatchMetricsResponse) -> dict[str, int]:
    campaigns = message.snapshot.campaigns or message.update.campaigns
    return {each.campaign_id: each.metrics.impressions for each in campaigns}


async def test_everything_a_watch_says(world: World) -> None:
    client_id, [first] = await world.tenant()
    project_id = (await world.project(client_id)).project_id
    key = await world.key([client_id], *RIGHTS)
    request = pb.WatchMetricsRequest(client_id=client_id)
    request.heartbeat_interval.FromSeconds(HEARTBEAT_SECONDS)
    call = key.statistics.WatchMetrics(request, metadata=key.auth)
    opening = await heard(call, "snapshot")
    assert opening.snapshot.complete
    assert shown(opening) == {first: 0}
    assert not opening.snapshot.campaigns[0].data_present
    await count(key, client_id, first, times=3)
    update = await heard(call, "update")
    assert shown(update) == {first: 3}
    # Nothing more happens to this client, but time goes on: the watermark moves, and the stream never falls silent.
    checkpoint = await heard(call, "checkpoint")
    assert checkpoint.watermark_time.ToNanoseconds() > opening.watermark_time.ToNanoseconds()
    begun = asyncio.get_running_loop().time()
    for _ in range(3):
        await heard(call, "checkpoint", "heartbeat")
    # What a busy machine adds is allowed for.
    assert asyncio.get_running_loop().time() - begun < 3 * HEARTBEAT_SECONDS + 3
    second = (await world.campaign(project_id)).campaign_id
    assert (await heard(call, "reset")).reset.reason == pb.WatchMetricsResponse.RESET_REASON_CAMPAIGNS_CHANGED
    again = await heard(call, "snapshot")
    assert shown(again) == {first: 3, second: 0}
    await count(key, client_id, second)
    assert shown(await heard(call, "update")) == {second: 1}
    call.cancel()
    request.resume_token = again.resume_token
    resumed = await heard(key.statistics.WatchMetrics(request, metadata=key.auth), "snapshot")
    assert shown(resumed) == {first: 3, second: 1}
    assert resumed.watermark_time.ToNanoseconds() >= again.watermark_time.ToNanoseconds()


async def test_projects_filter_and_hide_what_is_foreign(world: World, failing: Failing) -> None:
    client_id, [_, _] = await world.tenant(2)
    project_id = (await world.project(client_id)).project_id
    mine = (await world.campaign(project_id)).campaign_id
    foreign = (await world.project((await world.client()).client_id)).project_id
    key = await world.key([client_id], *RIGHTS)
    request = pb.WatchMetricsRequest(client_id=client_id, project_ids=[project_id])
    call = key.statistics.WatchMetrics(request, metadata=key.auth)
    assert shown(await heard(call, "snapshot")) == {mine: 0}
    call.cancel()
    request.project_ids.append(foreign)
    failure = await failing(key.statistics.WatchMetrics(request, metadata=key.auth).read())
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


@pytest.mark.timeout(180)
async def test_a_reader_that_stops_skips_and_harms_no_one(world: World) -> None:
    client_id, campaign_ids = await world.tenant(100)
    key = await world.key([client_id], *RIGHTS)
    request = pb.WatchMetricsRequest(client_id=client_id)
    async with (
        mrm_client.channel(world.target, key.token, watch=True) as slow_channel,
        mrm_client.channel(world.target, key.token, watch=True) as quick_channel,
    ):
        slow = rpc.StatisticsServiceStub(slow_channel).WatchMetrics(request)
        await heard(slow, "snapshot")
        async with aclosing(mrm_client.watch(quick_channel, client_id)) as states:
            # The slow one reads no more; HTTP/2 windows take a few messages, its mailbox takes the rest.
            rounds = 0
            async for state in states:
                seen = {each.metrics.impressions for each in state.campaigns.values()}
                if seen == {rounds}:
                    if rounds == 20:
                        break
                    rounds += 1
                    await count(key, client_id, *campaign_ids)
        skipped, last = 0, dict[str, int]()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while set(last.values()) != {20}:
                update = await heard(slow, "update")
                skipped += update.update.skipped_count
                for campaign_id, impressions in shown(update).items():
                    assert impressions > last.get(campaign_id, 0)
                    last[campaign_id] = impressions
        assert skipped > 0
        slow.cancel()
