"""Benchmarks: the narrowest that has enough observations answers, and says so."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from mrm.common.v1 import channel_pb2, platform_pb2
from mrm.planning.v1 import benchmark_pb2
from mrm.planning.v1 import benchmark_service_pb2 as pb
from server.planning.benchmark_service import seed_rows
from storage.errors import Conflict, Invalid
from storage.postgres import benchmarks
from storage.postgres.benchmarks import Benchmark
from tests.conftest import World

ROOT = Path(__file__).parents[2]
LEVEL = benchmark_pb2.BenchmarkLevel
METRIC = benchmark_pb2.BenchmarkMetric


def row(industry: str = "", p50: int = 2, **fields: object) -> Benchmark:
    base = Benchmark(
        uuid4(), industry, "", "", "", "", date(2026, 1, 1), date(2026, 6, 30), "ctr",
        Decimal(1), Decimal(p50), Decimal(90), 100, "a survey", "", "2026-1",
    )  # fmt: skip
    return replace(base, **fields)  # type: ignore[arg-type]


@pytest.fixture
async def industry(world: World) -> str:
    """A line of business with a benchmark at each level; the median tells which one answered."""
    name = f"industry {uuid4().hex}"
    vk = {"platform": "vk_ads"}
    await benchmarks.add(
        world.database,
        [
            row(name, 4),
            row(name, 3, **vk),
            row(name, 2, **vk, channel="social"),
            row(name, 1, **vk, channel="social", format="story", sample_size=7),
            row(name, 5, **vk, channel="social", geo="RU"),
            row(name, 6, **vk, channel="social", format="story", sample_size=7, version="2025-2"),
            row(name, 7, **vk, metric="cpc", currency="RUB"),
            row(name, 8, **vk, metric="cpc", currency="USD", channel="social"),
        ],
    )
    return name


async def found(world: World, **fields: object) -> dict[int, tuple[str, int, bool]]:
    request = pb.ListBenchmarksRequest(**fields)  # type: ignore[arg-type]
    reply = await world.admin.benchmarks.ListBenchmarks(request, metadata=world.admin.auth)
    return {b.benchmark.metric: (b.benchmark.p50, b.level, b.industry_matched) for b in reply.benchmarks}


VK = {"platform": platform_pb2.PLATFORM_VK_ADS}
SOCIAL = {**VK, "channel_type": channel_pb2.CHANNEL_TYPE_SOCIAL}
STORY = {**SOCIAL, "format": "story"}


@pytest.mark.parametrize(
    ("asked", "median", "level"),
    [
        (STORY, "1", LEVEL.BENCHMARK_LEVEL_FORMAT),
        ({**STORY, "format": "carousel"}, "2", LEVEL.BENCHMARK_LEVEL_CHANNEL),
        ({**STORY, "min_sample_size": 8}, "2", LEVEL.BENCHMARK_LEVEL_CHANNEL),
        ({**SOCIAL, "geo": "RU"}, "5", LEVEL.BENCHMARK_LEVEL_CHANNEL),
        ({**STORY, "geo": "RU"}, "1", LEVEL.BENCHMARK_LEVEL_FORMAT),
        ({**VK, "channel_type": channel_pb2.CHANNEL_TYPE_VIDEO}, "3", LEVEL.BENCHMARK_LEVEL_PLATFORM),
        ({"platform": platform_pb2.PLATFORM_YANDEX_DIRECT}, "4", LEVEL.BENCHMARK_LEVEL_INDUSTRY),
        ({}, "4", LEVEL.BENCHMARK_LEVEL_INDUSTRY),
    ],
)
async def test_the_narrowest_answers(
    world: World, industry: str, asked: dict[str, object], median: str, level: int
) -> None:
    answer = await found(world, industry=industry, metrics=[METRIC.BENCHMARK_METRIC_CTR], **asked)
    assert answer == {METRIC.BENCHMARK_METRIC_CTR: (median, level, True)}


async def test_amounts_are_never_converted(world: World, industry: str) -> None:
    cpc = METRIC.BENCHMARK_METRIC_CPC
    assert (await found(world, industry=industry, **STORY))[cpc][:2] == ("7", LEVEL.BENCHMARK_LEVEL_PLATFORM)
    dollars = await found(world, industry=industry, currency_code="USD", **STORY)
    assert dollars[cpc][:2] == ("8", LEVEL.BENCHMARK_LEVEL_CHANNEL)
    euros = await found(world, industry=industry, currency_code="EUR", **STORY)
    assert cpc not in euros


async def test_other_lines_of_business_fall_back_on_all(world: World) -> None:
    await benchmarks.add(world.database, seed_rows())
    asked = {
        "platform": platform_pb2.PLATFORM_OTHER,
        "channel_type": channel_pb2.CHANNEL_TYPE_DISPLAY,
        "format": "240x400",
        "currency_code": "XXX",
    }
    answer = await found(world, industry="nobody's", **asked)
    assert {metric: found[1:] for metric, found in answer.items()} == dict.fromkeys(
        METRIC.values()[1:], (LEVEL.BENCHMARK_LEVEL_FORMAT, False)
    )


async def test_pages_hold_all_figures_once(world: World) -> None:
    await benchmarks.add(world.database, seed_rows())
    seen: list[int] = []
    request = pb.ListBenchmarksRequest(currency_code="XXX", page_size=2)
    while True:
        reply = await world.admin.benchmarks.ListBenchmarks(request, metadata=world.admin.auth)
        seen += [found.benchmark.metric for found in reply.benchmarks]
        if not reply.next_page_token:
            break
        request.page_token = reply.next_page_token
    assert seen == METRIC.values()[1:]


async def test_seeding_twice_adds_nothing_and_keeps_edits(world: World) -> None:
    rows = seed_rows()
    await benchmarks.add(world.database, rows)
    edited = rows[0].id
    await world.database.execute("UPDATE benchmarks SET source = 'our own survey' WHERE id = $1", edited)
    try:
        assert await benchmarks.add(world.database, rows) == 0
        assert await world.database.fetchval("SELECT source FROM benchmarks WHERE id = $1", edited) == "our own survey"
    finally:
        await world.database.execute("UPDATE benchmarks SET source = $2 WHERE id = $1", edited, rows[0].source)


def test_the_seed_is_what_the_data_says(tmp_path: Path) -> None:
    """The committed file is what the tool makes of the committed data, and its ids are stable."""
    output = tmp_path / "benchmarks.csv"
    code = f"""
