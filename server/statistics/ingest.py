"""Stores batches of events: bounded, several at a time, and never in doubt about what became of one."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from server.monitoring import events as counted
from server.rpc import logs
from server.rpc.errors import ResourceExhausted, Unavailable
from server.settings import IngestSettings
from server.statistics import batches
from server.statistics.groups import InsertQueue, Work
from server.statistics.relay import CampaignDirectory
from server.statistics.wire import Batch
from storage.clickhouse import events
from storage.clickhouse.connect import STORE, ClickHouse
from storage.clickhouse.events import BatchRejected, Bounds
from storage.clickhouse.pseudonyms import Salt
from storage.errors import StoreError, StoreUnavailable
from storage.postgres import metrics_state, user_id_salts
from storage.postgres.database import Database

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_FULL_RETRY_SECONDS = 1.0
_FLOOR_SECONDS = 10.0
_SALT_SECONDS = 60.0
_WARNING_SECONDS = 5.0
# So often a batch may fail together with others before it is tried by itself, whatever the failure says.
_SHARED_TRIES = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch: every event is in one of the two."""

    stored: int
    quarantined: int


class Patience(Protocol):
    """Says how long a batch whose fate is unknown is tried again."""

    def over(self) -> bool:
        """Whether to give up now."""


@dataclass(slots=True)
class Deadline:
    """Patience until a time of the running loop's clock."""

    at: float

    def over(self) -> bool:
        """Whether that time has come."""
        return asyncio.get_running_loop().time() >= self.at


class RawFloor:
    """The time before which raw events may be gone, asked for again every few seconds.

    Raising it is safe at any time: what is stored below it in between is never rebuilt from.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seconds = 0
        self._asked: float | None = None

    async def seconds(self) -> int:
        """The floor in whole seconds of Unix time, rounded up."""
        now = time.monotonic()
        if self._asked is None or now - self._asked >= _FLOOR_SECONDS:
            self._seconds = math.ceil((await metrics_state.get_raw_floor(self._database)).timestamp())
            self._asked = now
        return self._seconds


class SaltBook:
    """The secrets under which user ids are hashed. One that was dropped is noticed within a minute.

    Args:
        database: Where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[UUID, tuple[float, Salt]] = {}

    async def of(self, client_id: UUID) -> Salt:
        """The salt of a client, made on first use."""
        now = time.monotonic()
        asked, salt = self._known.get(client_id, (-math.inf, None))
        if salt is None or now - asked >= _SALT_SECONDS:
            salt = Salt.of(await user_id_salts.get_internal(self._database, client_id))
            self._known[client_id] = now, salt
        return salt


