"""The job that forgets what has been kept long enough."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from server.jobs.handling import JobContext
from storage.postgres import emails, idempotency, jobs, monitoring
from storage.postgres.database import Executor
from storage.postgres.jobs import Job

TYPE: Final = "apply_retention"
QUEUE: Final = "maintenance"
_BATCH: Final = 10_000
_JOBS_KEPT: Final = timedelta(days=90)
_EMAILS_KEPT: Final = timedelta(days=30)


class ApplyRetention(BaseModel):
    """Payload of an ``apply_retention`` job.

    Attributes:
        table: What to forget: expired replies of mutations, jobs that ended long ago, or what e-mails said.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: Literal["idempotency_keys", "jobs", "emails"]


async def _ended_jobs(db: Executor, limit: int) -> int:
    return await jobs.purge_ended_internal(db, _JOBS_KEPT, limit)


async def _said(db: Executor, limit: int) -> int:
    return await emails.forget_internal(db, _EMAILS_KEPT, limit)


_PURGES: Final[dict[str, Callable[[Executor, int], Awaitable[int]]]] = {
    "idempotency_keys": idempotency.purge_expired,
    "jobs": _ended_jobs,
    "emails": _said,
}


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Deletes in batches, so that no statement holds many rows and the job can be cancelled between them."""
    table = ApplyRetention.model_validate(job.payload).table
    purge = _PURGES[table]
    deleted = 0
    while True:
        batch = await purge(context.stores.database, _BATCH)
        deleted += batch
        if batch < _BATCH:
            await monitoring.reach_internal(context.stores.database, f"retention.{table}")
            return {"deleted": deleted}
        await context.progress(deleted, 0)
