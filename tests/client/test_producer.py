"""The producer against every way a stream can break."""

import asyncio

import grpc
import pytest

import mrm_client
from mrm.statistics.v1 import event_pb2
from mrm_client import CallError, CredentialsRefused, EventsInvalid, PositionLost, Producer, StreamFenced

from .conftest import CLIENT_ID, TOKEN, FakeStatistics, Running, events, status


def ids(first: int, count: int) -> list[str]:
    return [str(number) for number in range(first, first + count)]


async def test_events_arrive_once_in_order_and_flush_means_durable(
    channel: grpc.aio.Channel, fake: FakeStatistics
) -> None:
    async with Producer(channel, CLIENT_ID, "s") as producer:
        for first in range(0, 1000, 100):
            await producer.send(events(first, 100))
        await producer.flush()
        assert fake.streams["s"] == ids(0, 1000)
        assert producer.position == producer.acknowledged_position == 1000
        assert producer.counters.acknowledged == producer.counters.stored == 1000
    assert fake.tokens == [f"Bearer {TOKEN}"]


async def test_small_sends_are_joined(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    fake.failures = [0.2]
    async with Producer(channel, CLIENT_ID, "s", window=1) as producer:
        for number in range(500):
            await producer.send(events(number, 1))
            await asyncio.sleep(0)
    assert fake.streams["s"] == ids(0, 500)
    assert len(fake.batch_sizes) < 10


async def test_batches_stay_below_the_limits(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    async with Producer(channel, CLIENT_ID, "s") as producer:
        await producer.send(event_pb2.EventBatch(events=events(0, 30_000, padding=400)))
        await producer.send(events(30_000, 30_000))
    assert fake.streams["s"] == ids(0, 60_000)
    assert max(fake.batch_sizes) <= 20_000
    assert len(fake.batch_sizes) >= 5


async def test_whole_batches_are_taken_whole(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    async with Producer(channel, CLIENT_ID, "s", window=2, max_batch_events=1000) as producer:
        for first in range(0, 5000, 1000):
            await producer.send(event_pb2.EventBatch(events=events(first, 1000)))
    assert fake.streams["s"] == ids(0, 5000)
    assert fake.batch_sizes == [1000] * 5


async def test_an_event_too_large_for_any_batch_is_refused_at_once(channel: grpc.aio.Channel) -> None:
    async with Producer(channel, CLIENT_ID, "s", max_batch_bytes=1000) as producer:
        with pytest.raises(ValueError, match="fits no batch"):
            await producer.send(events(0, 1, padding=2000))


async def test_sending_waits_for_the_window(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    fake.failures = [0.3]
    async with Producer(channel, CLIENT_ID, "s", window=1, max_batch_events=10) as producer:
        await producer.send(events(0, 10))
        await asyncio.sleep(0.05)
        await producer.send(events(10, 10))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await producer.send(events(20, 10))
        assert producer.position == 20
        await producer.send(events(20, 10))
    assert fake.streams["s"] == ids(0, 30)


async def test_a_new_producer_resumes_at_the_servers_position(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    source = events(0, 250)
    async with Producer(channel, CLIENT_ID, "s") as producer:
        await producer.send(source[:100])
    async with Producer(channel, CLIENT_ID, "s") as producer:
        assert producer.position == 100
        await producer.send(source[producer.position :])
    assert fake.streams["s"] == ids(0, 250)


@pytest.mark.parametrize(
    "failure",
    [
        "drop",
        status(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"),
        status(grpc.StatusCode.RESOURCE_EXHAUSTED, "INGEST_QUEUE_FULL", retry_after=0.1),
        status(grpc.StatusCode.OUT_OF_RANGE, "OFFSET_GAP"),
    ],
    ids=["stored-but-unanswered", "draining", "queue-full", "gap"],
)
async def test_it_goes_on_after_a_passing_failure(
    channel: grpc.aio.Channel, fake: FakeStatistics, failure: object
) -> None:
    fake.failures = [None, failure, None, failure]
    told: list[CallError] = []
    async with Producer(
        channel, CLIENT_ID, "s", max_batch_events=50, on_retry=lambda error, pause: told.append(error)
    ) as producer:
        await producer.send(events(0, 500))
    assert fake.streams["s"] == ids(0, 500)
    assert producer.counters.acknowledged == 500
    assert producer.counters.reconnects == len(told) == 2


async def test_the_servers_pause_is_kept(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    fake.failures = [status(grpc.StatusCode.RESOURCE_EXHAUSTED, "INGEST_QUEUE_FULL", retry_after=0.5)]
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with Producer(channel, CLIENT_ID, "s") as producer:
        await producer.send(events(0, 5))
    assert loop.time() - started >= 0.5


async def test_it_survives_a_server_restart(running: Running, channel: grpc.aio.Channel) -> None:
    async with Producer(channel, CLIENT_ID, "s", max_batch_events=20) as producer:
        for first in range(0, 1000, 20):
            await producer.send(events(first, 20))
            if first == 400:
                await running.stop()
                await asyncio.sleep(0.3)
                await running.start()
            await asyncio.sleep(0.001)
    assert running.fake.streams["s"] == ids(0, 1000)
    assert producer.counters.reconnects >= 1


async def test_patience_runs_out(running: Running) -> None:
    await running.stop()
    async with mrm_client.channel(f"127.0.0.1:{running.port}", TOKEN) as channel:
        with pytest.raises(CallError) as caught:
            async with Producer(channel, CLIENT_ID, "s", patience=0.5):
                pass
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    await running.start()


async def test_a_fenced_producer_stops_for_good(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    fake.failures = [status(grpc.StatusCode.ABORTED, "STREAM_FENCED")]
    with pytest.raises(StreamFenced):
        async with Producer(channel, CLIENT_ID, "s") as producer:
            await producer.send(events(0, 5))
            with pytest.raises(StreamFenced):
                await producer.flush()
            await producer.send(events(5, 5))
    assert fake.opened == 1


async def test_invalid_events_are_named_by_their_position(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    fake.failures = [None, status(grpc.StatusCode.INVALID_ARGUMENT, "EVENTS_INVALID")]
    with pytest.raises(EventsInvalid) as caught:
        async with Producer(channel, CLIENT_ID, "s", max_batch_events=10) as producer:
            await producer.send(events(0, 30))
    error = caught.value
    assert (error.offset, error.event_errors[0].index) == (10, 2)
    assert "event 12: event_id is no UUID" in str(error)
    assert fake.streams["s"] == ids(0, 10)


async def test_a_bad_token_is_refused_when_opening(running: Running) -> None:
    async with mrm_client.channel(f"127.0.0.1:{running.port}", "wrong") as channel:
        with pytest.raises(CredentialsRefused):
            await Producer(channel, CLIENT_ID, "s").__aenter__()


@pytest.mark.parametrize("rewritten", [[], ids(0, 100)], ids=["behind", "beyond"])
async def test_a_position_that_does_not_fit_is_an_error_and_not_a_loss(
    channel: grpc.aio.Channel, fake: FakeStatistics, rewritten: list[str]
) -> None:
    with pytest.raises(PositionLost):
        async with Producer(channel, CLIENT_ID, "s") as producer:
            await producer.send(events(0, 10))
            await producer.flush()
            fake.streams["s"] = rewritten
            fake.failures = [status(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")]
            await producer.send(events(10, 10))


async def test_an_error_in_the_block_does_not_wait_for_events(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    fake.failures = [5.0]
    with pytest.raises(KeyError):
        async with asyncio.timeout(1), Producer(channel, CLIENT_ID, "s") as producer:
            await producer.send(events(0, 5))
            raise KeyError


async def test_a_closed_producer_says_so(channel: grpc.aio.Channel) -> None:
    async with Producer(channel, CLIENT_ID, "s") as producer:
        pass
    with pytest.raises(CallError, match="closed"):
        await producer.send(events(0, 1))


async def test_unavailable_without_end_keeps_the_events(channel: grpc.aio.Channel, fake: FakeStatistics) -> None:
    fake.failures = [status(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")] * 4
    async with Producer(channel, CLIENT_ID, "s", max_batch_events=10) as producer:
        await producer.send(events(0, 100))
    assert fake.streams["s"] == ids(0, 100)
    assert producer.counters.reconnects == 4
