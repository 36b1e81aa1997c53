"""Sessions: listed, ended for good on every server, and never brought back by Redis."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

import grpc
import pytest
from pydantic import SecretStr

from mrm.accounts.v1 import session_pb2, session_service_pb2, user_pb2, user_service_pb2
from mrm.common.v1 import options_pb2
from mrm.statistics.v1 import statistics_service_pb2
from server.accounts.passwords import Passwords
from server.accounts.session_service import SessionService
from server.app import Application
from server.cli.sessions import end_sessions
from server.rpc.auth import SESSION_PREFIX, digest, new_secret
from server.rpc.call import ANONYMOUS, Call
from server.rpc.errors import ResourceExhausted, Unauthenticated
from server.rpc.fences import SessionFences
from server.rpc.paging import Pager
from server.rpc.tokens import TokenCodec
from server.settings import AuthSettings
from storage.postgres import users
from storage.redis.limits import RateLimiter
from storage.redis.multiplex import MultiplexedRedis
from storage.redis.sessions import SCRIPTS, SessionStore
from tests.chaos import Proxy
from tests.conftest import PASSWORD, Caller, Failing, World, failure_of

pytestmark = pytest.mark.bar_c

# The bar is a second; a machine that many tests share is given more.
SOON = 1.0 if os.environ.get("MRM_BARS") == "full" else 3.0


@dataclass
class Second:
    """Another server process's worth of service on the same stores, Redis behind a proxy."""

    channel: grpc.aio.Channel
    redis: Proxy


@pytest.fixture(scope="module")
async def second(world: World) -> AsyncIterator[Second]:
    proxy = Proxy(world.connections.redis_dsn)
    await proxy.up()
    settings = world.settings.model_copy(deep=True)
    settings.redis.durable_dsn = SecretStr(proxy.dsn)
    application = Application(settings)
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        yield Second(channel, proxy)
    await application.stop()
    await proxy.down()


@pytest.fixture(scope="module")
async def redis(world: World) -> AsyncIterator[MultiplexedRedis]:
    connection = await MultiplexedRedis.open(world.connections.redis_dsn, scripts=SCRIPTS)
    yield connection
    await connection.close()


async def list_sessions(caller: Caller, user_id: str = "") -> list[session_pb2.Session]:
    request = session_service_pb2.ListSessionsRequest(page_size=1, user_id=user_id)
    found: list[session_pb2.Session] = []
    while True:
        page = await caller.sessions.ListSessions(request, metadata=caller.auth)
        found += page.sessions
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def email_of(world: World, caller: Caller) -> str:
    row = await users.get(world.database, caller.user_id or uuid4())
    assert row is not None
    return row.email


async def works(caller: Caller) -> bool:
    call = caller.sessions.GetCurrentSession(session_service_pb2.GetCurrentSessionRequest(), metadata=caller.auth)
    code = await call.code()
    assert code in {grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED}
    return code == grpc.StatusCode.OK


async def until_dead(*callers: Caller) -> None:
    async with asyncio.timeout(SOON):
        for caller in callers:
            while await works(caller):
                await asyncio.sleep(0.02)


async def watch(caller: Caller, client_id: str) -> asyncio.Task[str]:
    """Opens a stream; the task returns the reason of its end."""
    request = statistics_service_pb2.WatchMetricsRequest(client_id=client_id)
    call = caller.statistics.WatchMetrics(request, metadata=caller.auth)
    await call.read()

    async def ending() -> str:
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return failure_of(error).reason
        return "ended by itself"

    return asyncio.create_task(ending())


