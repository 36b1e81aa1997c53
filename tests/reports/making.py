"""Reports made at once: asked for, and drawn by the handler that workers have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from mrm.common.v1 import time_pb2
from mrm.planning.v1 import report_pb2
from mrm.planning.v1 import report_service_pb2 as pb
from server.jobs.handling import JobContext, Stores
from server.reports import report_job
from server.stores import opened
from storage.postgres import jobs
from tests.conftest import Caller, World

LEASE = timedelta(seconds=60)


async def asked(caller: Caller, project_id: str, **fields: Any) -> report_pb2.Report:
    """A report that waits for its job: on performance, yesterday and today, as JSON."""
    today = datetime.now(UTC).date()
    wanted: dict[str, Any] = {
        "project_id": project_id,
        "type": report_pb2.REPORT_TYPE_PERFORMANCE,
        "dates": time_pb2.DateRange(start_date=str(today - timedelta(days=1)), end_date=str(today)),
        "format": report_pb2.REPORT_FORMAT_JSON,
        "language": report_pb2.REPORT_LANGUAGE_RU,
        **fields,
    }
    reply = await caller.reports.GenerateReport(pb.GenerateReportRequest(**wanted), metadata=caller.auth)
    return reply.report


async def drawn(world: World, stores: Stores, report: report_pb2.Report) -> report_pb2.Report:
    """The report, once its job is done."""
    [job] = await jobs.claim_internal(world.database, [UUID(report.job_id)], "test", LEASE)
    result = await report_job.handle(job, JobContext(stores, job, LEASE))
    await jobs.complete_internal(world.database, [(job.id, job.fence, result)])
    return await got(world.admin, report.report_id)


async def got(caller: Caller, report_id: str) -> report_pb2.Report:
    """A report as it is now."""
    reply = await caller.reports.GetReport(pb.GetReportRequest(report_id=report_id), metadata=caller.auth)
    return reply.report


async def ready(world: World, project_id: str) -> report_pb2.Report:
    """A report that is ready."""
    async with opened(world.settings, "mrm-test-reports") as stores:
        return await drawn(world, stores, await asked(world.admin, project_id))


async def downloaded(caller: Caller, report_id: str, offset: int = 0) -> list[pb.DownloadReportResponse]:
    """What a download brings."""
    request = pb.DownloadReportRequest(report_id=report_id, offset=offset)
    return [each async for each in caller.reports.DownloadReport(request, metadata=caller.auth)]


async def file(caller: Caller, report_id: str) -> bytes:
    """The file of a report."""
    return b"".join(each.data for each in await downloaded(caller, report_id))
