"""jobs.throughput: jobs through outbox, queue and row, as `mrm worker` does them, over bare BullMQ of one payload."""

import asyncio
import itertools
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import bullmq

from benchmarks.harness import Bench, Result, engines, interleaved
from server.jobs.handling import JobContext, Stores
from server.jobs.worker import JobWorker
from server.rpc import logs
from server.settings import JobsSettings
from server.stores import opened
from storage.postgres import jobs
from storage.postgres.jobs import Job

prepared = engines

JOBS = 5000
# A cause makes some jobs in its transaction, and a bare producer adds as many at a time.
MADE_TOGETHER = 50
CONCURRENCY = 16
PAYLOAD = {"client_id": "01920000-0000-7000-8000-000000000000", "days": 3, "note": "Ежедневная сверка"}
BAR = 0.3
_TIMEOUT_SECONDS = 120
_LEFT = "SELECT EXISTS (SELECT FROM jobs WHERE status IN ('pending', 'processing'))"

_numbers = itertools.count()


async def run(bench: Bench) -> list[Result]:
    """Measures from the making of the first job to the end of the last."""
    count = max(2 * MADE_TOGETHER, int(JOBS * bench.scale))
    # A line per job would drown the figures on the terminal.
    logs.configure("WARNING")
    settings = bench.settings.model_copy(deep=True)
    settings.jobs = JobsSettings(concurrency={"reports": CONCURRENCY})
    async with opened(settings, "mrm-bench") as stores:
        value, floor, ratio = await interleaved(
            bench.rounds,
            lambda: _served(stores, count),
            lambda: _bare(bench.connections.redis_dsn, count),
            settle=bench.settle / 4,
        )
    return [Result("jobs.throughput", value, "jobs/s", floor, ratio, BAR, ratio >= BAR)]


async def _served(stores: Stores, count: int) -> float:
    async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
        return {"days": job.payload["days"]}

    stop = asyncio.Event()
    worker = asyncio.create_task(JobWorker(stores, {"generate_report": handle}, ()).run(stop))
    # Long enough for its loops and connections to stand.
    await asyncio.sleep(0.3)
    begun = time.perf_counter()
    for _ in range(count // MADE_TOGETHER):
        async with stores.database.transaction("make_jobs") as tx:
            for _ in range(MADE_TOGETHER):
                await jobs.enqueue_internal(tx, type="generate_report", queue="reports", payload=PAYLOAD)
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        # Nobody tells of the last row but the row.
        while await stores.database.fetchval(_LEFT):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    rate = count / (time.perf_counter() - begun)
    stop.set()
    await worker
    # The next round begins as this one did.
    while await jobs.purge_ended_internal(stores.database, timedelta(0)):
        pass
    return rate


async def _bare(redis: str, count: int) -> float:
    name = f"bare{next(_numbers)}"
    done, left = asyncio.Event(), count

    async def process(entry: Any, token: str) -> Mapping[str, Any]:
        nonlocal left
        left -= 1
        if not left:
            done.set()
        return {"days": entry.data["days"]}

    queue = bullmq.Queue(name, {"prefix": "queue", "connection": redis})
    options = {"prefix": "queue", "connection": redis, "concurrency": CONCURRENCY, "autorun": False}
    worker = bullmq.Worker(name, process, options)
    working = asyncio.create_task(worker.run())
    await asyncio.sleep(0.3)
    entry = {"name": "generate_report", "data": PAYLOAD, "opts": {"removeOnComplete": True}}
    begun = time.perf_counter()
    for _ in range(count // MADE_TOGETHER):
        await queue.addBulk([entry] * MADE_TOGETHER)
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        await done.wait()
    rate = count / (time.perf_counter() - begun)
    await worker.close(force=True)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await queue.close()
    return rate
