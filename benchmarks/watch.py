"""watch.latency: from a producer's acknowledgement to the watcher that shows it, rebuild included."""

import asyncio
import bisect
import itertools
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID, uuid4

import grpc

from benchmarks.harness import Bench, Result, console, percentile
from benchmarks.ingest import APPEND, BATCH, append_request
from benchmarks.tenants import Tenant, batch, make_tenant
from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from mrm.statistics.v1 import statistics_service_pb2_grpc as rpc

WATCHED = 100
LOAD_EVENTS_PER_SECOND = 50_000
PAUSE_SECONDS = 0.05
BAR_P50 = 0.6
BAR_P99 = 1.2


async def run(bench: Bench) -> list[Result]:
    """A producer adds an event to one of 100 watched campaigns every 50 ms under another client's load."""
    tenant, other = await make_tenant(bench, WATCHED), await make_tenant(bench, WATCHED)
    seconds = 60 * bench.scale
    async with (
        grpc.aio.insecure_channel(bench.target) as producing,
        grpc.aio.insecure_channel(bench.target) as watching,
        grpc.aio.insecure_channel(bench.target) as loading,
    ):
        seen: dict[str, list[tuple[int, float]]] = defaultdict(list)
        ready = asyncio.Event()
        watcher = asyncio.create_task(_watch(watching, tenant, seen, ready))
        load = asyncio.create_task(_load(loading, other, bench.count(BATCH)))
        try:
            await ready.wait()
            acked = await _produce(producing, tenant, seconds)
            await asyncio.sleep(3)
        finally:
            for task in (watcher, load):
                task.cancel()
                with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                    await task
    latencies = [_latency(seen[campaign], count, at) for campaign, count, at in acked]
    lost = sum(latency is None for latency in latencies)
    if lost:
        raise RuntimeError(f"{lost} of {len(acked)} acknowledged events never reached the watcher")
    found = [latency for latency in latencies if latency is not None]
    p50, p99 = percentile(found, 0.5), percentile(found, 0.99)
    console.print(f"  {len(found)} events, p50 {p50:.3f} s, p99 {p99:.3f} s, most {max(found):.3f} s")
    return [
        Result("watch.latency.p50", p50, "s", None, None, BAR_P50, p50 <= BAR_P50),
        Result("watch.latency.p99", p99, "s", None, None, BAR_P99, p99 <= BAR_P99),
    ]


def _latency(states: list[tuple[int, float]], count: int, acked: float) -> float | None:
    """Seconds from an acknowledgement to the first state that shows it; 0 when the state was there first."""
    index = bisect.bisect_left(states, (count, 0.0))
    return max(0.0, states[index][1] - acked) if index < len(states) else None


async def _watch(
    channel: grpc.aio.Channel,
    tenant: Tenant,
    seen: dict[str, list[tuple[int, float]]],
    ready: asyncio.Event,
    campaign_ids: Sequence[UUID] = (),
) -> None:
    request = pb.WatchMetricsRequest(client_id=str(tenant.client_id), campaign_ids=map(str, campaign_ids))
    async for message in rpc.StatisticsServiceStub(channel).WatchMetrics(request, metadata=tenant.metadata):
        now = time.perf_counter()
        for state in (*message.snapshot.campaigns, *message.update.campaigns):
            seen[state.campaign_id].append((state.metrics.impressions, now))
        ready.set()


async def _produce(
    channel: grpc.aio.Channel, tenant: Tenant, seconds: float, shown: Mapping[str, int] | None = None
) -> list[tuple[str, int, float]]:
    """One event at a time to the campaigns in turn; `shown` is what the watcher shows of them already.

    Returns:
        For each event its campaign, the count that shows it, and when it was acknowledged.
    """
    stub = rpc.StatisticsServiceStub(channel)
    call = stub.AppendEvents(metadata=tenant.metadata)
    counts: dict[str, int] = defaultdict(int, shown or {})
    acked: list[tuple[str, int, float]] = []
    stream_id, end = str(uuid4()), time.perf_counter() + seconds
    offset = 0
    while time.perf_counter() < end:
        campaign = str(tenant.campaign_ids[offset % len(tenant.campaign_ids)])
        event = event_pb2.Event(event_id=str(uuid4()), campaign_id=campaign, event_type=event_pb2.EVENT_TYPE_IMPRESSION)
        event.event_time.FromDatetime(datetime.now(UTC))
        await call.write(
            pb.AppendEventsRequest(
                client_id=str(tenant.client_id),
                stream_id=stream_id,
                offset=offset,
                batch=event_pb2.EventBatch(events=[event]),
            )
        )
        reply = await call.read()
        if not isinstance(reply, pb.AppendEventsResponse) or reply.HasField("error"):
            raise RuntimeError(f"the producer was refused: {reply}")
        counts[campaign] += 1
        acked.append((campaign, counts[campaign], time.perf_counter()))
        offset += 1
        await asyncio.sleep(PAUSE_SECONDS)
    await call.done_writing()
    return acked


async def _load(channel: grpc.aio.Channel, tenant: Tenant, size: int) -> None:
    """Another client's batches at a steady rate."""
    batches = [batch(tenant, size, 3600, seed) for seed in range(8)]
    append = channel.stream_stream(APPEND, response_deserializer=pb.AppendEventsResponse.FromString)
    call = append(metadata=tenant.metadata)
    stream_id, due = str(uuid4()), time.perf_counter()
    for number in itertools.count():
        await call.write(append_request(tenant, stream_id, number * size, batches[number % len(batches)]))
        reply = await call.read()
        if not isinstance(reply, pb.AppendEventsResponse) or reply.HasField("error"):
            raise RuntimeError(f"the load was refused: {reply}")
        due += BATCH / LOAD_EVENTS_PER_SECOND
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