async def test_sessions_are_listed_and_one_is_ended(world: World, failing: Failing) -> None:
    user = await world.user("pm")
    other = await world.sign_in(await email_of(world, user))
    mine = await list_sessions(user)
    assert [session.current for session in mine] == [True, False]
    assert {session.user_id for session in mine} == {str(user.user_id)}
    assert mine[0].create_time.ToDatetime() < mine[1].create_time.ToDatetime() < mine[0].expire_time.ToDatetime()

    request = session_service_pb2.RevokeSessionRequest(session_id=mine[1].session_id)
    failure = await failing(world.admin.sessions.RevokeSession(request, metadata=world.admin.auth))
    assert failure.code == grpc.StatusCode.NOT_FOUND, "it is not a session of the caller"
    await user.sessions.RevokeSession(request, metadata=user.auth)
    assert (await works(user), await works(other)) == (True, False)
    assert (await failing(user.sessions.RevokeSession(request, metadata=user.auth))).reason == "RESOURCE_NOT_FOUND"
    assert [session.session_id for session in await list_sessions(user)] == [mine[0].session_id]


async def test_sessions_of_others_need_the_right(world: World, failing: Failing) -> None:
    user, analyst, specialist = await world.user("pm"), await world.user("analyst"), await world.user("specialist")
    user_id = str(user.user_id)
    assert len(await list_sessions(analyst, user_id)) == 1
    assert (await failing(list_sessions(specialist, user_id))).metadata["permission"] == "USERS_READ"
    request = session_service_pb2.RevokeAllSessionsRequest(user_id=user_id)
    failure = await failing(analyst.sessions.RevokeAllSessions(request, metadata=analyst.auth))
    assert failure.metadata["permission"] == "USERS_WRITE"
    key = await world.key([], options_pb2.PERMISSION_USERS_READ)
    assert (await failing(list_sessions(key))).fields == {"user_id": "REQUIRED"}
    assert len(await list_sessions(key, user_id)) == 1
    await world.admin.sessions.RevokeAllSessions(request, metadata=world.admin.auth)
    assert not await works(user)
    request.user_id = str(uuid4())
    call = world.admin.sessions.RevokeAllSessions(request, metadata=world.admin.auth)
    assert (await failing(call)).code == grpc.StatusCode.NOT_FOUND


Ending = Callable[[World, Caller], Awaitable[object]]


async def demote(world: World, user: Caller) -> object:
    changed = user_pb2.User(user_id=str(user.user_id), role=user_pb2.USER_ROLE_SPECIALIST)
    request = user_service_pb2.UpdateUserRequest(user=changed, update_mask={"paths": ["role"]})  # type: ignore[arg-type]
    return await world.admin.users.UpdateUser(request, metadata=world.admin.auth)


async def suspend(world: World, user: Caller) -> object:
    request = user_service_pb2.SuspendUserRequest(user_id=str(user.user_id))
    return await world.admin.users.SuspendUser(request, metadata=world.admin.auth)


async def delete(world: World, user: Caller) -> object:
    request = user_service_pb2.DeleteUserRequest(user_id=str(user.user_id))
    return await world.admin.users.DeleteUser(request, metadata=world.admin.auth)


async def reset(world: World, user: Caller) -> object:
    request = user_service_pb2.ResetPasswordRequest(user_id=str(user.user_id))
    return await world.admin.users.ResetPassword(request, metadata=world.admin.auth)


async def change_password(world: World, user: Caller) -> object:
    request = user_service_pb2.ChangePasswordRequest(current_password=PASSWORD, new_password=f"{uuid4()}")
    return await user.users.ChangePassword(request, metadata=user.auth)


async def revoke_one(world: World, user: Caller) -> object:
    (session,) = await list_sessions(user)
    request = session_service_pb2.RevokeSessionRequest(session_id=session.session_id)
    return await user.sessions.RevokeSession(request, metadata=user.auth)


async def revoke_all(world: World, user: Caller) -> object:
    request = session_service_pb2.RevokeAllSessionsRequest()
    return await user.sessions.RevokeAllSessions(request, metadata=user.auth)


async def log_out(world: World, user: Caller) -> object:
    return await user.sessions.Logout(session_service_pb2.LogoutRequest(), metadata=user.auth)


