"""The connection to one ClickHouse database over HTTP."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver import exceptions as driver
from clickhouse_connect.driver.asyncclient import AsyncClient

from storage import deadline
from storage.errors import StoreError, StoreUnavailable

STORE = "clickhouse"

Setting = str | int | float

READ_SETTINGS: Mapping[str, Setting] = {
    # No key of ours ever spans two partitions, so FINAL need not compare them.
    "do_not_merge_across_partitions_select_final": 1,
    "final": 0,
    "join_use_nulls": 0,
    "max_memory_usage": 2 * 2**30,
    "max_result_rows": 0,
    "readonly": 2,
    "select_sequential_consistency": 0,
    "use_query_cache": 0,
}
"""What every read relies on, whatever the server's defaults are."""

WRITE_SETTINGS: Mapping[str, Setting] = {
    "async_insert": 0,
    "deduplicate_blocks_in_dependent_materialized_views": 0,
    "do_not_merge_across_partitions_select_final": 1,
    "distributed_foreground_insert": 1,
    "insert_deduplicate": 0,
    "join_use_nulls": 0,
    "materialized_views_ignore_errors": 0,
    # Months of one insert; a wide backfill is no mistake.
    "max_partitions_per_insert_block": 0,
    "max_memory_usage": 4 * 2**30,
}
"""What every write relies on, whatever the server's defaults are."""

_CONNECT_SECONDS = 5.0
_READ_SECONDS = 30.0
_WRITE_SECONDS = 60.0
_SILENCE_SECONDS = 300.0
# The server gives up by itself soon after the caller has: a lost cancellation must not leave work behind.
_SERVER_GRACE_SECONDS = 2
# A reader may be slow, and the statement waits for it.
_STREAM_SECONDS = 6 * 3600
_TIME_LIMITS = (5, 10, 20, 35, 65, 125, 305, 605)

_OVERDUE = 159
RETRYABLE_CODES = frozenset(
    {202, 203, 209, 210, 236, 242, 252, 279, 285, 286, 319, 373, 394, 425, 439, 473, 516, 700, 733, 999}
)
"""Error codes that say nothing about the statement: too busy, losing a replica, shutting down, out of reach.

202 TOO_MANY_SIMULTANEOUS_QUERIES, 203 NO_FREE_CONNECTION, 209 SOCKET_TIMEOUT, 210 NETWORK_ERROR, 236 ABORTED,
242 TABLE_IS_READ_ONLY, 252 TOO_MANY_PARTS, 279 ALL_CONNECTION_TRIES_FAILED, 285 TOO_FEW_LIVE_REPLICAS,
286 UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE, 319 UNKNOWN_STATUS_OF_INSERT, 373 SESSION_IS_LOCKED,
394 QUERY_WAS_CANCELLED, 425 SYSTEM_ERROR, 439 CANNOT_SCHEDULE_TASK, 473 DEADLOCK_AVOIDED, 516 AUTHENTICATION_FAILED,
700 USER_SESSION_LIMIT_EXCEEDED, 733 TABLE_IS_BEING_RESTARTED, 999 KEEPER_EXCEPTION.
"""

_THROWN = 395
_REJECTION = re.compile(r"MRM_REJECT:(\w+)")
_LATE_ERROR = re.compile(rb"Code: (\d+)")

logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)


class ClickHouseError(StoreError):
    """ClickHouse refuses a statement. Its text never leaves this module: it holds statements and values.

    Attributes:
        code: ClickHouse's error code; 0 if the driver itself refused.
        name: Symbolic name of the code.
        rejection: Kind of fault that one of our own statements found in its data, if it was that; nothing was written.
    """

    def __init__(self, code: int, name: str, rejection: str | None = None) -> None:
        super().__init__(f"clickhouse error {code} {name}".rstrip())
        self.code = code
        self.name = name
        self.rejection = rejection


