"""What the service does when it sees a condition that needs attention, and when that is over."""

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from server.alerts import convert
from server.alerts.telling import tell_of_alert
from server.rpc.auditing import SYSTEM, append_to, recorder
from server.rpc.call import AuditEntry
from server.settings import AlertsSettings
from storage.postgres import alerts
from storage.postgres.alerts import Alert, AlertKind, Raised, Sighting
from storage.postgres.audit import Cause
from storage.postgres.database import Transaction


async def raise_alert(
    tx: Transaction, seen: Sighting, *, cause: Cause, settings: AlertsSettings, at: datetime | None = None
) -> Raised | None:
    """Notes that a condition was seen, and has people told when that is due.

    The first time, and when it got worse, it is recorded as the service's doing.

    Args:
        tx: The transaction of what saw it.
        seen: The condition; `server.alerts.convert.stored_details` makes its details.
        cause: What saw it, such as ``Cause("job", str(job.id))``.
        settings: When people are reminded.
        at: When it was seen; now if None.

    Returns:
        What became of it; None when somebody resolved the same condition by hand not long ago.
    """
    raised = await alerts.raise_alert_internal(tx, seen, at=at or datetime.now(UTC), remind=settings.remind)
    if raised is None:
        return None
    if raised.before is None:
        await _record(tx, "raise", None, raised.alert, cause)
    elif raised.before != (raised.alert.severity, raised.alert.status):
        severity, status = raised.before
        await _record(tx, "raise", replace(raised.alert, severity=severity, status=status), raised.alert, cause)
    if raised.notify:
        await tell_of_alert(tx, raised.alert, reminder=raised.before is not None)
    return raised


async def clear_alerts(
    tx: Transaction,
    client_id: UUID | None,
    kinds: Collection[AlertKind],
    *,
    cause: Cause,
    keep: Collection[str] = (),
    keys: Collection[str] | None = None,
    at: datetime | None = None,
) -> list[Alert]:
    """Resolves a client's alerts whose conditions are over.

    Args:
        tx: The transaction of what saw that.
        client_id: The client; None for the service itself.
        kinds: Of which kinds.
        cause: What saw it.
        keep: Keys of conditions that are not over.
        keys: Only these; all but `keep` if None.
        at: Since when it is over; now if None.
    """
    cleared = await alerts.clear_internal(tx, client_id, kinds, at=at or datetime.now(UTC), keep=keep, keys=keys)
    for row in cleared:
        before = "open" if row.acknowledged_at is None else "acknowledged"
        await _record(tx, "resolve", replace(row, status=before, resolved_at=None), row, cause)
    return cleared


async def _record(tx: Transaction, action: str, before: Alert | None, after: Alert, cause: Cause) -> None:
    record = recorder(append_to(tx), SYSTEM, cause=cause)
    was = None if before is None else convert.alert(before)
    await record(AuditEntry(action, "alert", after.id, after.client_id, after.project_id, was, convert.alert(after)))
