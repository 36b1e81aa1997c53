"""`mrm up`: engines, schema and server on this machine, in one command."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.text import Text

from server.cli import runfile
from server.cli.console import CommandFailed, log_to, out, run, say, step
from server.cli.logfiles import keep_rotating
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir, RunFile
from server.cli.serve import Host, Port
from server.cli.worker import beside

if TYPE_CHECKING:
    from server.app import Application
    from server.embedded import EmbeddedEngines
    from server.sandbox.sandbox import Sandbox as StandIn
    from server.settings import Settings


Sandbox = Annotated[
    int | None,
    typer.Option(
        help="Port of a stand-in for the advertising platforms, as of `mrm sandbox`; 0 for a free one.",
        min=0,
        max=65535,
    ),
]


def up(data_dir: DataDir = DEFAULT_DATA_DIR, host: Host = None, port: Port = None, sandbox: Sandbox = None) -> None:
    """Start PostgreSQL, Redis, ClickHouse and the server here, keeping data in a directory.

    Needs nothing installed beside this package. Ctrl-C or SIGTERM drains the server and stops the engines. On a
    terminal the logs go to a file in the data directory, else to standard error.
    """
    run(_up(data_dir, host, port, sandbox))


async def _up(data_dir: Path, host: str | None, port: int | None, sandbox: int | None) -> None:
    from server.settings import Settings

    settings = Settings()
    if host is not None:
        settings.grpc.host = host
    if port is not None:
        settings.grpc.port = port
    async with AsyncExitStack() as stack:
        if out.is_terminal:
            stack.enter_context(log_to(data_dir / "logs" / "server.log"))
        if sandbox is not None:
            stand_in = await _sandbox(stack, data_dir, sandbox)
            settings.platforms = stand_in.settings()
            say(f"the platforms are a sandbox at {stand_in.url}")
        async with everything(settings, data_dir) as (engines, application):
            _greet(data_dir, _target(settings, application), settings.grpc.tls_certificate is not None)
            if out.is_terminal:
                shown = _Status(engines, _target(settings, application))
                stack.enter_context(
                    Live(
                        get_renderable=shown.line,
                        console=out,
                        refresh_per_second=2,
                        transient=True,
                        redirect_stdout=False,
                        redirect_stderr=False,
                    )
                )
            await application.run_until_signal()
    say("stopped")


async def _sandbox(stack: AsyncExitStack, data_dir: Path, port: int) -> StandIn:
    """Stands in for the platforms until the stack closes; what it knows stays in the data directory."""
    from server.sandbox.sandbox import Sandbox
    from server.sandbox.serving import serving

    try:
        return await stack.enter_async_context(serving(Sandbox(path=data_dir / "sandbox.json"), port=port))
    except OSError as error:
        raise CommandFailed(f"the sandbox cannot listen on port {port}: {error.strerror}") from None


@asynccontextmanager
async def everything(settings: Settings, data_dir: Path) -> AsyncIterator[tuple[EmbeddedEngines, Application]]:
    """Runs engines and server for the length of a block, and says so step by step.

    The engines stop last, whatever happens; ``run.json`` names them meanwhile.
    """
    from server.app import Application
    from server.embedded import EmbeddedEngines
    from server.rpc import logs
    from server.sealing import new_entry, prepend
    from server.stores import migrate

    logs.configure(settings.logging.level)
    engines = EmbeddedEngines(data_dir, log=logs.get("engines").info)
    try:
        async with step("PostgreSQL, Redis and ClickHouse started"):
            connections = await engines.start()
        runfile.point_at(settings, data_dir, connections)
        if settings.secrets.keyring_file == data_dir / "keyring" and not settings.secrets.keyring_file.exists():
            prepend(settings.secrets.keyring_file, new_entry("first"))
        if settings.backup.keyring_file == data_dir / "backup-keyring" and not settings.backup.keyring_file.exists():
            prepend(settings.backup.keyring_file, new_entry("first"))
        async with step("schemas up to date"):
            await migrate(settings)
        if settings.monitoring.port is None:
            # For `mrm top`; nobody but this machine can ask.
            settings.monitoring.host, settings.monitoring.port = "127.0.0.1", 0
        application = Application(settings)
        async with step("server started"):
            await application.start()
        try:
            metrics_url = f"http://127.0.0.1:{application.monitoring_port}/metrics"
            RunFile(os.getpid(), _target(settings, application), metrics_url, **vars(connections)).write(data_dir)
            rotation = asyncio.create_task(keep_rotating(data_dir / "logs", settings.retention.log_days))
            try:
                async with beside(settings):
                    yield engines, application
            finally:
                rotation.cancel()
        finally:
            runfile.remove(data_dir)
            await application.stop()
    finally:
        await engines.stop()


def _target(settings: Settings, application: Application) -> str:
    host = "127.0.0.1" if settings.grpc.host in ("0.0.0.0", "[::]") else settings.grpc.host  # noqa: S104
    return f"{host}:{application.port}"


def _greet(data_dir: Path, target: str, encrypted: bool) -> None:
    plain = "" if encrypted else "-plaintext "
    say(f"[bold]serving on {target}[/], data in {data_dir}")
    say("  first administrator:  mrm admin create --email you@example.com", style="dim")
    say(f"  what there is to call: grpcurl {plain}{target} list", style="dim")
    say("  Ctrl-C stops everything", style="dim")


class _Status:
    """The line at the bottom of the terminal."""

    def __init__(self, engines: EmbeddedEngines, target: str) -> None:
        self._engines, self._target = engines, target
        self._started = time.monotonic()

    def line(self) -> Text:
        """The state of everything, now."""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        text = Text.assemble(
            (" ● ", "green"), (self._target, "bold"), f"  up {minutes // 60}:{minutes % 60:02}:{seconds:02}"
        )
        for name, pid, restarts, state in self._engines.status():
            text.append("   ● ", "green" if state == "running" else "red")
            text.append(f"{name} {'' if state == 'running' else state + ' '}")
            text.append(f"pid {pid}" if pid else "", "dim")
            text.append(f" restarted {restarts}x" if restarts else "", "yellow")
        return text
