"""How the commands that call the server reach it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
import typer

import mrm_client
from server.cli import runfile
from server.cli.console import CommandFailed

DEFAULT_TARGET = "127.0.0.1:50051"

Target = Annotated[
    str | None,
    typer.Option(envvar="MRM_TARGET", help=f"Server, host:port. Default: the running `mrm up`, or {DEFAULT_TARGET}."),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="MRM_TOKEN",
        show_envvar=True,
        help="Session token or API key. Better in MRM_TOKEN or a file: other users see arguments.",
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option(envvar="MRM_TOKEN_FILE", help="File whose first line is the token.", dir_okay=False)
]
Tls = Annotated[
    bool | None, typer.Option("--tls/--no-tls", help="Encrypt. Default: unless the server is on this machine.")
]
CaFile = Annotated[
    Path | None, typer.Option(envvar="MRM_TLS_CA", help="PEM file of the authorities to trust; implies --tls.")
]
Certificate = Annotated[
    Path | None,
    typer.Option(envvar="MRM_TLS_CERTIFICATE", help="PEM file of the certificate to show; implies --tls."),
]
Key = Annotated[
    Path | None, typer.Option("--key", envvar="MRM_TLS_KEY", help="PEM file of the private key to --certificate.")
]
ServerName = Annotated[
    str,
    typer.Option(envvar="MRM_TLS_SERVER_NAME", help="Name the server's certificate is for, if not the target's own."),
]


@dataclass(frozen=True)
class Encryption:
    """What the options say about TLS; as `mrm_client.channel` takes it."""

    tls: bool | None = None
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    @property
    def names_server(self) -> bool:
        """Whether an option says how to recognise the server."""
        return self.tls is not None or self.ca_file is not None or bool(self.server_name)


def connect(address: str, secret: str, encryption: Encryption, *, watch: bool = False) -> grpc.aio.Channel:
    """Opens a channel.

    Raises:
        CommandFailed: The token would travel in the clear, or a certificate cannot be used.
    """
    try:
        return mrm_client.channel(
            address,
            secret,
            tls=encryption.tls,
            root_certificates=encryption.ca_file,
            client_certificate=encryption.certificate,
            client_key=encryption.key,
            server_name=encryption.server_name,
            watch=watch,
        )
    except ValueError as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        raise CommandFailed(f"cannot read {error.filename}: {error.strerror}") from None


def open_channel(
    target: str | None,
    token: str | None,
    token_file: Path | None,
    encryption: Encryption,
    data_dir: Path,
    *,
    watch: bool = False,
) -> grpc.aio.Channel:
    """Opens a channel to the server the options name.

    Raises:
        CommandFailed: There is no token, it would travel in the clear, or a certificate cannot be used.
    """
    secret = token or _first_line(token_file)
    if not secret:
        raise CommandFailed("no token: set MRM_TOKEN, or pass --token-file or --token")
    found = None if target else runfile.read(data_dir)
    return connect(target or (found.target if found else DEFAULT_TARGET), secret, encryption, watch=watch)


def _first_line(file: Path | None) -> str:
    if file is None:
        return ""
    lines = file.read_text(encoding="utf-8").splitlines()
    return lines[0].strip() if lines else ""


def quiet_grpc() -> None:
    """Keeps gRPC's own log lines off the terminal, unless asked for."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
