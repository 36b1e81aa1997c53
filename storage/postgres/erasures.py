# ruff: noqa: S608 - the statements are put together from constants of this package
"""What is to be erased in all stores, where it was, and what PostgreSQL itself forgets of a purged client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from storage.postgres.database import Database, Executor, Row, Transaction, returned
from storage.postgres.ids import new_id

Subject = Literal["client", "user", "user_ids"]
Store = Literal["postgresql", "clickhouse", "archives", "objects", "milvus", "redis"]

STORES: Final[Mapping[str, tuple[Store, ...]]] = {
    "client": ("postgresql", "clickhouse", "archives", "objects", "milvus", "redis"),
    "user": ("postgresql", "redis"),
    "user_ids": ("postgresql", "clickhouse", "archives"),
}
"""Which stores know something of whom, in the order in which they forget it."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A row of ``erasure_receipts``: a store that was looked into, and holds nothing more."""

    store: str
    erased_at: datetime
    note: str


@dataclass(frozen=True, slots=True)
class Erasure:
    """A row of ``erasures``, with its receipts."""

    id: UUID
    subject: str
    subject_id: UUID
    requested_at: datetime
    deadline: datetime
    completed_at: datetime | None
    receipts: tuple[Receipt, ...]


_COLUMNS = "e.id, e.subject, e.subject_id, e.requested_at, e.deadline, e.completed_at"
_REQUEST = f"""
INSERT INTO erasures AS e (id, subject, subject_id, deadline) VALUES ($1, $2, $3, clock_timestamp() + $4::interval)
RETURNING {_COLUMNS}"""
_GET = f"SELECT {_COLUMNS} FROM erasures e WHERE e.id = $1"
_LIST = f"""
SELECT {_COLUMNS} FROM erasures e
WHERE ($1::uuid IS NULL OR e.id < $1) AND ($3::uuid IS NULL OR e.subject_id = $3)
  AND (NOT $4 OR e.completed_at IS NULL) ORDER BY e.id DESC LIMIT $2"""
_OVERDUE = f"SELECT {_COLUMNS} FROM erasures e WHERE e.completed_at IS NULL AND e.deadline < now() ORDER BY e.deadline"
_RECEIPTS = """
SELECT erasure_id, store, erased_at, note FROM erasure_receipts
WHERE erasure_id = ANY ($1::uuid[]) ORDER BY erased_at"""
_NOTE = "INSERT INTO erasure_receipts (erasure_id, store, note) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
_COMPLETE = "UPDATE erasures SET completed_at = clock_timestamp() WHERE id = $1 AND completed_at IS NULL"
_WAITING = "SELECT EXISTS (SELECT FROM outbox WHERE topic = $1 AND key = $2 AND processed_at IS NULL)"

_OF_CLIENT = "t.client_id = $1"
_PROJECTS = "SELECT id FROM projects WHERE client_id = $1"
_CAMPAIGNS = "SELECT id FROM campaigns WHERE client_id = $1"
_ACCOUNTS = "SELECT id FROM client_integrations WHERE client_id = $1"

