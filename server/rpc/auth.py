"""Turns the credentials of a call into a principal and counts the call against its limit.

A session and its limit are one round trip to Redis, made on every call, so that a revoked session is dead at once. What
Redis says is held against what PostgreSQL has ended, of which each process keeps a copy (`server.rpc.fences`). API keys
live in PostgreSQL and keep working while Redis is down, then without limits.
"""

import hashlib
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from server.accounts.permissions import PEOPLE_ONLY, ROLE_PERMISSIONS
from server.rpc.call import Principal
from server.rpc.errors import ResourceExhausted, Unauthenticated
from server.rpc.fences import SessionFences
from server.settings import AuthSettings
from storage.errors import StoreUnavailable
from storage.postgres import api_keys
from storage.postgres.database import Database
from storage.redis.limits import RateLimiter, RateState
from storage.redis.sessions import SessionStore
from storage.scope import Scope

SESSION_PREFIX = "mrms_"
KEY_PREFIX = "mrmk_"
# Characters of a key that are stored in clear, to recognise it by.
KEY_PREFIX_LENGTH = len(KEY_PREFIX) + 6


@dataclass(frozen=True, slots=True)
class Admission:
    """A caller who may go on, and what is left of their limit."""

    principal: Principal
    limit: int
    remaining: int
    reset_seconds: int


def new_secret(prefix: str) -> str:
    """A fresh secret of 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is stored of a secret: enough to recognise it, useless to whoever reads it."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Authenticator:
    """Knows callers by session or API key.

    Args:
        sessions: Where sessions live.
        fences: Knows which sessions have ended, whatever Redis says.
        limiter: Counts calls of API keys; sessions are counted together with their lookup.
        database: Where API keys live.
        settings: Limits per rate class.
    """

    def __init__(
        self,
        sessions: SessionStore,
        fences: SessionFences,
        limiter: RateLimiter,
        database: Database,
        settings: AuthSettings,
    ) -> None:
        self._sessions = sessions
        self._fences = fences
        self._limiter = limiter
        self._database = database
        self._limits: Mapping[str, int] = {
            "LOGIN": settings.limit_login,
            "LIGHT": settings.limit_light,
            "HEAVY": settings.limit_heavy,
            "INGEST": settings.limit_ingest,
            "STREAM": settings.limit_stream,
            "WORK": settings.limit_work,
        }

    async def admit(self, authorization: str, endpoint: str, rate_class: str) -> Admission:
        """Admits one call.

        Args:
            authorization: Value of the metadata key of this name.
            endpoint: Full name of the RPC.
            rate_class: Limit class of the RPC.

        Raises:
            Unauthenticated: No credentials, or none that work.
            ResourceExhausted: The caller's limit for this RPC is used up.
            storage.errors.StoreUnavailable: Sessions cannot be checked now.
        """
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated(
                "send your session token or API key as `authorization: Bearer <token>`", reason="CREDENTIALS_MISSING"
            )
        limit = self._limits[rate_class]
        if secret.startswith(SESSION_PREFIX):
            return await self._session(digest(secret), endpoint, limit)
        if secret.startswith(KEY_PREFIX):
            return await self._api_key(digest(secret), endpoint, limit)
        raise _invalid()

    async def _session(self, credential: str, endpoint: str, limit: int) -> Admission:
        found = await self._sessions.authorize(credential, endpoint, limit)
        session, rate = found.session, found.rate
        if session is None or rate is None:
            raise _invalid()
        if self._fences.ended(credential, session.user_id, session.created_at):
            raise _invalid()
        refuse_if_limited(rate)
        principal = Principal(
            kind="user",
            principal_id=session.user_id,
            permissions=ROLE_PERMISSIONS.get(session.role, frozenset()),
            scope=Scope(everything=session.role == "admin", user_id=session.user_id),
            credential=credential,
            role=session.role,
            expire_time=session.expire_time,
            begin_time=session.created_at,
        )
        return _admission(principal, rate)

    async def _api_key(self, credential: str, endpoint: str, limit: int) -> Admission:
        key = await api_keys.by_hash(self._database, bytes.fromhex(credential))
        if key is None:
            raise _invalid()
        await api_keys.touch_last_used(self._database, key)
        principal = Principal(
            kind="api_key",
            principal_id=key.id,
            permissions=frozenset(key.permissions) - PEOPLE_ONLY,
            scope=Scope(everything=key.all_clients, client_ids=tuple(key.client_ids)),
            credential=credential,
            expire_time=key.expires_at.timestamp() if key.expires_at else None,
            service_account_id=key.service_account_id,
            family_id=key.family_id,
        )
        try:
            state = await self._limiter.hit(str(key.family_id), endpoint, limit)
        except StoreUnavailable:
            return Admission(principal, limit, limit, 0)
        refuse_if_limited(state)
        return _admission(principal, state)

    async def alive(self, principals: list[Principal]) -> set[str]:
        """Credentials among these that still work. While Redis is down only PostgreSQL tells which sessions ended."""
        sessions = [
            p.credential
            for p in principals
            if p.kind == "user"
            and p.principal_id
            and not self._fences.ended(p.credential, p.principal_id, p.begin_time)
        ]
        keys = [p for p in principals if p.kind == "api_key"]
        now = time.time()
        alive: set[str] = set()
        if keys:
            active = await api_keys.active_ids(self._database, [p.principal_id for p in keys if p.principal_id])
            alive |= {
                p.credential
                for p in keys
                if p.principal_id in active and (p.expire_time is None or p.expire_time > now)
            }
        try:
            alive |= await self._sessions.exists_many(sessions) if sessions else set()
        except StoreUnavailable:
            alive |= set(sessions)
        return alive


def _admission(principal: Principal, state: RateState) -> Admission:
    return Admission(principal, state.limit, state.remaining, math.ceil(state.reset_seconds))


def refuse_if_limited(state: RateState) -> None:
    """Raises ResourceExhausted, with all a caller needs to wait the right time."""
    if not state.allowed:
        raise ResourceExhausted(
            "too many calls, slow down",
            retry_after=state.retry_after,
            metadata={
                "limit": str(state.limit),
                "remaining": str(state.remaining),
                "reset": str(math.ceil(state.reset_seconds)),
            },
        )


def _invalid() -> Unauthenticated:
    return Unauthenticated("the session or API key is unknown, expired or revoked", reason="CREDENTIALS_INVALID")
