"""The README's tour, run as a newcomer would: with the real `mrm`, the real grpcurl and a shell."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGET, SANDBOX = "localhost:50051", "localhost:8090"


def tour() -> str:
    """All blocks marked `sh` of the README, in order."""
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S))


@pytest.mark.timeout(330)
async def test_the_tour_works_as_written(tmp_path: Path) -> None:
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    server = await asyncio.create_subprocess_exec(
        "mrm", "up", "--port", "0", "--sandbox", "0", cwd=tmp_path, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        target = sandbox = ""
        while not target:
            line = (await asyncio.wait_for(server.stdout.readline(), 60)).decode()
            assert line, "mrm up ended"
            if found := re.search(r"sandbox at http://(\S+)", line):
                sandbox = found[1]
            if found := re.search(r"serving on (\S+?:\d+)", line):
                target = found[1]
        script = "set -euo pipefail\n" + tour().replace(TARGET, target).replace(SANDBOX, sandbox)
        shell = await asyncio.create_subprocess_exec(
            "bash", "-c", script, cwd=tmp_path, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output = (await asyncio.wait_for(shell.communicate(), 280))[0].decode()
        assert shell.returncode == 0, output
    finally:
        server.terminate()
        assert await asyncio.wait_for(server.wait(), 30) == 0
    assert "mrm.statistics.v1.StatisticsService" in output
    assert "first a snapshot, then the campaigns that changed" in output
    assert '"storedCount": "2"' in output
    assert re.search(r'"impressions": "1",\s+"clicks": "1",\s+"conversions": "0",\s+"costMicros": "3700"', output), (
        output
    )
    assert '"snapshot"' in output
    assert '"impressions": "120000"' in output
    assert '"totals"' in output
    assert '"path": "daily_budget"' in output
    assert " update campaign " in output
    assert '"complete": true' in output
    assert re.search(r"campaign \S+ clicks 1000 -> 940\n", output), output
    assert "sync_campaign completed 1/5" in output
    assert output.count("sync_statistics completed 1/5") == 2
    assert '"clicks": "940"' in output
    assert re.search(r"statistics read \S+ \S+, \d+ s ago up to \d{4}-\d\d-\d\d\n", output), output
    assert "2 campaigns there, 1 of them linked to none here" in output
    assert '"BENCHMARK_LEVEL_FORMAT"' in output
    assert '"FORECAST_EVIDENCE_CHANNEL"' in output and "the client's past is too short" in output
    assert "exports/days.parquet" in output
    assert "1 rows in" in output
    assert "INTEGRATION_STATUS_DISCONNECTED" in output
    assert "y0_made-up" not in output
    assert "you wrote this version of the media plan: somebody else approves it" in output
    assert "-250,000.00 RUB" in output
    assert "MEDIA_PLAN_DECISION_KIND_ACTIVATE" in output
    assert "is archived: nothing of it can be changed" in output
    assert '"BUDGET_LEVEL_PROJECT"' in output
    assert "8 prompts added, 0 were there" in output
    assert re.search(r'"text": "(Please g|G)reet Anna in 5 words."', output), output
    assert "0 of its answers were judged, 100 are needed" in output
    assert "whoever started the experiment does not promote" in output
    assert "production: version 2 -> 1 (rollback)" in output
    assert '"editPercent": "16"' in output and "records[0].key: is that of another record" in output
    assert re.search(r"greeting v1 production +1 +0 % \(0-79.35\) +100 % \(20.65-100\)", output), output
    assert '"BUDGET_ALERT_POLICY_SOURCE_CLIENT"' in output
    assert "must be a valid UUID" in output
    assert '"buildVersion"' in output
    assert '"figureRowCount"' in output
    assert re.search(r"calls/s, p50 .* streams, .* due, .*rebuild lag", output), output
    assert "neither the client nor an agency above it has this account" in output
    assert "1 created, 0 updated, 1 skipped, 0 failed" in output
    assert re.search(r"cost +12.5625 +12.5625 +agree", output), output
    assert '"semanticScore"' in output
    assert re.search(r"0\.\d{3} \S+ Spring: .*words: spring", output), output
    assert '"COLUMN_REASON_KIND_SYNONYM"' in output
    # grpcurl writes brackets so.
    assert r"\u003cperson\u003e" in output and "Смирнова" not in output
    assert "campaign_events: 12 months, then in the archive for 5 years" in output
    assert '"missingStores"' in output
