# ruff: noqa: S608 - the statements are put together from constants of this package
"""Alerts: conditions that need attention, each kept once however often it is seen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, Transaction
from storage.postgres.ids import new_id
from storage.scope import Scope

AlertKind = Literal[
    "budget_threshold",
    "budget_exhaustion",
    "overspend",
    "overpacing",
    "underpacing",
    "integration_error",
    "rollup_drift",
    "job_failed",
    "retention_overdue",
    "erasure_overdue",
]
Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True, slots=True)
class Alert:
    """A row of ``alerts``.

    Attributes:
        dedupe_key: What makes two sightings the same.
        details: ``mrm.operations.v1.AlertDetails`` as JSON.
        notified_at: When its recipients were last told.
        resolved_by_hand: Whether somebody, not the service, resolved it.
    """

    id: UUID
    client_id: UUID | None
    project_id: UUID | None
    campaign_id: UUID | None
    integration_id: UUID | None
    kind: str
    severity: str
    status: str
    dedupe_key: str
    summary: str
    details: dict[str, Any]
    occurrences: int
    first_seen_at: datetime
    last_seen_at: datetime
    notified_at: datetime
    acknowledged_by: UUID | None
    acknowledged_at: datetime | None
    resolved_by: UUID | None
    resolved_at: datetime | None
    resolved_by_hand: bool
    comment: str
    revision: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Sighting:
    """A condition that was seen.

    Attributes:
        client_id: The client it concerns; None for the service itself, of which whoever reaches all clients is told.
        kind: What kind of condition.
        severity: How bad it is.
        dedupe_key: What makes two sightings the same: kind, thing, limit and period.
        summary: One line in English for people; holds no secret.
        details: ``mrm.operations.v1.AlertDetails`` as JSON.
        project_id: The project it concerns, by which its team sees it.
        campaign_id: The campaign it concerns.
        integration_id: The platform account it concerns.
    """

    client_id: UUID | None
    kind: AlertKind
    severity: Severity
    dedupe_key: str
    summary: str
    details: Mapping[str, Any]
    project_id: UUID | None = None
    campaign_id: UUID | None = None
    integration_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Raised:
    """What became of a sighting.

    Attributes:
        alert: The alert as it is now.
        before: Its severity and status before; None if it is new.
        notify: Whether its recipients are to be told now: it is new, worse, or due for a reminder.
    """

    alert: Alert
    before: tuple[str, str] | None
    notify: bool


_FIELDS = (
    "id", "client_id", "project_id", "campaign_id", "integration_id", "kind", "severity", "status", "dedupe_key",
    "summary", "details", "occurrences", "first_seen_at", "last_seen_at", "notified_at", "acknowledged_by",
    "acknowledged_at", "resolved_by", "resolved_at", "resolved_by_hand", "comment", "revision", "created_at",
    "updated_at",
)  # fmt: skip
_COLUMNS = ", ".join(f"a.{name}" for name in _FIELDS)
_VISIBLE = visibility.project("a.project_id")
_FROM = "FROM alerts a LEFT JOIN clients cl ON cl.id = a.client_id"

# One alert that is not resolved, kept from changing until the transaction ends.
_LIVE = f"""
SELECT {_COLUMNS} FROM alerts a
WHERE client_id IS NOT DISTINCT FROM $1 AND dedupe_key = $2 AND status <> 'resolved' FOR UPDATE"""

# Whether somebody resolved the same condition so short a time ago that it is not to be raised again.
_SILENCED = """
SELECT EXISTS (
  SELECT FROM alerts
  WHERE client_id IS NOT DISTINCT FROM $1 AND dedupe_key = $2 AND resolved_by_hand AND resolved_at > $3)"""

# Adds an alert, unless another process has just added the same.
_ADD = f"""
INSERT INTO alerts AS a (id, client_id, project_id, campaign_id, integration_id, kind, severity, dedupe_key, summary,
  details, first_seen_at, last_seen_at, notified_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $11)
