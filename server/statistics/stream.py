"""One producer's open stream: batches are stored side by side and acknowledged in order."""

import asyncio
from collections import deque
from dataclasses import dataclass
from uuid import UUID

from mrm.statistics.v1.event_pb2 import EventError, EventErrorReason
from mrm.statistics.v1.statistics_service_pb2 import AppendEventsResponse
from server.rpc.call import StreamCall
from server.rpc.errors import Aborted, AlreadyExists, DomainError, InvalidRequest, OutOfRange, Unavailable, Violation
from server.rpc.status import to_domain, to_status
from server.statistics.batches import BatchMalformed
from server.statistics.ingest import Ingestor, Outcome
from server.statistics.offsets import OffsetKeeper
from server.statistics.wire import AppendRequest
from storage.errors import StoreError
from storage.postgres import streams
from storage.postgres.database import Database
from storage.postgres.streams import Move, Opened
from storage.scope import EVERYTHING


@dataclass(slots=True)
class _Item:
    """A request that waits for its answer.

    Attributes:
        offset: Offset of its first event.
        end: Offset behind its last event.
        storing: Its batch on the way to ClickHouse; None if there is nothing to store.
        refusal: Why there is nothing to store, if that is an error.
        last: Whether the stream ends with its answer.
    """

    offset: int
    end: int
    storing: asyncio.Task[Outcome] | None = None
    refusal: DomainError | None = None
    last: bool = False

    def settled(self) -> bool:
        """Whether its answer is known."""
        return self.storing is None or self.storing.done()

    def good(self) -> bool:
        """Whether it is settled and the stream goes on behind it."""
        if self.storing is None:
            return not self.last
        return self.storing.done() and not self.storing.cancelled() and self.storing.exception() is None


