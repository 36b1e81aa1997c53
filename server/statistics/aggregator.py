"""Turns events into figures: one process at a time rebuilds the slices whose events changed.

Two lanes run side by side, so that a backfill of old events never holds back the slices people are watching.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from server.rpc import logs
from server.settings import MetricsSettings, RollupSettings
from server.statistics.busy import SLOW_SECONDS, BusyClients
from server.statistics.lanes import MOST_BUCKETS, LaneReader
from server.statistics.marking import announce
from server.statistics.watermark import CURSOR, Progress
from storage.clickhouse import rebuild
from storage.clickhouse.connect import ClickHouse, ClickHouseError
from storage.clickhouse.rebuild import Slice
from storage.errors import FencedOut, StoreError, StoreUnavailable
from storage.postgres import leases, metrics_state
from storage.postgres.database import Database
from storage.redis.signals import Signals

CHANNEL = "mrm:metrics"
LEASE = "metrics_aggregator"

_PAGE = 20_000
_CHUNK = 1000
_ASIDE_PAUSE_SECONDS = 1.0
_ASIDE_REST = 2.0
_LEAST_PAUSE_SECONDS = 0.02
_COMMIT_PAUSE_SECONDS = 0.25
_VERSIONS_AHEAD = 16
_LONGEST_PAUSE_SECONDS = 5.0
# A signal that would name more clients names none: then watchers look at all they watch.
_NAMED_CLIENTS = 200
_KEPT_FAILURES = 10_000
_LOG_PAUSE_SECONDS = 60.0


class Aggregator:
    """Keeps figures up with events while it holds the lease. `run` it in every process.

    Args:
        database: Holds the lease, the cursor and the versions.
        clickhouse: Holds events and figures.
        signals: Tells watchers whose figures changed.
        settings: Pauses and limits.
        holder: Name of this process that no other process ever has.
        rollup: When days are rolled up: those whose events come later have to be rolled up again.
    """

    def __init__(
        self,
        database: Database,
        clickhouse: ClickHouse,
        signals: Signals,
        settings: MetricsSettings,
        *,
        holder: str,
        rollup: RollupSettings | None = None,
    ) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._signals = signals
        self._settings = settings
        self._holder = holder
        self._rollup = rollup or RollupSettings()
        self._ttl = timedelta(seconds=settings.lease_ttl)
        self._log = logs.get("aggregator")
        self._trouble = Trouble()

    async def run(self) -> None:
        """Waits for the lease and works under it, for ever, whatever store is down."""
        while True:
            try:
                epoch = await leases.acquire(self._database, LEASE, self._holder, self._ttl)
                if epoch is not None:
                    await self._lead(epoch)
            except FencedOut:
                self._log.warning("lease_lost")
            except (StoreError, TimeoutError) as error:
                self._trouble.met(error)
            await asyncio.sleep(self._settings.lease_ttl / 4)

    async def _lead(self, epoch: int) -> None:
        self._log.info("leading", epoch=epoch)
        try:
            cursor = await metrics_state.get_cursor(self._database, CURSOR)
            progress = Progress.from_position(cursor.position) if cursor else Progress()
            leader = Leader(
                self._database, self._clickhouse, self._signals, self._settings, epoch, progress, self._rollup
            )
            await _until_first_failure(self._keep_lease(epoch), *leader.work())
        finally:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await leases.release(self._database, LEASE, self._holder, epoch)

    async def _keep_lease(self, epoch: int) -> None:
        """Renews the lease, and ends the work once that has failed for too long."""
        loop = asyncio.get_running_loop()
        expires = loop.time() + self._settings.lease_ttl
        while loop.time() < expires:
            await asyncio.sleep(self._settings.lease_ttl / 4)
            begun = loop.time()
            with suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(self._settings.lease_ttl / 2):
                    if not await leases.renew(self._database, LEASE, self._holder, epoch, self._ttl):
                        break
                    expires = begun + self._settings.lease_ttl
        raise FencedOut("the lease has expired")


class Leader:
    """The work of the process that holds the lease.

    Args:
        database: Holds the cursor and the versions.
        clickhouse: Holds events and figures.
        signals: Tells watchers whose figures changed.
        settings: Pauses and limits.
        epoch: Epoch of the lease.
        progress: Where the last holder stopped.
        rollup: When days are rolled up.
    """

    def __init__(
        self,
        database: Database,
        clickhouse: ClickHouse,
        signals: Signals,
        settings: MetricsSettings,
        epoch: int,
        progress: Progress,
        rollup: RollupSettings | None = None,
    ) -> None:
        self._rollup = rollup or RollupSettings()
        self._database = database
        self._clickhouse = clickhouse
        self._signals = signals
        self._settings = settings
        self._epoch = epoch
        self._progress = progress
        self._overlap = int(settings.mark_overlap.total_seconds() * 1000)
        self._live = LaneReader("live", progress.live, self._overlap)
        self._late = LaneReader("late", progress.late, self._overlap)
        self._busy = BusyClients()
        self._swept = progress.watermark
        self._failed: set[Slice] = set()
        self._versions: deque[int] = deque()
        self._drawing = asyncio.Lock()
        self._suspects: Sequence[Slice] = ()
        self._log = logs.get("aggregator")
        self._trouble = Trouble()

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """All of it, each part endless and to be run side by side."""
        # What people watch has all threads, at its own pace; the rest has half of them, and rests more than it works.
        others = max(1, self._settings.max_threads // 2)
        return [
            self._again(lambda: self.tick(self._live, self._settings.max_threads), self._settings.tick),
            self._again(lambda: self.tick(self._late, others), _ASIDE_PAUSE_SECONDS, rest=_ASIDE_REST),
            self._again(lambda: self.rebuild_busy(others), _ASIDE_PAUSE_SECONDS, rest=_ASIDE_REST),
            self._again(self.sweep_once, self._settings.sweep_interval),
            self._again(self.commit, _COMMIT_PAUSE_SECONDS),
        ]

    async def tick(self, reader: LaneReader, threads: int) -> bool:
        """Rebuilds what was marked since the last tick; returns whether there may be more to do at once."""
        # Every acknowledged insert has its marks in place, so all that was acknowledged before this instant is counted.
        asked = reader.clock or await rebuild.now_millis(self._clickhouse)
        look = await rebuild.look(self._clickhouse, reader.lane, reader.since, MOST_BUCKETS, reader.named_from)
        reader.clock = look.clock
        buckets = reader.changed(look.counts)
        if buckets:
            await self._rebuild_marked(reader, buckets, look.slices, threads)
        return reader.advance(look.counts, asked)

    async def rebuild_busy(self, threads: int) -> bool:
        """Rebuilds the live slices that were put aside because they take long; False: there is no more at once."""
        suspects, self._suspects = self._suspects, ()
        for chunk in _chunks(suspects):
            self._busy.review(await rebuild.stored_rows(self._clickhouse, chunk), time.monotonic())
        slices = self._busy.take()
        if slices:
            begun = time.monotonic()
            try:
                await self._rebuild_all(slices, threads)
            except BaseException:
                self._busy.give_back()
                raise
            now = time.monotonic()
            self._busy.finish(now - begun, now)
        return False

    async def commit(self) -> bool:
        """Moves the cursor to where the lanes are, and lays in versions; returns False: that is all.

        Done beside the lanes, so that no rebuild waits until PostgreSQL has written to its disk.

        Raises:
            FencedOut: A later leader has moved the cursor.
        """
        live = max(self._progress.live, self._busy.complete_until(self._live.done))
        reached = Progress(live, max(self._progress.late, self._late.done))
        if reached != self._progress:
            await metrics_state.move_cursor(self._database, CURSOR, reached.to_position(), self._epoch)
            self._progress = reached
        while len(self._versions) < _VERSIONS_AHEAD:
            await self._draw_version()
        return False

    async def sweep_once(self) -> bool:
        """Rebuilds slices that have events without a mark, and those that failed; returns False: it has seen all.

        It looks back over the window of the settings, and further if nobody has looked since: marks do not last.
        """
        now = await rebuild.now_millis(self._clickhouse)
        until = now - self._overlap
        since = min(now - int(self._settings.sweep_window.total_seconds() * 1000), self._swept - self._overlap)
        failed, self._failed = self._failed, set()
        found = len(failed)
        await self._rebuild_all(sorted(failed), 1)
        below: Slice | None = None
        floor = await self._floor()
        while True:
            page = await rebuild.unmarked_slices(self._clickhouse, max(since, 0), until, floor, below, _PAGE)
            for chunk in _chunks(page):
                stale = await rebuild.stale_slices(self._clickhouse, chunk)
                found += len(stale)
                await self._rebuild_all(stale, 1)
            if len(page) < _PAGE:
                break
            below = page[-1]
        self._swept = until
        if found:
            self._log.warning("lost_marks_found", slices=found)
        return False

    async def _again(self, step: Callable[[], Awaitable[bool]], pause: float, rest: float = 0.0) -> None:
        """Repeats a step for ever.

        Args:
            step: Returns whether there is more to do at once.
            pause: Seconds from one beginning to the next.
            rest: Seconds to rest at least, for each second worked.
        """
        failures = 0
        while True:
            begun = time.monotonic()
            more, failures = False, failures + 1
            with self._trouble:
                more = await step()
                failures = 0
            worked = time.monotonic() - begun
            wait = max(_LEAST_PAUSE_SECONDS, pause - worked, rest * worked)
            if failures:
                wait = max(pause, min(_LONGEST_PAUSE_SECONDS, pause * 2 ** min(failures, 10)))
            await asyncio.sleep(0 if more else wait)

    async def _rebuild_marked(
        self, reader: LaneReader, buckets: Sequence[int], named: Mapping[int, Sequence[Slice]], threads: int
    ) -> None:
        floor = await self._floor()
        if all(bucket in named for bucket in buckets):
            found = {each for bucket in buckets for each in named[bucket] if each.start >= floor}
            await self._rebuild_page(reader, sorted(found, key=lambda each: -each.start), threads)
            return
        below: Slice | None = None
        while True:
            page = await rebuild.marked_slices(self._clickhouse, reader.lane, buckets, floor, below, _PAGE)
            await self._rebuild_page(reader, page, threads)
            if len(page) < _PAGE:
                return
            below = page[-1]

    async def _rebuild_page(self, reader: LaneReader, page: Sequence[Slice], threads: int) -> None:
        if reader is self._live:
            await self._rebuild_live(page, threads)
        else:
            await self._rebuild_all(page, threads)

    async def _rebuild_live(self, page: Sequence[Slice], threads: int) -> None:
        """Rebuilds those of quiet clients, and has the others wait; looks into which they are when it was slow."""
        begun = time.monotonic()
        quiet, busy = self._busy.split(page, begun)
        self._busy.put(busy, self._live.done)
        await self._rebuild_all(quiet, threads)
        now = time.monotonic()
        if now - begun > SLOW_SECONDS and self._busy.should_review(now):
            self._suspects = quiet

    async def _rebuild_all(self, slices: Sequence[Slice], threads: int) -> None:
        for chunk in _chunks(slices):
            await self._rebuild(chunk, threads)

    async def _rebuild(self, slices: Sequence[Slice], threads: int) -> None:
        # Taken before the events are read: of two rebuilds, the one that began later knows more and prevails.
        version = await self._next_version()
        try:
            await rebuild.rebuild(self._clickhouse, slices, version, threads)
        except (ClickHouseError, TimeoutError) as error:
            await self._rebuild_less(slices, threads, error)
        else:
            await self._publish(slices, version)
            await self._announce(slices)

    async def _rebuild_less(self, slices: Sequence[Slice], threads: int, error: Exception) -> None:
        """One slice that cannot be rebuilt must not hold back the others."""
        if len(slices) > 1:
            half = len(slices) // 2
            await self._rebuild(slices[:half], threads)
            await self._rebuild(slices[half:], threads)
        elif isinstance(error, TimeoutError) or len(self._failed) >= _KEPT_FAILURES:
            raise error
        else:
            self._log.error(
                "slice_failed", campaign_id=str(slices[0].campaign_id), start=slices[0].start, exc_info=error
            )
            self._failed.update(slices)

    async def _next_version(self) -> int:
        while not self._versions:
            await self._draw_version()
        return self._versions.popleft()

    async def _draw_version(self) -> None:
        # One at a time, so that versions are used in the order in which they grow.
        async with self._drawing:
            self._versions.append(await metrics_state.next_version(self._database, self._epoch))

    async def _publish(self, slices: Sequence[Slice], version: int) -> None:
        clients = {str(s.client_id) for s in slices}
        named = sorted(clients) if len(clients) <= _NAMED_CLIENTS else None
        # Watchers also look by themselves, so a signal may be lost.
        with suppress(StoreUnavailable):
            await self._signals.publish(CHANNEL, json.dumps({"version": version, "clients": named}).encode())

    async def _announce(self, slices: Sequence[Slice]) -> None:
        """Has days rolled up again that may have been rolled up without what the slices hold now."""
        before = time.time() - self._rollup.grace.total_seconds()
        # Hours are enough: no zone's day ends within one.
        late = {(each.client_id, each.start // 3600 * 3600) for each in slices if each.start < before}
        if late:
            async with self._database.transaction("announce_late_events") as tx:
                await announce(tx, self._rollup.restatement_delay, instants=late)

    async def _floor(self) -> int:
        """Begin of the first slice that may be rebuilt, in Unix seconds."""
        return int((await metrics_state.get_raw_floor(self._database)).timestamp())


class Trouble:
    """Swallows store failures of a block and logs them now and then. Being fenced out passes through."""

    def __init__(self) -> None:
        self._silent_until = 0.0
        self._log = logs.get("aggregator")

    def met(self, error: Exception) -> None:
        """Notes a failure."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _LOG_PAUSE_SECONDS
            self._log.warning("store_failed", reason=str(error) or type(error).__name__)

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> bool:
        if isinstance(error, StoreError | TimeoutError) and not isinstance(error, FencedOut):
            self.met(error)
            return True
        return False


def _chunks(slices: Sequence[Slice]) -> list[Sequence[Slice]]:
    return [slices[start : start + _CHUNK] for start in range(0, len(slices), _CHUNK)]


async def _until_first_failure(*work: Coroutine[Any, Any, None]) -> None:
    """Runs endless work side by side until one of it fails, and raises that failure."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
