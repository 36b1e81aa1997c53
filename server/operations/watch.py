"""One stream of changes."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from mrm.operations.v1 import change_pb2
from mrm.operations.v1 import change_service_pb2 as pb
from server.operations import convert
from server.operations.feed import ChangeFeed
from server.operations.tokens import PositionTokens, gone
from server.rpc.call import StreamCall
from server.rpc.errors import ResourceExhausted, Unavailable
from storage.postgres import changes
from storage.postgres.changes import Selection
from storage.postgres.database import Database

WatchCall = StreamCall[pb.WatchChangesRequest, pb.WatchChangesResponse]

MOST_BYTES = 2**20
_ROWS = 500
# Numbers looked through by one statement, so that a filter that matches little keeps no statement running for long.
_SPAN = 100_000
# Silences end a little early, and none may be longer than promised.
_EARLY_SECONDS = 0.2
_LEAST_CHECKPOINT_SECONDS = 0.8


@dataclass(slots=True)
class Watcher:
    """Sends one caller the changes that match.

    Attributes:
        call: The stream.
        database: Holds the record.
        feed: Knows how far it is settled.
        news: Set when that is further.
        selection: Which changes.
        tokens: Makes resume tokens.
        position: Number of the last change dealt with; None to begin where the feed is.
        heartbeat: Longest silence in seconds.
        write_timeout: A reader that takes nothing for this long is cut off.
        statements: Bounds the statements of all watchers at a time.
    """

    call: WatchCall
    database: Database
    feed: ChangeFeed
    news: asyncio.Event
    selection: Selection
    tokens: PositionTokens
    position: int | None
    heartbeat: float
    write_timeout: float
    statements: asyncio.Semaphore
    _told: int | None = None
    _sent_at: float = 0.0

    async def run(self) -> None:
        """Streams until the server drains or the call ends.

        Raises:
            Unavailable: The server shuts down.
            OutOfRange: What follows the position is no longer kept.
            ResourceExhausted: The caller does not read.
        """
        self._sent_at = asyncio.get_running_loop().time()
        await self._begin()
        while not self.call.draining.is_set():
            self.news.clear()
            if not await self._advance():
                await self._rest()
        if self.position != self._told:
            await self._send(pb.WatchChangesResponse(checkpoint=pb.WatchChangesResponse.Checkpoint()))
        raise Unavailable("the server shuts down, connect again and resume", reason="SHUTTING_DOWN", retry_after=0.5)

    async def _begin(self) -> None:
        """Finds the place to begin, and says at once that the watch stands.

        Whatever is committed after the first message will be sent.
        """
        head, floor = await changes.head(self.database)
        if self.position is not None:
            self._check(floor, head)
            await self._send(pb.WatchChangesResponse(heartbeat=pb.WatchChangesResponse.Heartbeat()))
            return
        while self.feed.settled < head:
            if self.call.draining.is_set():
                return
            self.news.clear()
            await self._rest()
        self.position = head
        await self._send(pb.WatchChangesResponse(checkpoint=pb.WatchChangesResponse.Checkpoint()))

    def _check(self, floor: int, head: int | None = None) -> None:
        assert self.position is not None
        if self.position < floor or (head is not None and self.position > head):
            raise gone()

    async def _advance(self) -> bool:
        """Reads and sends the next changes; returns whether there may be more."""
        assert self.position is not None
        until = min(self.feed.settled, self.position + _SPAN)
        if until <= self.position:
            return False
        async with self.statements:
            rows = await changes.oldest(
                self.database, self.call.scope, self.selection, limit=_ROWS, after=self.position, until=until
            )
        self._check(self.feed.floor)
        last = rows[-1].seq if len(rows) == _ROWS else until
        batches = list(cut([convert.change(row) for row in rows]))
        for number, batch in enumerate(batches, start=1):
            self.position = last if number == len(batches) else int(batch[-1].change_id)
            await self._send(pb.WatchChangesResponse(batch=pb.WatchChangesResponse.Batch(changes=batch)))
        self.position = last
        if self._silence() > self._checkpoint_seconds:
            await self._send_sign()
        return last < self.feed.settled

    async def _rest(self) -> None:
        """Waits for news; says that there are none when it is time to."""
        limit = self._checkpoint_seconds if self.position != self._told else self.heartbeat - _EARLY_SECONDS
        try:
            async with asyncio.timeout(max(0.0, limit - self._silence())):
                await self.news.wait()
        except TimeoutError:
            await self._send_sign()

    @property
    def _checkpoint_seconds(self) -> float:
        return max(_LEAST_CHECKPOINT_SECONDS, self.heartbeat / 2 - _EARLY_SECONDS)

    def _silence(self) -> float:
        return asyncio.get_running_loop().time() - self._sent_at

    async def _send_sign(self) -> None:
        if self.position != self._told:
            await self._send(pb.WatchChangesResponse(checkpoint=pb.WatchChangesResponse.Checkpoint()))
        else:
            await self._send(pb.WatchChangesResponse(heartbeat=pb.WatchChangesResponse.Heartbeat()))

    async def _send(self, message: pb.WatchChangesResponse) -> None:
        if self.position is not None:
            message.resume_token = self.tokens.seal(self.position)
        if lag := self.feed.lag:
            message.lag.CopyFrom(Duration(seconds=int(lag), nanos=int(lag % 1 * 1e9)))
        try:
            async with asyncio.timeout(self.write_timeout):
                await self.call.write(message)
        except TimeoutError:
            raise ResourceExhausted(
                "the stream is not being read: read faster and resume", reason="READER_TOO_SLOW"
            ) from None
        self._told = self.position
        self._sent_at = asyncio.get_running_loop().time()


def cut(messages: Sequence[change_pb2.Change]) -> Iterator[list[change_pb2.Change]]:
    """Cuts changes into runs that fit into a message, each of at least one."""
    run: list[change_pb2.Change] = []
    size = 0
    for message in messages:
        size += message.ByteSize()
        if run and size > MOST_BYTES:
            yield run
            run, size = [], message.ByteSize()
        run.append(message)
    if run:
        yield run
