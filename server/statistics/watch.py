"""WatchMetrics: one stream per watcher."""

import asyncio
from uuid import UUID
from weakref import WeakValueDictionary

from mrm.statistics.v1 import statistics_service_pb2
from server.rpc import values
from server.rpc.call import StreamCall
from server.rpc.errors import NotFound, ResourceExhausted, Unavailable
from server.rpc.tokens import TokenCodec
from server.settings import WatchSettings
from server.statistics import frames, rules
from server.statistics.feeds import LATE_SECONDS, Choice, Mailbox, Span
from server.statistics.hub import WatchHub
from server.statistics.reach import require
from server.statistics.tokens import Position, ResumeTokens, binding
from storage.postgres import campaigns, reach
from storage.postgres.database import Database

WatchCall = StreamCall[statistics_service_pb2.WatchMetricsRequest, statistics_service_pb2.WatchMetricsResponse]

_HEARTBEAT_SECONDS = 10.0
_LEAST_CHECKPOINT_SECONDS = 1.0
_SNAPSHOT_SECONDS = 15.0
_DAYS = {
    statistics_service_pb2.WATCH_WINDOW_UNSPECIFIED: 1,
    statistics_service_pb2.WATCH_WINDOW_TODAY: 1,
    statistics_service_pb2.WATCH_WINDOW_LAST_7_DAYS: 7,
    statistics_service_pb2.WATCH_WINDOW_LAST_30_DAYS: 30,
}


class WatchRpcs:
    """RPCs that stream figures.

    Args:
        database: Knows rights.
        hub: Knows the state.
        codec: Authenticates resume tokens.
        settings: Limits.
    """

    def __init__(self, database: Database, hub: WatchHub, codec: TokenCodec, settings: WatchSettings) -> None:
        self._database = database
        self._hub = hub
        self._codec = codec
        self._settings = settings
        self._tokens: WeakValueDictionary[bytes, ResumeTokens] = WeakValueDictionary()

    async def WatchMetrics(self, request: statistics_service_pb2.WatchMetricsRequest, call: WatchCall) -> None:
        """Streams the state of a client's campaigns until the caller leaves or the server shuts down."""
        tokens = self._tokens_of(request, call)
        position = tokens.open(request.resume_token)
        client_id = values.required_id(request.client_id, "client_id")
        choice = Choice(
            frozenset(values.required_id(each, "campaign_ids") for each in request.campaign_ids),
            frozenset(values.required_id(each, "project_ids") for each in request.project_ids),
            frozenset(rules.PLATFORMS.word(platform) for platform in request.platforms),
        )
        try:
            zone = await self._check_rights(call, client_id, choice)
        except TimeoutError:
            # A stream has no deadline that this could be.
            raise Unavailable.store("postgresql") from None
        span = _span(request)
        if span.days:
            # Refused here: its days cannot be cut out of hours.
            values.time_zone(zone, "client_id")
        heartbeat = _HEARTBEAT_SECONDS
        if request.HasField("heartbeat_interval"):
            heartbeat = request.heartbeat_interval.ToTimedelta().total_seconds()
        with self._hub.subscribe(call.scope, client_id, span, choice, call.draining) as mailbox:
            await Watcher(call, mailbox, tokens, position, heartbeat, self._settings.write_timeout).run()

    async def _check_rights(self, call: WatchCall, client_id: UUID, choice: Choice) -> str:
        zones = await reach.clients(self._database, call.scope, [client_id])
        require("client", [client_id], zones)
        if choice.project_ids:
            projects = await reach.projects(self._database, call.scope, sorted(choice.project_ids))
            require("project", sorted(choice.project_ids), (p.project_id for p in projects if p.client_id == client_id))
        if choice.campaign_ids:
            found = await campaigns.for_dimension(
                self._database, call.scope, campaign_ids=list(choice.campaign_ids), client_id=client_id
            )
            require("campaign", sorted(choice.campaign_ids), (each.campaign_id for each in found))
        return zones[client_id]

    def _tokens_of(self, request: statistics_service_pb2.WatchMetricsRequest, call: WatchCall) -> ResumeTokens:
        """Tokens of this watch, shared with those of the same caller that watch the same."""
        watch = binding(request, call)
        tokens = self._tokens.get(watch)
        if tokens is None:
            tokens = self._tokens[watch] = ResumeTokens(self._codec, watch)
        return tokens


