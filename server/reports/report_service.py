"""ReportService: has reports made, and hands them out."""

from contextlib import aclosing
from datetime import date
from uuid import UUID

from mrm.planning.v1 import report_service_pb2 as pb
from server.reports import convert, making
from server.rpc import rights, values
from server.rpc.call import AuditEntry, Call, Mutation, StreamCall
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound
from server.rpc.paging import Pager
from server.settings import WatchSettings
from server.statistics.files import ClientFiles, Progress
from storage.postgres import projects, reports
from storage.postgres.database import Database
from storage.postgres.ids import new_id
from storage.postgres.reports import Report

_LONGEST_DAYS = 1097


class ReportService:
    """Implements mrm.planning.v1.ReportService.

    Args:
        database: Where reports live.
        pager: Makes page tokens.
        files: Where their files are.
        settings: How long a slow reader is waited for.
    """

    def __init__(
        self, database: Database, pager: Pager, files: ClientFiles, settings: WatchSettings | None = None
    ) -> None:
        self._database = database
        self._pager = pager
        self._files = files
        self._write_timeout = (settings or WatchSettings()).write_timeout

    async def GenerateReport(self, request: pb.GenerateReportRequest, call: Mutation) -> pb.GenerateReportResponse:
        """Asks for a report."""
        start = values.day(request.dates.start_date, "dates.start_date")
        end = values.day(request.dates.end_date, "dates.end_date")
        assert start is not None
        assert end is not None
        if (end - start).days >= _LONGEST_DAYS:
            raise InvalidRequest.field("dates", "PERIOD_TOO_LONG", f"is more than {_LONGEST_DAYS} days")
        # The days before are looked at as well.
        if (start - date.min).days < _LONGEST_DAYS or (date.max - end).days < 1:
            raise InvalidRequest.field("dates", "DATE_INVALID", "has no days before or after it in the calendar")
        made = await self._made(
            call,
            UUID(request.project_id),
            type=convert.TYPES.word(request.type),
            start=start,
            end=end,
            format=convert.FORMATS.word(request.format),
            language=convert.LANGUAGES.word(request.language),
        )
        return pb.GenerateReportResponse(report=convert.report(made))

    async def RegenerateReport(
        self, request: pb.RegenerateReportRequest, call: Mutation
    ) -> pb.RegenerateReportResponse:
        """Asks for a report anew."""
        old = await reports.get(call.tx, call.scope, UUID(request.report_id))
        if old is None:
            raise NotFound.resource("report", request.report_id)
        made = await self._made(
            call,
            old.project_id,
            type=old.type,
            start=old.start,
            end=old.end,
            format=old.format,
            language=old.language,
            replaces=old.id,
        )
        return pb.RegenerateReportResponse(report=convert.report(made))

    async def GetReport(self, request: pb.GetReportRequest, call: Call) -> pb.GetReportResponse:
        """Tells how far a report is."""
        return pb.GetReportResponse(report=convert.report(await self._found(request.report_id, call)))

    async def ListReports(self, request: pb.ListReportsRequest, call: Call) -> pb.ListReportsResponse:
        """Lists reports."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await reports.list_page(
                self._database,
                call.scope,
                limit=page.size + 1,
                after=page.after,
                client_id=values.optional_id(request.filter.client_id),
                project_id=values.optional_id(request.filter.project_id),
                types=convert.TYPES.optional_words(request.filter.types),
                statuses=convert.STATUSES.optional_words(request.filter.statuses),
            )
        )
        return pb.ListReportsResponse(reports=map(convert.report, rows), next_page_token=next_token)

    async def DownloadReport(
        self,
        request: pb.DownloadReportRequest,
        call: StreamCall[pb.DownloadReportRequest, pb.DownloadReportResponse],
    ) -> None:
        """Streams the file of a report."""
        row = await self._found(request.report_id, call)
        key = _key(row)
        progress = Progress(call, self._write_timeout)
        first = pb.DownloadReportResponse(offset=request.offset, report=convert.report(row))
        offset = request.offset
        async with aclosing(self._files.objects.get(key, offset=offset)) as pieces:
            async for piece in pieces:
                message = pb.DownloadReportResponse(data=piece, offset=offset)
                if offset == request.offset:
                    message.report.CopyFrom(first.report)
                await progress.tell(message, at_once=True)
                offset += len(piece)
        if offset == request.offset:
            await progress.tell(first, at_once=True)

    async def GetReportDownloadUrl(
        self, request: pb.GetReportDownloadUrlRequest, call: Call
    ) -> pb.GetReportDownloadUrlResponse:
        """Gives a URL of the file of a report."""
        row = await self._found(request.report_id, call)
        return pb.GetReportDownloadUrlResponse(
            download_url=await self._files.url(_key(row)), report=convert.report(row)
        )

    async def _made(
        self,
        call: Mutation,
        project_id: UUID,
        *,
        type: str,
        start: date,
        end: date,
        format: str,
        language: str,
        replaces: UUID | None = None,
    ) -> Report:
        """A report to make, with its job."""
        project = await projects.get(call.tx, call.scope, project_id)
        if project is None:
            raise NotFound.resource("project", str(project_id))
        measured = rights.granting(call.principal, "STATISTICS_READ")
        readable = measured and await projects.get(
            call.tx, rights.within(call.principal, "STATISTICS_READ"), project_id
        )
        if not readable:
            raise rights.denied("STATISTICS_READ")
        # Without a storage the job could only fail.
        _ = self._files.objects
        report_id = new_id()
        person = call.principal.principal_id if call.principal.kind == "user" else None
        job = await making.enqueue(call.tx, report_id, project.client_id, requested_by=person, trace_id=call.request_id)
        made = await reports.create(
            call.tx,
            call.scope,
            report_id=report_id,
            project_id=project_id,
            type=type,
            start=start,
            end=end,
            format=format,
            language=language,
            job_id=job.id,
            replaces_id=replaces,
            created_by=person,
        )
        await call.record(
            AuditEntry("create", "report", made.id, made.client_id, made.project_id, None, convert.report(made))
        )
        return made

    async def _found(self, report_id: str, call: Call) -> Report:
        row = await reports.get(self._database, call.scope, UUID(report_id))
        if row is None:
            raise NotFound.resource("report", report_id)
        return row


def _key(row: Report) -> str:
    """Where the file of a report is.

    Raises:
        FailedPrecondition: It is not ready.
    """
    if row.status != "ready" or row.file_key is None:
        raise FailedPrecondition(
            f"the report is {row.status}: it has no file",
            metadata={"resource_type": "report", "state": row.status, "wanted": "ready"},
        )
    return row.file_key
