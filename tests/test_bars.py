"""Behind the bars: every benchmark measures what it says. (The demo's is in tests/cli.)

`make test` runs short forms, which hold no figure against a bar: a shared machine would fail them for no reason.
`make bars` runs the full ones (MRM_BARS=full), which do.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FULL = os.environ.get("MRM_BARS") == "full"
# What to measure, and the figures it gives.
FOUNDATION = (
    ("ingest", "unary", "watch"),
    {"ingest.append_events", "unary.get_campaign", "watch.latency.p50", "watch.latency.p99"},
)
DEPTH = (
    ("small_appends", "query_daily", "export_arrow"),
    {"ingest.small_appends", "ingest.small_appends_mixed", "query.daily", "export.arrow"},
)
# These take too long for every day, however little they measure.
LONG = (
    ("vs_fastapi_unary", "vs_fastapi_ingest", "fanout", "growth"),
    {
        *("unary.vs_fastapi", "ingest.vs_fastapi", "ingest.vs_jsonl", "watch.fanout", "watch.fanout.growth"),
        *("growth.query", "growth.ingest", "growth.rebuild"),
    },
)
ACCOUNTS = (("mutation",), {"mutation.idempotent"})
PLANNING = (("plan_update",), {"plan.update"})
EXECUTION = (("jobs_throughput",), {"jobs.throughput"})
REPORTS = (("reports",), {"report.pdf", "report.xlsx"})
CAMPAIGNS = (("mutate_1000",), {"campaigns.mutate_1000"})
FEEDBACK = (("feedback_stream",), {"feedback.stream"})
EMBEDDING = (("embed_throughput",), {"embed.throughput"})
OPERATIONS = (("observability",), {"observability.metrics", "observability.tracing_off"})
EVERY_DAY = (FOUNDATION, DEPTH, ACCOUNTS, PLANNING, EXECUTION, REPORTS, CAMPAIGNS, FEEDBACK, EMBEDDING, OPERATIONS)


async def run(*command: str, cwd: Path, seconds: float) -> tuple[int, str]:
    """Runs a command to its end; its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output = (await asyncio.wait_for(process.communicate(), seconds))[0]
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def measure(benchmarks: tuple[str, ...], target: Path) -> tuple[list[dict[str, Any]], str]:
    """The figures of these benchmarks, and what they printed."""
    scale = "1" if FULL else "0.02"
    command = (sys.executable, "-m", "benchmarks", *benchmarks, "--scale", scale, "--output", str(target))
    _, output = await run(*command, cwd=ROOT, seconds=7100)
    assert target.exists(), output
    return json.loads(target.read_text()), output


@pytest.fixture(scope="module")
async def every_day(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """What all short forms give: in one run, which costs a fraction of one for each."""
    if FULL:
        return [], ""
    names = tuple(itertools.chain.from_iterable(benchmarks for benchmarks, _ in EVERY_DAY))
    results, output = await measure(names, tmp_path_factory.mktemp("bars") / "results.json")
    assert {result["name"] for result in results} == set().union(*(figures for _, figures in EVERY_DAY)), output
    return results, output


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("benchmarks", "figures"),
    [
        pytest.param(*FOUNDATION, marks=pytest.mark.bar_a, id="foundation"),
        pytest.param(*DEPTH, marks=pytest.mark.bar_b, id="depth"),
        pytest.param(
            *LONG,
            marks=[pytest.mark.bar_b, pytest.mark.skipif(not FULL, reason="takes long: make bars")],
            id="depth-long",
        ),
        pytest.param(*ACCOUNTS, marks=pytest.mark.bar_c, id="accounts"),
        pytest.param(*PLANNING, marks=pytest.mark.bar_d, id="planning"),
        pytest.param(*EXECUTION, marks=pytest.mark.bar_e, id="execution"),
        pytest.param(*REPORTS, marks=pytest.mark.bar_f, id="reports"),
        pytest.param(*CAMPAIGNS, marks=pytest.mark.bar_e, id="campaigns"),
        pytest.param(*FEEDBACK, marks=pytest.mark.bar_g, id="feedback"),
        pytest.param(*EMBEDDING, marks=pytest.mark.bar_g, id="embedding"),
        pytest.param(*OPERATIONS, marks=pytest.mark.bar_h, id="operations"),
    ],
)
async def test_every_figure_is_measured(
    every_day: tuple[list[dict[str, Any]], str], tmp_path: Path, benchmarks: tuple[str, ...], figures: set[str]
) -> None:
    if FULL:
        results, output = await measure(benchmarks, tmp_path / "results.json")
    else:
        results, output = [result for result in every_day[0] if result["name"] in figures], every_day[1]
    assert {result["name"] for result in results} == figures, output
    for result in results:
        assert set(result) == {"name", "value", "unit", "floor", "ratio", "bar", "ok", "scale"}
        assert result["value"] > 0
        assert result["floor"] is None or result["ratio"] > 0
        assert result["ok"] or not FULL, output