GOES: Final[Mapping[str, str]] = {
    "campaign_import_errors": "t.campaign_import_id IN (SELECT id FROM campaign_imports WHERE client_id = $1)",
    "campaign_imports": _OF_CLIENT,
    "backfill_chunks": "t.backfill_id IN (SELECT id FROM backfills WHERE client_id = $1)",
    "backfills": _OF_CLIENT,
    "campaign_statistics_quarantine": f"t.campaign_id IN ({_CAMPAIGNS})",
    "campaign_statistics": f"t.campaign_id IN ({_CAMPAIGNS})",
    "archived_spend": f"t.campaign_id IN ({_CAMPAIGNS})",
    "restatements": _OF_CLIENT,
    "rollup_checks": _OF_CLIENT,
    "rollup_marks": _OF_CLIENT,
    "rollups": _OF_CLIENT,
    "sync_coverage": f"t.integration_id IN ({_ACCOUNTS}) OR t.campaign_id IN ({_CAMPAIGNS})",
    "sync_streams": f"t.integration_id IN ({_ACCOUNTS})",
    "platform_campaigns": f"t.integration_id IN ({_ACCOUNTS})",
    "campaign_pushes": f"t.campaign_id IN ({_CAMPAIGNS}) OR t.integration_id IN ({_ACCOUNTS})",
    "budget_alert_policies": _OF_CLIENT,
    "alerts": _OF_CLIENT,
    "emails": _OF_CLIENT,
    "reports": f"""t.project_id IN ({_PROJECTS})
      AND NOT EXISTS (SELECT FROM reports o WHERE o.replaces_id = t.id)""",
    "campaigns": _OF_CLIENT,
    "media_plan_comments": f"t.project_id IN ({_PROJECTS})",
    "media_plan_decisions": f"""t.media_plan_id IN (
      SELECT id FROM media_plans WHERE project_id IN ({_PROJECTS}))""",
    "media_plans": f"""t.project_id IN ({_PROJECTS})
      AND NOT EXISTS (SELECT FROM media_plans o WHERE o.superseded_by = t.id)""",
    "plan_lineages": f"t.project_id IN ({_PROJECTS})",
    "project_team": f"t.project_id IN ({_PROJECTS})",
    "client_integrations": _OF_CLIENT,
    "client_memberships": _OF_CLIENT,
    "event_streams": _OF_CLIENT,
    "client_usage": _OF_CLIENT,
    "templates": _OF_CLIENT,
    "embedding_vectors": _OF_CLIENT,
    "user_id_salts": _OF_CLIENT,
    "job_attempts": "t.job_id IN (SELECT id FROM jobs WHERE client_id = $1 AND status <> 'processing')",
    "jobs": "t.client_id = $1 AND t.status <> 'processing'",
    # Only what nobody's opinion of a prompt hangs on; the others have lost their words.
    "projects": "t.client_id = $1 AND NOT EXISTS (SELECT FROM ai_feedback f WHERE f.project_id = t.id)",
}
"""What goes with a client, in the order that foreign keys allow. Rows that name rows of their own table go one
generation at a time."""

STAYS: Final[Mapping[str, str]] = {
    "clients": "the place that audit and identities need; its name and settings are gone",
    "audit_log": "the record of who did what is kept by law; it names things by their ids",
    "ai_feedback": "how good prompts are; words and people are gone",
    "prompt_lineages": "feedback refers to them; names and texts are gone",
    "ai_prompts": "versions of these",
    "prompt_labels": "labels of these",
    "prompt_label_moves": "what the labels served when; reasons are gone",
    "prompt_experiments": "what the labels served when; hypotheses are gone",
    "prompt_experiment_arms": "versions in these",
    "projects": "those that feedback refers to; names and briefs are gone",
    "archives": "none: the receipt of the archive is for these",
    "legal_holds": "none: a client that is held cannot be purged",
    "idempotency_keys": "answers that are kept for a day",
    "embedding_notes": "ids of what the job that embeds is to take out of Milvus, until it has",
    "outbox": "messages that are kept for a week",
    "erasures": "that it was erased",
}
"""Tables that keep rows of a purged client, and why."""

_WORDS = "UPDATE projects SET name = 'purged', description = '', brief = '{}' WHERE client_id = $1"
_BUSY = "SELECT count(*) FROM jobs WHERE client_id = $1 AND status = 'processing'"
_PERSON = (
    "DELETE FROM emails WHERE user_id = $1 OR lower(address) = lower($2)",
    "DELETE FROM email_suppressions WHERE address = lower($2) AND $1::uuid IS NOT NULL",
    """UPDATE budget_alert_policies SET recipient_emails = array_remove(recipient_emails, $2)
       WHERE $2 = ANY (recipient_emails) AND $1::uuid IS NOT NULL""",
)
_BATCH = 20_000


