"""`mrm campaigns`, as a process against the running service."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from mrm.campaigns.v1 import campaign_pb2
from tests.campaigns.places import get, place, rub

from .conftest import Mrm

if TYPE_CHECKING:
    from tests.conftest import World


async def test_campaigns_are_read_and_halted(mrm: Mrm, world: World) -> None:
    where = await place(world)
    running = await where.campaign("active", display_name="Banner [x]", daily_budget=rub(2))
    linked = await where.campaign("active", display_name="Search", linked=True)
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": world.admin.token}

    shown = await mrm("campaigns", "list", "--project", where.project_id, "--status", "active", **server)
    assert shown.code == 0, shown.err
    assert [" ".join(line.split()) for line in shown.out.splitlines()] == [
        "campaign platform wanted really why daily total spent share id",
        f"Banner [x] other active running 2.00 RUB 10.00 RUB 0.00 RUB 0.0 % {running.campaign_id}",
        f"Search yandex_direct active unknown not synced 10.00 RUB 0.00 RUB 0.0 % {linked.campaign_id}",
    ]
    missing = str(uuid4())
    paused = await mrm("campaigns", "pause", running.campaign_id, missing, **server)
    assert paused.code == 1
    assert paused.out.splitlines() == ["✓ Banner [x]: paused", f"✗ {missing} no campaign with this id"]
    assert (await get(world.admin, running.campaign_id)).status == campaign_pb2.CAMPAIGN_STATUS_PAUSED
    checked = await mrm("campaigns", "resume", "--check", running.campaign_id, **server)
    assert (checked.code, checked.out) == (0, "✓ Banner [x]: active\n")
    assert (await get(world.admin, running.campaign_id)).status == campaign_pb2.CAMPAIGN_STATUS_PAUSED
    refused = await mrm("campaigns", "list", "--status", "running", **server)
    assert refused.code == 1
    assert "running is no state: draft, pending_moderation, active, paused, archived" in refused.err
