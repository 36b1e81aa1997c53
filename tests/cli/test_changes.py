"""`mrm changes`, as a process against the running service, and what it prints."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rich.console import Console

from mrm.operations.v1 import change_pb2
from server.cli.admin import create_admin
from server.cli.changes import line, table
from tests.operations.test_changes import listed

from .conftest import Mrm

if TYPE_CHECKING:
    from tests.conftest import World


async def test_changes_are_shown_and_followed(mrm: Mrm, world: World) -> None:
    client = await world.client(display_name="Rosebud [bold]")
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": world.admin.token}
    shown = await mrm("changes", "--client", client.client_id, **server)
    assert shown.code == 0, shown.err
    assert f"client {client.client_id}" in shown.out
    assert 'display_name - -> "Rosebud [bold]"' in shown.out
    none = await mrm("changes", "--client", client.client_id, "--action", "archive", **server)
    assert client.client_id not in none.out
    following = await mrm.start("changes", "--client", client.client_id, "--follow", "--limit", "1", **server)
    assert following.stdout is not None
    try:
        async with asyncio.timeout(60):
            first = (await following.stdout.readline()).decode()
            assert f"create client {client.client_id}" in first
            project = await world.project(client.client_id)
            second = (await following.stdout.readline()).decode()
        assert f"create project {project.project_id}" in second
    finally:
        following.terminate()
        await following.communicate()
    assert following.returncode == 143


async def test_the_first_administrator_is_on_record(world: World) -> None:
    user_id = await create_admin(world.settings, "operator@example.com", "correct horse battery staple")
    (change,) = await listed(world.admin, filter={"resource_id": user_id})
    assert change.actor.kind == change_pb2.CHANGE_ACTOR_KIND_SYSTEM
    assert change.cause.kind == change_pb2.CHANGE_CAUSE_KIND_OPERATOR
    assert change.cause.description == "mrm admin create"
    assert "password" not in str(change)


def test_values_are_readable_and_secrets_are_not() -> None:
    change = change_pb2.Change(action="update", resource_type="thing", resource_id="1")
    change.actor.kind = change_pb2.CHANGE_ACTOR_KIND_USER
    change.actor.actor_id = "0192d3a0-0000-7000-8000-000000abcdef"
    long = change.fields.add(path="text")
    long.after.string_value = "ж" * 500
    change.fields.add(path="secret", redacted=True)
    for number in range(5):
        change.fields.add(path=f"n{number}").before.number_value = number
    text = line(change)
    assert "user ..abcdef update thing 1: text - -> " in text
    assert "ж" * 50 in text
    assert "ж" * 100 not in text
    assert "secret changed" in text
    assert text.endswith("and 3 more")
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table([change]))
    assert "n0 0" in capture.get()
