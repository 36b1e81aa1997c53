"""What each client uses, by day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from storage.postgres.database import Executor


@dataclass(frozen=True, slots=True)
class Amount:
    """Calls and exports of a client that are to be added."""

    client_id: UUID
    calls: int
    exports: int


@dataclass(frozen=True, slots=True)
class DayUsage:
    """What PostgreSQL knows of one day of a client; days are those of UTC.

    Attributes:
        calls: Calls that went well and were of this client.
        exports: Those of them by which figures left the service.
        emails: E-mails sent.
        reports: Reports that became ready.
    """

    day: date
    calls: int
    exports: int
    emails: int
    reports: int


# Adds to today. Clients that do not exist are left out, since whose call it was may be what a caller claimed, and so
# are purged ones, of which the calls before the purge would leave a trace after it.
_ADD = """
INSERT INTO client_usage AS u (client_id, day, calls, exports)
SELECT c.id, (clock_timestamp() AT TIME ZONE 'UTC')::date, sum(n.calls), sum(n.exports)
FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS n (client_id, calls, exports)
JOIN clients c ON c.id = n.client_id AND c.purged_at IS NULL GROUP BY c.id ORDER BY c.id
ON CONFLICT (client_id, day) DO UPDATE SET calls = u.calls + excluded.calls, exports = u.exports + excluded.exports"""

# The days of a client, also those without anything.
_DAYS = """
SELECT d.day, COALESCE(u.calls, 0), COALESCE(u.exports, 0), COALESCE(e.sent, 0), COALESCE(r.ready, 0)
FROM (SELECT generate_series($2::date, $3::date, interval '1 day')::date AS day) d
LEFT JOIN client_usage u ON u.client_id = $1 AND u.day = d.day
LEFT JOIN (
  SELECT (ended_at AT TIME ZONE 'UTC')::date AS day, count(*) AS sent FROM emails
  WHERE client_id = $1 AND status = 'sent' GROUP BY 1) e ON e.day = d.day
LEFT JOIN (
  SELECT (w.generated_at AT TIME ZONE 'UTC')::date AS day, count(*) AS ready
  FROM reports w JOIN projects p ON p.id = w.project_id
  WHERE p.client_id = $1 AND w.status = 'ready' GROUP BY 1) r ON r.day = d.day
ORDER BY d.day"""


async def add_internal(db: Executor, amounts: Sequence[Amount]) -> None:
    """Adds to what was used today."""
    await db.execute(
        _ADD,
        [each.client_id for each in amounts],
        [each.calls for each in amounts],
        [each.exports for each in amounts],
    )


async def days_internal(db: Executor, client_id: UUID, first: date, last: date) -> list[DayUsage]:
    """Each day of a span, both ends included, in order. The caller has seen that the client may be seen."""
    return [DayUsage(*row) for row in await db.fetch(_DAYS, client_id, first, last)]
