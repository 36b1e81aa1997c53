"""Small batches that share an insert: nothing gets out of its group, and nobody pays for another's fault."""

import asyncio
import random
import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.message import DecodeError

from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.rpc.call import Call
from server.rpc.errors import InvalidRequest
from server.settings import IngestSettings
from server.statistics.append import IngestRpcs
from server.statistics.groups import FairQueue, InsertQueue, Work, _Entry
from server.statistics.wire import Batch, ingest_request_deserializer
from storage.clickhouse import events as stored_events
from storage.clickhouse.events import BatchRejected, Bounds, Group
from storage.clickhouse.pseudonyms import Salt, pseudonym
from storage.errors import StoreError
from storage.postgres import user_id_salts
from storage.scope import EVERYTHING
from tests.statistics.ingest.support import IngestWorld, Producer, Tenant, event, principal

WIDE = Bounds(1, 2**40)
SALT = Salt(3, 2**64 - 1)


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _batch(*made: event_pb2.Event) -> bytes:
    return event_pb2.EventBatch(events=made).SerializeToString()


async def _known(world: IngestWorld, count: int) -> list[Tenant]:
    """Tenants whose campaigns ClickHouse knows, each with one event."""
    tenants = [await world.tenant() for _ in range(count)]
    for tenant in tenants:
        await world.ingest(tenant, [event(tenant.campaign_ids[0])])
    return tenants


