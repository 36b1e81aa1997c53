"""`mrm worker`: the process that runs jobs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import typer

from server.cli.console import run
from server.settings import Settings, environment

# Beyond draining: closing stores, ending the interpreter.
_CLOSE_SECONDS = 15.0
_AGAIN_SECONDS = 1.0


def worker() -> None:
    """Run jobs on the engines that the environment names.

    Needs what `mrm serve` needs. At least one must run beside it; any number share the work. SIGTERM or Ctrl-C drains:
    what runs may end, the rest goes back uncounted.
    """
    run(_worker(asyncio.Event()))


async def _worker(stop: asyncio.Event) -> None:
    from server.jobs.worker import JobWorker
    from server.monitoring.monitor import watching_over
    from server.rpc import logs
    from server.stores import check_schemas, opened

    settings = Settings()
    logs.configure(settings.logging.level)
    await check_schemas(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with (
        opened(settings, "mrm-worker") as stores,
        watching_over(settings.monitoring, "jobs", stores.database),
    ):
        await JobWorker(stores).run(stop)


async def _beside_its_parent() -> None:
    """As a child of `mrm up`: the end of standard input, which only the parent holds, ends the worker."""
    stop = asyncio.Event()

    def orphaned() -> None:
        if not os.read(0, 1024):
            asyncio.get_running_loop().remove_reader(0)
            stop.set()

    asyncio.get_running_loop().add_reader(0, orphaned)
    await _worker(stop)


@asynccontextmanager
async def beside(settings: Settings) -> AsyncIterator[None]:
    """Runs a worker as a process of its own for the length of a block, again if it dies, on these settings' engines."""
    keeper = asyncio.create_task(_keep(settings))
    try:
        yield
    finally:
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper


async def _keep(settings: Settings) -> None:
    while True:
        process = _started(settings)
        try:
            await asyncio.to_thread(process.wait)
        finally:
            await _ended(process, settings.jobs.drain_seconds + _CLOSE_SECONDS)
        await asyncio.sleep(_AGAIN_SECONDS)


def _started(settings: Settings) -> subprocess.Popen[bytes]:
    variables = {**os.environ, **environment(settings)}
    if settings.monitoring.port:
        # The parent has this one.
        variables["MRM_MONITORING__PORT"] = str(settings.monitoring.port + 1)
    # Not through the event loop: uvloop forks, this process is full of gRPC threads, and gRPC's fork handlers sometimes
    # abort the child. `subprocess` uses vfork, which runs no such handlers.
    return subprocess.Popen(
        [sys.executable, "-m", "server.cli.worker"],
        stdin=subprocess.PIPE,
        # Nothing of it belongs into the output of the command.
        stdout=sys.stderr.fileno(),
        stderr=sys.stderr.fileno(),
        env=variables,
        # Ctrl-C goes to the whole group of a terminal; the worker hears of it from here.
        start_new_session=True,
    )


async def _ended(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.terminate()
    try:
        await asyncio.to_thread(process.wait, seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)
    assert process.stdin is not None
    process.stdin.close()


if __name__ == "__main__":
    try:
        run(_beside_its_parent())
    except typer.Exit as end:
        sys.exit(end.exit_code)
