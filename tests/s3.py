"""A server that speaks S3 over a real socket and checks signatures, for tests."""

import asyncio
import os
import socket
import sys
from pathlib import Path

from server.settings import ObjectsSettings
from storage.objects.store import S3Access

BUCKET = "mrm-test"
KEY_ID, SECRET = "AKIAMRMTEST", "not much of a secret"


class S3Server:
    """One server process.

    Args:
        directory: Where it keeps its buckets.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (directory / BUCKET).mkdir(parents=True)

    @property
    def url(self) -> str:
        """URL of a prefix of the bucket."""
        return f"s3://{BUCKET}/some/prefix"

    @property
    def access(self) -> S3Access:
        """How to reach it."""
        return S3Access(f"http://127.0.0.1:{self.port}", "us-east-1", KEY_ID, SECRET)

    def settings(self) -> ObjectsSettings:
        """The same as settings of the service."""
        access = self.access
        return ObjectsSettings.model_validate(
            {
                "url": self.url,
                "endpoint": access.endpoint,
                "region": access.region,
                "access_key_id": KEY_ID,
                "secret_access_key": SECRET,
            }
        )

    async def start(self) -> None:
        """Starts it and returns once it answers; again after `stop`, on the same port with the same data."""
        nanio = Path(sys.executable).with_name("nanio")
        self._process = await asyncio.create_subprocess_exec(
            nanio, "serve", "--data-dir", self._directory, "--host", "127.0.0.1", "--port", str(self.port),
            "--log-level", "error", "--no-access-log",
            env={**os.environ, "NANIO_ACCESS_KEY": KEY_ID, "NANIO_SECRET_KEY": SECRET},
        )  # fmt: skip
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                return

    async def stop(self) -> None:
        """Kills it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()
