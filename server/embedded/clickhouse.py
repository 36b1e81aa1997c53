"""ClickHouse: the `chdb` engine in a process of its own behind ClickHouse's HTTP interface."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import server
from server.embedded.engine import Engine, make_private, package_directory
from server.embedded.errors import EngineError

PASSWORD_VARIABLE = "MRM_EMBEDDED_CLICKHOUSE_PASSWORD"  # noqa: S105 - the name of the variable
_USER = "mrm"
_DATABASE = "mrm"
_CONNECTIONS = 8


class ClickHouseEngine(Engine):
    """The HTTP child `server.embedded.clickhouse_http` on a loopback port, with database `mrm`."""

    name = "clickhouse"
    connection_field = "clickhouse_dsn"
    # The child gives running statements up to 10 s and then closes the engine.
    stop_grace_seconds = 20.0

    def prepare(self) -> None:
        """Checks that the engine's packages are installed; the child does the rest."""
        for package in ("chdb", "aiohttp", "lz4", "backports.zstd"):
            package_directory(package)
        make_private(self.path)
        make_private(self.backups)

    @property
    def backups(self) -> Path:
        """Where the engine may write backups of itself, and read them."""
        return self.path / "backups"

    @property
    def environment(self) -> Mapping[str, str]:
        """The password, and where the child finds this very code."""
        paths = [str(Path(str(server.__file__)).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            PASSWORD_VARIABLE: self.password,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
        }

    def command(self) -> Sequence[str]:
        """This interpreter, running the HTTP front."""
        command = [sys.executable, "-P", "-m", "server.embedded.clickhouse_http"]
        command += ["--path", str(self.path / "data"), "--port", str(self.port)]
        command += ["--user", _USER, "--database", _DATABASE, "--connections", str(_CONNECTIONS)]
        command += ["--option", f"max_server_memory_usage={_memory_limit()}"]
        command += ["--option", f"backups.allowed_path={self.backups}"]
        return command

    async def ready(self) -> bool:
        """An authenticated `SELECT 1`."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        try:
            writer.write(
                "POST /?query=SELECT%201 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n"
                f"X-ClickHouse-User: {_USER}\r\nX-ClickHouse-Key: {self.password}\r\n\r\n".encode()
            )
            answer = await reader.read()
        except OSError:
            return False
        finally:
            writer.close()
        status = answer.split(b"\r\n", 1)[0]
        if b" 403 " in status:
            raise EngineError(f"another server answers on the clickhouse port {self.port}")
        return b" 200 " in status and answer.endswith(b"\r\n\r\n1\n")

    def dsn(self) -> str:
        """DSN of database `mrm` over HTTP."""
        return f"http://{_USER}:{self.password}@127.0.0.1:{self.port}/{_DATABASE}"


def _memory_limit() -> int:
    """Half of the machine's memory, in bytes: the other engines and the service live here too."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
