"""ClickHouse's HTTP interface over the engine pool."""

import asyncio
import base64
import binascii
import hmac
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from server.embedded.clickhouse_http.execution import STREAMABLE, Execution, Statement
from server.embedded.clickhouse_http.failures import Failure, describe, status_of
from server.embedded.clickhouse_http.payload import MAX_BODY_BYTES, decompress
from server.embedded.clickhouse_http.pool import Pool, SessionRequest
from server.embedded.clickhouse_http.statements import (
    ANSWERING,
    HARMLESS,
    READING,
    Insert,
    NeedMore,
    kind_of,
    leading_word,
    output_format,
    read_insert,
)

# Request parameters that are about the request and not settings of the query.
_NOT_SETTINGS = frozenset(
    [
        "query",
        "database",
        "default_format",
        "session_id",
        "session_timeout",
        "session_check",
        "query_id",
        "quota_key",
        "compress",
        "decompress",
        "buffer_size",
        "wait_end_of_query",
        "client_protocol_version",
        "role",
        "user",
        "password",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "enable_http_compression",
        "cancel_http_readonly_queries_on_client_close",
        "close_session",
    ]
)
_DEFAULT_SESSION_SECONDS = 60.0
_LONGEST_SESSION_SECONDS = 3600.0
# A reader this slow is treated as gone; it holds one of few connections.
_WRITE_TIMEOUT_SECONDS = 300.0
_SESSION_SWEEP_SECONDS = 5.0
# Enough for any statement; data behind it is not copied to be read as SQL.
_HEAD_BYTES = 64 * 1024
_STATE_KINDS = frozenset({"set", "use"})


@dataclass(slots=True)
class _Body:
    """A request body as it came off the wire; joined only when somebody needs it whole."""

    chunks: list[bytes]

    def whole(self) -> bytes:
        if len(self.chunks) != 1:
            self.chunks = [b"".join(self.chunks)]
        return self.chunks[0]

    def head(self) -> bytes:
        return self.chunks[0][:_HEAD_BYTES] if self.chunks else b""

    def after(self, offset: int) -> list[bytes | memoryview]:
        rest: list[bytes | memoryview] = list(self.chunks)
        rest[:1] = [memoryview(self.chunks[0])[offset:]] if self.chunks else []
        return rest


