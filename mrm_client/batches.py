"""Batches of serialized events that stay below the server's message limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mrm.statistics.v1 import event_pb2

MAX_BATCH_BYTES = 3_670_016
"""3.5 MiB: with the rest of its request a batch stays below gRPC's 4 MiB."""
MAX_BATCH_EVENTS = 20_000
"""More gain nothing."""

# Field 1 of EventBatch, length-delimited.
_EVENT_TAG = b"\x0a"


@dataclass(slots=True)
class BatchBuilder:
    """Collects events as the bytes of an `EventBatch`, so that its size is known and nothing is serialized twice.

    Attributes:
        count: Events so far.
        size: Bytes so far.
    """

    max_bytes: int = MAX_BATCH_BYTES
    max_events: int = MAX_BATCH_EVENTS
    count: int = 0
    size: int = 0
    _parts: list[bytes] = field(default_factory=list)

    def add(self, event: event_pb2.Event) -> bool:
        """Adds an event; returns False, and adds nothing, if the batch is full.

        Raises:
            ValueError: The event alone is larger than a batch may be.
        """
        data = event.SerializeToString()
        head = _EVENT_TAG + varint(len(data))
        size = len(head) + len(data)
        if size > self.max_bytes:
            raise ValueError(f"an event of {len(data)} bytes fits no batch")
        if not self._reserve(size, 1):
            return False
        self._parts += (head, data)
        return True

    def add_batch(self, batch: event_pb2.EventBatch) -> bool:
        """Adds all events of a batch; returns False, and adds nothing, if they do not fit."""
        if not self._reserve(batch.ByteSize(), len(batch.events)):
            return False
        self._parts.append(batch.SerializeToString())
        return True

    def take(self) -> bytes:
        """Returns the collected batch and begins an empty one."""
        data = b"".join(self._parts)
        self._parts, self.count, self.size = [], 0, 0
        return data

    def _reserve(self, size: int, count: int) -> bool:
        if self.size + size > self.max_bytes or self.count + count > self.max_events:
            return False
        self.size += size
        self.count += count
        return True


def batches(
    events: Iterable[event_pb2.Event], *, max_bytes: int = MAX_BATCH_BYTES, max_events: int = MAX_BATCH_EVENTS
) -> Iterator[event_pb2.EventBatch]:
    """Cuts events into batches that the server takes, for `IngestEvents`; `Producer` does this by itself.

    Raises:
        ValueError: One event alone is larger than a batch may be.
    """
    builder = BatchBuilder(max_bytes, max_events)
    for event in events:
        if not builder.add(event):
            yield event_pb2.EventBatch.FromString(builder.take())
            builder.add(event)
    if builder.count:
        yield event_pb2.EventBatch.FromString(builder.take())


def varint(number: int) -> bytes:
    """A number from zero up as Protocol Buffers write it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
