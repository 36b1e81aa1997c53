"""SessionService: signing people in and out, and what is open in their name."""

from typing import Final
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from mrm.accounts.v1 import session_pb2
from mrm.accounts.v1 import session_service_pb2 as pb
from server.accounts import convert
from server.accounts.passwords import Passwords
from server.rpc.auth import SESSION_PREFIX, digest, new_secret, refuse_if_limited
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import InvalidRequest, NotFound, PermissionDenied, Unauthenticated
from server.rpc.fences import SessionFences
from server.rpc.paging import Pager
from server.settings import AuthSettings
from storage.postgres import session_ends, users
from storage.postgres.database import Database
from storage.redis.limits import RateLimiter, address_subject, login_subject
from storage.redis.sessions import SessionStore

LOGIN_ENDPOINT: Final = "mrm.accounts.v1.SessionService/Login"


class SessionService:
    """Implements mrm.accounts.v1.SessionService.

    Args:
        database: Where users live, and which sessions have ended.
        sessions: Where sessions live.
        fences: Knows which of them have ended nevertheless.
        limiter: Counts sign-in attempts.
        passwords: Checks passwords.
        pager: Makes page tokens.
        settings: Sign-in attempts an hour.
    """

    def __init__(
        self,
        database: Database,
        sessions: SessionStore,
        fences: SessionFences,
        limiter: RateLimiter,
        passwords: Passwords,
        pager: Pager,
        settings: AuthSettings,
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._fences = fences
        self._limiter = limiter
        self._passwords = passwords
        self._pager = pager
        self._settings = settings

    async def Login(self, request: pb.LoginRequest, call: Call) -> pb.LoginResponse:
        """Exchanges e-mail and password for a session. Fails closed: without Redis nobody signs in."""
        settings = self._settings
        for subject, limit in (
            (address_subject(call.peer), settings.limit_login_address),
            (login_subject(call.peer, request.email), settings.limit_login),
        ):
            state = await self._limiter.hit(subject, LOGIN_ENDPOINT, limit)
            call.note_limit(state)
            refuse_if_limited(state)
        found = await users.by_email(self._database, request.email)
        stored = found.password_hash if found and found.status == "active" else None
        if not await self._passwords.verify(stored, request.password) or found is None or stored is None:
            raise _refused()
        rehashed = await self._passwords.hash(request.password) if self._passwords.outdated(stored) else None
        user = await users.sign_in(self._database, found.id, verified=stored, rehashed=rehashed)
        if user is None or user.last_login_at is None:
            raise _refused()
        token = new_secret(SESSION_PREFIX)
        # The database's own time of the sign-in: by it alone is decided whether the session began before its end.
        session = await self._sessions.create(
            digest(token), user.id, user.email, user.role, created_at=user.last_login_at.timestamp()
        )
        response = pb.LoginResponse(session_token=token, user=convert.user(user))
        response.expire_time.CopyFrom(_timestamp(session.expire_time))
        return response

    async def Logout(self, request: pb.LogoutRequest, call: Call) -> pb.LogoutResponse:
        """Ends the caller's session. A key has no session: there is nothing to end."""
        if call.principal.kind == "user" and call.principal.principal_id:
            await self._sessions.delete(call.principal.credential)
            await session_ends.end(self._database, call.principal.credential, call.principal.principal_id)
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

    async def ListSessions(self, request: pb.ListSessionsRequest, call: Call) -> pb.ListSessionsResponse:
        """Lists open sessions. There are few of one user, so a page is cut here."""
        user_id = _whose(request.user_id, call, "USERS_READ")
        page = self._pager.start(request, call)
        after = page.after
        rows = [row for row in await self._open(user_id) if after is None or row.id > after]
        rows, next_token = page.cut(rows[: page.size + 1])
        return pb.ListSessionsResponse(
            sessions=[convert.session(row, call.principal.credential) for row in rows], next_page_token=next_token
        )

    async def RevokeSession(self, request: pb.RevokeSessionRequest, call: Mutation) -> pb.RevokeSessionResponse:
        """Ends one session."""
        user_id, session_id = _whose(request.user_id, call, "USERS_WRITE"), UUID(request.session_id)
        row = next((row for row in await self._open(user_id) if row.id == session_id), None)
        if row is None:
            raise NotFound.resource("session", request.session_id)
        await session_ends.end(call.tx, row.token_digest, user_id)

        async def forget() -> None:
            await self._sessions.delete(row.token_digest)

        call.tx.after_commit(forget)
        before, after = convert.session(row, call.principal.credential), session_pb2.Session(user_id=str(user_id))
        await call.record(AuditEntry("revoke", "session", session_id, None, None, before, after))
        return pb.RevokeSessionResponse()

    async def RevokeAllSessions(
        self, request: pb.RevokeAllSessionsRequest, call: Mutation
    ) -> pb.RevokeAllSessionsResponse:
        """Ends all sessions of a user."""
        user_id = _whose(request.user_id, call, "USERS_WRITE")
        row = await users.end_sessions(call.tx, user_id)
        if row is None:
            raise NotFound.resource("user", str(user_id))

        async def forget() -> None:
            await self._sessions.delete_all(user_id)

        call.tx.after_commit(forget)
        user = convert.recorded_user(row)
        await call.record(AuditEntry("revoke_sessions", "user", user_id, None, None, user, user))
        return pb.RevokeAllSessionsResponse()

    async def _open(self, user_id: UUID) -> list[convert.OpenSession]:
        """A user's sessions that still work, oldest first."""
        found = await self._sessions.of_user(user_id)
        rows = (convert.OpenSession.of(name, session) for name, session in found.items())
        return sorted(
            (row for row in rows if not self._fences.ended(row.token_digest, user_id, row.session.created_at)),
            key=lambda row: row.id,
        )


def _whose(user_id: str, call: Call, permission: str) -> UUID:
    """Whose sessions a call is about: the caller's own, or another's with the permission."""
    principal = call.principal
    own = principal.principal_id if principal.kind == "user" else None
    if not user_id and own is None:
        raise InvalidRequest.field("user_id", "REQUIRED", "is required of callers without a session")
    wanted = UUID(user_id) if user_id else own
    assert wanted is not None
    if wanted != own and permission not in principal.permissions:
        raise PermissionDenied(f"this needs the permission {permission}", metadata={"permission": permission})
    return wanted


def _refused() -> Unauthenticated:
    return Unauthenticated("e-mail and password do not match an active account", reason="LOGIN_REFUSED")


def _timestamp(unix_time: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(unix_time * 1000) * 1_000_000)
    return stamp
