"""`mrm seed`: loads data that comes with the service."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from server.cli import runfile
from server.cli.console import CommandFailed, out, progress, run, say, step
from server.cli.runfile import DEFAULT_DATA_DIR, DataDir, load_settings

if TYPE_CHECKING:
    from server.seeding.writer import Report
    from server.settings import Settings

_NEXT = """
[bold]Go on[/]
  grpcurl -plaintext -d @ TARGET mrm.accounts.v1.SessionService/Login \\
    <<< '{"email": "pm@demo.example", "password": "..."}'
  export MRM_TOKEN=...                       [dim]# sessionToken of the reply[/]
  grpcurl -plaintext -H "authorization: Bearer $MRM_TOKEN" \\
    -d '{"dates": {"start_date": "START", "end_date": "END"}, "granularity": "GRANULARITY_MONTH",
         "filter": {"client_ids": \\["CLIENT"]}}' \\
    TARGET mrm.statistics.v1.StatisticsService/QueryStatistics
  mrm export --client CLIENT --from START --to END --out year.parquet
  mrm changes --client CLIENT"""

commands = typer.Typer(help="Load data that comes with the service. Twice is harmless; edits are kept.")


@commands.callback()
def seed() -> None:
    """Load data that comes with the service."""


@commands.command()
def benchmarks(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Load benchmarks made of public data, each with its source and sample size."""
    run(_benchmarks(data_dir))


@commands.command()
def prompts(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Load prompts for briefs, media plans, reports and migrations, in Russian and English.

    Each is served under the label production at once. A prompt that is there keeps its versions and labels; where this
    release has another text, that becomes a further version, which no label points to.
    """
    run(_prompts(data_dir))


@commands.command()
def demo(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    yes: Annotated[
        bool, typer.Option("--yes", help="Also beside clients that are not the demo's; without a demo administrator.")
    ] = False,
) -> None:
    """Load an agency with two advertisers, their projects, plans and campaigns, and a year of figures.

    Its people sign in with MRM_DEMO_PASSWORD, or with a password that is made and shown once. Only what is missing is
    added, days that have passed since included. Because people are made who can sign in, a database with other clients
    is refused unless --yes says that it is meant.
    """
    run(_demo(data_dir, yes))


async def _demo(data_dir: Path, yes: bool) -> None:
    started = time.monotonic()
    given = os.environ.get("MRM_DEMO_PASSWORD")
    password = secrets.token_urlsafe(16) if given is None else given
    report = await seed_demo(load_settings(data_dir), password, yes=yes)
    _show(report, None if given is not None else password)
    say(f"in {time.monotonic() - started:.1f} s")
    found = runfile.read(data_dir)
    _show_next(report, "127.0.0.1:50051" if found is None else found.target)


async def seed_demo(settings: Settings, password: str, *, yes: bool) -> Report:
    """Writes what is missing of the demo.

    Args:
        settings: Name the engines.
        password: Of the people that are made.
        yes: Also beside clients that are not the demo's.

    Raises:
        CommandFailed: There are other clients, the password will not do, or something stands where the demo belongs.
    """
    from server.accounts.passwords import Passwords, check_password
    from server.rpc.errors import InvalidRequest
    from server.seeding import story
    from server.seeding.writer import Demo
    from storage.errors import Conflict

    hashing = Passwords(settings.auth.password_memory, settings.auth.password_passes)
    async with Demo.opened(settings) as demo:
        strangers = await demo.has_strangers()
        if strangers and not yes:
            raise CommandFailed(
                "there are clients that are not the demo's: --yes adds it beside them, with people who can sign in"
            )
        # An administrator of the demo would see everybody's clients.
        people = await demo.missing([each for each in story.PEOPLE if not (strangers and each.role == "admin")])
        try:
            for person in people:
                check_password(password, person.email, "password")
            async with step("people, clients, projects, plans and campaigns"):
                await demo.write_entities(people, password, hashing.hash)
        except InvalidRequest as error:
            raise CommandFailed(f"MRM_DEMO_PASSWORD {error.violations[0].description}") from None
        except Conflict as error:
            raise CommandFailed(
                f"something stands where the demo belongs ({error}): another user has an e-mail address of the demo, "
                "or a client of the demo was purged"
            ) from None
        with progress("figures", demo.figures, "figures") as meter:
            await demo.write_figures(meter)
        return demo.report


def _show(report: Report, password: str | None) -> None:
    table = Table("client", "project", "state", box=None, pad_edge=False)
    for heading in ("campaigns", "days", "spent", "budget", ""):
        table.add_column(heading, justify="right")
    for each in report.projects:
        table.add_row(
            escape(each.client.name),
            escape(each.project.name),
            each.project.status,
            str(each.campaigns),
            str(each.days),
            f"{each.spent_micros / 1_000_000:,.2f}",
            "" if each.budget is None else f"{each.budget:,.0f}",
            each.project.budget_currency,
        )
    out.print(table)
    made = ", ".join(f"{count} {kind}" for kind, count in report.made.items())
    say(f"added: {len(report.people)} people, {made}, {report.stored:,} figures; {report.known:,} figures were there")
    if report.people:
        say(f"people: {', '.join(person.email for person in report.people)}")
        if password is not None:
            say(f"their password, shown only now: {password}", markup=False)


def _show_next(report: Report, target: str) -> None:
    from server.seeding import story

    told = next((each for each in report.projects if each.client.id == story.RETAIL.id), None)
    if told is not None and told.project.start_date is not None and told.project.end_date is not None:
        text = _NEXT.replace("CLIENT", str(told.client.id)).replace("TARGET", target)
        text = text.replace("START", f"{told.project.start_date}").replace("END", f"{told.project.end_date}")
        say(text, highlight=False)


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


async def _prompts(data_dir: Path) -> None:
    from server.prompts import seeding
    from storage.postgres.database import Database

    database = await Database.open(load_settings(data_dir).postgres.dsn.get_secret_value(), min_size=1, max_size=1)
    try:
        found = await seeding.load(database)
    finally:
        await database.close()
    say(f"{len(found.added)} prompts added, {len(found.kept)} were there")
    if found.renewed:
        say(f"a further version of {', '.join(found.renewed)}: `mrm prompts diff`, then `mrm prompts move`")
    if found.taken:
        say(f"left alone, since the agency has others of these names: {', '.join(found.taken)}")