class ClickHouse:
    """One ClickHouse database. Connects at the first call, and again by itself after the server was away.

    Calls take at most what is left of the call's deadline (`storage.deadline`) and raise TimeoutError beyond it,
    StoreUnavailable when trying again may help, and ClickHouseError otherwise.

    Args:
        dsn: HTTP URL with user and database.
        connections: Most connections at one time; further calls wait.
    """

    def __init__(self, dsn: str, *, connections: int = 32) -> None:
        self._dsn = dsn
        self._connections = connections
        self._client: AsyncClient | None = None
        self._connecting = asyncio.Lock()
        self.database = database_of(dsn)

    async def ping(self) -> None:
        """Returns if the database answers; raises StoreUnavailable otherwise."""
        try:
            await self.fetch("SELECT 1", timeout=3.0)
        except (TimeoutError, ClickHouseError):
            raise StoreUnavailable(STORE, "no answer") from None

    async def close(self) -> None:
        """Closes all connections."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                await client.close()

    async def fetch(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Setting] | None = None,
        timeout: float = _READ_SECONDS,
        query_id: str | None = None,
    ) -> list[tuple[Any, ...]]:
        """Runs a SELECT and returns all its rows.

        Args:
            sql: The statement, with parameters as ``{name:Type}``.
            parameters: Values of the parameters.
            settings: Settings of this call, over `READ_SETTINGS`.
            timeout: Most seconds, less if the call's deadline is nearer.
            query_id: Name of the query in the server's own logs.
        """
        limit = deadline.remaining(timeout)
        chosen = {**READ_SETTINGS, **_bounds(limit, query_id), **(settings or {})}
        async with asyncio.timeout(limit):
            client = await self._connected()
            with translated():
                result = await client.query(sql, parameters=dict(parameters or {}), settings=chosen)
        return [tuple(row) for row in result.result_rows]

    async def stream(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Setting] | None = None,
        silence: float = _SILENCE_SECONDS,
    ) -> AsyncGenerator[bytes, None]:
        """Runs a SELECT that names its FORMAT and yields the answer as it comes, in pieces of any size.

        Nothing is read ahead of the caller beyond the socket's buffers, so a slow caller slows the statement down.
        Close the generator (`contextlib.aclosing`) to stop the statement. An error in the middle of the answer is text
        in the answer: give what does not parse to `error_in`.

        Args:
            sql: The statement, with parameters as ``{name:Type}``.
            parameters: Values of the parameters.
            settings: Settings of this call, over `READ_SETTINGS`.
            silence: Most seconds between two pieces, and before the first.
        """
        chosen: dict[str, Setting] = {
            **READ_SETTINGS,
            "max_execution_time": _STREAM_SECONDS,
            "cancel_http_readonly_queries_on_client_close": 1,
            **(settings or {}),
        }
        async with asyncio.timeout(silence):
            client = await self._connected()
            with translated():
                opened = await client.raw_stream(sql, parameters=dict(parameters or {}), settings=chosen)
        async with opened:
            while True:
                async with asyncio.timeout(silence):
                    try:
                        piece = await anext(opened)
                    except StopAsyncIteration:
                        return
                    except Exception as error:
                        # The HTTP library's own: the driver only passes the answer on.
                        raise StoreUnavailable(STORE, type(error).__name__) from None
                yield piece

    async def execute(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Setting] | None = None,
        timeout: float = _WRITE_SECONDS,
        query_id: str | None = None,
    ) -> None:
        """Runs a statement without a result, such as INSERT ... SELECT; arguments as for `fetch`."""
        limit = deadline.remaining(timeout)
        chosen = {**WRITE_SETTINGS, **_bounds(limit, query_id), **(settings or {})}
        async with asyncio.timeout(limit):
            client = await self._connected()
            with translated():
                await client.command(sql, parameters=dict(parameters or {}), settings=chosen)

    async def insert_rows(
        self,
        table: str,
        columns: Mapping[str, str],
        rows: Sequence[Sequence[Any]],
        *,
        timeout: float = _WRITE_SECONDS,
    ) -> None:
        """Writes rows of Python values.

        Args:
            table: Name of the table.
            columns: Column name to ClickHouse type, in the order of the values.
            rows: The rows; none is fine.
            timeout: Most seconds, less if the call's deadline is nearer.
        """
        if not rows:
            return
        limit = deadline.remaining(timeout)
        async with asyncio.timeout(limit):
            client = await self._connected()
            with translated():
                await client.insert(
                    table,
                    rows,
                    column_names=list(columns),
                    column_type_names=list(columns.values()),
                    settings={**WRITE_SETTINGS, **_bounds(limit, None)},
                )

    async def insert_statement(self, body: bytes, *, timeout: float = _WRITE_SECONDS) -> None:
        """Sends an INSERT as it is: statement, its settings, and behind them the data.

        Returns once the rows are stored. The statement must bring its own settings: a body may be megabytes, an
        address line only a few kilobytes.
        """
        async with asyncio.timeout(deadline.remaining(timeout)):
            client = await self._connected()
            with translated():
                # The answer is held back until the end: an error after a first progress header would look like success.
                await client.raw_insert(insert_block=body, settings={"wait_end_of_query": 1})

    async def _connected(self) -> AsyncClient:
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    with translated():
                        self._client = await open_client(self._dsn, connections=self._connections)
        return self._client


async def open_client(dsn: str, *, connections: int = 2, database: str | None = None) -> AsyncClient:
    """Opens the driver's own asyncio client.

    Args:
        dsn: HTTP URL with user and database.
        connections: Most connections.
        database: Database instead of the one in the URL.
    """
    return await clickhouse_connect.get_async_client(
        dsn=dsn,
        database=database,
        # A session would run one statement at a time.
        autogenerate_session_id=False,
        connector_limit=connections,
        connector_limit_per_host=connections,
        connect_timeout=_CONNECT_SECONDS,
        send_receive_timeout=_SILENCE_SECONDS,
        compress=False,
        client_name="mrm",
        tz_mode="aware",
    )


def database_of(dsn: str) -> str:
    """Name of the database in a URL."""
    path = dsn.partition("://")[2].partition("?")[0].partition("/")[2]
    name = path.strip("/")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", name):
        raise ValueError("the ClickHouse URL must end with the name of a database of its own")
    return name


def error_in(text: bytes) -> Exception:
    """What a statement failed with after its answer had begun, read from the text that came instead of the rest."""
    found = _LATE_ERROR.search(text)
    if found is None:
        return StoreUnavailable(STORE, "the answer breaks off")
    return _of_code(int(found.group(1)), "", "")


def _bounds(seconds: float, query_id: str | None) -> dict[str, Setting]:
    # Few distinct values: engines reapply settings that differ from the last call's.
    wanted = seconds + _SERVER_GRACE_SECONDS
    bounds: dict[str, Setting] = {
        "max_execution_time": next((limit for limit in _TIME_LIMITS if limit >= wanted), _TIME_LIMITS[-1])
    }
    if query_id:
        bounds["query_id"] = query_id
    return bounds


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into ours; their texts, which quote statements and addresses, end here."""
    try:
        yield
    except driver.Error as error:
        raise _ours(error) from None
    except OSError as error:
        raise StoreUnavailable(STORE, type(error).__name__) from None


def _ours(error: driver.Error) -> Exception:
    code, name = error.code, error.name or type(error).__name__
    if code is None:
        refused = isinstance(error, driver.ProgrammingError | driver.DataError | driver.InternalError)
        return ClickHouseError(0, name) if refused else StoreUnavailable(STORE, name)
    return _of_code(code, name, str(error))


def _of_code(code: int, name: str, text: str) -> Exception:
    if code == _OVERDUE:
        return TimeoutError()
    if code in RETRYABLE_CODES:
        return StoreUnavailable(STORE, name or f"error {code}")
    found = _REJECTION.search(text) if code == _THROWN else None
    return ClickHouseError(code, name, found.group(1) if found else None)