ON CONFLICT (client_id, dedupe_key) WHERE status <> 'resolved' DO NOTHING RETURNING {_COLUMNS}"""

# Notes that a condition was seen again. One that became worse is open again, whoever had acknowledged it.
_SEEN_AGAIN = f"""
UPDATE alerts a SET occurrences = occurrences + 1, last_seen_at = GREATEST(last_seen_at, $2), severity = $3,
  summary = $4, details = $5, notified_at = CASE WHEN $6 THEN $2 ELSE notified_at END,
  status = CASE WHEN $7 THEN 'open' ELSE status END,
  acknowledged_by = CASE WHEN $7 THEN NULL ELSE acknowledged_by END,
  acknowledged_at = CASE WHEN $7 THEN NULL ELSE acknowledged_at END
WHERE id = $1 RETURNING {_COLUMNS}"""

# Resolves alerts of a client of some kinds whose conditions are over.
_CLEAR = f"""
UPDATE alerts a SET status = 'resolved', resolved_at = GREATEST($5, first_seen_at)
WHERE client_id IS NOT DISTINCT FROM $1 AND kind = ANY ($2::text[]) AND status <> 'resolved'
  AND NOT dedupe_key = ANY ($3::text[]) AND ($4::text[] IS NULL OR dedupe_key = ANY ($4))
RETURNING {_COLUMNS}"""

# One alert.
_GET = f"SELECT {_COLUMNS} {_FROM} WHERE a.id = $4 AND {_VISIBLE}"

# One alert, kept from changing until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE OF a"

# One page of alerts, newest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} {_FROM}
WHERE {_VISIBLE}
  AND ($4::uuid IS NULL OR a.id < $4)
  AND ($6::uuid IS NULL OR a.client_id = $6)
  AND ($7::uuid IS NULL OR a.project_id = $7)
  AND ($8::uuid IS NULL OR a.campaign_id = $8)
  AND ($9::uuid IS NULL OR a.integration_id = $9)
  AND ($10::text[] IS NULL OR a.kind = ANY ($10))
  AND ($11::text[] IS NULL OR a.severity = ANY ($11))
  AND ($12::text[] IS NULL OR a.status = ANY ($12))
ORDER BY a.id DESC LIMIT $5"""

# Notes that somebody takes care of it.
_ACKNOWLEDGE = f"""
UPDATE alerts a SET status = 'acknowledged', acknowledged_by = $5, acknowledged_at = now(),
  comment = CASE WHEN $6 = '' THEN a.comment ELSE $6 END
FROM alerts seen LEFT JOIN clients cl ON cl.id = seen.client_id
WHERE a.id = $4 AND seen.id = a.id AND {_VISIBLE} RETURNING {_COLUMNS}"""

# Notes that somebody says it is over.
_RESOLVE = f"""
UPDATE alerts a SET status = 'resolved', resolved_by = $5, resolved_at = GREATEST(now(), a.first_seen_at),
  resolved_by_hand = true, comment = CASE WHEN $6 = '' THEN a.comment ELSE $6 END
FROM alerts seen LEFT JOIN clients cl ON cl.id = seen.client_id
WHERE a.id = $4 AND seen.id = a.id AND {_VISIBLE} RETURNING {_COLUMNS}"""

_SEVERITIES = ("info", "warning", "critical")


