"""One question per tick for everything that anyone on this process watches."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID
from zoneinfo import ZoneInfo

from server.rpc import logs
from server.settings import WatchSettings
from server.statistics.aggregator import CHANNEL
from server.statistics.feeds import LATE_SECONDS, Choice, Feed, Mailbox, Span, by_client, utc_now
from server.statistics.watermark import WatermarkReader
from storage.clickhouse import metrics
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.metrics import LiveTotal, Watched
from storage.errors import StoreError
from storage.postgres import reach
from storage.postgres.database import Database
from storage.redis.signals import Signals
from storage.scope import EVERYTHING, Scope

_FAILURE_SECONDS = 1.0
_READ_SECONDS = 10.0
_WINDOWS_AT_ONCE = 32
_LOG_PAUSE_SECONDS = 60.0
# A message takes its writer well below a tenth of a millisecond, so the loop is never held for long.
_WOKEN_AT_ONCE = 50
# Time for their messages to leave, so that never all of them are in memory.
_BETWEEN_SECONDS = 0.003
# After a delivery the hub rests as long again, and at most so long.
_LONGEST_PAUSE_SECONDS = 0.5
# Between two checks of all rights there are so many times the time that one takes.
_RECHECK_PAUSE = 4


Question = list[tuple[Feed, set[UUID] | None]]
"""Feeds of one window, and the campaigns that each asks for."""


class WatchHub:
    """Keeps the state of everything watched on this process up to date. `run` it beside the server.

    It asks when a signal says that figures changed, and at every poll: signals may be lost.

    Args:
        database: Knows rights, campaigns and the watermark; while it is down, watches go on with what is known.
        clickhouse: Holds the figures.
        signals: Tells whose figures changed.
        settings: Pauses.
        clock: By what windows move.
    """

    def __init__(
        self,
        database: Database,
        clickhouse: ClickHouse,
        signals: Signals,
        settings: WatchSettings,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._signals = signals
        self._settings = settings
        self._clock = clock
        self._watermark = WatermarkReader(database)
        self._feeds: dict[tuple[UUID, Span], Feed] = {}
        self._wake = asyncio.Event()
        self._touched: set[UUID] = set()
        self._poll_at = 0.0
        self._delivering = 0.0
        self._read_at = time.monotonic()
        self._log = logs.get("watch")
        self._silent_until = 0.0

    @contextmanager
    def subscribe(
        self, scope: Scope, client_id: UUID, span: Span, choice: Choice, draining: asyncio.Event
    ) -> Iterator[Mailbox]:
        """Watches campaigns of a client while inside.

        Args:
            scope: What the watcher may see; checked again and again.
            client_id: The client.
            span: The time.
            choice: Which of its campaigns.
            draining: Set when the server shuts down, which wakes the watcher.
        """
        feed = self._feeds.get((client_id, span))
        if feed is None:
            feed = self._feeds[client_id, span] = Feed(client_id, span)
        mailbox = feed.join(choice, scope, draining)
        self._wake.set()
        try:
            yield mailbox
        finally:
            feed.leave(mailbox)
            if not feed.watched:
                self._feeds.pop((client_id, span), None)

    @property
    def watchers(self) -> int:
        """How many watch on this process."""
        return len(self._mailboxes())

    @property
    def lag(self) -> float:
        """Seconds since what is watched here was last read; 0 while nobody watches. Normal is up to the poll."""
        return time.monotonic() - self._read_at if self._feeds else 0.0

    async def run(self) -> None:
        """Works for ever, whatever store is down."""
        async with asyncio.TaskGroup() as tasks:
            for work in (self._listen, self._keep_current, self._tend, self._recheck):
                tasks.create_task(work())

    async def _keep_current(self) -> None:
        while True:
            await self._until_needed()
            begun = time.monotonic()
            try:
                await self.cycle()
            except (StoreError, TimeoutError) as error:
                self._failed(error)
                await asyncio.sleep(_FAILURE_SECONDS)
            # With more watchers than can be told at every tick, ticks grow longer: other calls, and what makes the
            # figures, need the processor as well, and a delay that they share is the least delay.
            rest = min(self._delivering, _LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(max(rest, begun + self._settings.tick - time.monotonic()))

    async def _tend(self) -> None:
        """Wakes watchers that have been silent for long, and gives up on those that do not read."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(LATE_SECONDS, self._settings.tick))
            now, woken = loop.time(), 0
            for mailbox in self._mailboxes():
                woken += mailbox.tend(now)
                if woken == _WOKEN_AT_ONCE:
                    woken = 0
                    await asyncio.sleep(0)

    async def _deliver(self, feeds: list[Feed]) -> None:
        """Wakes those who are to be told something, some at a time: other calls come in between."""
        woken = 0
        for feed in feeds:
            for mailbox in list(feed.mailboxes):
                woken += mailbox.news and mailbox.wake()
                if woken == _WOKEN_AT_ONCE:
                    woken = 0
                    await asyncio.sleep(_BETWEEN_SECONDS)

    def _mailboxes(self) -> list[Mailbox]:
        return [mailbox for feed in self._feeds.values() for mailbox in feed.mailboxes]

    async def cycle(self) -> None:
        """Reads what may have changed, and tells the watchers."""
        self._delivering = 0.0
        polling = time.monotonic() >= self._poll_at
        touched, self._touched = self._touched, set()
        self._wake.clear()
        if polling:
            self._poll_at = time.monotonic() + self._settings.poll
        await self._reload({f.client_id for f in self._feeds.values() if polling or f.outdated})
        known = [feed for feed in self._feeds.values() if feed.campaigns is not None]
        now = self._clock()
        for feed in known:
            feed.roll(now)
        feeds = [feed for feed in known if polling or not feed.ready or feed.client_id in touched]
        try:
            await self._refresh(feeds)
        except (StoreError, TimeoutError):
            self._poll_now()
            raise
        self._read_at = time.monotonic()

    async def _refresh(self, feeds: list[Feed]) -> None:
        if not feeds:
            return
        # Read before the figures, so that the figures are at least as new as it says.
        watermark = await self._watermark.millis()
        windows: dict[tuple[int, int], Question] = {}
        for feed in feeds:
            windows.setdefault(feed.window, []).append((feed, feed.selection()))
        ordered = list(windows.items())
        for start in range(0, len(ordered), _WINDOWS_AT_ONCE):
            part = ordered[start : start + _WINDOWS_AT_ONCE]
            rows = await metrics.live_totals(self._clickhouse, [_watched(*each) for each in part], _READ_SECONDS)
            self._distribute([question for _, question in part], rows, watermark)
        begun = time.monotonic()
        await self._deliver(feeds)
        self._delivering = time.monotonic() - begun

    def _distribute(self, questions: list[Question], rows: list[LiveTotal], watermark: int) -> None:
        found: dict[tuple[int, UUID], list[LiveTotal]] = {}
        for row in rows:
            found.setdefault((row.window, row.client_id), []).append(row)
        for index, question in enumerate(questions):
            for feed, asked in question:
                if not feed.apply(found.get((index, feed.client_id), ()), asked, watermark):
                    # A campaign that is not known yet was made a moment ago.
                    feed.outdated = True
                    self._wake.set()

    async def _reload(self, clients: set[UUID]) -> None:
        """Reads again what watched clients consist of."""
        if not clients:
            return
        try:
            zones = await reach.clients(self._database, EVERYTHING, list(clients))
            campaigns = by_client(await reach.campaigns(self._database, EVERYTHING, list(clients)))
        except (StoreError, TimeoutError) as error:
            self._failed(error)
            return
        for feed in self._feeds.values():
            if feed.client_id in zones:
                feed.adopt(_zone(zones[feed.client_id]), campaigns.get(feed.client_id, {}))

    async def _recheck(self) -> None:
        """Checks rights for ever. However many watchers there are, it leaves most of the time to others."""
        while True:
            begun = time.monotonic()
            await self._check_rights()
            await asyncio.sleep(max(self._settings.recheck, _RECHECK_PAUSE * (time.monotonic() - begun)))

    async def _check_rights(self) -> None:
        """Ends the watches of those who may no longer see the client; rights that cannot be read have not ended."""
        watchers: dict[tuple[Scope, UUID], list[Mailbox]] = {}
        for mailbox in self._mailboxes():
            watchers.setdefault((mailbox.scope, mailbox.feed.client_id), []).append(mailbox)
        if not watchers:
            return
        try:
            visible = await reach.still_visible(self._database, list(watchers))
        except (StoreError, TimeoutError) as error:
            self._failed(error)
            return
        for mailboxes, still in zip(watchers.values(), visible, strict=True):
            if not still:
                for mailbox in mailboxes:
                    mailbox.revoke()

    async def _listen(self) -> None:
        async for payload in self._signals.listen(CHANNEL):
            clients = _clients(payload) if payload is not None else None
            if clients is None:
                self._poll_now()
            else:
                self._touched |= clients
                if any(feed.client_id in clients for feed in self._feeds.values()):
                    self._wake.set()

    def _poll_now(self) -> None:
        self._poll_at = 0.0
        self._wake.set()

    async def _until_needed(self) -> None:
        if not self._feeds:
            self._touched.clear()
            await self._wake.wait()
            # Nobody has waited for anything until now.
            self._read_at = time.monotonic()
            return
        try:
            async with asyncio.timeout(max(0.0, self._poll_at - time.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            return

    def _failed(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _LOG_PAUSE_SECONDS
            self._log.warning("store_failed", reason=str(error) or type(error).__name__)


def _zone(name: str) -> ZoneInfo:
    """A zone; UTC if only PostgreSQL knows its name, which new watches of days are told."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return ZoneInfo("UTC")


def _watched(window: tuple[int, int], question: Question) -> Watched:
    clients: dict[UUID, set[UUID] | None] = {}
    for feed, wanted in question:
        before = clients.get(feed.client_id, set())
        clients[feed.client_id] = None if wanted is None or before is None else wanted | before
    return Watched(*window, clients)


def _clients(payload: bytes) -> set[UUID] | None:
    """Clients that a signal names; None if it names none, or is not ours to read."""
    try:
        named = json.loads(payload)["clients"]
        return None if named is None else {UUID(each) for each in named}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
