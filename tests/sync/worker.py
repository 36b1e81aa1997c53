"""A worker process of the tests, on the engines and the sandbox that the environment names.

Run as `python -m tests.sync.worker`; it does nothing by the clock.
"""

import asyncio
import signal

from server.jobs.worker import HANDLERS, JobWorker
from server.settings import JobsSettings, Settings
from server.stores import opened

FAST = {"lease": 1.0, "redeliver": 2.0, "tick": 0.05, "drain_seconds": 5.0, "concurrency": {"sync": 4}}


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = Settings()
    settings.jobs = JobsSettings(**FAST)  # type: ignore[arg-type]
    async with opened(settings, "mrm-test-worker") as stores:
        await JobWorker(stores, HANDLERS, ()).run(stop)


if __name__ == "__main__":
    asyncio.run(main())
