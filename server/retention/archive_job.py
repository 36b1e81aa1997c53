"""The jobs that have months leave their tables, and bring them back."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from server.alerts.raising import clear_alerts, raise_alert
from server.jobs.handling import JobContext, JobFailed, Stores
from server.retention.archiving import Archiver, Table, is_due
from server.rpc import logs
from server.settings import Settings
from storage.clickhouse import archived
from storage.postgres import archives, erasures, jobs
from storage.postgres.alerts import Sighting
from storage.postgres.archives import ArchivedDays
from storage.postgres.audit import Cause
from storage.postgres.database import Transaction
from storage.postgres.jobs import Job

TYPE: Final = "archive_partition"
QUEUE: Final = "maintenance"
TableName = Literal["campaign_events", "campaign_statistics"]
TABLES: Final[tuple[TableName, ...]] = ("campaign_events", "campaign_statistics")
KEY: Final = "schedule:old_months"

_log = logs.get("retention")


class ArchivePartition(BaseModel):
    """Payload of an ``archive_partition`` job.

    Attributes:
        action: Look for what is due, and make a job of each month; let a month go; or bring one back.
        table: Of which table; not for ``plan``.
        month: First day of the month; not for ``plan``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["plan", "let_go", "restore"] = "plan"
    table: TableName | None = None
    month: date | None = None


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Does one of the three."""
    wanted = ArchivePartition.model_validate(job.payload)
    if wanted.action == "plan":
        return await _plan(job, context)
    assert wanted.table is not None
    assert wanted.month is not None
    archiver = _archiver(context, wanted.table)
    if wanted.action == "restore":
        return {"rows": await archiver.restore(wanted.month)}
    return {"outcome": await archiver.let_go(wanted.month)}


async def enqueue(
    tx: Transaction,
    action: Literal["plan", "let_go", "restore"],
    table: TableName | None = None,
    month: date | None = None,
    *,
    requested_by: UUID | None = None,
    trace_id: str = "",
) -> Job:
    """Makes a job, unless the same waits or runs."""
    payload = ArchivePartition(action=action, table=table, month=month)
    # A month does not go and come at the same time.
    key = KEY if month is None else f"archive:{table}:{month}"
    return await jobs.enqueue_internal(
        tx, type=TYPE, queue=QUEUE, payload=payload.model_dump(mode="json"), unique_key=key,
        requested_by=requested_by, trace_id=trace_id,
    )  # fmt: skip


def keep_months(settings: Settings, table: TableName) -> int:
    """How many months a table keeps."""
    return settings.retention.event_months if table == "campaign_events" else settings.rollup.keep_months


def table_of(stores: Stores, name: TableName) -> Table:
    """The table of a name."""
    return archived.events(stores.clickhouse) if name == "campaign_events" else ArchivedDays(stores.database)


async def due_months(stores: Stores, name: TableName, today: date) -> list[date]:
    """Months that are to leave a table and have rows in it."""
    keep = keep_months(stores.settings, name)
    return [month for month in await table_of(stores, name).months() if is_due(month, keep, today)]


def _archiver(context: JobContext, name: TableName) -> Archiver:
    stores = context.stores
    if stores.objects is None:
        raise JobFailed("no object storage is configured: set MRM_OBJECTS__URL", final=True)
    return Archiver(
        stores.database, stores.objects, table_of(stores, name), stores.settings.retention, context.progress
    )


async def _plan(job: Job, context: JobContext) -> Mapping[str, Any]:
    stores, now = context.stores, datetime.now(UTC)
    made, overdue, expired = 0, dict[str, str](), 0
    for name in TABLES:
        due = await due_months(stores, name, now.date())
        if due and stores.objects is None:
            overdue[f"retention:{name}"] = f"{len(due)} months of {name} stay: no object storage is configured"
            continue
        for month in due:
            archiver = _archiver(context, name)
            found = await archiver.close(month)
            if found.state in ("restoring", "restored") and (found.kept_until or now) > now:
                continue
            async with context.transaction("archive_month") as tx:
                await enqueue(tx, "let_go", name, month)
            made += 1
            files = await archives.files_internal(stores.database, found.id)
            held = await archives.held_internal(stores.database, [each.client_id for each in files])
            since = max(found.closed_at, found.kept_until or found.closed_at)
            if not held and since + stores.settings.retention.patience < now:
                overdue[f"retention:{name}:{month}"] = (
                    f"{name} of {month:%Y-%m} should have left its table and has not: it is {found.state}"
                )
    if stores.objects is not None:
        oldest = now - timedelta(days=366 * stores.settings.retention.archive_years)
        for found in await archives.outdated_internal(stores.database, oldest):
            expired += await _archiver(context, "campaign_events").expire(found)
    late = {
        f"erasure:{each.id}": f"an erasure of {each.requested_at:%Y-%m-%d} lacks the receipts of "
        + ", ".join(s for s in erasures.STORES[each.subject] if s not in {r.store for r in each.receipts})
        for each in await erasures.overdue_internal(stores.database)
    }
    await _tell(job, context, overdue, late)
    return {"jobs": made, "overdue": sorted(overdue), "overdue_erasures": len(late), "expired": expired}


async def _tell(job: Job, context: JobContext, overdue: Mapping[str, str], late: Mapping[str, str]) -> None:
    """Raises what is overdue as alerts of the service, and resolves those that no longer are."""
    cause = Cause("job", str(job.id))
    async with context.transaction("retention_alerts") as tx:
        for kind, found in (("retention_overdue", overdue), ("erasure_overdue", late)):
            for key, summary in found.items():
                _log.error(kind, summary=summary)
                sighting = Sighting(None, kind, "critical", key, summary, {})  # type: ignore[arg-type]
                await raise_alert(tx, sighting, cause=cause, settings=context.stores.settings.alerts)
            await clear_alerts(tx, None, [kind], cause=cause, keep=found)  # type: ignore[list-item]
