"""`mrm sessions`: ends sessions by PostgreSQL's word, whatever the session store says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from server.cli.console import CommandFailed, run, say
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir, load_settings

if TYPE_CHECKING:
    from server.settings import Settings

commands = typer.Typer(help="End sessions, directly in PostgreSQL.", no_args_is_help=True)


@commands.callback()
def sessions() -> None:
    """End sessions, directly in PostgreSQL."""


@commands.command("revoke-all")
def revoke_all(
    email: Annotated[str, typer.Option("--user", help="Only the sessions of the user with this e-mail.")] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """End every session, of everybody or of one user.

    What has ended stays ended without this, also after Redis was restored from a backup; run it when the sessions in
    Redis cannot be trusted. Running servers refuse them and end their streams within a second. Redis is not asked, it
    may be down.
    """
    run(_revoke_all(data_dir, email))


async def _revoke_all(data_dir: Path, email: str) -> None:
    whose = await end_sessions(load_settings(data_dir), email)
    say(f"all sessions of {escape(whose)} have ended")


async def end_sessions(settings: Settings, email: str) -> str:
    """Ends all sessions, or those of one user; returns whose, for people.

    Raises:
        CommandFailed: There is no such user.
    """
    from storage.postgres import audit, session_ends, users
    from storage.postgres.database import Database

    database = await Database.open(settings.postgres.dsn.get_secret_value(), min_size=1, max_size=1)
    try:
        async with database.transaction("revoke_sessions") as tx:
            user = await users.by_email(tx, email) if email else None
            if user is not None:
                await users.end_sessions(tx, user.id)
            elif email:
                raise CommandFailed(f"there is no user {email}")
            else:
                await session_ends.end_all(tx)
            await audit.append(
                tx,
                audit.Record(
                    actor_kind="system",
                    actor_id=None,
                    action="revoke_sessions",
                    resource_type="user" if user else "session",
                    resource_id=user.id if user else "all",
                    cause=audit.Cause("operator", description="mrm sessions revoke-all"),
                ),
            )
    finally:
        await database.close()
    return email or "everybody"
