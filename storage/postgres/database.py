"""The connection pool, statements and transactions."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import asyncpg
import orjson

from storage import deadline
from storage.errors import Contention, StoreError, StoreUnavailable
from storage.postgres.failures import STORE, StalePlan, translate, translated
from storage.postgres.replica import Replica

T = TypeVar("T")
Row = Any
"""A row as asyncpg gives it: a sequence of values in the order of the statement's columns."""
Outcome = Literal["commit", "rollback"]
TransactionObserver = Callable[[str, float, Outcome], None]
"""Told of each transaction's name, duration in seconds, and how it ended."""
AfterCommit = Callable[[], Awaitable[None]]

_log = logging.getLogger(__name__)

_STATEMENT_SECONDS = 30.0
_ACQUIRE_SECONDS = 5.0
_ROLLBACK_SECONDS = 5.0
# Nested savepoints share the name, so an undone one must be gone before the outer one is named again.
_UNDO_SAVEPOINT = "ROLLBACK TO SAVEPOINT s; RELEASE SAVEPOINT s"
_TRIES = 5
_FIRST_PAUSE_SECONDS = 0.01


class Executor(Protocol):
    """What runs statements: a `Database`, each on its own, or a `Transaction`, all together."""

    async def fetch(self, sql: str, *args: object) -> list[Row]:
        """Runs a statement and returns all its rows."""

    async def fetchrow(self, sql: str, *args: object) -> Row | None:
        """Runs a statement and returns its first row."""

    async def fetchval(self, sql: str, *args: object) -> Any:
        """Runs a statement and returns the first value of its first row."""

    async def execute(self, sql: str, *args: object) -> str:
        """Runs a statement and returns its command tag, for example ``UPDATE 1``."""


def returned(row: Row | None) -> Row:
    """The row of a statement that always returns one, such as an insert without ON CONFLICT."""
    if row is None:
        raise RuntimeError("a statement that always returns a row returned none")
    return row


class Transaction:
    """An open transaction. Its statements take effect together, when the block that opened it ends without error."""

    __slots__ = ("_after_commit", "_connection")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._after_commit: list[AfterCommit] = []

    async def fetch(self, sql: str, *args: object) -> list[Row]:
        """Runs a statement and returns all its rows."""
        with translated():
            rows: list[Row] = await self._connection.fetch(sql, *args, timeout=deadline.remaining(_STATEMENT_SECONDS))
        return rows

    async def fetchrow(self, sql: str, *args: object) -> Row | None:
        """Runs a statement and returns its first row."""
        with translated():
            return await self._connection.fetchrow(sql, *args, timeout=deadline.remaining(_STATEMENT_SECONDS))

    async def fetchval(self, sql: str, *args: object) -> Any:
        """Runs a statement and returns the first value of its first row."""
        with translated():
            return await self._connection.fetchval(sql, *args, timeout=deadline.remaining(_STATEMENT_SECONDS))

    async def execute(self, sql: str, *args: object) -> str:
        """Runs a statement and returns its command tag."""
        with translated():
            tag: str = await self._connection.execute(sql, *args, timeout=deadline.remaining(_STATEMENT_SECONDS))
        return tag

    def after_commit(self, callback: AfterCommit) -> None:
        """Has `callback` run once the transaction has committed, and never otherwise.

        The change is durable by then, so a failing callback is logged and does not fail the call: what must not be
        lost belongs into the outbox.
        """
        self._after_commit.append(callback)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undoes only the block's statements when it raises, so that the transaction can go on without them."""
        kept = len(self._after_commit)
        try:
            async with _bracketed(self._connection, "SAVEPOINT s", "RELEASE SAVEPOINT s", _UNDO_SAVEPOINT):
                yield
        except BaseException:
            del self._after_commit[kept:]
            raise


class PoolUse(NamedTuple):
    """How many connections a pool has open, how many of these are free, and how many it may open."""

    open: int
    free: int
    limit: int


