"""Reports as messages."""

from datetime import UTC, datetime

from mrm.common.v1 import time_pb2
from mrm.planning.v1 import report_pb2
from server.rpc.values import EnumWords, timestamp
from storage.postgres.reports import Report

TYPES = EnumWords(report_pb2.ReportType, "REPORT_TYPE_")
FORMATS = EnumWords(report_pb2.ReportFormat, "REPORT_FORMAT_")
LANGUAGES = EnumWords(report_pb2.ReportLanguage, "REPORT_LANGUAGE_")
STATUSES = EnumWords(report_pb2.ReportStatus, "REPORT_STATUS_")


def report(row: Report) -> report_pb2.Report:
    """A report."""
    watermark = None if row.watermark is None else datetime.fromtimestamp(row.watermark / 1000, UTC)
    return report_pb2.Report(
        report_id=str(row.id),
        project_id=str(row.project_id),
        client_id=str(row.client_id),
        type=TYPES.number(row.type),
        dates=time_pb2.DateRange(start_date=row.start.isoformat(), end_date=row.end.isoformat()),
        format=FORMATS.number(row.format),
        language=LANGUAGES.number(row.language),
        status=STATUSES.number(row.status),
        job_id=str(row.job_id or ""),
        error=row.error,
        watermark_time=timestamp(watermark),
        generate_time=timestamp(row.generated_at),
        size_bytes=row.file_size or 0,
        sha256=row.file_sha256.hex() if row.file_sha256 else "",
        previous_report_id=str(row.replaces_id or ""),
        creator_id=str(row.created_by or ""),
        create_time=timestamp(row.created_at),
        time_zone=row.time_zone,
        prompt_name=row.prompt_name,
        prompt_version=row.prompt_version,
        model=row.model,
        fallback=row.fallback,
    )
