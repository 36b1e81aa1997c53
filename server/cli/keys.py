"""`mrm keys`: the ring of keys under which credentials of platforms are encrypted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from rich.table import Table

from server.cli.console import CommandFailed, out, run, say
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.sealing import KeyRing
    from server.settings import Settings

commands = typer.Typer(help="Manage the keys under which credentials are encrypted.", no_args_is_help=True)

_BATCH = 100


@commands.command()
def new(
    key_id: Annotated[str | None, typer.Option("--id", help="Name of the key; by default the time of day.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Ring to put it at the head of; made if it does not exist.", dir_okay=False)
    ] = None,
) -> None:
    """Make a key. Without a file it is printed, to be put first into MRM_SECRETS__KEYRING.

    Servers seal under it once they are started with the new ring; then `mrm keys rotate` brings the rest under it.
    """
    from server.sealing import KeyRingError, new_entry, prepend

    try:
        entry = new_entry(key_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}")
        if file is not None:
            prepend(file, entry)
    except KeyRingError as error:
        raise CommandFailed(str(error)) from None
    typer.echo(entry if file is None else f"key {entry.partition(':')[0]} is first in {file}")


@commands.command("list")
def list_keys(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show the keys of the ring, never their values, and how many credentials each one seals."""
    run(_list(data_dir))


@commands.command()
def rotate(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Bring all credentials under the first key of the ring. Interrupted, it goes on where it stopped when run again.

    Exit code 1 if some cannot be opened, because their key is not in the ring any more.
    """
    run(_rotate(data_dir))


def _ring(settings: Settings) -> KeyRing:
    from server.sealing import KeyRing, KeyRingError

    try:
        ring = KeyRing.of(settings.secrets)
    except KeyRingError as error:
        raise CommandFailed(str(error)) from None
    if ring.primary is None:
        raise CommandFailed("no key ring is configured: set MRM_SECRETS__KEYRING or MRM_SECRETS__KEYRING_FILE")
    return ring


async def _list(data_dir: Path) -> None:
    from storage.postgres import integrations
    from storage.postgres.database import Database

    settings = load_settings(data_dir)
    ring = _ring(settings)
    database = await Database.open(settings.postgres.dsn.get_secret_value(), min_size=1, max_size=1)
    try:
        use = await integrations.key_use_internal(database)
    finally:
        await database.close()
    table = Table("key", "credentials", "", box=None, pad_edge=False)
    for key_id in ring.key_ids:
        table.add_row(key_id, str(use.pop(key_id, 0)), "seals" if key_id == ring.primary else "opens")
    for key_id, count in use.items():
        table.add_row(key_id, str(count), "not in the ring")
    out.print(table)


async def _rotate(data_dir: Path) -> int:
    from server.sealing import Unsealable
    from server.sync.account import bound_to
    from storage.postgres import integrations
    from storage.postgres.database import Database, Transaction

    settings = load_settings(data_dir)
    ring = _ring(settings)
    primary = ring.primary or ""
    database = await Database.open(settings.postgres.dsn.get_secret_value(), min_size=1, max_size=1)

    def reseal(integration_id: UUID, client_id: UUID, envelope: Mapping[str, str]) -> dict[str, Any] | None:
        bound = bound_to(integration_id, client_id)
        try:
            return ring.seal(ring.open(envelope, bound), bound)
        except Unsealable:
            return None

    async def batch(tx: Transaction) -> tuple[UUID | None, int]:
        return await integrations.reseal_internal(tx, primary, reseal, after=after, limit=_BATCH)

    try:
        todo = sum(
            count for key_id, count in (await integrations.key_use_internal(database)).items() if key_id != primary
        )
        say(f"{todo} credentials to bring under key {primary}")
        done, after = 0, None
        while True:
            after, count = await database.run("rotate_keys", batch)
            if after is None:
                break
            done += count
            say(f"{done} of {todo}")
        left = {key: count for key, count in (await integrations.key_use_internal(database)).items() if key != primary}
    finally:
        await database.close()
    for key_id, count in left.items():
        say(
            f"{count} credentials are still under key {key_id}: it is not in the ring, or a server still seals under it"
        )
    return 1 if left else 0
