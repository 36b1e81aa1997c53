"""Milvus: `milvus-lite` in a process of its own."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import server
from server.embedded.engine import Engine, make_private, package_directory
from server.embedded.errors import EngineError
from storage.errors import StoreUnavailable
from storage.milvus.connect import Milvus

PASSWORD_VARIABLE = "MRM_EMBEDDED_MILVUS_PASSWORD"  # noqa: S105 - the name of the variable
USER = "mrm"


class MilvusEngine(Engine):
    """The child `server.embedded.milvus_server` on a loopback port."""

    name = "milvus"
    connection_field = "milvus_dsn"
    # Nothing but search needs it, and it takes longer to start than all others together.
    awaited = False
    # The child gives running calls up to 5 s and then closes its files.
    stop_grace_seconds = 15.0

    def prepare(self) -> None:
        """Checks that the engine's packages are installed; the child does the rest."""
        for package in ("milvus_lite", "pymilvus", "faiss"):
            package_directory(package)
        make_private(self.path)

    @property
    def environment(self) -> Mapping[str, str]:
        """The password, and where the child finds this very code."""
        paths = [str(Path(str(server.__file__)).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {PASSWORD_VARIABLE: self.password, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}

    def command(self) -> Sequence[str]:
        """This interpreter, running the engine's server."""
        command = [sys.executable, "-P", "-m", "server.embedded.milvus_server"]
        return [*command, "--path", str(self.path / "data"), "--port", str(self.port)]

    async def ready(self) -> bool:
        """A health check with our password."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        milvus = Milvus(self.dsn())
        try:
            await milvus.ping()
        except StoreUnavailable as error:
            if error.reason == "UNAUTHENTICATED":
                raise EngineError(f"another server answers on the milvus port {self.port}") from None
            return False
        finally:
            await milvus.close()
        return True

    def dsn(self) -> str:
        """DSN of the default database."""
        return f"http://{USER}:{self.password}@127.0.0.1:{self.port}"
