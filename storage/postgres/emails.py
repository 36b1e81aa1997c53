# ruff: noqa: S608 - the statements are put together from constants of this package
"""E-mails that are to be sent, and addresses to which none is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from storage.postgres.database import Executor, Transaction, returned
from storage.postgres.ids import new_id


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whom to tell.

    Attributes:
        address: Where; for a person of ours the address at present.
        user_id: The person, if one of ours.
    """

    address: str
    user_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Email:
    """A row of ``emails``, with what the recipient is called.

    Attributes:
        address: Where it goes: a person's address of today.
        first_name: The person's name; empty for others.
        reachable: Whether the person, if it is one of ours, still has an account.
        suppressed: Whether the address wants nothing.
        content: What the template says.
    """

    id: UUID
    template: str
    language: str
    address: str
    user_id: UUID | None
    first_name: str
    reachable: bool
    suppressed: bool
    client_id: UUID | None
    event_id: str
    content: dict[str, Any]
    status: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Suppression:
    """A row of ``email_suppressions``."""

    id: UUID
    address: str
    reason: str
    comment: str
    created_by: UUID | None
    created_at: datetime


# Adds an e-mail, unless the same address is told of the same already.
_ADD = """
INSERT INTO emails (id, template, language, address, user_id, client_id, event_id, content)
VALUES ($1, $2, $3, lower($4), $5, $6, $7, $8)
ON CONFLICT (template, address, event_id) DO NOTHING RETURNING id"""

# One e-mail, with where its recipient is to be found now.
_GET = """
SELECT e.id, e.template, e.language, a.address, e.user_id, COALESCE(u.first_name, ''),
  e.user_id IS NULL OR u.status = 'active', EXISTS (SELECT FROM email_suppressions s WHERE s.address = a.address),
  e.client_id, e.event_id, e.content, e.status, e.created_at
FROM emails e LEFT JOIN users u ON u.id = e.user_id
CROSS JOIN LATERAL (SELECT lower(COALESCE(u.email, e.address)) AS address) a
WHERE e.id = $1"""

# Notes what became of an e-mail.
_END = "UPDATE emails SET status = $2, ended_at = now() WHERE id = $1 AND status <> 'sent' RETURNING true"

# Forgets what e-mails said and where they went; that they were sent is kept, so that none is sent twice.
_FORGET = """
UPDATE emails SET content = '{}' WHERE id IN (
  SELECT id FROM emails WHERE ended_at < now() - $1::interval AND content <> '{}'
  ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED)"""

# People who can be told.
_PEOPLE = "SELECT email, id FROM users WHERE id = ANY ($1::uuid[]) AND status = 'active' ORDER BY id"

# Those in a project's team with certain letters of RACI who can be told.
_TEAM = """
SELECT DISTINCT u.email, u.id FROM project_team t JOIN users u ON u.id = t.user_id
WHERE t.project_id = $1 AND t.raci = ANY ($2::text[]) AND u.status = 'active' ORDER BY u.id"""

# Those who look after a client: its own members in certain roles.
_KEEPERS = """
SELECT u.email, u.id FROM client_memberships m JOIN users u ON u.id = m.user_id
WHERE m.client_id = $1 AND u.role IN ('pm', 'account_manager') AND u.status = 'active' ORDER BY u.id"""

# What texts about a client say of it.
_CLIENT = "SELECT name, settings->>'language' FROM clients WHERE id = $1 AND purged_at IS NULL"

# What texts about a project say of it.
_PROJECT_NAME = "SELECT name FROM projects WHERE id = $1"

_SUPPRESSION = "id, address, reason, comment, created_by, created_at"

# Adds an address to which nothing is sent; one that is there already stays as it is.
_SUPPRESS = f"""
INSERT INTO email_suppressions (id, address, reason, comment, created_by) VALUES ($1, lower(btrim($2)), $3, $4, $5)
ON CONFLICT (address) DO NOTHING RETURNING {_SUPPRESSION}"""

# The entry of an address.
_SUPPRESSION_OF = f"SELECT {_SUPPRESSION} FROM email_suppressions WHERE address = lower(btrim($1))"

# One entry.
_GET_SUPPRESSION = f"SELECT {_SUPPRESSION} FROM email_suppressions WHERE id = $1 FOR UPDATE"

