"""A day restated on the platform arrives everywhere, with a real worker; and one that is killed leaves nothing half."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

import mrm_client
from server.jobs.handling import Stores
from server.settings import environment
from tests.conftest import World
from tests.sync.desk import ENTITIES, STATISTICS, ago, office

pytestmark = pytest.mark.bar_e

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("MRM_BARS") == "full"


@asynccontextmanager
async def worker(world: World) -> AsyncIterator[subprocess.Popen[bytes]]:
    process = start(world)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def start(world: World) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sync.worker"], cwd=ROOT, env={**os.environ, **environment(world.settings)}
    )


async def until(wanted: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> float:
    """Seconds until something holds."""
    begun = time.monotonic()
    while not await wanted():
        assert time.monotonic() - begun < seconds, "it did not come"
        await asyncio.sleep(0.02)
    return time.monotonic() - begun


async def test_a_day_restated_from_1000_to_940_clicks_reads_940_everywhere(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "yandex_direct", campaigns=1)
    [external_id] = desk.external_ids
    campaign_id = UUID(desk.linked[external_id])
    day = ago(2)
    desk.sandbox.restate(external_id, day.isoformat(), clicks=1_000)
    seen: list[int] = []

    async def rolled() -> int | None:
        found: int | None = await world.database.fetchval(
            "SELECT clicks FROM campaign_statistics WHERE campaign_id = $1 AND date = $2", campaign_id, day
        )
        return found

    async def follow() -> None:
        start = datetime.combine(day, datetime.min.time(), ZoneInfo("Europe/Moscow"))
        async with (
            mrm_client.channel(world.target, world.admin.token, watch=True) as channel,
            aclosing(mrm_client.watch(channel, desk.client_id, times=(start, start + timedelta(days=1)))) as states,
        ):
            async for state in states:
                seen.extend(each.metrics.clicks for each in state.campaigns.values())

    async with worker(world):
        watching = asyncio.create_task(follow())
        try:
            await desk.make(STATISTICS)
            await until(lambda: _is(rolled, 1_000), 40)
            await until(lambda: _last(seen, 1_000, watching))

            desk.sandbox.restate(external_id, day.isoformat(), clicks=940)
            job = await desk.make(STATISTICS)

            async def synced() -> bool:
                return (await desk.job(job.id)).status == "completed"

            await until(synced)
            begun = time.monotonic()
            assert await desk.clicks(day) == {day.isoformat(): 940}
            await until(lambda: _is(rolled, 940))
            await until(lambda: _last(seen, 940, watching))
            assert time.monotonic() - begun < 5.0
        finally:
            watching.cancel()
            await asyncio.wait([watching])
    restated = await world.database.fetch(
        "SELECT old_clicks, clicks FROM restatements WHERE campaign_id = $1 AND date = $2", campaign_id, day
    )
    assert [tuple(row) for row in restated] == [(1_000, 940)]

    # A worker that wakes up after all with the older reading states it under the older version: nobody listens.
    await world.database.execute(
        "UPDATE sync_streams SET reading_id = gen_random_uuid(), reading_at = reading_at - interval '1 second' "
        "WHERE integration_id = $1 AND stream = 'statistics'",
        UUID(desk.integration_id),
    )
    desk.sandbox.restate(external_id, day.isoformat(), clicks=1_000)
    done = await desk.sync(STATISTICS)
    assert done.status == "completed" and done.result is not None
    assert (done.result["stored"], done.result["stale"]) == (0, done.result["campaign_days"])
    assert await desk.clicks(day) == {day.isoformat(): 940}


async def test_a_worker_killed_at_any_moment_leaves_nothing_half(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=3)
    chance = random.Random(7)
    made = [await desk.make(each) for each in (ENTITIES, STATISTICS)]
    # So that there are moments at which it can be killed.
    stores.settings.sync.initial_days = 200
    interrupted, dead = 0, set[str]()

    async def holders() -> set[str]:
        # The pauses between tries grow to a minute, and are tested elsewhere.
        await world.database.execute(
            "UPDATE jobs SET scheduled_at = now() WHERE client_id = $1 AND status = 'pending' AND scheduled_at > now()",
            UUID(desk.client_id),
        )
        return {found.lease_holder for each in made[-2:] if (found := await desk.job(each.id)).lease_holder}

    async def begun() -> bool:
        return bool(await holders() - dead)

    process = start(world)
    try:
        for _ in range(20 if FULL else 2):
            await until(begun)
            await asyncio.sleep(chance.uniform(0.0, 0.15))
            process.kill()
            process.wait()
            lost = await holders()
            interrupted += len(lost - dead)
            dead |= lost
            made += [await desk.make(each) for each in (ENTITIES, STATISTICS)]
            process = start(world)

        async def all_ended() -> bool:
            # One that lost every worker it had is given up; the next one reads what it did not.
            await holders()
            return all([(await desk.job(each.id)).status in ("completed", "failed") for each in made])

        await until(all_ended, 60)
    finally:
        process.kill()
        process.wait()
        stores.settings.sync.initial_days = 30
    assert interrupted
    for each in (ENTITIES, STATISTICS):
        assert (await desk.sync(each)).status == "completed"
    status = await desk.status()
    assert (status.campaign_count, status.unlinked_campaign_count) == (3, 0)
    assert all(not each.error for each in status.streams)
    # Whatever was cut off, a whole reading now finds nothing to change.
    figures = await desk.clicks(ago(25), ago(1))
    assert len(figures) == 25
    await desk.sync(STATISTICS, statistics_from_date=ago(25).isoformat())
    assert await desk.clicks(ago(25), ago(1)) == figures
    for job in made:
        assert (await desk.job(job.id)).attempts <= job.max_attempts


async def _is(read: Callable[[], Awaitable[int | None]], wanted: int) -> bool:
    return await read() == wanted


async def _last(seen: list[int], wanted: int, watching: asyncio.Task[None]) -> bool:
    if watching.done():
        watching.result()
    return bool(seen) and seen[-1] == wanted
