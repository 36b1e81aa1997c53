"""`mrm mail`: a mail server for development, which keeps what it is given and delivers nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.console import run, say

if TYPE_CHECKING:
    from server.embedded.smtp_sink import Kept, SmtpSink
    from server.settings import Settings

commands = typer.Typer(help="A mail server for development.", no_args_is_help=True)


@commands.callback()
def mail() -> None:
    """Keeps its command a sub-command, however many there are."""


@commands.command()
def sink(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")] = 1025,
    directory: Annotated[Path, typer.Option(file_okay=False, help="Where messages are kept, as .eml files.")] = Path(
        "mail"
    ),
) -> None:
    """Take e-mails over SMTP, keep each as a file, and list them as they come. Ctrl-C ends it.

    Have the worker use it with MRM_EMAIL__HOST=127.0.0.1 MRM_EMAIL__PORT=1025 MRM_EMAIL__SECURITY=none. Addresses with
    a tag make it misbehave: a+450@... is refused for now, a+550@... for good, a+slow@... never answered.
    """
    run(_sink(port, directory))


async def _sink(port: int, directory: Path) -> None:
    from server.embedded.smtp_sink import SmtpSink

    async with SmtpSink(directory, on_mail=_tell, port=port).running() as mails:
        say(f"taking mail on 127.0.0.1:{mails.port}, kept in {directory}", markup=False)
        await asyncio.Event().wait()


def _tell(mail: Kept) -> None:
    where = "" if mail.file is None else f"  {mail.file}"
    say(f"{', '.join(mail.recipients)}: {mail.message['Subject']}{where}", markup=False)


@asynccontextmanager
async def beside(settings: Settings, directory: Path) -> AsyncIterator[SmtpSink]:
    """A mail sink for the length of a block, which these settings then send to; for demonstrations.

    Args:
        settings: Of processes that are started within the block.
        directory: Where messages are kept.
    """
    from server.embedded.smtp_sink import SmtpSink

    async with SmtpSink(directory).running() as mails:
        settings.email.host, settings.email.port, settings.email.security = mails.host, mails.port, "none"
        yield mails