class Database:
    """One pool of connections to one PostgreSQL.

    A statement may take what is left of the call's deadline (`storage.deadline`) and raises TimeoutError beyond it;
    other failures are those of `storage.errors`. JSON columns are plain Python values. Cancelling a call is safe: the
    server is told to stop, the transaction is rolled back, and the connection goes back to the pool or is replaced.
    """

    def __init__(self, pool: Any, on_transaction: TransactionObserver | None = None) -> None:
        self._pool = pool
        self._on_transaction = on_transaction
        self._replica: Replica | None = None

    @classmethod
    async def open(
        cls,
        dsn: str,
        *,
        min_size: int = 2,
        max_size: int = 10,
        statement_cache_size: int = 256,
        application_name: str = "mrm",
        on_transaction: TransactionObserver | None = None,
    ) -> Database:
        """Opens the pool and its first `min_size` connections.

        Args:
            dsn: Where the database is.
            min_size: Connections kept open; with 0 the database need not be there yet.
            max_size: The most connections at one time.
            statement_cache_size: Prepared statements kept per connection; 0 behind PgBouncer in transaction mode.
            application_name: What the server's own views call these connections.
            on_transaction: Told of every transaction that ends, for logs and metrics.

        Raises:
            StoreUnavailable: The database cannot be reached.
        """
        with translated():
            try:
                pool = await asyncpg.create_pool(
                    dsn,
                    min_size=min_size,
                    max_size=max_size,
                    max_queries=1_000_000_000,
                    statement_cache_size=statement_cache_size,
                    timeout=_ACQUIRE_SECONDS,
                    server_settings={"application_name": application_name},
                    init=_prepare_connection,
                    reset=_leave_as_is,
                )
            except TimeoutError:
                raise StoreUnavailable(STORE, "connect timeout") from None
        return cls(pool, on_transaction)

    def read_from(self, replica: Replica) -> None:
        """Lets single statements that only fetch be answered by a replica, where their call allows it."""
        self._replica = replica

    @property
    def use(self) -> PoolUse:
        """How much of the pool is in use now."""
        return PoolUse(self._pool.get_size(), self._pool.get_idle_size(), self._pool.get_max_size())

    async def close(self, timeout: float = 5.0) -> None:
        """Closes the pool once its connections are free; drops them after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def fetch(self, sql: str, *args: object) -> list[Row]:
        """Runs a statement in a transaction of its own and returns all its rows."""
        rows: list[Row] = await self._read("fetch", sql, args)
        return rows

    async def fetchrow(self, sql: str, *args: object) -> Row | None:
        """Runs a statement in a transaction of its own and returns its first row."""
        return await self._read("fetchrow", sql, args)

    async def fetchval(self, sql: str, *args: object) -> Any:
        """Runs a statement in a transaction of its own and returns the first value of its first row."""
        return await self._read("fetchval", sql, args)

    async def execute(self, sql: str, *args: object) -> str:
        """Runs a statement in a transaction of its own and returns its command tag."""
        tag: str = await self._alone("execute", sql, args)
        return tag

    @asynccontextmanager
    async def transaction(self, name: str) -> AsyncIterator[Transaction]:
        """Opens a transaction that commits when the block ends and rolls back when it raises or is cancelled.

        It is tried once; `run` also tries again. After-commit callbacks run before the block's `async with` returns.

        Args:
            name: What the transaction does, for logs and metrics, for example ``pause_campaign``.
        """
        begun = time.perf_counter()
        outcome: Outcome = "rollback"
        try:
            connection = await self._acquire()
            try:
                transaction = Transaction(connection)
                async with _bracketed(connection, "BEGIN", "COMMIT", "ROLLBACK"):
                    yield transaction
                outcome = "commit"
            finally:
                await self._release(connection)
        finally:
            if self._on_transaction is not None:
                self._on_transaction(name, time.perf_counter() - begun, outcome)
        await _run_all(name, transaction._after_commit)

    async def run(self, name: str, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Runs `work` in a transaction, again from the start when it lost against concurrent ones.

        Args:
            name: What the transaction does, for logs and metrics.
            work: Does everything through the transaction it is given, since it may run several times.

        Raises:
            Contention: Every try lost.
        """
        stale_plans = 0
        for attempt in range(1, _TRIES + 1):
            try:
                async with self.transaction(name) as transaction:
                    result = await work(transaction)
                return result
            except Contention as error:
                stale_plans += isinstance(error, StalePlan)
                if attempt == _TRIES or stale_plans > 1:
                    raise
            # Losers of one race must not meet again.
            jitter = random.uniform(0.5, 1.5)  # noqa: S311 - nothing depends on its secrecy
            await asyncio.sleep(jitter * _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    async def _read(self, method: str, sql: str, args: tuple[object, ...]) -> Any:
        if self._replica is not None and self._replica.serves():
            # Whatever hinders the replica, be it only that the statement writes, need not hinder the primary.
            with suppress(StoreError):
                return await self._replica.database._alone(method, sql, args)
        return await self._alone(method, sql, args)

    async def _alone(self, method: str, sql: str, args: tuple[object, ...]) -> Any:
        connection = await self._acquire()
        try:
            with translated():
                return await getattr(connection, method)(sql, *args, timeout=deadline.remaining(_STATEMENT_SECONDS))
        finally:
            await self._release(connection)

    async def _acquire(self) -> Any:
        with translated():
            try:
                # The pool's own timeout would run each acquisition in a task of its own.
                async with asyncio.timeout(deadline.remaining(_ACQUIRE_SECONDS)):
                    return await self._pool.acquire()
            except TimeoutError:
                raise StoreUnavailable(STORE, "no connection in time") from None

    async def _release(self, connection: Any) -> None:
        # A connection that cannot be given back has been dropped by the pool; what happened before is what counts.
        with suppress(Exception):
            await self._pool.release(connection, timeout=_ROLLBACK_SECONDS)


@asynccontextmanager
async def _bracketed(connection: Any, begin: str, end: str, undo: str) -> AsyncIterator[None]:
    """Runs `begin` before the block, `end` after it, and `undo` when the block raises or is cancelled."""
    with translated():
        await connection.execute(begin, timeout=deadline.remaining(_STATEMENT_SECONDS))
    try:
        yield
    except BaseException:
        # Should this fail, the pool rolls back or drops the connection on release.
        with suppress(Exception):
            await connection.execute(undo, timeout=_ROLLBACK_SECONDS)
        raise
    with translated():
        tag = await connection.execute(end, timeout=deadline.remaining(_STATEMENT_SECONDS))
    if tag == "ROLLBACK":
        raise RuntimeError("a statement failed and its error was swallowed: use a savepoint")


async def _run_all(name: str, callbacks: list[AfterCommit]) -> None:
    for callback in callbacks:
        try:
            await callback()
        except Exception as error:
            _log.warning("after-commit callback of %s failed: %s", name, type(translate(error)).__name__)


async def _prepare_connection(connection: Any) -> None:
    """Makes JSON columns plain Python values, in the binary format, whose first byte is a version."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + orjson.dumps(value, default=str),
        decoder=lambda data: orjson.loads(data[1:]),
        format="binary",
    )


async def _leave_as_is(connection: Any) -> None:
    """Spares the round trip of asyncpg's reset: no statement here changes a session, and it rolls back before this."""
