"""CampaignImportService: campaigns of the past, from files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID

from mrm.campaigns.v1 import campaign_import_pb2, campaign_pb2
from mrm.campaigns.v1 import campaign_import_service_pb2 as pb
from mrm.planning.v1 import media_plan_pb2
from server.campaigns import import_rows
from server.campaigns.convert import CAMPAIGN_STATUSES, PLATFORMS
from server.campaigns.import_rows import Outcome, Target, Wanted
from server.campaigns.turns import in_turns
from server.rpc.auditing import SYSTEM, Actor, append_to, audit_diff, recorder
from server.rpc.call import AuditEntry, Call, StreamCall
from server.rpc.errors import FailedPrecondition, InvalidRequest, NotFound, Unavailable
from server.rpc.paging import Pager
from server.rpc.validation import validate
from server.rpc.values import EnumWords, money, optional_id, required_id, timestamp
from storage.postgres import audit, campaign_imports, media_plan_history, outbox, projects
from storage.postgres.audit import Cause
from storage.postgres.campaign_imports import CampaignImport, Held, RowError, Step
from storage.postgres.database import Database, Executor, Transaction
from storage.postgres.ids import new_id
from storage.postgres.projects import Project

PLAN_NAME: Final = "Imported"
_STATES = EnumWords(campaign_import_pb2.CampaignImportState, "CAMPAIGN_IMPORT_STATE_")
_DUPLICATES = EnumWords(campaign_import_pb2.DuplicateHandling, "DUPLICATE_HANDLING_")
_MOST_ROWS: Final = 1000
# Requests worked on at a time: the pool must have connections left for everybody else.
_AT_ONCE: Final = 2

ImportCall = StreamCall[pb.ImportCampaignsRequest, pb.ImportCampaignsResponse]


class CampaignImportService:
    """Implements mrm.campaigns.v1.CampaignImportService.

    Args:
        database: Where campaigns and imports live.
        pager: Makes page tokens.
        announce: Told after a commit that changes were recorded.
    """

    def __init__(self, database: Database, pager: Pager, announce: Callable[[], None]) -> None:
        self._database = database
        self._pager = pager
        self._announce = announce
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def ImportCampaigns(self, call: ImportCall) -> None:
        """Takes the rows of a file."""
        first = await anext(call.requests, None)
        if first is None:
            return
        if not first.HasField("options"):
            raise InvalidRequest.field("options", "REQUIRED", "is required on the first request of a call")
        options = first.options
        validate(options, "options")
        if not options.fingerprint and not options.validate_only:
            raise InvalidRequest.field("options.fingerprint", "REQUIRED", "is required unless rows are only checked")
        project = await _project(self._database, call, UUID(options.project_id))
        work = _Checking(self, call, project, options) if options.validate_only else None
        storing = None if work else await _Storing.begin(self, call, project, options)
        request: pb.ImportCampaignsRequest | None = first
        line = 0
        while request is not None:
            if request is not first and request.HasField("options"):
                raise InvalidRequest.field("options", "NOT_FIRST", "stands on the first request of a call only")
            line = _check_lines(request, line)
            async with self._turns:
                reply = await (work or storing).take(request)  # type: ignore[union-attr]
            await call.write(reply)
            if request.last:
                return
            if call.draining.is_set():
                raise Unavailable("the server shuts down, connect again", reason="SHUTTING_DOWN", retry_after=0.5)
            request = await anext(call.requests, None)

    async def GetCampaignImport(self, request: pb.GetCampaignImportRequest, call: Call) -> pb.GetCampaignImportResponse:
        """Reads one import."""
        import_id = required_id(request.campaign_import_id, "campaign_import_id")
        return pb.GetCampaignImportResponse(campaign_import=to_message(await self._found(call, import_id)))

    async def ListCampaignImports(
        self, request: pb.ListCampaignImportsRequest, call: Call
    ) -> pb.ListCampaignImportsResponse:
        """Lists the imports in scope."""
        page = self._pager.start(request, call)
        rows = await campaign_imports.list_page(
            self._database,
            call.scope,
            limit=page.size + 1,
            after=page.after,
            client_id=optional_id(request.filter.client_id),
            project_id=optional_id(request.filter.project_id),
        )
        kept, token = page.cut(rows)
        return pb.ListCampaignImportsResponse(campaign_imports=map(to_message, kept), next_page_token=token)

    async def ListCampaignImportErrors(
        self, request: pb.ListCampaignImportErrorsRequest, call: Call
    ) -> pb.ListCampaignImportErrorsResponse:
        """Lists what was wrong with the rows of an import."""
        import_id = required_id(request.campaign_import_id, "campaign_import_id")
        page = self._pager.start(request, call)
        await self._found(call, import_id)
        rows = await campaign_imports.list_errors(
            self._database, call.scope, import_id, limit=page.size + 1, after=page.after
        )
        kept, token = page.cut(rows)
        return pb.ListCampaignImportErrorsResponse(errors=map(_error, kept), next_page_token=token)

    async def _found(self, call: Call, import_id: UUID) -> CampaignImport:
        row = await campaign_imports.get(self._database, call.scope, import_id)
        if row is None:
            raise NotFound.resource("campaign_import", str(import_id))
        return row


class _Checking:
    """Rows that are only checked.

    Args:
        service: Has the stores.
        call: The call.
        project: Where the rows would go.
        options: What the caller wants.
    """

    def __init__(
        self, service: CampaignImportService, call: ImportCall, project: Project, options: pb.CampaignImportOptions
    ) -> None:
        self._database = service._database
        self._call = call
        self._project = project
        self._update = _on_duplicate(options) == "update"
        self._state = campaign_import_pb2.CampaignImport(
            client_id=str(project.client_id),
            project_id=str(project.id),
            source_name=options.source_name,
            fingerprint=options.fingerprint,
            on_duplicate=options.on_duplicate,
            state=campaign_import_pb2.CAMPAIGN_IMPORT_STATE_RUNNING,
        )

    async def take(self, request: pb.ImportCampaignsRequest) -> pb.ImportCampaignsResponse:
        """What the rows of a request would come to."""
        async with self._database.transaction("check_campaign_import") as tx:
            # Rights may have ended since the call began.
            project = await _project(tx, self._call, self._project.id)
            outcome = await _outcome(tx, request, 0, project, self._update)
        state = self._state
        state.row_count += len(request.rows)
        state.created_count += len(outcome.created)
        state.updated_count += outcome.updated_rows
        state.skipped_count += outcome.skipped
        state.failed_count += outcome.failed
        if request.rows:
            state.acknowledged_line = request.rows[-1].line
        if request.last:
            state.state = campaign_import_pb2.CAMPAIGN_IMPORT_STATE_COMPLETED
        return pb.ImportCampaignsResponse(campaign_import=state, errors=map(_error, outcome.faults))


class _Storing:
    """Rows that are stored, the file's place moving with them.

    Args:
        service: Has the stores.
        call: The call.
        project: Where the rows go.
        options: What the caller wants.
    """

    def __init__(
        self, service: CampaignImportService, call: ImportCall, project: Project, options: pb.CampaignImportOptions
    ) -> None:
        self._service = service
        self._database = service._database
        self._call = call
        self._project = project
        self._fingerprint = options.fingerprint
        self._on_duplicate = _on_duplicate(options)
        self._actor = Actor.of(call.principal)

    @classmethod
    async def begin(
        cls, service: CampaignImportService, call: ImportCall, project: Project, options: pb.CampaignImportOptions
    ) -> _Storing:
        """Begins the import, unless the file was begun before, and makes the plan that its campaigns belong to."""
        storing = cls(service, call, project, options)

        async def work(tx: Transaction) -> None:
            begun = await campaign_imports.begin(
                tx,
                client_id=project.client_id,
                project_id=project.id,
                fingerprint=options.fingerprint,
                source_name=options.source_name,
                on_duplicate=storing._on_duplicate,
            )
            row = await storing._held(tx)
            if options.restart:
                await campaign_imports.restart_internal(tx, row.id)
            if row.plan_lineage_id is None:
                await _add_plan(tx, project, row.id, call)
            if begun:
                entry = AuditEntry(
                    "create", "campaign_import", row.id, row.client_id, row.project_id, None, to_message(row)
                )
                await recorder(append_to(tx), storing._actor, method=call.method, request_id=call.request_id)(entry)

        await storing._database.run("begin_campaign_import", work)
        service._announce()
        return storing

    async def take(self, request: pb.ImportCampaignsRequest) -> pb.ImportCampaignsResponse:
        """Stores the rows of a request that were not dealt with before, all of them together."""
        faults: list[import_rows.Fault] = []

        async def work(tx: Transaction) -> CampaignImport:
            # Also asks anew whether the caller may do this.
            row = await self._held(tx)
            project = await _project(tx, self._call, self._project.id)
            outcome = await _outcome(tx, request, row.acknowledged_line, project, self._on_duplicate == "update")
            await self._store(tx, row, outcome)
            taken = sum(each.line > row.acknowledged_line for each in request.rows)
            step = Step(
                line=request.rows[-1].line if taken else 0,
                rows=taken,
                created=len(outcome.created),
                updated=outcome.updated_rows,
                skipped=outcome.skipped,
                failed=outcome.failed,
                last=request.last,
            )
            faults[:] = outcome.faults
            errors = [RowError(new_id(), each.line, each.field, each.reason, each.message) for each in faults]
            await campaign_imports.advance_internal(tx, row.id, step, errors)
            return await self._held(tx)

        row = await self._database.run("import_campaigns", work)
        self._service._announce()
        return pb.ImportCampaignsResponse(campaign_import=to_message(row), errors=map(_error, faults))

    async def _held(self, tx: Transaction) -> CampaignImport:
        row = await campaign_imports.of_file(
            tx, self._call.scope, self._project.id, self._fingerprint, self._on_duplicate
        )
        if row is None:
            raise NotFound.resource("project", str(self._project.id))
        return row

    async def _store(self, tx: Transaction, row: CampaignImport, outcome: Outcome) -> None:
        """Writes campaigns, their records and the word to ClickHouse, each by one statement."""
        cause = Cause("user", str(row.id), f"import of {row.source_name}" if row.source_name else "import of campaigns")

        async def record(action: str, changes: list[tuple[UUID, Mapping[str, Any]]]) -> None:
            await audit.append(
                tx,
                *(
                    audit.Record(
                        actor_kind=self._actor.kind,
                        actor_id=self._actor.id,
                        action=action,
                        resource_type="campaign",
                        resource_id=campaign_id,
                        method=self._call.method,
                        request_id=self._call.request_id,
                        client_id=row.client_id,
                        project_id=row.project_id,
                        diff=diff,
                        cause=cause,
                    )
                    for campaign_id, diff in changes
                ),
            )

        if outcome.created:
            assert row.plan_lineage_id is not None, "begin has made the plan"
            await campaign_imports.insert(tx, row.plan_lineage_id, outcome.created)
            await outbox.append_all(tx, "campaign", [str(each.id) for each in outcome.created])
            lineage = str(row.plan_lineage_id)
            await record(
                "create",
                [(each.id, audit_diff(None, _shown(each, lineage))) async for each in in_turns(outcome.created)],
            )
        if outcome.updated:
            await campaign_imports.update_internal(tx, [after for _, after in outcome.updated])
            await record(
                "update",
                [
                    (after.id, audit_diff(_shown(before), _shown(after)))
                    async for before, after in in_turns(outcome.updated)
                ],
            )


def to_message(row: CampaignImport) -> campaign_import_pb2.CampaignImport:
    """An import."""
    return campaign_import_pb2.CampaignImport(
        campaign_import_id=str(row.id),
        client_id=str(row.client_id),
        project_id=str(row.project_id),
        source_name=row.source_name,
        fingerprint=row.fingerprint,
        on_duplicate=_DUPLICATES.number(row.on_duplicate),
        state=_STATES.number(row.state),
        acknowledged_line=row.acknowledged_line,
        row_count=row.row_count,
        created_count=row.created_count,
        updated_count=row.updated_count,
        skipped_count=row.skipped_count,
        failed_count=row.failed_count,
        media_plan_lineage_id=str(row.plan_lineage_id or ""),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        complete_time=timestamp(row.completed_at),
    )


async def _project(db: Executor, call: Call, project_id: UUID) -> Project:
    project = await projects.get(db, call.scope, project_id)
    if project is None:
        raise NotFound.resource("project", str(project_id))
    if project.status == "archived":
        raise FailedPrecondition.archived("project")
    return project


def _on_duplicate(options: pb.CampaignImportOptions) -> str:
    return _DUPLICATES.optional_word(options.on_duplicate) or "skip"


def _check_lines(request: pb.ImportCampaignsRequest, line: int) -> int:
    """The last line of a request whose rows ascend from the line before it."""
    if len(request.rows) > _MOST_ROWS:
        raise InvalidRequest.field("rows", "REPEATED_MAX_ITEMS", f"must not hold more than {_MOST_ROWS} items")
    for index, row in enumerate(request.rows):
        if row.line <= line:
            raise InvalidRequest.field(
                f"rows[{index}].line", "LINE_ORDER", "must be larger than that of the row before"
            )
        line = row.line
    return line


async def _outcome(
    tx: Transaction, request: pb.ImportCampaignsRequest, done: int, project: Project, update: bool
) -> Outcome:
    """What the rows of a request after a line come to."""
    rows = [row for row in request.rows if row.line > done]
    outcome = Outcome()
    if not rows:
        return outcome
    accounts = await campaign_imports.accounts_internal(tx, project.client_id)
    target = Target(project.client_id, project.id, project.budget_currency, accounts)
    wanted: list[Wanted] = []
    async for row in in_turns(rows):
        found = import_rows.read(row, target)
        if isinstance(found, Wanted):
            wanted.append(found)
        else:
            outcome.refuse(row.line, found)
    keys = {(row.platform, row.external_id) for row in wanted}
    meant = [account.id for account in accounts if account.platform in {platform for platform, _ in keys}]
    held = await campaign_imports.held_internal(tx, project.client_id, keys, meant)
    import_rows.decide(wanted, held, target, update, outcome)
    outcome.faults.sort(key=lambda fault: fault.line)
    return outcome


async def _add_plan(tx: Transaction, project: Project, import_id: UUID, call: Call) -> None:
    """Makes the plan of a project's past. Nobody could approve it here, so the service itself does."""
    added = await campaign_imports.add_imported_plan(
        tx, project_id=project.id, name=PLAN_NAME, currency=project.budget_currency
    )
    if added is None:
        return
    plan_id, lineage_id = added
    for kind in ("approve", "complete"):
        await media_plan_history.decide(
            tx, media_plan_id=plan_id, kind=kind, decided_by=None, comment="made by the service for imported campaigns"
        )
    plan = media_plan_pb2.MediaPlan(
        media_plan_id=str(plan_id),
        lineage_id=str(lineage_id),
        project_id=str(project.id),
        client_id=str(project.client_id),
        display_name=PLAN_NAME,
        version=1,
        status=media_plan_pb2.MEDIA_PLAN_STATUS_COMPLETED,
    )
    cause = Cause("user", str(import_id), "the first import of campaigns into the project")
    entry = AuditEntry("create", "media_plan", plan_id, project.client_id, project.id, None, plan)
    await recorder(append_to(tx), SYSTEM, cause=cause, method=call.method, request_id=call.request_id)(entry)


def _shown(held: Held, lineage_id: str = "") -> campaign_pb2.Campaign:
    """A campaign as the record of changes shows it."""
    message = campaign_pb2.Campaign(
        campaign_id=str(held.id),
        client_id=str(held.client_id),
        project_id=str(held.project_id),
        platform=PLATFORMS.number(held.platform),
        display_name=held.name,
        status=CAMPAIGN_STATUSES.number(held.status),
        currency_code=held.currency,
        daily_budget=money(held.budget_daily, held.currency),
        total_budget=money(held.budget_total, held.currency),
        external_id=held.external_id,
        media_plan_lineage_id=lineage_id,
        media_plan_version=1 if lineage_id else 0,
    )
    if held.configuration:
        message.configuration.update(held.configuration)
    return message


def _error(found: import_rows.Fault | RowError) -> campaign_import_pb2.CampaignImportError:
    return campaign_import_pb2.CampaignImportError(
        line=found.line, field=found.field, reason=found.reason, message=found.message
    )
