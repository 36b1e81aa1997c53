"""`mrm alerts`: what needs attention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape
from rich.table import Table

from mrm.operations.v1 import alert_pb2
from mrm.operations.v1 import alert_service_pb2 as pb
from mrm.operations.v1.alert_service_pb2_grpc import AlertServiceStub
from server.cli import remote
from server.cli.console import say, show_table

commands = typer.Typer(help="Show what needs attention, and say who takes care of it.", no_args_is_help=True)

_CALL_SECONDS = 10
_LIVE = (alert_pb2.ALERT_STATUS_OPEN, alert_pb2.ALERT_STATUS_ACKNOWLEDGED)
_STYLES = {alert_pb2.ALERT_SEVERITY_CRITICAL: "red", alert_pb2.ALERT_SEVERITY_WARNING: "yellow"}


@commands.command("list")
@remote.reaching
async def list_(
    server: remote.Server,
    client: Annotated[UUID | None, typer.Option(help="Only alerts of this client.")] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Those that are over, too.")] = False,
    count: Annotated[int, typer.Option(min=1, max=500, help="At most so many, newest first.")] = 50,
) -> None:
    """List alerts, newest first."""
    wanted = pb.AlertFilter(client_id=str(client or ""), statuses=() if resolved else _LIVE)
    async with server.open() as channel:
        request = pb.ListAlertsRequest(filter=wanted, page_size=count)
        reply = await AlertServiceStub(channel).ListAlerts(request, timeout=_CALL_SECONDS)
    if not reply.alerts:
        say("nothing needs attention")
        return
    show_table(table(reply.alerts))


@commands.command()
@remote.reaching
async def ack(
    server: remote.Server,
    alert: Annotated[UUID, typer.Argument(help="The alert.")],
    comment: Annotated[str, typer.Option(help="What is done about it.")] = "",
) -> None:
    """Say that somebody takes care of an alert, which ends reminders."""
    async with server.open() as channel:
        request = pb.AcknowledgeAlertRequest(alert_id=str(alert), comment=comment)
        reply = await AlertServiceStub(channel).AcknowledgeAlert(request, timeout=_CALL_SECONDS)
    say(f"acknowledged: {reply.alert.summary}", markup=False)


def table(alerts: Iterable[alert_pb2.Alert]) -> Table:
    """Alerts, one a row."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("since", "severity", "status", "kind", "what", "seen", "alert"):
        shown.add_column(heading, justify="right" if heading == "seen" else "left")
    for each in alerts:
        shown.add_row(
            f"{each.first_seen_time.ToDatetime():%Y-%m-%d %H:%M}",
            _word(alert_pb2.AlertSeverity.Name(each.severity), "ALERT_SEVERITY_"),
            _word(alert_pb2.AlertStatus.Name(each.status), "ALERT_STATUS_"),
            _word(alert_pb2.AlertKind.Name(each.kind), "ALERT_KIND_"),
            escape(each.summary),
            f"{each.occurrence_count} x",
            each.alert_id,
            style=_STYLES.get(each.severity) if each.status in _LIVE else "dim",
        )
    return shown


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower().replace("_", " ")
