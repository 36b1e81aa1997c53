"""The shared connection: order of replies, time limits, and the server going away."""

import asyncio
import time
from pathlib import Path

import pytest
import uvloop

from storage import deadline
from storage.errors import StoreUnavailable
from storage.redis.dsn import MalformedDsn, parse_dsn
from storage.redis.multiplex import MultiplexedRedis, RedisReplyError, Script

from .conftest import PASSWORD, Valkey, connected


async def test_two_thousand_concurrent_commands_get_their_own_replies(redis: MultiplexedRedis) -> None:
    async def round_trip(number: int) -> None:
        assert await redis.execute("SET", f"k{number}", number) == b"OK"
        assert await redis.execute("GET", f"k{number}") == str(number).encode()

    await asyncio.gather(*(round_trip(number) for number in range(2000)))


async def test_commands_of_one_turn_leave_in_one_write(redis: MultiplexedRedis) -> None:
    connection = redis._connection
    assert connection is not None
    assert connection._transport is not None
    written: list[bytes] = []
    transport, real = connection._transport, connection._transport.write

    class Spy:
        def write(self, data: bytes) -> None:
            written.append(data)
            real(data)

    connection._transport = Spy()  # type: ignore[assignment]
    try:
        await asyncio.gather(*(redis.execute("ECHO", number) for number in range(50)))
    finally:
        connection._transport = transport
    assert len(written) == 1


async def test_execute_many_answers_in_order_and_raises_refusals(redis: MultiplexedRedis) -> None:
    assert await redis.execute_many([("ECHO", "a"), ("ECHO", b"b"), ("ECHO", 3)]) == [b"a", b"b", b"3"]
    with pytest.raises(RedisReplyError) as caught:
        await redis.execute_many([("ECHO", "a"), ("NOSUCH", "secret"), ("ECHO", 3)])
    assert caught.value.kind == "ERR"
    assert "secret" not in str(caught.value)
    assert await redis.execute("ECHO", "still in step") == b"still in step"


async def test_a_waiter_that_times_out_does_not_shift_the_replies(valkey: Valkey) -> None:
    redis = await MultiplexedRedis.open(valkey.dsn, timeout=5)
    token = deadline.set_deadline(asyncio.get_running_loop().time() + 0.05)
    started = time.monotonic()
    try:
        with pytest.raises(TimeoutError):
            await redis.execute("DEBUG", "SLEEP", "0.4")
        assert time.monotonic() - started < 0.3
    finally:
        deadline.reset_deadline(token)
    assert await redis.execute("ECHO", "mine") == b"mine"
    await redis.close()


async def test_a_cancelled_waiter_does_not_shift_the_replies(redis: MultiplexedRedis) -> None:
    waiting = asyncio.create_task(redis.execute("DEBUG", "SLEEP", "0.1"))
    await asyncio.sleep(0.02)
    waiting.cancel()
    assert await redis.execute("ECHO", "mine") == b"mine"


