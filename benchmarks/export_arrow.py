"""export.arrow: ExportStatistics of hourly rows, over the same statement through the driver's own client."""

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import clickhouse_connect
import grpc
import pyarrow as pa

from benchmarks.harness import Bench, Result, console, interleaved
from benchmarks.tenants import Tenant, make_tenant
from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from mrm.statistics.v1 import statistics_service_pb2_grpc as rpc
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.exports import Extract
from storage.clickhouse.metrics import Selection

ROWS = 5_000_000
DAYS = 90
BAR = 0.7
FIRST = datetime(2025, 6, 1, tzinfo=UTC)


async def run(bench: Bench) -> list[Result]:
    """Measures whole exports, read by a client process that decodes every batch."""
    tenant = await make_tenant(bench, 1)
    hours = DAYS * 24
    campaigns = max(1, round(ROWS * bench.scale) // hours)
    await _fill(bench, tenant, campaigns, hours)
    rows = campaigns * hours
    servers = _children("benchmarks.serve")
    before = sum(map(_resident, servers))
    grown = 0

    async def through_grpc() -> float:
        nonlocal grown
        figure = await _client("grpc", {"target": bench.target, "secret": tenant.secret, **_what(tenant, rows)})
        grown = max(grown, sum(map(_resident, servers)) - before)
        return figure

    async def straight() -> float:
        return await _client("straight", {"dsn": bench.connections.clickhouse_dsn, **_what(tenant, rows)})

    value, floor, ratio = await interleaved(min(5, bench.rounds), through_grpc, straight, settle=min(1.0, bench.settle))
    console.print(f"  the server grew by {grown / 2**20:.0f} MiB")
    return [Result("export.arrow", value, "rows/s", floor, ratio, BAR, ratio >= BAR)]


def _what(tenant: Tenant, rows: int) -> dict[str, object]:
    return {"client": str(tenant.client_id), "rows": rows}


async def _fill(bench: Bench, tenant: Tenant, campaigns: int, hours: int) -> None:
    """Rows made inside ClickHouse, a few million an insert."""
    store = ClickHouse(bench.connections.clickhouse_dsn, connections=1)
    step = 500
    try:
        for begin in range(0, campaigns, step):
            count = min(step, campaigns - begin) * hours
            await store.execute(
                f"""INSERT INTO campaign_metrics_hourly (client_id, campaign_id, platform, source, grain, hour,
                  project_id, currency, impressions, clicks, conversions, cost, revenue, event_count, version)
                SELECT '{tenant.client_id}', reinterpretAsUUID(sipHash128(intDiv(number, {hours}))), 'other', 'events',
                  'hour', toDateTime({int(FIRST.timestamp())} + number % {hours} * 3600, 'UTC'), '{UUID(int=1)}',
                  'RUB', rand(1) % 5000, rand(2) % 300, toDecimal128(rand(3) % 90, 6) / 2,
                  toDecimal128(rand(4) % 900000000, 6) / 1000000, toDecimal128(rand(5), 6) / 1000000, 1, 1
                FROM numbers({begin * hours}, {count})""",
                timeout=300.0,
            )
    finally:
        await store.close()


async def _client(side: str, arguments: dict[str, object]) -> float:
    """Rows a second as a client process sees them; its own start is left out."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.export_arrow", side, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(child.communicate(json.dumps(arguments).encode()), 600)
    if child.returncode:
        raise RuntimeError(f"the {side} client failed")
    return float(out)


async def _through_grpc(target: str, secret: str, client: str, rows: int) -> float:
    request = pb.ExportStatisticsRequest(
        dates=time_pb2.DateRange(
            start_date=FIRST.date().isoformat(), end_date=(FIRST + timedelta(days=DAYS - 1)).date().isoformat()
        ),
        granularity=time_pb2.GRANULARITY_HOUR,
        filter=pb.StatisticsFilter(client_ids=[client]),
        time_zone="UTC",
    )
    metadata = (("authorization", f"Bearer {secret}"),)
    async with grpc.aio.insecure_channel(target) as channel:
        begun, got = time.perf_counter(), 0
        async for part in rpc.StatisticsServiceStub(channel).ExportStatistics(request, metadata=metadata):
            got += pa.ipc.open_stream(part.arrow).read_all().num_rows
        seconds = time.perf_counter() - begun
    return _checked(got, rows, seconds)


async def _straight(dsn: str, client: str, rows: int) -> float:
    start = int(FIRST.timestamp())
    extract = Extract(
        Selection(clients=(UUID(client),)), start, start + DAYS * 86_400, ZoneInfo("UTC"), days=None, mixed=False
    )
    sql = extract.sql("mrm").removesuffix("FORMAT ArrowStream")
    driver = await clickhouse_connect.get_async_client(dsn=dsn, compress=False)
    try:
        begun, got = time.perf_counter(), 0
        async with await driver.query_arrow_stream(sql) as batches:
            async for batch in batches:
                got += batch.num_rows
        seconds = time.perf_counter() - begun
    finally:
        await driver.close()
    return _checked(got, rows, seconds)


def _checked(got: int, rows: int, seconds: float) -> float:
    if got != rows:
        raise RuntimeError(f"{got} of {rows} rows")
    return rows / seconds


def _children(module: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == os.getpid()
            if ours and module.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    side = _through_grpc if sys.argv[1] == "grpc" else _straight
    print(asyncio.run(side(**json.load(sys.stdin))))
