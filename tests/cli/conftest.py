"""Runs the command line the way people do: as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


class Mrm:
    """Starts `mrm` in an empty directory, without a terminal and without our environment's settings."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MRM_")}
        self.environment = {**kept, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}", "COLUMNS": "200"}

    async def start(self, *args: object, **environment: str) -> asyncio.subprocess.Process:
        """Starts a command and leaves it running."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "server",
            *map(str, args),
            cwd=self.directory,
            env={**self.environment, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *args: object, **environment: str) -> Result:
        """Runs a command to its end."""
        process = await self.start(*args, **environment)
        async with asyncio.timeout(100):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Result(process.returncode, out.decode(), err.decode())


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """A test run in the background ignores SIGINT, and what is ignored stays so in every command that it starts.

    A handler of our own does not outlive exec. `preexec_fn` could do it too, but it forks a process full of gRPC
    threads, and gRPC's fork handlers sometimes abort the child.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def mrm(tmp_path: Path) -> Mrm:
    directory = tmp_path / "cwd"
    directory.mkdir()
    return Mrm(directory)
