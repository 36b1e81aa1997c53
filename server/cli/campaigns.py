"""`mrm campaigns`: campaigns as those who run them read them, and the steps they take most."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape
from rich.table import Table

from mrm.campaigns.v1 import campaign_pb2, campaign_service_pb2_grpc
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from mrm.common.v1 import platform_pb2
from server.cli import remote
from server.cli.console import CommandFailed, say, show_table
from server.cli.plans import money, share

commands = typer.Typer(help="Show campaigns, and halt them or let them run.", no_args_is_help=True)

_CALL_SECONDS = 30
_PAGE = 500
_COLOURS = {"running": "green", "stopped": "red", "ended": "red", "unknown": "yellow", "pending": "yellow"}

Campaigns = Annotated[list[UUID], typer.Argument(help="Campaigns, up to 1000.")]
Check = Annotated[bool, typer.Option("--check", help="Only say what would come of it.")]


@commands.command("list")
@remote.reaching
async def show_all(
    server: remote.Server,
    client: Annotated[UUID | None, typer.Option(help="Only campaigns of this client.")] = None,
    project: Annotated[UUID | None, typer.Option(help="Only campaigns of this project.")] = None,
    status: Annotated[list[str] | None, typer.Option(help="Only campaigns in this state, such as `active`.")] = None,
    name: Annotated[str, typer.Option(help="Only campaigns whose name contains this.")] = "",
) -> None:
    """List campaigns: what we want of each, whether it really runs, and its money."""
    request = pb.ListCampaignsRequest(page_size=_PAGE)
    request.filter.client_id, request.filter.project_id = str(client or ""), str(project or "")
    request.filter.statuses.extend(_status(each) for each in status or ())
    request.filter.name_contains = name
    found: list[campaign_pb2.Campaign] = []
    async with server.open() as channel:
        stub = campaign_service_pb2_grpc.CampaignServiceStub(channel)
        async for page in remote.pages(stub.ListCampaigns, request, _CALL_SECONDS):
            found += page.campaigns
    show_table(table(found))


@commands.command()
@remote.reaching
async def pause(
    server: remote.Server,
    campaigns: Campaigns,
    check: Check = False,
) -> int:
    """Halt campaigns. Those that cannot be halted are told, and the others are."""
    return await _take(server, "pause", campaigns, check)


@commands.command()
@remote.reaching
async def resume(
    server: remote.Server,
    campaigns: Campaigns,
    check: Check = False,
) -> int:
    """Let paused campaigns run again. Those that cannot are told, with what they lack."""
    return await _take(server, "resume", campaigns, check)


async def _take(server: remote.Server, step: str, campaigns: list[UUID], check: bool) -> int:
    """Takes steps, says what came of each, and returns the exit code: 1 if one could not be taken."""
    request = pb.MutateCampaignsRequest(validate_only=check)
    for campaign_id in campaigns:
        getattr(request.operations.add(), step).campaign_id = str(campaign_id)
    async with server.open() as channel:
        stub = campaign_service_pb2_grpc.CampaignServiceStub(channel)
        reply = await stub.MutateCampaigns(request, timeout=_CALL_SECONDS)
    for campaign_id, result in zip(campaigns, reply.results, strict=True):
        if result.HasField("status"):
            say(f"[red]✗[/] {campaign_id} {escape(result.status.message)}")
        else:
            say(f"[green]✓[/] {escape(result.campaign.display_name)}: {_word(result.campaign)}")
    return int(reply.success_count < len(campaigns))


def table(campaigns: list[campaign_pb2.Campaign]) -> Table:
    """Campaigns with their states and money, a row each."""
    shown = Table(box=None, pad_edge=False)
    for column in ("campaign", "platform", "wanted", "really", "why"):
        shown.add_column(column, no_wrap=column != "why")
    for column in ("daily", "total", "spent", "share"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("id", no_wrap=True)
    for each in campaigns:
        really = _effective(each)
        colour = _COLOURS.get(really, "dim")
        shown.add_row(
            escape(each.display_name),
            platform_pb2.Platform.Name(each.platform).removeprefix("PLATFORM_").lower(),
            _word(each),
            f"[{colour}]{really}[/]",
            ", ".join(_reason(reason) for reason in each.effective_reasons),
            money(each.daily_budget) if each.HasField("daily_budget") else "",
            money(each.total_budget) if each.HasField("total_budget") else "",
            money(each.spent_budget),
            share(each.spent_budget.micros, each.total_budget.micros),
            each.campaign_id,
        )
    return shown


def _word(campaign: campaign_pb2.Campaign) -> str:
    name = campaign_pb2.CampaignStatus.Name(campaign.status)
    return name.removeprefix("CAMPAIGN_STATUS_").lower().replace("_", " ")


def _effective(campaign: campaign_pb2.Campaign) -> str:
    name = campaign_pb2.CampaignEffectiveStatus.Name(campaign.effective_status)
    return name.removeprefix("CAMPAIGN_EFFECTIVE_STATUS_").lower()


def _reason(reason: campaign_pb2.CampaignReason.ValueType) -> str:
    return campaign_pb2.CampaignReason.Name(reason).removeprefix("CAMPAIGN_REASON_").lower().replace("_", " ")


def _status(word: str) -> campaign_pb2.CampaignStatus.ValueType:
    known = {
        name.removeprefix("CAMPAIGN_STATUS_").lower(): number for name, number in campaign_pb2.CampaignStatus.items()
    }
    if not known.get(word.lower()):
        raise CommandFailed(f"{word} is no state: {', '.join(list(known)[1:])}")
    return known[word.lower()]
