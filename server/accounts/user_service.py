"""UserService: the people who sign in, and their passwords."""

from dataclasses import replace
from datetime import timedelta
from typing import Final
from uuid import UUID

from mrm.accounts.v1 import user_service_pb2 as pb
from server.accounts import convert
from server.accounts.api_key_service import record_revocation
from server.accounts.passwords import NO_PASSWORD, Passwords, check_password
from server.retention import erase_job
from server.rpc.auth import digest, new_secret, refuse_if_limited
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from server.rpc.paging import Pager
from server.rpc.validation import validate
from server.rpc.values import apply_mask, check_etag, required_id, timestamp
from server.settings import AuthSettings
from storage.errors import Conflict
from storage.postgres import api_keys, audit, erasures, feedback, users
from storage.postgres.database import Database, Transaction
from storage.postgres.users import User
from storage.redis.limits import RateLimiter, address_subject
from storage.redis.sessions import SessionStore

WRITABLE: Final = frozenset({"email", "first_name", "last_name", "role"})
# Requirements §11; nothing leads out of deleted.
TRANSITIONS: Final = frozenset(
    {("active", "suspended"), ("suspended", "active"), ("active", "deleted"), ("suspended", "deleted")}
)
RESET_PREFIX: Final = "mrmr_"
RESET_ENDPOINT: Final = "mrm.accounts.v1.UserService/CompletePasswordReset"


