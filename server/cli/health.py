"""`mrm health`: asks a server for its health."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli import runfile
from server.cli.console import CommandFailed, run, say
from server.cli.remote import DEFAULT_TARGET, CaFile, Target, Tls
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir

_SECONDS = 4.0


def health(
    service: Annotated[str, typer.Argument(help="Full name of a service; the whole server if left out.")] = "",
    target: Target = None,
    tls: Tls = None,
    ca_file: CaFile = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Ask a server whether it serves; exit status 0 if it does.

    Needs no credentials, so that a container's health check can use it.
    """
    found = None if target else runfile.read(data_dir)
    address = target or (found.target if found else DEFAULT_TARGET)
    run(_health(service, address, tls, ca_file.read_bytes() if ca_file else None))


async def _health(service: str, address: str, tls: bool | None, authorities: bytes | None) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    import mrm_client

    encrypted = tls if tls is not None else bool(authorities) or not mrm_client.is_local(address)
    channel = (
        grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authorities))
        if encrypted
        else grpc.aio.insecure_channel(address)
    )
    async with channel:
        request = health_pb2.HealthCheckRequest(service=service)
        reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=_SECONDS)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise CommandFailed(f"{service or address}: {status}")
    say(status)
