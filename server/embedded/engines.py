"""The supervisor: starts the embedded engines, keeps them running, stops them."""

import asyncio
import logging
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from server.embedded.clickhouse import ClickHouseEngine
from server.embedded.directory import DataDirectory, port_is_free
from server.embedded.engine import Engine
from server.embedded.errors import EngineError
from server.embedded.milvus import MilvusEngine
from server.embedded.postgres import PostgresEngine
from server.embedded.process import Child, child_environment, describe_exit, launcher_command, reap_orphan
from server.embedded.valkey import ValkeyEngine

ENGINES: tuple[type[Engine], ...] = (PostgresEngine, ValkeyEngine, ClickHouseEngine, MilvusEngine)
"""Every engine, in the order they are listed and the reverse of the order they are stopped."""

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 10.0
# An engine that ran this long was healthy: its next crash starts the back-off anew.
_HEALTHY_SECONDS = 60.0
_READY_POLL_SECONDS = 0.02
_PORT_ATTEMPTS = 3
_FAILED_START_GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Connections:
    """Where the engines answer. DSNs carry passwords; the repr does not."""

    postgres_dsn: str
    redis_dsn: str
    clickhouse_dsn: str
    milvus_dsn: str

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={_masked(value)!r}" for name, value in vars(self).items())
        return f"Connections({shown})"


class EngineStatus(NamedTuple):
    """One engine as shown to an operator; `state` is starting, running, restarting or stopped."""

    name: str
    pid: int | None
    restarts: int
    state: str


class EmbeddedEngines:
    """Runs PostgreSQL, Valkey, ClickHouse and Milvus as child processes in one data directory.

    Everything listens on loopback only. Data, passwords and ports survive in the directory; a crashed engine is
    started again on its port, with growing delays, until `stop`. Use it from one event loop.

    Args:
        data_dir: The directory; created when missing, used by one supervisor at a time.
        behind: Whether engines that are not awaited start too, once the others answer; `begin` starts one otherwise.
        log: Called with an event name and fields (`engine=`, `reason=` ...) when an engine starts, crashes or stops;
            by default the standard `logging` package.
    """

    def __init__(self, data_dir: Path, *, behind: bool = True, log: Callable[..., Any] | None = None) -> None:
        self._directory = DataDirectory(data_dir)
        self._behind = behind
        self._log = log or _log_standard
        self._running: list[_Supervised] = []

    async def start(self) -> Connections:
        """Starts the engines and returns once all that are awaited answer.

        Raises:
            EngineError: One of them cannot start; the others have been stopped again.
        """
        if self._running:
            raise EngineError("the engines are already started")
        try:
            await _in_thread(self._open)
            self._running = [_Supervised(engine(self._directory), self._log) for engine in ENGINES]
            await _all(supervised.start() for supervised in self._running if supervised.engine.awaited)
            for supervised in self._running:
                if self._behind and not supervised.engine.awaited:
                    await _in_thread(supervised.engine.prepare)
                    supervised.start_behind()
        except BaseException:
            await asyncio.shield(self.stop())
            raise
        return Connections(**{s.engine.connection_field: s.engine.dsn() for s in self._running})

    async def begin(self, name: str) -> None:
        """Returns once an engine that is not awaited answers; starts it if nobody has.

        Raises:
            EngineError: It cannot start.
        """
        supervised = next(s for s in self._running if s.engine.name == name)
        if supervised.state == "stopped":
            await supervised.start()
        await supervised.answers.wait()

    async def stop(self) -> None:
        """Stops the engines in reverse order and gives the directory up; safe to call at any time, and twice."""
        running, self._running = self._running, []
        try:
            for supervised in reversed(running):
                await supervised.stop()
        finally:
            for supervised in running:
                supervised.kill()
            self._directory.close()

    def pid(self, name: str) -> int | None:
        """Process id of a running engine (`postgres`, `valkey`, `clickhouse`, `milvus`), None while it is down."""
        return next((s.pid for s in self._running if s.engine.name == name), None)

    def status(self) -> list[EngineStatus]:
        """The engines as they are now."""
        return [EngineStatus(s.engine.name, s.pid, s.restarts, s.state) for s in self._running]

    def _open(self) -> None:
        self._directory.open()
        signals = {engine.name: engine.stop_signal for engine in ENGINES}
        for pid_file in sorted((self._directory.path / "run").glob("*.pid")):
            stop_signal = signals.get(pid_file.stem, signal.SIGTERM)
            if reap_orphan(pid_file, self._directory.path, stop_signal):
                self._log("engine_orphan_ended", engine=pid_file.stem)


