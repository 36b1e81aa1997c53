"""One statement on its way through the engine, and what happens to it when its client goes away."""

import asyncio
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from server.embedded.clickhouse_http.arrow import ArrowJoiner
from server.embedded.clickhouse_http.failures import Failure
from server.embedded.clickhouse_http.payload import Payload
from server.embedded.clickhouse_http.pool import Connection, Lease, Pool
from server.embedded.clickhouse_http.statements import Insert

STREAMABLE = frozenset(
    [
        "Native",
        "RowBinary",
        "TabSeparated",
        "TabSeparatedRaw",
        "TSV",
        "TSVRaw",
        "CSV",
        "JSONEachRow",
        "JSONCompactEachRow",
        "ArrowStream",
    ]
)
"""Output formats whose chunks may be sent one after another: no header, footer or framing around the whole, or, with
ArrowStream, one that `ArrowJoiner` knows how to take off."""

_FIRST_CHUNKS = 2
_LONGEST_KILL_DELAY_SECONDS = 0.5


@dataclass(slots=True)
class Statement:
    """What to run.

    For an INSERT with data, `insert` and `data` take the place of `sql`: the statement is completed when the data has
    become a file.
    """

    sql: bytes
    format: str
    database: str
    settings: Mapping[str, str]
    parameters: Mapping[str, str]
    stream: bool
    killable: bool
    """False for DDL: stopped in the middle it helps nobody, and a ClickHouse server would go on as well."""
    insert: Insert | None = None
    data: Sequence[bytes | memoryview] = ()


class Execution:
    """Runs one statement on a leased connection. Its engine calls block and belong on a worker thread."""

    def __init__(self, pool: Pool, lease: Lease, statement: Statement) -> None:
        self._pool = pool
        self._lease = lease
        self._statement = statement
        self._stream: Any = None
        self._arrow = ArrowJoiner() if statement.format == "ArrowStream" else None
        self._began = time.perf_counter()
        self._totals = [0, 0, 0, 0, 0]
        self.mark = f"/*{uuid.uuid4().hex}*/"

    @property
    def streaming(self) -> bool:
        """Whether more chunks can be fetched after what `begin` returned."""
        return self._stream is not None

    def begin(self) -> bytes:
        """Starts the statement; returns its whole result, or the first chunks of a streamed one."""
        statement = self._statement
        self._lease.reusable, reusable = False, self._lease.reusable
        connection = self._pool.open(self._lease)
        connection.prepare(statement.database, statement.settings)
        # From here on an error does not harm the connection: a session must outlive it, the pool takes no risk.
        self._lease.reusable = self._lease.session is not None
        if statement.insert is not None:
            out = self._insert(connection, statement.insert)
        elif statement.stream:
            sql = self.mark.encode() + statement.sql
            self._stream = connection.chdb.send_query(sql, statement.format, params=statement.parameters)
            out = b"".join(self.fetch() for _ in range(_FIRST_CHUNKS))
            if self._arrow is not None and not self._arrow.begun:
                # A stream without rows gives no chunk at all; its schema comes from running it as a whole.
                out = self._query(connection, sql)
        else:
            out = self._query(connection, self.mark.encode() + statement.sql)
        self._lease.reusable = reusable
        return out

    def _insert(self, connection: Connection, insert: Insert) -> bytes:
        try:
            payload = Payload(self._statement.data)
        except OSError as error:
            raise Failure(75, "CANNOT_WRITE_TO_FILE_DESCRIPTOR", "The data does not fit into memory.") from error
        try:
            return self._query(connection, self.mark.encode() + insert.reading_from(payload.path))
        finally:
            payload.close()

    def _query(self, connection: Connection, sql: bytes) -> bytes:
        result = connection.chdb.query(sql, self._statement.format, params=self._statement.parameters)
        self._count(result)
        return bytes(result.bytes() or b"")

    def fetch(self) -> bytes:
        """The next chunk; empty at the end."""
        if self._stream is None:
            return b""
        try:
            chunk = self._stream.fetch()
        except BaseException:
            self._close_stream()
            self._lease.reusable = self._lease.session is not None
            raise
        if chunk is None:
            self._stream = None
            return self._arrow.end() if self._arrow is not None else b""
        self._count(chunk)
        data = bytes(chunk.bytes())
        return data if self._arrow is None else self._arrow.join(data)

    def _count(self, result: Any) -> None:
        written = (result.rows_written(), result.bytes_written())
        counts = (result.storage_rows_read(), result.storage_bytes_read(), *written, result.rows_read())
        self._totals = [total + count for total, count in zip(self._totals, counts, strict=True)]

    def summary(self) -> str:
        """The value of X-ClickHouse-Summary so far."""
        names = ("read_rows", "read_bytes", "written_rows", "written_bytes", "result_rows")
        shown = {name: str(total) for name, total in zip(names, self._totals, strict=True)}
        shown["elapsed_ns"] = str(int((time.perf_counter() - self._began) * 1e9))
        return json.dumps(shown)

    def finish(self) -> None:
        """Gives the connection back. Only after every engine call has returned."""
        self._pool.release(self._lease)

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with suppress(Exception):
                stream.cancel()

    async def wind_down(self, running: "asyncio.Future[Any] | None") -> None:
        """Ends a statement whose client is gone: kills it, waits for the engine call in flight, frees everything.

        The statement may not be registered in the engine yet when the first kill arrives, so it is repeated.
        """
        try:
            delay = 0.01
            while running is not None and not running.done():
                if self._statement.killable:
                    with suppress(Exception):
                        await self._pool.kill(self.mark)
                await asyncio.wait([running], timeout=delay)
                delay = min(delay * 2, _LONGEST_KILL_DELAY_SECONDS)
            if running is not None and not running.cancelled():
                running.exception()
            self._lease.reusable = False
            await self._pool.submit(self._close_stream)
        finally:
            self.finish()
