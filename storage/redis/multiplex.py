"""One Redis connection that many callers share.

Commands that are issued in the same turn of the event loop leave in one write, and replies settle the callers' futures
in order. There is no task, lock or pool check-out per command, which is what makes a round trip per call affordable.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import hiredis

from storage import deadline
from storage.errors import StoreError, StoreUnavailable
from storage.redis.dsn import Address, parse_dsn

STORE = "redis"

Argument = str | bytes | int | float

_log = logging.getLogger(__name__)

_NOTHING = object()
_CONNECT_SECONDS = 2.0
_SENTINEL_SECONDS = 0.5
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 2.0
_MOST_PENDING = 50_000
_LEAST_SWEEP_SECONDS = 0.005
# A sweep this late tells that the event loop was blocked, and replies may lie unread in the socket.
_LATE_SECONDS = 0.1
# Error replies that speak of the server's state and not of the command.
_STATE_ERRORS = frozenset({"LOADING", "READONLY", "MASTERDOWN", "OOM", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MISCONF"})
# After these the connection itself is of no use: another server may have taken over, or the credentials changed.
_FATAL_ERRORS = frozenset({"READONLY", "NOAUTH", "WRONGPASS"})


class RedisReplyError(StoreError):
    """The server refused a command: a defect of the caller.

    Attributes:
        kind: First word of the reply, for example ``WRONGTYPE``; the rest may hold values and is dropped.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"redis refused the command ({kind})")
        self.kind = kind


