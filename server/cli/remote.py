"""How the commands that call the server reach it."""

from __future__ import annotations

import os
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
CaFile = Annotated[Path | None, typer.Option(help="PEM file of the authorities to trust; implies --tls.")]


def open_channel(
    target: str | None,
    token: str | None,
    token_file: Path | None,
    tls: bool | None,
    ca_file: Path | None,
    data_dir: Path,
    *,
    watch: bool = False,
) -> grpc.aio.Channel:
    """Opens a channel to the server the options name.

    Raises:
        CommandFailed: There is no token, or it would travel in the clear.
    """
    secret = token or _first_line(token_file)
    if not secret:
        raise CommandFailed("no token: set MRM_TOKEN, or pass --token-file or --token")
    found = None if target else runfile.read(data_dir)
    address = target or (found.target if found else DEFAULT_TARGET)
    try:
        return mrm_client.channel(address, secret, tls=tls, root_certificates=ca_file, watch=watch)
    except ValueError as error:
        raise CommandFailed(str(error)) from None


def _first_line(file: Path | None) -> str:
    if file is None:
        return ""
    lines = file.read_text(encoding="utf-8").splitlines()
    return lines[0].strip() if lines else ""


def quiet_grpc() -> None:
    """Keeps gRPC's own log lines off the terminal, unless asked for."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
