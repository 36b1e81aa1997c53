"""`mrm ingest` and `mrm watch` against the real server."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import statistics_service_pb2

from .conftest import Mrm

if TYPE_CHECKING:
    from tests.conftest import World


def write(path: Path, campaigns: list[str], count: int, bad: tuple[int, ...] = ()) -> Path:
    """A file of impressions of the last minutes; the lines in `bad` have no time."""
    start = datetime.now(UTC) - timedelta(minutes=5)
    lines = ["event_time,campaign_id,event_type,cost,region"]
    for number in range(count):
        moment = "" if number + 2 in bad else (start + timedelta(milliseconds=number)).isoformat()
        lines.append(f"{moment},{campaigns[number % len(campaigns)]},impression,0.000001,north")
    path.write_text("\n".join(lines) + "\n")
    return path


async def totals(world: World, client_id: str) -> tuple[int, int]:
    """(impressions, cost in micros) once they stand still."""
    today = datetime.now(UTC).date()
    request = statistics_service_pb2.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date=str(today - timedelta(days=1)), end_date=str(today + timedelta(days=1))),
        granularity=time_pb2.GRANULARITY_TOTAL,
        filter=statistics_service_pb2.StatisticsFilter(client_ids=[client_id]),
    )
    seen: list[tuple[int, int]] = []
    async with asyncio.timeout(30):
        while len(seen) < 5 or len(set(seen[-5:])) > 1:
            reply = await world.admin.statistics.QueryStatistics(request, metadata=world.admin.auth)
            figures = [row.metrics for row in reply.rows]
            seen.append((sum(f.impressions for f in figures), sum(f.cost_micros for f in figures)))
            await asyncio.sleep(0.3)
    return seen[-1]


async def test_a_file_counts_once_however_often_it_is_sent(world: World, mrm: Mrm, tmp_path: Path) -> None:
    client_id, campaigns = await world.tenant(campaigns=3)
    key = await world.key([client_id])
    file = write(tmp_path / "events.csv", campaigns, 5000)
    common = ("--client", client_id, "--target", world.target)
    first = await mrm("ingest", file, *common, MRM_TOKEN=key.token)
    assert first.code == 0, first.err
    assert "5,000 events" in first.out
    again = await mrm("ingest", file, *common, MRM_TOKEN=key.token)
    assert "resuming after 5,000 events" in again.out
    other = await mrm("ingest", file, *common, "--stream", "by-hand", MRM_TOKEN=key.token)
    assert "5,000 stored" in other.out
    assert await totals(world, client_id) == (5000, 5000)


async def test_bad_lines_are_named_and_stop_everything_unless_allowed(world: World, mrm: Mrm, tmp_path: Path) -> None:
    client_id, campaigns = await world.tenant()
    key = await world.key([client_id])
    file = write(tmp_path / "events.csv", campaigns, 100, bad=(3, 50))
    token_file = tmp_path / "token"
    token_file.write_text(key.token + "\n")
    common = ("--client", client_id, "--target", world.target, "--token-file", token_file)
    refused = await mrm("ingest", file, *common)
    assert refused.code == 1
    assert "line 3: event_time: is missing" in refused.err
    assert "line 50: event_time: is missing" in refused.err
    assert "nothing was sent" in refused.err
    assert await totals(world, client_id) == (0, 0)
    allowed = await mrm("ingest", file, *common, "--max-errors", "2")
    assert allowed.code == 0, allowed.err
    assert "2 bad lines left out" in allowed.out
    assert (await totals(world, client_id))[0] == 98


async def test_an_unknown_campaign_stops_before_anything_is_sent(world: World, mrm: Mrm, tmp_path: Path) -> None:
    client_id, campaigns = await world.tenant()
    _, foreign = await world.tenant()
    key = await world.key([client_id])
    file = write(tmp_path / "events.csv", [campaigns[0], foreign[0]], 100)
    result = await mrm("ingest", file, "--client", client_id, "--target", world.target, MRM_TOKEN=key.token)
    assert result.code == 1
    assert re.search(r"nothing was sent: line 3: campaign_id", result.err)
    assert await totals(world, client_id) == (0, 0)


async def test_a_key_without_the_right_is_told_so(world: World, mrm: Mrm, tmp_path: Path) -> None:
    client_id, campaigns = await world.tenant()
    file = write(tmp_path / "events.csv", campaigns, 10)
    common = ("ingest", file, "--client", client_id, "--target", world.target)
    denied = await mrm(*common, MRM_TOKEN=world.admin.token)
    assert "PERMISSION_DENIED" in denied.err
    unknown = await mrm(*common, MRM_TOKEN="mrmk_unknown")
    assert "UNAUTHENTICATED" in unknown.err
    assert denied.code == unknown.code == 1


async def test_watch_shows_what_ingest_sends(world: World, mrm: Mrm, tmp_path: Path) -> None:
    client_id, campaigns = await world.tenant()
    key = await world.key([client_id])
    common = ("--client", client_id, "--target", world.target)
    watching = await mrm.start("watch", *common, "--window", "7d", MRM_TOKEN=world.admin.token)
    assert watching.stdout is not None
    try:
        file = write(tmp_path / "events.csv", campaigns, 1000)
        await mrm("ingest", file, *common, MRM_TOKEN=key.token)
        async with asyncio.timeout(30):
            while b"1,000 impressions" not in (line := await watching.stdout.readline()):
                assert line
    finally:
        watching.terminate()
        await watching.communicate()
    once = await mrm("watch", *common, "--window", "7d", "--once", MRM_TOKEN=world.admin.token)
    assert "1,000" in once.out
    assert "Campaign" in once.out, "campaigns are shown by name"
