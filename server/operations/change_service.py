"""ChangeService: who changed what, as a list and as a feed."""

import asyncio
from typing import Final

from mrm.operations.v1 import change_service_pb2 as pb
from server.operations import convert
from server.operations.feed import ChangeFeed
from server.operations.selection import binding, selection
from server.operations.tokens import PositionTokens
from server.operations.watch import WatchCall, Watcher, cut
from server.rpc.call import Call
from server.rpc.paging import DEFAULT_PAGE, LARGEST_PAGE
from server.rpc.tokens import TokenCodec
from server.rpc.values import timestamp
from server.settings import WatchSettings
from storage.postgres import changes
from storage.postgres.database import Database

_HEARTBEAT_SECONDS: Final = 10.0
# The feed must leave connections to other calls.
_STATEMENTS_AT_ONCE: Final = 3


class ChangeService:
    """Implements mrm.operations.v1.ChangeService.

    Args:
        database: Holds the record.
        feed: Knows how far it is settled.
        codec: Authenticates tokens.
        settings: Limits of streams.
    """

    def __init__(self, database: Database, feed: ChangeFeed, codec: TokenCodec, settings: WatchSettings) -> None:
        self._database = database
        self._feed = feed
        self._codec = codec
        self._settings = settings
        self._statements = asyncio.Semaphore(_STATEMENTS_AT_ONCE)

    async def ListChanges(self, request: pb.ListChangesRequest, call: Call) -> pb.ListChangesResponse:
        """Lists changes."""
        oldest_first = request.order == pb.CHANGE_ORDER_OLDEST_FIRST
        shape = pb.ListChangesRequest(order=request.order if oldest_first else pb.CHANGE_ORDER_NEWEST_FIRST)
        if request.HasField("times"):
            shape.times.CopyFrom(request.times)
        tokens = PositionTokens(self._codec, "list_changes", binding(request.filter, call, shape))
        position = tokens.open(request.page_token, "page_token")
        size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        wanted = selection(request.filter, call, request.times if request.HasField("times") else None)
        if oldest_first:
            rows = await changes.oldest(self._database, call.scope, wanted, limit=size + 1, after=position or 0)
        else:
            rows = await changes.newest(self._database, call.scope, wanted, limit=size + 1, before=position)
        kept = next(cut([convert.change(row) for row in rows[:size]]), [])
        more = len(kept) < len(rows)
        return pb.ListChangesResponse(
            changes=kept, next_page_token=tokens.seal(rows[len(kept) - 1].seq) if more else ""
        )

    async def WatchChanges(self, request: pb.WatchChangesRequest, call: WatchCall) -> None:
        """Streams changes until the caller leaves or the server shuts down."""
        tokens = self._resume_tokens(request.filter, call)
        heartbeat = _HEARTBEAT_SECONDS
        if request.HasField("heartbeat_interval"):
            heartbeat = request.heartbeat_interval.ToTimedelta().total_seconds()
        position = tokens.open(request.resume_token, "resume_token")
        with self._feed.subscribe() as news:
            await Watcher(
                call=call,
                database=self._database,
                feed=self._feed,
                news=news,
                selection=selection(request.filter, call),
                tokens=tokens,
                position=position,
                heartbeat=heartbeat,
                write_timeout=self._settings.write_timeout,
                statements=self._statements,
            ).run()

    async def GetOldestChangeToken(
        self, request: pb.GetOldestChangeTokenRequest, call: Call
    ) -> pb.GetOldestChangeTokenResponse:
        """Makes the token of the very beginning."""
        _, floor = await changes.head(self._database)
        rows = await changes.oldest(self._database, call.scope, selection(request.filter, call), limit=1, after=floor)
        return pb.GetOldestChangeTokenResponse(
            resume_token=self._resume_tokens(request.filter, call).seal(floor),
            oldest_change_time=timestamp(rows[0].at) if rows else None,
        )

    def _resume_tokens(self, wanted: pb.ChangeFilter, call: Call) -> PositionTokens:
        return PositionTokens(self._codec, "watch_changes", binding(wanted, call))
