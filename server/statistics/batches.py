"""What is wrong with a refused batch, and what of it can be stored: the only place that reads events one by one."""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from mrm.statistics.v1 import event_pb2
from server.rpc import validation
from storage.clickhouse.events import Bounds, Quarantined
from storage.clickhouse.pseudonyms import Salt, pseudonym

MAX_ERRORS = 100

_EVENTS_A_SLICE = 500
# The years 1 to 9999, as google.protobuf.Timestamp defines itself.
_SECONDS_MIN = -62_135_596_800
SECONDS_MAX = 253_402_300_799
"""Last second that a timestamp of the contract holds."""
_NANOS_MAX = 999_999_999


class BatchMalformed(Exception):
    """Events of a batch break the contract; nothing of the batch is stored.

    Attributes:
        errors: The faults, the first `MAX_ERRORS` of them.
    """

    def __init__(self, errors: list[event_pb2.EventError]) -> None:
        super().__init__("events are malformed")
        self.errors = errors


@dataclass(slots=True)
class Sorted:
    """A batch taken apart by the times of its events.

    Attributes:
        accepted: Serialized batch of those within bounds.
        accepted_count: How many those are.
        quarantined: The others.
    """

    accepted: bytes = b""
    accepted_count: int = 0
    quarantined: list[Quarantined] = field(default_factory=list)


async def decode(data: bytes) -> event_pb2.EventBatch:
    """Reads a batch and makes sure that every event keeps the rules of its type.

    Raises:
        BatchMalformed: Some event does not.
    """
    batch = event_pb2.EventBatch.FromString(data)
    errors: list[event_pb2.EventError] = []
    for start in range(0, len(batch.events), _EVENTS_A_SLICE):
        for index in range(start, min(start + _EVENTS_A_SLICE, len(batch.events))):
            errors.extend(_faults(index, batch.events[index]))
        if len(errors) >= MAX_ERRORS:
            break
        # Other calls get their turn between the slices.
        await asyncio.sleep(0)
    _refuse(errors)
    return batch


def campaign_ids(batch: event_pb2.EventBatch) -> set[UUID]:
    """Campaigns that a valid batch names."""
    return {UUID(text) for text in {event.campaign_id for event in batch.events}}


def check_campaigns(batch: event_pb2.EventBatch, client_id: UUID, clients: Mapping[UUID, UUID]) -> None:
    """Makes sure that every campaign belongs to the client.

    Args:
        batch: A valid batch.
        client_id: The client.
        clients: Campaign to client, for those that exist.

    Raises:
        BatchMalformed: Some campaign does not; whether it exists elsewhere is not told.
    """
    foreign = {id_ for id_ in campaign_ids(batch) if clients.get(id_) != client_id}
    if foreign:
        _refuse(_foreign(batch, foreign))


async def split(batch: event_pb2.EventBatch, bounds: Bounds, salt: Salt) -> Sorted:
    """Takes a valid batch apart into the events within bounds and those to put aside.

    Args:
        batch: The batch; it is changed.
        bounds: Event times to accept.
        salt: Key of the pseudonyms of those put aside; the others get theirs when they are inserted.
    """
    accepted = event_pb2.EventBatch()
    out = Sorted()
    for index, event in enumerate(batch.events):
        if index % _EVENTS_A_SLICE == 0:
            await asyncio.sleep(0)
        # Fields we do not know are skipped by ClickHouse or fail it, depending on their wire type.
        event.DiscardUnknownFields()
        if bounds.lower <= event.event_time.seconds <= bounds.upper:
            accepted.events.append(event)
        else:
            if event.user_id:
                event.user_id = pseudonym(salt, event.user_id)
            out.quarantined.append(_quarantined(event, bounds))
    out.accepted = accepted.SerializeToString()
    out.accepted_count = len(accepted.events)
    return out


def _refuse(errors: Iterable[event_pb2.EventError]) -> None:
    first = [error for _, error in zip(range(MAX_ERRORS), errors, strict=False)]
    if first:
        raise BatchMalformed(first)


def _faults(index: int, event: event_pb2.Event) -> Iterator[event_pb2.EventError]:
    for violation in validation.violations(event):
        # A rule about the event as a whole belongs to no field of it.
        yield _invalid(index, violation.field.removeprefix("request"), violation.description)
    time = event.event_time
    if not (_SECONDS_MIN <= time.seconds <= SECONDS_MAX and 0 <= time.nanos <= _NANOS_MAX):
        yield _invalid(index, "event_time", "is not a valid timestamp")


def _invalid(index: int, path: str, message: str) -> event_pb2.EventError:
    return event_pb2.EventError(
        index=index, reason=event_pb2.EVENT_ERROR_REASON_INVALID_FIELD, field=path, message=message[:200]
    )


def _foreign(batch: event_pb2.EventBatch, foreign: Collection[UUID]) -> Iterator[event_pb2.EventError]:
    for index, event in enumerate(batch.events):
        if UUID(event.campaign_id) in foreign:
            yield event_pb2.EventError(
                index=index,
                reason=event_pb2.EVENT_ERROR_REASON_UNKNOWN_CAMPAIGN,
                field="campaign_id",
                message="no such campaign in this client",
            )


def _quarantined(event: event_pb2.Event, bounds: Bounds) -> Quarantined:
    return Quarantined(
        campaign_id=UUID(event.campaign_id),
        event_time=event.event_time.seconds * 1_000_000 + event.event_time.nanos // 1000,
        event_id=UUID(event.event_id),
        reason="too_old" if event.event_time.seconds < bounds.lower else "in_future",
        event=event.SerializeToString(deterministic=True),
    )