import runpy, pathlib
tool = runpy.run_path({str(ROOT / "tools/make_benchmarks.py")!r})
tool["main"].__globals__["OUTPUT"] = pathlib.Path({str(output)!r})
tool["main"]()"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert output.read_bytes() == (ROOT / "server/planning/seeds/benchmarks.csv").read_bytes()
    rows = seed_rows()
    assert len({row.id for row in rows}) == len(rows) > 50
    assert rows[0].id == UUID("51a9b59d-dd14-5d8d-899d-3df87cf0e8ee")
    assert all(row.sample_size >= 4 and row.source for row in rows)


@pytest.mark.parametrize(
    ("fault", "constraint"),
    [
        ({"p25": Decimal(3)}, "benchmarks_order"),
        ({"metric": "cpc"}, "benchmarks_currency_of_costs"),
        ({"currency": "RUB"}, "benchmarks_currency_of_costs"),
        ({"format": "story"}, "benchmarks_narrowing"),
        ({"sample_size": 0}, "benchmarks_sample_size_positive"),
        ({"metric": "luck"}, "benchmarks_metric_known"),
        ({"source": " "}, "benchmarks_source_given"),
    ],
)
async def test_rows_that_make_no_sense_are_refused(world: World, fault: dict[str, object], constraint: str) -> None:
    with pytest.raises(Invalid) as caught:
        await benchmarks.add(world.database, [row(uuid4().hex, **fault)])
    assert caught.value.constraint == constraint


async def test_the_same_observation_is_not_taken_twice(world: World) -> None:
    first = row(uuid4().hex)
    await benchmarks.add(world.database, [first])
    with pytest.raises(Conflict):
        await benchmarks.add(world.database, [replace(first, id=uuid4())])
