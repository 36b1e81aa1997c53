"""kill -9 of ClickHouse, the server and producers, at random moments, again and again, while four producers send.

What was acknowledged is there, everything counts once, and watchers go on from where they were.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import mrm_client
from benchmarks.harness import Bench, engines
from benchmarks.tenants import Tenant, make_tenant
from storage.clickhouse.connect import ClickHouse
from tests import producing

ROOT = Path(__file__).parents[1]
ROUNDS = 20 if os.environ.get("MRM_BARS") == "full" else 3
PRODUCERS = 4
VICTIMS = ("clickhouse", "server", "producer")


@dataclass
class Scene:
    """Engines, a server, four producers and two watchers."""

    bench: Bench
    tenant: Tenant
    port: int
    base: int
    folder: Path
    server: asyncio.subprocess.Process | None = None
    producers: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    states: dict[int, list[dict[str, int]]] = field(default_factory=lambda: {0: [], 1: []})

    @property
    def target(self) -> str:
        """Address of the server."""
        return f"127.0.0.1:{self.port}"

    def campaign(self, number: int) -> str:
        """The campaign of a producer."""
        return str(self.tenant.campaign_ids[number])

    def acknowledged(self, number: int) -> int:
        """Events of a producer that it knows to be durable."""
        file = self.folder / f"acked-{number}"
        lines = file.read_text().split("\n") if file.exists() else [""]
        # What follows the last line break was cut off by a kill.
        return max((int(line) for line in lines[:-1]), default=0)

    async def start_server(self) -> None:
        """Starts the server on its port."""
        self.server = await self._start(
            "server", "serve", "--port", str(self.port),
            **self.bench.environment, MRM_METRICS__LEASE_TTL="2", MRM_GRPC__DRAIN_DELAY="0",
        )  # fmt: skip

    async def start_producer(self, number: int) -> None:
        """Starts a producer, which goes on where the server says."""
        client_id, campaign_id = str(self.tenant.client_id), self.campaign(number)
        self.producers[number] = await self._start(
            "tests.producing", self.target, client_id, campaign_id, str(number), str(self.base), str(self.folder),
            KEY=self.tenant.secret,
        )  # fmt: skip

    async def kill(self, victim: str, chance: random.Random) -> None:
        """Kills without warning; what nobody supervises is started again."""
        if victim == "clickhouse":
            os.kill(int((self.bench.folder / "data" / "run" / "clickhouse.pid").read_text()), signal.SIGKILL)
            return
        number = chance.randrange(PRODUCERS)
        process = self.server if victim == "server" else self.producers[number]
        assert process is not None
        assert process.returncode is None, "it has ended by itself"
        process.kill()
        await process.wait()
        await (self.start_server() if victim == "server" else self.start_producer(number))

    async def follow(self, watcher: int) -> None:
        """Notes every state that a watcher sees."""
        span = datetime.fromtimestamp(self.base, UTC), datetime.fromtimestamp(self.base + 7200, UTC)
        async with (
            mrm_client.channel(self.target, self.tenant.secret, watch=True) as channel,
            aclosing(
                mrm_client.watch(channel, self.tenant.client_id, times=span, heartbeat=timedelta(seconds=1))
            ) as states,
        ):
            async for state in states:
                self.states[watcher].append(
                    {campaign_id: each.metrics.impressions for campaign_id, each in state.campaigns.items()}
                )

    def shown(self, watcher: int, number: int) -> int:
        """Events of a producer that a watcher sees now."""
        states = self.states[watcher]
        return states[-1].get(self.campaign(number), 0) if states else 0

    async def end(self) -> None:
        """Ends what still runs."""
        for process in (self.server, *self.producers.values()):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()

    async def _start(self, *module: str, **environment: str) -> asyncio.subprocess.Process:
        log = self.folder / f"{module[0]}.log"
        with log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *module,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}", **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(engines(1.0))
        base = int(time.time()) // 3600 * 3600 - 3600
        scene = Scene(bench, await make_tenant(bench, PRODUCERS), _free_port(), base, tmp_path)
        stack.push_async_callback(scene.end)
        await scene.start_server()
        for number in range(PRODUCERS):
            await scene.start_producer(number)
        for watcher in scene.states:
            task = asyncio.create_task(scene.follow(watcher))

            async def end(task: asyncio.Task[None] = task) -> None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

            stack.push_async_callback(end)
        yield scene


async def until(reached: Callable[[], bool], what: str) -> None:
    for _ in range(1200):
        if reached():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"in two minutes: not {what}")


@pytest.mark.bar_b
@pytest.mark.timeout(3600)
async def test_nothing_is_lost_or_counted_twice(scene: Scene) -> None:
    numbers = range(PRODUCERS)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print("seed", seed)
    victims: list[str] = []
    while len(victims) < ROUNDS:
        victims += chance.sample(VICTIMS, len(VICTIMS))
    await until(lambda: all(scene.acknowledged(number) for number in numbers), "all producers under way")
    for victim in victims[:ROUNDS]:
        await asyncio.sleep(chance.uniform(0.0, 1.5))
        await scene.kill(victim, chance)
        before = [scene.acknowledged(number) for number in numbers]
        await until(
            lambda before=before: all(scene.acknowledged(number) > before[number] for number in numbers),  # type: ignore[misc]
            f"all producers under way again after the {victim} was killed",
        )
        await until(
            lambda before=before: all(  # type: ignore[misc]
                scene.shown(watcher, number) >= before[number] for watcher in scene.states for number in numbers
            ),
            f"watchers up to date again after the {victim} was killed",
        )

    (scene.folder / "stop").touch()
    codes = [await process.wait() for process in scene.producers.values()]
    assert codes == [0] * PRODUCERS, (scene.folder / "tests.producing.log").read_text()
    counts = [scene.acknowledged(number) for number in numbers]
    await until(
        lambda: all(scene.shown(watcher, number) == counts[number] for watcher in scene.states for number in numbers),
        f"watchers at {counts}",
    )
    clickhouse = ClickHouse(scene.bench.connections.clickhouse_dsn)
    rows = await clickhouse.fetch(
        "SELECT campaign_id, count(), toInt64(sum(cost) * 1000000) FROM campaign_events FINAL GROUP BY campaign_id"
    )
    figures = await clickhouse.fetch(
        "SELECT campaign_id, sum(impressions), toInt64(sum(cost) * 1000000)"
        " FROM campaign_metrics_hourly FINAL GROUP BY campaign_id"
    )
    await clickhouse.close()
    expected = {
        scene.tenant.campaign_ids[number]: (counts[number], sum(map(producing.cost, range(counts[number]))))
        for number in numbers
    }
    for found in (rows, figures):
        assert {campaign_id: (count, spent) for campaign_id, count, spent in found} == expected
    for states in scene.states.values():
        for number in numbers:
            seen = [state.get(scene.campaign(number), 0) for state in states]
            assert seen == sorted(seen), "a state older than one already seen was shown"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
