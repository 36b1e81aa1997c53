"""`mrm serve --workers N`: several server processes on one port, and the small parent that keeps them running.

Workers are started anew, never forked: gRPC does not survive a fork. The parent serves nothing itself; it holds the
port by a socket that is bound and never listens, so that "any free port" is one port for all of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from server.cli.console import CommandFailed, run

if TYPE_CHECKING:
    import structlog

    from server.app import Application
    from server.settings import GrpcSettings, Settings

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0
# One that ran for this long did not fail at starting: the pauses begin anew.
_STEADY_SECONDS = 30.0
# Beyond what draining may take by the settings: closing stores, ending the interpreter.
_CLOSE_SECONDS = 15.0
_READY = b"ready\n"


class Workers:
    """Runs server processes until told to stop.

    Args:
        settings: Settings of each of them.
        count: How many.
        log: Tells of starts and deaths.
    """

    def __init__(self, settings: Settings, count: int, log: structlog.typing.FilteringBoundLogger) -> None:
        self._settings = settings
        self._count = count
        self._log = log
        self._port = 0
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._killed = False

    async def run(self) -> int:
        """Runs them until SIGTERM or SIGINT, which drains all; a second signal kills them.

        Returns:
            The exit code: 0 when all drained, 1 when one could not start (it said why) or had to be killed.

        Raises:
            CommandFailed: The port is taken.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        with reserve(self._settings.grpc) as port:
            self._port = port.getsockname()[1]
            try:
                # What keeps one from starting keeps all of them: one tells.
                started = await self._start_all(range(1, 2)) and await self._start_all(range(2, self._count + 1))
                if started and not self._stopping.is_set():
                    self._log.info("workers_serving", port=self._port, workers=self._count)
                    await self._keep_running()
            finally:
                told = self._stopping.is_set()
                await self._drain()
        return 1 if self._killed or not told else 0

    async def _start_all(self, numbers: range) -> bool:
        return all(await asyncio.gather(*(self._start(number) for number in numbers)))

    async def _start(self, number: int) -> bool:
        """Starts a worker; returns whether it serves."""
        monitoring = self._settings.monitoring.port
        # Each has its own; a free one each if any will do.
        answering = {} if not monitoring else {"MRM_MONITORING__PORT": str(monitoring + number - 1)}
        worker = self._running[number] = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "server.cli.workers",
            str(number),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "MRM_GRPC__HOST": self._settings.grpc.host,
                "MRM_GRPC__PORT": str(self._port),
                "MRM_GRPC__REUSE_PORT": "true",
                **answering,
            },
            # Ctrl-C goes to the whole group of a terminal; workers hear of it from here.
            start_new_session=True,
        )
        assert worker.stdout is not None
        if self._stopping.is_set():
            _signal(worker, signal.SIGTERM)
        ready = await worker.stdout.readline() == _READY
        if ready:
            self._log.info("worker_serving", worker=number, pid=worker.pid)
        return ready

    async def _keep_running(self) -> None:
        keepers = [asyncio.create_task(self._keep(number)) for number in range(1, self._count + 1)]
        try:
            await self._stopping.wait()
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    async def _keep(self, number: int) -> None:
        """Starts a worker again whenever it ends, with growing pauses if that does not help."""
        pause, since = _FIRST_PAUSE_SECONDS, time.monotonic()
        while True:
            code = await self._running[number].wait()
            if time.monotonic() - since >= _STEADY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            self._log.error("worker_ended", worker=number, code=code, pause=pause)
            await asyncio.sleep(pause)
            pause, since = min(2 * pause, _LONGEST_PAUSE_SECONDS), time.monotonic()
            try:
                await self._start(number)
            except OSError as error:
                self._log.error("worker_not_started", worker=number, exc_info=error)

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._killed = True
            for worker in self._running.values():
                _signal(worker, signal.SIGKILL)
            return
        self._stopping.set()
        for worker in self._running.values():
            _signal(worker, signal.SIGTERM)

    async def _drain(self) -> None:
        """Waits until all have ended; kills what does not end."""
        grpc = self._settings.grpc
        if not self._stopping.is_set():
            self._stop()
        try:
            async with asyncio.timeout(grpc.drain_delay + 2 * grpc.drain_seconds + _CLOSE_SECONDS):
                await asyncio.gather(*(worker.wait() for worker in self._running.values()))
        except TimeoutError:
            self._killed = True
            for worker in self._running.values():
                _signal(worker, signal.SIGKILL)
            await asyncio.gather(*(worker.wait() for worker in self._running.values()))


def reserve(settings: GrpcSettings) -> socket.socket:
    """Binds the port so that workers may listen on it, and nobody else.

    Raises:
        CommandFailed: It is taken, also by workers of another `mrm serve`, unless the settings share it on purpose.
    """
    failed = CommandFailed(f"cannot listen on {settings.host}:{settings.port}: is another server running there?")
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(
            settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        if settings.port and not settings.reuse_port:
            # Workers of another parent would share their port with us without a word; to this socket they do not.
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        reserved = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        raise failed from None
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    except OSError:
        reserved.close()
        raise failed from None
    return reserved


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


async def serve_as_worker(number: int) -> None:
    """Serves as one of several: says on standard output when it does, and drains when its parent is gone."""
    from server.app import Application
    from server.rpc import logs
    from server.settings import Settings

    settings = Settings()
    logs.configure(settings.logging.level, worker=number)
    application = Application(settings)
    await application.start()
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    await _until_orphaned_or_told(application)


async def _until_orphaned_or_told(application: Application) -> None:
    """Serves until a signal; the end of standard input, which only the parent holds, counts as one."""
    loop = asyncio.get_running_loop()

    def orphaned() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(0, orphaned)
    try:
        await application.run_until_signal()
    finally:
        loop.remove_reader(0)


if __name__ == "__main__":
    try:
        run(serve_as_worker(int(sys.argv[1])))
    except typer.Exit as end:
        sys.exit(end.exit_code)