class Ingestor:
    """Puts batches into ClickHouse.

    Args:
        clickhouse: Where events go.
        directory: Finds campaigns that ClickHouse does not know yet.
        floor: Time before which nothing is stored.
        salts: Secrets of the pseudonyms that stand for user ids.
        settings: Limits.
    """

    def __init__(
        self,
        clickhouse: ClickHouse,
        directory: CampaignDirectory,
        floor: RawFloor,
        salts: SaltBook,
        settings: IngestSettings,
    ) -> None:
        self._clickhouse = clickhouse
        self._directory = directory
        self._floor = floor
        self._salts = salts
        self._settings = settings
        self._queue = InsertQueue(clickhouse, settings)
        self._queued_bytes = 0
        self._queued_of: dict[UUID, int] = {}
        self._silent_until = 0.0
        self._log = logs.get("ingest")

    @property
    def queued_bytes(self) -> int:
        """Bytes of all batches that are waiting or being stored."""
        return self._queued_bytes

    def has_room(self, client_id: UUID, size: int) -> bool:
        """Whether a batch of this many bytes fits into the queue; an empty one takes any.

        No client may have more in the queue than it leaves free, so that there is always room for another one.
        """
        free = self._settings.queue_bytes - self._queued_bytes
        own = self._queued_of.get(client_id, 0)
        return not self._queued_bytes or (size <= free and (not own or own + size <= free))

    def submit(
        self, client_id: UUID, batch: Batch, patience: Patience, bounds: Bounds | None = None
    ) -> asyncio.Task[Outcome]:
        """Puts a batch into the queue; the task is that of `store`.

        Raises:
            ResourceExhausted: The queue is full.
        """
        size = len(batch.data)
        if not self.has_room(client_id, size):
            raise ResourceExhausted(
                "the ingest queue is full, try again", reason="INGEST_QUEUE_FULL", retry_after=_FULL_RETRY_SECONDS
            )
        self._queued_bytes += size
        self._queued_of[client_id] = self._queued_of.get(client_id, 0) + size
        begun = time.perf_counter()
        task = asyncio.create_task(self.store(client_id, batch, patience, bounds))

        def ended(done: asyncio.Task[Outcome]) -> None:
            self._release(client_id, size)
            _count(done, time.perf_counter() - begun)

        task.add_done_callback(ended)
        return task

    def _release(self, client_id: UUID, size: int) -> None:
        self._queued_bytes -= size
        self._queued_of[client_id] -= size
        if not self._queued_of[client_id]:
            del self._queued_of[client_id]

    async def store(self, client_id: UUID, batch: Batch, patience: Patience, bounds: Bounds | None = None) -> Outcome:
        """Stores a batch and returns once its fate is durable. Doing it again changes nothing.

        Args:
            client_id: The client whose campaigns the events must belong to.
            batch: The events.
            patience: When to give up while ClickHouse does not say what became of the batch.
            bounds: Event times to accept; those of live events if absent.

        Raises:
            BatchMalformed: Events are at fault; nothing is stored.
            Unavailable: Patience is over; the batch may be stored or not.
            StoreError: PostgreSQL is away; the batch is not stored.
        """
        # Fixed once: a retry must sort the events as the first try did.
        work = Work(client_id, batch, bounds or await self._bounds(), await self._salts.of(client_id))
        failures = 0
        alone = False

        async def insert_as_is() -> None:
            nonlocal failures, alone
            try:
                await self._queue.insert(work, alone=alone)
            except BatchRejected:
                raise
            except (StoreError, TimeoutError) as error:
                # It may be this batch that fails whatever it is inserted with.
                failures += 1
                alone = failures >= _SHARED_TRIES or not isinstance(error, StoreUnavailable)
                raise

        try:
            await self._until_known(insert_as_is, patience)
        except BatchRejected:
            return await self._store_sorted(work, patience)
        return Outcome(batch.count, 0)

    async def _store_sorted(self, work: Work, patience: Patience) -> Outcome:
        """The slow path: names the faults of a refused batch, or stores it in two parts if it has none."""
        try:
            decoded = await batches.decode(work.batch.data)
            clients = await self._directory.resolve_unknown(batches.campaign_ids(decoded))
            batches.check_campaigns(decoded, work.client_id, clients)
        except batches.BatchMalformed:
            self._queue.suspect(work.client_id)
            raise
        parts = await batches.split(decoded, work.bounds, work.salt)
        if parts.quarantined:
            self._queue.suspect(work.client_id)
        db, timeout = self._clickhouse, self._settings.insert_timeout

        async def insert_parts() -> None:
            async with self._queue.slot(work.client_id, len(work.batch.data)):
                if parts.accepted_count:
                    await events.insert(db, work.client_id, parts.accepted, work.bounds, work.salt, timeout=timeout)
                await events.quarantine(db, work.client_id, parts.quarantined, timeout=timeout)

        # A rejection of events without fault comes from something behind the table: their fate is unknown.
        await self._until_known(insert_parts, patience, retried=(BatchRejected, StoreError, TimeoutError))
        return Outcome(parts.accepted_count, len(parts.quarantined))

    async def _until_known(
        self,
        attempt: Callable[[], Awaitable[None]],
        patience: Patience,
        retried: tuple[type[Exception], ...] = (StoreError, TimeoutError),
    ) -> None:
        """Repeats an insert until ClickHouse has said that it is stored, or that it is refused."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await attempt()
            except BatchRejected as error:
                if BatchRejected not in retried:
                    raise
                failure: Exception = error
            except retried as error:
                failure = error
            self._warn(failure)
            if patience.over():
                raise Unavailable.store(STORE)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads retries
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _warn(self, failure: Exception) -> None:
        """Logs that inserts fail, not each of the many tries while ClickHouse is away."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + _WARNING_SECONDS
            self._log.warning("insert_unknown", reason=str(failure), error=type(failure).__name__)

    async def import_bounds(self) -> Bounds:
        """Event times that an import may bring: any past one whose raw rows are kept."""
        # An absent time reads as zero and must never pass.
        return Bounds(max(1, await self._floor.seconds()), (await self._bounds()).upper)

    async def _bounds(self) -> Bounds:
        now = time.time()
        oldest = math.ceil(now - self._settings.max_event_age.total_seconds())
        latest = math.floor(now + self._settings.max_event_future.total_seconds())
        # An absent time reads as zero and must never pass.
        return Bounds(max(1, oldest, await self._floor.seconds()), latest)


def _count(done: asyncio.Task[Outcome], seconds: float) -> None:
    if done.cancelled() or done.exception() is not None:
        counted.INGEST_FAILED_BATCHES.inc()
        return
    counted.INGEST_SECONDS.observe(seconds)
    counted.INGEST_STORED.inc(done.result().stored)
    counted.INGEST_QUARANTINED.inc(done.result().quarantined)
