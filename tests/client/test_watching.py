"""Merging of watch messages, and going on after a break."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import grpc
import pytest

import mrm_client
from mrm.common.v1 import platform_pb2
from mrm.statistics.v1 import metrics_pb2
from mrm.statistics.v1 import statistics_service_pb2 as service_pb2
from mrm_client import CallError, CredentialsRefused, WatchState

from .conftest import CLIENT_ID, FakeStatistics, Watched, campaign, status


def snapshot(*campaigns: metrics_pb2.CampaignMetrics, token: str = "", complete: bool = True) -> Watched:
    return Watched(snapshot=Watched.Snapshot(campaigns=campaigns, complete=complete), resume_token=token)


def update(*campaigns: metrics_pb2.CampaignMetrics, token: str = "", skipped: int = 0) -> Watched:
    return Watched(update=Watched.Update(campaigns=campaigns, skipped_count=skipped), resume_token=token)


async def take(states: AsyncIterator[WatchState], count: int) -> list[WatchState]:
    return [await anext(states) for _ in range(count)]


def figures(state: WatchState) -> dict[str, int]:
    return {name: campaign.metrics.impressions for name, campaign in state.campaigns.items()}


async def test_messages_are_merged_into_whole_states(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    fake.watch_script = [
        [
            snapshot(campaign("a", 1, 1), complete=False),
            snapshot(campaign("b", 2, 1)),
            update(campaign("a", 5, 2), token="t1", skipped=3),
            update(campaign("a", 4, 1), token="t2"),
            Watched(checkpoint=Watched.Checkpoint()),
            Watched(reset=Watched.Reset(reason=Watched.RESET_REASON_WINDOW_MOVED)),
            snapshot(campaign("c", 9, 1)),
            Watched(heartbeat=Watched.Heartbeat()),
        ]
    ]
    async with aclosing(mrm_client.watch(channel, CLIENT_ID)) as states:
        seen = await take(states, 6)
    assert [state.kind for state in seen] == ["snapshot", "update", "update", "checkpoint", "snapshot", "heartbeat"]
    assert [figures(state) for state in seen[:2]] == [{"a": 1, "b": 2}, {"a": 5, "b": 2}]
    assert figures(seen[2]) == {"a": 5, "b": 2}, "an older version must not win"
    assert seen[1].skipped_count == 3
    assert [sorted(state.changed) for state in seen] == [["a", "b"], ["a"], [], [], ["c"], []]
    assert figures(seen[-1]) == {"c": 9}
    assert seen[3].resume_token == "t2"


async def test_it_resumes_with_the_token_after_a_break_and_after_a_normal_end(
    channel: grpc.aio.Channel, fake: FakeStatistics
) -> None:
    fake.watch_script = [
        [snapshot(campaign("a", 1, 1), token="t1"), grpc.StatusCode.UNAVAILABLE],
        [snapshot(campaign("a", 2, 2), token="t2")],
        [snapshot(campaign("a", 3, 3), complete=False), grpc.StatusCode.UNAVAILABLE],
        [snapshot(campaign("b", 4, 4), token="t3")],
    ]
    retried: list[CallError] = []
    watching = mrm_client.watch(
        channel,
        CLIENT_ID,
        window=service_pb2.WATCH_WINDOW_LAST_7_DAYS,
        on_retry=lambda error, pause: retried.append(error),
    )
    async with aclosing(watching) as states:
        seen = await take(states, 3)
    assert [figures(state) for state in seen] == [{"a": 1}, {"a": 2}, {"b": 4}]
    assert [request.resume_token for request in fake.watch_requests] == ["", "t1", "t2", "t2"]
    assert {request.window for request in fake.watch_requests} == {service_pb2.WATCH_WINDOW_LAST_7_DAYS}
    assert seen[-1].reconnects == len(retried) == 3


async def test_a_refused_token_is_forgotten_once(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    refused = status(grpc.StatusCode.INVALID_ARGUMENT, "RESUME_TOKEN_INVALID")
    fake.watch_script = [[refused], [snapshot(campaign("a", 1, 1))]]
    async with aclosing(mrm_client.watch(channel, CLIENT_ID, resume_token="old")) as states:
        assert figures(await anext(states)) == {"a": 1}
    assert [request.resume_token for request in fake.watch_requests] == ["old", ""]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(grpc.StatusCode.UNAUTHENTICATED, CredentialsRefused), (grpc.StatusCode.NOT_FOUND, CallError)],
)
async def test_refusals_are_raised(
    channel: grpc.aio.Channel, fake: FakeStatistics, code: grpc.StatusCode, kind: type[CallError]
) -> None:
    fake.watch_script = [[code]]
    with pytest.raises(kind) as caught:
        async with aclosing(mrm_client.watch(channel, CLIENT_ID)) as states:
            await anext(states)
    assert caught.value.code is code
    assert len(fake.watch_requests) == 1


async def test_the_request_says_what_was_asked(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    fake.watch_script = [[snapshot()]]
    span = (datetime(2026, 1, 31, 21, tzinfo=UTC), datetime(2026, 2, 1, 21, tzinfo=UTC))
    watching = mrm_client.watch(
        channel,
        CLIENT_ID,
        campaign_ids=["c1"],
        project_ids=["p1"],
        platforms=[platform_pb2.PLATFORM_VK_ADS],
        times=span,
        heartbeat=timedelta(seconds=1.5),
    )
    async with aclosing(watching) as states:
        await anext(states)
    request = fake.watch_requests[0]
    assert list(request.campaign_ids) == ["c1"]
    assert list(request.project_ids) == ["p1"]
    assert list(request.platforms) == [platform_pb2.PLATFORM_VK_ADS]
    assert request.times.start_time.ToDatetime(tzinfo=UTC) == span[0]
    assert request.heartbeat_interval.ToTimedelta() == timedelta(seconds=1.5)