class StreamSession:
    """Reads, stores and acknowledges until the producer, the server or a failure ends the stream.

    Args:
        call: The call.
        database: Where the stream's offset is.
        offsets: Moves it.
        ingestor: Where events go.
        client_id: The stream's client.
        stream_id: Its name.
        opened: Where it stands, and the epoch that proves it is still ours.
        batches_in_flight: Requests that may wait for their answers before reading pauses.
    """

    def __init__(
        self,
        call: StreamCall[AppendRequest, AppendEventsResponse],
        *,
        database: Database,
        offsets: OffsetKeeper,
        ingestor: Ingestor,
        client_id: UUID,
        stream_id: str,
        opened: Opened,
        batches_in_flight: int,
    ) -> None:
        self._call = call
        self._database = database
        self._offsets = offsets
        self._ingestor = ingestor
        self._client_id = client_id
        self._stream_id = stream_id
        self._epoch = opened.writer_epoch
        self._durable = opened.next_offset
        self._expected = opened.next_offset
        self._slots = asyncio.Semaphore(batches_in_flight)
        self._waiting: deque[_Item] = deque()
        self._arrived = asyncio.Event()
        self._complete = False

    async def run(self, first: AppendRequest) -> None:
        """Serves the stream to its end.

        Args:
            first: The request already read.

        Raises:
            InvalidRequest: A later request is not one, or contradicts the first; those before it are answered.
        """
        reader = asyncio.create_task(self._read(first))
        answerer = asyncio.create_task(self._answer_all())
        draining = asyncio.create_task(self._call.draining.wait())
        try:
            await asyncio.wait((reader, answerer, draining), return_when=asyncio.FIRST_COMPLETED)
            if not answerer.done():
                if not reader.done():
                    reader.cancel()
                    await asyncio.wait((reader,))
                    self._add(_Item(self._expected, self._expected, refusal=_ending(), last=True))
                self._complete = True
                self._arrived.set()
            await answerer
            if reader.done() and not reader.cancelled():
                reader.result()
        finally:
            await _end(reader, answerer, draining, *(item.storing for item in self._waiting if item.storing))

    def over(self) -> bool:
        """Whether a batch whose fate is unknown is given up: only once the server drains."""
        return self._call.draining.is_set()

    async def _read(self, first: AppendRequest) -> None:
        request: AppendRequest | None = first
        await self._slots.acquire()
        while request is not None:
            self._check(request, first)
            item = await self._item(request)
            self._add(item)
            if item.last:
                return
            # Not reading on is what holds the producer back.
            await self._slots.acquire()
            request = await anext(self._call.requests, None)

    def _check(self, request: AppendRequest, first: AppendRequest) -> None:
        for name in ("client_id", "stream_id"):
            if getattr(request, name) not in ("", getattr(first, name)):
                raise InvalidRequest.field(name, "CHANGED", "must not change within a call")
        if request.offset < 0:
            raise InvalidRequest.field("offset", "INT64_GTE", "must be zero or more")

    async def _item(self, request: AppendRequest) -> _Item:
        batch = request.batch
        if batch is None or not batch.count:
            return _Item(request.offset, request.offset)
        end = request.offset + batch.count
        if end <= self._expected:
            known = AlreadyExists("the batch is stored already, go on", reason="OFFSET_ALREADY_STORED")
            return _Item(request.offset, end, refusal=known)
        if request.offset > self._expected:
            gap = OutOfRange(
                "events are missing before this batch: resend from next_offset",
                reason="OFFSET_GAP",
                metadata={"next_offset": str(self._expected)},
            )
            return _Item(request.offset, end, refusal=gap, last=True)
        await self._await_room(len(batch.data))
        try:
            storing = self._ingestor.submit(self._client_id, batch, self)
        except DomainError as full:
            return _Item(request.offset, end, refusal=full, last=True)
        self._expected = end
        return _Item(request.offset, end, storing=storing)

    async def _await_room(self, size: int) -> None:
        """Waits for the queue as long as batches of this very stream are what fills it."""
        while not self._ingestor.has_room(self._client_id, size):
            own = [item.storing for item in self._waiting if item.storing and not item.storing.done()]
            if not own:
                return
            await asyncio.wait(own, return_when=asyncio.FIRST_COMPLETED)

    def _add(self, item: _Item) -> None:
        self._waiting.append(item)
        self._arrived.set()

    async def _answer_all(self) -> None:
        while True:
            while not self._waiting:
                if self._complete:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            head = self._waiting[0]
            if head.storing is not None and not head.storing.done():
                await asyncio.wait((head.storing,))
            if not await self._answer_settled():
                return

    async def _answer_settled(self) -> bool:
        """Answers the requests at the head that are settled, moving the offset once for all of them."""
        settled = []
        while self._waiting and self._waiting[0].good():
            settled.append(self._waiting.popleft())
        failed = self._waiting.popleft() if self._waiting and self._waiting[0].settled() else None
        try:
            await self._advance(max((item.end for item in settled if item.storing), default=self._durable))
        except (DomainError, StoreError, TimeoutError) as error:
            await self._fail(settled[0], error)
            return False
        for item in settled:
            await self._call.write(self._answer(item))
            self._slots.release()
        if failed is not None:
            await self._fail(failed, failed.refusal or _exception(failed))
            return False
        return True

    async def _advance(self, to: int) -> None:
        """Makes durable how far the stream is; its events are stored by now."""
        if to <= self._durable:
            return
        moved = await self._offsets.advance(Move(self._client_id, self._stream_id, self._epoch, self._durable, to))
        if not moved and not await self._moved_already(to):
            raise Aborted("another producer has opened this stream", reason="STREAM_FENCED")
        self._durable = to

    async def _moved_already(self, to: int) -> bool:
        """Whether it was our own earlier statement, whose answer got lost, that moved the offset."""
        stream = await streams.get(self._database, EVERYTHING, self._client_id, self._stream_id)
        return stream is not None and stream.writer_epoch == self._epoch and stream.next_offset == to

    def _answer(self, item: _Item) -> AppendEventsResponse:
        response = AppendEventsResponse(offset=item.offset, next_offset=self._durable)
        if item.storing is not None:
            outcome = item.storing.result()
            response.next_offset = item.end
            response.stored_count, response.quarantined_count = outcome.stored, outcome.quarantined
        elif item.refusal is not None:
            response.error.CopyFrom(to_status(item.refusal, self._call.request_id))
        return response

    async def _fail(self, item: _Item, error: Exception) -> None:
        """Answers with the error that ends the stream; one that is nobody's business ends the call instead."""
        response = AppendEventsResponse(offset=item.offset, next_offset=self._durable)
        if isinstance(error, BatchMalformed):
            response.event_errors.extend(error.errors)
        shown = _shown(error)
        if shown.code == "INTERNAL":
            raise error
        response.error.CopyFrom(to_status(shown, self._call.request_id))
        await self._call.write(response)


def refusal_of(error: BatchMalformed) -> InvalidRequest:
    """The error status of a malformed batch. Its first faults are named as fields of the request."""
    return InvalidRequest(
        "events of the batch are malformed, nothing of it is stored",
        reason="EVENTS_INVALID",
        violations=[_violation(fault) for fault in error.errors],
    )


def _ending() -> DomainError:
    return Unavailable("the server shuts down, connect again and resume", reason="SHUTTING_DOWN", retry_after=0.5)


def _violation(fault: EventError) -> Violation:
    reason = EventErrorReason.Name(fault.reason).removeprefix("EVENT_ERROR_REASON_")
    path = f"batch.events[{fault.index}].{fault.field}" if fault.field else f"batch.events[{fault.index}]"
    return Violation(path, reason, fault.message)


def _shown(error: Exception) -> DomainError:
    if isinstance(error, BatchMalformed):
        return refusal_of(error)
    if isinstance(error, TimeoutError):
        return Unavailable.store("postgresql")
    return to_domain(error)


def _exception(item: _Item) -> Exception:
    assert item.storing is not None
    error = item.storing.exception()
    assert isinstance(error, Exception)
    return error


async def _end(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