class ClickHouseHttp:
    """Answers `/` and `/ping`.

    Args:
        pool: The engine.
        user: The one user.
        password: Its password; must not be empty.
    """

    def __init__(self, pool: Pool, user: str, password: str) -> None:
        if not user or not password:
            raise ValueError("user and password are required")
        self._pool = pool
        self._user = user.encode()
        self._password = password.encode()
        self._windings: set[asyncio.Task[None]] = set()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/ping", self._ping)
        app.router.add_route("*", "/", self._answer)
        app.cleanup_ctx.append(self._housekeeping)
        return app

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _housekeeping(self, app: web.Application) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SESSION_SWEEP_SECONDS)
                self._pool.expire_sessions()

        sweeper = asyncio.create_task(sweep())
        yield
        sweeper.cancel()
        # Whatever still runs lost its client when the server closed.
        while self._windings:
            await asyncio.wait(self._windings)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        arguments = dict(request.query)
        headers = {
            "X-ClickHouse-Query-Id": arguments.get("query_id") or str(uuid.uuid4()),
            "X-ClickHouse-Timezone": self._pool.time_zone,
            "X-ClickHouse-Server-Display-Name": "embedded",
        }
        try:
            self._authenticate(request, arguments)
            if request.method in ("GET", "HEAD") and not arguments.get("query"):
                return web.Response(text="Ok.\n", headers=headers)
            if request.method not in ("GET", "POST", "HEAD"):
                raise Failure(501, "CANNOT_PARSE_INPUT", f"Method {request.method} is not supported.")
            body = await self._read(request, arguments)
            statement = self._statement(request.method, arguments, request.headers, body)
            return await self._run(request, statement, arguments, headers)
        except (Failure, RuntimeError, web.HTTPRequestEntityTooLarge, UnicodeDecodeError) as error:
            return self._error(error, headers)

    def _authenticate(self, request: web.Request, arguments: Mapping[str, str]) -> None:
        user = request.headers.get("X-ClickHouse-User") or arguments.get("user") or "default"
        password = request.headers.get("X-ClickHouse-Key") or arguments.get("password") or ""
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            with suppress(binascii.Error, UnicodeDecodeError):
                user, _, password = base64.b64decode(credentials).decode().partition(":")
        right_user = hmac.compare_digest(user.encode(errors="replace"), self._user)
        right_password = hmac.compare_digest(password.encode(errors="replace"), self._password)
        if not (right_user and right_password):
            raise Failure(
                516,
                "AUTHENTICATION_FAILED",
                f"{user}: Authentication failed: password is incorrect, or there is no user with such name.",
            )

    def _error(self, error: BaseException, headers: dict[str, str]) -> web.Response:
        if isinstance(error, web.HTTPRequestEntityTooLarge):
            error = Failure(184, "QUERY_IS_TOO_LARGE", "The body is larger than 1 GiB.")
        code, text = describe(error, self._pool.version)
        return web.Response(
            status=status_of(code),
            body=(text + "\n").encode(errors="replace"),
            headers={**headers, "X-ClickHouse-Exception-Code": str(code)},
            content_type="text/plain",
            charset="UTF-8",
        )

    async def _read(self, request: web.Request, arguments: dict[str, str]) -> _Body:
        """Reads the body; form fields are added to the arguments."""
        if request.content_type == "multipart/form-data":
            form = await request.post()
            for name, value in form.items():
                if not isinstance(value, str):
                    raise Failure(48, "NOT_IMPLEMENTED", "External tables are not supported by the embedded engine.")
                arguments[name] = value
            return _Body([])
        if arguments.get("decompress", "0") not in ("", "0"):
            raise Failure(48, "NOT_IMPLEMENTED", "Use Content-Encoding instead of decompress=1.")
        chunks, size = [], 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, size)
            chunks.append(chunk)
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        if encoding and encoding != "identity" and chunks:
            return _Body([await self._pool.submit(decompress, encoding, b"".join(chunks))])
        return _Body(chunks)

    def _statement(
        self, method: str, arguments: Mapping[str, str], headers: Mapping[str, str], body: _Body
    ) -> Statement:
        query = arguments.get("query", "").encode()
        kind = kind_of(query) or leading_word(body.head()) or kind_of(body.whole())
        if not kind:
            found = "Syntax error: no statement at the beginning" if (query + body.head()).strip() else "Empty query"
            raise Failure(62, "SYNTAX_ERROR", f"{found}.")
        if method != "POST" and kind not in HARMLESS:
            raise Failure(164, "READONLY", "Cannot execute query in readonly mode: use POST to change anything.")
        insert, data = _split(query, body) if kind == "insert" else (None, ())
        sql = b"" if insert else _joined(query, body)
        if kind == "with":
            kind = kind_of(sql)
        named = output_format(sql) if kind in ANSWERING else None
        fallback = arguments.get("default_format") or headers.get("X-ClickHouse-Format") or "TabSeparated"
        format_ = named or fallback
        buffered = arguments.get("wait_end_of_query", "0") not in ("", "0")
        return Statement(
            sql=sql,
            format=format_,
            database=arguments.get("database") or headers.get("X-ClickHouse-Database") or "default",
            settings={k: v for k, v in arguments.items() if k not in _NOT_SETTINGS and not k.startswith("param_")},
            parameters={k[6:]: v for k, v in arguments.items() if k.startswith("param_")},
            stream=kind in READING and format_ in STREAMABLE and not buffered,
            killable=kind in ANSWERING or kind == "insert",
            insert=insert,
            data=data,
        )

    @asynccontextmanager
    async def _execution(self, statement: Statement, arguments: Mapping[str, str]) -> AsyncIterator["_Guard"]:
        """Leases a connection for one statement; however the block is left, nothing leaks."""
        lease = await self._pool.lease(_session(arguments), statement.database, statement.settings)
        if lease.session is None and (
            leading_word(statement.sql) in _STATE_KINDS or b"temporary" in statement.sql[:200].lower()
        ):
            # State set outside a session ends with its request.
            lease.reusable = False
        guard = _Guard(Execution(self._pool, lease, statement), self._pool)
        try:
            yield guard
        finally:
            if guard.running is None and not guard.execution.streaming:
                guard.execution.finish()
            else:
                winding = asyncio.create_task(guard.execution.wind_down(guard.running))
                self._windings.add(winding)
                winding.add_done_callback(self._windings.discard)

    async def _run(
        self, request: web.Request, statement: Statement, arguments: Mapping[str, str], headers: dict[str, str]
    ) -> web.StreamResponse:
        async with self._execution(statement, arguments) as guard:
            out = await guard.call(guard.execution.begin)
            headers["X-ClickHouse-Summary"] = guard.execution.summary()
            headers["X-ClickHouse-Format"] = statement.format
            if guard.execution.streaming:
                return await self._stream(request, guard, out, headers)
        # The connection is free again before the answer is on its way.
        return web.Response(body=out, headers=headers, content_type="application/octet-stream")

    async def _stream(
        self, request: web.Request, guard: "_Guard", out: bytes, headers: dict[str, str]
    ) -> web.StreamResponse:
        tag = uuid.uuid4().hex[:16]
        response = web.StreamResponse(headers={**headers, "X-ClickHouse-Exception-Tag": tag})
        response.content_type = "application/octet-stream"
        response.enable_chunked_encoding()
        await response.prepare(request)
        while True:
            async with asyncio.timeout(_WRITE_TIMEOUT_SECONDS):
                await response.write(out)
            if not guard.execution.streaming:
                break
            try:
                out = await guard.call(guard.execution.fetch)
            except RuntimeError as error:
                await response.write(self._late_error(error, tag))
                break
        await response.write_eof()
        return response

    def _late_error(self, error: BaseException, tag: str) -> bytes:
        """An error after the headers went out, in the framing ClickHouse uses for it."""
        message = describe(error, self._pool.version)[1].encode() + b"\n"
        mark = tag.encode()
        parts = (b"__exception__", mark, message + b"%d " % len(message) + mark, b"__exception__", b"")
        return b"\r\n" + b"\r\n".join(parts)


