"""`mrm seed`: loads data that comes with the service."""

from __future__ import annotations

from pathlib import Path

import typer

from server.cli.console import run, say
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir, load_settings

commands = typer.Typer(help="Load data that comes with the service. Twice is harmless; edits are kept.")


@commands.callback()
def seed() -> None:
    """Load data that comes with the service."""


@commands.command()
def benchmarks(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Load benchmarks made of public data, each with its source and sample size."""
    run(_benchmarks(data_dir))


async def _benchmarks(data_dir: Path) -> None:
    from server.planning.benchmark_service import seed_rows
    from storage.postgres import benchmarks as store
    from storage.postgres.database import Database

    rows = seed_rows()
    database = await Database.open(load_settings(data_dir).postgres.dsn.get_secret_value(), min_size=1, max_size=1)
    try:
        async with database.transaction("seed_benchmarks") as tx:
            added = await store.add(tx, rows)
    finally:
        await database.close()
    say(f"{added} benchmarks added, {len(rows) - added} were there")