# Takes an entry away.
_UNSUPPRESS = "DELETE FROM email_suppressions WHERE id = $1"

# One page of entries, oldest first.
_SUPPRESSIONS = f"""
SELECT {_SUPPRESSION} FROM email_suppressions
WHERE ($1::uuid IS NULL OR id > $1) AND ($3 = '' OR address = lower(btrim($3))) ORDER BY id LIMIT $2"""


async def add_internal(
    tx: Transaction,
    *,
    template: str,
    language: Literal["ru", "en"],
    recipient: Recipient,
    client_id: UUID | None,
    event_id: str,
    content: Mapping[str, Any],
) -> UUID | None:
    """Adds an e-mail; None when the address is told of this event by this template already.

    Args:
        tx: The transaction of what happened.
        template: What kind of e-mail.
        language: Of its text.
        recipient: Whom to tell.
        client_id: The client it is about.
        event_id: What happened.
        content: What the template says; never a secret.
    """
    email_id: UUID | None = await tx.fetchval(
        _ADD, new_id(), template, language, recipient.address, recipient.user_id, client_id, event_id, dict(content)
    )
    return email_id


async def get_internal(db: Executor, email_id: UUID) -> Email | None:
    """The e-mail with this id, as it would be sent now."""
    row = await db.fetchrow(_GET, email_id)
    return None if row is None else Email(*row)


async def end_internal(
    tx: Transaction, email_id: UUID, status: Literal["sent", "suppressed", "undeliverable", "skipped"]
) -> bool:
    """Notes what became of an e-mail; False when it was sent before, which stays so."""
    return await tx.fetchval(_END, email_id, status) is not None


async def forget_internal(db: Executor, older_than: timedelta, limit: int) -> int:
    """Empties up to `limit` e-mails that ended longer ago than `older_than`, and returns how many."""
    return int((await db.execute(_FORGET, older_than, limit)).removeprefix("UPDATE "))


async def people_internal(db: Executor, user_ids: Sequence[UUID]) -> list[Recipient]:
    """Those of these people who can be told."""
    return [Recipient(*row) for row in await db.fetch(_PEOPLE, list(user_ids))]


async def team_internal(db: Executor, project_id: UUID, letters: str) -> list[Recipient]:
    """Those in a project's team who can be told and have one of these letters of RACI."""
    return [Recipient(*row) for row in await db.fetch(_TEAM, project_id, list(letters))]


async def keepers_internal(db: Executor, client_id: UUID) -> list[Recipient]:
    """Project managers and account managers who are members of the client itself."""
    return [Recipient(*row) for row in await db.fetch(_KEEPERS, client_id)]


async def client_internal(db: Executor, client_id: UUID) -> tuple[str, str] | None:
    """Name and language of a client."""
    row = await db.fetchrow(_CLIENT, client_id)
    return None if row is None else (row[0], row[1])


async def project_name_internal(db: Executor, project_id: UUID) -> str:
    """Name of a project; empty if there is none."""
    name: str | None = await db.fetchval(_PROJECT_NAME, project_id)
    return name or ""


async def suppress(
    db: Executor, *, address: str, reason: Literal["unsubscribed", "manual"], comment: str, created_by: UUID | None
) -> tuple[Suppression, bool]:
    """Adds an address to which nothing is sent: its entry, and whether it is new."""
    row = await db.fetchrow(_SUPPRESS, new_id(), address, reason, comment, created_by)
    if row is not None:
        return Suppression(*row), True
    return Suppression(*returned(await db.fetchrow(_SUPPRESSION_OF, address))), False


async def get_suppression(db: Executor, suppression_id: UUID) -> Suppression | None:
    """The entry with this id, kept from changing until the transaction ends."""
    row = await db.fetchrow(_GET_SUPPRESSION, suppression_id)
    return None if row is None else Suppression(*row)


async def unsuppress(db: Executor, suppression_id: UUID) -> None:
    """Takes an entry away."""
    await db.execute(_UNSUPPRESS, suppression_id)


async def list_suppressions(
    db: Executor, *, limit: int, after: UUID | None = None, address: str = ""
) -> list[Suppression]:
    """Up to `limit` entries, oldest first; only that of `address` if given."""
    return [Suppression(*row) for row in await db.fetch(_SUPPRESSIONS, after, limit, address)]