class _Guard:
    """Runs the engine calls of one execution and knows whether one is in flight when the client goes away."""

    def __init__(self, execution: Execution, pool: Pool) -> None:
        self.execution = execution
        self.running: asyncio.Future[Any] | None = None
        self._pool = pool

    async def call(self, function: Any) -> bytes:
        self.running = self._pool.submit(function)
        try:
            result: bytes = await asyncio.shield(self.running)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self.running = None
            raise
        self.running = None
        return result


def _joined(query: bytes, body: _Body) -> bytes:
    text = body.whole()
    return query + b"\n" + text if query and text else query or text


def _split(query: bytes, body: _Body) -> tuple[Insert | None, Sequence[bytes | memoryview]]:
    """Separates an INSERT from its data, looking no further into the body than needed."""
    if query:
        insert = _insert_of(query)
        if insert is not None:
            return insert, [query[insert.data_start :], *body.chunks]
        text = _joined(query, body)
        insert = _insert_of(text)
        return insert, [memoryview(text)[insert.data_start :]] if insert else ()
    head = body.head()
    insert = _insert_of(head)
    # At the very end of what was looked at, a format's name may be cut in two.
    if insert is None or insert.data_start == len(head):
        insert = _insert_of(body.whole())
    return insert, body.after(insert.data_start) if insert else ()


def _insert_of(text: bytes) -> Insert | None:
    try:
        return read_insert(text)
    except NeedMore:
        return None


def _session(arguments: Mapping[str, str]) -> SessionRequest | None:
    name = arguments.get("session_id")
    if not name:
        return None
    try:
        timeout = float(arguments.get("session_timeout") or _DEFAULT_SESSION_SECONDS)
    except ValueError:
        timeout = -1.0
    if not 0 < timeout <= _LONGEST_SESSION_SECONDS:
        raise Failure(374, "INVALID_SESSION_TIMEOUT", "session_timeout must be between 1 and 3600 seconds.")
    return SessionRequest(name, timeout, arguments.get("session_check", "0") == "1")
