"""`mrm serve`: the server alone, on engines that run elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.console import run

Host = Annotated[str | None, typer.Option(help="Address to listen on; overrides MRM_GRPC__HOST.")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for a free one; overrides MRM_GRPC__PORT.")
]


def serve(host: Host = None, port: Port = None) -> None:
    """Serve on the engines that the environment names.

    Needs MRM_POSTGRES__DSN, MRM_CLICKHOUSE__DSN and MRM_REDIS__DURABLE_DSN; every other setting has a default.
    Logs are JSON lines on standard error. SIGTERM or Ctrl-C drains: running calls finish, streams end with what their
    callers need to resume.
    """
    run(_serve(host, port))


async def _serve(host: str | None, port: int | None) -> None:
    from server.app import Application
    from server.rpc import logs
    from server.settings import Settings

    settings = Settings()
    if host is not None:
        settings.grpc.host = host
    if port is not None:
        settings.grpc.port = port
    logs.configure(settings.logging.level)
    application = Application(settings)
    await application.start()
    await application.run_until_signal()