class Script:
    """A Lua script, which runs as a whole: no other command of any connection gets in between."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class MultiplexedRedis:
    """A self-healing connection to one Redis server, for use from one event loop.

    While the server cannot be reached every command fails at once with `StoreUnavailable`, and the connection is tried
    again in the background with growing pauses. A command that was under way when the connection broke, or that timed
    out, may or may not have taken effect.
    """

    def __init__(self, dsn: str, *, scripts: Sequence[Script] = (), timeout: float = 1.0) -> None:
        """Nothing is connected before `start`.

        Args:
            dsn: ``redis://``, ``rediss://`` (TLS), ``redis+sentinel://`` or ``unix://`` URL with user, password and
                database number.
            scripts: Scripts to load on every new connection.
            timeout: Longest wait for a reply in seconds; the deadline of the call being served shortens it.

        Raises:
            MalformedDsn: The URL cannot be used.
        """
        self._address = parse_dsn(dsn)
        self._scripts = tuple(scripts)
        self._timeout = timeout
        self._connection: _Connection | None = None
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, dsn: str, *, scripts: Sequence[Script] = (), timeout: float = 1.0) -> MultiplexedRedis:
        """Makes a connection and tries to reach the server once; see `start`."""
        redis = cls(dsn, scripts=scripts, timeout=timeout)
        await redis.start()
        return redis

    async def start(self) -> None:
        """Connects; returns after the first attempt, whether or not it succeeded: see `connected`."""
        if self._keeper is None:
            attempted = asyncio.Event()
            self._keeper = asyncio.create_task(self._keep(attempted), name="redis-connection")
            await attempted.wait()

    async def close(self) -> None:
        """Disconnects. Commands under way fail with `StoreUnavailable`."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        if self._connection is not None:
            self._connection.abort("closed")
            self._connection = None

    @property
    def connected(self) -> bool:
        """Whether commands are being sent now."""
        return self._connection is not None and not self._connection.ended.done()

    async def execute(self, *args: Argument) -> Any:
        """Runs one command and returns its reply; texts come as bytes.

        Raises:
            StoreUnavailable: Not connected, connection lost, no reply in time, or the server cannot serve now.
            TimeoutError: The deadline of the call being served passed.
            RedisReplyError: The server refused the command.
        """
        return await self._send(args)

    async def execute_many(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Runs commands in one write, not as one transaction; returns replies in order or raises the first error."""
        futures = [self._send(command) for command in commands]
        replies = await asyncio.gather(*futures, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return replies

    async def run(self, script: Script, keys: Sequence[Argument], args: Sequence[Argument] = ()) -> Any:
        """Runs a script by its digest, or by its source where the server does not know it (any more).

        Raises:
            StoreUnavailable, TimeoutError, RedisReplyError: As `execute`.
        """
        try:
            return await self._send(("EVALSHA", script.sha, len(keys), *keys, *args))
        except RedisReplyError as error:
            if error.kind != "NOSCRIPT":
                raise
        return await self._send(("EVAL", script.source, len(keys), *keys, *args))

    def _send(self, args: Sequence[Argument]) -> asyncio.Future[Any]:
        connection = self._connection
        if connection is None:
            raise StoreUnavailable(STORE, "not connected")
        return connection.send(args)

    async def _keep(self, attempted: asyncio.Event) -> None:
        """Connects, waits for the end of the connection, and begins again."""
        pause = _FIRST_PAUSE_SECONDS
        level = logging.WARNING
        while True:
            try:
                connection = await self._connect()
            except (OSError, TimeoutError, StoreError) as error:
                # One warning an outage is enough.
                _log.log(level, "redis_connect_failed", extra={"reason": _reason_of(error)})
                level = logging.DEBUG
            else:
                self._connection = connection
                attempted.set()
                pause, level = _FIRST_PAUSE_SECONDS, logging.WARNING
                _log.info("redis_connected")
                # Shielded: our own cancellation must not mark the connection as ended.
                reason = await asyncio.shield(connection.ended)
                self._connection = None
                _log.warning("redis_connection_lost", extra={"reason": reason})
            attempted.set()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (spreads reconnects, guards nothing)
            pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)

    async def _connect(self) -> _Connection:
        async with asyncio.timeout(_CONNECT_SECONDS):
            connection = await _connect(await _primary(self._address), self._timeout)
            try:
                for command in (*self._address.greeting(), *(("SCRIPT", "LOAD", s.source) for s in self._scripts)):
                    await connection.send(command)
                # Sentinels may not have noticed yet that it is none any more.
                if self._address.sentinels and (await connection.send(("ROLE",)))[0] != b"master":
                    raise StoreUnavailable(STORE, "not the primary")
            except BaseException:
                connection.abort("greeting failed")
                raise
        return connection


class _Connection(asyncio.Protocol):
    """A connected socket, the commands not written yet, and the futures of the replies that are due."""

    def __init__(self, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.WriteTransport | None = None
        self._unwritten: list[bytes] = []
        # (future, time at which it fails, whether the call's own deadline set that time)
        self._pending: deque[tuple[asyncio.Future[Any], float, bool]] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = float("inf")
        self._excused = False
        self._progress_at = 0.0
        self.ended: asyncio.Future[str] = self._loop.create_future()

    def send(self, args: Sequence[Argument]) -> asyncio.Future[Any]:
        """Queues a command for the write at the end of this turn of the loop."""
        if self.ended.done() or len(self._pending) >= _MOST_PENDING:
            raise StoreUnavailable(STORE, "connection lost" if self.ended.done() else "too many commands wait")
        packed = hiredis.pack_command(tuple(args))  # type: ignore[arg-type]
        loop = self._loop
        now = loop.time()
        limit = deadline.remaining(self._timeout)
        future: asyncio.Future[Any] = loop.create_future()
        if not self._pending:
            self._progress_at = now
        if not self._unwritten:
            loop.call_soon(self._flush)
        self._unwritten.append(packed)
        self._pending.append((future, now + limit, limit < self._timeout))
        if now + limit < self._sweep_at:
            self._sweep_again(now + limit)
        return future

    def abort(self, reason: str) -> None:
        """Drops the socket and fails what is pending."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: settles the futures of the replies that are complete."""
        self._progress_at = self._loop.time()
        reader, pending = self._reader, self._pending
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                future = pending.popleft()[0]
                if isinstance(reply, hiredis.ReplyError):
                    self._refuse(future, reply)
                elif not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.abort("protocol violated")

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        self._end(type(error).__name__ if error else "closed by server")

    def _flush(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        if self._transport is not None and not self.ended.done():
            self._transport.write(b"".join(unwritten))

    def _refuse(self, future: asyncio.Future[Any], reply: Exception) -> None:
        kind = str(reply).partition(" ")[0]
        state = kind in _STATE_ERRORS or kind in _FATAL_ERRORS
        if not future.done():
            future.set_exception(StoreUnavailable(STORE, kind) if state else RedisReplyError(kind))
        if kind in _FATAL_ERRORS:
            self.abort(kind)

    def _end(self, reason: str) -> None:
        if self.ended.done():
            return
        self.ended.set_result(reason)
        if self._sweep is not None:
            self._sweep.cancel()
        for future, _, _ in self._pending:
            if not future.done():
                future.set_exception(StoreUnavailable(STORE, "connection lost"))
        self._pending.clear()

    def _sweep_again(self, at: float) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep_at = at
        self._sweep = self._loop.call_at(at, self._fail_overdue)

    def _fail_overdue(self) -> None:
        """Fails futures whose time is over. Their places stay, so that late replies find nobody and order holds."""
        now = self._loop.time()
        late = now - self._sweep_at > _LATE_SECONDS
        self._sweep, self._sweep_at = None, float("inf")
        if late and not self._excused:
            self._excused = True
            self._sweep_again(now + _LEAST_SWEEP_SECONDS)
            return
        self._excused = False
        if self._pending and now - self._progress_at >= self._timeout:
            self.abort("no reply")
            return
        following = self._progress_at + self._timeout
        for future, due, by_caller in self._pending:
            if future.done():
                continue
            if due > now:
                following = min(following, due)
            elif by_caller:
                future.set_exception(TimeoutError("the call's deadline passed before redis replied"))
            else:
                future.set_exception(StoreUnavailable(STORE, "no reply"))
        if self._pending:
            # A floor keeps many different deadlines from turning into as many scans of the queue.
            self._sweep_again(max(following, now + _LEAST_SWEEP_SECONDS))


async def _connect(address: Address, timeout: float) -> _Connection:
    loop = asyncio.get_running_loop()
    if address.path:
        _, connection = await loop.create_unix_connection(lambda: _Connection(timeout), address.path)
    else:
        _, connection = await loop.create_connection(
            lambda: _Connection(timeout), address.host, address.port, ssl=address.tls
        )
    return connection


async def _primary(address: Address) -> Address:
    """Where the server is now: what the first sentinel that knows says."""
    for host, port in address.sentinels:
        sentinel = Address(host, port, password=address.sentinel_password, tls=address.tls)
        with suppress(OSError, TimeoutError, StoreError):
            async with asyncio.timeout(_SENTINEL_SECONDS):
                connection = await _connect(sentinel, _SENTINEL_SECONDS)
                try:
                    for command in sentinel.greeting():
                        await connection.send(command)
                    found = await connection.send(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service))
                finally:
                    connection.abort("asked")
            if found:
                return replace(address, host=found[0].decode(), port=int(found[1]))
    if address.sentinels:
        raise StoreUnavailable(STORE, "no sentinel knows the primary")
    return address


def _reason_of(error: BaseException) -> str:
    reason = getattr(error, "reason", "") or getattr(error, "kind", "")
    return reason or type(error).__name__
