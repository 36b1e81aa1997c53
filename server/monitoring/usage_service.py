"""UsageService: what clients use of the service."""

from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from mrm.operations.v1 import usage_pb2
from mrm.operations.v1 import usage_service_pb2 as pb
from server.rpc.call import Call
from server.rpc.errors import NotFound
from server.statistics.rules import dates
from storage.clickhouse import usage as measured
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.usage import DayFigures
from storage.postgres import clients, usage
from storage.postgres.database import Database

_DAY = timedelta(days=1)


class UsageService:
    """Implements mrm.operations.v1.UsageService.

    Args:
        database: Knows calls, e-mails and reports.
        clickhouse: Knows events and figures.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse) -> None:
        self._database = database
        self._clickhouse = clickhouse

    async def GetUsage(self, request: pb.GetUsageRequest, call: Call) -> pb.GetUsageResponse:
        """Tells what a client used, day by day."""
        start, end = dates(request.dates, ZoneInfo("UTC"))
        client_id = UUID(request.client_id)
        if not await clients.visible_ids(self._database, call.scope, [client_id]):
            raise NotFound.resource("client", request.client_id)
        figures = await measured.days_internal(self._clickhouse, client_id, start, end)
        first, after = (datetime.fromtimestamp(each, UTC).date() for each in (start, end))
        days = []
        for known in await usage.days_internal(self._database, client_id, first, after - _DAY):
            found = figures.get(known.day, DayFigures(0, 0))
            days.append(
                usage_pb2.UsageDay(
                    date=known.day.isoformat(),
                    event_count=found.events,
                    figure_row_count=found.rows,
                    call_count=known.calls,
                    export_count=known.exports,
                    email_count=known.emails,
                    report_count=known.reports,
                )
            )
        return pb.GetUsageResponse(days=days)
