"""SessionService: signing people in and out."""

import asyncio
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY
from google.protobuf.timestamp_pb2 import Timestamp

from mrm.accounts.v1 import session_service_pb2 as pb
from server.accounts import convert
from server.rpc.auth import SESSION_PREFIX, digest, new_secret, refuse_if_limited
from server.rpc.call import Call
from server.rpc.errors import Unauthenticated
from storage.postgres import users
from storage.postgres.database import Database
from storage.redis.limits import RateLimiter, login_subject
from storage.redis.sessions import SessionStore

LOGIN_ENDPOINT: Final = "mrm.accounts.v1.SessionService/Login"
# Each verification takes 64 MiB and a core for a tenth of a second.
MAX_HASHES_AT_ONCE = 2


class Passwords:
    """Hashes and verifies passwords (argon2id, RFC 9106 low-memory profile), off the event loop and few at a time."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
        self._slots = asyncio.Semaphore(MAX_HASHES_AT_ONCE)
        # Verified in place of an unknown user's hash, so that the answer takes equally long.
        self._decoy = self._hasher.hash(new_secret(""))

    async def hash(self, password: str) -> str:
        """The string to store."""
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether the password is the stored one; always false, and equally slow, when nothing is stored."""
        async with self._slots:
            return await asyncio.to_thread(self._verify, stored or self._decoy, password) and stored is not None

    def outdated(self, stored: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False


class SessionService:
    """Implements mrm.accounts.v1.SessionService.

    Args:
        database: Where users live.
        sessions: Where sessions live.
        limiter: Counts sign-in attempts.
        passwords: Checks passwords.
        attempts: Sign-in attempts an hour per peer address and e-mail.
    """

    def __init__(
        self, database: Database, sessions: SessionStore, limiter: RateLimiter, passwords: Passwords, attempts: int
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._limiter = limiter
        self._passwords = passwords
        self._attempts = attempts

    async def Login(self, request: pb.LoginRequest, call: Call) -> pb.LoginResponse:
        """Exchanges e-mail and password for a session. Fails closed: without Redis nobody signs in."""
        limit = await self._limiter.hit(login_subject(call.peer, request.email), LOGIN_ENDPOINT, self._attempts)
        call.note_limit(limit)
        refuse_if_limited(limit)
        user = await users.by_email(self._database, request.email)
        stored = user.password_hash if user and user.status == "active" else None
        if not await self._passwords.verify(stored, request.password) or user is None or stored is None:
            raise Unauthenticated("e-mail and password do not match an active account", reason="LOGIN_REFUSED")
        if self._passwords.outdated(stored):
            fresh = await self._passwords.hash(request.password)
            await users.update_password_hash(self._database, user.id, old=stored, new=fresh)
        token = new_secret(SESSION_PREFIX)
        session = await self._sessions.create(digest(token), user.id, user.email, user.role)
        await users.set_last_login(self._database, user.id)
        response = pb.LoginResponse(session_token=token, user=convert.user(user))
        response.expire_time.CopyFrom(_timestamp(session.expire_time))
        return response

    async def Logout(self, request: pb.LogoutRequest, call: Call) -> pb.LogoutResponse:
        """Ends the caller's session. A key has no session: there is nothing to end."""
        if call.principal.kind == "user":
            await self._sessions.delete(call.principal.credential)
        return pb.LogoutResponse()

    async def GetCurrentSession(self, request: pb.GetCurrentSessionRequest, call: Call) -> pb.GetCurrentSessionResponse:
        """Describes the caller."""
        principal = call.principal
        assert principal.principal_id is not None
        response = pb.GetCurrentSessionResponse(permissions=sorted(principal.permissions))
        if principal.expire_time is not None:
            response.expire_time.CopyFrom(_timestamp(principal.expire_time))
        if principal.kind == "api_key":
            response.api_key_id = str(principal.principal_id)
            return response
        user = await users.get(self._database, principal.principal_id)
        if user is None:
            raise Unauthenticated("the account behind this session is gone")
        response.user.CopyFrom(convert.user(user))
        return response


def _timestamp(unix_time: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(unix_time * 1000) * 1_000_000)
    return stamp
