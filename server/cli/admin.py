"""`mrm admin`: makes the first administrator, who makes everything else through the API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.console import CommandFailed, run, say
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir, load_settings

if TYPE_CHECKING:
    from server.settings import Settings

commands = typer.Typer(help="Manage administrators, directly in PostgreSQL.", no_args_is_help=True)


@commands.callback()
def admin() -> None:
    """Manage administrators, directly in PostgreSQL."""


@commands.command()
def create(
    email: Annotated[str, typer.Option(help="E-mail to sign in with.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    password_file: Annotated[
        Path | None, typer.Option(help="File whose first line is the password.", dir_okay=False)
    ] = None,
) -> None:
    """Make an administrator who can sign in at once.

    The password comes from the file, from MRM_ADMIN_PASSWORD, or from a prompt; never from an argument.
    """
    run(_create(email, data_dir, password_file))


async def _create(email: str, data_dir: Path, password_file: Path | None) -> None:
    settings = load_settings(data_dir)
    user_id = await create_admin(settings, email, _password(password_file))
    say(f"administrator {email.strip().lower()} created, user id {user_id}")


async def create_admin(settings: Settings, email: str, password: str) -> str:
    """Stores an administrator and returns the user's id.

    Raises:
        CommandFailed: The e-mail or password will not do, or the e-mail is taken.
    """
    from server.accounts import convert
    from server.accounts.passwords import Passwords, check_password
    from server.rpc.auditing import SYSTEM, append_to, recorder
    from server.rpc.call import AuditEntry
    from server.rpc.errors import InvalidRequest
    from storage.errors import Conflict
    from storage.postgres import users
    from storage.postgres.audit import Cause
    from storage.postgres.database import Database

    _check(email)
    try:
        check_password(password, email, "password")
    except InvalidRequest as error:
        raise CommandFailed(f"the password {error.violations[0].description}") from None
    hashing = Passwords(settings.auth.password_memory, settings.auth.password_passes)
    database = await Database.open(settings.postgres.dsn.get_secret_value(), min_size=1, max_size=1)
    try:
        password_hash = await hashing.hash(password)
        async with database.transaction("create_admin") as tx:
            user = await users.create(tx, email=email, password_hash=password_hash, role="admin")
            record = recorder(append_to(tx), SYSTEM, cause=Cause("operator", description="mrm admin create"))
            await record(AuditEntry("create", "user", user.id, None, None, None, convert.recorded_user(user)))
    except Conflict:
        raise CommandFailed(f"there is a user {email} already") from None
    finally:
        await database.close()
    return str(user.id)


def _check(email: str) -> None:
    name, _, domain = email.strip().partition("@")
    if not name or "." not in domain or len(email) > 255 or any(character.isspace() for character in email.strip()):
        raise CommandFailed("--email is not an e-mail address")


def _password(file: Path | None) -> str:
    if file is not None:
        lines = file.read_text(encoding="utf-8").splitlines()
        return lines[0] if lines else ""
    from_environment = os.environ.get("MRM_ADMIN_PASSWORD")
    if from_environment is not None:
        return from_environment
    entered: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return entered
