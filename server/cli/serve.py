"""`mrm serve`: the server alone, on engines that run elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.console import run

Host = Annotated[str | None, typer.Option(help="Address to listen on; overrides MRM_GRPC__HOST.")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for a free one; overrides MRM_GRPC__PORT.")
]


WorkerCount = Annotated[
    int, typer.Option(min=1, max=256, help="Server processes that share the port, one event loop each.")
]


def serve(host: Host = None, port: Port = None, workers: WorkerCount = 1) -> None:
    """Serve on the engines that the environment names.

    Needs MRM_POSTGRES__DSN, MRM_CLICKHOUSE__DSN and MRM_REDIS__DURABLE_DSN; every other setting has a default.
    Logs are JSON lines on standard error. SIGTERM or Ctrl-C drains: running calls finish, streams end with what their
    callers need to resume. Of several workers one that dies is started again; the lines of each carry its number.
    """
    run(_serve(host, port, workers))


async def _serve(host: str | None, port: int | None, workers: int) -> int:
    from server.app import Application
    from server.cli.workers import Workers
    from server.rpc import logs
    from server.settings import Settings

    settings = Settings()
    if host is not None:
        settings.grpc.host = host
    if port is not None:
        settings.grpc.port = port
    logs.configure(settings.logging.level)
    if workers > 1:
        return await Workers(settings, workers, logs.get("workers")).run()
    application = Application(settings)
    await application.start()
    await application.run_until_signal()
    return 0