class UserService:
    """Implements mrm.accounts.v1.UserService.

    Args:
        database: Where users live.
        sessions: Where their sessions live.
        limiter: Counts attempts to set a password with a token.
        passwords: Makes and checks password hashes.
        pager: Makes page tokens.
        settings: Attempts an hour, life of a token.
        erasure_deadline: By when all stores must have forgotten a deleted user.
    """

    def __init__(
        self,
        database: Database,
        sessions: SessionStore,
        limiter: RateLimiter,
        passwords: Passwords,
        pager: Pager,
        settings: AuthSettings,
        erasure_deadline: timedelta,
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._limiter = limiter
        self._passwords = passwords
        self._pager = pager
        self._settings = settings
        self._erasure_deadline = erasure_deadline

    async def CreateUser(self, request: pb.CreateUserRequest, call: Mutation) -> pb.CreateUserResponse:
        """Makes a user, who without a password waits for a reset."""
        wanted, password_hash = request.user, NO_PASSWORD
        if request.password:
            check_password(request.password, wanted.email, "password")
            password_hash = await self._passwords.hash(request.password)
        try:
            row = await users.create(
                call.tx,
                email=wanted.email,
                password_hash=password_hash,
                role=convert.ROLES.word(wanted.role),
                first_name=wanted.first_name,
                last_name=wanted.last_name,
            )
        except Conflict:
            raise _email_taken() from None
        await call.record(AuditEntry("create", "user", row.id, None, None, None, convert.recorded_user(row)))
        return pb.CreateUserResponse(user=convert.user(row))

    async def GetUser(self, request: pb.GetUserRequest, call: Call) -> pb.GetUserResponse:
        """Reads one user."""
        row = await users.get(self._database, UUID(request.user_id))
        if row is None:
            raise NotFound.resource("user", request.user_id)
        return pb.GetUserResponse(user=convert.user(row))

    async def ListUsers(self, request: pb.ListUsersRequest, call: Call) -> pb.ListUsersResponse:
        """Lists users."""
        page = self._pager.start(request, call)
        wanted = request.filter
        rows, next_token = page.cut(
            await users.list_page(
                self._database,
                limit=page.size + 1,
                after=page.after,
                roles=convert.ROLES.optional_words(wanted.roles),
                statuses=convert.USER_STATUSES.optional_words(wanted.statuses) or ["active", "suspended"],
                text=wanted.text.strip() or None,
            )
        )
        return pb.ListUsersResponse(users=[convert.user(row) for row in rows], next_page_token=next_token)

    async def UpdateUser(self, request: pb.UpdateUserRequest, call: Mutation) -> pb.UpdateUserResponse:
        """Changes a user. The role is written into each session, so another one ends them."""
        row = await _locked(call, required_id(request.user.user_id, "user.user_id"), request.user.etag)
        if row.status == "deleted":
            raise FailedPrecondition("a deleted user stays as it is", metadata={"state": "deleted", "wanted": "active"})
        after = apply_mask(convert.user(row), request.user, request.update_mask, WRITABLE, "user")
        validate(after, "user")
        changed = replace(
            row,
            email=after.email,
            first_name=after.first_name,
            last_name=after.last_name,
            role=convert.ROLES.word(after.role),
        )
        try:
            stored = await self._store(call, row, changed, end_sessions=changed.role != row.role)
        except Conflict:
            raise _email_taken() from None
        await _record(call, "update", row, stored)
        return pb.UpdateUserResponse(user=convert.user(stored))

    async def SuspendUser(self, request: pb.SuspendUserRequest, call: Mutation) -> pb.SuspendUserResponse:
        """Locks a user out."""
        row = await _locked(call, UUID(request.user_id), request.etag)
        _check_transition(row, "suspended")
        stored = await self._store(call, row, replace(row, status="suspended"), end_sessions=True)
        await _record(call, "suspend", row, stored)
        return pb.SuspendUserResponse(user=convert.user(stored), revoked_api_key_count=await _revoke_keys(call, row.id))

    async def RestoreUser(self, request: pb.RestoreUserRequest, call: Mutation) -> pb.RestoreUserResponse:
        """Lets a suspended user in again."""
        row = await _locked(call, UUID(request.user_id), request.etag)
        _check_transition(row, "active")
        stored = await self._store(call, row, replace(row, status="active"), end_sessions=False)
        await _record(call, "restore", row, stored)
        return pb.RestoreUserResponse(user=convert.user(stored))

    async def DeleteUser(self, request: pb.DeleteUserRequest, call: Mutation) -> pb.DeleteUserResponse:
        """Ends a user for good and erases who it was."""
        row = await _locked(call, UUID(request.user_id), request.etag)
        _check_transition(row, "deleted")
        nobody = replace(
            row,
            status="deleted",
            email=f"{row.id}@deleted.invalid",
            password_hash=NO_PASSWORD,
            first_name="",
            last_name="",
            last_login_at=None,
        )
        stored = await self._store(call, row, nobody, end_sessions=True)
        await users.forbid_reset(call.tx, row.id)
        await users.drop_memberships(call.tx, row.id)
        await feedback.erase_person_internal(call.tx, row.id)
        await erasures.forget_person(call.tx, row.id, row.email)
        await erase_job.request(call.tx, "user", row.id, self._erasure_deadline)
        await _record(call, "delete", row, stored)
        return pb.DeleteUserResponse(user=convert.user(stored), revoked_api_key_count=await _revoke_keys(call, row.id))

    async def ChangePassword(self, request: pb.ChangePasswordRequest, call: Call) -> pb.ChangePasswordResponse:
        """Sets the caller's password. No transaction is open while hashes are computed."""
        if call.principal.kind != "user" or call.principal.principal_id is None:
            raise PermissionDenied("only people have a password", metadata={"permission": "SESSION"})
        row = await users.get(self._database, call.principal.principal_id)
        if row is None or row.status != "active":
            raise Unauthenticated("the account behind this session is gone")
        check_password(request.new_password, row.email, "new_password")
        if not await self._passwords.verify(row.password_hash, request.current_password):
            raise _wrong_password()
        if request.new_password == request.current_password:
            raise InvalidRequest.field("new_password", "PASSWORD_UNCHANGED", "is the present one")
        fresh = await self._passwords.hash(request.new_password)

        async def change(tx: Transaction) -> None:
            locked = await users.get_for_update(tx, row.id)
            if locked is None or locked.status != "active" or locked.password_hash != row.password_hash:
                raise _wrong_password()
            await self._set_password(tx, call, locked, fresh, "change_password")

        await self._database.run("ChangePassword", change)
        return pb.ChangePasswordResponse()

    async def ResetPassword(self, request: pb.ResetPasswordRequest, call: Mutation) -> pb.ResetPasswordResponse:
        """Takes the password away and lets whoever has the token set another one, once."""
        row = await _locked(call, UUID(request.user_id), "")
        if row.status == "deleted":
            raise FailedPrecondition("a deleted user stays so", metadata={"state": "deleted", "wanted": "active"})
        token = new_secret(RESET_PREFIX)
        stored = await users.update(call.tx, replace(row, password_hash=NO_PASSWORD), end_sessions=True)
        expires_at = await users.allow_reset(call.tx, row.id, bytes.fromhex(digest(token)), self._settings.reset_ttl)
        self._end_sessions_after(call.tx, row.id)
        await _record(call, "reset_password", row, stored)
        return pb.ResetPasswordResponse(reset_token=token, expire_time=timestamp(expires_at))

    async def CompletePasswordReset(
        self, request: pb.CompletePasswordResetRequest, call: Call
    ) -> pb.CompletePasswordResetResponse:
        """Sets a password with a token. A password that will not do leaves the token as it was."""
        limit = self._settings.limit_login_address
        state = await self._limiter.hit(address_subject(call.peer), RESET_ENDPOINT, limit)
        call.note_limit(state)
        refuse_if_limited(state)
        token_hash = bytes.fromhex(digest(request.reset_token))
        row = await users.resettable(self._database, token_hash)
        if row is None:
            raise _invalid_token()
        check_password(request.new_password, row.email, "new_password")
        fresh = await self._passwords.hash(request.new_password)

        async def complete(tx: Transaction) -> None:
            locked = await users.get_for_update(tx, row.id)
            if locked is None or locked.status != "active" or not await users.use_reset(tx, token_hash):
                raise _invalid_token()
            await self._set_password(tx, call, locked, fresh, "complete_password_reset")

        await self._database.run("CompletePasswordReset", complete)
        return pb.CompletePasswordResetResponse()

    async def _store(self, call: Mutation, row: User, changed: User, *, end_sessions: bool) -> User:
        """Writes a changed user, unless nobody could administer the service afterwards."""
        admin = ("admin", "active")
        loses_admin = (row.role, row.status) == admin and (changed.role, changed.status) != admin
        if loses_admin:
            await users.lock_admins(call.tx)
        stored = await users.update(call.tx, changed, end_sessions=end_sessions)
        if loses_admin and not await users.count_admins(call.tx):
            raise FailedPrecondition("this is the last administrator who can sign in", reason="LAST_ADMIN")
        if end_sessions:
            self._end_sessions_after(call.tx, row.id)
        return stored

    async def _set_password(self, tx: Transaction, call: Call, row: User, password_hash: str, action: str) -> None:
        await users.update(tx, replace(row, password_hash=password_hash), end_sessions=True)
        await users.forbid_reset(tx, row.id)
        self._end_sessions_after(tx, row.id)
        await audit.append(
            tx,
            audit.Record(
                actor_kind="user",
                actor_id=row.id,
                method=call.method,
                request_id=call.request_id,
                resource_type="user",
                resource_id=row.id,
                action=action,
            ),
        )

    def _end_sessions_after(self, tx: Transaction, user_id: UUID) -> None:
        """Has Redis forget the sessions. What ends them is the commit; this makes it immediate."""

        async def forget() -> None:
            await self._sessions.delete_all(user_id)

        tx.after_commit(forget)


async def _locked(call: Mutation, user_id: UUID, etag: str) -> User:
    row = await users.get_for_update(call.tx, user_id)
    if row is None:
        raise NotFound.resource("user", str(user_id))
    check_etag(etag, row.revision)
    return row


def _check_transition(row: User, wanted: str) -> None:
    if (row.status, wanted) not in TRANSITIONS:
        raise FailedPrecondition(
            f"a user who is {row.status} cannot become {wanted}", metadata={"state": row.status, "wanted": wanted}
        )


async def _record(call: Mutation, action: str, before: User, after: User) -> None:
    old, new = convert.recorded_user(before), convert.recorded_user(after, before)
    await call.record(AuditEntry(action, "user", after.id, None, None, old, new))


async def _revoke_keys(call: Mutation, user_id: UUID) -> int:
    """Ends the API keys whose secrets the user has seen, and records each."""
    rows = await api_keys.revoke_made_by(call.tx, user_id)
    for row in rows:
        await record_revocation(call, row)
    return len(rows)


def _email_taken() -> AlreadyExists:
    return AlreadyExists("another user has this e-mail", metadata={"field": "user.email"})


def _wrong_password() -> InvalidRequest:
    return InvalidRequest.field("current_password", "PASSWORD_WRONG", "is not the present password")


def _invalid_token() -> Unauthenticated:
    return Unauthenticated("the reset token is unknown, used or too old", reason="RESET_TOKEN_INVALID")