async def test_a_silent_server_is_given_up_and_the_connection_made_anew(valkey: Valkey) -> None:
    redis = await MultiplexedRedis.open(valkey.dsn, timeout=0.2)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await redis.execute("DEBUG", "SLEEP", "0.6")
    assert time.monotonic() - started < 0.4
    assert not redis.connected
    await connected(redis)
    assert await redis.execute("PING") == b"PONG"
    await redis.close()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_blocked_event_loop_is_not_taken_for_a_silent_server(valkey: Valkey, loop_factory) -> None:  # type: ignore[no-untyped-def]
    async def scenario() -> None:
        redis = await MultiplexedRedis.open(valkey.dsn, timeout=0.2)
        waiting = [asyncio.create_task(redis.execute("ECHO", number)) for number in range(10)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(0.6)  # noqa: ASYNC251 (blocking is the point)
        assert await asyncio.gather(*waiting) == [str(number).encode() for number in range(10)]
        await redis.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


async def test_scripts_survive_being_forgotten(redis: MultiplexedRedis) -> None:
    script = Script("return {KEYS[1], ARGV[1]}")
    assert await redis.run(script, ("k",), ("a",)) == [b"k", b"a"]
    await redis.execute("SCRIPT", "FLUSH")
    assert await redis.run(script, ("k",), ("b",)) == [b"k", b"b"]


async def test_scripts_are_loaded_on_connect(valkey: Valkey) -> None:
    script = Script("return 'loaded on connect'")
    redis = await MultiplexedRedis.open(valkey.dsn, scripts=[script])
    assert await redis.execute("EVALSHA", script.sha, 0) == b"loaded on connect"
    await redis.close()


async def test_kill_and_restart(valkey: Valkey, redis: MultiplexedRedis) -> None:
    await redis.execute("SET", "kept", "yes")
    waiting = asyncio.gather(*(redis.execute("INCR", "n") for _ in range(100)), return_exceptions=True)
    valkey.kill()
    assert all(isinstance(reply, int | StoreUnavailable) for reply in await waiting)
    await asyncio.sleep(0.05)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await redis.execute("GET", "kept")
    assert time.monotonic() - started < 0.05
    valkey.start()
    await connected(redis)
    assert await redis.execute("GET", "kept") == b"yes"


async def test_lost_connection_under_load(valkey: Valkey, redis: MultiplexedRedis) -> None:
    other = await MultiplexedRedis.open(valkey.dsn)
    outcomes = {"good": 0, "down": 0}
    stop = asyncio.Event()

    async def caller(number: int) -> None:
        while not stop.is_set():
            try:
                assert await redis.execute("ECHO", number) == str(number).encode()
                outcomes["good"] += 1
            except StoreUnavailable:
                outcomes["down"] += 1
                await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(caller(number))
        for _ in range(5):
            await asyncio.sleep(0.1)
            await other.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(0.2)
        stop.set()
    assert outcomes["good"] > 500
    assert outcomes["down"] > 0
    await other.close()


async def test_a_server_that_is_not_there_is_reported_at_once_and_found_later(tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    redis = await MultiplexedRedis.open(server.dsn)
    assert not redis.connected
    with pytest.raises(StoreUnavailable):
        await redis.execute("PING")
    server.start()
    try:
        await connected(redis)
        assert await redis.execute("PING") == b"PONG"
    finally:
        server.kill()
        await redis.close()


async def test_wrong_password_is_not_connected_and_not_logged(valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    redis = await MultiplexedRedis.open(valkey.dsn.replace(PASSWORD, "wrong-password"))
    assert not redis.connected
    await redis.close()
    assert "redis_connect_failed" in caplog.text
    assert "wrong-password" not in caplog.text


async def test_unix_socket(valkey: Valkey) -> None:
    redis = await MultiplexedRedis.open(f"unix://default:{PASSWORD}@{valkey.directory}/v.sock?db=3")
    await redis.execute("SET", "here", 1)
    assert await redis.execute("DBSIZE") == 1
    await redis.execute("FLUSHDB")
    await redis.close()


async def test_close_fails_what_is_under_way(valkey: Valkey) -> None:
    redis = await MultiplexedRedis.open(valkey.dsn)
    waiting = asyncio.create_task(redis.execute("DEBUG", "SLEEP", "0.2"))
    await asyncio.sleep(0.01)
    await redis.close()
    with pytest.raises(StoreUnavailable):
        await waiting
    with pytest.raises(StoreUnavailable):
        await redis.execute("PING")


def test_addresses() -> None:
    address = parse_dsn("redis://user:p%40ss@example.test:7000/2")
    assert (address.host, address.port, address.database, address.tls) == ("example.test", 7000, 2, None)
    assert list(address.greeting())[:2] == [("AUTH", "user", "p@ss"), ("SELECT", 2)]
    assert "p@ss" not in repr(address)
    assert parse_dsn("rediss://example.test").tls is not None
    sentinels = parse_dsn("rediss+sentinel://user:p%40ss@a.test,b.test:7001/main/3?sentinel_password=own")
    assert (sentinels.sentinels, sentinels.service) == ((("a.test", 26379), ("b.test", 7001)), "main")
    assert (sentinels.username, sentinels.password, sentinels.database) == ("user", "p@ss", 3)
    assert sentinels.sentinel_password == "own"
    assert sentinels.tls is not None
    for malformed in (
        "http://user:secret@example.test",
        "redis://user:secret@example.test:x",
        "redis://:secret@h/x",
        "redis+sentinel://:secret@h:26379",
        "redis+sentinel://:secret@,/main",
        "redis+cluster://:secret@h/main",
    ):
        with pytest.raises(MalformedDsn) as caught:
            parse_dsn(malformed)
        assert "secret" not in str(caught.value)
