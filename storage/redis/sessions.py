"""Sessions: ``session:{id}`` hashes, and the set ``user_sessions:{user_id}`` of every user's own.

The id is the SHA-256 digest of the token in hexadecimal, so reading Redis gives nobody a usable token.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from storage.redis.limits import GCRA, HIT, RateState
from storage.redis.multiplex import MultiplexedRedis, Script

# The rate limit's key holds the user id, which only the session tells: hence one script over both. It means that
# sessions and limits live on one server, not spread over a cluster.
_AUTHORIZE = Script(
    GCRA
    + """
local session = redis.call('HMGET', KEYS[1], 'user_id', 'email', 'role', 'created_at')
if not session[1] then
  return false
end
local life = redis.call('PTTL', KEYS[1])
local rate = take('ratelimit:' .. session[1] .. ':' .. ARGV[1], tonumber(ARGV[2]))
return {session, life, rate}
"""
)

_CREATE = Script(
    """
for _, id in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  if redis.call('EXISTS', 'session:' .. id) == 0 then
    redis.call('SREM', KEYS[2], id)
  end
end
redis.call('HSET', KEYS[1], 'user_id', ARGV[3], 'email', ARGV[4], 'role', ARGV[5], 'created_at', ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], math.max(ARGV[2], redis.call('PTTL', KEYS[2])))
"""
)

_DELETE = Script(
    """
local user = redis.call('HGET', KEYS[1], 'user_id')
if not user then
  return 0
end
redis.call('SREM', 'user_sessions:' .. user, ARGV[1])
return redis.call('DEL', KEYS[1])
"""
)

_LIST = Script(
    """
local found = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local session = redis.call('HMGET', 'session:' .. id, 'user_id', 'email', 'role', 'created_at')
  if session[1] then
    found[#found + 1] = {id, session, redis.call('PTTL', 'session:' .. id)}
  end
end
return found
"""
)

_DELETE_ALL = Script(
    """
local ended = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if redis.call('DEL', 'session:' .. id) == 1 then
    ended[#ended + 1] = id
  end
end
redis.call('DEL', KEYS[1])
return ended
"""
)

SCRIPTS = (_AUTHORIZE, _CREATE, _DELETE, _DELETE_ALL, _LIST, HIT)
"""Everything to load on a connection that serves sessions and limits."""

_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in user.

    Attributes:
        user_id: The user.
        email: As in the user's account at sign-in.
        role: As in the user's account at sign-in; whoever changes an account's role or status ends its sessions.
        created_at: Unix time of the sign-in.
        expire_time: Unix time at which it ends by itself.
    """

    user_id: UUID
    email: str
    role: str
    created_at: float
    expire_time: float


@dataclass(frozen=True, slots=True)
class Authorization:
    """What one call's credentials are worth.

    Attributes:
        session: None if there is no such session (any more).
        rate: The limit's word; None without a session, because then nobody is counted.
    """

    session: Session | None
    rate: RateState | None


_UNKNOWN = Authorization(None, None)


class SessionStore:
    """Creates, checks and ends sessions."""

    def __init__(self, redis: MultiplexedRedis, ttl: timedelta = timedelta(hours=24)) -> None:
        """The connection should be opened with `SCRIPTS`.

        Args:
            redis: The durable server.
            ttl: Life of a session, counted from sign-in and never prolonged.
        """
        self._redis = redis
        self._ttl = ttl

    async def create(
        self, token_digest: str, user_id: UUID, email: str, role: str, *, created_at: float | None = None
    ) -> Session:
        """Stores a new session.

        Args:
            token_digest: SHA-256 of the token in hexadecimal.
            user_id: The user who signed in.
            email: The user's e-mail.
            role: The user's role in lower case.
            created_at: Unix time of the sign-in by the clock of whoever decides when sessions must have begun; this
                machine's clock when None.

        Raises:
            StoreUnavailable, TimeoutError: The session may or may not exist; its token must not be given out.
        """
        begun = f"{time.time() if created_at is None else created_at:.6f}"
        milliseconds = round(self._ttl.total_seconds() * 1000)
        keys = (f"session:{token_digest}", f"user_sessions:{user_id}")
        await self._redis.run(_CREATE, keys, (token_digest, milliseconds, str(user_id), email, role, begun))
        return Session(user_id, email, role, float(begun), time.time() + self._ttl.total_seconds())

    async def authorize(self, token_digest: str, endpoint: str, limit: int) -> Authorization:
        """Reads a session and counts one call of its user, in one round trip.

        Args:
            token_digest: SHA-256 of the presented token in hexadecimal.
            endpoint: Full name of the gRPC method.
            limit: Calls an hour of this user and endpoint, at least 1.
        """
        reply = await self._redis.run(_AUTHORIZE, (f"session:{token_digest}",), (endpoint, limit))
        if reply is None:
            return _UNKNOWN
        fields, life, rate = reply
        return Authorization(_session_of(fields, life), RateState.of_reply(limit, rate))

    async def of_user(self, user_id: UUID) -> dict[str, Session]:
        """A user's sessions by the SHA-256 of their tokens in hexadecimal."""
        found = await self._redis.run(_LIST, (f"user_sessions:{user_id}",))
        return {name.decode(): _session_of(fields, life) for name, fields, life in found}

    async def delete(self, token_digest: str) -> bool:
        """Ends a session at once; tells whether there was one."""
        return bool(await self._redis.run(_DELETE, (f"session:{token_digest}",), (token_digest,)))

    async def delete_all(self, user_id: UUID) -> list[str]:
        """Ends every session of a user at once; returns the digests of those that were alive."""
        ended: Sequence[bytes] = await self._redis.run(_DELETE_ALL, (f"user_sessions:{user_id}",))
        return [digest.decode() for digest in ended]

    async def exists_many(self, token_digests: Collection[str]) -> set[str]:
        """Which of the sessions are alive; for checking open streams again, many at a time."""
        digests = list(token_digests)
        alive: set[str] = set()
        for start in range(0, len(digests), _CHUNK):
            chunk = digests[start : start + _CHUNK]
            found = await self._redis.execute_many([("EXISTS", f"session:{digest}") for digest in chunk])
            alive.update(digest for digest, exists in zip(chunk, found, strict=True) if exists)
        return alive


def _session_of(fields: Sequence[Any], life_milliseconds: int) -> Session:
    user_id, email, role, created_at = (value.decode() for value in fields)
    return Session(UUID(user_id), email, role, float(created_at), time.time() + life_milliseconds / 1000)


async def forget(dsn: str, user_id: UUID) -> None:
    """Ends every session of a user, for whoever has no store of sessions.

    Args:
        dsn: The durable Redis.
        user_id: The user.

    Raises:
        StoreUnavailable: Redis cannot be reached.
    """
    redis = await MultiplexedRedis.open(dsn)
    try:
        await SessionStore(redis, timedelta(hours=1)).delete_all(user_id)
    finally:
        await redis.close()
