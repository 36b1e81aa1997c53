"""What is true of the whole service, for whoever watches over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from storage.postgres.database import Executor

SEVERITIES = ("info", "warning", "critical")
_STATUSES = ("open", "acknowledged")


@dataclass(frozen=True, slots=True)
class Standing:
    """How the service stands.

    Attributes:
        outbox: Messages that are to be delivered.
        outbox_age: Seconds since the oldest of them was written; 0 if there is none.
        alerts: Number of alerts that are not resolved, by severity and status.
        milestones: When each was last reached, in Unix seconds.
    """

    outbox: int
    outbox_age: float
    alerts: Mapping[tuple[str, str], int]
    milestones: Mapping[str, float]


_OUTBOX = """
SELECT count(*), COALESCE(EXTRACT(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
FROM outbox WHERE processed_at IS NULL"""

_ALERTS = "SELECT severity, status, count(*) FROM alerts WHERE status <> 'resolved' GROUP BY severity, status"

_MILESTONES = "SELECT name, EXTRACT(epoch FROM reached_at)::float8 FROM milestones"

# Two that are reached at once: the later one stays.
_REACH = """
INSERT INTO milestones AS m (name, reached_at) VALUES ($1, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET reached_at = greatest(m.reached_at, excluded.reached_at)"""


async def standing_internal(db: Executor) -> Standing:
    """How the service stands now."""
    [(waiting, age)] = await db.fetch(_OUTBOX)
    alerts = {(severity, status): 0 for severity in SEVERITIES for status in _STATUSES}
    alerts.update({(severity, status): count for severity, status, count in await db.fetch(_ALERTS)})
    return Standing(waiting, age, alerts, dict(map(tuple, await db.fetch(_MILESTONES))))


async def reach_internal(db: Executor, milestone: str) -> None:
    """Notes that something that must happen again and again went well just now, such as ``backup.postgresql``."""
    await db.execute(_REACH, milestone)
