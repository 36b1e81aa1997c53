"""`mrm report` as a process; the tour has one made."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.reports import making

from .conftest import Mrm

if TYPE_CHECKING:
    from tests.conftest import World

pytestmark = pytest.mark.bar_f


async def test_a_report_is_brought_whole_or_not_at_all(mrm: Mrm, world: World) -> None:
    client = await world.client()
    project = await world.project(client.client_id)
    report = await making.ready(world, project.project_id)
    waiting = await making.asked(world.admin, project.project_id)
    server = {"MRM_TARGET": world.target, "MRM_TOKEN": world.admin.token}

    brought = await mrm("report", "download", report.report_id, "--out", "report.json", **server)
    assert brought.code == 0, brought.err
    assert hashlib.sha256((mrm.directory / "report.json").read_bytes()).hexdigest() == report.sha256
    assert report.sha256 in brought.out

    refused = await mrm("report", "download", waiting.report_id, "--out", "other.json", **server)
    assert refused.code != 0 and "queued" in refused.err
    odd = await mrm(
        "report", "make", "--project", project.project_id, "--from", "2026-01-01", "--to", "2026-01-02",
        "--out", "report.doc", **server,
    )  # fmt: skip
    assert odd.code != 0 and ".xlsx" in odd.err
    assert [each.name for each in mrm.directory.iterdir()] == ["report.json"]
