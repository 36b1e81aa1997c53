"""`mrm sync`: what it prints of an account."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from rich.console import Console

from mrm.campaigns.v1 import sync_pb2
from server.cli.sync import line, table
from server.jobs.handling import Stores
from tests.sync.desk import ENTITIES, office

from .conftest import Mrm

if TYPE_CHECKING:
    from tests.conftest import World


def stream(**fields: object) -> sync_pb2.SyncStream:
    made = sync_pb2.SyncStream(kind=sync_pb2.SYNC_STREAM_KIND_STATISTICS, **fields)  # type: ignore[arg-type]
    made.success_time.FromDatetime(datetime.now(UTC))
    made.lag.FromTimedelta(timedelta(seconds=1_900))
    return made


def test_a_stream_says_how_far_it_is_and_what_is_wrong() -> None:
    fine = line(stream(through_date="2026-11-22"))
    assert fine.endswith(", 1,900 s ago up to 2026-11-22")
    broken = stream(fault=sync_pb2.SYNC_FAULT_AUTH_FAILED, error="HTTP 401 [b]", failure_count=3)
    assert line(broken).endswith("s ago: auth failed: HTTP 401 [b]")
    never = sync_pb2.SyncStream(kind=sync_pb2.SYNC_STREAM_KIND_ENTITIES)
    assert line(never) == "entities read never"
    console = Console(width=150)
    with console.capture() as shown:
        console.print(table([broken, never]))
    assert "auth failed: HTTP 401 [b]" in shown.get()


async def test_an_account_is_looked_at(mrm: Mrm, world: World, stores: Stores) -> None:
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": world.admin.token}
    desk = await office(world, stores, "vk_ads", campaigns=2, link=False)
    await desk.link(desk.external_ids[0])
    await desk.sync(ENTITIES)
    shown = await mrm("sync", "status", desk.integration_id, **server)
    assert "2 campaigns there, 1 of them linked to none here" in shown.out, shown.err
    listed = await mrm("sync", "unlinked", desk.integration_id, **server)
    assert listed.out == f"{desk.external_ids[1]} Кампания 2\n"
    desk.sandbox.revoke(desk.key)
    await desk.sync(ENTITIES)
    refused = await mrm("sync", "now", desk.integration_id, **server)
    assert (refused.code, "the account is error" in refused.err) == (1, True)
