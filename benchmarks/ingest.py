"""ingest.append_events: durable events a second through gRPC, over the identical INSERT straight into ClickHouse."""

import asyncio
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import grpc

from benchmarks.harness import Bench, Result, interleaved
from benchmarks.tenants import Tenant, batch, make_tenant, until_known
from mrm.statistics.v1 import statistics_service_pb2 as pb
from mrm_client.batches import varint
from storage.clickhouse.events import Bounds, insert_body
from storage.clickhouse.pseudonyms import Salt

BATCH = 20_000
IN_FLIGHT = 4
BAR = 0.85
APPEND = "/mrm.statistics.v1.StatisticsService/AppendEvents"


async def run(bench: Bench) -> list[Result]:
    """Measures batches of 20 000 events, four inserts in flight on both sides, the same bytes."""
    tenant = await make_tenant(bench, 100)
    await until_known(bench, tenant)
    size = bench.count(BATCH)
    batches = [batch(tenant, size, 3600, seed) for seed in range(max(4, int(24 * bench.scale)))]
    async with (
        grpc.aio.insecure_channel(bench.target) as channel,
        aiohttp.ClientSession() as http,
    ):
        value, floor, ratio = await interleaved(
            bench.rounds,
            lambda: _through_grpc(channel, tenant, batches, size),
            lambda: _straight(bench, http, tenant, batches, size),
            settle=bench.settle,
        )
    return [Result("ingest.append_events", value, "events/s", floor, ratio, BAR, ratio >= BAR)]


async def _through_grpc(channel: grpc.aio.Channel, tenant: Tenant, batches: list[bytes], size: int = BATCH) -> float:
    """Four producer streams, each with one batch on its way and the next one sent, as many inserts as the floor has."""

    async def produce(mine: list[bytes]) -> None:
        stream_id, offset = str(uuid4()), 0
        requests = []
        for data in mine:
            requests.append(append_request(tenant, stream_id, offset, data))
            offset += size
        call = channel.stream_stream(APPEND, response_deserializer=pb.AppendEventsResponse.FromString)(
            iter_async(requests), metadata=tenant.metadata
        )
        acknowledged = 0
        async for reply in call:
            if reply.HasField("error"):
                raise RuntimeError(reply.error.message)
            acknowledged += reply.stored_count
        if acknowledged != size * len(mine):
            raise RuntimeError(f"{acknowledged} of {size * len(mine)} events acknowledged")

    begun = time.perf_counter()
    await asyncio.gather(*(produce(batches[number::IN_FLIGHT]) for number in range(IN_FLIGHT)))
    return size * len(batches) / (time.perf_counter() - begun)


async def _straight(
    bench: Bench, http: aiohttp.ClientSession, tenant: Tenant, batches: list[bytes], size: int
) -> float:
    parts = urlsplit(bench.connections.clickhouse_dsn)
    url = f"http://{parts.hostname}:{parts.port}/"
    headers = {"X-ClickHouse-User": parts.username or "", "X-ClickHouse-Key": parts.password or ""}
    now = int(time.time())
    bodies = [
        insert_body(parts.path.strip("/"), tenant.client_id, data, Bounds(now - 86400, now + 600), Salt(1, 2), 30)
        for data in batches
    ]
    left = iter(bodies)

    async def insert() -> None:
        for body in left:
            async with http.post(url, data=body, headers=headers) as reply:
                if reply.status != 200:
                    raise RuntimeError(await reply.text())

    begun = time.perf_counter()
    await asyncio.gather(*(insert() for _ in range(IN_FLIGHT)))
    return size * len(batches) / (time.perf_counter() - begun)


def append_request(tenant: Tenant, stream_id: str, offset: int, data: bytes) -> bytes:
    """A serialized AppendEventsRequest; built once, so that a producer's own work stays out of the figures."""
    head = pb.AppendEventsRequest(client_id=str(tenant.client_id), stream_id=stream_id, offset=offset)
    # Field 4 is the batch.
    return head.SerializeToString() + b"\x22" + varint(len(data)) + data


async def iter_async(items: list[bytes]) -> AsyncIterator[bytes]:
    """A request stream."""
    for item in items:
        yield item
