"""Turns events into figures: one process at a time rebuilds the slices whose events changed.

Two lanes run side by side, so that a backfill of old events never holds back the slices people are watching.
"""

import asyncio
import json
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from server.rpc import logs
from server.settings import MetricsSettings
from server.statistics.lanes import MOST_BUCKETS, LaneReader
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
_LATE_PAUSE_SECONDS = 1.0
_IDLE_COMMIT_SECONDS = 0.5
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
    """

    def __init__(
        self, database: Database, clickhouse: ClickHouse, signals: Signals, settings: MetricsSettings, *, holder: str
    ) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._signals = signals
        self._settings = settings
        self._holder = holder
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
            leader = Leader(self._database, self._clickhouse, self._signals, self._settings, epoch, progress)
            await _until_first_failure(self._keep_lease(epoch), leader.live(), leader.late(), leader.sweep())
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
    """

    def __init__(
        self,
        database: Database,
        clickhouse: ClickHouse,
        signals: Signals,
        settings: MetricsSettings,
        epoch: int,
        progress: Progress,
    ) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._signals = signals
        self._settings = settings
        self._epoch = epoch
        self._progress = progress
        self._overlap = int(settings.mark_overlap.total_seconds() * 1000)
        self._live = LaneReader("live", progress.live, self._overlap)
        self._late = LaneReader("late", progress.late, self._overlap)
        self._swept = progress.watermark
        self._failed: set[Slice] = set()
        self._committing = asyncio.Lock()
        self._committed = 0.0
        self._log = logs.get("aggregator")
        self._trouble = Trouble()

    async def live(self) -> None:
        """Works the live lane off, again and again."""
        await self._follow(self._live, self._settings.tick, self._settings.max_threads)

    async def late(self) -> None:
        """Works the late lane off, again and again, with half the threads."""
        await self._follow(self._late, _LATE_PAUSE_SECONDS, max(1, self._settings.max_threads // 2))

    async def sweep(self) -> None:
        """Looks for slices whose mark was lost, again and again."""
        while True:
            with self._trouble:
                await self.sweep_once()
            await asyncio.sleep(self._settings.sweep_interval)

    async def tick(self, reader: LaneReader, threads: int) -> bool:
        """Rebuilds what was marked since the last tick, and moves the cursor.

        Returns:
            Whether there may be more to do at once.

        Raises:
            FencedOut: A later leader has moved the cursor.
        """
        # Every acknowledged insert has its marks in place, so all that was acknowledged before this instant is counted.
        asked = await rebuild.now_millis(self._clickhouse)
        counts = await rebuild.mark_counts(self._clickhouse, reader.lane, reader.since, MOST_BUCKETS)
        buckets = reader.changed(counts)
        if buckets:
            await self._rebuild_marked(reader, buckets, threads)
        more = reader.advance(counts, asked)
        await self._commit(at_once=bool(buckets))
        return more

    async def sweep_once(self) -> int:
        """Rebuilds slices that have events without a mark, and those that failed; returns how many.

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
        return found

    async def _follow(self, reader: LaneReader, pause: float, threads: int) -> None:
        failures = 0
        while True:
            more, failures = False, failures + 1
            with self._trouble:
                more = await self.tick(reader, threads)
                failures = 0
            await asyncio.sleep(0 if more else min(_LONGEST_PAUSE_SECONDS, pause * 2 ** min(failures, 10)))

    async def _rebuild_marked(self, reader: LaneReader, buckets: Sequence[int], threads: int) -> None:
        floor = await self._floor()
        below: Slice | None = None
        while True:
            page = await rebuild.marked_slices(self._clickhouse, reader.lane, buckets, floor, below, _PAGE)
            await self._rebuild_all(page, threads)
            if len(page) < _PAGE:
                return
            below = page[-1]

    async def _rebuild_all(self, slices: Sequence[Slice], threads: int) -> None:
        for chunk in _chunks(slices):
            await self._rebuild(chunk, threads)

    async def _rebuild(self, slices: Sequence[Slice], threads: int) -> None:
        # Drawn before the events are read: of two rebuilds, the one that began later knows more and prevails.
        version = await metrics_state.next_version(self._database, self._epoch)
        try:
            await rebuild.rebuild(self._clickhouse, slices, version, threads)
        except (ClickHouseError, TimeoutError) as error:
            await self._rebuild_less(slices, threads, error)
        else:
            await self._publish(slices, version)

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

    async def _commit(self, *, at_once: bool) -> None:
        """Moves the cursor; when nothing was rebuilt, not at every tick."""
        loop = asyncio.get_running_loop()
        if not at_once and loop.time() < self._committed + _IDLE_COMMIT_SECONDS:
            return
        async with self._committing:
            self._progress.live, self._progress.late = self._live.done, self._late.done
            await metrics_state.move_cursor(self._database, CURSOR, self._progress.to_position(), self._epoch)
            self._committed = loop.time()

    async def _publish(self, slices: Sequence[Slice], version: int) -> None:
        clients = {str(s.client_id) for s in slices}
        named = sorted(clients) if len(clients) <= _NAMED_CLIENTS else None
        # Watchers also look by themselves, so a signal may be lost.
        with suppress(StoreUnavailable):
            await self._signals.publish(CHANNEL, json.dumps({"version": version, "clients": named}).encode())

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
