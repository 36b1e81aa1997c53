"""Several server processes on one port: the same figures from each, and nothing lost when one dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest

import mrm_client
from mrm.accounts.v1 import session_service_pb2, session_service_pb2_grpc
from server.embedded import Connections, EmbeddedEngines
from server.rpc.auth import KEY_PREFIX, digest, new_secret
from server.statistics.aggregator import LEASE
from server.stores import migrate
from storage.postgres import api_keys, campaigns, clients, outbox, projects
from storage.postgres.database import Database
from tests.conftest import impression, settings_for, unsynced

from .conftest import Mrm

LEASE_SECONDS = 2.0


@dataclass
class Group:
    """A running `mrm serve --workers`, and what it logs."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, Any]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.others.append(line.decode())

    async def logged(self, event: str, count: int = 1, **facts: object) -> list[dict[str, Any]]:
        """Lines of an event with these facts, once there are enough."""
        async with asyncio.timeout(60):
            while True:
                found = [
                    line
                    for line in self.lines
                    if line["event"] == event and all(line.get(name) == value for name, value in facts.items())
                ]
                if len(found) >= count:
                    return found
                assert self.process.returncode is None, self.others
                await asyncio.sleep(0.02)

    async def port(self) -> int:
        [line, *_] = await self.logged("workers_serving")
        return int(line["port"])

    async def pids(self) -> dict[int, int]:
        """Process of each worker."""
        await self.logged("workers_serving")
        return {line["worker"]: line["pid"] for line in await self.logged("worker_serving")}


@dataclass
class Place:
    """Engines, and a client with a campaign and a key."""

    mrm: Mrm
    connections: Connections
    database: Database
    client_id: str
    campaign_id: str
    key: str

    async def serve(self, stack: AsyncExitStack, port: int = 0) -> Group:
        """Starts two workers."""
        process = await self.mrm.start(
            "serve", "--workers", 2, "--port", port,
            MRM_POSTGRES__DSN=self.connections.postgres_dsn,
            MRM_CLICKHOUSE__DSN=self.connections.clickhouse_dsn,
            MRM_REDIS__DURABLE_DSN=self.connections.redis_dsn,
            MRM_METRICS__LEASE_TTL=str(LEASE_SECONDS),
            MRM_GRPC__DRAIN_DELAY="0",
        )  # fmt: skip
        group = Group(process)
        reading = asyncio.create_task(group.read())

        async def end() -> None:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(60):
                await process.wait()
                await reading

        stack.push_async_callback(end)
        return group

    async def leader(self) -> int:
        """The worker process that rebuilds figures."""
        holder = await self.database.fetchval("SELECT holder FROM leases WHERE name = $1", LEASE)
        return int(str(holder).split(":")[1])


@pytest.fixture(scope="module")
async def engines(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Connections]:
    engines = EmbeddedEngines(tmp_path_factory.mktemp("workers") / "data")
    try:
        connections = await engines.start()
        await unsynced(connections)
        await migrate(settings_for(connections))
        yield connections
    finally:
        await engines.stop()


@pytest.fixture
async def place(engines: Connections, mrm: Mrm) -> AsyncIterator[Place]:
    database = await Database.open(engines.postgres_dsn, min_size=1, max_size=2)
    client = await clients.create(database, name="Client", type="direct_advertiser", settings={"timezone": "UTC"})
    project = await projects.create(database, client_id=client.id, name="Project")
    campaign = await campaigns.create(
        database, client_id=client.id, project_id=project.id, platform="other", name="Campaign", currency="RUB"
    )
    await outbox.append(database, "campaign", str(campaign.id))
    secret = new_secret(KEY_PREFIX)
    await api_keys.create(
        database,
        name="test",
        key_hash=bytes.fromhex(digest(secret)),
        prefix=secret[:11],
        permissions=["STATISTICS_INGEST", "STATISTICS_READ"],
        client_ids=[client.id],
    )
    yield Place(mrm, engines, database, str(client.id), str(campaign.id), secret)
    await database.close()


