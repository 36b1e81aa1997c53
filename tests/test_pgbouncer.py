"""The service behind PgBouncer in transaction mode, which gives each transaction another connection of the server's."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import grpc
import pytest
from pydantic import SecretStr

from mrm.accounts.v1 import client_service_pb2
from mrm.campaigns.v1 import campaign_service_pb2
from server.app import Application
from tests.conftest import Caller, World
from tests.test_failover import free_port

PGBOUNCER = shutil.which("pgbouncer", path=os.environ["PATH"] + os.pathsep + "/usr/sbin")
# Fewer connections to PostgreSQL than callers at a time: transactions take turns on them.
SERVER_CONNECTIONS = 3
CALLERS = 24
ROUNDS = 100 if os.environ.get("MRM_BARS") == "full" else 5

pytestmark = [
    pytest.mark.bar_h,
    pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed (Debian: apt-get install pgbouncer)"),
]


@pytest.fixture
def pooled_dsn(world: World) -> Iterator[str]:
    """Where a PgBouncer before the world's PostgreSQL listens."""
    parts = urlsplit(world.connections.postgres_dsn)
    port, folder = free_port(), Path(tempfile.mkdtemp())
    (folder / "users").write_text(f'"{parts.username}" "{parts.password}"\n')
    (folder / "ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={parts.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {folder}/users\npool_mode = transaction\n"
        f"default_pool_size = {SERVER_CONNECTIONS}\nmax_client_conn = 200\nlogfile = {folder}/log\n"
    )
    assert PGBOUNCER is not None
    command = [PGBOUNCER, "-q", str(folder / "ini")]
    if os.getuid() == 0:
        # It does not run as root.
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, "nobody")
        command[1:1] = ["-u", "nobody"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()
    process.terminate()
    process.wait()
    shutil.rmtree(folder)


@pytest.fixture
async def pooled(world: World, pooled_dsn: str) -> AsyncIterator[grpc.aio.Channel]:
    """A second server on the same engines, its PostgreSQL behind PgBouncer."""
    async with asyncio.timeout(10):
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(pooled_dsn).port)
                writer.close()
                await writer.wait_closed()
                break
            await asyncio.sleep(0.05)
    settings = world.settings.model_copy(deep=True)
    settings.postgres.dsn, settings.postgres.statement_cache_size = SecretStr(pooled_dsn), 0
    application = Application(settings)
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        yield channel
    await application.stop()


async def test_calls_share_few_connections(world: World, pooled: grpc.aio.Channel) -> None:
    client_id, [campaign_id] = await world.tenant()
    caller = Caller(pooled, world.admin.token)
    mine = f"{uuid4()}"

    async def work(number: int) -> str:
        get = campaign_service_pb2.GetCampaignRequest(campaign_id=campaign_id)
        for _ in range(ROUNDS):
            found = (await caller.campaigns.GetCampaign(get, metadata=caller.auth)).campaign
            assert found.campaign_id == campaign_id
        create = client_service_pb2.CreateClientRequest(request_id=str(uuid4()))
        create.client.display_name, create.client.type = f"{mine} {number}", 1
        made = await caller.clients.CreateClient(create, metadata=caller.auth)
        again = await caller.clients.CreateClient(create, metadata=caller.auth)
        assert again.client == made.client
        return made.client.client_id

    made = await asyncio.gather(*(work(number) for number in range(CALLERS)))
    rows = await world.database.fetch("SELECT id FROM clients WHERE name LIKE $1", f"{mine} %")
    assert {str(row[0]) for row in rows} == set(made)
    assert client_id not in made
