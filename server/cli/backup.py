"""`mrm backup`: takes backups of all stores, checks them, restores them, and rehearses that."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from server.cli.console import CommandFailed, run, say, show_rows, step
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir, load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from server.backups.vault import Manifest, Vault
    from server.settings import Settings

commands = typer.Typer(help="Back up all stores, check backups, restore them.", no_args_is_help=True)

Full = Annotated[bool, typer.Option("--full", help="Begin anew, even if the last full backup is not a day old.")]
BackupId = Annotated[str, typer.Argument(help="Id of the backup; by default the newest that will do.")]


@commands.command("run")
def take(data_dir: DataDir = DEFAULT_DATA_DIR, full: Full = False) -> None:
    """Back up every store: what has changed since the last full backup, or all once a day."""
    run(_take(data_dir, full))


@commands.command()
def wal(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two rounds: what a failure can cost.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="One round only.")] = False,
) -> None:
    """Store PostgreSQL's log as it is written, for recovery to any second. Runs until it is stopped."""
    run(_wal(data_dir, every, once))


@commands.command("list")
def list_backups(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show the backups there are, and up to when PostgreSQL's log is stored."""
    run(_list(data_dir))


@commands.command()
def verify(backup_id: BackupId = "", data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Read a backup from its first byte to its last, with all it stands on, and compare checksums."""
    run(_verify(data_dir, backup_id))


@commands.command()
def prune(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    keep_days: Annotated[int, typer.Option(min=1, help="Days to keep a backup.")] = 30,
) -> None:
    """Delete backups older than this, and nothing that a younger one needs. The newest always stays."""
    run(_prune(data_dir, keep_days))


@commands.command()
def restore(
    into: Annotated[Path, typer.Argument(help="Data directory to make; start `mrm up --data-dir` on it.")],
    backup_id: Annotated[str, typer.Option("--backup", help="Id of the backup; by default the newest.")] = "",
    until: Annotated[
        str, typer.Option(help="Moment to which PostgreSQL recovers, as 2026-11-24T10:30:00Z; else all that is stored.")
    ] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Restore a backup into a new data directory. Nothing that runs is touched."""
    run(_restore(data_dir, into, backup_id, until))


@commands.command()
def drill(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    full: Full = False,
    into: Annotated[Path | None, typer.Option(help="Restore here and keep it; else a temporary directory.")] = None,
) -> None:
    """Take a backup, restore it beside to one second, compare everything. Exit code 1 if anything differs."""
    run(_drill(data_dir, full, into))


@asynccontextmanager
async def _vault(data_dir: Path) -> AsyncIterator[tuple[Vault, Settings]]:
    from server.backups.vault import BackupFailed, opened_vault
    from storage.errors import NotFound

    settings = load_settings(data_dir)
    try:
        async with opened_vault(settings) as vault:
            yield vault, settings
    except BackupFailed as error:
        raise CommandFailed(str(error)) from None
    except NotFound:
        raise CommandFailed("a file of the backup is gone") from None


async def _take(data_dir: Path, full: bool) -> None:
    from server.backups.running import run as take_backup

    async with _vault(data_dir) as (vault, settings):
        manifest = await take_backup(vault, settings, full=full, say=lambda text: say(text, markup=False))
        for store, reason in manifest.left_out.items():
            say(f"{store}: {reason}", markup=False)
        say(f"backup {manifest.id} is whole, {manifest.size:,} bytes")


async def _wal(data_dir: Path, every: float, once: bool) -> None:
    from server.backups.postgres import ship_log
    from storage.postgres import monitoring
    from storage.postgres.database import Database

    async with _vault(data_dir) as (vault, settings):
        dsn, programs = settings.postgres.dsn.get_secret_value(), settings.backup.postgres_programs
        database = await Database.open(dsn, min_size=1, max_size=1)
        try:
            while True:
                moment = await ship_log(vault, dsn, programs)
                await monitoring.reach_internal(database, "backup.log")
                say(f"stored until {moment:%Y-%m-%d %H:%M:%S.%f}")
                if once:
                    return
                await asyncio.sleep(every)
        finally:
            await database.close()


async def _list(data_dir: Path) -> None:
    from server.backups.postgres import stored_until

    async with _vault(data_dir) as (vault, _):
        show_rows(await vault.manifests(), _table, _line)
        until = await stored_until(vault)
    if until is not None:
        say(f"PostgreSQL's log is stored until {until:%Y-%m-%d %H:%M:%S}")


def _table(found: Sequence[Manifest]) -> Table:
    table = Table("backup", "taken", "holds", "bytes", box=None, pad_edge=False)
    for manifest in found:
        table.add_row(manifest.id, _taken(manifest), _holds(manifest), f"{manifest.size:,}")
    return table


def _line(manifest: Manifest) -> str:
    return f"{manifest.id} {_taken(manifest)} {_holds(manifest)} {manifest.size}"


def _taken(manifest: Manifest) -> str:
    return f"{max(part.ended for part in manifest.parts):%Y-%m-%dT%H:%M:%SZ}"


def _holds(manifest: Manifest) -> str:
    return ",".join(f"{part.store}{'+' if part.base else ''}" for part in manifest.parts)


async def _verify(data_dir: Path, backup_id: str) -> None:
    from server.backups import running

    async with _vault(data_dir) as (vault, _):
        manifest = await running.chosen(vault, backup_id)
        for store, found in (await running.verify(vault, manifest)).items():
            say(f"{store}: {found}", markup=False)
        say(f"backup {manifest.id} is good")


async def _prune(data_dir: Path, keep_days: int) -> None:
    from server.backups.pruning import prune as delete_old

    async with _vault(data_dir) as (vault, _):
        gone = await delete_old(vault, timedelta(days=keep_days))
    for backup_id in gone.backups:
        say(f"deleted backup {backup_id}")
    say(f"{len(gone.backups)} backups, {gone.contents} contents, {gone.log} files of the log are gone")


async def _restore(data_dir: Path, into: Path, backup_id: str, until: str) -> None:
    from server.backups.restoring import restored
    from server.backups.running import chosen

    try:
        moment = datetime.fromisoformat(until) if until else None
    except ValueError:
        raise CommandFailed(f"{until} is no time: write it as 2026-11-24T10:30:00Z") from None
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    async with _vault(data_dir) as (vault, _):
        manifest = await chosen(vault, backup_id, moment)
        async with step(f"restoring {manifest.id}"), restored(vault, manifest, into, moment):
            pass
    say(f"restored: put the key ring at {escape(str(into / 'keyring'))} and start `mrm up --data-dir {into}`")


async def _drill(data_dir: Path, full: bool, into: Path | None) -> int:
    from server.backups.drill import drill as rehearse

    # Not below a directory that only root may enter: PostgreSQL runs as somebody else then.
    folder = into or Path(tempfile.mkdtemp(prefix="mrm-drill-"))
    try:
        async with _vault(data_dir) as (vault, settings):
            report = await rehearse(vault, settings, folder, full=full)
    finally:
        if into is None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    say(f"backup {report.backup_id} taken in {report.backup_seconds:.1f} s")
    say(f"PostgreSQL recovered to {report.moment.isoformat()}")
    say(f"a failure would have lost {report.data_loss.total_seconds():.1f} s of commits (RPO)")
    say(f"restored in {report.restore_seconds:.1f} s (RTO)")
    for store, count in report.equal.items():
        say(f"{store}: {count} came back equal")
    for what in report.changing:
        say(f"not compared, written to meanwhile: {what}", markup=False)
    for what in report.different:
        say(f"DIFFERENT: {what}", markup=False)
    return 1 if report.different else 0
