"""`mrm migrate`: brings the schemas of PostgreSQL and ClickHouse up to this code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from server.cli.console import out, run, say
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir, load_settings

commands = typer.Typer(help="Bring the schemas of PostgreSQL and ClickHouse up to this code.")


@commands.callback(invoke_without_command=True)
def migrate(
    context: typer.Context,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be applied.")] = False,
) -> None:
    """Apply every pending migration, of the engines in the environment or of the running `mrm up`."""
    if context.invoked_subcommand is None:
        run(_migrate(data_dir, dry_run))


@commands.command()
def status(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show how each migration stands. Exit code 1 unless all are applied."""
    run(_status(data_dir))


async def _migrate(data_dir: Path, dry_run: bool) -> None:
    from server.stores import migrate as apply

    applied = await apply(load_settings(data_dir), dry_run=dry_run)
    for version in applied:
        say(f"{'would apply' if dry_run else 'applied'} {version}")
    if not applied:
        say("nothing to do")


async def _status(data_dir: Path) -> int:
    from server.stores import migration_status

    table = Table("engine", "migration", "state", "applied", box=None, pad_edge=False)
    complete = True
    for engine, migrations in (await migration_status(load_settings(data_dir))).items():
        for migration in migrations:
            complete &= migration.state == "applied"
            when = f"{migration.applied_at:%Y-%m-%d %H:%M:%S}" if migration.applied_at else ""
            table.add_row(engine, migration.version, migration.state, when)
    out.print(table)
    return 0 if complete else 1
