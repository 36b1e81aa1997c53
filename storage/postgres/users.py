# ruff: noqa: S608 - the statements are put together from constants of this package
"""People who sign in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from storage.postgres.database import Executor, Transaction, returned
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

# One user, kept from changing and from signing in until the transaction ends.
_GET_FOR_UPDATE = f"{_GET} FOR UPDATE"

# One page of users, oldest first. A text may occur in the e-mail or the name.
_LIST_PAGE = f"""
SELECT {_COLUMNS} FROM users
WHERE ($1::uuid IS NULL OR id > $1)
  AND ($3::text[] IS NULL OR role = ANY ($3))
  AND status = ANY ($4::text[])
  AND ($5::text IS NULL OR strpos(lower(concat_ws(' ', email, first_name, last_name)), lower($5)) > 0)
ORDER BY id LIMIT $2"""

# Notes a successful sign-in of a user who still may, with the password that was verified, and when that was.
# The time is taken under the row's lock: whatever ends the user's sessions comes before or after it, never beside it.
_SIGN_IN = f"""
UPDATE users SET last_login_at = clock_timestamp(), password_hash = COALESCE($3, password_hash)
WHERE id = $1 AND password_hash = $2 AND status = 'active' RETURNING {_COLUMNS}"""

# Replaces what may change of a user, who must have been locked. Sessions begun until now become void if asked.
_UPDATE = f"""
UPDATE users SET email = lower(btrim($2)), password_hash = $3, first_name = $4, last_name = $5, role = $6, status = $7,
  last_login_at = $8, sessions_not_before = CASE WHEN $9 THEN clock_timestamp() ELSE sessions_not_before END
WHERE id = $1 RETURNING {_COLUMNS}"""

# Voids all of a user's sessions begun until now.
_END_SESSIONS = f"UPDATE users SET sessions_not_before = clock_timestamp() WHERE id = $1 RETURNING {_COLUMNS}"

# Lets one transaction at a time take away an administrator.
_LOCK_ADMINS = "SELECT pg_advisory_xact_lock(hashtext('users.admins'))"

# Lets the holder of a token set a user's password once, instead of any token given out before.
_ALLOW_RESET = """
INSERT INTO password_resets (user_id, token_hash, expires_at) VALUES ($1, $2, now() + $3::interval)
ON CONFLICT (user_id) DO UPDATE
  SET token_hash = excluded.token_hash, created_at = now(), expires_at = excluded.expires_at
RETURNING expires_at"""

# Whose password a token may set now.
_RESETTABLE = f"""
SELECT {", ".join(f"u.{name.strip()}" for name in _COLUMNS.split(","))} FROM users u
JOIN password_resets r ON r.user_id = u.id
WHERE r.token_hash = $1 AND r.expires_at > now() AND u.status = 'active'"""

# Uses a token up; a second use finds nothing.
_USE_RESET = "DELETE FROM password_resets WHERE token_hash = $1 AND expires_at > now() RETURNING user_id"

# Takes back a permission to set a password.
_FORBID_RESET = "DELETE FROM password_resets WHERE user_id = $1"

# Takes away the clients of somebody who is gone.
_DROP_MEMBERSHIPS = "DELETE FROM client_memberships WHERE user_id = $1"

# How many people could still administer the service: those who can sign in.
_COUNT_ADMINS = "SELECT count(*) FROM users WHERE status = 'active' AND role = 'admin' AND password_hash <> '!'"


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


async def get_for_update(tx: Transaction, user_id: UUID) -> User | None:
    """As `get`, and keeps others from changing the user, and the user from signing in, until the transaction ends."""
    row = await tx.fetchrow(_GET_FOR_UPDATE, user_id)
    return None if row is None else User(*row)


async def list_page(
    db: Executor,
    *,
    limit: int,
    after: UUID | None = None,
    roles: Sequence[str] | None = None,
    statuses: Sequence[str] = ("active", "suspended"),
    text: str | None = None,
) -> list[User]:
    """Up to `limit` users, oldest first, whose id comes after `after`; a filter that is None lets all pass.

    Args:
        db: Where to run it.
        limit: Most rows.
        after: Id of the last row before the page.
        roles: Only these roles.
        statuses: Only these states.
        text: Only users whose e-mail or name contains it, in any case.
    """
    rows = await db.fetch(_LIST_PAGE, after, limit, None if roles is None else list(roles), list(statuses), text)
    return [User(*row) for row in rows]


async def sign_in(db: Executor, user_id: UUID, *, verified: str, rehashed: str | None = None) -> User | None:
    """Notes a successful sign-in, and returns the user as it is then.

    Args:
        db: Where to run it.
        user_id: Who signs in.
        verified: The hash that the given password has just been verified against.
        rehashed: Replaces it, if it was made with outdated parameters.

    Returns:
        The user, whose `last_login_at` is the time of this sign-in; None if the user may not sign in any more, or the
        password was changed meanwhile.
    """
    row = await db.fetchrow(_SIGN_IN, user_id, verified, rehashed)
    return None if row is None else User(*row)


async def update(tx: Transaction, changed: User, *, end_sessions: bool = False) -> User:
    """Writes a user that `get_for_update` has locked in the same transaction.

    Args:
        tx: The transaction.
        changed: The user as read, with its new values. The revision and the times but `last_login_at` are ignored.
        end_sessions: Voids all sessions begun until now.

    Raises:
        Conflict: ``users_email_key``: another user, not deleted, has this e-mail in any case.
        Invalid: A value is not allowed.
    """
    row = await tx.fetchrow(
        _UPDATE, changed.id, changed.email, changed.password_hash, changed.first_name, changed.last_name, changed.role,
        changed.status, changed.last_login_at, end_sessions,
    )  # fmt: skip
    return User(*returned(row))


async def end_sessions(db: Executor, user_id: UUID) -> User | None:
    """Voids all sessions of a user begun until now; None when there is no such user."""
    row = await db.fetchrow(_END_SESSIONS, user_id)
    return None if row is None else User(*row)


async def lock_admins(tx: Transaction) -> None:
    """Waits until no other transaction takes an administrator away, and keeps others from it until this one ends."""
    await tx.execute(_LOCK_ADMINS)


async def allow_reset(tx: Transaction, user_id: UUID, token_hash: bytes, life: timedelta) -> datetime:
    """Lets the holder of a token set the user's password once; earlier tokens stop working. Returns when it ends."""
    expires_at: datetime = returned(await tx.fetchrow(_ALLOW_RESET, user_id, token_hash, life))[0]
    return expires_at


async def resettable(db: Executor, token_hash: bytes) -> User | None:
    """The active user whose password this token may set now."""
    row = await db.fetchrow(_RESETTABLE, token_hash)
    return None if row is None else User(*row)


async def use_reset(tx: Transaction, token_hash: bytes) -> bool:
    """Uses a token up; tells whether it still worked."""
    return await tx.fetchval(_USE_RESET, token_hash) is not None


async def forbid_reset(tx: Transaction, user_id: UUID) -> None:
    """Takes back a permission to set the user's password, if there is one."""
    await tx.execute(_FORBID_RESET, user_id)


async def drop_memberships(tx: Transaction, user_id: UUID) -> None:
    """Takes all clients away from a user."""
    await tx.execute(_DROP_MEMBERSHIPS, user_id)


async def count_admins(db: Executor) -> int:
    """How many active administrators with a password there are."""
    return int(await db.fetchval(_COUNT_ADMINS))
