"""RetentionService: what is kept how long, archived months, and clients of which nothing may go."""

from datetime import UTC, date, datetime
from typing import cast
from uuid import UUID

from mrm.operations.v1 import retention_pb2
from mrm.operations.v1 import retention_service_pb2 as pb
from server.retention import archive_job, convert
from server.retention.archive_job import TABLES, TableName
from server.retention.archiving import Table, is_due
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import FailedPrecondition, NotFound
from server.rpc.paging import Pager
from server.settings import Settings
from storage.clickhouse import archived
from storage.clickhouse.connect import ClickHouse
from storage.postgres import archives, clients, metrics_state
from storage.postgres.archives import ArchivedDays
from storage.postgres.database import Database

_RESTORABLE = ("dropped", "restoring", "restored")


class RetentionService:
    """Implements mrm.operations.v1.RetentionService.

    Args:
        database: Holds the manifest, daily figures and holds.
        clickhouse: Holds the events.
        pager: Makes page tokens.
        settings: How long what is kept.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse, pager: Pager, settings: Settings) -> None:
        self._database = database
        self._pager = pager
        self._settings = settings
        self._tables: dict[TableName, Table] = {
            "campaign_events": archived.events(clickhouse),
            "campaign_statistics": ArchivedDays(database),
        }

    async def GetRetentionStatus(
        self, request: pb.GetRetentionStatusRequest, call: Call
    ) -> pb.GetRetentionStatusResponse:
        """Tells the rules, and whether what they say was done."""
        reply = pb.GetRetentionStatusResponse(has_object_storage=self._settings.objects.url is not None)
        years = self._settings.retention.archive_years
        today = datetime.now(UTC).date()
        for name in TABLES:
            keep = archive_job.keep_months(self._settings, name)
            gone = await archives.restored_months(self._database, name)
            due = [
                month for month in await self._tables[name].months() if is_due(month, keep, today) and month not in gone
            ]
            reply.rules.add(
                data=name, kept=f"{keep} months, then in the archive for {years} years", due_month_count=len(due)
            )
        for data, kept in _OTHERS:
            reply.rules.add(data=data, kept=kept)
        reply.rules.add(data="logs", kept=f"{self._settings.retention.log_days} days, compressed after the first")
        floor = await metrics_state.get_raw_floor(self._database)
        if floor.timestamp() > 0:
            reply.first_open_month = f"{floor:%Y-%m}"
        return reply

    async def ListArchiveMonths(self, request: pb.ListArchiveMonthsRequest, call: Call) -> pb.ListArchiveMonthsResponse:
        """Lists the manifest."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await archives.list_page(
                self._database,
                limit=page.size + 1,
                after=page.after,
                table=convert.TABLES.optional_word(request.filter.table),
                state=convert.STATES.optional_word(request.filter.state),
            )
        )
        return pb.ListArchiveMonthsResponse(
            archive_months=[convert.archive_month(row) for row in rows], next_page_token=next_token
        )

    async def RunRetention(self, request: pb.RunRetentionRequest, call: Mutation) -> pb.RunRetentionResponse:
        """Has old months looked for now."""
        job = await archive_job.enqueue(call.tx, "plan", requested_by=_person(call), trace_id=call.request_id)
        await call.record(AuditEntry("run_retention", "retention", job.id, None, None, None, None))
        return pb.RunRetentionResponse(job_id=str(job.id))

    async def RestoreArchiveMonth(
        self, request: pb.RestoreArchiveMonthRequest, call: Mutation
    ) -> pb.RestoreArchiveMonthResponse:
        """Has a month brought back."""
        table = cast("TableName", convert.TABLES.word(request.table))
        month = date.fromisoformat(f"{request.month}-01")
        found = await archives.get(call.tx, table, month)
        if found is None or found.state not in _RESTORABLE:
            raise FailedPrecondition(
                f"{request.month} of {table} is not in the archive",
                metadata={"state": "absent" if found is None else found.state, "wanted": "restored"},
            )
        job = await archive_job.enqueue(
            call.tx, "restore", table, month, requested_by=_person(call), trace_id=call.request_id
        )
        message = convert.archive_month(found)
        await call.record(AuditEntry("restore", "archive_month", found.id, None, None, message, message))
        return pb.RestoreArchiveMonthResponse(job_id=str(job.id))

    async def SetLegalHold(self, request: pb.SetLegalHoldRequest, call: Mutation) -> pb.SetLegalHoldResponse:
        """Holds a client."""
        client_id = UUID(request.client_id)
        if await clients.get(call.tx, call.scope, client_id) is None:
            raise NotFound.resource("client", request.client_id)
        before = await archives.get_hold(call.tx, client_id)
        hold = convert.legal_hold(await archives.set_hold(call.tx, client_id, request.reason, _person(call)))
        old: retention_pb2.LegalHold | None = None if before is None else convert.legal_hold(before)
        await call.record(AuditEntry("hold", "legal_hold", client_id, client_id, None, old, hold))
        return pb.SetLegalHoldResponse(legal_hold=hold)

    async def LiftLegalHold(self, request: pb.LiftLegalHoldRequest, call: Mutation) -> pb.LiftLegalHoldResponse:
        """Holds a client no longer."""
        client_id = UUID(request.client_id)
        if await clients.get(call.tx, call.scope, client_id) is None:
            raise NotFound.resource("client", request.client_id)
        lifted = await archives.lift_hold(call.tx, client_id)
        if lifted is None:
            raise NotFound.resource("legal_hold", request.client_id)
        await call.record(
            AuditEntry("lift", "legal_hold", client_id, client_id, None, convert.legal_hold(lifted), None)
        )
        return pb.LiftLegalHoldResponse()

    async def ListLegalHolds(self, request: pb.ListLegalHoldsRequest, call: Call) -> pb.ListLegalHoldsResponse:
        """Lists held clients."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await archives.list_holds(self._database, call.scope, limit=page.size + 1, after=page.after)
        )
        return pb.ListLegalHoldsResponse(
            legal_holds=[convert.legal_hold(row) for row in rows], next_page_token=next_token
        )


# What the other jobs and stores keep to, for whoever asks.
_OTHERS = (
    ("reports", "for good"),
    ("ai_feedback", "for good"),
    ("audit", "for good"),
    ("campaign_metrics_hourly", "for good: platforms and imports state any past day anew"),
    ("jobs", "90 days after their end"),
    ("email_texts", "30 days after they were sent"),
    ("outbox", "7 days after delivery"),
    ("idempotent_replies", "24 hours"),
    ("quarantined_events", "90 days"),
)


def _person(call: Mutation) -> UUID | None:
    return call.principal.principal_id if call.principal.kind == "user" else None
