"""Connections to the chdb engine: a bounded pool, named sessions, and killing what runs."""

import asyncio
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chdb

from server.embedded.clickhouse_http.failures import Failure

_MAX_WAITING = 1000
_MAX_SESSIONS = 64
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
# The engine differs from a server in these: `foo` would mean SELECT foo, and a count read from a body would be
# remembered under its file descriptor, which the next body may get.
_PARITY = {"implicit_select": "0", "use_cache_for_count_from_files": "0"}


class Connection:
    """One chdb connection; remembers its database and settings, so that only differences are applied."""

    def __init__(self, dsn: str) -> None:
        self.chdb: Any = chdb.connect(dsn)
        self.database = "default"
        self.settings: dict[str, str] = {}

    def prepare(self, database: str, settings: Mapping[str, str]) -> None:
        """Makes the next statement run in this database with exactly these settings."""
        if database != self.database:
            self.chdb.query("USE `" + database.replace("\\", "\\\\").replace("`", "\\`") + "`")
            self.database = database
        if settings != self.settings:
            for name in settings:
                if not _IDENTIFIER.fullmatch(name):
                    raise Failure(115, "UNKNOWN_SETTING", f"Unknown setting {name!r}.")
            changes = [f"{k} = {quoted(v)}" for k, v in settings.items() if self.settings.get(k) != v]
            changes += [f"{k} = DEFAULT" for k in self.settings if k not in settings]
            self.chdb.query("SET " + ", ".join(changes))
            self.settings = dict(settings)

    def close(self) -> None:
        """Gives the connection back to the engine."""
        self.chdb.close()


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """The session a request names: created when missing unless `must_exist`, kept `timeout` seconds after use."""

    name: str
    timeout: float
    must_exist: bool


@dataclass(slots=True)
class _Session:
    connection: Connection | None = None
    busy: bool = True
    expires: float = 0.0


@dataclass(slots=True)
class Lease:
    """The right to run one statement; `connection` is opened by the worker thread when it is None."""

    connection: Connection | None
    session: SessionRequest | None = None
    reusable: bool = field(default=True)
    """Set to False when the connection may carry something over to its next user."""


class Pool:
    """At most `size` statements run at once; the others wait in order.

    Args:
        path: The engine's data directory.
        options: Server and query settings of the connection string.
        size: Connections and worker threads.
    """

    def __init__(self, path: Path, options: Mapping[str, str], size: int) -> None:
        self._dsn = f"{path}?" + "&".join(f"{k}={v}" for k, v in {**_PARITY, **options}.items())
        self._root = Connection(self._dsn)
        self._size = size
        self._free: list[Connection] = []
        self._sessions: dict[str, _Session] = {}
        self._slots = asyncio.Semaphore(size)
        self._waiting = 0
        self._workers = ThreadPoolExecutor(size + 1, thread_name_prefix="query")
        self._control = ThreadPoolExecutor(1, thread_name_prefix="control")
        self.version = self._ask("SELECT version()")
        self.time_zone = self._ask("SELECT timezone()")

    def _ask(self, sql: str) -> str:
        return str(self._root.chdb.query(sql, "TSV").bytes().decode().strip())

    def create_database(self, name: str) -> None:
        """Creates the service's database; the engine's own `default` is of a kind a server does not have."""
        self._root.chdb.query(f"CREATE DATABASE IF NOT EXISTS `{name}` ENGINE = Atomic")

    def submit(self, function: Any, *arguments: Any) -> "asyncio.Future[Any]":
        """Runs a blocking engine call on a worker thread."""
        return asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    async def lease(self, session: SessionRequest | None, database: str, settings: Mapping[str, str]) -> Lease:
        """Waits for a turn. Every lease must be given back with `release`.

        Raises:
            Failure: Too many wait already, or the session cannot be used.
        """
        if self._waiting >= _MAX_WAITING:
            raise Failure(202, "TOO_MANY_SIMULTANEOUS_QUERIES", "Too many simultaneous queries.")
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            if session is not None:
                return Lease(self._enter(session), session)
            return Lease(self._pick(database, settings))
        except BaseException:
            self._slots.release()
            raise

    def open(self, lease: Lease) -> Connection:
        """The lease's connection, opened now when it has none; call it on a worker thread."""
        if lease.connection is None:
            lease.connection = Connection(self._dsn)
        return lease.connection

    def release(self, lease: Lease) -> None:
        """Ends a lease; the connection is kept for the next statement when that is safe."""
        connection = lease.connection
        if lease.session is not None:
            connection = self._leave(lease, lease.session)
        elif connection is not None and lease.reusable:
            self._free.append(connection)
            connection = self._free.pop(0) if len(self._free) > 2 * self._size else None
        if connection is not None:
            self._control.submit(connection.close)
        self._slots.release()

    def _pick(self, database: str, settings: Mapping[str, str]) -> Connection | None:
        for index, connection in enumerate(self._free):
            if connection.database == database and connection.settings == settings:
                return self._free.pop(index)
        for index, connection in enumerate(self._free):
            # A read-only connection refuses to change its settings, even back: it serves only its own kind.
            if "readonly" not in connection.settings:
                return self._free.pop(index)
        return None

    def _enter(self, request: SessionRequest) -> Connection | None:
        self.expire_sessions()
        session = self._sessions.get(request.name)
        if session is None:
            if request.must_exist:
                raise Failure(372, "SESSION_NOT_FOUND", "Session not found.")
            if len(self._sessions) >= _MAX_SESSIONS:
                raise Failure(202, "TOO_MANY_SIMULTANEOUS_QUERIES", "Too many open sessions.")
            self._sessions[request.name] = _Session()
            return None
        if session.busy:
            raise Failure(373, "SESSION_IS_LOCKED", "Session is locked by a concurrent client.")
        session.busy = True
        return session.connection

    def _leave(self, lease: Lease, request: SessionRequest) -> Connection | None:
        """Puts a session to rest, or drops it; returns the connection to close."""
        if not lease.reusable or lease.connection is None:
            del self._sessions[request.name]
            return lease.connection
        session = self._sessions[request.name]
        session.connection, session.busy = lease.connection, False
        session.expires = time.monotonic() + request.timeout
        return None

    def expire_sessions(self) -> None:
        """Drops the sessions nobody used for as long as they asked to be kept."""
        now = time.monotonic()
        for name, session in list(self._sessions.items()):
            if not session.busy and session.expires < now:
                del self._sessions[name]
                if session.connection is not None:
                    self._control.submit(session.connection.close)

    async def kill(self, mark: str) -> None:
        """Cancels the statements whose text begins with `mark`."""
        sql = f"KILL QUERY WHERE startsWith(query, {quoted(mark)}) ASYNC"
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._control, lambda: self._root.chdb.query(sql, "TSV"))

    def close(self) -> None:
        """Waits for the workers and closes the engine; blocks."""
        self._workers.shutdown(wait=True)
        self._control.shutdown(wait=True)
        sessions = [session.connection for session in self._sessions.values() if session.connection is not None]
        for connection in [*self._free, *sessions, self._root]:
            connection.close()


def quoted(value: str) -> str:
    """A SQL string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
