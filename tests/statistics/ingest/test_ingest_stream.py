"""AppendEvents: offsets, fencing, order of replies, back-pressure and the end of a stream."""

import asyncio
import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2

from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.rpc.errors import InvalidRequest, NotFound
from server.statistics.append import IngestRpcs
from storage.clickhouse import events as stored_events
from storage.errors import StoreUnavailable
from storage.postgres import streams
from storage.scope import EVERYTHING, Scope
from tests.statistics.ingest.support import IngestWorld, Producer, Tenant, event


def _events(tenant: Tenant, count: int, **fields: Any) -> list[event_pb2.Event]:
    return [event(tenant.campaign_ids[0], **fields) for _ in range(count)]


def _reason(reply: pb.AppendEventsResponse) -> tuple[int, str]:
    """Code and reason of an in-band error, which must say where it comes from."""
    info = error_details_pb2.ErrorInfo()
    assert reply.error.details[0].Unpack(info)
    assert info.domain == "mrm"
    return reply.error.code, info.reason


def _retry_seconds(reply: pb.AppendEventsResponse) -> float | None:
    retry = error_details_pb2.RetryInfo()
    found = any(detail.Unpack(retry) for detail in reply.error.details)
    return retry.retry_delay.ToTimedelta().total_seconds() if found else None


async def _next_offset(world: IngestWorld, tenant: Tenant, stream_id: str) -> int:
    stream = await streams.get(world.database, EVERYTHING, tenant.client_id, stream_id)
    assert stream is not None
    return stream.next_offset


