"""ingest.vs_fastapi and ingest.vs_jsonl: AppendEvents over what a user would write instead (benchmarks.fastapi_app).

The same events reach the same table on both sides, four batches on their way at a time, from request bytes that are
built beforehand. After each measurement the rows that it stored are counted.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC
from pathlib import Path

import aiohttp
import grpc
import orjson

from benchmarks.harness import Bench, Result, interleaved, process
from benchmarks.ingest import BATCH, IN_FLIGHT, _through_grpc
from benchmarks.tenants import Tenant, batch, make_tenant, until_known
from mrm.statistics.v1 import event_pb2
from storage.clickhouse.connect import ClickHouse

ROUNDS = 5
BAR_JSON = 5.0
BAR_JSONL = 1.5
_TYPES = {1: "impression", 2: "click", 3: "conversion"}


async def run(bench: Bench) -> list[Result]:
    """Measures both in pairs with the service, batches of 20 000 events."""
    tenant = await make_tenant(bench, 100)
    await until_known(bench, tenant)
    batches = [batch(tenant, BATCH, 3600, seed) for seed in range(max(4, int(24 * bench.scale)))]
    store = ClickHouse(bench.connections.clickhouse_dsn, connections=2)
    results = []
    with tempfile.NamedTemporaryFile() as log:
        async with (
            process(["benchmarks.fastapi_app"], bench.environment, Path(log.name)) as port,
            grpc.aio.insecure_channel(bench.target) as channel,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(None)) as http,
        ):
            # FastAPI needs seconds for what takes the service a moment: half of the batches are enough there.
            for name, path, bar, mine, body in (
                ("ingest.vs_fastapi", "/events", BAR_JSON, batches[: max(4, len(batches) // 2)], json_body),
                ("ingest.vs_jsonl", "/events.jsonl", BAR_JSONL, batches, jsonl_body),
            ):
                bodies = [body(data) for data in mine]
                value, floor, ratio = await interleaved(
                    min(ROUNDS, bench.rounds),
                    lambda mine=mine: _counted(store, tenant, len(mine), lambda: _through_grpc(channel, tenant, mine)),
                    lambda path=path, bodies=bodies: _counted(
                        store, tenant, len(bodies), lambda: _through_http(http, path, tenant, bodies)
                    ),
                    settle=bench.settle,
                )
                results.append(Result(name, value, "events/s", floor, ratio, bar, ratio >= bar))
    await store.close()
    return results


async def _counted(
    store: ClickHouse, tenant: Tenant, batch_count: int, measurement: Callable[[], Awaitable[float]]
) -> float:
    """Measures, then makes sure that each of the events was stored by just that measurement."""
    ((begun,),) = await store.fetch("SELECT toUnixTimestamp64Milli(now64(3))")
    figure = await measurement()
    # Of rows with the same identity the last one stays, with the time at which it was stored.
    ((stored,),) = await store.fetch(
        """SELECT count() FROM campaign_events FINAL
        WHERE client_id = {client:UUID} AND toUnixTimestamp64Milli(ingest_time) >= {begun:Int64}""",
        {"client": tenant.client_id, "begun": begun},
    )
    if stored != BATCH * batch_count:
        raise RuntimeError(f"{stored} of {BATCH * batch_count} events are stored")
    return figure


async def _through_http(http: aiohttp.ClientSession, path: str, tenant: Tenant, bodies: list[bytes]) -> float:
    left = iter(bodies)
    headers = {**dict(tenant.metadata), "content-type": "application/json"}

    async def produce() -> None:
        for body in left:
            async with http.post(path, data=body, headers=headers) as reply:
                if reply.status not in (201, 204):
                    raise RuntimeError(f"{path}: {reply.status} {await reply.text()}"[:500])
                await reply.read()

    begun = time.perf_counter()
    await asyncio.gather(*(produce() for _ in range(IN_FLIGHT)))
    return BATCH * len(bodies) / (time.perf_counter() - begun)


def json_body(data: bytes) -> bytes:
    """A batch as a list of JSON objects, as an API would have it."""
    return orjson.dumps(
        [
            {
                **_common(event),
                "event_time": event.event_time.ToDatetime(UTC).isoformat(),
                "event_type": _TYPES[event.event_type],
            }
            for event in event_pb2.EventBatch.FromString(data).events
        ]
    )


def jsonl_body(data: bytes) -> bytes:
    """A batch as lines of JSON, in the types that ClickHouse reads fastest."""
    return b"".join(
        orjson.dumps(
            {
                **_common(event),
                "event_time": event.event_time.ToMicroseconds(),
                "event_type": event.event_type,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for event in event_pb2.EventBatch.FromString(data).events
    )


def _common(event: event_pb2.Event) -> dict[str, object]:
    """All but time and type; what is zero or absent is left out, as in protobuf."""
    values: dict[str, object] = {"event_id": event.event_id, "campaign_id": event.campaign_id}
    for name in ("user_id", "cost_micros", "revenue_micros"):
        if value := getattr(event, name):
            values[name] = value
    if event.HasField("conversions_micros"):
        values["conversions_micros"] = event.conversions_micros
    if event.attributes:
        values["attributes"] = dict(event.attributes)
    return values
