"""Reports: what was asked for, the figures that were kept for it, and where its file is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

from storage.postgres import visibility
from storage.postgres.database import Executor, Transaction
from storage.scope import Scope


@dataclass(frozen=True, slots=True)
class Report:
    """A row of ``reports``, with its client.

    Attributes:
        status: ``queued``, ``running``, ``ready``, ``failed`` or ``cancelled``; what its job says until it is ready.
        watermark: Of its figures, in Unix milliseconds; None before they were taken, or if there was none.
        error: Why it failed; empty unless it did.
        prompt_name: The prompt with which a model was asked for words; empty if none was.
        prompt_version: Its version; 0 if no model was asked.
        model: That model; empty if none was asked.
        fallback: Why the report has no words of the model that was asked; empty if it has, or none was asked.
    """

    id: UUID
    project_id: UUID
    client_id: UUID
    time_zone: str
    type: str
    start: date
    end: date
    format: str
    language: str
    status: str
    job_id: UUID | None
    error: str
    watermark: int | None
    generated_at: datetime | None
    file_key: str | None
    file_size: int | None
    file_sha256: bytes | None
    replaces_id: UUID | None
    created_by: UUID | None
    created_at: datetime
    prompt_name: str
    prompt_version: int
    model: str
    fallback: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What a report is about, as it is named now.

    Attributes:
        project_currency: Currency of the project's budget, which comes first among several.
    """

    project_name: str
    project_currency: str
    client_name: str


# A job that was forgotten had ended.
_STATUS = """CASE WHEN r.status = 'ready' THEN 'ready' WHEN j.status = 'pending' THEN 'queued'
  WHEN j.status = 'processing' THEN 'running' WHEN j.status = 'cancelled' THEN 'cancelled' ELSE 'failed' END"""

_COLUMNS = f"""r.id, r.project_id, p.client_id, cl.settings->>'timezone', r.type, r.period_start, r.period_end,
  r.format, r.language, {_STATUS}, r.job_id, CASE WHEN {_STATUS} = 'failed' THEN COALESCE(j.error, '') ELSE '' END,
  r.statistics_version, r.generated_at, r.file_key, r.file_size, r.file_sha256, r.replaces_id, r.created_by,
  r.created_at, r.prompt_name, r.prompt_version, r.model, r.fallback"""

_FROM = """FROM reports r JOIN projects p ON p.id = r.project_id JOIN clients cl ON cl.id = p.client_id
LEFT JOIN jobs j ON j.id = r.job_id"""

_VISIBLE = visibility.project("r.project_id")

# Adds a report whose job is made in the same transaction.
_CREATE = """
INSERT INTO reports (id, project_id, type, period_start, period_end, format, language, generated_by, job_id,
  replaces_id, created_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, 'user', $8, $9, $10)"""

# One report.
_GET = f"SELECT {_COLUMNS} {_FROM} WHERE r.id = $4 AND {_VISIBLE}"

# One report, whoever asks.
_GET_INTERNAL = f"SELECT {_COLUMNS} {_FROM} WHERE r.id = $1"

# What a report is about.
_SUBJECT = """
SELECT p.name, p.budget_currency, cl.name FROM reports r JOIN projects p ON p.id = r.project_id
JOIN clients cl ON cl.id = p.client_id WHERE r.id = $1"""

# Names of campaigns.
_NAMES = "SELECT id, name FROM campaigns WHERE id = ANY ($1)"

# One page of reports, newest first.
_LIST_PAGE = f"""
SELECT {_COLUMNS} {_FROM}
WHERE {_VISIBLE}
  AND ($4::uuid IS NULL OR r.id < $4)
  AND ($6::uuid IS NULL OR p.client_id = $6)
  AND ($7::uuid IS NULL OR r.project_id = $7)
  AND ($8::text[] IS NULL OR r.type = ANY ($8))
  AND ($9::text[] IS NULL OR {_STATUS} = ANY ($9))
ORDER BY r.id DESC LIMIT $5"""

# Keeps the figures of a report, unless an earlier try did.
_KEEP = """
UPDATE reports SET data = $2, statistics_version = $3, generated_by = $4, prompt_name = $5, prompt_version = $6,
  model = $7, fallback = $8
WHERE id = $1 AND data IS NULL"""

# The figures that were kept.
_KEPT = "SELECT data FROM reports WHERE id = $1"

