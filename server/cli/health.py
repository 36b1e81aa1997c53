"""`mrm health`: asks a server for its health."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

import mrm_client
from server.cli import remote
from server.cli.console import CommandFailed, run, say
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir

_SECONDS = 4.0


def health(
    service: Annotated[str, typer.Argument(help="Full name of a service; the whole server if left out.")] = "",
    target: remote.Target = None,
    tls: remote.Tls = None,
    ca_file: remote.CaFile = None,
    certificate: remote.Certificate = None,
    key: remote.Key = None,
    server_name: remote.ServerName = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Ask a server whether it serves; exit status 0 if it does.

    Needs no token. In the environment of a server that encrypts (MRM_GRPC__TLS_CERTIFICATE) it trusts exactly that
    server's certificate, so that a container's health check is the same with TLS and without.
    """
    server = remote.Server(
        target=target,
        tls=tls,
        ca_file=ca_file,
        certificate=certificate,
        key=key,
        server_name=server_name,
        data_dir=data_dir,
    )
    run(_health(service, server))


def _own(given: remote.Server) -> remote.Server:
    """What it takes to call the server of this very environment, whatever name its certificate is for."""
    from server.rpc.transport import UnusableCertificate, names_of
    from server.settings import Settings

    settings = Settings().grpc
    if settings.tls_certificate is None:
        return given
    try:
        names = names_of(settings.tls_certificate)
    except UnusableCertificate as error:
        raise CommandFailed(str(error)) from None
    certificate, key = given.certificate, given.key
    if settings.tls_client_ca is not None and certificate is None:
        certificate, key = settings.tls_certificate, settings.tls_key
    name = names[0].replace("*", "health", 1) if names else ""
    return replace(
        given, tls=True, ca_file=settings.tls_certificate, certificate=certificate, key=key, server_name=name
    )


async def _health(service: str, server: remote.Server) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    named = server.tls is not None or server.ca_file is not None or server.server_name
    if not named and mrm_client.is_local(server.address):
        server = _own(server)
    async with server.connect("") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=_SECONDS)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise CommandFailed(f"{service or server.address}: {status}")
    say(status)
