"""Bar: however many campaigns a file has, the server holds a few requests of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from mrm.campaigns.v1 import campaign_import_service_pb2 as pb
from tests.campaigns.importing import bring, fingerprint, row
from tests.conftest import World

pytestmark = pytest.mark.bar_e

ROWS = 100_000 if os.environ.get("MRM_BARS") == "full" else 2_000
_AT_ONCE = 500
# Server and caller are one process here; allocators keep what they once had.
_MOST_GROWTH = 32 * 2**20


def resident() -> int:
    """Bytes of memory that this process has, the server included."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.timeout(1200)
async def test_memory_stays_flat_and_nothing_is_lost(world: World) -> None:
    project = await world.project((await world.client()).client_id)
    ahead = asyncio.Semaphore(2)

    async def requests() -> AsyncIterator[pb.ImportCampaignsRequest]:
        options = pb.CampaignImportOptions(project_id=project.project_id, fingerprint=fingerprint())
        yield pb.ImportCampaignsRequest(options=options)
        for start in range(1, ROWS + 1, _AT_ONCE):
            await ahead.acquire()
            rows = [
                row(line, f"old-{line}", display_name=f"N {line}", total_budget_micros=line, configuration={"n": line})
                for line in range(start, start + _AT_ONCE)
            ]
            yield pb.ImportCampaignsRequest(rows=rows, last=start + _AT_ONCE > ROWS)

    # What the first import of a process loads is no growth.
    warm = await world.project((await world.client()).client_id)
    await bring(world.admin, warm.project_id, [[row(line, f"{line}") for line in range(1, 501)]])
    before, started = resident(), time.monotonic()
    grown = 0
    async for reply in world.admin.imports.ImportCampaigns(requests(), metadata=world.admin.auth):
        ahead.release()
        grown = max(grown, resident() - before)
        state = reply.campaign_import
        assert not reply.errors
    seconds = time.monotonic() - started
    print(f"{ROWS} campaigns in {seconds:.1f} s, {ROWS / seconds:,.0f}/s, memory grew by {grown / 2**20:.1f} MiB")
    assert (state.created_count, state.row_count) == (ROWS, ROWS)
    for statement in (
        "SELECT count(*) FROM campaigns WHERE project_id = $1",
        "SELECT count(*) FROM audit_log WHERE project_id = $1 AND resource_type = 'campaign' AND action = 'create'",
    ):
        assert await world.database.fetchval(statement, UUID(project.project_id)) == ROWS
    assert grown < _MOST_GROWTH