ENDINGS = [demote, suspend, delete, reset, change_password, revoke_one, revoke_all, log_out]


async def test_whatever_ends_a_session_ends_its_streams_on_every_server(world: World, second: Second) -> None:
    client_id, _ = await world.tenant()
    for end in ENDINGS:
        user = await world.user("analyst", client_id)
        elsewhere = Caller(second.channel, user.token)
        streams = [await watch(user, client_id), await watch(elsewhere, client_id)]
        await end(world, user)
        ended = time.monotonic()
        assert not await works(user), end
        assert not await works(elsewhere), end
        # A deletion takes the clients away as well, which a stream may notice first.
        reasons = {"CREDENTIALS_ENDED"} | ({"RESOURCE_NOT_FOUND"} if end is delete else set())
        assert set(await asyncio.gather(*streams)) <= reasons, end
        assert time.monotonic() - ended < SOON, end


async def test_the_commit_alone_ends_sessions(world: World, second: Second, redis: MultiplexedRedis) -> None:
    """As after a crash between the commit and Redis, and for a server that has lost Redis."""
    client_id, _ = await world.tenant()
    user = await world.user("analyst", client_id)
    elsewhere = Caller(second.channel, user.token)
    streams = [await watch(user, client_id), await watch(elsewhere, client_id)]
    await second.redis.down()
    try:
        assert user.user_id is not None
        await users.end_sessions(world.database, user.user_id)
        async with asyncio.timeout(SOON):
            assert await asyncio.gather(*streams) == ["CREDENTIALS_ENDED"] * 2
        await until_dead(user)
        assert await redis.execute("EXISTS", f"session:{digest(user.token)}"), "Redis was never told"
    finally:
        await second.redis.up()
    assert await works(await world.sign_in(await email_of(world, user)))


async def test_everybody_can_be_signed_out(world: World, second: Second) -> None:
    users_of_both = [await world.user("pm"), Caller(second.channel, (await world.user("pm")).token)]
    try:
        assert await end_sessions(world.settings, "") == "everybody"
        await until_dead(*users_of_both, world.admin)
    finally:
        world.admin = await world.sign_in("admin@example.com")
    assert await works(world.admin)


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
async def test_a_restored_backup_revives_nothing(
    world: World, second: Second, redis: MultiplexedRedis, end: Ending
) -> None:
    ended, kept = await world.user("pm"), await world.user("pm")
    keys = [f"session:{digest(ended.token)}", f"user_sessions:{ended.user_id}", f"session:{digest(kept.token)}"]
    backup = [await redis.execute("DUMP", key) for key in keys]
    await end(world, ended)
    assert not await works(ended)
    # Longer than any session lives, as if the backup had lost the ends of its keys.
    for key, value in zip(keys, backup, strict=True):
        await redis.execute("RESTORE", key, 10 * 86_400_000, value, "REPLACE")
    await until_dead(ended, Caller(second.channel, ended.token))
    assert await works(kept)
    assert await list_sessions(world.admin, str(ended.user_id)) == []


async def test_a_sign_in_that_a_suspension_overtakes_opens_nothing(world: World, redis: MultiplexedRedis) -> None:
    """The password was right and the account active, but the session reaches Redis after the suspension has."""
    user = await world.user("pm")
    row = await users.get(world.database, user.user_id or uuid4())
    assert row is not None
    signed_in = await users.sign_in(world.database, row.id, verified=row.password_hash)
    assert signed_in is not None and signed_in.last_login_at is not None
    await suspend(world, user)
    token = new_secret(SESSION_PREFIX)
    begun = signed_in.last_login_at.timestamp()
    await SessionStore(redis).create(digest(token), row.id, row.email, row.role, created_at=begun)
    await until_dead(world.caller(token))


