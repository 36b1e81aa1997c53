# ruff: noqa: S608 - the statements are put together from constants of this package
"""People who sign in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from storage.postgres.database import Executor, returned
from storage.postgres.ids import new_id


@dataclass(frozen=True, slots=True)
class User:
    """A row of ``users``.

    Attributes:
        password_hash: An argon2id string, or ``!`` for nobody. Never leaves the server.
        sessions_not_before: Sessions begun before this are void.
    """

    id: UUID
    email: str
    password_hash: str
    first_name: str
    last_name: str
    role: str
    status: str
    sessions_not_before: datetime
    last_login_at: datetime | None
    revision: int
    created_at: datetime
    updated_at: datetime

    def __repr__(self) -> str:
        return f"User(id={self.id}, role={self.role}, status={self.status})"


_COLUMNS = """id, email, password_hash, first_name, last_name, role, status, sessions_not_before, last_login_at,
  revision, created_at, updated_at"""

# Adds a user; the e-mail is stored in lower case.
_CREATE = f"""
INSERT INTO users (id, email, password_hash, first_name, last_name, role)
VALUES ($1, lower(btrim($2)), $3, $4, $5, $6) RETURNING {_COLUMNS}"""

# The one user who can sign in with an e-mail, or has been suspended from doing so.
_BY_EMAIL = f"SELECT {_COLUMNS} FROM users WHERE lower(email) = lower(btrim($1)) AND status <> 'deleted'"

# One user, deleted ones included.
_GET = f"SELECT {_COLUMNS} FROM users WHERE id = $1"

# Notes a successful sign-in.
_SET_LAST_LOGIN = f"UPDATE users SET last_login_at = now() WHERE id = $1 RETURNING {_COLUMNS}"

# Replaces a password hash unless it has been replaced meanwhile.
_REPLACE_HASH = """
UPDATE users SET password_hash = $3, sessions_not_before = CASE WHEN $4 THEN now() ELSE sessions_not_before END
WHERE id = $1 AND password_hash = $2 AND status <> 'deleted' RETURNING true"""

# How many people could still administer the service.
_COUNT_ADMINS = "SELECT count(*) FROM users WHERE status = 'active' AND role = 'admin'"


async def create(
    db: Executor,
    *,
    email: str,
    password_hash: str,
    role: str,
    first_name: str = "",
    last_name: str = "",
    user_id: UUID | None = None,
) -> User:
    """Adds an active user.

    Raises:
        Conflict: ``users_email_key``: another user, not deleted, has this e-mail in any case.
        Invalid: A value is not allowed, for example ``users_role_known``.
    """
    row = await db.fetchrow(_CREATE, user_id or new_id(), email, password_hash, first_name, last_name, role)
    return User(*returned(row))


async def by_email(db: Executor, email: str) -> User | None:
    """The user with this e-mail, in any case, who is not deleted. The caller checks the status."""
    row = await db.fetchrow(_BY_EMAIL, email)
    return None if row is None else User(*row)


async def get(db: Executor, user_id: UUID) -> User | None:
    """The user with this id, whatever the status."""
    row = await db.fetchrow(_GET, user_id)
    return None if row is None else User(*row)


async def set_last_login(db: Executor, user_id: UUID) -> User | None:
    """Notes that the user has signed in now, and returns the user as it is then."""
    row = await db.fetchrow(_SET_LAST_LOGIN, user_id)
    return None if row is None else User(*row)


async def update_password_hash(db: Executor, user_id: UUID, *, old: str, new: str, end_sessions: bool = False) -> bool:
    """Replaces the password hash `old` by `new`.

    Args:
        db: Where to run it.
        user_id: Whose password.
        old: The hash the caller has just verified, so that a rehash at sign-in cannot undo a change made meanwhile.
        new: The new hash.
        end_sessions: Voids all sessions begun until now, as a changed password must and a rehash must not.

    Returns:
        Whether the hash was still `old`.
    """
    return await db.fetchval(_REPLACE_HASH, user_id, old, new, end_sessions) is not None


async def count_admins(db: Executor) -> int:
    """How many active administrators there are."""
    return int(await db.fetchval(_COUNT_ADMINS))
