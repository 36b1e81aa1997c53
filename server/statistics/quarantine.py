"""ListQuarantinedEvents."""

import hashlib
import struct
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from mrm.statistics.v1 import event_pb2, statistics_service_pb2
from server.rpc import values
from server.rpc.call import Call
from server.rpc.errors import InvalidRequest, NotFound
from server.rpc.paging import DEFAULT_PAGE, LARGEST_PAGE
from server.rpc.tokens import InvalidToken, TokenCodec
from storage.clickhouse import quarantine
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.quarantine import Kept, Position
from storage.postgres import clients
from storage.postgres.database import Database

_PURPOSE = "quarantine"
_LAYOUT = struct.Struct(">q16sq16s")
# A page ends early here: with what is around it, a message must stay below the 4 MiB that clients take.
_PAGE_BYTES = 2 * 2**20
_REASONS = {
    statistics_service_pb2.QUARANTINE_REASON_UNSPECIFIED: "",
    statistics_service_pb2.QUARANTINE_REASON_TOO_OLD: "too_old",
    statistics_service_pb2.QUARANTINE_REASON_IN_FUTURE: "in_future",
}
_NUMBERS = {name: number for number, name in _REASONS.items()}


class QuarantineRpcs:
    """Shows what was put aside.

    Args:
        database: Knows rights.
        clickhouse: Holds the events.
        codec: Authenticates page tokens.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse, codec: TokenCodec) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._codec = codec

    async def ListQuarantinedEvents(
        self, request: statistics_service_pb2.ListQuarantinedEventsRequest, call: Call
    ) -> statistics_service_pb2.ListQuarantinedEventsResponse:
        """Lists a client's events whose time was out of bounds."""
        client_id = values.required_id(request.client_id, "client_id")
        bound_to = _binding(request, call)
        after = self._position(bound_to, request.page_token)
        visible = await clients.visible_ids(self._database, call.scope, [client_id])
        if not visible:
            raise NotFound.resource("client", str(client_id))
        size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        found = await quarantine.page(
            self._clickhouse,
            visible,
            client_id,
            after=after,
            limit=size + 1,
            campaign_id=UUID(request.campaign_id) if request.campaign_id else None,
            reason=_REASONS[request.reason],
        )
        kept = found[: _fitting(found[:size])]
        return statistics_service_pb2.ListQuarantinedEventsResponse(
            events=[_message(each) for each in kept],
            next_page_token=self._token(bound_to, kept[-1].position) if len(kept) < len(found) else "",
        )

    def _position(self, bound_to: bytes, token: str) -> Position:
        if not token:
            return quarantine.BEGINNING
        try:
            at, campaign, happened, event = _LAYOUT.unpack(self._codec.open(_PURPOSE, bound_to, token))
        except (InvalidToken, struct.error):
            raise InvalidRequest.field(
                "page_token", "PAGE_TOKEN_INVALID", "is not a token of this list", error_reason="PAGE_TOKEN_INVALID"
            ) from None
        return Position(at, UUID(bytes=campaign), happened, UUID(bytes=event))

    def _token(self, bound_to: bytes, position: Position) -> str:
        packed = _LAYOUT.pack(
            position.quarantine_time, position.campaign_id.bytes, position.event_time, position.event_id.bytes
        )
        return self._codec.seal(_PURPOSE, bound_to, packed)


def _binding(request: statistics_service_pb2.ListQuarantinedEventsRequest, call: Call) -> bytes:
    """What a token is bound to: the caller and the filter."""
    bare = statistics_service_pb2.ListQuarantinedEventsRequest(
        client_id=request.client_id.lower(), campaign_id=request.campaign_id.lower(), reason=request.reason
    )
    caller = f"{call.principal.kind}|{call.principal.lasting_id}|".encode()
    return hashlib.sha256(caller + bare.SerializeToString(deterministic=True)).digest()


def _fitting(rows: list[Kept]) -> int:
    """How many of the rows a message takes, at least one."""
    size = 0
    for index, row in enumerate(rows):
        size += len(row.event)
        if index and size > _PAGE_BYTES:
            return index
    return len(rows)


def _message(kept: Kept) -> statistics_service_pb2.QuarantinedEvent:
    at = Timestamp()
    at.FromMilliseconds(kept.position.quarantine_time)
    return statistics_service_pb2.QuarantinedEvent(
        event=event_pb2.Event.FromString(kept.event), reason=_NUMBERS[kept.reason], quarantine_time=at
    )
