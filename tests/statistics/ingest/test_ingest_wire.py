"""The views of ingest requests read what the real types read."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.statistics import wire

_TEXT = st.text(max_size=5)
_EVENTS = st.builds(
    event_pb2.Event,
    event_id=_TEXT,
    campaign_id=_TEXT,
    event_type=st.integers(-5, 5),
    user_id=st.none() | _TEXT,
    cost_micros=st.integers(-(2**63), 2**63 - 1),
    conversions_micros=st.none() | st.integers(0, 5),
    attributes=st.dictionaries(_TEXT, _TEXT, max_size=3),
)
_BATCHES = st.lists(_EVENTS, max_size=4).map(lambda events: event_pb2.EventBatch(events=events))


@given(_TEXT, _TEXT, st.integers(-(2**63), 2**63 - 1), st.none() | _BATCHES)
def test_requests_are_read_as_by_their_own_type(
    client_id: str, stream_id: str, offset: int, batch: event_pb2.EventBatch | None
) -> None:
    append = pb.AppendEventsRequest(client_id=client_id, stream_id=stream_id, offset=offset, batch=batch)
    read = wire.append_request_deserializer(append.SerializeToString())
    assert (read.client_id, read.stream_id, read.offset) == (client_id, stream_id, offset)
    ingest = pb.IngestEventsRequest(client_id=client_id, batch=batch)
    also = wire.ingest_request_deserializer(ingest.SerializeToString())
    assert also.client_id == client_id
    for found in (read.batch, also.batch):
        assert (found is None) == (batch is None)
        if found is not None and batch is not None:
            assert event_pb2.EventBatch.FromString(found.data) == batch
            assert found.count == len(batch.events)


@settings(max_examples=1000)
@given(_BATCHES, st.data())
def test_batches_are_accepted_exactly_if_the_real_type_accepts_them(
    batch: event_pb2.EventBatch, data: st.DataObject
) -> None:
    mutated = bytearray(batch.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        if mutated:
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        real: event_pb2.EventBatch | None = event_pb2.EventBatch.FromString(bytes(mutated))
    except DecodeError:
        real = None
    try:
        found = wire._batch([bytes(mutated)])
    except DecodeError:
        found = None
    only_events = event_pb2.EventBatch()
    if real is not None:
        only_events.events.extend(real.events)
    # Beside malformed bytes, fields beside the events are refused too.
    if real is None or real.ByteSize() != only_events.ByteSize():
        assert found is None
    else:
        assert found is not None
        assert found.count == len(real.events)


@pytest.mark.parametrize("read", [wire.append_request_deserializer, wire.ingest_request_deserializer])
def test_garbage_raises(read: object) -> None:
    assert callable(read)
    for garbage in (b"\xff", b"\x0a\xff\xff", b"\x0a\x02\xff\xfe"):
        with pytest.raises(DecodeError):
            read(garbage)