async def connect(stack: AsyncExitStack, group: Group, key: str, worker: int) -> grpc.aio.Channel:
    """A channel that leads to this worker: the kernel chooses, so it takes a few attempts."""
    target = f"127.0.0.1:{await group.port()}"
    for _ in range(60):
        channel = mrm_client.channel(target, key, watch=True, options=(("grpc.use_local_subchannel_pool", 1),))
        request_id = uuid4().hex
        await session_service_pb2_grpc.SessionServiceStub(channel).GetCurrentSession(
            session_service_pb2.GetCurrentSessionRequest(), metadata=(("x-request-id", request_id),)
        )
        [line] = await group.logged("call", request_id=request_id)
        if line["worker"] == worker:
            return await stack.enter_async_context(channel)
        await channel.close()
    raise AssertionError(f"no connection reached worker {worker}")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until_gone(*pids: int) -> None:
    async with asyncio.timeout(30):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.05)


@pytest.mark.timeout(180)
async def test_workers_show_the_same_and_survive_the_leaders_death(place: Place) -> None:
    async with AsyncExitStack() as stack:
        group = await place.serve(stack)
        pids = await group.pids()
        assert len(set(pids.values())) == 2
        seen: dict[int, list[int]] = {1: [], 2: []}

        async def follow(worker: int, channel: grpc.aio.Channel) -> None:
            async with aclosing(mrm_client.watch(channel, place.client_id, heartbeat=timedelta(seconds=1))) as states:
                async for state in states:
                    figures = state.campaigns.get(place.campaign_id)
                    seen[worker].append(figures.metrics.impressions if figures else 0)

        async def reached(count: int) -> None:
            async with asyncio.timeout(40):
                while not all(counts and counts[-1] == count for counts in seen.values()):
                    await asyncio.sleep(0.02)

        for worker in pids:
            task = asyncio.create_task(follow(worker, await connect(stack, group, place.key, worker)))

            async def end(task: asyncio.Task[None] = task) -> None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

            stack.push_async_callback(end)
        sending = await stack.enter_async_context(mrm_client.channel(f"127.0.0.1:{await group.port()}", place.key))
        async with mrm_client.Producer(sending, place.client_id, "through-a-death") as producer:
            await producer.send([impression(place.campaign_id) for _ in range(10)])
            await producer.flush()
            await reached(10)
            leader = await place.leader()
            assert leader in pids.values()
            for number in range(60):
                await producer.send([impression(place.campaign_id) for _ in range(10)])
                if number == 20:
                    os.kill(leader, signal.SIGKILL)
                    killed = time.monotonic()
                await asyncio.sleep(0.02)
            await producer.flush()
        await reached(610)
        # The other one takes over when the lease has run out, not when the dead one is back and has found its feet.
        assert time.monotonic() - killed < LEASE_SECONDS + 10
        for counts in seen.values():
            assert counts == sorted(counts), "a state older than one already seen was shown"
        follower = await place.leader()
        assert follower != leader
        [ended] = await group.logged("worker_ended", code=-signal.SIGKILL)
        again = (await group.logged("worker_serving", 2, worker=ended["worker"]))[-1]["pid"]
        assert follower in {again, *pids.values()} - {leader}

        group.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(40):
            assert await group.process.wait() == 0
        await until_gone(again, *pids.values())
        assert group.others == []


async def test_a_port_is_taken_once_and_workers_end_with_their_parent(place: Place) -> None:
    async with AsyncExitStack() as stack:
        group = await place.serve(stack)
        pids = await group.pids()
        second = await place.serve(stack, await group.port())
        async with asyncio.timeout(60):
            assert await second.process.wait() == 1
        await asyncio.sleep(0.1)
        [line] = second.others
        assert line.startswith("error: cannot listen on 127.0.0.1:")
        assert all(alive(pid) for pid in pids.values())
        group.process.kill()
        await until_gone(*pids.values())


async def test_what_keeps_workers_from_starting_is_told_once(mrm: Mrm) -> None:
    result = await mrm("serve", "--workers", 3, "--port", 0, MRM_POSTGRES__DSN="postgresql://u:sekret@127.0.0.1:9/x")
    assert result.code == 1
    [line] = result.err.strip().splitlines()
    assert line.startswith("error: postgresql is unavailable")
    assert "sekret" not in result.err
