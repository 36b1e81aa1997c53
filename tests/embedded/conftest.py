"""Engines started once for the tests that only talk to them, and helpers for those that start their own."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import clickhouse_connect
import pytest
from clickhouse_connect.driver.asyncclient import AsyncClient

from server.embedded import Connections, EmbeddedEngines


@dataclass(frozen=True)
class Running:
    """Started engines, their supervisor and their directory."""

    engines: EmbeddedEngines
    connections: Connections
    path: Path

    async def clickhouse(self, **options: object) -> AsyncClient:
        parts = urlsplit(self.connections.clickhouse_dsn)
        known = {"username": parts.username, "password": parts.password, "database": parts.path[1:]}
        return await clickhouse_connect.get_async_client(
            host=parts.hostname, port=parts.port, **{**known, "compress": False, **options}
        )


@pytest.fixture(scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    path = tmp_path_factory.mktemp("embedded") / "data"
    engines = EmbeddedEngines(path)
    connections = await engines.start()
    await engines.begin("milvus")
    yield Running(engines, connections, path)
    await engines.stop()


@pytest.fixture(scope="session")
async def clickhouse(running: Running) -> AsyncIterator[AsyncClient]:
    client = await running.clickhouse()
    yield client
    await client.close()


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory every user can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="mrm-test-"))
    os.chmod(path, 0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)
