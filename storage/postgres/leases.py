"""Which process does a task that only one may do."""

from __future__ import annotations

from datetime import timedelta

from storage.postgres.database import Executor

# Takes a free or expired lease under a new epoch; a holder that asks again keeps its epoch.
_ACQUIRE = """
INSERT INTO leases AS l (name, holder, epoch, expires_at) VALUES ($1, $2, 1, clock_timestamp() + $3::interval)
ON CONFLICT (name) DO UPDATE SET
  holder = excluded.holder,
  epoch = CASE WHEN l.holder = excluded.holder AND l.expires_at > clock_timestamp() THEN l.epoch ELSE l.epoch + 1 END,
  expires_at = excluded.expires_at
WHERE l.holder = excluded.holder OR l.expires_at <= clock_timestamp()
RETURNING epoch"""

# Prolongs a lease that nobody has taken over.
_RENEW = """
UPDATE leases SET expires_at = clock_timestamp() + $4::interval
WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > clock_timestamp() RETURNING true"""

# Gives a lease back, so that the next holder need not wait.
_RELEASE = """
UPDATE leases SET expires_at = clock_timestamp()
WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > clock_timestamp()"""


async def acquire(db: Executor, name: str, holder: str, ttl: timedelta) -> int | None:
    """Takes a lease.

    Args:
        db: Where to run it.
        name: The task.
        holder: The process, by a name that no other process ever has.
        ttl: How long it holds unless renewed.

    Returns:
        The epoch under which the holder acts, higher than that of every holder before; None when another holds it.
    """
    epoch: int | None = await db.fetchval(_ACQUIRE, name, holder, ttl)
    return epoch


async def renew(db: Executor, name: str, holder: str, epoch: int, ttl: timedelta) -> bool:
    """Prolongs a lease to `ttl` from now. False when it has expired: the holder must stop, and may acquire it anew."""
    return await db.fetchval(_RENEW, name, holder, epoch, ttl) is not None


async def release(db: Executor, name: str, holder: str, epoch: int) -> None:
    """Gives a lease back. Nothing happens when it is another's by now."""
    await db.execute(_RELEASE, name, holder, epoch)
