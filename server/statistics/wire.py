"""Ingest requests as they are read off the wire: the batch stays bytes.

On the wire a sub-message and `bytes` are the same, so a *view* of the request type, whose batch field is `repeated
bytes`, gives the serialized batch without touching an event. The views are made from the contract's own descriptors.
"""

from dataclasses import dataclass

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from mrm.statistics.v1 import event_pb2, statistics_service_pb2

MAX_BATCH_EVENTS = 100_000

_BATCH_FIELD = "batch"


@dataclass(frozen=True, slots=True)
class Batch:
    """A well-formed serialized `EventBatch`.

    Attributes:
        data: Its bytes.
        count: How many events it has.
    """

    data: bytes
    count: int


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """`AppendEventsRequest` with its batch unread; fields are not validated yet."""

    client_id: str
    stream_id: str
    offset: int
    batch: Batch | None


@dataclass(frozen=True, slots=True)
class IngestRequest:
    """`IngestEventsRequest` with its batch unread; fields are not validated yet."""

    client_id: str
    batch: Batch | None


def append_request_deserializer(data: bytes) -> AppendRequest:
    """Reads an `AppendEventsRequest`.

    Raises:
        DecodeError: It is not one, or its batch holds anything beside well-formed events.
    """
    view = _AppendView.FromString(data)
    return AppendRequest(view.client_id, view.stream_id, view.offset, _batch(view.batch))  # type: ignore[attr-defined]


def ingest_request_deserializer(data: bytes) -> IngestRequest:
    """Reads an `IngestEventsRequest`; raises as `append_request_deserializer`."""
    view = _IngestView.FromString(data)
    return IngestRequest(view.client_id, _batch(view.batch))  # type: ignore[attr-defined]


def _batch(parts: "list[bytes]") -> Batch | None:
    if not parts:
        return None
    # Several occurrences of a sub-message merge; for repeated fields that is to follow one another.
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    parsed = _BatchView.FromString(data)
    # ClickHouse fails on any field beside the list.
    if len(UnknownFieldSet(parsed)):
        raise DecodeError("unknown fields in the batch")
    count = len(parsed.events)  # type: ignore[attr-defined]
    if count > MAX_BATCH_EVENTS:
        raise DecodeError("too many events in the batch")
    return Batch(data, count)


def _request_view(real: Descriptor) -> type[Message]:
    """The message class like `real` whose batch is read as bytes."""
    message = descriptor_pb2.DescriptorProto()
    real.CopyToProto(message)
    _strip(message)
    for field in message.field:
        if field.name == _BATCH_FIELD:
            field.ClearField("type_name")
            field.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
            field.label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    file = descriptor_pb2.FileDescriptorProto(name=f"view/{real.name}.proto", package="view", syntax="proto3")
    file.message_type.add().CopyFrom(message)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"view.{real.name}"))


def _batch_view() -> type[Message]:
    """`EventBatch` whose attributes are lists of entries, which are the same bytes.

    It accepts and refuses exactly what the real type does, but a map in every event would take twice the time.
    """
    file = descriptor_pb2.FileDescriptorProto()
    event_pb2.DESCRIPTOR.CopyToProto(file)
    file.dependency[:] = [timestamp_pb2.DESCRIPTOR.name]
    for message in file.message_type:
        _strip(message)
    pool = descriptor_pool.DescriptorPool()
    for part in (timestamp_pb2.DESCRIPTOR.serialized_pb, file.SerializeToString()):
        pool.AddSerializedFile(part)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(event_pb2.EventBatch.DESCRIPTOR.full_name))


def _strip(message: descriptor_pb2.DescriptorProto) -> None:
    """Takes away all options: they mean nothing here, need imports, and one of them makes an entry a map's."""
    message.ClearField("options")
    for field in message.field:
        field.ClearField("options")
    for nested in message.nested_type:
        _strip(nested)


_AppendView = _request_view(statistics_service_pb2.AppendEventsRequest.DESCRIPTOR)
_IngestView = _request_view(statistics_service_pb2.IngestEventsRequest.DESCRIPTOR)
_BatchView = _batch_view()
