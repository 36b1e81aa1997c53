"""growth.*: what ingest, rebuild, query and watch cost when there are fifty times as many events.

Two worlds stand side by side: one keeps its million events, the other grows to fifty million, and with the events grow
its campaigns and its days. At each step both are asked the same, in turn, so that a figure is a ratio of the same
minutes and not of the machine's mood. Both end now: what grows is history, and the number of campaigns.

To be filled fast, the worlds get their events by the INSERT of the server (`storage/clickhouse/events.py`), but their
figures by two large statements instead of a thousand slices at a time, and no server runs meanwhile. What is measured
then goes through the service as any caller's does, the rebuild through the server's own code. The server's look-back
for late marks is short here, and its search for lost marks does not reach into the filling: both would only repeat for
minutes what the filling has done.
"""

import asyncio
import json
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import grpc
from rich.table import Table

from benchmarks.chart import Line, draw
from benchmarks.events import Traffic, zipf
from benchmarks.harness import Bench, Result, console, engines, interleaved, percentile, server
from benchmarks.ingest import BATCH, _through_grpc
from benchmarks.tenants import Tenant, make_tenant
from benchmarks.watch import _latency, _produce, _watch
from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from mrm.statistics.v1 import statistics_service_pb2_grpc as rpc
from server.settings import MetricsSettings
from server.statistics.aggregator import LEASE, Leader
from server.statistics.lanes import LaneReader
from server.statistics.relay import CampaignDirectory
from server.statistics.watermark import CURSOR, Progress
from storage.clickhouse import events, metrics, rebuild
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.events import Bounds
from storage.clickhouse.metrics import Watched
from storage.clickhouse.pseudonyms import Salt
from storage.postgres import leases, metrics_state, user_id_salts
from storage.postgres.database import Database
from storage.redis.signals import Signals

prepared = engines

EVENTS = 50_000_000
STEPS = (1, 2, 5, 10, 20, 50)
BARS = {"query": 1.5, "ingest": 1.2, "rebuild": 1.5}
COSTS = {"ingest": "us", "rebuild": "us", "query": "ms", "tick": "ms", "watch": "ms"}

ZONES = ("Europe/Moscow", "UTC", "Asia/Vladivostok", "Asia/Yekaterinburg")
"""Time zones of the clients, which have equal shares of the campaigns."""
FIRST_CAMPAIGNS = 16
FIRST_DAYS = 7
ASKED_CAMPAIGNS = 4
"""Campaigns of the first client that are asked, watched and sent to: those that had traffic from the beginning."""
REBUILT_SLICES = 1000
QUERIES = 5
FILLERS = 3
WATCH_SECONDS = 4.0

_OVERLAP_SECONDS = 10
_SERVER = {
    "MRM_METRICS__MARK_OVERLAP": f"PT{_OVERLAP_SECONDS}S",
    "MRM_METRICS__SWEEP_WINDOW": "PT1S",
    "MRM_AUTH__LIMIT_HEAVY": "1000000",
}
_LONG = timedelta(hours=6)
_MERGE_SECONDS = 60


