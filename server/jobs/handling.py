"""What the handler of a kind of job is, and what it is given."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from server.platforms.registry import Platforms
from server.sealing import KeyRing
from server.search.embedder import Embedders
from server.settings import Settings
from storage.clickhouse.connect import ClickHouse
from storage.milvus.connect import Milvus
from storage.objects.store import Objects
from storage.postgres import jobs
from storage.postgres.database import Database, Transaction
from storage.postgres.jobs import Job
from storage.redis.signals import Signals


@dataclass(frozen=True, slots=True)
class Stores:
    """What a handler may work on.

    Attributes:
        objects: None when the service keeps no files.
        keyring: Opens the credentials of platforms; may be empty.
        platforms: The only way out; shared, because limits of accounts are counted there.
        milvus: None when nothing is searched by meaning.
        embedders: What makes vectors of texts.
    """

    database: Database
    clickhouse: ClickHouse
    objects: Objects | None
    keyring: KeyRing
    signals: Signals
    settings: Settings
    platforms: Platforms
    milvus: Milvus | None
    embedders: Embedders


class JobFailed(Exception):
    """The job cannot be done.

    Attributes:
        message: Why, for people; holds no secret. It is stored and shown.
        final: Whether another try would fail as well.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.final = final


class JobPostponed(Exception):
    """The job has to wait for somebody else: it is begun anew later, which costs it no attempt.

    Attributes:
        delay: How much later.
        reason: What it waits for, for people; holds no secret. It is stored and shown.
    """

    def __init__(self, delay: timedelta, reason: str) -> None:
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class JobCancelled(Exception):
    """The handler stopped because it was asked to."""


class LeaseLost(Exception):
    """The try is no longer the present one: nothing that it still does may count."""


class JobContext:
    """How a handler deals with its job.

    A job may be begun more than once, so whatever a handler does in PostgreSQL it does in `transaction`, and whatever
    it does elsewhere must be harmless when repeated.

    Args:
        stores: What the handler may work on.
        job: The job, as it was claimed.
        lease: How long the claim holds without a sign.
    """

    def __init__(self, stores: Stores, job: Job, lease: timedelta) -> None:
        self.stores = stores
        self._job = job
        self._lease = lease
        self.cancelled = asyncio.Event()

    async def heartbeat(self, progress: Mapping[str, Any] | None = None) -> None:
        """Prolongs the claim; the worker does so by itself, too.

        Raises:
            LeaseLost: The try is no longer the present one.
        """
        asked = await jobs.heartbeat_internal(
            self.stores.database, self._job.id, self._job.fence, self._lease, progress
        )
        if asked is None:
            raise LeaseLost
        if asked:
            self.cancelled.set()

    async def progress(self, done: int, total: int, note: str = "") -> None:
        """Tells how far the job is, and stops it if that was asked for.

        Raises:
            JobCancelled: Somebody cancelled it; let it pass.
            LeaseLost: The try is no longer the present one.
        """
        await self.heartbeat({"done": done, "total": total, "note": note})
        if self.cancelled.is_set():
            raise JobCancelled

    @asynccontextmanager
    async def transaction(self, name: str) -> AsyncIterator[Transaction]:
        """A transaction that commits only while the try is the present one.

        Raises:
            LeaseLost: It is not.
        """
        async with self.stores.database.transaction(name) as tx:
            if not await jobs.hold_internal(tx, self._job.id, self._job.fence):
                raise LeaseLost
            yield tx


Handler: TypeAlias = Callable[[Job, JobContext], Awaitable[Mapping[str, Any] | None]]
"""Does a job: returns its result, or raises `JobFailed` or `JobPostponed`. Anything else raised is tried again."""
