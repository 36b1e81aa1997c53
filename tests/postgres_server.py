"""A real PostgreSQL that tests may kill."""

from __future__ import annotations

import asyncio
import os
import signal
import warnings

from server.embedded.directory import DataDirectory
from server.embedded.postgres import PostgresEngine
from server.embedded.process import Child, child_environment, launcher_command


class Server:
    """One PostgreSQL process, on a cluster that is made if there is none.

    Args:
        directory: Where the cluster is.
        password: Of a cluster that came from elsewhere; by default the directory's own.
    """

    def __init__(self, directory: DataDirectory, password: str = "") -> None:
        self._engine = PostgresEngine(directory)
        self._engine.password = password or self._engine.password
        with warnings.catch_warnings():
            # The wheel looks for XDG_RUNTIME_DIR when imported and warns where there is none.
            warnings.simplefilter("ignore")
            self._engine.prepare()
        self._directory = directory
        self._child: Child | None = None

    @property
    def password(self) -> str:
        return self._engine.password

    @property
    def port(self) -> int:
        return self._engine.port

    async def start(self) -> None:
        command = launcher_command(
            [*self._engine.command(), "-c", "fsync=off"],
            identity=self._engine.identity,
            directory=self._directory.path / "postgres",
            death_signal=signal.SIGKILL,
        )
        self._child = Child(command, child_environment(), self._directory.log_file("postgres"))
        async with asyncio.timeout(30):
            while not await self._engine.ready():
                await asyncio.sleep(0.05)

    async def kill(self, stop_signal: int = signal.SIGQUIT) -> None:
        assert self._child is not None
        os.kill(self._child.pid, stop_signal)
        await self._child.wait()

    def dsn(self, database: str) -> str:
        return self._engine.dsn().rsplit("/", 1)[0] + "/" + database
