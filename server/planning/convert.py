"""Rows of the planning domain as messages, and back."""

import json
from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.json_format import ParseDict

from mrm.planning.v1 import project_member_pb2, project_pb2
from server.rpc.errors import InvalidRequest
from server.rpc.values import EnumWords, day, etag, json_of, money, optional_amount, timestamp
from storage.postgres.project_team import TeamMember
from storage.postgres.projects import Project

_LARGEST_EXTRA: Final = 32 * 1024

PROJECT_STATUSES = EnumWords(project_pb2.ProjectStatus, "PROJECT_STATUS_")
PROJECT_ROLES = EnumWords(project_member_pb2.ProjectRole, "PROJECT_ROLE_")
_LETTERS: dict[int, str] = {
    project_member_pb2.RACI_RESPONSIBLE: "R",
    project_member_pb2.RACI_ACCOUNTABLE: "A",
    project_member_pb2.RACI_CONSULTED: "C",
    project_member_pb2.RACI_INFORMED: "I",
}
_NUMBERS: dict[str, Any] = {letter: number for number, letter in _LETTERS.items()}


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
        brief=ParseDict(row.brief, project_pb2.ProjectBrief(), ignore_unknown_fields=True) if row.brief else None,
        performance_rating=row.performance_rating,
    )


def writable(message: project_pb2.Project, currency: str) -> dict[str, Any]:
    """The columns that a caller may write.

    Raises:
        InvalidRequest: A value is no day, no amount of the currency, or too large, or the days are in the wrong
            order.
    """
    start, end = day(message.start_date, "project.start_date"), day(message.end_date, "project.end_date")
    if start and end and end < start:
        raise InvalidRequest.field("project.end_date", "DATE_ORDER", "must not be before start_date")
    brief = json_of(message.brief, "project.brief")
    if len(json.dumps(brief.get("extra", {}), ensure_ascii=False).encode()) > _LARGEST_EXTRA:
        raise InvalidRequest.field("project.brief.extra", "TOO_LARGE", "must be at most 32 KiB as JSON")
    return {
        "name": message.display_name,
        "description": message.description,
        "budget_total": optional_amount(message, "total_budget", currency),
        "start_date": start,
        "end_date": end,
        "brief": brief,
    }


def member(row: TeamMember) -> project_member_pb2.ProjectMember:
    """A place in a project's team."""
    return project_member_pb2.ProjectMember(
        project_member_id=str(row.id),
        etag=etag(row.revision),
        project_id=str(row.project_id),
        user_id=str(row.user_id),
        role=PROJECT_ROLES.number(row.role),
        raci=_NUMBERS[row.raci],
        assign_time=timestamp(row.assigned_at),
        update_time=timestamp(row.updated_at),
    )


def letter(raci: int) -> str:
    """The letter that rows hold; Informed for none."""
    return _LETTERS.get(raci, "I")


def optional_letters(raci: Iterable[int]) -> list[str] | None:
    """Several letters, None for none at all: no filter."""
    return [_LETTERS[each] for each in raci] or None