async def raise_alert_internal(tx: Transaction, seen: Sighting, *, at: datetime, remind: timedelta) -> Raised | None:
    """Notes that a condition was seen. `server.alerts.raising.raise_alert` also records it and tells people.

    Args:
        tx: The transaction.
        seen: The condition.
        at: When it was seen.
        remind: After this long an alert that is still open is to be told again. Somebody who resolves an alert by hand
            is not contradicted for as long.

    Returns:
        What became of it; None when somebody resolved the same condition not long ago.
    """
    while True:
        row = await tx.fetchrow(_LIVE, seen.client_id, seen.dedupe_key)
        if row is not None:
            return await _seen_again(tx, Alert(*row), seen, at, remind)
        if await tx.fetchval(_SILENCED, seen.client_id, seen.dedupe_key, at - remind):
            return None
        row = await tx.fetchrow(
            _ADD, new_id(), seen.client_id, seen.project_id, seen.campaign_id, seen.integration_id, seen.kind,
            seen.severity, seen.dedupe_key, seen.summary, dict(seen.details), at,
        )  # fmt: skip
        # Whoever was faster has committed, so the next look finds it.
        if row is not None:
            return Raised(Alert(*row), None, True)


async def _seen_again(tx: Transaction, found: Alert, seen: Sighting, at: datetime, remind: timedelta) -> Raised:
    worse = _SEVERITIES.index(seen.severity) > _SEVERITIES.index(found.severity)
    notify = worse or (found.status == "open" and at - found.notified_at >= remind)
    row = await tx.fetchrow(
        _SEEN_AGAIN, found.id, at, seen.severity, seen.summary, dict(seen.details), notify, worse
    )  # fmt: skip
    assert row is not None
    return Raised(Alert(*row), (found.severity, found.status), notify)


async def clear_internal(
    tx: Transaction,
    client_id: UUID | None,
    kinds: Collection[AlertKind],
    *,
    at: datetime,
    keep: Collection[str] = (),
    keys: Collection[str] | None = None,
) -> list[Alert]:
    """Resolves alerts whose conditions are over; `server.alerts.raising.clear_alerts` also records it.

    Args:
        tx: The transaction.
        client_id: The client; None for the service itself.
        kinds: Of which kinds.
        at: Since when.
        keep: Keys of conditions that are not over.
        keys: Only these; all but `keep` when None.
    """
    rows = await tx.fetch(_CLEAR, client_id, list(kinds), list(keep), None if keys is None else list(keys), at)
    return [Alert(*row) for row in rows]


async def get(db: Executor, scope: Scope, alert_id: UUID) -> Alert | None:
    """The alert with this id."""
    row = await db.fetchrow(_GET, *scope.args, alert_id)
    return None if row is None else Alert(*row)


async def get_for_update(db: Executor, scope: Scope, alert_id: UUID) -> Alert | None:
    """As `get`, and keeps others from changing the alert until the transaction ends."""
    row = await db.fetchrow(_GET_FOR_UPDATE, *scope.args, alert_id)
    return None if row is None else Alert(*row)


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    before: UUID | None = None,
    client_id: UUID | None = None,
    project_id: UUID | None = None,
    campaign_id: UUID | None = None,
    integration_id: UUID | None = None,
    kinds: Sequence[str] | None = None,
    severities: Sequence[str] | None = None,
    statuses: Sequence[str] | None = None,
) -> list[Alert]:
    """Up to `limit` alerts, newest first, whose id comes before `before`; a filter that is None lets all pass."""
    rows = await db.fetch(
        _LIST_PAGE, *scope.args, before, limit, client_id, project_id, campaign_id, integration_id,
        *(None if words is None else list(words) for words in (kinds, severities, statuses)),
    )  # fmt: skip
    return [Alert(*row) for row in rows]


async def acknowledge(
    db: Executor, scope: Scope, alert_id: UUID, user_id: UUID | None, comment: str = ""
) -> Alert | None:
    """Notes that somebody takes care of an alert, which ends reminders; None when there is none in scope."""
    row = await db.fetchrow(_ACKNOWLEDGE, *scope.args, alert_id, user_id, comment)
    return None if row is None else Alert(*row)


async def resolve(db: Executor, scope: Scope, alert_id: UUID, user_id: UUID | None, comment: str = "") -> Alert | None:
    """Resolves an alert by hand; None when there is none in scope."""
    row = await db.fetchrow(_RESOLVE, *scope.args, alert_id, user_id, comment)
    return None if row is None else Alert(*row)
