"""What keeps jobs from beginning, while workers take them from a real Redis: limits, throttles, pauses, its loss."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis.asyncio as redis

from server.jobs.handling import JobContext, Stores
from server.jobs.worker import JobWorker
from server.settings import JobsSettings
from storage.postgres import jobs
from storage.postgres.jobs import Job
from tests.conftest import World

pytestmark = pytest.mark.bar_e

QUEUE, TYPE = "reports", "generate_report"
SETTINGS = JobsSettings(tick=0.05, redeliver=0.6, concurrency={"reports": 8})


@dataclass
class Desk:
    """Two workers that note what they do.

    Attributes:
        own: Its jobs; the queue may hold those of other tests.
        begun: When each try of them began, by the loop's clock.
        running: Jobs at work, by throttle key; all of them under the empty one.
        most: The most there ever were.
    """

    stores: Stores
    seconds: float = 0.03
    own: set[UUID] = field(default_factory=set)
    begun: list[float] = field(default_factory=list)
    running: Counter[str] = field(default_factory=Counter)
    most: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    async def handle(self, job: Job, context: JobContext) -> Mapping[str, Any]:
        """Takes its time."""
        if job.id not in self.own:
            return {}
        self.begun.append(asyncio.get_running_loop().time())
        keys = {"", job.throttle_key or ""}
        for key in keys:
            self.running[key] += 1
            self.most[key] = max(self.most[key], self.running[key])
        await asyncio.sleep(self.seconds)
        for key in keys:
            self.running[key] -= 1
        return {}

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Two workers, for the length of a block."""
        stop = asyncio.Event()
        stores = replace(self.stores, settings=self.stores.settings.model_copy(update={"jobs": SETTINGS}))
        workers = [asyncio.create_task(JobWorker(stores, {TYPE: self.handle}, ()).run(stop)) for _ in range(2)]
        try:
            yield
        finally:
            stop.set()
            async with asyncio.timeout(20):
                await asyncio.gather(*workers)

    async def make(self, count: int, **fields: Any) -> list[UUID]:
        """Jobs in one transaction."""
        async with self.stores.database.transaction("make_jobs") as tx:
            made = [await jobs.enqueue_internal(tx, type=TYPE, queue=QUEUE, payload={}, **fields) for _ in range(count)]
            self.own.update(job.id for job in made)
        return [job.id for job in made]

    async def left(self, ids: list[UUID]) -> int:
        """How many of these are not completed."""
        sql = "SELECT count(*) FROM jobs WHERE id = ANY ($1) AND status <> 'completed'"
        found: int = await self.stores.database.fetchval(sql, ids)
        return found

    async def until_done(self, ids: list[UUID], at_most: int = 0) -> None:
        """Waits until no more than some of these are left."""
        async with asyncio.timeout(30):
            while await self.left(ids) > at_most:
                await asyncio.sleep(0.02)

    async def attempts(self, ids: list[UUID]) -> list[int]:
        """How often jobs of these were tried."""
        rows = await self.stores.database.fetch("SELECT DISTINCT attempts FROM jobs WHERE id = ANY ($1)", ids)
        return [row[0] for row in rows]


@pytest.fixture
async def desk(stores: Stores) -> AsyncIterator[Desk]:
    """A queue without limits, before and after."""
    yield Desk(stores)
    await steer(stores, None, None)


async def steer(stores: Stores, concurrency: int | None, paused_because: str | None) -> None:
    async with stores.database.transaction("steer") as tx:
        await jobs.update_queue_internal(tx, QUEUE, concurrency=concurrency, paused_because=paused_because)


async def wipe(world: World) -> None:
    """Empties all queues of Redis; sessions of other tests lie beside them."""
    client = redis.Redis.from_url(world.connections.redis_dsn)
    async for key in client.scan_iter("queue:*"):
        await client.delete(key)
    await client.aclose()


async def test_two_workers_keep_the_limits_of_queue_and_account(desk: Desk) -> None:
    await steer(desk.stores, 4, None)
    account = uuid4().hex
    ids = await desk.make(20, throttle_key=account, throttle_limit=2) + await desk.make(20)
    async with desk.working():
        await desk.until_done(ids)
    assert desk.most[""] == 4
    assert desk.most[account] == 2
    # To wait costs no attempt.
    assert await desk.attempts(ids) == [1]
    assert len(desk.begun) == 40


async def test_a_pause_holds_at_once_and_survives_the_loss_of_redis(desk: Desk, world: World) -> None:
    ids = await desk.make(60)
    async with desk.working():
        await desk.until_done(ids, at_most=50)
        await steer(desk.stores, None, "the printer is out of paper")
        paused = asyncio.get_running_loop().time()
        await wipe(world)
        await asyncio.sleep(1.5)
        left = await desk.left(ids)
        assert left > 0
        assert max(desk.begun) < paused + 1
        await steer(desk.stores, None, None)
        await desk.until_done(ids)
    assert await desk.attempts(ids) == [1]


async def test_every_job_runs_though_redis_is_wiped_again_and_again(desk: Desk, world: World) -> None:
    desk.seconds = 0.01
    ids = await desk.make(150)
    async with desk.working():
        for share in (120, 80, 40):
            await desk.until_done(ids, at_most=share)
            await wipe(world)
        await desk.until_done(ids)
    assert len(desk.begun) == 150
    assert await desk.attempts(ids) == [1]


async def test_an_account_that_is_held_back_stops_alone(desk: Desk) -> None:
    account = uuid4().hex
    held = await desk.make(5, hold_key=account, delay=timedelta(milliseconds=300))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(desk.working())
        async with desk.stores.database.transaction("hold") as tx:
            await jobs.hold_back_internal(tx, account, "refused")
        await desk.until_done(await desk.make(5))
        await asyncio.sleep(0.5)
        assert await desk.left(held) == 5
        async with desk.stores.database.transaction("go") as tx:
            await jobs.let_go_internal(tx, account)
        await desk.until_done(held)
