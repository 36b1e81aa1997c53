"""A worker process of the tests: the real worker, with a handler that leaves a trace of every effect.

Run as `python -m tests.operations.job_worker SECONDS`, on the engines that the environment names.
"""

import asyncio
import signal
import sys

from server.jobs.handling import JobContext
from server.jobs.worker import JobWorker
from server.settings import JobsSettings, Settings
from server.stores import opened
from storage.postgres.jobs import Job

FAST = {"lease": 1.0, "redeliver": 2.0, "tick": 0.05, "drain_seconds": 5.0, "concurrency": {"email": 8}}


async def main(seconds: float) -> None:
    async def handle(job: Job, context: JobContext) -> dict[str, int]:
        await asyncio.sleep(seconds)
        await context.progress(1, 1)
        async with context.transaction("effect") as tx:
            await tx.execute("INSERT INTO job_effects (job_id) VALUES ($1) ON CONFLICT DO NOTHING", job.id)
        return {"fence": job.fence}

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = Settings()
    settings.jobs = JobsSettings(**FAST)  # type: ignore[arg-type]
    async with opened(settings, "mrm-test-worker") as stores:
        await JobWorker(stores, {"send_email": handle}, ()).run(stop)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