# What rebuilding every slice of a span, and then every hour, comes to.
_SLICES = """INSERT INTO campaign_metrics_slices SELECT client_id, campaign_id,
  toStartOfFifteenMinutes(event_time) AS slice_start, any(project_id), any(platform), any(currency),
  countIf(event_type = 'impression'), countIf(event_type = 'click'), sum(conversions), sum(cost), sum(revenue), count(),
  {version}
FROM campaign_events FINAL WHERE {of_these} AND event_time {after} AND event_time {before}
GROUP BY client_id, campaign_id, slice_start"""
_HOURS = """INSERT INTO campaign_metrics_hourly (client_id, campaign_id, platform, source, grain, hour, project_id,
  currency, impressions, clicks, conversions, cost, revenue, event_count, version)
SELECT client_id, campaign_id, any(platform), 'events', 'hour', toStartOfHour(slice_start) AS at, any(project_id),
  any(currency), sum(impressions), sum(clicks), sum(conversions), sum(cost), sum(revenue), sum(event_count), {version}
FROM campaign_metrics_slices FINAL WHERE {of_these} AND slice_start {after} AND slice_start {before}
GROUP BY client_id, campaign_id, at"""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a world is.

    Attributes:
        events: All events.
        campaigns: Campaigns with traffic.
        days: Days with traffic, the last one being the one that ends now.
    """

    events: int
    campaigns: int
    days: float


@dataclass(frozen=True, slots=True)
class Step:
    """What was measured at one size; costs are of the grown world, ratios by that of the first size.

    Attributes:
        ingest: Microseconds of each event, through AppendEvents.
        rebuild: Microseconds of each marked slice, finding it included.
        query: Milliseconds of a QueryStatistics of 7 days by hour and campaign.
        tick: Milliseconds of the statement by which a process reads what is watched.
        watch: Milliseconds from an acknowledgement to the watcher that shows it, in the median.
        ratios: Of each of these.
    """

    events: int
    campaigns: int
    days: float
    gigabytes: float
    fill_seconds: float
    ingest: float
    rebuild: float
    query: float
    tick: float
    watch: float
    ratios: dict[str, float]


def sizes(total: int) -> list[Size]:
    """The steps to a number of events: campaigns grow with its root, days with what is left."""
    first = total // STEPS[-1]
    rate = first / FIRST_DAYS / sum(zipf(range(FIRST_CAMPAIGNS)))
    steps = []
    for factor in STEPS:
        campaigns = round(FIRST_CAMPAIGNS * factor**0.5)
        steps.append(Size(first * factor, campaigns, first * factor / rate / sum(zipf(range(campaigns)))))
    return steps


class World:
    """Engines with some clients, and what fills them."""

    def __init__(self, bench: Bench, tenants: list[Tenant], database: Database, now: int, rate: float) -> None:
        self.bench = bench
        self.tenants = tenants
        self.database = database
        self.clickhouse = ClickHouse(bench.connections.clickhouse_dsn, connections=FILLERS + 2)
        self.signals = Signals(bench.connections.redis_dsn)
        self.size = Size(0, 0, 0.0)
        self._now = now
        self._rate = rate
        self.asked = replace(tenants[0], campaign_ids=tenants[0].campaign_ids[:ASKED_CAMPAIGNS])
        recent = Traffic(
            9_999_999, self.asked.campaign_ids, zipf(range(ASKED_CAMPAIGNS)), now - 3600, now, ZONES[0], 4 * BATCH
        )
        self.batches = [recent.batch(at, at + BATCH) for at in range(0, recent.count, BATCH)]

    @classmethod
    @asynccontextmanager
    async def open(cls, bench: Bench, campaigns: int, now: int, rate: float) -> "AsyncIterator[World]":
        """Makes clients with enough campaigns for the largest size, all known to ClickHouse."""
        tenants = [await make_tenant(bench, -(-campaigns // len(ZONES)), zone) for zone in ZONES]
        database = await Database.open(bench.connections.postgres_dsn, min_size=1, max_size=4)
        world = cls(bench, tenants, database, now, rate)
        try:
            known = [campaign for tenant in tenants for campaign in tenant.campaign_ids]
            await CampaignDirectory(database, world.clickhouse).resolve_unknown(known)
            yield world
        finally:
            await world.signals.close()
            await world.clickhouse.close()
            await database.close()

    async def grow(self, size: Size) -> None:
        """Adds campaigns and days up to a size, and brings the figures up to date."""
        begin, before = (
            (self._now - int(each.days * 86_400)) // 3600 * 3600 if each.days else self._now
            for each in (size, self.size)
        )
        work = []
        for number, tenant in enumerate(self.tenants):
            old, new = (range(number, each.campaigns, len(ZONES)) for each in (self.size, size))
            added = range(new.start + len(old) * len(ZONES), new.stop, len(ZONES))
            # Campaigns that were there get an earlier history, those that come have one as long.
            for kind, ranks, end in ((0, old, before), (1, added, self._now)):
                if ranks and end > begin:
                    seed = (size.campaigns * 8 + number) * 2 + kind
                    ids = [self._campaign(rank) for rank in ranks]
                    weights = zipf(ranks)
                    count = round(self._rate * sum(weights) * (end - begin) / 86_400)
                    traffic = Traffic(seed, ids, weights, begin, end, ZONES[number], count)
                    work.append((tenant.client_id, traffic, ranks))
        await self._fill([(client_id, traffic) for client_id, traffic, _ in work])
        for client_id, traffic, ranks in work:
            await self._roll_up(client_id, ranks, traffic.start, traffic.end)
        await self._skip_marks()
        self.size = size

    def _campaign(self, rank: int) -> UUID:
        return self.tenants[rank % len(ZONES)].campaign_ids[rank // len(ZONES)]

    async def _fill(self, work: list[tuple[UUID, Traffic]]) -> None:
        salts = {
            client_id: Salt.of(await user_id_salts.get_internal(self.database, client_id))
            for client_id in {client_id for client_id, _ in work}
        }
        bounds = Bounds(self._now - 366 * 86_400, self._now + 600)
        left = _interleaved_ranges(work)

        async def fill() -> None:
            for client_id, traffic, first in left:
                batch = await asyncio.to_thread(traffic.batch, first, min(first + BATCH, traffic.count))
                await events.insert(self.clickhouse, client_id, batch, bounds, salts[client_id], timeout=120.0)

        async with asyncio.TaskGroup() as group:
            for _ in range(FILLERS):
                group.create_task(fill())

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[tuple[Leader, int]]:
        """The rebuild, here instead of in a server, and the epoch of its lease."""
        epoch = await leases.acquire(self.database, LEASE, f"growth:{os.getpid()}", _LONG)
        assert epoch is not None, "a server of this world is running"
        try:
            yield Leader(self.database, self.clickhouse, self.signals, MetricsSettings(), epoch, Progress()), epoch
        finally:
            await leases.release(self.database, LEASE, f"growth:{os.getpid()}", epoch)

    async def _roll_up(self, client_id: UUID, ranks: range, begin: int, end: int) -> None:
        """Figures of a span that has just been filled, all at once."""
        campaigns = ", ".join(f"'{self._campaign(rank)}'" for rank in ranks)
        version = await metrics_state.next_version(self.database, 1)
        of_these = f"client_id = toUUID('{client_id}') AND campaign_id IN ({campaigns})"
        after, before = f">= toDateTime({begin}, 'UTC')", f"< toDateTime({end}, 'UTC')"
        for statement in (_SLICES, _HOURS):
            await self.clickhouse.execute(
                statement.format(of_these=of_these, after=after, before=before, version=version),
                settings={"max_threads": 2, "optimize_aggregation_in_order": 1},
                timeout=600.0,
            )

    async def _skip_marks(self) -> None:
        """Has the next leader begin after the filling."""
        async with self.leading() as (_, epoch):
            reached = await rebuild.now_millis(self.clickhouse)
            await metrics_state.move_cursor(self.database, CURSOR, Progress(reached, reached).to_position(), epoch)

    async def check(self) -> None:
        """Compares the figures with the events."""
        [(stored, counted)] = await self.clickhouse.fetch(
            """SELECT (SELECT count() FROM campaign_events FINAL),
              (SELECT sum(event_count) FROM campaign_metrics_hourly FINAL)""",
            timeout=300.0,
        )
        if stored != counted:
            raise RuntimeError(f"{counted} of {stored} events are in the figures")

    async def settle(self) -> None:
        """Waits until ClickHouse has done its merges, or long enough for most of them."""
        for _ in range(_MERGE_SECONDS):
            if not (await self.clickhouse.fetch("SELECT count() FROM system.merges"))[0][0]:
                return
            await asyncio.sleep(1)

    async def gigabytes(self) -> float:
        """What the database takes on disk."""
        [(size,)] = await self.clickhouse.fetch(
            "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
        )
        return float(size) / 1e9

    async def rebuild_seconds(self, leader: Leader) -> float:
        """Seconds for each of some marked slices: finding them, slices, hours."""
        begin = await rebuild.now_millis(self.clickhouse)
        quarters = REBUILT_SLICES // ASKED_CAMPAIGNS
        newest = begin // 1000 // rebuild.SLICE_SECONDS * rebuild.SLICE_SECONDS - 8 * rebuild.SLICE_SECONDS
        campaigns = ", ".join(f"'{campaign}'" for campaign in self.asked.campaign_ids)
        await self.clickhouse.execute(
            f"""INSERT INTO dirty_slices SELECT toUUID('{self.asked.client_id}'),
              arrayElement([{campaigns}]::Array(UUID), 1 + intDiv(number, {quarters})),
              toDateTime({newest} - number % {quarters} * {rebuild.SLICE_SECONDS}, 'UTC'), now64(3)
            FROM numbers({REBUILT_SLICES})"""
        )
        reader = LaneReader("late", begin, 0)
        begun = time.perf_counter()
        await leader.tick(reader, 2)
        return (time.perf_counter() - begun) / REBUILT_SLICES

    async def tick_seconds(self) -> float:
        """Seconds of the statement that reads what is watched, for a day of the campaigns that are."""
        end = self._now // 3600 * 3600 + 3600
        watched = Watched(end - 86_400, end, {self.asked.client_id: self.asked.campaign_ids})
        begun = time.perf_counter()
        for _ in range(QUERIES):
            if len(await metrics.live_totals(self.clickhouse, [watched], 30.0)) != ASKED_CAMPAIGNS:
                raise RuntimeError("campaigns are missing")
        return (time.perf_counter() - begun) / QUERIES

    async def query_seconds(self, channel: grpc.aio.Channel) -> float:
        """Seconds of a query of a week of some campaigns."""
        today = datetime.fromtimestamp(self._now, ZoneInfo(ZONES[0])).date()
        request = pb.QueryStatisticsRequest(
            dates=time_pb2.DateRange(start_date=(today - timedelta(days=6)).isoformat(), end_date=today.isoformat()),
            granularity=time_pb2.GRANULARITY_HOUR,
            dimensions=[pb.DIMENSION_CAMPAIGN],
            filter=pb.StatisticsFilter(
                client_ids=[str(self.asked.client_id)], campaign_ids=map(str, self.asked.campaign_ids)
            ),
        )
        stub = rpc.StatisticsServiceStub(channel)
        begun = time.perf_counter()
        for _ in range(QUERIES):
            reply = await stub.QueryStatistics(request, metadata=self.asked.metadata)
            if not any(row.data_present for row in reply.rows):
                raise RuntimeError("no figures")
        return (time.perf_counter() - begun) / QUERIES

    async def ingest_seconds(self, channel: grpc.aio.Channel) -> float:
        """Seconds for each event of the last hour, sent again each time."""
        return 1 / await _through_grpc(channel, self.asked, self.batches)

    async def watch_seconds(self, channel: grpc.aio.Channel, target: str, seconds: float) -> float:
        """Median seconds from an acknowledgement to the watcher."""
        seen: dict[str, list[tuple[int, float]]] = defaultdict(list)
        ready = asyncio.Event()
        found: list[float] = []
        async with grpc.aio.insecure_channel(target, (("grpc.use_local_subchannel_pool", 1),)) as watching:
            watcher = asyncio.create_task(_watch(watching, self.asked, seen, ready, self.asked.campaign_ids))
            try:
                async with asyncio.timeout(60):
                    await ready.wait()
                    shown = {campaign: states[-1][0] for campaign, states in seen.items()}
                    acked = await _produce(channel, self.asked, seconds, shown)
                    for campaign, count, at in acked:
                        while (latency := _latency(seen[campaign], count, at)) is None:
                            ready.clear()
                            await ready.wait()
                        found.append(latency)
            finally:
                watcher.cancel()
                with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                    await watcher
        return percentile(found, 0.5)


def _interleaved_ranges(work: list[tuple[UUID, Traffic]]) -> Iterator[tuple[UUID, Traffic, int]]:
    """Batches of all of them in the order of time, as far as each has come."""
    ranges = [
        (first / traffic.count, client_id, traffic, first)
        for client_id, traffic in work
        for first in range(0, traffic.count, BATCH)
    ]
    for _, client_id, traffic, first in sorted(ranges, key=lambda each: each[0]):
        yield client_id, traffic, first


async def run(bench: Bench) -> list[Result]:
    """Grows one world step by step and compares it with the one that stays."""
    total = int(EVENTS * bench.scale)
    full = bench.scale >= 0.1
    steps = sizes(total) if full else [sizes(total)[0], sizes(total)[-1]]
    now = int(time.time())
    rate = steps[0].events / steps[0].days / sum(zipf(range(FIRST_CAMPAIGNS)))
    found: list[Step] = []
    async with AsyncExitStack() as stack:
        small_bench = await stack.enter_async_context(engines(bench.scale))
        opened = partial(World.open, campaigns=steps[-1].campaigns, now=now, rate=rate)
        small, grown = [await stack.enter_async_context(opened(each)) for each in (small_bench, bench)]
        await small.grow(steps[0])
        await small.check()
        for size in steps:
            begun = time.perf_counter()
            await grown.grow(size)
            filled = time.perf_counter() - begun
            console.print(
                f"  {size.events:,} events, {size.campaigns} campaigns, {size.days:.0f} days: filled in {filled:.0f} s"
            )
            await grown.settle()
            found.append(await _measure(grown, small, size, filled, 5 if full else 2, WATCH_SECONDS if full else 1.0))
            console.print(_table(found))
            _keep(bench.output, found)
    last = found[-1]
    return [
        Result(
            f"growth.{name}",
            getattr(last, name),
            COSTS[name],
            getattr(last, name) / last.ratios[name],
            last.ratios[name],
            bar,
            last.ratios[name] <= bar,
        )
        for name, bar in BARS.items()
    ]


async def _measure(grown: World, small: World, size: Size, filled: float, rounds: int, seconds: float) -> Step:
    """Asks both worlds the same, in turn."""
    costs: dict[str, float] = {}
    ratios: dict[str, float] = {}

    async def compare(name: str, *arguments: list[Any]) -> None:
        """`arguments` hold what the call takes, for the grown world and the small one."""
        unit = 1e6 if COSTS[name] == "us" else 1e3
        sides = [
            partial(_scaled, unit, partial(getattr(world, f"{name}_seconds"), *(each[index] for each in arguments)))
            for index, world in enumerate((grown, small))
        ]
        console.print(f" {name}, {COSTS[name]}")
        costs[name], _, ratios[name] = await interleaved(rounds, *sides)

    async with AsyncExitStack() as stack:
        leading = [await stack.enter_async_context(world.leading()) for world in (grown, small)]
        await compare("rebuild", [leader for leader, _ in leading])
    # Marks of the filling are older than a server looks back.
    await asyncio.sleep(_OVERLAP_SECONDS)
    async with AsyncExitStack() as stack:
        worlds = (grown, small)
        targets = [await stack.enter_async_context(server(world.bench, **_SERVER)) for world in worlds]
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(target)) for target in targets]
        # It takes the lease and lays its hands on everything first.
        await asyncio.sleep(2)
        await compare("query", channels)
        await compare("tick")
        await compare("watch", channels, targets, [seconds, seconds])
        await compare("ingest", channels)
    return Step(
        size.events,
        size.campaigns,
        round(size.days, 1),
        round(await grown.gigabytes(), 3),
        round(filled, 1),
        **{name: round(cost, 3) for name, cost in costs.items()},
        ratios={name: round(ratio, 3) for name, ratio in ratios.items()},
    )


async def _scaled(unit: float, measured: Callable[[], Awaitable[float]]) -> float:
    return unit * await measured()


def _table(steps: list[Step]) -> Table:
    """Cost at each size, and how often that of the first size it is."""
    table = Table("events", "campaigns", "days", "GB", *COSTS, title="cost, and by that of the first size")
    for step in steps:
        costs = (f"{getattr(step, name):,.1f} {unit}  x{step.ratios[name]:.2f}" for name, unit in COSTS.items())
        table.add_row(f"{step.events:,}", f"{step.campaigns}", f"{step.days:.0f}", f"{step.gigabytes:.2f}", *costs)
    return table


def _keep(folder: Path, steps: list[Step]) -> None:
    """Writes figures and chart, unless those of a longer growth are there."""
    file = folder / "growth.json"
    if file.exists() and json.loads(file.read_text())[-1]["events"] > steps[-1].events:
        return
    file.write_text(json.dumps([asdict(step) for step in steps], indent=2) + "\n")
    lines = [Line(name, [(step.events, step.ratios[name]) for step in steps], BARS.get(name)) for name in COSTS]
    title = f"What one costs among more events ({steps[0].events:,} = 1)"
    (folder / "growth.svg").write_text(draw(title, "events stored", lines))
