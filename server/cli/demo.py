"""`mrm demo`: the whole service in a fresh directory, a week of real events through it, every figure checked."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import grpc
import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

import mrm_client
from server.cli import mail, remote, shop
from server.cli.admin import create_admin
from server.cli.console import log_to, out, run, say, step
from server.cli.live import LiveFigures
from server.cli.recording import Recording
from server.cli.tenant import Tenant
from server.cli.up import everything

if TYPE_CHECKING:
    from server.embedded.smtp_sink import SmtpSink
    from server.sandbox.sandbox import Sandbox
    from server.settings import Settings

_FILE = Path(__file__).resolve().parents[2] / "examples" / "data" / "open_bandit_events.csv.gz"
_EMAIL = "demo@example.com"
_TICK_SECONDS = 0.1
_PLAIN_SECONDS = 2.0
_SETTLE_SECONDS = 30.0
_LOG_LINES = 20

_NEXT = """
[bold]Go on with your own data[/]
  make up                                    [dim]# engines and server on 127.0.0.1:50051, data in .mrm[/]
  mrm admin create --email you@example.com   [dim]# asks for a password[/]
  grpcurl -plaintext 127.0.0.1:50051 list
  grpcurl -plaintext 127.0.0.1:50051 describe mrm.statistics.v1.StatisticsService
  grpcurl -plaintext -d @ 127.0.0.1:50051 mrm.accounts.v1.SessionService/Login \\
    <<< '{"email": "you@example.com", "password": "..."}'
  export MRM_TOKEN=...                       [dim]# sessionToken of the reply[/]
  grpcurl -plaintext -H "authorization: Bearer $MRM_TOKEN" \\
    -d '{"client": {"display_name": "Acme", "type": "CLIENT_TYPE_DIRECT_ADVERTISER"}}' \\
    127.0.0.1:50051 mrm.accounts.v1.ClientService/CreateClient
  grpcurl -plaintext -H "authorization: Bearer $MRM_TOKEN" \\
    -d '{"dates": {"start_date": "2026-01-01", "end_date": "2026-12-31"}, "granularity": "GRANULARITY_MONTH"}' \\
    127.0.0.1:50051 mrm.statistics.v1.StatisticsService/QueryStatistics
  mrm ingest events.csv --client CLIENT_ID   [dim]# with an API key of ApiKeyService/CreateApiKey in MRM_TOKEN[/]
  mrm watch --client CLIENT_ID"""


def demo(
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long the replay of the week takes.")] = 15.0,
    file: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Recording, in the columns of examples/data.")
    ] = _FILE,
) -> None:
    """Start everything in a fresh directory and replay a week of real advertising events.

    Shows every campaign's totals beside the file's own, then a platform that takes clicks back, and the e-mail when it
    refuses the account: exit code 0 only if all agree and all arrives. Leaves nothing behind.
    """
    remote.quiet_grpc()
    run(_demo(file, seconds))


async def _demo(file: Path, seconds: float) -> int:
    recording = Recording.load(file)
    directory = _fresh_directory()
    log = directory / "logs" / "server.log"
    agreed = False
    try:
        with log_to(log):
            agreed = await _run(recording, directory, seconds)
    except Exception:
        _show_logs(log.parent)
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    say(_NEXT, highlight=False)
    return 0 if agreed else 1


def _fresh_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="mrm-demo-"))
    # PostgreSQL may run as another user, who must be able to pass through.
    directory.chmod(0o711)
    return directory


async def _run(recording: Recording, directory: Path, seconds: float) -> bool:
    from server.settings import Settings

    settings = Settings()
    settings.grpc.port, settings.logging.level = 0, "WARNING"
    async with shop.stand_in() as sandbox, mail.beside(settings, directory / "mail") as mails:
        settings.platforms = sandbox.settings()
        async with everything(settings, directory) as (_, application):
            return await _tour(recording, settings, application.port, seconds, sandbox, mails)


async def _tour(
    recording: Recording, settings: Settings, port: int, seconds: float, sandbox: Sandbox, mails: SmtpSink
) -> bool:
    target = f"127.0.0.1:{port}"
    password = secrets.token_urlsafe(16)
    async with step("administrator made"):
        await create_admin(settings, _EMAIL, password)
    async with step("signed in; client, project, campaigns and API key made over gRPC"):
        tenant = await Tenant.make(target, _EMAIL, password, recording.campaigns)
    shifted = f"shifted by {recording.shift.days} days to end at {recording.end:%Y-%m-%d %H:%M} UTC"
    say(f"a week of real events: {len(recording.rows):,} rows of {len(recording.campaigns)} campaigns, {shifted}")
    async with (
        mrm_client.channel(target, tenant.session_token, watch=True) as watching,
        mrm_client.channel(target, tenant.api_key) as ingesting,
        mrm_client.channel(target, tenant.session_token) as asking,
    ):
        figures = LiveFigures({campaign_id: name for name, campaign_id in tenant.campaigns.items()})
        async with _watching(watching, tenant, figures):
            counters = await _replay(ingesting, tenant, recording, seconds)
            totals = await _settled(asking, tenant, recording, figures)
        say(
            f"[green]✓[/] {counters.acknowledged:,} events acknowledged in {counters.batches} batches,"
            f" {counters.quarantined} put aside"
        )
        agreed = _compare(recording, totals)
        arrived = await _taken_back(watching, asking, tenant, sandbox, mails)
        return agreed and arrived


@asynccontextmanager
async def _watching(channel: grpc.aio.Channel, tenant: Tenant, figures: LiveFigures) -> AsyncIterator[None]:
    """Shows what a watcher of the client sees, for the length of a block."""

    async def follow() -> None:
        told = 0.0
        watch = mrm_client.watch(channel, tenant.client_id, window=tenant.window)
        async with aclosing(watch) as states:
            async for state in states:
                figures.take(state)
                if not out.is_terminal and time.monotonic() - told >= _PLAIN_SECONDS:
                    told = time.monotonic()
                    say(_plain(figures), markup=False)

    with ExitStack() as stack:
        if out.is_terminal:
            stack.enter_context(
                Live(
                    get_renderable=figures.table,
                    console=out,
                    refresh_per_second=8,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
            )
        task = asyncio.create_task(follow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


def _plain(figures: LiveFigures) -> str:
    seen = [f"{name} {c.metrics.impressions:,}/{c.metrics.clicks}" for name, c in figures.by_name()]
    return f"live, impressions/clicks: {', '.join(seen)} ({figures.age()} old)"


async def _replay(
    channel: grpc.aio.Channel, tenant: Tenant, recording: Recording, seconds: float
) -> mrm_client.Counters:
    """Sends the week as it went, only faster: each tick, what happened up to then."""
    started = time.monotonic()
    async with mrm_client.Producer(channel, tenant.client_id, "demo") as producer:
        sent = 0
        while sent < len(recording.rows):
            passed = (time.monotonic() - started) / seconds
            due = recording.rows_until(passed)
            await producer.send(
                event for row in recording.rows[sent:due] for event in recording.events(row, tenant.campaigns)
            )
            sent = due
            await asyncio.sleep(_TICK_SECONDS)
        await producer.flush()
        return producer.counters


async def _settled(
    channel: grpc.aio.Channel, tenant: Tenant, recording: Recording, figures: LiveFigures
) -> dict[str, tuple[int, int]]:
    """The totals once query and watcher both show the file's, or whatever they are after half a minute."""
    until = time.monotonic() + _SETTLE_SECONDS
    while True:
        totals = await tenant.totals(channel, recording.start, recording.end)
        live = {name: (c.metrics.impressions, c.metrics.clicks) for name, c in figures.by_name()}
        if totals == live == recording.totals or time.monotonic() > until:
            return totals
        await asyncio.sleep(0.2)


