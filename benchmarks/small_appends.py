"""ingest.small_appends: many producers that send little at a time, over the same events in large batches."""

import asyncio
import time
from uuid import uuid4

import grpc

from benchmarks.harness import Bench, Result, interleaved
from benchmarks.ingest import APPEND, append_request, iter_async
from benchmarks.tenants import Tenant, batch, make_tenant
from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb

PRODUCERS = 64
SMALL = 200
LARGE = 20_000
LARGE_BATCHES = 16
IN_FLIGHT = 4
CHANNELS = 8
MIXED_CLIENTS = 8
BAR = 0.5
# With the producers of eight clients in one insert, where the floor has one client in each, the shared insert also
# checks whose each event is and marks eight times the campaigns for the rebuilding that runs beside.
MIXED_BAR = 0.35


async def run(bench: Bench) -> list[Result]:
    """Measures 64 streams with 200 events a request against the same events on 4 streams with 20 000 a request."""
    return [
        await _measure(bench, "ingest.small_appends", 1, BAR),
        await _measure(bench, "ingest.small_appends_mixed", MIXED_CLIENTS, MIXED_BAR),
    ]


async def _measure(bench: Bench, name: str, client_count: int, bar: float) -> Result:
    tenants = [await make_tenant(bench, 100 // client_count) for _ in range(client_count)]
    each = max(IN_FLIGHT // client_count, round(LARGE_BATCHES * bench.scale / client_count), 1)
    # In a short form, too, every producer has something to send.
    size = bench.count(LARGE, least=4000)
    large: list[tuple[Tenant, list[bytes]]] = []
    small: list[tuple[Tenant, list[bytes]]] = []
    streams, producers = max(1, IN_FLIGHT // client_count), PRODUCERS // client_count
    for tenant in tenants:
        batches = [batch(tenant, size, 3600, seed) for seed in range(each)]
        parts = _cut(batches)
        large += [(tenant, batches[number::streams]) for number in range(streams)]
        small += [(tenant, parts[number::producers]) for number in range(producers)]
    # A connection carries its calls one after another through one socket, so the producers have several.
    channels = [
        grpc.aio.insecure_channel(bench.target, (("grpc.use_local_subchannel_pool", 1),)) for _ in range(CHANNELS)
    ]
    try:
        value, floor, ratio = await interleaved(
            bench.rounds,
            lambda: _produce(channels, small, SMALL, PRODUCERS),
            lambda: _produce(channels, large, size, IN_FLIGHT),
            settle=bench.settle,
        )
    finally:
        for channel in channels:
            await channel.close()
    return Result(name, value, "events/s", floor, ratio, bar, ratio >= bar)


def _cut(batches: list[bytes]) -> list[bytes]:
    """The same events in batches of 200."""
    out = []
    for data in batches:
        events = event_pb2.EventBatch.FromString(data).events
        starts = range(0, len(events), SMALL)
        out += [event_pb2.EventBatch(events=events[at : at + SMALL]).SerializeToString() for at in starts]
    return out


async def _produce(
    channels: list[grpc.aio.Channel], work: list[tuple[Tenant, list[bytes]]], size: int, at_once: int
) -> float:
    """Sends each producer's batches on a stream of its own, some streams at a time; durable events a second."""
    slots = asyncio.Semaphore(at_once)

    async def produce(channel: grpc.aio.Channel, tenant: Tenant, batches: list[bytes]) -> None:
        stream_id = str(uuid4())
        requests = [append_request(tenant, stream_id, size * number, data) for number, data in enumerate(batches)]
        async with slots:
            call = channel.stream_stream(APPEND, response_deserializer=pb.AppendEventsResponse.FromString)(
                iter_async(requests), metadata=tenant.metadata
            )
            acknowledged = 0
            async for reply in call:
                if reply.HasField("error"):
                    raise RuntimeError(reply.error.message)
                acknowledged += reply.stored_count
        if acknowledged != size * len(batches):
            raise RuntimeError(f"{acknowledged} of {size * len(batches)} events acknowledged")

    begun = time.perf_counter()
    await asyncio.gather(*(produce(channels[number % len(channels)], *each) for number, each in enumerate(work)))
    return size * sum(len(batches) for _, batches in work) / (time.perf_counter() - begun)