async def request(tx: Transaction, subject: Subject, subject_id: UUID, within: timedelta) -> Erasure:
    """Notes that something is to be erased.

    Args:
        tx: The transaction that decides it.
        subject: What.
        subject_id: Id of the client or user.
        within: By when.
    """
    return _erasure(returned(await tx.fetchrow(_REQUEST, new_id(), subject, subject_id, within)), ())


async def get_internal(db: Executor, erasure_id: UUID) -> Erasure | None:
    """An erasure with its receipts."""
    row = await db.fetchrow(_GET, erasure_id)
    return None if row is None else (await _with_receipts(db, [row]))[0]


async def list_page(
    db: Executor,
    *,
    limit: int,
    after: UUID | None = None,
    subject_id: UUID | None = None,
    only_open: bool = False,
) -> list[Erasure]:
    """Up to `limit` erasures, newest first."""
    return await _with_receipts(db, await db.fetch(_LIST, after, limit, subject_id, only_open))


async def overdue_internal(db: Executor) -> list[Erasure]:
    """Erasures whose deadline has passed."""
    return await _with_receipts(db, await db.fetch(_OVERDUE))


async def note_internal(db: Executor, erasure_id: UUID, store: str, note: str) -> None:
    """Writes a store's receipt; the first one counts."""
    await db.execute(_NOTE, erasure_id, store, note)


async def complete_internal(db: Executor, erasure_id: UUID) -> None:
    """Notes that all stores have given their receipts."""
    await db.execute(_COMPLETE, erasure_id)


async def is_waiting_internal(db: Executor, topic: str, client_id: UUID) -> bool:
    """Whether a message about a client has not been acted on."""
    return bool(await db.fetchval(_WAITING, topic, str(client_id)))


async def project_ids_internal(db: Executor, client_id: UUID) -> list[UUID]:
    """The projects of a client, purged or not."""
    return [row[0] for row in await db.fetch(_PROJECTS, client_id)]


async def forget_client_internal(database: Database, client_id: UUID) -> int:
    """Deletes all rows that go with a purged client, some at a time; returns how many there were."""
    deleted = 0
    await database.execute(_WORDS, client_id)
    for table, condition in GOES.items():
        statement = f"""
            DELETE FROM {table}
            WHERE ctid = ANY (ARRAY(SELECT t.ctid FROM {table} t WHERE {condition} LIMIT {_BATCH}))"""
        while True:
            async with database.transaction(f"forget_{table}") as tx:
                await tx.execute("SET LOCAL mrm.erasing = 'on'")
                count = int((await tx.execute(statement, client_id)).removeprefix("DELETE "))
            deleted += count
            if not count:
                break
    return deleted


async def at_work_internal(db: Executor, client_id: UUID) -> int:
    """How many jobs of a client somebody works on."""
    return int(await db.fetchval(_BUSY, client_id))


async def forget_person(tx: Transaction, user_id: UUID, address: str) -> None:
    """Deletes what was sent to a person, and the address wherever it is written down.

    Args:
        tx: The transaction that ends the user.
        user_id: The user.
        address: The e-mail address until now.
    """
    for statement in _PERSON:
        await tx.execute(statement, user_id, address)


async def _with_receipts(db: Executor, rows: Sequence[Row]) -> list[Erasure]:
    found: dict[UUID, list[Receipt]] = {}
    for erasure_id, store, erased_at, note in await db.fetch(_RECEIPTS, [row[0] for row in rows]):
        found.setdefault(erasure_id, []).append(Receipt(store, erased_at, note))
    return [_erasure(row, tuple(found.get(row[0], ()))) for row in rows]


def _erasure(row: Row, receipts: tuple[Receipt, ...]) -> Erasure:
    return Erasure(row[0], row[1], row[2], row[3], row[4], row[5], receipts)
