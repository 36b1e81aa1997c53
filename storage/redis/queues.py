"""Queues that BullMQ, for Python or for Node, takes jobs from. They only deliver: PostgreSQL says what a job is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

import bullmq
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from storage.errors import StoreUnavailable
from storage.postgres.jobs import Delivery
from storage.redis.clients import client
from storage.redis.dsn import parse_dsn

STORE: Final = "redis"
# Keys are `queue:sync:wait` and so on.
_PREFIX: Final = "queue"
# Larger than any priority that PostgreSQL holds: BullMQ counts downwards and takes 0 for none.
_LEAST: Final = 2**15
_ADD_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class JobQueues:
    """Puts jobs on their queues.

    Args:
        dsn: Redis URL of a server that evicts nothing.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._queues: dict[str, Any] = {}

    async def add(self, deliveries: Iterable[Delivery]) -> None:
        """Adds jobs. What is left of the delivery that one repeats is removed, unless a worker has it.

        Each delivery has an entry of its own name: BullMQ adds none whose name is known, and half of an entry, which a
        lost Redis may leave, is enough to be known.

        Raises:
            StoreUnavailable: Some of them may be missing.
        """
        by_queue: dict[str, list[dict[str, Any]]] = {}
        try:
            async with asyncio.timeout(_ADD_SECONDS):
                for each in deliveries:
                    if each.before is not None:
                        await self._queue(each.queue).remove(f"{each.id}-{each.before}", {"removeChildren": False})
                    # PostgreSQL decides on tries, and an entry without a claim behind it is worth nothing.
                    options = {
                        "jobId": f"{each.id}-{each.number}",
                        "attempts": 1,
                        "removeOnComplete": True,
                        "removeOnFail": True,
                        "priority": _LEAST - each.priority,
                    }
                    entry = {"name": each.type, "data": {"job_id": str(each.id)}, "opts": options}
                    by_queue.setdefault(each.queue, []).append(entry)
                for name, entries in by_queue.items():
                    await self._queue(name).addBulk(entries)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(STORE, type(error).__name__) from None

    async def close(self) -> None:
        """Closes all connections."""
        for queue in self._queues.values():
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await queue.close()

    def _queue(self, name: str) -> Any:
        if name not in self._queues:
            self._queues[name] = bullmq.Queue(name, {"prefix": _PREFIX, "connection": _connection(self._dsn)})
        return self._queues[name]


class JobConsumer:
    """Takes jobs from one queue, some at a time.

    Args:
        dsn: Redis URL.
        queue: The queue.
        concurrency: Jobs at the same time.
        work: Told the id of each job. The same job may come more than once.
    """

    def __init__(self, dsn: str, queue: str, concurrency: int, work: Callable[[UUID], Awaitable[None]]) -> None:
        self._dsn = dsn
        self._queue = queue
        self._concurrency = concurrency
        self._work = work
        self._worker: Any = None

    async def run(self) -> None:
        """Takes jobs until cancelled."""
        while True:
            worker = self._worker = bullmq.Worker(
                self._queue,
                self._process,
                {
                    "prefix": _PREFIX,
                    "connection": _connection(self._dsn),
                    "concurrency": self._concurrency,
                    "autorun": False,
                    "runRetryDelay": int(_AGAIN_SECONDS * 1000),
                    # A job whose worker is lost is delivered anew by PostgreSQL; how often BullMQ did it is no matter.
                    "maxStalledCount": 2**20,
                },
            )
            worker.on("error", self._told)
            try:
                # It returns without a word when its own loop fails.
                await worker.run()
            except (RedisError, OSError, TimeoutError) as error:
                self._told(error)
            finally:
                await self.close()
            await asyncio.sleep(_AGAIN_SECONDS)

    async def close(self) -> None:
        """Takes no more jobs and lets go of the connections; whoever works on one must have been told before."""
        worker, self._worker = self._worker, None
        if worker is not None:
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await worker.close(force=True)

    async def _process(self, entry: Any, token: str) -> None:
        await self._work(UUID(entry.data["job_id"]))

    def _told(self, error: object, *details: object) -> None:
        _log.info("queue_error %s %s", self._queue, type(error).__name__)


def _connection(dsn: str) -> Any:
    """What BullMQ is to connect with: the URL, or, since it knows no sentinels, a client that does."""
    if not parse_dsn(dsn).sentinels:
        return dsn
    # A connection that redis-py itself makes again goes where it went before, to the dead primary: sentinels are asked
    # only for a new one. BullMQ repeats what fails.
    return client(dsn, decode_responses=True, retry=Retry(NoBackoff(), 0))
