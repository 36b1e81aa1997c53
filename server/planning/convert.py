"""Rows of the planning domain as messages, and back."""

from typing import Any

from mrm.planning.v1 import project_pb2
from server.rpc.errors import InvalidRequest
from server.rpc.values import EnumWords, day, etag, money, optional_amount, timestamp
from storage.postgres.projects import Project

PROJECT_STATUSES = EnumWords(project_pb2.ProjectStatus, "PROJECT_STATUS_")


def project(row: Project) -> project_pb2.Project:
    """A project."""
    return project_pb2.Project(
        project_id=str(row.id),
        etag=etag(row.revision),
        client_id=str(row.client_id),
        display_name=row.name,
        description=row.description,
        status=PROJECT_STATUSES.number(row.status),
        total_budget=money(row.budget_total, row.budget_currency),
        spent_budget=money(row.budget_spent, row.budget_currency),
        start_date=row.start_date.isoformat() if row.start_date else "",
        end_date=row.end_date.isoformat() if row.end_date else "",
        creator_id=str(row.created_by or ""),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )


def writable(message: project_pb2.Project, currency: str) -> dict[str, Any]:
    """The columns that a caller may write.

    Raises:
        InvalidRequest: A value is no day, no amount of the project's currency, or the days are in the wrong order.
    """
    start, end = day(message.start_date, "project.start_date"), day(message.end_date, "project.end_date")
    if start and end and end < start:
        raise InvalidRequest.field("project.end_date", "DATE_ORDER", "must not be before start_date")
    return {
        "name": message.display_name,
        "description": message.description,
        "budget_total": optional_amount(message, "total_budget", currency),
        "start_date": start,
        "end_date": end,
    }
