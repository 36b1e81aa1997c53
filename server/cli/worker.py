"""`mrm worker`: the process that runs jobs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from server.cli.console import run

if TYPE_CHECKING:
    from server.settings import Settings

# Beyond draining: closing stores, ending the interpreter.
_CLOSE_SECONDS = 15.0


def worker() -> None:
    """Run jobs on the engines that the environment names.

    Needs MRM_POSTGRES__DSN and MRM_REDIS__DURABLE_DSN. At least one must run beside `mrm serve`; any number share the
    work. SIGTERM or Ctrl-C drains: what runs may end, the rest goes back uncounted.
    """
    run(_worker())


async def _worker() -> None:
    from server.jobs.worker import JobWorker
    from server.rpc import logs
    from server.settings import Settings
    from storage.postgres.database import Database
    from storage.postgres.migrating import postgres_runner

    settings = Settings()
    logs.configure(settings.logging.level)
    dsn = settings.postgres.dsn.get_secret_value()
    await postgres_runner(dsn).check()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    database = await Database.open(
        dsn,
        min_size=settings.postgres.pool_min,
        max_size=settings.postgres.pool_max,
        statement_cache_size=settings.postgres.statement_cache_size,
        application_name="mrm-worker",
    )
    try:
        await JobWorker(database, settings.redis.durable_dsn.get_secret_value(), settings.jobs).run(stop)
    finally:
        await database.close()


@asynccontextmanager
async def beside(settings: Settings) -> AsyncIterator[None]:
    """Runs `mrm worker` as a process of its own for the length of a block, on the engines of these settings."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "server",
        "worker",
        env={
            **os.environ,
            "MRM_POSTGRES__DSN": settings.postgres.dsn.get_secret_value(),
            "MRM_REDIS__DURABLE_DSN": settings.redis.durable_dsn.get_secret_value(),
        },
        stderr=sys.stderr.fileno(),
        # Ctrl-C goes to the whole group of a terminal; the worker hears of it from here.
        start_new_session=True,
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(settings.jobs.drain_seconds + _CLOSE_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
