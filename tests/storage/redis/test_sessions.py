"""Sessions and the limit that is counted beside them."""

import asyncio
import hashlib
import secrets
import time
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from storage.errors import StoreUnavailable
from storage.redis.multiplex import MultiplexedRedis
from storage.redis.sessions import SessionStore

from .conftest import Valkey, connected

ENDPOINT = "/mrm.campaigns.v1.CampaignService/GetCampaign"


def digest() -> str:
    return hashlib.sha256(secrets.token_bytes(32)).hexdigest()


@pytest.fixture
def sessions(redis: MultiplexedRedis) -> SessionStore:
    return SessionStore(redis)


async def sign_in(sessions: SessionStore, user: UUID) -> str:
    name = digest()
    await sessions.create(name, user, "anna@example.test", "analyst")
    return name


async def test_a_session_has_exactly_the_source_fields_and_a_day_to_live(
    redis: MultiplexedRedis, sessions: SessionStore
) -> None:
    user, name = uuid4(), digest()
    made = await sessions.create(name, user, "anna@example.test", "analyst")
    fields = await redis.execute("HGETALL", f"session:{name}")
    assert set(fields[::2]) == {b"user_id", b"email", b"role", b"created_at"}
    assert 86390 < await redis.execute("TTL", f"session:{name}") <= 86400
    assert 86390 < await redis.execute("TTL", f"user_sessions:{user}") <= 86400
    assert await redis.execute("TYPE", f"user_sessions:{user}") == b"set"

    found = (await sessions.authorize(name, ENDPOINT, 100)).session
    assert found is not None
    assert (found.user_id, found.email, found.role, found.created_at) == (user, made.email, "analyst", made.created_at)
    assert found.expire_time == pytest.approx(made.expire_time, abs=1)


async def test_unknown_sessions_are_nobody_and_leave_no_key(redis: MultiplexedRedis, sessions: SessionStore) -> None:
    answer = await sessions.authorize(digest(), ENDPOINT, 100)
    assert answer.session is None
    assert answer.rate is None
    assert await redis.execute("DBSIZE") == 0


async def test_the_limit_is_counted_per_user_over_all_sessions(redis: MultiplexedRedis, sessions: SessionStore) -> None:
    user = uuid4()
    names = [await sign_in(sessions, user) for _ in range(3)]
    answers = [await sessions.authorize(names[turn % 3], ENDPOINT, 5) for turn in range(7)]
    rates = [answer.rate for answer in answers if answer.rate is not None]
    assert [rate.allowed for rate in rates] == [True] * 5 + [False] * 2
    assert [rate.remaining for rate in rates] == [4, 3, 2, 1, 0, 0, 0]
    assert rates[-1].retry_after == pytest.approx(720, abs=2)
    assert 0 < await redis.execute("TTL", f"ratelimit:{user}:{ENDPOINT}") <= 3600
    assert answers[-1].session is not None, "a refused call still knows its caller"


async def test_delete_ends_one_session(redis: MultiplexedRedis, sessions: SessionStore) -> None:
    user = uuid4()
    kept, ended = await sign_in(sessions, user), await sign_in(sessions, user)
    assert await sessions.delete(ended)
    assert not await sessions.delete(ended)
    assert (await sessions.authorize(ended, ENDPOINT, 100)).session is None
    assert (await sessions.authorize(kept, ENDPOINT, 100)).session is not None
    assert await redis.execute("SMEMBERS", f"user_sessions:{user}") == [kept.encode()]


async def test_delete_all_ends_every_session_of_that_user_only(sessions: SessionStore) -> None:
    user, other = uuid4(), await sign_in(sessions, uuid4())
    mine = [await sign_in(sessions, user) for _ in range(5)]
    assert sorted(await sessions.delete_all(user)) == sorted(mine)
    assert await sessions.exists_many([*mine, other]) == {other}
    assert await sessions.delete_all(user) == []


async def test_sessions_expire_and_leave_the_index_at_the_next_sign_in(redis: MultiplexedRedis) -> None:
    short, long = SessionStore(redis, timedelta(milliseconds=80)), SessionStore(redis)
    user = uuid4()
    kept, brief = await sign_in(long, user), await sign_in(short, user)
    assert await redis.execute("TTL", f"user_sessions:{user}") > 86390, "a short session must not shorten the index"
    await asyncio.sleep(0.15)
    assert (await short.authorize(brief, ENDPOINT, 10)).session is None
    newest = await sign_in(long, user)
    assert set(await redis.execute("SMEMBERS", f"user_sessions:{user}")) == {kept.encode(), newest.encode()}


async def test_exists_many_of_many(sessions: SessionStore) -> None:
    alive = {await sign_in(sessions, uuid4()) for _ in range(20)}
    asked = [*alive, *(digest() for _ in range(2500))]
    assert await sessions.exists_many(asked) == alive
    assert await sessions.exists_many([]) == set()


async def test_sessions_survive_a_kill_and_are_unavailable_meanwhile(
    valkey: Valkey, redis: MultiplexedRedis, sessions: SessionStore
) -> None:
    name = await sign_in(sessions, uuid4())
    valkey.kill()
    await asyncio.sleep(0.05)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await sessions.authorize(name, ENDPOINT, 10)
    assert time.monotonic() - started < 0.1
    valkey.start()
    await connected(redis)
    answer = await sessions.authorize(name, ENDPOINT, 10)
    assert answer.session is not None
    assert answer.rate is not None
    assert answer.rate.remaining == 9
