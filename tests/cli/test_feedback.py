"""`mrm feedback stats`, as a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.feedback.asking import EDITED, REJECTED, batch, desk

from .conftest import Mrm

if TYPE_CHECKING:
    from tests.conftest import World

pytestmark = pytest.mark.bar_g


async def test_somebody_looks_how_good_prompts_are(mrm: Mrm, world: World) -> None:
    place = await desk(world, versions=2)
    first, second = place.versions
    await batch(
        world.admin,
        *(place.record(prompt_version_id=first, label="production") for _ in range(3)),
        place.record(prompt_version_id=first, label="production", action=REJECTED),
        place.record(
            prompt_version_id=second, action=EDITED, edit_percent="12.5", action_time={"seconds": 1_760_000_000}
        ),
    )
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": world.admin.token}
    options = ("--by", "version", "--by", "label", "--client", place.client_id)
    shown = await mrm("feedback", "stats", *options, **server)
    assert shown.code == 0, shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    name = lines[1].partition(" v1 ")[0]
    assert lines[1:] == [
        f"{name} v1 production 4 75 % (30.06-95.44) 0 % (0-48.99) 25 % (4.56-69.94) 0 / 0 / 0 %",
        f"{name} v2 1 0 % (0-79.35) 100 % (20.65-100) 0 % (0-79.35) 12.5 / 12.5 / 12.5 %",
        "all 5 60 % (23.07-88.24) 20 % (3.62-62.45) 20 % (3.62-62.45) 3.12 / 0 / 12.5 %",
        "days of Europe/Moscow; changed: mean, median and nine of ten",
    ]
    trend = ("--from", "2025-10-01", "--to", "2025-10-31", "--trend", "month", "--client", place.client_id)
    shown = await mrm("feedback", "stats", *trend, **server)
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    figures = "1 0 % (0-79.35) 100 % (20.65-100) 0 % (0-79.35) 12.5 / 12.5 / 12.5 %"
    assert lines[1:3] == [f"{name} {figures}", f"2025-10-01 {figures}"]
    assert (await mrm("feedback", "stats", "--from", "2025-10-01", **server)).code == 1
