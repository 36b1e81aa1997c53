"""Who is told that a report is ready: whoever asked for it."""

from collections.abc import Mapping
from typing import Any

from server.mail.letters import ReportReady
from server.mail.post import tell
from storage.postgres import emails
from storage.postgres.database import Transaction
from storage.postgres.reports import Report


async def tell_of_ready(tx: Transaction, report: Report, data: Mapping[str, Any]) -> None:
    """Has the person who asked for a report told, in its language, that it is ready; a program is not.

    Args:
        tx: The transaction that makes it ready.
        report: The report.
        data: What it says, of which the e-mail takes the names alone: figures are for whoever may read them.
    """
    if report.created_by is None:
        return
    letter = ReportReady(
        client=data["client"]["display_name"],
        project=data["project"]["display_name"],
        type=report.type,
        start_date=report.start.isoformat(),
        end_date=report.end.isoformat(),
        format=report.format,
        report_id=str(report.id),
    )
    await tell(
        tx,
        letter,
        await emails.people_internal(tx, [report.created_by]),
        event_id=f"report:{report.id}:ready",
        language=report.language,
        client_id=report.client_id,
        requested_by=report.created_by,
    )
