"""How the commands that call the server reach it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import grpc
import typer

import mrm_client
from server.cli import runfile
from server.cli.console import CommandFailed, run
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir

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
Patience = Annotated[float, typer.Option(min=0, help="Seconds to keep trying while the server is away.")]


@dataclass(frozen=True, slots=True, repr=False)
class Server:
    """The server that a command calls; its fields are the options that say which it is, who calls, and how."""

    target: Target = None
    token: Token = None
    token_file: TokenFile = None
    tls: Tls = None
    ca_file: CaFile = None
    certificate: Certificate = None
    key: Key = None
    server_name: ServerName = ""
    data_dir: DataDir = DEFAULT_DATA_DIR

    @property
    def address(self) -> str:
        """Where it is, host:port."""
        found = None if self.target else runfile.read(self.data_dir)
        return self.target or (found.target if found else DEFAULT_TARGET)

    def open(self, *, watch: bool = False) -> grpc.aio.Channel:
        """Opens a channel for whom the token stands for.

        Args:
            watch: As of `mrm_client.channel`.

        Raises:
            CommandFailed: There is no token, it would travel in the clear, or a certificate cannot be used.
        """
        secret = self.token or _first_line(self.token_file)
        if not secret:
            raise CommandFailed("no token: set MRM_TOKEN, or pass --token-file or --token")
        return self.connect(secret, watch=watch)

    def connect(self, secret: str, *, watch: bool = False) -> grpc.aio.Channel:
        """Opens a channel with a token, or none.

        Raises:
            CommandFailed: The token would travel in the clear, or a certificate cannot be used.
        """
        try:
            return mrm_client.channel(
                self.address,
                secret,
                tls=self.tls,
                root_certificates=self.ca_file,
                client_certificate=self.certificate,
                client_key=self.key,
                server_name=self.server_name,
                watch=watch,
            )
        except ValueError as error:
            raise CommandFailed(str(error)) from None
        except OSError as error:
            raise CommandFailed(f"cannot read {error.filename}: {error.strerror}") from None


def _first_line(file: Path | None) -> str:
    if file is None:
        return ""
    lines = file.read_text(encoding="utf-8").splitlines()
    return lines[0].strip() if lines else ""


def reaching(command: Callable[..., Coroutine[Any, Any, int | None]]) -> Callable[..., None]:
    """Makes a command of a coroutine whose first parameter is the `Server`: for typer it has that one's options."""
    types = get_type_hints(command, include_extras=True) | get_type_hints(Server, include_extras=True)
    options = signature(Server).parameters
    _, *own = signature(command).parameters.values()
    parameters = [each.replace(annotation=types[each.name]) for each in (*own, *options.values())]

    @wraps(command)
    def reached(**given: Any) -> None:
        quiet_grpc()
        server = Server(**{name: given.pop(name) for name in options})
        run(command(server, **given))

    reached.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    reached.__annotations__ = {each.name: each.annotation for each in parameters}
    return reached


async def pages(call: Callable[..., Awaitable[Any]], request: Any, seconds: float) -> AsyncIterator[Any]:
    """Replies of a listing method, page after page to the last.

    Args:
        call: The method.
        request: Of its first page; its page token moves on.
        seconds: Time for each page.
    """
    while True:
        page = await call(request, timeout=seconds)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def quiet_grpc() -> None:
    """Keeps gRPC's own log lines off the terminal, unless asked for."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