async def test_batches_are_acknowledged_in_order(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    producer = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    producer.send(0)
    opened = await producer.reply()
    assert (opened.offset, opened.next_offset, opened.HasField("error")) == (0, 0, False)
    for number in range(20):
        producer.send(number * 10, _events(tenant, 10))
    for number in range(20):
        reply = await producer.reply()
        assert not reply.HasField("error")
        assert (reply.offset, reply.next_offset, reply.stored_count) == (number * 10, number * 10 + 10, 10)
    await producer.close()
    assert await ingest_world.count(tenant) == 200
    assert await _next_offset(ingest_world, tenant, "s") == 200


async def test_a_stream_goes_on_where_it_stopped(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    sent = _events(tenant, 30)
    producer = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    producer.send(0, sent[:20])
    assert (await producer.reply()).next_offset == 20
    await producer.close()
    again = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    again.send(0)
    assert (await again.reply()).next_offset == 20
    # Wholly known, overlapping, new.
    again.send(5, sent[5:15])
    again.send(15, sent[15:25])
    again.send(25, sent[25:30])
    known = await again.reply()
    assert _reason(known) == (code_pb2.ALREADY_EXISTS, "OFFSET_ALREADY_STORED")
    assert (known.offset, known.next_offset) == (5, 20)
    assert [(await again.reply()).next_offset for _ in range(2)] == [25, 30]
    await again.close()
    assert await ingest_world.count(tenant) == 30


async def test_a_gap_names_the_offset_to_go_on_from(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    producer = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    producer.send(0, _events(tenant, 10))
    producer.send(11, _events(tenant, 10))
    producer.send(21, _events(tenant, 10))
    assert (await producer.reply()).next_offset == 10
    gap = await producer.reply()
    assert _reason(gap) == (code_pb2.OUT_OF_RANGE, "OFFSET_GAP")
    assert (gap.offset, gap.next_offset) == (11, 10)
    await producer.ended()
    with pytest.raises(EOFError):
        await producer.reply()
    assert await ingest_world.count(tenant) == 10


async def test_opening_a_stream_fences_the_writer_before(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    sent = _events(tenant, 20)
    first = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    first.send(0, sent[:10])
    await first.reply()
    second = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    second.send(10)
    assert (await second.reply()).next_offset == 10
    first.send(10, sent[10:])
    fenced = await first.reply()
    assert _reason(fenced) == (code_pb2.ABORTED, "STREAM_FENCED")
    await first.ended()
    second.send(10, sent[10:])
    assert (await second.reply()).next_offset == 20
    await second.close()
    assert await ingest_world.count(tenant) == 20
    # Another client's stream of the same name, and another name, are other streams.
    other = Producer(ingest_world.rpcs(), (await ingest_world.tenant()).client_id, "s")
    other.send(0)
    assert (await other.reply()).next_offset == 0
    await other.close()


async def test_a_malformed_batch_ends_the_stream_behind_the_good_ones(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    producer = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    producer.send(0, _events(tenant, 10))
    producer.send(10, [*_events(tenant, 5), event(tenant.campaign_ids[0], cost_micros=-1), event(uuid4())])
    producer.send(17, _events(tenant, 10))
    assert (await producer.reply()).next_offset == 10
    refused = await producer.reply()
    assert _reason(refused) == (code_pb2.INVALID_ARGUMENT, "EVENTS_INVALID")
    assert (refused.offset, refused.next_offset, refused.stored_count) == (10, 10, 0)
    assert [(e.index, e.reason, e.field) for e in refused.event_errors] == [
        (5, event_pb2.EVENT_ERROR_REASON_INVALID_FIELD, "cost_micros")
    ]
    await producer.ended()
    again = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    again.send(10, [*_events(tenant, 5), event(uuid4())])
    refused = await again.reply()
    assert [(e.index, e.reason, e.field) for e in refused.event_errors] == [
        (5, event_pb2.EVENT_ERROR_REASON_UNKNOWN_CAMPAIGN, "campaign_id")
    ]
    await again.ended()
    # The third batch was on its way beside the second: its rows may be stored, but not acknowledged.
    assert await _next_offset(ingest_world, tenant, "s") == 10


async def test_quarantined_events_are_counted_in_the_reply(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    producer = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    producer.send(0, [event(tenant.campaign_ids[0]), event(tenant.campaign_ids[0], time.time() + 86400)])
    reply = await producer.reply()
    assert (reply.stored_count, reply.quarantined_count, reply.next_offset) == (1, 1, 2)
    await producer.close()


async def test_first_request_is_checked(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    cases = [(None, "s", "client_id"), (tenant.client_id, "", "stream_id"), (tenant.client_id, "a b", "stream_id")]
    for client_id, stream_id, field in cases:
        producer = Producer(ingest_world.rpcs(), client_id, stream_id)
        producer.send(0)
        with pytest.raises(InvalidRequest) as caught:
            await producer.reply()
        assert caught.value.violations[0].field == field
    for scope in (Scope(), Scope(client_ids=(uuid4(),))):
        producer = Producer(ingest_world.rpcs(), tenant.client_id, "s", scope)
        producer.send(0, _events(tenant, 1))
        with pytest.raises(NotFound):
            await producer.reply()
    assert await ingest_world.count(tenant) == 0
    assert await streams.get(ingest_world.database, EVERYTHING, tenant.client_id, "s") is None


async def test_a_call_that_sends_nothing_just_ends(ingest_world: IngestWorld) -> None:
    producer = Producer(ingest_world.rpcs(), uuid4(), "s")
    await producer.close()


async def test_later_requests_may_leave_names_out_but_not_change_them(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    producer = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    producer.send(0, _events(tenant, 1))
    producer.client_id = producer.stream_id = ""
    producer.send(1, _events(tenant, 1))
    producer.client_id = str((await ingest_world.tenant()).client_id)
    producer.send(2, _events(tenant, 1))
    assert [(await producer.reply()).next_offset for _ in range(2)] == [1, 2]
    with pytest.raises(InvalidRequest) as caught:
        await producer.reply()
    assert caught.value.violations[0].field == "client_id"


async def test_garbage_ends_the_call_behind_the_good_batches(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    producer = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    producer.send(0, _events(tenant, 10))
    producer.send_bytes(b"\xff\xff")
    assert (await producer.reply()).next_offset == 10
    with pytest.raises(DecodeError):
        await producer.reply()
    assert await _next_offset(ingest_world, tenant, "s") == 10


class _Gate:
    """Holds inserts back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.begun = 0
        real = stored_events.insert

        async def insert(*args: Any, **named: Any) -> None:
            self.begun += 1
            await self.open.wait()
            await real(*args, **named)

        monkeypatch.setattr(stored_events, "insert", insert)


async def test_reading_pauses_while_batches_wait(ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = await ingest_world.tenant()
    gate = _Gate(monkeypatch)
    producer = Producer(
        ingest_world.rpcs(stream_batches=3, small_events=0, client_group_bytes=0), tenant.client_id, "s"
    )
    for number in range(10):
        producer.send(number, _events(tenant, 1))
    await asyncio.sleep(0.3)
    assert gate.begun == 3
    assert producer.unread == 7
    gate.open.set()
    assert [(await producer.reply()).next_offset for _ in range(10)] == list(range(1, 11))
    await producer.close()


async def test_a_stream_waits_for_its_own_batches_but_is_refused_over_those_of_others(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await ingest_world.tenant()
    gate = _Gate(monkeypatch)
    rpcs = ingest_world.rpcs(queue_bytes=2500)
    greedy = Producer(rpcs, tenant.client_id, "greedy")
    for number in range(3):
        greedy.send(number * 15, _events(tenant, 15))
    await asyncio.sleep(0.3)
    assert gate.begun == 1
    other = Producer(rpcs, tenant.client_id, "other")
    other.send(0, _events(tenant, 15))
    full = await other.reply()
    assert _reason(full) == (code_pb2.RESOURCE_EXHAUSTED, "INGEST_QUEUE_FULL")
    assert _retry_seconds(full)
    assert full.next_offset == 0
    await other.ended()
    gate.open.set()
    assert [(await greedy.reply()).next_offset for _ in range(3)] == [15, 30, 45]
    await greedy.close()
    assert await ingest_world.count(tenant) == 45


async def test_draining_answers_what_was_read_and_ends(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await ingest_world.tenant()
    gate = _Gate(monkeypatch)
    producer = Producer(ingest_world.rpcs(stream_batches=2), tenant.client_id, "s")
    for number in range(4):
        producer.send(number, _events(tenant, 1))
    await asyncio.sleep(0.3)
    producer.draining.set()
    await asyncio.sleep(0.1)
    gate.open.set()
    assert [(await producer.reply()).next_offset for _ in range(2)] == [1, 2]
    ending = await producer.reply()
    assert _reason(ending) == (code_pb2.UNAVAILABLE, "SHUTTING_DOWN")
    assert ending.next_offset == 2
    await producer.ended()
    assert await _next_offset(ingest_world, tenant, "s") == 2


async def test_draining_gives_up_a_batch_whose_fate_stays_unknown(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def insert(*args: Any, **named: Any) -> None:
        raise StoreUnavailable("clickhouse")

    monkeypatch.setattr(stored_events, "insert", insert)
    tenant = await ingest_world.tenant()
    producer = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    producer.send(0, _events(tenant, 1))
    await asyncio.sleep(0.5)
    producer.draining.set()
    given_up = await producer.reply()
    assert _reason(given_up) == (code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert given_up.next_offset == 0
    await producer.ended()


async def test_postgresql_away_is_unavailable_and_nothing_is_acknowledged(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await ingest_world.tenant()
    producer = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    producer.send(0)
    await producer.reply()

    async def advance(*args: Any) -> set[tuple[UUID, str]]:
        raise StoreUnavailable("postgresql")

    with monkeypatch.context() as patch:
        patch.setattr(streams, "advance", advance)
        producer.send(0, _events(tenant, 5))
        refused = await producer.reply()
        assert _reason(refused) == (code_pb2.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert refused.next_offset == 0
        assert _retry_seconds(refused)
        await producer.ended()
    assert await _next_offset(ingest_world, tenant, "s") == 0


async def test_an_advance_whose_answer_was_lost_is_recognised(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await ingest_world.tenant()
    real = streams.advance

    async def advance(*args: Any) -> set[tuple[UUID, str]]:
        await real(*args)
        return await real(*args)

    monkeypatch.setattr(streams, "advance", advance)
    producer = Producer(ingest_world.rpcs(), tenant.client_id, "s")
    producer.send(0, _events(tenant, 5))
    assert (await producer.reply()).next_offset == 5
    await producer.close()


async def test_one_statement_moves_the_offset_for_several_batches(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await ingest_world.tenant()
    real = streams.advance
    moves: list[int] = []

    async def advance(*args: Any) -> set[tuple[UUID, str]]:
        moves.extend(move.to_offset for move in args[1])
        await asyncio.sleep(0.3)
        return await real(*args)

    monkeypatch.setattr(streams, "advance", advance)
    producer = Producer(ingest_world.rpcs(stream_batches=8), tenant.client_id, "s")
    for number in range(8):
        producer.send(number, _events(tenant, 1))
    assert [(await producer.reply()).next_offset for _ in range(8)] == list(range(1, 9))
    assert len(moves) < 8
    assert moves[-1] == 8
    await producer.close()


async def _produce(
    world: IngestWorld, rpcs: IngestRpcs, tenant: Tenant, stream_id: str, batches: list[list[event_pb2.Event]]
) -> dict[int, int]:
    """Sends all batches, connecting again after any failure; returns offset to count of what was acknowledged."""
    offsets = [sum(len(batch) for batch in batches[:n]) for n in range(len(batches))]
    acknowledged: dict[int, int] = {}
    while len(acknowledged) < len(batches):
        producer = Producer(rpcs, tenant.client_id, stream_id)
        producer.send(0)
        position = (await producer.reply()).next_offset
        for offset, batch in zip(offsets, batches, strict=True):
            if offset + len(batch) <= position:
                acknowledged.setdefault(offset, len(batch))
            else:
                producer.send(offset, batch)
        while len(acknowledged) < len(batches):
            reply = await producer.reply()
            if reply.HasField("error"):
                break
            acknowledged[reply.offset] = reply.stored_count
        await producer.close()
    return acknowledged


async def test_kill_of_clickhouse_loses_and_doubles_nothing(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant(3)
    rpcs = ingest_world.rpcs()

    def batch() -> list[event_pb2.Event]:
        return [event(campaign, cost_micros=3700) for campaign in tenant.campaign_ids for _ in range(300)]

    # A steady producer, so that kills fall into every phase of a batch.
    work = {f"s{n}": [batch() for _ in range(60)] for n in range(2)}
    producing = [
        asyncio.create_task(_produce(ingest_world, rpcs, tenant, stream_id, batches))
        for stream_id, batches in work.items()
    ]
    for _ in range(4):
        await asyncio.sleep(0.7)
        if all(task.done() for task in producing):
            break
        await ingest_world.kill_clickhouse()
    async with asyncio.timeout(100):
        acknowledged = await asyncio.gather(*producing)
    assert [sum(counts.values()) for counts in acknowledged] == [60 * 900] * 2
    rows = await ingest_world.clickhouse.fetch(
        "SELECT count(), uniqExact(event_id), toString(sum(cost)) FROM campaign_events FINAL"
        " WHERE client_id = {client:UUID}",
        {"client": tenant.client_id},
    )
    assert rows == [(120 * 900, 120 * 900, "399.6")]


async def test_a_batch_refused_late_does_not_hold_up_others(ingest_world: IngestWorld) -> None:
    good, bad = await ingest_world.tenant(), await ingest_world.tenant()
    rpcs = ingest_world.rpcs(inserts_in_flight=2)
    producers = {tenant.client_id: Producer(rpcs, tenant.client_id, "s") for tenant in (good, bad)}
    producers[bad.client_id].send(0, [event(uuid4()) for _ in range(5000)])
    for number in range(5):
        producers[good.client_id].send(number * 100, _events(good, 100))
    replies = [await producers[good.client_id].reply() for _ in range(5)]
    assert [reply.next_offset for reply in replies] == [100, 200, 300, 400, 500]
    refused = await producers[bad.client_id].reply()
    assert len(refused.event_errors) == 100
    await producers[good.client_id].close()
    await producers[bad.client_id].ended()


async def test_a_caller_who_goes_away_leaves_nothing_behind(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await ingest_world.tenant()
    _Gate(monkeypatch)
    rpcs = ingest_world.rpcs()
    producer = Producer(rpcs, tenant.client_id, "s")
    for number in range(3):
        producer.send(number, _events(tenant, 1))
    await asyncio.sleep(0.2)
    before = len(asyncio.all_tasks())
    producer.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await producer.task
    # The call itself, its reader, answerer and drain watch, and three batches.
    assert len(asyncio.all_tasks()) == before - 7
    assert rpcs._ingestor.queued_bytes == 0