class _Inserts:
    """Watches what is inserted together; holds it back until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.shared: list[list[UUID]] = []
        self.single: list[UUID] = []
        insert, insert_groups = stored_events.insert, stored_events.insert_groups

        async def single(db: Any, client_id: UUID, *args: Any, **named: Any) -> None:
            self.single.append(client_id)
            await self.open.wait()
            await insert(db, client_id, *args, **named)

        async def shared(db: Any, groups: list[Group], *args: Any, **named: Any) -> None:
            self.shared.append([group.client_id for group in groups])
            await self.open.wait()
            await insert_groups(db, groups, *args, **named)

        monkeypatch.setattr(stored_events, "insert", single)
        monkeypatch.setattr(stored_events, "insert_groups", shared)


def _send(rpcs: IngestRpcs, tenant: Tenant, made: list[event_pb2.Event]) -> "asyncio.Task[pb.IngestEventsResponse]":
    request = pb.IngestEventsRequest(client_id=str(tenant.client_id), batch=event_pb2.EventBatch(events=made))
    call = Call("IngestEvents", "request-id", principal(EVERYTHING))
    return asyncio.create_task(rpcs.IngestEvents(ingest_request_deserializer(request.SerializeToString()), call))


async def test_small_batches_of_several_clients_share_an_insert(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = await _known(ingest_world, 4)
    inserts = _Inserts(monkeypatch)
    rpcs = ingest_world.rpcs(group_inserts=1)
    sending = []
    for number in range(20):
        tenant = tenants[number % 4]
        made = [event(tenant.campaign_ids[0], user_id=user, cost_micros=7) for user in ("u", "")]
        sending.append(_send(rpcs, tenant, [*made, event(tenant.campaign_ids[0], cost_micros=7)]))
    async with asyncio.timeout(30):
        while not inserts.single + inserts.shared:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    # The first went by itself at once; all others wait for it together.
    assert len(inserts.single) + len(inserts.shared) == 1
    inserts.open.set()
    replies = await asyncio.gather(*sending)
    assert all((reply.stored_count, reply.quarantined_count) == (3, 0) for reply in replies)
    assert [sorted(each) for each in inserts.shared] == [sorted(tenant.client_id for tenant in tenants)]
    for tenant in tenants:
        rows = await ingest_world.clickhouse.fetch(
            "SELECT user_id, count(), toString(sum(cost)) FROM campaign_events FINAL"
            " WHERE client_id = {client:UUID} AND project_id = {project:UUID} AND cost > 0 GROUP BY 1",
            {"client": tenant.client_id, "project": tenant.project_id},
        )
        alias = pseudonym(await ingest_world.salt(tenant), "u")
        assert {row[0]: row[1:] for row in rows} == {who: (5, "0.000035") for who in (alias, "", None)}


async def test_the_good_are_stored_and_the_bad_are_answered(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenants = await _known(ingest_world, 6)
    foreign, malformed, late, *good = tenants
    inserts = _Inserts(monkeypatch)
    rpcs = ingest_world.rpcs(group_inserts=1)
    first = _send(rpcs, good[0], [event(good[0].campaign_ids[0])])
    await asyncio.sleep(0.1)
    bad = {
        "foreign": _send(rpcs, foreign, [event(foreign.campaign_ids[0]), event(good[0].campaign_ids[0])]),
        "malformed": _send(rpcs, malformed, [event(malformed.campaign_ids[0], cost_micros=-1)]),
    }
    old = _send(rpcs, late, [event(late.campaign_ids[0]), event(late.campaign_ids[0], 1000.0)])
    fine = [_send(rpcs, tenant, [event(tenant.campaign_ids[0])] * 2) for tenant in good]
    await asyncio.sleep(0.1)
    inserts.open.set()
    assert [reply.stored_count for reply in await asyncio.gather(first, *fine)] == [1, 2, 2, 2]
    assert len(inserts.shared) == 1
    for name, reason in (("foreign", "UNKNOWN_CAMPAIGN"), ("malformed", "INVALID_FIELD")):
        with pytest.raises(InvalidRequest) as caught:
            await bad[name]
        assert caught.value.violations[0].reason == reason
    assert ((await old).stored_count, (await old).quarantined_count) == (1, 1)
    assert [await ingest_world.count(tenant) for tenant in tenants] == [1, 1, 2, 3, 2, 2]
    # Who had a fault does not spoil the next insert of the others.
    fine = [_send(rpcs, tenant, [event(tenant.campaign_ids[0])]) for tenant in (*good, foreign)]
    await asyncio.gather(*fine)
    assert all(foreign.client_id not in shared for shared in inserts.shared[1:])


def _escapes(mine: Tenant, other: Tenant) -> dict[str, bytes]:
    """Batches of `mine` that try to be taken for the other's; `other` is the second group."""
    good, stolen = (event(tenant.campaign_ids[0]).SerializeToString() for tenant in (mine, other))
    forged = b"\x10\x02"
    return {
        "a foreign campaign": _field(1, stolen),
        "a foreign campaign behind a good one": _field(1, good) + _field(1, stolen),
        "a scope of its own": _field(1, stolen) + forged,
        "a scope before the events": forged + _field(1, stolen),
        "a scope within the event": _field(1, stolen + forged),
        "a group within the event": _field(1, good + _field(1, _field(1, stolen) + forged)),
        "a length that swallows the scope": _field(1, good) + b"\x0a\x02",
        "a length that swallows the next group": b"\x0a" + _varint(len(stolen) + 40) + stolen,
        "a length of gigabytes": b"\x0a" + _varint(2**40) + stolen,
        "a truncated event": _field(1, stolen)[:-3],
        "an open group": _field(1, stolen) + b"\xa3\x06",
        "an unknown field behind": _field(1, stolen) + b"\x18\x02",
        "a whole second envelope": _field(1, good) + _field(1, _field(1, stolen) + forged),
    }


async def test_nothing_escapes_from_its_group_even_past_the_check_of_bytes(ingest_world: IngestWorld) -> None:
    """Straight at ClickHouse: bytes that the check would have refused, too."""
    mine, other = await _known(ingest_world, 2)
    db = ingest_world.clickhouse
    for name, batch in _escapes(mine, other).items():
        good = _batch(event(other.campaign_ids[0]))
        groups = [Group(mine.client_id, batch, SALT), Group(other.client_id, good, SALT)]
        with pytest.raises(StoreError):
            await stored_events.insert_groups(db, groups, WIDE, timeout=20)
            pytest.fail(name)
    assert [await ingest_world.count(tenant) for tenant in (mine, other)] == [1, 1]
    # An unknown campaign's client reads as the nil id, as does a client outside the list.
    for scope in (b"\x10\x00", b"\x10\x03", b"\x10" + b"\xff" * 9 + b"\x01"):
        batch = _batch(event(uuid4())) + scope
        body = stored_events.group_body(db.database, [Group(mine.client_id, batch, SALT)], WIDE, 20)
        statement = body[: body.index(b"FORMAT ProtobufList\n")] + b"FORMAT ProtobufList\n"
        forged = _field(1, batch)
        with pytest.raises(StoreError):
            await db.insert_statement(statement + _varint(len(forged)) + forged)


