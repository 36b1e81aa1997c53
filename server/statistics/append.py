"""The RPCs that take events in."""

import asyncio
from uuid import UUID

from uuid_utils.compat import uuid7

from mrm.statistics.v1.statistics_service_pb2 import (
    AppendEventsRequest,
    AppendEventsResponse,
    IngestEventsRequest,
    IngestEventsResponse,
)
from server.rpc.call import Call, StreamCall
from server.rpc.errors import InvalidRequest, NotFound
from server.rpc.validation import validate
from server.settings import IngestSettings
from server.statistics.batches import BatchMalformed
from server.statistics.ingest import Deadline, Ingestor
from server.statistics.offsets import OffsetKeeper
from server.statistics.stream import StreamSession, refusal_of
from server.statistics.wire import AppendRequest, IngestRequest
from storage import deadline
from storage.postgres import clients, streams
from storage.postgres.database import Database

# Half of this, or of what the caller grants, IngestEvents tries again while ClickHouse is away.
_PATIENCE_SECONDS = 20.0


class IngestRpcs:
    """`AppendEvents` and `IngestEvents` of StatisticsService.

    Both want the requests that `server.statistics.wire` reads.

    Args:
        database: Where streams and rights are.
        ingestor: Where events go.
        settings: Limits.
    """

    def __init__(self, database: Database, ingestor: Ingestor, settings: IngestSettings) -> None:
        self._database = database
        self._offsets = OffsetKeeper(database)
        self._ingestor = ingestor
        self._settings = settings

    async def AppendEvents(self, call: StreamCall[AppendRequest, AppendEventsResponse]) -> None:
        """Appends batches to a named stream."""
        first = await anext(call.requests, None)
        if first is None:
            return
        validate(AppendEventsRequest(client_id=first.client_id, stream_id=first.stream_id, offset=first.offset))
        for name in ("client_id", "stream_id"):
            if not getattr(first, name):
                raise InvalidRequest.field(name, "REQUIRED", "is required on the first request of a call")
        client_id = UUID(first.client_id)
        opened = await streams.open_stream(self._database, call.scope, client_id, first.stream_id, uuid7())
        if opened is None:
            raise NotFound.resource("client", str(client_id))
        session = StreamSession(
            call,
            database=self._database,
            offsets=self._offsets,
            ingestor=self._ingestor,
            client_id=client_id,
            stream_id=first.stream_id,
            opened=opened,
            batches_in_flight=self._settings.stream_batches,
        )
        await session.run(first)

    async def IngestEvents(self, request: IngestRequest, call: Call) -> IngestEventsResponse:
        """Stores one batch."""
        whole = IngestEventsRequest(client_id=request.client_id)
        if request.batch is not None:
            whole.batch.SetInParent()
        validate(whole)
        if request.batch is None or not request.batch.count:
            raise InvalidRequest.field("batch.events", "REPEATED_MIN_ITEMS", "must hold at least one event")
        client_id = UUID(request.client_id)
        if not await clients.visible_ids(self._database, call.scope, [client_id]):
            raise NotFound.resource("client", str(client_id))
        patience = Deadline(asyncio.get_running_loop().time() + deadline.remaining(_PATIENCE_SECONDS) / 2)
        try:
            outcome = await self._ingestor.submit(client_id, request.batch, patience)
        except BatchMalformed as error:
            raise refusal_of(error) from None
        return IngestEventsResponse(stored_count=outcome.stored, quarantined_count=outcome.quarantined)
