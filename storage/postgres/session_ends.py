"""Which sessions have ended: the truth that outlives the session store, its losses and its restored backups."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from storage.postgres.database import Executor, returned

# Ends one session.
_END = "INSERT INTO ended_sessions (token_digest, user_id) VALUES (decode($1, 'hex'), $2) ON CONFLICT DO NOTHING"

# Voids every session of everybody begun until now.
_END_ALL = "UPDATE session_epoch SET not_before = clock_timestamp() RETURNING not_before"

# What has ended since, in one round trip.
_SINCE = """
SELECT clock_timestamp(), e.not_before, u.ids, u.times, s.digests, s.times
FROM session_epoch e,
  (SELECT COALESCE(array_agg(id), '{}') AS ids, COALESCE(array_agg(sessions_not_before), '{}') AS times
   FROM users WHERE sessions_not_before > $1) u,
  (SELECT COALESCE(array_agg(encode(token_digest, 'hex')), '{}') AS digests,
     COALESCE(array_agg(ended_at), '{}') AS times FROM ended_sessions WHERE ended_at > $1) s"""

# Forgets sessions that could not come back any more, a bounded number at a time.
_PURGE = """
DELETE FROM ended_sessions WHERE token_digest IN (
  SELECT token_digest FROM ended_sessions WHERE ended_at < now() - $1::interval ORDER BY ended_at LIMIT $2)"""


@dataclass(frozen=True, slots=True)
class Ends:
    """What has ended since a moment.

    Attributes:
        now: The database's clock.
        not_before: Sessions of anybody begun before this are void.
        users: User id to when that user's sessions must have begun.
        sessions: SHA-256 of the token in hexadecimal to when the session was ended.
    """

    now: datetime
    not_before: datetime
    users: dict[UUID, datetime]
    sessions: dict[str, datetime]


async def end(db: Executor, token_digest: str, user_id: UUID) -> None:
    """Ends one session for good; again changes nothing.

    Args:
        db: Where to run it.
        token_digest: SHA-256 of the token in hexadecimal.
        user_id: Whose session.
    """
    await db.execute(_END, token_digest, user_id)


async def end_all(db: Executor) -> datetime:
    """Voids every session of everybody begun until now, and returns that moment."""
    not_before: datetime = returned(await db.fetchrow(_END_ALL))[0]
    return not_before


async def since_internal(db: Executor, moment: datetime) -> Ends:
    """What has ended after `moment`, of everybody.

    Times are taken before the change commits, so a reader looks again at a stretch that it has read already.
    """
    now, not_before, ids, times, digests, ended = returned(await db.fetchrow(_SINCE, moment))
    return Ends(now, not_before, dict(zip(ids, times, strict=True)), dict(zip(digests, ended, strict=True)))


async def purge_internal(db: Executor, older_than: timedelta, limit: int = 10_000) -> int:
    """Forgets up to `limit` sessions that were ended longer ago than sessions live; returns how many."""
    tag = await db.execute(_PURGE, older_than, limit)
    return int(tag.removeprefix("DELETE "))