async def test_hostile_bytes_never_reach_a_group(ingest_world: IngestWorld) -> None:
    mine, other = await _known(ingest_world, 2)
    for name, batch in _escapes(mine, other).items():
        request = _field(1, str(mine.client_id).encode()) + _field(2, batch)
        good = asyncio.create_task(ingest_world.ingest(other, [event(other.campaign_ids[0])]))
        with pytest.raises((DecodeError, InvalidRequest)):
            await ingest_world.ingest_bytes(request)
            pytest.fail(name)
        assert (await good).stored_count == 1
    assert await ingest_world.count(mine) == 1
    assert await ingest_world.count(other) == 1 + len(_escapes(mine, other))


async def test_mutated_batches_do_nothing_to_the_group_beside_them(ingest_world: IngestWorld) -> None:
    mine, other = await _known(ingest_world, 2)
    chance = random.Random(7)
    sent = 0
    for _ in range(60):
        data = bytearray(_batch(*(event(mine.campaign_ids[0], user_id="u", attributes={"a": "b"}) for _ in range(2))))
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        request = _field(1, str(mine.client_id).encode()) + _field(2, bytes(data))
        good = [event(other.campaign_ids[0], user_id="v") for _ in range(2)]
        hostile, fine = await asyncio.gather(
            ingest_world.ingest_bytes(request), ingest_world.ingest(other, good), return_exceptions=True
        )
        assert not isinstance(fine, BaseException)
        assert isinstance(hostile, pb.IngestEventsResponse | DecodeError | InvalidRequest)
        sent += 2
    assert await ingest_world.count(other) == 1 + sent


async def test_several_streams_of_a_client_and_kills(ingest_world: IngestWorld) -> None:
    tenants = await _known(ingest_world, 4)
    rpcs = ingest_world.rpcs()

    async def produce(tenant: Tenant, stream_id: str) -> int:
        batches = [[event(tenant.campaign_ids[0], cost_micros=3700) for _ in range(20)] for _ in range(100)]
        producer = Producer(rpcs, tenant.client_id, stream_id)
        for number, made in enumerate(batches):
            producer.send(number * 20, made)
        stored = 0
        for number in range(100):
            reply = await producer.reply()
            assert not reply.HasField("error")
            assert reply.next_offset == number * 20 + 20
            stored += reply.stored_count
            await asyncio.sleep(0.01)
        await producer.close()
        return stored

    producing = [asyncio.create_task(produce(tenant, name)) for tenant in tenants for name in ("a", "b")]
    for _ in range(3):
        await asyncio.sleep(0.4)
        if not all(task.done() for task in producing):
            await ingest_world.kill_clickhouse()
    async with asyncio.timeout(60):
        assert await asyncio.gather(*producing) == [2000] * 8
    for tenant in tenants:
        rows = await ingest_world.clickhouse.fetch(
            "SELECT count(), uniqExact(event_id), toString(sum(cost)) FROM campaign_events FINAL"
            " WHERE client_id = {client:UUID} AND cost > 0",
            {"client": tenant.client_id},
        )
        assert rows == [(4000, 4000, "14.8")]


