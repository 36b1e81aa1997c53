"""Stores batches of events: bounded, several at a time, and never in doubt about what became of one."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from server.rpc import logs
from server.rpc.errors import ResourceExhausted, Unavailable
from server.settings import IngestSettings
from server.statistics import batches
from server.statistics.relay import CampaignDirectory
from server.statistics.wire import Batch
from storage.clickhouse import events
from storage.clickhouse.connect import STORE, ClickHouse
from storage.clickhouse.events import BatchRejected, Bounds
from storage.errors import StoreError
from storage.postgres import metrics_state
from storage.postgres.database import Database

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_FULL_RETRY_SECONDS = 1.0
_FLOOR_SECONDS = 10.0
_WARNING_SECONDS = 5.0


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


class Ingestor:
    """Puts batches into ClickHouse.

    Args:
        clickhouse: Where events go.
        directory: Finds campaigns that ClickHouse does not know yet.
        floor: Time before which nothing is stored.
        settings: Limits.
    """

    def __init__(
        self, clickhouse: ClickHouse, directory: CampaignDirectory, floor: RawFloor, settings: IngestSettings
    ) -> None:
        self._clickhouse = clickhouse
        self._directory = directory
        self._floor = floor
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.inserts_in_flight)
        self._queued_bytes = 0
        self._silent_until = 0.0
        self._log = logs.get("ingest")

    @property
    def queued_bytes(self) -> int:
        """Bytes of all batches that are waiting or being stored."""
        return self._queued_bytes

    def has_room(self, size: int) -> bool:
        """Whether a batch of this many bytes fits into the queue; an empty one takes any."""
        return not self._queued_bytes or self._queued_bytes + size <= self._settings.queue_bytes

    def submit(self, client_id: UUID, batch: Batch, patience: Patience) -> asyncio.Task[Outcome]:
        """Puts a batch into the queue; the task is that of `store`.

        Raises:
            ResourceExhausted: The queue is full.
        """
        size = len(batch.data)
        if not self.has_room(size):
            raise ResourceExhausted(
                "the ingest queue is full, try again", reason="INGEST_QUEUE_FULL", retry_after=_FULL_RETRY_SECONDS
            )
        self._queued_bytes += size
        task = asyncio.create_task(self.store(client_id, batch, patience))
        task.add_done_callback(lambda _: self._release(size))
        return task

    def _release(self, size: int) -> None:
        self._queued_bytes -= size

    async def store(self, client_id: UUID, batch: Batch, patience: Patience) -> Outcome:
        """Stores a batch and returns once its fate is durable. Doing it again changes nothing.

        Args:
            client_id: The client whose campaigns the events must belong to.
            batch: The events.
            patience: When to give up while ClickHouse does not say what became of the batch.

        Raises:
            BatchMalformed: Events are at fault; nothing is stored.
            Unavailable: Patience is over; the batch may be stored or not.
            StoreError: PostgreSQL is away; the batch is not stored.
        """
        # Fixed once: a retry must sort the events as the first try did.
        bounds = await self._bounds()
        timeout = self._settings.insert_timeout

        async def insert_as_is() -> None:
            await events.insert(self._clickhouse, client_id, batch.data, bounds, timeout=timeout)

        try:
            await self._until_known(insert_as_is, patience)
        except BatchRejected:
            return await self._store_sorted(client_id, batch, bounds, patience)
        return Outcome(batch.count, 0)

    async def _store_sorted(self, client_id: UUID, batch: Batch, bounds: Bounds, patience: Patience) -> Outcome:
        """The slow path: names the faults of a refused batch, or stores it in two parts if it has none."""
        decoded = await batches.decode(batch.data)
        clients = await self._directory.resolve_unknown(batches.campaign_ids(decoded))
        batches.check_campaigns(decoded, client_id, clients)
        parts = batches.split(decoded, bounds)
        timeout = self._settings.insert_timeout

        async def insert_parts() -> None:
            if parts.accepted_count:
                await events.insert(self._clickhouse, client_id, parts.accepted, bounds, timeout=timeout)
            await events.quarantine(self._clickhouse, client_id, parts.quarantined, timeout=timeout)

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
                async with self._slots:
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

    async def _bounds(self) -> Bounds:
        now = time.time()
        oldest = math.ceil(now - self._settings.max_event_age.total_seconds())
        latest = math.floor(now + self._settings.max_event_future.total_seconds())
        # An absent time reads as zero and must never pass.
        return Bounds(max(1, oldest, await self._floor.seconds()), latest)
