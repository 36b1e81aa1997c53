"""BenchmarkService: what others reached with a figure."""

import csv
from datetime import date
from decimal import Decimal
from importlib import resources
from typing import Final
from uuid import UUID, uuid5

from mrm.common.v1 import channel_pb2, platform_pb2
from mrm.planning.v1 import benchmark_pb2
from mrm.planning.v1 import benchmark_service_pb2 as pb
from server.rpc.call import Call
from server.rpc.paging import Pager
from server.rpc.values import EnumWords
from storage.postgres import benchmarks
from storage.postgres.benchmarks import Benchmark
from storage.postgres.database import Database

METRICS: Final = EnumWords(benchmark_pb2.BenchmarkMetric, "BENCHMARK_METRIC_")
PLATFORMS: Final = EnumWords(platform_pb2.Platform, "PLATFORM_")
CHANNEL_TYPES: Final = EnumWords(channel_pb2.ChannelType, "CHANNEL_TYPE_")

# Ids follow from what a row says, so that loading a data set again changes nothing.
_SEED_NAMESPACE: Final = UUID("6f0f7a54-6c1c-5a51-9d0a-5b8f8b1c7a10")
_DEFAULT_CURRENCY: Final = "RUB"


class BenchmarkService:
    """Implements mrm.planning.v1.BenchmarkService.

    Args:
        database: Where benchmarks live.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager

    async def ListBenchmarks(self, request: pb.ListBenchmarksRequest, call: Call) -> pb.ListBenchmarksResponse:
        """Finds the benchmark of each figure that fits best."""
        page = self._pager.start(request, call)
        found = await benchmarks.best(
            self._database,
            industry=request.industry,
            platform=PLATFORMS.optional_word(request.platform) or "",
            channel=CHANNEL_TYPES.optional_word(request.channel_type) or "",
            format=request.format,
            geo=request.geo,
            currency=request.currency_code or _DEFAULT_CURRENCY,
            min_sample_size=max(1, request.min_sample_size),
            metrics=METRICS.optional_words(request.metrics),
        )
        found.sort(key=lambda row: METRICS.number(row.metric))
        seen = next((i + 1 for i, row in enumerate(found) if row.id == page.after), 0)
        rows, next_token = page.cut(found[seen : seen + page.size + 1])
        return pb.ListBenchmarksResponse(
            benchmarks=[answer(row, request.industry) for row in rows],
            next_page_token=next_token,
        )


def message(row: Benchmark) -> benchmark_pb2.Benchmark:
    """A benchmark."""
    return benchmark_pb2.Benchmark(
        benchmark_id=str(row.id),
        industry=row.industry,
        platform=PLATFORMS.number(row.platform),
        channel_type=CHANNEL_TYPES.number(row.channel),
        format=row.format,
        geo=row.geo,
        start_date=row.start_date.isoformat(),
        end_date=row.end_date.isoformat(),
        metric=METRICS.number(row.metric),
        p25=_plain(row.p25),
        p50=_plain(row.p50),
        p75=_plain(row.p75),
        sample_size=row.sample_size,
        source=row.source,
        currency_code=row.currency,
        version=row.version,
    )


def answer(row: Benchmark, industry: str) -> pb.FoundBenchmark:
    """A benchmark as the answer to a question about a line of business; empty for all of them."""
    return pb.FoundBenchmark(
        benchmark=message(row), level=level(row), industry_matched=bool(industry) and row.industry == industry
    )


def level(row: Benchmark) -> benchmark_pb2.BenchmarkLevel.ValueType:
    """How narrow an observation is."""
    if row.format:
        return benchmark_pb2.BENCHMARK_LEVEL_FORMAT
    if row.channel:
        return benchmark_pb2.BENCHMARK_LEVEL_CHANNEL
    if row.platform:
        return benchmark_pb2.BENCHMARK_LEVEL_PLATFORM
    return benchmark_pb2.BENCHMARK_LEVEL_INDUSTRY


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seed_rows() -> list[Benchmark]:
    """The benchmarks that come with the service; `tools/make_benchmarks.py` made them of public data."""
    text = resources.files("server.planning").joinpath("seeds/benchmarks.csv").read_text(encoding="utf-8")
    return [_seed_row(row) for row in csv.DictReader(text.splitlines())]


def _seed_row(row: dict[str, str]) -> Benchmark:
    key = (
        "industry",
        "platform",
        "channel",
        "format",
        "geo",
        "start_date",
        "end_date",
        "metric",
        "currency",
        "version",
    )
    return Benchmark(
        id=uuid5(_SEED_NAMESPACE, "|".join(row[name] for name in key)),
        industry=row["industry"],
        platform=row["platform"],
        channel=row["channel"],
        format=row["format"],
        geo=row["geo"],
        start_date=date.fromisoformat(row["start_date"]),
        end_date=date.fromisoformat(row["end_date"]),
        metric=row["metric"],
        p25=Decimal(row["p25"]),
        p50=Decimal(row["p50"]),
        p75=Decimal(row["p75"]),
        sample_size=int(row["sample_size"]),
        source=row["source"],
        currency=row["currency"],
        version=row["version"],
    )
