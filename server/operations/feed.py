"""How far the record of changes is settled, found out once for all who watch on this process."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

from server.rpc import logs
from server.settings import WatchSettings
from storage.errors import StoreError, StoreUnavailable
from storage.postgres import changes
from storage.postgres.database import Database
from storage.redis.signals import Signals

CHANNEL = "changes"
# While somebody's transaction is awaited no signal will tell of its end.
_WAITING_SECONDS = 0.05
_FAILURE_SECONDS = 1.0
_MOST_SIGHTINGS = 64
_NOTEWORTHY_SECONDS = 10.0
_LOG_PAUSE_SECONDS = 60.0


@dataclass(slots=True)
class _Sighting:
    """A head of the record, and who may still bring something below it."""

    head: int
    writers: frozenset[str]
    at: float


class ChangeFeed:
    """Says up to which number changes can be read without missing any. `run` it beside the server.

    It looks when told that something was recorded, here or by a signal of another process, and at every poll: signals
    may be lost, and other programs may write.

    Args:
        database: Holds the record.
        signals: Carries the word to other processes.
        settings: Pauses.
        draining: Set when the server shuts down, which wakes all watchers.
    """

    def __init__(self, database: Database, signals: Signals, settings: WatchSettings, draining: asyncio.Event) -> None:
        self._database = database
        self._signals = signals
        self._settings = settings
        self._draining = draining
        self._name = uuid4().bytes
        self._sightings: deque[_Sighting] = deque()
        self._watchers: set[asyncio.Event] = set()
        self._wake = asyncio.Event()
        self._recorded = asyncio.Event()
        self._log = logs.get("changes")
        self._silent_until = 0.0
        self.settled = 0
        self.floor = 0

    def announce(self) -> None:
        """Tells that changes were recorded and committed."""
        self._wake.set()
        self._recorded.set()

    @contextmanager
    def subscribe(self) -> Iterator[asyncio.Event]:
        """Gives an event that is set whenever there may be something new, while inside."""
        event = asyncio.Event()
        self._watchers.add(event)
        self._wake.set()
        try:
            yield event
        finally:
            self._watchers.discard(event)

    @property
    def lag(self) -> float:
        """Seconds for which the oldest change not settled yet has been waiting."""
        return asyncio.get_running_loop().time() - self._sightings[0].at if self._sightings else 0.0

    async def run(self) -> None:
        """Works for ever, whatever store is down."""
        async with asyncio.TaskGroup() as tasks:
            for work in (self._listen, self._publish, self._keep_current, self._drain):
                tasks.create_task(work())

    async def _listen(self) -> None:
        async for payload in self._signals.listen(CHANNEL):
            if payload != self._name:
                self._wake.set()

    async def _publish(self) -> None:
        """Passes the word on, once for many changes at a time."""
        while True:
            await self._recorded.wait()
            self._recorded.clear()
            try:
                await self._signals.publish(CHANNEL, self._name)
            except StoreUnavailable:
                # Others will see it when they poll.
                await asyncio.sleep(_FAILURE_SECONDS)
            await asyncio.sleep(self._settings.tick)

    async def _keep_current(self) -> None:
        while True:
            pause = self._settings.poll
            if self._watchers:
                try:
                    await self.look()
                except (StoreError, TimeoutError) as error:
                    self._log.warning("look_failed", error=type(error).__name__)
                    await asyncio.sleep(_FAILURE_SECONDS)
                if self._sightings:
                    pause = min(pause, max(_WAITING_SECONDS, self.lag / 10))
            else:
                self._sightings.clear()
            await self._until_needed(pause)

    async def look(self) -> None:
        """Finds out how far the record is settled now, and wakes the watchers if that is further."""
        head, self.floor = await changes.head(self._database)
        # Only after the head: whoever may still bring a lower number is among these.
        writers = await changes.writers(self._database)
        now = asyncio.get_running_loop().time()
        if head < self.settled:
            # The database was set back while this process ran.
            self.settled = head
            self._sightings.clear()
        if head > (self._sightings[-1].head if self._sightings else self.settled):
            if len(self._sightings) == _MOST_SIGHTINGS:
                self._sightings.pop()
            self._sightings.append(_Sighting(head, writers, now))
        before = self.settled
        for sighting in self._sightings:
            sighting.writers &= writers
        while self._sightings and not self._sightings[0].writers:
            self.settled = self._sightings.popleft().head
        if self.settled != before:
            self._wake_all()
        if self.lag > _NOTEWORTHY_SECONDS and now > self._silent_until:
            self._silent_until = now + _LOG_PAUSE_SECONDS
            self._log.warning("changes_held_back", seconds=round(self.lag), writers=len(self._sightings[0].writers))

    async def _until_needed(self, pause: float) -> None:
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _drain(self) -> None:
        await self._draining.wait()
        self._wake_all()

    def _wake_all(self) -> None:
        for event in self._watchers:
            event.set()