async def _taken_back(
    watching: grpc.aio.Channel, asking: grpc.aio.Channel, tenant: Tenant, sandbox: Sandbox, mails: SmtpSink
) -> bool:
    """Reads an account on the sandbox, whose platform takes clicks back, and then the account's tokens.

    Returns:
        Whether the one arrives everywhere, and the other as an e-mail.
    """
    async with step("an account on a stand-in for VK Ads connected, its campaigns linked"):
        account = await shop.Shop.make(asking, sandbox, tenant.session_token)
    account.restate(shop.BEFORE)
    campaigns = account.tenant.campaigns
    figures = LiveFigures({campaign_id: name for name, campaign_id in campaigns.items()})
    first = next(iter(campaigns))

    def seen() -> int:
        return {name: each.metrics.clicks for name, each in figures.by_name()}.get(first, 0)

    async with _watching(watching, account.tenant, figures):
        await account.sync(asking)
        before = await account.clicks(asking)
        if not out.is_terminal:
            say(_plain(figures), markup=False)
        account.restate(shop.AFTER)
        await account.sync(asking)
        arrived = await account.arrived(asking, seen) and before == shop.BEFORE
        if not out.is_terminal:
            say(_plain(figures), markup=False)
    verdict = "[green]✓[/]" if arrived else "[red]✗ not everywhere:[/]"
    say(
        f"{verdict} the platform took clicks of {account.day} back, {shop.BEFORE:,} -> {shop.AFTER:,}:"
        " in the live table, in QueryStatistics and in the daily figures"
    )
    letter = await account.revoked(asking, mails)
    if letter is None:
        say("[red]✗[/] the platform refused the account, and no e-mail said so")
        return False
    subject = escape(letter.message["Subject"])
    say(f"[green]✓[/] the platform refused the account; e-mail to {letter.recipients[0]}: {subject}")
    return arrived


def _compare(recording: Recording, totals: dict[str, tuple[int, int]]) -> bool:
    table = Table("campaign", title="QueryStatistics beside the file", title_justify="left", box=None, pad_edge=False)
    for heading in ("impressions", "in the file", "clicks", "in the file"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for name, expected in sorted(recording.totals.items()):
        got = totals.get(name, (0, 0))
        verdict = "[green]agree[/]" if got == expected else "[red]DIFFER[/]"
        table.add_row(escape(name), f"{got[0]:,}", f"{expected[0]:,}", f"{got[1]:,}", f"{expected[1]:,}", verdict)
    got, expected = _sum(totals), _sum(recording.totals)
    table.add_row("all", f"{got[0]:,}", f"{expected[0]:,}", f"{got[1]:,}", f"{expected[1]:,}", "", style="bold")
    out.print(table)
    return totals == recording.totals


def _sum(totals: dict[str, tuple[int, int]]) -> tuple[int, int]:
    return sum(pair[0] for pair in totals.values()), sum(pair[1] for pair in totals.values())


def _show_logs(logs: Path) -> None:
    """Prints the end of every log, because the directory is about to be removed."""
    for log in sorted(logs.glob("*.log")):
        for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES:]:
            say(f"{log.stem}: {line}", markup=False, style="dim")
