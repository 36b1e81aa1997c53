"""WatchJob: one look at PostgreSQL for all jobs that anybody watches."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from mrm.operations.v1 import job_service_pb2 as pb
from server.operations import job_convert
from server.operations.job_service import sees_unowned
from server.rpc import logs
from server.rpc.call import StreamCall
from server.rpc.errors import NotFound, ResourceExhausted, Unavailable
from server.settings import WatchSettings
from storage.errors import StoreError
from storage.postgres import jobs
from storage.postgres.database import Database

WatchCall = StreamCall[pb.WatchJobRequest, pb.WatchJobResponse]

_HEARTBEAT_SECONDS = 10.0
# Silences end a little early, and none may be longer than promised.
_EARLY_SECONDS = 0.2
_ENDED = frozenset({"completed", "failed", "cancelled"})


class JobFeed:
    """Tells watchers that their job has changed.

    Args:
        database: Where jobs live.
        tick: Seconds between two looks.
        draining: Set when the server begins to shut down.
    """

    def __init__(self, database: Database, tick: float, draining: asyncio.Event) -> None:
        self._database = database
        self._tick = tick
        self._draining = draining
        self._watchers: dict[UUID, set[asyncio.Event]] = defaultdict(set)
        self._log = logs.get("jobs")

    @contextmanager
    def subscribe(self, job_id: UUID) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job may have changed, and when the server drains."""
        news = asyncio.Event()
        self._watchers[job_id].add(news)
        try:
            yield news
        finally:
            self._watchers[job_id].discard(news)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    async def run(self) -> None:
        """Looks again and again."""
        known: dict[UUID, object] = {}
        while True:
            await asyncio.sleep(self._tick)
            if self._draining.is_set():
                for watchers in self._watchers.values():
                    _tell(watchers)
            if not self._watchers:
                continue
            try:
                found = await jobs.marks_internal(self._database, list(self._watchers))
            except (StoreError, TimeoutError) as error:
                self._log.warning("jobs_not_seen", exc_info=error)
                continue
            for job_id, watchers in self._watchers.items():
                # One that is not there any more is news, too.
                if known.get(job_id, ()) != found.get(job_id):
                    _tell(watchers)
            known = dict(found)


class JobWatchRpcs:
    """Implements WatchJob of mrm.operations.v1.JobService.

    Args:
        database: Where jobs live.
        feed: Knows when a job has changed.
        settings: Limits of streams.
    """

    def __init__(self, database: Database, feed: JobFeed, settings: WatchSettings) -> None:
        self._database = database
        self._feed = feed
        self._settings = settings

    async def WatchJob(self, request: pb.WatchJobRequest, call: WatchCall) -> None:
        """Streams a job until it has ended, the caller leaves or the server shuts down."""
        silence = _HEARTBEAT_SECONDS
        if request.HasField("heartbeat_interval"):
            silence = request.heartbeat_interval.ToTimedelta().total_seconds()
        job_id = UUID(request.job_id)
        told: object = None
        with self._feed.subscribe(job_id) as news:
            while not call.draining.is_set():
                news.clear()
                # Rights are decided anew with every look.
                row = await jobs.get(self._database, call.scope, job_id, unowned=sees_unowned(call))
                if row is None:
                    raise NotFound.resource("job", request.job_id)
                seen = (row.revision, row.progress, row.held_because)
                if seen != told:
                    told = seen
                    await self._send(call, pb.WatchJobResponse(job=job_convert.job(row)))
                    if row.status in _ENDED:
                        return
                try:
                    async with asyncio.timeout(silence - _EARLY_SECONDS):
                        await news.wait()
                except TimeoutError:
                    await self._send(call, pb.WatchJobResponse(heartbeat=pb.WatchJobResponse.Heartbeat()))
        raise Unavailable("the server shuts down, watch again", reason="SHUTTING_DOWN", retry_after=0.5)

    async def _send(self, call: WatchCall, message: pb.WatchJobResponse) -> None:
        try:
            async with asyncio.timeout(self._settings.write_timeout):
                await call.write(message)
        except TimeoutError:
            raise ResourceExhausted(
                "the stream is not being read: read faster and watch again", reason="READER_TOO_SLOW"
            ) from None


def _tell(watchers: set[asyncio.Event]) -> None:
    for news in watchers:
        news.set()