# Makes a report ready, once.
_FINISH = """
UPDATE reports SET status = 'ready', generated_at = clock_timestamp(), file_bucket = $2, file_key = $3, file_size = $4,
  file_sha256 = $5
WHERE id = $1 AND status <> 'ready' RETURNING id"""


async def create(
    tx: Transaction,
    scope: Scope,
    *,
    report_id: UUID,
    project_id: UUID,
    type: str,
    start: date,
    end: date,
    format: str,
    language: str,
    job_id: UUID,
    replaces_id: UUID | None,
    created_by: UUID | None,
) -> Report:
    """Adds a report of a project that the caller was found to reach.

    Args:
        tx: The transaction of the job.
        scope: What the caller may touch.
        report_id: Id of the report, which the job knows.
        project_id: The project.
        type: What it is about.
        start: Its first day.
        end: Its last day.
        format: What its file is to be.
        language: ``ru`` or ``en``.
        job_id: The job that makes it.
        replaces_id: The report that it regenerates.
        created_by: Who asked for it, if a person did.
    """
    await tx.execute(
        _CREATE, report_id, project_id, type, start, end, format, language, job_id, replaces_id, created_by
    )
    row = await tx.fetchrow(_GET, *scope.args, report_id)
    assert row is not None
    return Report(*row)


async def get(db: Executor, scope: Scope, report_id: UUID) -> Report | None:
    """The report with this id."""
    row = await db.fetchrow(_GET, *scope.args, report_id)
    return None if row is None else Report(*row)


async def get_internal(db: Executor, report_id: UUID) -> Report | None:
    """The report with this id, whoever asks."""
    row = await db.fetchrow(_GET_INTERNAL, report_id)
    return None if row is None else Report(*row)


async def subject_internal(db: Executor, report_id: UUID) -> Subject:
    """What a report that exists is about."""
    row = await db.fetchrow(_SUBJECT, report_id)
    assert row is not None
    return Subject(*row)


async def campaign_names_internal(db: Executor, campaign_ids: Sequence[UUID]) -> dict[UUID, str]:
    """Names of campaigns by id."""
    return {row[0]: row[1] for row in await db.fetch(_NAMES, campaign_ids)}


async def list_page(
    db: Executor,
    scope: Scope,
    *,
    limit: int,
    after: UUID | None = None,
    client_id: UUID | None = None,
    project_id: UUID | None = None,
    types: Sequence[str] | None = None,
    statuses: Sequence[str] | None = None,
) -> list[Report]:
    """Reports, newest first.

    Args:
        db: Where to run it.
        scope: What the caller may touch.
        limit: Most reports.
        after: Only those made before this one.
        client_id: Only those of this client's projects.
        project_id: Only those of this project.
        types: Only those about these.
        statuses: Only those that are this far.
    """
    rows = await db.fetch(_LIST_PAGE, *scope.args, after, limit, client_id, project_id, types, statuses)
    return [Report(*row) for row in rows]


async def keep_internal(
    tx: Transaction,
    report_id: UUID,
    data: Mapping[str, Any],
    watermark: int | None,
    *,
    generated_by: Literal["user", "ai"] = "user",
    prompt_name: str = "",
    prompt_version: int = 0,
    model: str = "",
    fallback: str = "",
) -> dict[str, Any]:
    """Keeps figures for a report, and gives those that count: an earlier try's, if one kept some.

    Args:
        tx: The transaction of the try.
        report_id: The report.
        data: The figures.
        watermark: Theirs, in Unix milliseconds.
        generated_by: ``ai`` if words of a model are among them.
        prompt_name: The prompt with which a model was asked for words.
        prompt_version: Its version.
        model: That model.
        fallback: Why its words are not used.
    """
    await tx.execute(_KEEP, report_id, data, watermark, generated_by, prompt_name, prompt_version, model, fallback)
    kept: dict[str, Any] = await tx.fetchval(_KEPT, report_id)
    return kept


async def kept_internal(db: Executor, report_id: UUID) -> dict[str, Any] | None:
    """The figures that were kept for a report, if any were."""
    kept: dict[str, Any] | None = await db.fetchval(_KEPT, report_id)
    return kept


async def finish_internal(tx: Transaction, report_id: UUID, *, bucket: str, key: str, size: int, sha256: bytes) -> bool:
    """Makes a report ready; False if it was.

    Args:
        tx: The transaction of the try.
        report_id: The report.
        bucket: Where its file is.
        key: Key of its file.
        size: Bytes of its file.
        sha256: Their digest.
    """
    return await tx.fetchval(_FINISH, report_id, bucket, key, size, sha256) is not None
