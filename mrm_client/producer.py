"""A producer that appends events to its named stream and survives whatever happens in between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from uuid import UUID

import grpc

from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as service_pb2
from mrm_client.batches import MAX_BATCH_BYTES, MAX_BATCH_EVENTS, BatchBuilder, varint
from mrm_client.errors import CallError, EventsInvalid, PositionLost
from mrm_client.retries import OnRetry, Retries

_METHOD = "/mrm.statistics.v1.StatisticsService/AppendEvents"
# Field 4 of AppendEventsRequest, length-delimited.
_BATCH_TAG = b"\x22"
_CLOSE_SECONDS = 5.0
_CLOSED = CallError(grpc.StatusCode.CANCELLED, "the producer is closed")


@dataclass(slots=True)
class Counters:
    """What a producer has done so far.

    Attributes:
        acknowledged: Events the server confirmed, known repeats included.
        stored: Of these, the ones it stored in reply to us.
        quarantined: Of these, the ones it put aside because their time is out of bounds; they count in no figure.
        batches: Requests sent, repeats included.
        payload_bytes: Their size.
        reconnects: Times the stream broke and was opened again.
    """

    acknowledged: int = 0
    stored: int = 0
    quarantined: int = 0
    batches: int = 0
    payload_bytes: int = 0
    reconnects: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    offset: int
    count: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + self.count


class Producer:
    """Appends events exactly once to a stream that the server remembers by name.

    The stream counts events from 0. `position` is the offset that the next event passed to `send` will get; after
    opening it is the server's, so a source that can be read again from any event resumes where it stopped::

        async with mrm_client.channel(target, api_key) as channel:
            async with mrm_client.Producer(channel, client_id, "orders-2026-01") as producer:
                for event in islice(source, producer.position, None):
                    await producer.send([event])

    Leaving the block without an error flushes: every event is durable then. Events wait in memory until they are
    acknowledged. When the stream breaks (restart, network, full queue), the producer opens it again after a pause with
    jitter and continues at the server's position; a batch that had been stored counts once all the same.

    Small sends are joined: while earlier batches are under way, events collect, and leave together as soon as there
    is room in the window.

    The identity of an event (campaign, time, id) must come from the source, not from the clock at sending: then even a
    source that is replayed from its beginning, on another stream, counts once.

    The methods raise what ended the producer for good, each time they are called: `StreamFenced`, `EventsInvalid`,
    `CredentialsRefused`, `PositionLost`, or a plain `CallError` for any other refusal and when patience ran out.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        client_id: UUID | str,
        stream_id: str,
        *,
        window: int = 4,
        max_batch_bytes: int = MAX_BATCH_BYTES,
        max_batch_events: int = MAX_BATCH_EVENTS,
        patience: float = 300.0,
        on_retry: OnRetry | None = None,
    ) -> None:
        """Nothing is sent before the `async with` block is entered.

        Args:
            channel: See `mrm_client.channel`; its token needs the right STATISTICS_INGEST for the client.
            client_id: The client the events belong to.
            stream_id: Name of the stream within the client: letters, digits, ``._:-``, at most 100.
            window: Batches sent but not yet acknowledged.
            max_batch_bytes: Largest batch in bytes, at most 3.5 MiB.
            max_batch_events: Largest batch in events.
            patience: Seconds of failing in a row after which the last failure is raised.
            on_retry: Told of each failure and the pause before the next attempt.
        """
        self._append = channel.stream_stream(
            _METHOD, request_serializer=bytes, response_deserializer=service_pb2.AppendEventsResponse.FromString
        )
        self._opening = service_pb2.AppendEventsRequest(
            client_id=str(client_id), stream_id=stream_id
        ).SerializeToString()
        self._window = window
        self._retries = Retries(patience, on_retry)
        self._builder = BatchBuilder(min(max_batch_bytes, MAX_BATCH_BYTES), max_batch_events)
        self._sealed_end = 0
        self._unacked: deque[_Batch] = deque()
        self._sent = 0  # how many of the unacknowledged batches went out on the present call
        self._acknowledged_end = 0
        self._failure: BaseException | None = None
        self._opened = self._closing = self._resync = False
        self._work = asyncio.Event()  # for the sender: there may be something to send
        self._progress = asyncio.Condition()  # for callers: there may be room, or everything may be done
        self._runner: asyncio.Task[None] | None = None
        self.counters = Counters()

    @property
    def position(self) -> int:
        """Offset of the next event passed to `send`."""
        return self._sealed_end + self._builder.count

    @property
    def acknowledged_position(self) -> int:
        """Offset of the first event that is not known to be durable."""
        return self._acknowledged_end

    async def send(self, events: Iterable[event_pb2.Event] | event_pb2.EventBatch) -> None:
        """Takes events over; waits while the window is full and a whole batch is waiting already.

        Args:
            events: Any number of events. An `EventBatch` that fits is taken as a whole, which is cheaper.

        Raises:
            ValueError: One event alone is larger than a batch may be; the ones before it are taken over.
            CallError: The producer has ended, see above.
        """
        builder = self._builder
        if isinstance(events, event_pb2.EventBatch):
            await self._room_for(events)
            if builder.add_batch(events):
                self._work.set()
                return
            events = events.events
        for event in events:
            while not builder.add(event):
                await self._until(lambda: builder.count == 0)
        self._raise_failure()
        self._work.set()

    async def flush(self) -> None:
        """Waits until every event sent so far is durable.

        Raises:
            CallError: The producer has ended, see above.
        """
        goal = self.position
        await self._until(lambda: self._acknowledged_end >= goal)

    async def __aenter__(self) -> Producer:
        self._runner = asyncio.create_task(self._run(), name="mrm-producer")
        try:
            await self._until(lambda: self._opened)
        except BaseException:
            await self._stop(0)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        grace = 0.0
        try:
            if exc_type is None:
                await self.flush()
                grace = _CLOSE_SECONDS
        finally:
            await self._stop(grace)

    async def _stop(self, grace: float) -> None:
        """Ends the call: in peace within `grace` seconds, or by cancelling it."""
        if self._runner is not None:
            self._closing = True
            self._work.set()
            await asyncio.wait([self._runner], timeout=grace)
            self._runner.cancel()
            await asyncio.wait([self._runner])

    async def _room_for(self, batch: event_pb2.EventBatch) -> None:
        """Waits until a batch that could fit an empty builder does fit, so that it need not be taken apart."""
        builder, size, count = self._builder, batch.ByteSize(), len(batch.events)
        if size <= builder.max_bytes and count <= builder.max_events:
            await self._until(
                lambda: builder.size + size <= builder.max_bytes and builder.count + count <= builder.max_events
            )

    async def _until(self, reached: Any) -> None:
        self._work.set()
        if not reached() and self._failure is None:
            async with self._progress:
                await self._progress.wait_for(lambda: reached() or self._failure is not None)
        if not reached():
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _notify(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    async def _run(self) -> None:
        """Keeps a call open until something ends the producer for good."""
        try:
            while not self._closing:
                error = await self._attempt()
                if self._closing or self._failure is not None:
                    break
                await self._retries.pause_or_raise(error, retriable=self._resync)
            self._failure = self._failure or _CLOSED
        except asyncio.CancelledError:
            self._failure = _CLOSED
            raise
        except Exception as failure:
            self._failure = failure
        finally:
            await asyncio.shield(self._notify())

    async def _attempt(self) -> CallError:
        """One call, and why it ended."""
        self._resync = False
        try:
            await self._converse()
        except grpc.aio.AioRpcError as error:
            return CallError.of_rpc(error)
        except _Broken as broken:
            self._resync = broken.cause.code is grpc.StatusCode.OUT_OF_RANGE
            return broken.cause
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not we were cancelled but the call, for instance because the channel is being closed.
            return CallError(grpc.StatusCode.CANCELLED, "the call was cancelled on this side")
        return CallError(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")

    async def _converse(self) -> None:
        """Learns the position, then sends, and reads acknowledgements until the call ends."""
        call = self._append()
        sender: asyncio.Task[None] | None = None
        try:
            # A call that is over already tells why when it is read.
            with suppress(asyncio.InvalidStateError):
                await call.write(self._opening)
            opened = await call.read()
            if not isinstance(opened, service_pb2.AppendEventsResponse):
                return
            await self._take_position(opened)
            self._sent = 0
            sender = asyncio.create_task(self._send_all(call), name="mrm-producer-sender")
            while isinstance(response := await call.read(), service_pb2.AppendEventsResponse):
                await self._take_reply(response)
        finally:
            if sender is not None:
                sender.cancel()
                await asyncio.wait([sender])
            call.cancel()

    async def _take_position(self, opened: service_pb2.AppendEventsResponse) -> None:
        _raise_unless_known(opened)
        position = opened.next_offset
        if self._opened:
            self.counters.reconnects += 1
        else:
            self._sealed_end = self._acknowledged_end = position
            self._opened = True
        if not self._acknowledged_end <= position <= self._sealed_end:
            raise PositionLost(
                grpc.StatusCode.OUT_OF_RANGE,
                f"the server stands at event {position} of the stream, this producer between"
                f" {self._acknowledged_end} and {self._sealed_end}",
                reason="POSITION_LOST",
            )
        while self._unacked and self._unacked[0].end <= position:
            self._acknowledge(self._unacked.popleft())
        if not self._unacked:
            self._retries.succeeded()
        await self._notify()

    async def _take_reply(self, response: service_pb2.AppendEventsResponse) -> None:
        if not self._sent or response.offset != self._unacked[0].offset:
            raise _Broken(CallError(grpc.StatusCode.INTERNAL, "a reply came that belongs to no request"))
        batch = self._unacked[0]
        if response.event_errors:
            raise EventsInvalid(CallError.of_status(response.error), batch.offset, response.event_errors)
        _raise_unless_known(response)
        self._unacked.popleft()
        self._sent -= 1
        self.counters.stored += response.stored_count
        self.counters.quarantined += response.quarantined_count
        self._acknowledge(batch)
        self._retries.succeeded()
        self._work.set()
        await self._notify()

    def _acknowledge(self, batch: _Batch) -> None:
        self._acknowledged_end = batch.end
        self.counters.acknowledged += batch.count

    async def _send_all(self, call: Any) -> None:
        """Writes batches while the window has room. Why the call ended is for the reading side to tell."""
        try:
            while True:
                self._work.clear()
                while (batch := await self._next_batch()) is not None:
                    head = service_pb2.AppendEventsRequest(offset=batch.offset).SerializeToString()
                    self._sent += 1
                    self.counters.batches += 1
                    self.counters.payload_bytes += len(batch.data)
                    await call.write(b"".join((head, _BATCH_TAG, varint(len(batch.data)), batch.data)))
                if self._closing:
                    await call.done_writing()
                    return
                await self._work.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return
        except Exception as error:
            self._failure = error
            call.cancel()

    async def _next_batch(self) -> _Batch | None:
        if self._sent < len(self._unacked):
            return self._unacked[self._sent]
        if not self._builder.count or len(self._unacked) >= self._window:
            return None
        batch = _Batch(self._sealed_end, self._builder.count, self._builder.take())
        self._sealed_end = batch.end
        self._unacked.append(batch)
        await self._notify()
        return batch


class _Broken(Exception):
    """The server ended the stream in-band for a reason that may pass."""

    def __init__(self, cause: CallError) -> None:
        super().__init__(cause)
        self.cause = cause


def _raise_unless_known(response: service_pb2.AppendEventsResponse) -> None:
    """Raises what a reply reports, unless it is that the events are stored already."""
    if not response.HasField("error") or response.error.code in (0, grpc.StatusCode.ALREADY_EXISTS.value[0]):
        return
    raise _Broken(CallError.of_status(response.error))
