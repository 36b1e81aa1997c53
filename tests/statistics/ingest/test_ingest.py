"""IngestEvents: what is stored, what is refused, and with which words."""

import asyncio
import time
from datetime import timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from google.protobuf.message import DecodeError

from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.rpc.call import Call
from server.rpc.errors import DomainError, InvalidRequest, NotFound, Unavailable
from server.statistics import append
from server.statistics.ingest import RawFloor
from server.statistics.wire import ingest_request_deserializer
from storage.clickhouse.pseudonyms import pseudonym
from storage.scope import EVERYTHING, Scope
from tests.statistics.ingest.support import IngestWorld, Tenant, event, principal

CLICK = event_pb2.EVENT_TYPE_CLICK
CONVERSION = event_pb2.EVENT_TYPE_CONVERSION


async def test_every_column_is_exact(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    moment = float(int(time.time()) - 60)
    sent = [
        event(tenant.campaign_ids[0], moment + 0.123456, user_id="", cost_micros=3_700, attributes={"región": "мск"}),
        event(tenant.campaign_ids[0], moment, event_type=CLICK, cost_micros=10**15),
        event(tenant.campaign_ids[0], moment, event_type=CONVERSION, revenue_micros=1),
        event(tenant.campaign_ids[0], moment, event_type=CONVERSION, conversions_micros=400_000, user_id="u"),
        event(tenant.campaign_ids[0], moment, event_type=CONVERSION, conversions_micros=0),
    ]
    reply = await ingest_world.ingest(tenant, sent)
    assert (reply.stored_count, reply.quarantined_count) == (5, 0)
    rows = await ingest_world.clickhouse.fetch(
        "SELECT event_id, campaign_id, project_id, platform, toString(event_type), toUnixTimestamp64Micro(event_time),"
        " user_id, cost, revenue, conversions, currency, attributes FROM campaign_events FINAL"
        " WHERE client_id = {client:UUID}",
        {"client": tenant.client_id},
    )
    stored = {row[0]: row[1:] for row in rows}
    alias = pseudonym(await ingest_world.salt(tenant), "u")
    common = (tenant.campaign_ids[0], tenant.project_id, "vk_ads")
    micros = int(moment) * 1_000_000
    expected = [
        ("impression", micros + 123_456, "", Decimal("0.0037"), Decimal(0), Decimal(0), "RUB", {"región": "мск"}),
        ("click", micros, None, Decimal(10**9), Decimal(0), Decimal(0), "RUB", {}),
        ("conversion", micros, None, Decimal(0), Decimal("0.000001"), Decimal(1), "RUB", {}),
        ("conversion", micros, alias, Decimal(0), Decimal(0), Decimal("0.4"), "RUB", {}),
        ("conversion", micros, None, Decimal(0), Decimal(0), Decimal(0), "RUB", {}),
    ]
    for made, wanted in zip(sent, expected, strict=True):
        assert stored[UUID(made.event_id)] == common + wanted


async def test_small_costs_sum_exactly(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    sent = [event(tenant.campaign_ids[0], cost_micros=3_700) for _ in range(100_000)]
    for start in range(0, len(sent), 20_000):
        await ingest_world.ingest(tenant, sent[start : start + 20_000])
    rows = await ingest_world.clickhouse.fetch(
        "SELECT sum(cost) FROM campaign_events FINAL WHERE client_id = {client:UUID}", {"client": tenant.client_id}
    )
    assert rows[0][0] == Decimal("370")


async def test_an_event_counts_once_however_often_it_comes(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    sent = [event(tenant.campaign_ids[0]) for _ in range(200)]
    for batch in (sent, sent, sent[50:150], sent[150:] + sent[:20], [sent[0], sent[0]]):
        await ingest_world.ingest(tenant, batch)
    assert await ingest_world.count(tenant) == 200
    await ingest_world.clickhouse.execute("OPTIMIZE TABLE campaign_events FINAL")
    assert await ingest_world.count(tenant) == 200


async def test_repeats_within_one_insert_count_once(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    # A month of its own, so that the insert's one part is all that FINAL has to look at.
    once = event(tenant.campaign_ids[0], time.time() - 200 * 86400, cost_micros=5)
    await ingest_world.ingest(tenant, [once] * 10)
    rows = await ingest_world.clickhouse.fetch(
        "SELECT count(), toString(sum(cost)) FROM campaign_events FINAL WHERE client_id = {client:UUID}",
        {"client": tenant.client_id},
    )
    assert rows == [(1, "0.000005")]


async def test_an_event_with_another_time_is_another_event(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    first = event(tenant.campaign_ids[0], time.time() - 5)
    second = event_pb2.Event()
    second.CopyFrom(first)
    second.event_time.nanos = (first.event_time.nanos + 1000) % 10**9
    await ingest_world.ingest(tenant, [first, second])
    assert await ingest_world.count(tenant) == 2


async def test_rows_mark_their_slices(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    await ingest_world.ingest(tenant, [event(tenant.campaign_ids[0], 900 * (int(time.time()) // 900 - 3) + 899.9)])
    rows = await ingest_world.clickhouse.fetch(
        "SELECT campaign_id, toUnixTimestamp(slice_start) % 900 FROM dirty_slices WHERE client_id = {client:UUID}",
        {"client": tenant.client_id},
    )
    assert rows == [(tenant.campaign_ids[0], 0)]


def _broken(campaign_id: UUID) -> dict[str, event_pb2.Event]:
    absent = event(campaign_id)
    absent.ClearField("event_time")
    bad_nanos, year_zero = event(campaign_id), event(campaign_id)
    bad_nanos.event_time.nanos = -1
    year_zero.event_time.seconds = 2**62
    return {
        "event_id": event(campaign_id, event_id="not-a-uuid"),
        "event_id ": event(campaign_id, event_id=uuid4().hex),
        "event_id  ": event(campaign_id, event_id="00000000-0000-0000-0000-000000000000"),
        "event_id   ": event(campaign_id, event_id=""),
        "campaign_id": event("00000000-0000-0000-0000-000000000000"),
        "event_type": event(campaign_id, event_type=77),
        "event_type ": event(campaign_id, event_type=0),
        "event_type  ": event(campaign_id, event_type=257),
        "event_time": absent,
        "event_time ": bad_nanos,
        "event_time  ": year_zero,
        "cost_micros": event(campaign_id, cost_micros=-1),
        "cost_micros ": event(campaign_id, cost_micros=10**15 + 1),
        "revenue_micros": event(campaign_id, revenue_micros=-1),
        "conversions_micros": event(campaign_id, event_type=CONVERSION, conversions_micros=-1),
        "": event(campaign_id, conversions_micros=0),
        "user_id": event(campaign_id, user_id="я" * 129),
        "attributes": event(campaign_id, attributes={str(n): "" for n in range(33)}),
        "attributes[]": event(campaign_id, attributes={"": "x"}),
        "attributes[k]": event(campaign_id, attributes={"k": "я" * 513}),
    }


async def test_one_malformed_event_refuses_the_batch_and_is_named(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    for path, broken in _broken(tenant.campaign_ids[0]).items():
        good = [event(tenant.campaign_ids[0]) for _ in range(3)]
        with pytest.raises(InvalidRequest) as caught:
            await ingest_world.ingest(tenant, [*good, broken])
        assert caught.value.reason == "EVENTS_INVALID"
        named = {violation.field.split("[", 2)[1].split("]")[0] for violation in caught.value.violations}
        assert named == {"3"}, path
        assert caught.value.violations[0].field == f"batch.events[3].{path.strip()}".rstrip("."), path
        assert caught.value.violations[0].reason == "INVALID_FIELD"
    assert await ingest_world.count(tenant) == 0


async def test_limits_themselves_are_accepted(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    campaign = tenant.campaign_ids[0]
    wide = {f"{n:02}" + "я" * 62: "ж" * 512 for n in range(32)}
    sent = [
        event(campaign, user_id="я" * 128, attributes=wide, cost_micros=10**15, revenue_micros=10**15),
        event(campaign, event_type=CONVERSION, conversions_micros=10**12, event_id=str(uuid4()).upper()),
    ]
    assert (await ingest_world.ingest(tenant, sent)).stored_count == 2


async def test_errors_of_a_batch_are_capped(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    with pytest.raises(InvalidRequest) as caught:
        await ingest_world.ingest(tenant, [event(tenant.campaign_ids[0], cost_micros=-1) for _ in range(3000)])
    assert len(caught.value.violations) == 100


async def test_campaigns_of_others_and_of_nobody_are_alike(ingest_world: IngestWorld) -> None:
    tenant, other = await ingest_world.tenant(), await ingest_world.tenant()
    await ingest_world.ingest(other, [event(other.campaign_ids[0])])
    faults = []
    for campaign_id in (other.campaign_ids[0], uuid4()):
        with pytest.raises(InvalidRequest) as caught:
            await ingest_world.ingest(tenant, [event(tenant.campaign_ids[0]), event(campaign_id)])
        faults.append([(v.field, v.reason, v.description) for v in caught.value.violations])
    assert faults[0] == faults[1]
    assert faults[0][0][:2] == ("batch.events[1].campaign_id", "UNKNOWN_CAMPAIGN")
    assert await ingest_world.count(tenant) == 0
    assert await ingest_world.count(other) == 1


async def test_a_campaign_made_just_now_is_found(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    for _ in range(3):
        campaign_id = await ingest_world.campaign(tenant)
        assert (await ingest_world.ingest(tenant, [event(campaign_id)])).stored_count == 1


async def test_many_batches_with_new_campaigns_share_reloads(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant(20)
    replies = await asyncio.gather(
        *(ingest_world.ingest(tenant, [event(id_) for id_ in tenant.campaign_ids]) for _ in range(10))
    )
    assert [reply.stored_count for reply in replies] == [20] * 10
    rows = await ingest_world.clickhouse.fetch(
        "SELECT uniqExact(version) FROM campaigns_dim WHERE client_id = {client:UUID}", {"client": tenant.client_id}
    )
    assert rows == [(1,)]


async def test_events_out_of_bounds_are_put_aside_and_counted(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    campaign, now = tenant.campaign_ids[0], time.time()
    late = [event(campaign, now - 400 * 86400), event(campaign, now + 3600), event(campaign, 1.0)]
    good = [event(campaign, now - 300 * 86400), event(campaign, now + 300), event(campaign)]
    for _ in range(2):
        reply = await ingest_world.ingest(tenant, [late[0], good[0], late[1], good[1], late[2], good[2]])
        assert (reply.stored_count, reply.quarantined_count) == (3, 3)
    assert await ingest_world.count(tenant) == 3
    assert await ingest_world.count(tenant, "campaign_events_quarantine") == 3
    rows = await ingest_world.clickhouse.fetch(
        "SELECT event_id, toString(reason), hex(event) FROM campaign_events_quarantine FINAL"
        " WHERE client_id = {client:UUID}",
        {"client": tenant.client_id},
    )
    kept = {str(row[0]): (row[1], event_pb2.Event.FromString(bytes.fromhex(row[2]))) for row in rows}
    for made, reason in zip(late, ("too_old", "in_future", "too_old"), strict=True):
        assert kept[made.event_id] == (reason, made)


async def test_a_hundred_months_in_one_batch(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    campaign, now = tenant.campaign_ids[0], time.time()
    sent = [event(campaign, now - month * 30.5 * 86400) for month in range(120)]
    reply = await ingest_world.ingest(tenant, sent)
    assert reply.stored_count + reply.quarantined_count == 120
    assert 11 <= reply.stored_count <= 13
    other = await ingest_world.tenant()
    sent = [event(other.campaign_ids[0], now - month * 30.5 * 86400) for month in range(120)]
    reply = await ingest_world.ingest(other, sent, max_event_age=timedelta(days=5000))
    assert (reply.stored_count, reply.quarantined_count) == (120, 0)


async def test_fields_from_the_future_are_skipped(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    plain, grouped = (event(tenant.campaign_ids[0]).SerializeToString() for _ in range(2))
    # A varint and a string that Event does not know, and a group, which ClickHouse cannot skip by itself.
    events = [plain + b"\xa8\x06\x01\xb2\x06\x03abc", grouped + b"\xa3\x06\x08\x01\xa4\x06"]
    batch = b"".join(_field(1, item) for item in events)
    reply = await ingest_world.ingest_bytes(_field(1, str(tenant.client_id).encode()) + _field(2, batch))
    assert reply.stored_count == 2
    assert await ingest_world.count(tenant) == 2


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


async def test_bytes_that_are_no_batch_never_reach_clickhouse(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    good = event(tenant.campaign_ids[0]).SerializeToString()
    head = _field(1, str(tenant.client_id).encode())
    hostile = {
        "truncated": _field(1, good)[:-3],
        "length beyond the end": b"\x0a" + _varint(len(good) + 1000) + good,
        "length of gigabytes": b"\x0a" + _varint(2**40) + good,
        "bad UTF-8": _field(1, good + _field(5, b"\xff\xfe")),
        "field beside the events": _field(1, good) + b"\x10\x01",
        "list of another type": _field(1, good) + b"\x08\x05",
        "unbalanced group": _field(1, good + b"\xa3\x06"),
        "field number zero": _field(1, good + b"\x00\x05"),
        "too many": b"\x0a\x00" * 100_001,
    }
    for batch in hostile.values():
        with pytest.raises(DecodeError):
            await ingest_world.ingest_bytes(head + _field(2, batch))
    assert await ingest_world.count(tenant) == 0


async def test_a_batch_in_two_parts_is_one(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    parts = [_field(2, _field(1, event(tenant.campaign_ids[0]).SerializeToString())) for _ in range(2)]
    reply = await ingest_world.ingest_bytes(parts[0] + _field(1, str(tenant.client_id).encode()) + parts[1])
    assert reply.stored_count == 2
    assert await ingest_world.count(tenant) == 2


async def test_requests_are_validated_and_scoped(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    request = pb.IngestEventsRequest(client_id="x", batch=event_pb2.EventBatch(events=[event(tenant.campaign_ids[0])]))
    with pytest.raises(InvalidRequest) as caught:
        await ingest_world.ingest_bytes(request.SerializeToString())
    assert caught.value.violations[0].field == "client_id"
    request.client_id = str(tenant.client_id)
    for scope in (Scope(), Scope(client_ids=(uuid4(),))):
        with pytest.raises(NotFound):
            await ingest_world.ingest_bytes(request.SerializeToString(), scope)
    for empty in (pb.IngestEventsRequest(), pb.IngestEventsRequest(batch=event_pb2.EventBatch())):
        empty.client_id = str(tenant.client_id)
        with pytest.raises(InvalidRequest):
            await ingest_world.ingest_bytes(empty.SerializeToString())
    await ingest_world.ingest_bytes(request.SerializeToString(), Scope(client_ids=(tenant.client_id,)))
    assert await ingest_world.count(tenant) == 1


async def _throwing_view(world: IngestWorld, tenant: Tenant, message: str) -> str:
    """A view that fails for a tenant's rows, after they have been written."""
    name = f"throwing_{uuid4().hex}"
    await world.clickhouse.execute(f"CREATE TABLE {name} (x UInt8) ENGINE = Null")
    await world.clickhouse.execute(
        f"CREATE MATERIALIZED VIEW {name}_view TO {name} AS SELECT throwIf(client_id = toUUID('{tenant.client_id}'),"
        f" '{message}') AS x FROM campaign_events"
    )
    return name


@pytest.mark.parametrize("message", ["broken", "MRM_REJECT:value"])
async def test_rows_behind_which_a_view_fails_are_sent_until_known(ingest_world: IngestWorld, message: str) -> None:
    tenant = await ingest_world.tenant()
    name = await _throwing_view(ingest_world, tenant, message)
    try:
        sending = asyncio.create_task(ingest_world.ingest(tenant, [event(tenant.campaign_ids[0])]))
        await asyncio.sleep(1.0)
        assert not sending.done()
    finally:
        await ingest_world.clickhouse.execute(f"DROP VIEW {name}_view")
        await ingest_world.clickhouse.execute(f"DROP TABLE {name}")
    assert (await sending).stored_count == 1
    assert await ingest_world.count(tenant) == 1


async def test_the_queue_is_bounded(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    rpcs = ingest_world.rpcs(queue_bytes=1000, inserts_in_flight=1)

    async def send() -> object:
        events = [event(tenant.campaign_ids[0]) for _ in range(100)]
        request = pb.IngestEventsRequest(client_id=str(tenant.client_id), batch=event_pb2.EventBatch(events=events))
        call = Call("IngestEvents", "r", principal(EVERYTHING))
        return await rpcs.IngestEvents(ingest_request_deserializer(request.SerializeToString()), call)

    results = await asyncio.gather(*(send() for _ in range(5)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, DomainError)]
    assert len(refused) == 4
    assert all(error.reason == "INGEST_QUEUE_FULL" and error.retry_after for error in refused)
    assert await ingest_world.count(tenant) == 100
    await send()


async def test_raw_floor_is_a_bound(ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = await ingest_world.tenant()
    now = time.time()

    async def seconds(self: RawFloor) -> int:
        return int(now) - 100

    monkeypatch.setattr(RawFloor, "seconds", seconds)
    sent = [event(tenant.campaign_ids[0], now - 150), event(tenant.campaign_ids[0], now - 50)]
    reply = await ingest_world.ingest(tenant, sent)
    assert (reply.stored_count, reply.quarantined_count) == (1, 1)


async def test_unavailable_once_patience_is_over(ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append, "_PATIENCE_SECONDS", 1.0)
    tenant = await ingest_world.tenant()
    name = await _throwing_view(ingest_world, tenant, "broken")
    try:
        with pytest.raises(Unavailable) as caught:
            await ingest_world.ingest(tenant, [event(tenant.campaign_ids[0])])
        assert caught.value.retry_after
    finally:
        await ingest_world.clickhouse.execute(f"DROP VIEW {name}_view")
        await ingest_world.clickhouse.execute(f"DROP TABLE {name}")