async def test_a_flood_does_not_hold_up_a_trickle(ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """In inserts, not in seconds: one slot of a tenth of a second. In order of arrival it would be some forty."""
    flood, trickle = await _known(ingest_world, 2)
    begun: list[UUID] = []

    async def insert(db: Any, client_id: UUID, *args: Any, **named: Any) -> None:
        begun.append(client_id)
        await asyncio.sleep(0.1)

    monkeypatch.setattr(stored_events, "insert", insert)
    rpcs = ingest_world.rpcs(inserts_in_flight=1, small_events=0, client_group_bytes=0)
    submit, queued = rpcs._ingestor.submit, [0]

    def noting(client_id: UUID, *args: Any) -> Any:
        if client_id == trickle.client_id:
            queued[0] = len(begun)
        return submit(client_id, *args)

    monkeypatch.setattr(rpcs._ingestor, "submit", noting)
    await _send(rpcs, trickle, [event(trickle.campaign_ids[0])])
    flooding = [_send(rpcs, flood, [event(flood.campaign_ids[0]) for _ in range(3000)]) for _ in range(40)]
    await asyncio.sleep(0.05)
    for _ in range(3):
        await _send(rpcs, trickle, [event(trickle.campaign_ids[0])])
        # One that was running, and at most what the flood may still insert in its turn.
        assert len(begun) - queued[0] <= 3
    assert not all(task.done() for task in flooding)
    await asyncio.gather(*flooding)


async def test_a_flood_leaves_room_in_the_queue(ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    flood, trickle = await _known(ingest_world, 2)
    inserts = _Inserts(monkeypatch)
    rpcs = ingest_world.rpcs(queue_bytes=40_000)
    flooding = [_send(rpcs, flood, [event(flood.campaign_ids[0]) for _ in range(50)]) for _ in range(20)]
    await asyncio.sleep(0.1)
    one = _send(rpcs, trickle, [event(trickle.campaign_ids[0])])
    await asyncio.sleep(0.1)
    inserts.open.set()
    assert (await one).stored_count == 1
    results = await asyncio.gather(*flooding, return_exceptions=True)
    refused = [getattr(result, "reason", "") for result in results if isinstance(result, BaseException)]
    assert refused
    assert set(refused) == {"INGEST_QUEUE_FULL"}
    assert len(refused) < 20


def _entry(client_id: UUID, size: int, events: int = 0, *, small: bool = False) -> _Entry:
    work = Work(client_id, Batch(b"x" * size, events), WIDE, SALT) if events else None
    return _Entry(client_id, size, asyncio.get_running_loop().create_future(), work, small)


async def test_turns_are_equal_in_bytes() -> None:
    queue, small, large = FairQueue(), uuid4(), uuid4()
    for _ in range(400):
        queue.push(_entry(small, 2**14))
        queue.push(_entry(large, 2**20))
    taken = {small: 0, large: 0}
    for _ in range(300):
        entry = queue.pop()
        assert entry is not None
        taken[entry.client_id] += entry.size
        assert abs(taken[small] - taken[large]) <= 2 * 2**20


async def test_batches_of_a_shared_insert_come_from_all_clients_in_turn() -> None:
    queue = FairQueue()
    clients = [uuid4() for _ in range(3)]
    for client_id in clients:
        for _ in range(10):
            queue.push(_entry(client_id, 100, 5, small=True))
    assert queue.small_only
    assert queue.pop(lambda entry: False) is None
    taken = queue.pop_small(30, 10_000)
    assert sorted(entry.client_id for entry in taken) == sorted(clients * 2)
    assert len(queue.pop_small(10_000, 450)) == 4
    assert len(queue) == 20


async def test_large_batches_share_an_insert_with_those_of_their_client_only() -> None:
    queue = FairQueue()
    one, other = uuid4(), uuid4()
    for client_id in (one, other, one, one, other):
        queue.push(_entry(client_id, 1000, 50))
    queue.push(_entry(one, 10, 1, small=True))
    assert not queue.small_only
    assert [(entry.client_id, entry.size) for entry in queue.pop_large(one, 120, 10_000)] == [(one, 1000)] * 2
    assert [entry.client_id for entry in queue.pop_large(one, 120, 10_000)] == [one]
    # What is small goes with the small ones of all clients.
    assert queue.pop_large(one, 120, 10_000) == []
    assert [entry.client_id for entry in queue.pop_large(other, 120, 1500)] == [other]
    assert [entry.size for entry in queue.pop_small(120, 10_000)] == [10]
    assert len(queue) == 1


async def test_large_batches_behind_running_inserts_go_together(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tenant,) = await _known(ingest_world, 1)
    inserts = _Inserts(monkeypatch)
    rpcs = ingest_world.rpcs(small_events=0)
    sending = [_send(rpcs, tenant, [event(tenant.campaign_ids[0]) for _ in range(30)]) for _ in range(6)]
    await asyncio.sleep(0.2)
    inserts.open.set()
    assert [response.stored_count for response in await asyncio.gather(*sending)] == [30] * 6
    assert len(inserts.single) == 3
    assert not inserts.shared
    # And the one that made the client known.
    assert await ingest_world.count(tenant) == 181


async def test_a_batch_that_fails_in_company_is_tried_alone(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, poison = await _known(ingest_world, 2)

    async def insert_groups(*args: Any, **named: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(stored_events, "insert_groups", insert_groups)
    rpcs = ingest_world.rpcs(group_inserts=1, group_delay=0.05)
    sending = [_send(rpcs, tenant, [event(tenant.campaign_ids[0])]) for tenant in (good, poison) * 5]
    assert [reply.stored_count for reply in await asyncio.gather(*sending)] == [1] * 10


async def test_cancelled_callers_free_their_slots(ingest_world: IngestWorld) -> None:
    [tenant] = await _known(ingest_world, 1)
    queue = InsertQueue(ingest_world.clickhouse, IngestSettings(inserts_in_flight=2))
    made = Batch(_batch(*(event(tenant.campaign_ids[0]) for _ in range(10))), 10)
    work = Work(tenant.client_id, made, WIDE, SALT)
    for alone in (True, False):
        tasks = [asyncio.create_task(queue.insert(work, alone=alone)) for _ in range(20)]
        await asyncio.sleep(0.005)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(20):
        await queue.insert(work)
        await queue.insert(work, alone=True)
    with pytest.raises(BatchRejected):
        await queue.insert(Work(uuid4(), made, WIDE, SALT))


@pytest.mark.parametrize("user_id", ["a", "1234567", "12345678", "я" * 128, "x" * 255])
async def test_pseudonyms_are_the_same_here_and_in_clickhouse(ingest_world: IngestWorld, user_id: str) -> None:
    rows = await ingest_world.clickhouse.fetch(
        "SELECT lower(hex(sipHash128ReferenceKeyed(({first:UInt64}, {second:UInt64}), {id:String})))",
        {"first": SALT.first, "second": SALT.second, "id": user_id},
    )
    assert rows == [(pseudonym(SALT, user_id),)]


async def test_user_ids_are_pseudonyms_everywhere(ingest_world: IngestWorld) -> None:
    tenants = await _known(ingest_world, 2)
    found = []
    for tenant in tenants:
        campaign = tenant.campaign_ids[0]
        late = event(campaign, time.time() + 86400, user_id="someone")
        await ingest_world.ingest(tenant, [event(campaign, user_id="someone"), late])
        await ingest_world.ingest(tenant, [event(campaign, user_id="someone")] * 3000)
        rows = await ingest_world.clickhouse.fetch(
            "SELECT DISTINCT user_id FROM campaign_events WHERE client_id = {client:UUID} AND user_id IS NOT NULL",
            {"client": tenant.client_id},
        )
        [kept] = await ingest_world.clickhouse.fetch(
            "SELECT hex(event) FROM campaign_events_quarantine FINAL WHERE client_id = {client:UUID}",
            {"client": tenant.client_id},
        )
        alias = pseudonym(await ingest_world.salt(tenant), "someone")
        assert rows == [(alias,)]
        assert event_pb2.Event.FromString(bytes.fromhex(kept[0])).user_id == alias
        found.append(alias)
    assert found[0] != found[1]


async def test_a_dropped_salt_makes_other_pseudonyms(ingest_world: IngestWorld) -> None:
    [tenant] = await _known(ingest_world, 1)
    before = await ingest_world.salt(tenant)
    assert await ingest_world.salt(tenant) == before
    assert await user_id_salts.drop_internal(ingest_world.database, tenant.client_id)
    assert not await user_id_salts.drop_internal(ingest_world.database, tenant.client_id)
    after = await ingest_world.salt(tenant)
    assert pseudonym(after, "someone") != pseudonym(before, "someone")
    assert str(after.first) not in repr(after)
