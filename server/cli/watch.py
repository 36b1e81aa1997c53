"""`mrm watch`: a client's figures while they change."""

from __future__ import annotations

from contextlib import ExitStack, aclosing, suppress
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import grpc
import typer
from rich.live import Live

import mrm_client
from mrm.campaigns.v1 import campaign_service_pb2, campaign_service_pb2_grpc
from mrm.statistics.v1 import statistics_service_pb2
from mrm_client import CallError
from server.cli import remote
from server.cli.console import out, say
from server.cli.live import LiveFigures

_PAGE = 1000
_CALL_SECONDS = 10


class Window(StrEnum):
    """Which time the figures cover."""

    TODAY = "today"
    WEEK = "7d"
    MONTH = "30d"


_WINDOWS = {
    Window.TODAY: statistics_service_pb2.WATCH_WINDOW_TODAY,
    Window.WEEK: statistics_service_pb2.WATCH_WINDOW_LAST_7_DAYS,
    Window.MONTH: statistics_service_pb2.WATCH_WINDOW_LAST_30_DAYS,
}


@remote.reaching
async def watch(
    server: remote.Server,
    client: Annotated[UUID, typer.Option(help="Client whose campaigns are watched.")],
    window: Annotated[Window, typer.Option(help="Time the figures cover, in the client's days.")] = Window.TODAY,
    once: Annotated[bool, typer.Option("--once", help="Show the present state and end.")] = False,
    patience: remote.Patience = 300,
) -> None:
    """Show a client's figures live: a table on a terminal, a line per change elsewhere.

    Survives restarts of the server. "age" is how old the figures are. Ctrl-C ends it.
    """
    async with server.open(watch=True) as channel:
        await _watch(channel, client, window, once, patience)


async def _watch(channel: grpc.aio.Channel, client: UUID, window: Window, once: bool, patience: float) -> None:
    names: dict[str, str] = {}
    figures = LiveFigures(names)

    def tell(error: CallError, pause: float) -> None:
        figures.note = f"{error}; trying again in {pause:.0f} s"
        if not out.is_terminal:
            say(figures.note, markup=False)

    watching = mrm_client.watch(channel, client, window=_WINDOWS[window], patience=patience, on_retry=tell)
    with ExitStack() as stack:
        if out.is_terminal and not once:
            stack.enter_context(Live(get_renderable=figures.table, console=out, refresh_per_second=4))
        async with aclosing(watching) as states:
            async for state in states:
                if not names.keys() >= state.campaigns.keys():
                    names.update(await campaign_names(channel, client))
                    names.update({key: key for key in state.campaigns if key not in names})
                figures.take(state)
                if once:
                    out.print(figures.table())
                    return
                if not out.is_terminal:
                    for line in figures.lines():
                        say(line, markup=False)


async def campaign_names(channel: grpc.aio.Channel, client: UUID) -> dict[str, str]:
    """Display names of a client's campaigns by id; none if the caller may not read them."""
    stub = campaign_service_pb2_grpc.CampaignServiceStub(channel)
    request = campaign_service_pb2.ListCampaignsRequest(page_size=_PAGE)
    request.filter.client_id = str(client)
    names: dict[str, str] = {}
    with suppress(grpc.aio.AioRpcError):
        async for page in remote.pages(stub.ListCampaigns, request, _CALL_SECONDS):
            names.update((campaign.campaign_id, campaign.display_name) for campaign in page.campaigns)
    return names
