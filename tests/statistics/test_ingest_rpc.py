"""Ingest as a producer meets it: over the network, with rights."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.rpc import code_pb2

from mrm.common.v1 import options_pb2
from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.app import Application
from tests.conftest import Caller, Failing, World, impression

METHOD = "/mrm.statistics.v1.StatisticsService/AppendEvents"


def _request(client_id: str, offset: int, campaign_id: str, count: int) -> pb.AppendEventsRequest:
    batch = event_pb2.EventBatch(events=[impression(campaign_id) for _ in range(count)])
    return pb.AppendEventsRequest(client_id=client_id, stream_id="s", offset=offset, batch=batch)


async def _read(call: Any) -> pb.AppendEventsResponse:
    reply = await call.read()
    assert isinstance(reply, pb.AppendEventsResponse)
    return reply


async def test_a_stream_and_its_continuation(world: World) -> None:
    client_id, (campaign_id, *_) = await world.tenant()
    producer = await world.key([client_id])
    for begin in (0, 50):
        call = producer.statistics.AppendEvents(metadata=producer.auth)
        for offset in range(begin, begin + 50, 10):
            await call.write(_request(client_id, offset, campaign_id, 10))
        await call.done_writing()
        replies = [reply async for reply in call]
        assert [reply.next_offset for reply in replies] == list(range(begin + 10, begin + 60, 10))
        assert not any(reply.HasField("error") for reply in replies)
        assert await call.code() == grpc.StatusCode.OK


async def test_a_producer_that_vanishes_resumes(world: World) -> None:
    client_id, (campaign_id, *_) = await world.tenant()
    producer = await world.key([client_id])
    call = producer.statistics.AppendEvents(metadata=producer.auth)
    await call.write(_request(client_id, 0, campaign_id, 10))
    assert (await _read(call)).next_offset == 10
    await call.write(_request(client_id, 10, campaign_id, 10))
    call.cancel()
    again = producer.statistics.AppendEvents(metadata=producer.auth)
    await again.write(pb.AppendEventsRequest(client_id=client_id, stream_id="s"))
    position = (await _read(again)).next_offset
    assert position in (10, 20)
    await again.write(_request(client_id, position, campaign_id, 5))
    assert (await _read(again)).next_offset == position + 5
    await again.done_writing()


async def test_rights_and_scope(world: World, failing: Failing) -> None:
    client_id, (campaign_id, *_) = await world.tenant()
    other_id, _ = await world.tenant()
    event = impression(campaign_id)
    request = pb.IngestEventsRequest(client_id=client_id, batch=event_pb2.EventBatch(events=[event]))
    stranger = await world.key([other_id])
    reader = await world.key([client_id], options_pb2.PERMISSION_STATISTICS_READ)
    expected = [
        (stranger, grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"),
        (reader, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING"),
        (world.caller(), grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING"),
    ]
    for caller, code, reason in expected:
        unary = await failing(caller.statistics.IngestEvents(request, metadata=caller.auth))
        assert (unary.code, unary.reason) == (code, reason)
        streamed = await failing(_append(caller, _request(client_id, 0, campaign_id, 1)))
        assert (streamed.code, streamed.reason) == (code, reason)
    producer = await world.key([client_id])
    assert (await producer.statistics.IngestEvents(request, metadata=producer.auth)).stored_count == 1
    # A campaign of another client, by a producer of both.
    both = await world.key([client_id, other_id])
    request.client_id = other_id
    refused = await failing(both.statistics.IngestEvents(request, metadata=both.auth))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "EVENTS_INVALID")
    assert refused.fields == {"batch.events[0].campaign_id": "UNKNOWN_CAMPAIGN"}


async def _append(caller: Caller, request: pb.AppendEventsRequest) -> list[pb.AppendEventsResponse]:
    """Sends one request and returns all replies."""

    async def requests() -> AsyncIterator[pb.AppendEventsRequest]:
        yield request

    return [reply async for reply in caller.statistics.AppendEvents(requests(), metadata=caller.auth)]


async def test_malformed_events_are_named(world: World, failing: Failing) -> None:
    client_id, (campaign_id, *_) = await world.tenant()
    producer = await world.key([client_id])
    request = _request(client_id, 0, campaign_id, 3)
    request.batch.events[1].cost_micros = -1
    call = producer.statistics.AppendEvents(metadata=producer.auth)
    await call.write(request)
    reply = await _read(call)
    assert reply.error.code == code_pb2.INVALID_ARGUMENT
    assert [(error.index, error.field) for error in reply.event_errors] == [(1, "cost_micros")]
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK
    unary = pb.IngestEventsRequest(client_id=client_id, batch=request.batch)
    refused = await failing(producer.statistics.IngestEvents(unary, metadata=producer.auth))
    assert refused.fields == {"batch.events[1].cost_micros": "INVALID_FIELD"}


async def test_bytes_that_are_no_request(world: World, failing: Failing) -> None:
    client_id, (campaign_id, *_) = await world.tenant()
    producer = await world.key([client_id])
    append: Any = world.channel.stream_stream(METHOD, response_deserializer=pb.AppendEventsResponse.FromString)

    async def requests() -> AsyncIterator[bytes]:
        yield _request(client_id, 0, campaign_id, 3).SerializeToString()
        yield b"\xff\xff\xff"

    call = append(requests(), metadata=producer.auth)
    reply = await _read(call)
    assert reply.next_offset == 3
    failure = await failing(call.read())
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_draining_ends_an_idle_stream_with_the_offset_to_resume_from(world: World) -> None:
    client_id, (campaign_id, *_) = await world.tenant()
    producer = await world.key([client_id])
    application = Application(world.settings)
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        caller = Caller(channel, producer.token)
        call = caller.statistics.AppendEvents(metadata=caller.auth)
        await call.write(_request(client_id, 0, campaign_id, 3))
        assert (await _read(call)).next_offset == 3
        stopping = asyncio.create_task(application.stop())
        last = await _read(call)
        assert (last.error.code, last.next_offset) == (code_pb2.UNAVAILABLE, 3)
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
        await stopping


async def test_another_producer_takes_a_stream_over(world: World) -> None:
    client_id, (campaign_id, *_) = await world.tenant()
    producer = await world.key([client_id])
    first, second = (producer.statistics.AppendEvents(metadata=producer.auth) for _ in range(2))
    for call in (first, second):
        await call.write(pb.AppendEventsRequest(client_id=client_id, stream_id="s"))
        await call.read()
    await first.write(_request(client_id, 0, campaign_id, 3))
    reply = await _read(first)
    assert reply.error.code == code_pb2.ABORTED
    second.cancel()
