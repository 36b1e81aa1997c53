"""A worker process of the tests: the real worker, with a handler that leaves a trace of every effect.

Run as `python -m tests.operations.job_worker POSTGRES REDIS SECONDS`.
"""

import asyncio
import signal
import sys

from server.jobs.handling import JobContext
from server.jobs.worker import JobWorker
from server.settings import JobsSettings
from storage.postgres.database import Database
from storage.postgres.jobs import Job

FAST = {"lease": 1.0, "redeliver": 2.0, "tick": 0.05, "drain_seconds": 5.0, "concurrency": {"email": 8}}


async def main(postgres: str, redis: str, seconds: float) -> None:
    async def handle(job: Job, context: JobContext) -> dict[str, int]:
        await asyncio.sleep(seconds)
        await context.progress(1, 1)
        async with context.transaction("effect") as tx:
            await tx.execute("INSERT INTO job_effects (job_id) VALUES ($1) ON CONFLICT DO NOTHING", job.id)
        return {"fence": job.fence}

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    database = await Database.open(postgres, min_size=1, max_size=8)
    try:
        await JobWorker(database, redis, JobsSettings(**FAST), {"send_email": handle}, ()).run(stop)  # type: ignore[arg-type]
    finally:
        await database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