class Watcher:
    """Sends one watcher what its mailbox holds.

    Args:
        call: The stream.
        mailbox: What there is to send.
        tokens: Makes resume tokens.
        position: Nothing older than this is sent.
        heartbeat: Longest silence in seconds.
        write_timeout: A reader that takes nothing for this long is cut off.
    """

    def __init__(
        self,
        call: WatchCall,
        mailbox: Mailbox,
        tokens: ResumeTokens,
        position: Position,
        heartbeat: float,
        write_timeout: float,
    ) -> None:
        self._call = call
        self._mailbox = mailbox
        self._tokens = tokens
        self._position = position
        # Silences end a little late, and none may be longer than promised.
        self._heartbeat = heartbeat - LATE_SECONDS
        self._checkpoint = max(_LEAST_CHECKPOINT_SECONDS - LATE_SECONDS, heartbeat / 2)
        self._write_timeout = write_timeout
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._begun = False

    async def run(self) -> None:
        """Streams until the server drains or the call ends.

        Raises:
            Unavailable: The server shuts down, or the state is not as far as the caller has seen.
            NotFound: The caller may no longer see the client.
            ResourceExhausted: The caller does not read.
        """
        while not self._call.draining.is_set():
            if self._mailbox.revoked:
                raise NotFound.resource("client", str(self._mailbox.feed.client_id))
            if not await self._send_news():
                await self._rest()
        if self._begun:
            await self._write(frames.CHECKPOINT)
        raise Unavailable("the server shuts down, connect again and resume", reason="SHUTTING_DOWN", retry_after=0.5)

    async def _send_news(self) -> bool:
        """Sends what there is; returns whether there was anything."""
        mailbox = self._mailbox
        reason = mailbox.take_reset()
        if reason is not None:
            await self._write(frames.reset(reason))
            return True
        if mailbox.waiting_for_snapshot:
            if not self._caught_up():
                return False
            messages = mailbox.take_snapshot()
            self._begun = True
        elif mailbox.changed:
            messages = mailbox.take_update()
        else:
            return False
        self._advance()
        # A watch that starts over meanwhile still stands at the position of these.
        trailing = self._tokens.trailer(self._position)
        for message in messages:
            await self._send(message + trailing)
        return True

    def _caught_up(self) -> bool:
        """Whether the state is complete and at least as new as what the caller has seen."""
        feed = self._mailbox.feed
        if not feed.ready or feed.watermark < self._position.watermark:
            return False
        # Another process may have moved its window a moment before this one. If waiting does not help, the window has
        # moved back: the client is in another time zone now.
        return feed.window[0] >= self._position.window_start or self._silence() > self._checkpoint

    async def _rest(self) -> None:
        """Waits for news; says that there are none when it is time to."""
        limit = self._heartbeat
        if not self._begun:
            limit = _SNAPSHOT_SECONDS
        elif self._moved():
            limit = self._checkpoint
        if await self._mailbox.wait(self._loop.time() + min(self._checkpoint, limit - self._silence())):
            return
        if not self._begun:
            if self._silence() >= _SNAPSHOT_SECONDS:
                raise Unavailable("the figures are not up to date yet, try again", retry_after=1.0)
        elif self._moved() and self._silence() >= self._checkpoint:
            self._advance()
            await self._write(frames.CHECKPOINT)
        elif self._silence() >= self._heartbeat:
            await self._write(frames.HEARTBEAT)

    def _silence(self) -> float:
        return self._loop.time() - self._sent_at

    def _moved(self) -> bool:
        return not self._mailbox.waiting_for_snapshot and self._mailbox.feed.watermark > self._position.watermark

    def _advance(self) -> None:
        feed = self._mailbox.feed
        self._position = Position(max(feed.watermark, self._position.watermark), feed.window[0])

    async def _write(self, message: bytes) -> None:
        """Sends a message that lacks its trailer."""
        await self._send(message + self._tokens.trailer(self._position))

    async def _send(self, message: bytes) -> None:
        mailbox = self._mailbox
        mailbox.begin_write(self._loop.time() + self._write_timeout)
        try:
            await self._call.write(message)
        except asyncio.CancelledError:
            if mailbox.was_cut_off():
                raise ResourceExhausted(
                    "the stream is not being read: read faster and resume", reason="READER_TOO_SLOW"
                ) from None
            raise
        finally:
            mailbox.end_write()
        self._sent_at = self._loop.time()


def _span(request: statistics_service_pb2.WatchMetricsRequest) -> Span:
    if request.HasField("times"):
        start, end = rules.times(request.times, "times")
        return Span(0, start, end)
    return Span(_DAYS[request.window])
