"""UserService: the state machine, its guards, and passwords."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.accounts.v1 import api_key_service_pb2, session_service_pb2, user_pb2, user_service_pb2
from mrm.common.v1 import options_pb2
from server.accounts.passwords import Passwords, check_password
from server.rpc.errors import InvalidRequest
from storage.postgres import users
from tests.conftest import PASSWORD, PASSWORD_HASH, Caller, Failing, World

pytestmark = pytest.mark.bar_c

NEW_PASSWORD = "eleven purple teapots"


def address() -> str:
    return f"{uuid4().hex}@example.com"


async def make(world: World, **fields: object) -> user_pb2.User:
    """A user who cannot sign in yet."""
    user = user_pb2.User(**{"email": address(), "role": user_pb2.USER_ROLE_PM, **fields})  # type: ignore[arg-type]
    request = user_service_pb2.CreateUserRequest(user=user)
    return (await world.admin.users.CreateUser(request, metadata=world.admin.auth)).user


async def get(world: World, user_id: str) -> user_pb2.User:
    request = user_service_pb2.GetUserRequest(user_id=user_id)
    return (await world.admin.users.GetUser(request, metadata=world.admin.auth)).user


async def move(world: World, user_id: str, verb: str, etag: str = "") -> user_pb2.User:
    """Suspends, restores or deletes."""
    request = getattr(user_service_pb2, f"{verb}UserRequest")(user_id=user_id, etag=etag)
    reply = await getattr(world.admin.users, f"{verb}User")(request, metadata=world.admin.auth)
    user: user_pb2.User = reply.user
    return user


def renaming(user_id: str, **fields: object) -> user_service_pb2.UpdateUserRequest:
    user = user_pb2.User(user_id=user_id, **fields)  # type: ignore[arg-type]
    paths = [name for name in fields if name != "etag"]
    return user_service_pb2.UpdateUserRequest(user=user, update_mask={"paths": paths})  # type: ignore[arg-type]


async def alive(world: World, caller: Caller) -> bool:
    call = caller.sessions.GetCurrentSession(session_service_pb2.GetCurrentSessionRequest(), metadata=caller.auth)
    code = await call.code()
    assert code in {grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED}
    return code == grpc.StatusCode.OK


async def test_the_life_of_a_user(world: World, failing: Failing) -> None:
    email = f"Anna.{uuid4().hex}@Example.com"
    request = user_service_pb2.CreateUserRequest(
        user=user_pb2.User(email=email, first_name="Anna", role=user_pb2.USER_ROLE_ANALYST), password=PASSWORD
    )
    made = (await world.admin.users.CreateUser(request, metadata=world.admin.auth)).user
    assert (made.email, made.status, made.etag) == (email.lower(), user_pb2.USER_STATUS_ACTIVE, "r1")
    anna = await world.sign_in(email.upper())
    request.user.email = email.upper()
    failure = await failing(world.admin.users.CreateUser(request, metadata=world.admin.auth))
    assert (failure.code, failure.metadata["field"]) == (grpc.StatusCode.ALREADY_EXISTS, "user.email")

    change = renaming(made.user_id, last_name="Smith", etag=made.etag)
    updated = (await world.admin.users.UpdateUser(change, metadata=world.admin.auth)).user
    assert (updated.first_name, updated.last_name, updated.etag) == ("Anna", "Smith", "r2")
    assert await alive(world, anna), "a name is no right"
    failure = await failing(world.admin.users.UpdateUser(change, metadata=world.admin.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")

    listed = await world.admin.users.ListUsers(
        user_service_pb2.ListUsersRequest(filter={"text": email[:20].upper()}),  # type: ignore[arg-type]
        metadata=world.admin.auth,
    )
    assert [user.user_id for user in listed.users] == [made.user_id]
    gone = await move(world, made.user_id, "Delete", updated.etag)
    assert (gone.email, gone.first_name, gone.last_name) == ("", "", "")
    assert (await get(world, made.user_id)).status == user_pb2.USER_STATUS_DELETED
    row = await world.database.fetchrow("SELECT * FROM users WHERE id = $1", UUID(made.user_id))
    assert row is not None and "anna" not in str(dict(row)).lower() and "smith" not in str(dict(row)).lower()
    assert row["password_hash"] == "!"
    diffs = await world.database.fetchval(
        "SELECT string_agg(diff::text, '') FROM audit_log WHERE resource_id = $1", made.user_id
    )
    assert "withheld, changed" in diffs and "smith" not in diffs.lower() and "anna" not in diffs.lower()
    assert not await alive(world, anna)
    assert (await make(world, email=email)).user_id != made.user_id, "the address is free again"


async def test_lists_are_filtered_and_paged(world: World) -> None:
    tag = uuid4().hex
    made = [
        await make(world, last_name=tag, role=role)
        for role in (user_pb2.USER_ROLE_PM, user_pb2.USER_ROLE_ANALYST, user_pb2.USER_ROLE_PM)
    ]
    await move(world, made[0].user_id, "Suspend")
    await move(world, made[1].user_id, "Delete")

    async def found(**fields: object) -> list[str]:
        request = user_service_pb2.ListUsersRequest(filter={"text": tag, **fields}, page_size=1)  # type: ignore[arg-type]
        ids: list[str] = []
        while True:
            page = await world.admin.users.ListUsers(request, metadata=world.admin.auth)
            ids += [user.user_id for user in page.users]
            if not page.next_page_token:
                return ids
            request.page_token = page.next_page_token

    assert await found() == [made[0].user_id, made[2].user_id]
    assert await found(statuses=[user_pb2.USER_STATUS_SUSPENDED]) == [made[0].user_id]
    assert await found(roles=[user_pb2.USER_ROLE_ANALYST]) == []
    assert await found(statuses=[user_pb2.USER_STATUS_ACTIVE], roles=[user_pb2.USER_ROLE_PM]) == [made[2].user_id]


LEGAL = {("active", "Suspend"), ("suspended", "Restore"), ("active", "Delete"), ("suspended", "Delete")}
TARGET = {"Suspend": "suspended", "Restore": "active", "Delete": "deleted"}


@pytest.mark.parametrize("state", ["active", "suspended", "deleted"])
async def test_every_transition(world: World, failing: Failing, state: str) -> None:
    for verb, target in TARGET.items():
        user = await make(world)
        for step in {"active": [], "suspended": ["Suspend"], "deleted": ["Delete"]}[state]:
            await move(world, user.user_id, step)
        if (state, verb) in LEGAL:
            assert (await move(world, user.user_id, verb)).status == user_pb2.UserStatus.Value(
                f"USER_STATUS_{target.upper()}"
            )
            continue
        failure = await failing(move(world, user.user_id, verb))
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATE_FORBIDS")
        assert (failure.metadata["state"], failure.metadata["wanted"]) == (state, target)
        assert state in failure.message and target in failure.message


async def test_a_deleted_user_cannot_be_changed(world: World, failing: Failing) -> None:
    user = await make(world)
    await move(world, user.user_id, "Delete")
    auth = world.admin.auth
    calls = (
        world.admin.users.UpdateUser(renaming(user.user_id, first_name="x"), metadata=auth),
        world.admin.users.ResetPassword(user_service_pb2.ResetPasswordRequest(user_id=user.user_id), metadata=auth),
    )
    for call in calls:
        assert (await failing(call)).metadata["state"] == "deleted"


@pytest.mark.parametrize(
    ("fields", "broken"),
    [
        ({"email": "no address"}, "user.email"),
        ({"role": user_pb2.USER_ROLE_UNSPECIFIED}, "user.role"),
        ({"first_name": "x" * 101}, "user.first_name"),
        ({"status": user_pb2.USER_STATUS_SUSPENDED}, "update_mask"),
    ],
)
async def test_changes_are_checked(world: World, failing: Failing, fields: dict[str, object], broken: str) -> None:
    user = await make(world)
    call = world.admin.users.UpdateUser(renaming(user.user_id, **fields), metadata=world.admin.auth)
    assert broken in (await failing(call)).fields


async def test_who_may_not_write_users_may_not(world: World, failing: Failing) -> None:
    user = await make(world)
    analyst, specialist = await world.user("analyst"), await world.user("specialist")
    request = user_service_pb2.GetUserRequest(user_id=user.user_id)
    assert (await analyst.users.GetUser(request, metadata=analyst.auth)).user == user
    refused = {
        "USERS_READ": specialist.users.GetUser(request, metadata=specialist.auth),
        "USERS_WRITE": analyst.users.SuspendUser(
            user_service_pb2.SuspendUserRequest(user_id=user.user_id), metadata=analyst.auth
        ),
    }
    for permission, call in refused.items():
        failure = await failing(call)
        assert (failure.code, failure.metadata["permission"]) == (grpc.StatusCode.PERMISSION_DENIED, permission)


async def test_suspension_revokes_the_keys_that_the_user_made(world: World, failing: Failing) -> None:
    admin = await world.user("admin")
    request = api_key_service_pb2.CreateApiKeyRequest(
        display_name="x", permissions=[options_pb2.PERMISSION_CLIENTS_READ], all_clients=True
    )
    secret = (await admin.api_keys.CreateApiKey(request, metadata=admin.auth)).secret
    assert await alive(world, world.caller(secret))
    suspended = await world.admin.users.SuspendUser(
        user_service_pb2.SuspendUserRequest(user_id=str(admin.user_id)), metadata=world.admin.auth
    )
    assert suspended.revoked_api_key_count == 1
    assert not await alive(world, world.caller(secret))


@pytest.mark.parametrize("way", ["Suspend", "Delete", "demote"])
async def test_the_last_admin_stays_whoever_races(world: World, way: str) -> None:
    """Twenty requests at once take away all administrators; exactly one of them must fail."""
    caller = world.admin
    made = [
        (await users.create(world.database, email=address(), password_hash=PASSWORD_HASH, role="admin"))
        for _ in range(20)
    ]
    # An administrator who has no password cannot be the one who is left.
    await users.create(world.database, email=address(), password_hash="!", role="admin")
    others = "role = 'admin' AND status = 'active' AND NOT id = ANY ($1::uuid[])"
    ids = [row.id for row in made]
    hidden = [row[0] for row in await world.database.fetch(f"SELECT id FROM users WHERE {others}", ids)]
    await world.database.execute("UPDATE users SET role = 'pm' WHERE id = ANY ($1::uuid[])", hidden)

    async def remove(user_id: UUID) -> str:
        if way == "demote":
            request = renaming(str(user_id), role=user_pb2.USER_ROLE_PM)
            call = caller.users.UpdateUser(request, metadata=caller.auth)
        else:
            request = getattr(user_service_pb2, f"{way}UserRequest")(user_id=str(user_id))
            call = getattr(caller.users, f"{way}User")(request, metadata=caller.auth)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error.details() or ""
        return ""

    try:
        outcomes = await asyncio.gather(*(remove(user_id) for user_id in ids))
        assert sorted(outcomes) == [""] * 19 + ["this is the last administrator who can sign in"]
        assert await users.count_admins(world.database) == 1
    finally:
        await world.database.execute("UPDATE users SET role = 'admin' WHERE id = ANY ($1::uuid[])", hidden)


async def test_a_changed_password_ends_every_session(world: World, failing: Failing) -> None:
    user = await world.user("pm")
    assert user.user_id is not None
    email = (await get(world, str(user.user_id))).email
    other = await world.sign_in(email)
    request = user_service_pb2.ChangePasswordRequest(current_password="wrong", new_password=NEW_PASSWORD)
    failure = await failing(user.users.ChangePassword(request, metadata=user.auth))
    assert failure.fields == {"current_password": "PASSWORD_WRONG"}
    request.current_password = PASSWORD
    for password, reason in (
        (PASSWORD, "PASSWORD_UNCHANGED"),
        ("short", "PASSWORD_LENGTH"),
        (email, "PASSWORD_IS_EMAIL"),
    ):
        request.new_password = password
        failure = await failing(user.users.ChangePassword(request, metadata=user.auth))
        assert failure.fields == {"new_password": reason}
    request.new_password = NEW_PASSWORD
    await user.users.ChangePassword(request, metadata=user.auth)
    assert not await alive(world, user)
    assert not await alive(world, other)
    login = session_service_pb2.LoginRequest(email=email, password=PASSWORD)
    assert (await failing(world.caller().sessions.Login(login))).reason == "LOGIN_REFUSED"
    login.password = NEW_PASSWORD
    token = (await world.caller().sessions.Login(login)).session_token
    assert await alive(world, world.caller(token))


async def test_guessing_the_present_password_is_limited(world: World, failing: Failing) -> None:
    user = await world.user("pm")
    request = user_service_pb2.ChangePasswordRequest(current_password="wrong", new_password="short")
    reasons = [(await failing(user.users.ChangePassword(request, metadata=user.auth))).reason for _ in range(21)]
    assert reasons == ["INVALID_FIELDS"] * 20 + ["RATE_LIMITED"]


async def test_a_key_has_no_password(world: World, failing: Failing) -> None:
    key = await world.key([], options_pb2.PERMISSION_USERS_READ)
    request = user_service_pb2.ChangePasswordRequest(current_password="x", new_password=NEW_PASSWORD)
    failure = await failing(key.users.ChangePassword(request, metadata=key.auth))
    assert failure.code == grpc.StatusCode.PERMISSION_DENIED


async def test_a_reset_takes_the_password_and_gives_one_token(world: World, failing: Failing) -> None:
    user = await world.user("pm")
    nobody = world.caller()
    email = (await get(world, str(user.user_id))).email
    request = user_service_pb2.ResetPasswordRequest(user_id=str(user.user_id), request_id=str(uuid4()))
    first = await world.admin.users.ResetPassword(request, metadata=world.admin.auth)
    assert (await world.admin.users.ResetPassword(request, metadata=world.admin.auth)).reset_token == ""
    assert not await alive(world, user)
    login = session_service_pb2.LoginRequest(email=email, password=PASSWORD)
    assert (await failing(nobody.sessions.Login(login))).reason == "LOGIN_REFUSED"
    request.ClearField("request_id")
    second = await world.admin.users.ResetPassword(request, metadata=world.admin.auth)
    complete = user_service_pb2.CompletePasswordResetRequest(reset_token=first.reset_token, new_password=NEW_PASSWORD)
    failure = await failing(nobody.users.CompletePasswordReset(complete))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "RESET_TOKEN_INVALID")
    complete.reset_token = second.reset_token
    complete.new_password = "password2026!"
    assert (await failing(nobody.users.CompletePasswordReset(complete))).fields == {"new_password": "PASSWORD_COMMON"}
    complete.new_password = NEW_PASSWORD
    outcomes = await asyncio.gather(
        *(nobody.users.CompletePasswordReset(complete) for _ in range(2)), return_exceptions=True
    )
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1, "a token works once"
    login.password = NEW_PASSWORD
    assert (await nobody.sessions.Login(login)).user.user_id == str(user.user_id)
    stored = await world.database.fetchval(
        "SELECT string_agg(response::text, '') FROM idempotency_keys WHERE method LIKE '%ResetPassword'"
    )
    assert first.reset_token.encode().hex() not in stored


@pytest.mark.parametrize("what", ["expired", "suspended", "deleted", "unknown"])
async def test_tokens_end(world: World, failing: Failing, what: str) -> None:
    user = await make(world)
    request = user_service_pb2.ResetPasswordRequest(user_id=user.user_id)
    token = (await world.admin.users.ResetPassword(request, metadata=world.admin.auth)).reset_token
    if what == "expired":
        await world.database.execute(
            "UPDATE password_resets SET expires_at = now() WHERE user_id = $1", UUID(user.user_id)
        )
    elif what == "unknown":
        token = "mrmr_unknown"
    else:
        await move(world, user.user_id, {"suspended": "Suspend", "deleted": "Delete"}[what])
    complete = user_service_pb2.CompletePasswordResetRequest(reset_token=token, new_password=NEW_PASSWORD)
    assert (await failing(world.caller().users.CompletePasswordReset(complete))).reason == "RESET_TOKEN_INVALID"


async def test_a_request_id_is_compared_without_the_password(world: World) -> None:
    """A fast hash of a password would be as good as the password to whoever reads the database."""
    request = user_service_pb2.CreateUserRequest(
        user=user_pb2.User(email=address(), role=user_pb2.USER_ROLE_PM), password=PASSWORD, request_id=str(uuid4())
    )
    first = await world.admin.users.CreateUser(request, metadata=world.admin.auth)
    request.password = NEW_PASSWORD
    assert await world.admin.users.CreateUser(request, metadata=world.admin.auth) == first
    assert (await world.sign_in(request.user.email)).user_id == UUID(first.user.user_id)


async def test_signing_in_renews_an_outdated_hash(world: World) -> None:
    user = await world.user("pm")
    row = await users.get(world.database, user.user_id or uuid4())
    assert row is not None
    assert row.password_hash != PASSWORD_HASH
    assert Passwords().outdated(row.password_hash), "the tests' server hashes cheaply"
    assert not Passwords(64, 1).outdated(row.password_hash)
    assert not Passwords().outdated(await Passwords().hash(PASSWORD))


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("elevenchars", "PASSWORD_LENGTH"),
        ("x" * 1025, "PASSWORD_LENGTH"),
        ("Anna.Petrova@Example.com", "PASSWORD_IS_EMAIL"),
        ("annapetrova2026", "PASSWORD_IS_EMAIL"),
        ("Password-2026", "PASSWORD_COMMON"),
        ("123456789012", "PASSWORD_COMMON"),
        ("1q2w3e4r5t6y", "PASSWORD_COMMON"),
        ("qwertyuiop12", "PASSWORD_COMMON"),
        ("poiuytrewq098", "PASSWORD_COMMON"),
        ("абвгдеёжзийк", "PASSWORD_COMMON"),
        ("ababababababab", "PASSWORD_COMMON"),
        ("пароль1234567", "PASSWORD_COMMON"),
    ],
)
def test_passwords_that_would_be_guessed_are_refused(password: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_password(password, "anna.petrova@example.com", "password")
    assert [violation.reason for violation in caught.value.violations] == [reason]
    assert password not in caught.value.message


@pytest.mark.parametrize("password", [PASSWORD, "q7#Vw2!rT9zK", "собака лает, караван идёт", "Anna has 3 horses"])
def test_other_passwords_will_do(password: str) -> None:
    check_password(password, "anna@example.com", "password")