async def test_a_session_ends_with_its_time_whatever_redis_says(world: World, redis: MultiplexedRedis) -> None:
    user = await world.user("pm")
    old = time.time() - world.settings.auth.session_ttl.total_seconds() - 1
    await redis.execute("HSET", f"session:{digest(user.token)}", "created_at", f"{old:.6f}")
    assert not await works(user)


async def test_ends_are_forgotten_when_nothing_can_bring_them_back(world: World) -> None:
    user, kept = await world.user("pm"), await world.user("pm")
    await log_out(world, user)
    await log_out(world, kept)
    await world.database.execute(
        "UPDATE ended_sessions SET ended_at = now() - interval '2 days' WHERE user_id = $1", user.user_id
    )
    from storage.postgres import session_ends

    assert await session_ends.purge_internal(world.database, world.settings.auth.session_ttl) >= 1
    left = await world.database.fetch(
        "SELECT user_id FROM ended_sessions WHERE user_id = ANY ($1::uuid[])", [user.user_id, kept.user_id]
    )
    assert [row[0] for row in left] == [kept.user_id]


def service_of(world: World, redis: MultiplexedRedis, passwords: Passwords) -> SessionService:
    """The service itself, to call it from addresses that this machine does not have."""
    settings = AuthSettings(limit_login_address=5)
    sessions = SessionStore(redis)
    fences = SessionFences(world.database, settings.session_ttl, settings.session_poll, lambda: None)
    pager = Pager(TokenCodec(b"0" * 32))
    return SessionService(world.database, sessions, fences, RateLimiter(redis), passwords, pager, settings)


def called_from(peer: str) -> Call:
    return Call("/mrm.accounts.v1.SessionService/Login", "request", ANONYMOUS, peer)


@pytest.mark.parametrize(
    "peers",
    [["ipv4:10.1.2.3:4711", "ipv4:10.1.2.3:4712"], ["ipv6:%5B2001:db8::1%5D:1", "ipv6:%5B2001:db8::ffff:1%5D:1"]],
    ids=["ipv4", "one IPv6 site"],
)
async def test_one_address_cannot_try_many_emails(world: World, redis: MultiplexedRedis, peers: list[str]) -> None:
    service = service_of(world, redis, Passwords(64, 1))
    for number in range(5):
        request = session_service_pb2.LoginRequest(email=f"{uuid4().hex}@example.com", password="wrong")
        with pytest.raises(Unauthenticated):
            await service.Login(request, called_from(peers[number % 2]))
    with pytest.raises(ResourceExhausted):
        await service.Login(request, called_from(peers[0]))
    with pytest.raises(Unauthenticated):
        await service.Login(request, called_from(f"ipv4:10.{uuid4().int % 250}.{uuid4().int % 250}.9:1"))


async def test_an_unknown_address_takes_as_long_as_a_known_one(world: World, redis: MultiplexedRedis) -> None:
    passwords = Passwords()
    service = service_of(world, redis, passwords)
    known, suspended, unknown = (f"{uuid4().hex}@example.com" for _ in range(3))
    strong = await passwords.hash(PASSWORD)
    for email in (known, suspended):
        await users.create(world.database, email=email, password_hash=strong, role="pm")
    await world.database.execute("UPDATE users SET status = 'suspended' WHERE email = $1", suspended)

    async def seconds(email: str, peer: str) -> float:
        begun = time.perf_counter()
        with pytest.raises(Unauthenticated):
            await service.Login(session_service_pb2.LoginRequest(email=email, password="x"), called_from(peer))
        return time.perf_counter() - begun

    emails = (known, unknown, suspended)
    times = [[await seconds(email, f"ipv4:10.9.9.{turn}:1") for turn, email in enumerate(emails)] for _ in range(2)]
    like, unlike, locked = (min(column) for column in zip(*times, strict=True))
    # Without the hash it would be a hundredth.
    assert unlike > 0.25 * like
    assert locked > 0.25 * like
