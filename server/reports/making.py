"""Makes the jobs that make reports. Whoever causes one needs no more than this."""

from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from storage.postgres import jobs
from storage.postgres.database import Transaction
from storage.postgres.jobs import Job

TYPE: Final = "generate_report"
QUEUE: Final = "reports"


class GenerateReport(BaseModel):
    """Payload of a ``generate_report`` job.

    Attributes:
        report_id: What to make, a row of ``reports``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    report_id: UUID


async def enqueue(
    tx: Transaction, report_id: UUID, client_id: UUID, *, requested_by: UUID | None, trace_id: str
) -> Job:
    """Makes the job of a report.

    Args:
        tx: The transaction that adds the report.
        report_id: The report.
        client_id: The client that it works for.
        requested_by: The user who asked for it, if one did.
        trace_id: Id of the request that causes it.
    """
    return await jobs.enqueue_internal(
        tx,
        type=TYPE,
        queue=QUEUE,
        payload=GenerateReport(report_id=report_id).model_dump(mode="json"),
        client_id=client_id,
        requested_by=requested_by,
        unique_key=f"{TYPE}:{report_id}",
        trace_id=trace_id,
    )