class _Supervised:
    """One engine and the task that keeps it running."""

    def __init__(self, engine: Engine, log: Callable[..., Any]) -> None:
        self.engine = engine
        self.restarts = 0
        self.state = "stopped"
        self.answers = asyncio.Event()
        self._log = log
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        if self._child is None or self._child.exit_code is not None:
            return None
        return self._child.pid

    async def start(self) -> None:
        self.state = "starting"
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            await _in_thread(self.engine.prepare)
            try:
                child = await self._launch()
                break
            except EngineError:
                # Somebody may have taken the port between our look and the engine's bind.
                if attempt == _PORT_ATTEMPTS or port_is_free(self.engine.port):
                    raise
                self.engine.port = self.engine.directory.port(self.engine.name)
        self._keeper = asyncio.create_task(self._keep(child), name=f"keep-{self.engine.name}")

    def start_behind(self) -> None:
        """Starts the prepared engine without anybody waiting for it; tried again until it runs."""
        self.state = "starting"
        self._keeper = asyncio.create_task(self._begin(), name=f"keep-{self.engine.name}")

    async def _begin(self) -> None:
        child, failures = await self._restart(1)
        await self._keep(child, failures)

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._child is not None:
            code = await self._child.stop(self.engine.stop_signal, self.engine.stop_grace_seconds)
            self._log("engine_stopped", engine=self.engine.name, exit_code=code)
            self.engine.directory.pid_file(self.engine.name).unlink(missing_ok=True)
        self.state = "stopped"

    def kill(self) -> None:
        """Ends the process at once; for a stop that was interrupted."""
        if self._child is not None:
            self._child.kill()

    async def _launch(self) -> Child:
        """One start: spawn, then wait until the engine answers. Nothing is left running on failure."""
        engine = self.engine
        log_file = engine.directory.log_file(engine.name)
        command = launcher_command(
            engine.command(), identity=engine.identity, directory=engine.path, death_signal=engine.stop_signal
        )
        self._child = child = Child(command, child_environment(engine.environment), log_file)
        engine.directory.pid_file(engine.name).write_text(f"{child.pid}\n")
        try:
            await self._until_ready(child, log_file)
        except BaseException:
            await asyncio.shield(child.stop(engine.stop_signal, _FAILED_START_GRACE_SECONDS))
            raise
        self.state = "running"
        self.answers.set()
        self._log("engine_started", engine=engine.name, pid=child.pid, port=engine.port)
        return child

    async def _until_ready(self, child: Child, log_file: Path) -> None:
        name, limit = self.engine.name, self.engine.start_timeout_seconds
        try:
            async with asyncio.timeout(limit):
                while child.exit_code is None:
                    if await self.engine.ready():
                        return
                    await asyncio.sleep(_READY_POLL_SECONDS)
        except TimeoutError:
            raise EngineError(f"{name} did not answer within {limit:.0f} s: see {log_file}") from None
        raise EngineError(f"{name} did not start, {describe_exit(child.exit_code)}: see {log_file}")

    async def _keep(self, child: Child, failures: int = 0) -> None:
        """Waits for a crash and starts the engine again, for as long as it takes."""
        while True:
            since = time.monotonic()
            code = await child.wait()
            failures = 1 if time.monotonic() - since > _HEALTHY_SECONDS else failures + 1
            self.state = "restarting"
            self.restarts += 1
            self._log("engine_crashed", engine=self.engine.name, reason=describe_exit(code), restarts=self.restarts)
            child, failures = await self._restart(failures)

    async def _restart(self, failures: int) -> tuple[Child, int]:
        while True:
            await asyncio.sleep(min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** (failures - 1)))
            try:
                return await self._launch(), failures
            except Exception as error:
                # Whatever it was, the engine must be tried again; only our own messages are known to be presentable.
                failures += 1
                reason = str(error) if isinstance(error, EngineError) else type(error).__name__
                self._log("engine_restart_failed", engine=self.engine.name, reason=reason)


async def _in_thread(function: Callable[[], None]) -> None:
    """Runs a blocking function; when cancelled, waits for its end first, so that nobody finds it half done."""
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


async def _all(starts: Any) -> None:
    """Waits for every start, cancelling the rest at the first failure, and raises that failure itself."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _masked(dsn: str) -> str:
    return re.sub(r"//([^:/@]*):[^@]*@", r"//\1:***@", dsn)


def _log_standard(event: str, **fields: Any) -> None:
    logging.getLogger(__name__).info("%s %s", event, " ".join(f"{k}={v}" for k, v in fields.items()))
