"""`mrm changes`: who changed what."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from datetime import UTC
from typing import Annotated
from uuid import UUID

import grpc
import typer
from google.protobuf import json_format, struct_pb2
from rich.markup import escape
from rich.table import Table

import mrm_client
from mrm.operations.v1 import change_pb2, change_service_pb2, change_service_pb2_grpc
from mrm_client import CallError
from server.cli import remote
from server.cli.console import say, show_rows

_CALL_SECONDS = 10
_LONGEST_VALUE = 60
_MOST_FIELDS = 4


@remote.reaching
async def changes(
    server: remote.Server,
    client: Annotated[UUID | None, typer.Option(help="Only of this client.")] = None,
    project: Annotated[UUID | None, typer.Option(help="Only of this project.")] = None,
    resource: Annotated[UUID | None, typer.Option(help="Only of the thing with this id.")] = None,
    resource_type: Annotated[list[str] | None, typer.Option("--type", help="Only of this kind; repeatable.")] = None,
    actor: Annotated[UUID | None, typer.Option(help="Only by this user or API key.")] = None,
    action: Annotated[list[str] | None, typer.Option(help="Only this action; repeatable.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many of the newest to show.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with changes as they happen.")] = False,
    patience: remote.Patience = 300,
) -> None:
    """Show the record of changes, oldest first: a table on a terminal, a line per change elsewhere.

    With --follow it goes on with a line per change and survives restarts of the server. Ctrl-C ends it.
    """
    wanted = change_service_pb2.ChangeFilter(
        client_id=str(client or ""),
        project_id=str(project or ""),
        resource_id=str(resource or ""),
        resource_types=resource_type or [],
        actor_id=str(actor or ""),
        actions=action or [],
    )
    async with server.open() as channel:
        if follow:
            await _follow(channel, wanted, limit, patience)
        else:
            show_rows(await _newest(channel, wanted, limit), table, line)


async def _newest(
    channel: grpc.aio.Channel, wanted: change_service_pb2.ChangeFilter, limit: int
) -> list[change_pb2.Change]:
    stub = change_service_pb2_grpc.ChangeServiceStub(channel)
    request = change_service_pb2.ListChangesRequest(filter=wanted)
    found: list[change_pb2.Change] = []
    while len(found) < limit:
        request.page_size = limit - len(found)
        page = await stub.ListChanges(request, timeout=_CALL_SECONDS)
        found += page.changes
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    return found[:limit][::-1]


async def _follow(
    channel: grpc.aio.Channel, wanted: change_service_pb2.ChangeFilter, limit: int, patience: float
) -> None:
    def tell(error: CallError, pause: float) -> None:
        say(f"{error}; trying again in {pause:.0f} s", markup=False)

    watching = mrm_client.watch_changes(channel, wanted, patience=patience, on_retry=tell)
    async with aclosing(watching) as batches:
        # Once the watch stands, whatever the list does not have comes through the watch, and what both have is known.
        await anext(batches)
        known = set()
        for change in await _newest(channel, wanted, limit):
            known.add(change.change_id)
            say(line(change), markup=False)
        async for batch in batches:
            for change in batch.changes:
                if change.change_id not in known:
                    say(line(change), markup=False)


def table(found: Iterable[change_pb2.Change]) -> Table:
    """Changes to be read at once."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("time", "who", "action", "what"):
        shown.add_column(heading, no_wrap=True)
    shown.add_column("fields", overflow="fold")
    for change in found:
        what = f"{change.resource_type} {change.resource_id}"
        cells = (_time(change), _actor(change), change.action, what, "\n".join(_fields(change)))
        shown.add_row(*(escape(cell) for cell in cells))
    return shown


def line(change: change_pb2.Change) -> str:
    """One change in a line."""
    fields = ", ".join(_fields(change))
    head = f"{_time(change)} {_actor(change)} {change.action} {change.resource_type} {change.resource_id}"
    return f"{head}: {fields}" if fields else head


def _time(change: change_pb2.Change) -> str:
    return change.change_time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _actor(change: change_pb2.Change) -> str:
    kind = change_pb2.ChangeActorKind.Name(change.actor.kind).removeprefix("CHANGE_ACTOR_KIND_").lower()
    # The random end of an id tells actors apart; its beginning is only a time.
    who = f"{kind} ..{change.actor.actor_id[-6:]}" if change.actor.actor_id else kind
    return f"{who} ({change.cause.description})" if change.cause.description else who


def _fields(change: change_pb2.Change) -> list[str]:
    shown = [
        f"{field.path} changed"
        if field.redacted
        else f"{field.path} {_value(field, 'before')} -> {_value(field, 'after')}"
        for field in change.fields[:_MOST_FIELDS]
    ]
    more = len(change.fields) - len(shown)
    return [*shown, f"and {more} more"] if more else shown


def _value(field: change_pb2.FieldChange, side: str) -> str:
    if not field.HasField(side):  # type: ignore[arg-type]
        return "-"
    value: struct_pb2.Value = getattr(field, side)
    text = json_format.MessageToJson(value, indent=None, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
