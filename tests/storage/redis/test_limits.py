"""The hourly quota: exact, without a doubled burst, and never without an end."""

import asyncio

import pytest

from storage.redis.limits import RateLimiter, limit_key, login_subject
from storage.redis.multiplex import MultiplexedRedis

ENDPOINT = "/mrm.accounts.v1.SessionService/Login"
HOUR = 3_600_000_000


@pytest.fixture
def limiter(redis: MultiplexedRedis) -> RateLimiter:
    return RateLimiter(redis)


@pytest.mark.parametrize("limit", [1, 7, 20, 600])
async def test_exactly_the_limit_passes_however_concurrent(limiter: RateLimiter, limit: int) -> None:
    answers = await asyncio.gather(*(limiter.hit("u", ENDPOINT, limit) for _ in range(limit * 2 + 10)))
    assert sum(answer.allowed for answer in answers) == limit
    assert sorted((a.remaining for a in answers if a.allowed), reverse=True) == list(range(limit - 1, -1, -1))


async def test_quotas_of_other_endpoints_and_subjects_are_apart(limiter: RateLimiter) -> None:
    assert (await limiter.hit("u", "/a", 1)).allowed
    assert not (await limiter.hit("u", "/a", 1)).allowed
    assert (await limiter.hit("u", "/b", 1)).allowed
    assert (await limiter.hit("v", "/a", 1)).allowed


async def test_retry_after_is_exact(limiter: RateLimiter, redis: MultiplexedRedis) -> None:
    limit = 36  # one call every 100 s: a slow machine takes none of it
    key = limit_key("u", ENDPOINT)
    seconds, microseconds = await redis.execute("TIME")
    full_at = int(seconds) * 1_000_000 + int(microseconds) + HOUR
    await redis.execute("SET", key, full_at, "PX", 3_600_000)
    refused = await limiter.hit("u", ENDPOINT, limit)
    assert not refused.allowed
    assert 90 < refused.retry_after <= 100
    # Moving the key back is the same as letting time pass.
    wait = round(refused.retry_after * 1_000_000)
    await redis.execute("DECRBY", key, wait // 2)
    assert not (await limiter.hit("u", ENDPOINT, limit)).allowed
    await redis.execute("DECRBY", key, wait - wait // 2)
    assert (await limiter.hit("u", ENDPOINT, limit)).allowed
    assert not (await limiter.hit("u", ENDPOINT, limit)).allowed


async def test_no_second_burst_at_the_hours_edge(limiter: RateLimiter, redis: MultiplexedRedis) -> None:
    """A fixed window lets N calls through just before its edge and N just after; here only what time earned is free."""
    limit = 60
    for _ in range(limit):
        await limiter.hit("u", ENDPOINT, limit)
    key = limit_key("u", ENDPOINT)
    spent = int(await redis.execute("GET", key))
    await redis.execute("SET", key, spent - 5 * 60_000_000, "PX", 3_600_000)  # as if five minutes had passed
    answers = [await limiter.hit("u", ENDPOINT, limit) for _ in range(limit)]
    assert sum(answer.allowed for answer in answers) == 5


@pytest.mark.parametrize("limit", [1, 3, 7, 3600, 700_000])
async def test_every_key_is_a_string_that_ends_within_the_hour(
    limiter: RateLimiter, redis: MultiplexedRedis, limit: int
) -> None:
    for _ in range(5):
        await limiter.hit("u", ENDPOINT, limit)
        left = await redis.execute("PTTL", limit_key("u", ENDPOINT))
        # -1 would be a key without an end; -2 is one that has ended, as those of large limits do within milliseconds.
        assert left == -2 or 0 <= left <= 3_600_000
    assert await redis.execute("TYPE", limit_key("u", ENDPOINT)) in (b"string", b"none")


async def test_reset_tells_when_the_whole_quota_is_back(limiter: RateLimiter) -> None:
    answers = [await limiter.hit("u", ENDPOINT, 6) for _ in range(3)]
    assert [round(answer.reset_seconds) for answer in answers] == [600, 1200, 1800]


def test_login_subjects_ignore_the_port_and_hide_the_address() -> None:
    subject = login_subject("ipv4:10.0.0.1:4711", "Anna@Example.test ")
    assert subject == login_subject("ipv4:10.0.0.1:9", "anna@example.test")
    assert subject != login_subject("ipv4:10.0.0.2:9", "anna@example.test")
    assert subject != login_subject("ipv4:10.0.0.1:9", "boris@example.test")
    assert "anna" not in subject.lower()
    assert login_subject("ipv6:%5B::1%5D:5000", "a@b").startswith("ipv6:%5B::1%5D+")
    assert login_subject("unix:", "a@b").startswith("unix:+")
