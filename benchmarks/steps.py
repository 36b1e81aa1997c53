"""Where the time goes, in microseconds: the steps of one batch of 20 000 events and of one GetCampaign.

Every step is the service's own code, called by itself in this process against the same engines, one after another; the
whole is one call through gRPC to the server with nothing else on its way. What the steps leave of it is gRPC on both
sides, the event loop and the caller. Shares of a store's step that are the engine's and not the way there are not told
apart. Nothing here has a bar.
"""

import io
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, redirect_stderr
from inspect import isawaitable
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import grpc
from rich.table import Table
from uuid_utils.compat import uuid7

from benchmarks.harness import Bench, Result, console
from benchmarks.ingest import APPEND, BATCH, append_request
from benchmarks.tenants import batch, make_tenant
from benchmarks.unary import prepare
from mrm.campaigns.v1 import campaign_service_pb2 as campaigns_pb
from mrm.campaigns.v1 import campaign_service_pb2_grpc as campaigns_rpc
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.campaigns import convert
from server.rpc import logs
from server.rpc.auth import Authenticator
from server.rpc.fences import SessionFences
from server.rpc.validation import validate
from server.settings import Settings
from server.statistics.wire import append_request_deserializer
from storage.clickhouse import events
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.events import Bounds, insert_body
from storage.clickhouse.pseudonyms import Salt
from storage.postgres import campaigns, streams
from storage.postgres.database import Database
from storage.postgres.streams import Move
from storage.redis.limits import RateLimiter
from storage.redis.multiplex import MultiplexedRedis
from storage.redis.sessions import SCRIPTS, SessionStore
from storage.scope import EVERYTHING

CALLS = 2000
BATCHES = 30
_WHOLE = "the whole"


class Spent(NamedTuple):
    """Microseconds. On a machine that does other things as well, the least is nearer to the truth than the median."""

    median: float
    least: float


Steps = dict[str, Spent]


async def run(bench: Bench) -> list[Result]:
    """Prints two tables."""
    async with AsyncExitStack() as stack:
        database = await Database.open(bench.connections.postgres_dsn, min_size=1, max_size=2)
        stack.push_async_callback(database.close)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(bench.target))
        _show(f"one batch of {BATCH:,} events", await _batch(bench, database, channel, stack))
        _show("one GetCampaign", await _call(bench, database, channel, stack))
    return []


async def _batch(bench: Bench, database: Database, channel: grpc.aio.Channel, stack: AsyncExitStack) -> Steps:
    tenant = await make_tenant(bench, 100)
    clickhouse = ClickHouse(bench.connections.clickhouse_dsn, connections=2)
    stack.push_async_callback(clickhouse.close)
    count = max(4, round(BATCHES * bench.scale))
    data = [batch(tenant, BATCH, 3600, seed) for seed in range(4)]
    stream_id = str(uuid4())
    requests = [append_request(tenant, stream_id, BATCH * number, data[number % 4]) for number in range(count)]
    call: grpc.aio.StreamStreamCall[Any, Any] = channel.stream_stream(
        APPEND, response_deserializer=pb.AppendEventsResponse.FromString
    )(metadata=tenant.metadata)

    async def whole(number: int) -> None:
        await call.write(requests[number])
        reply = await call.read()
        if not isinstance(reply, pb.AppendEventsResponse) or reply.stored_count != BATCH:
            raise RuntimeError(f"the batch was refused: {reply}")

    bounds, salt = Bounds(int(time.time()) - 86400, int(time.time()) + 600), Salt(1, 2)
    own_stream = str(uuid4())
    opened = await streams.open_stream(database, EVERYTHING, tenant.client_id, own_stream, uuid7())
    if opened is None:
        raise RuntimeError("the client is gone")
    epoch = opened.writer_epoch

    async def advance(number: int) -> None:
        move = Move(tenant.client_id, own_stream, epoch, BATCH * number, BATCH * (number + 1))
        if not await streams.advance(database, [move]):
            raise RuntimeError("the stream is lost")

    def answer(_: int) -> bytes:
        return pb.AppendEventsResponse(offset=1, next_offset=BATCH, stored_count=BATCH).SerializeToString()

    found = await _timed(
        count,
        {
            _WHOLE: whole,
            "read the request, prove the batch well-formed, count it": lambda number: append_request_deserializer(
                requests[number]
            ),
            "put statement and batch together": lambda number: insert_body(
                clickhouse.database, tenant.client_id, data[number % 4], bounds, salt, 30
            ),
            "ClickHouse: parse, check, look up, write, mark": lambda number: events.insert(
                clickhouse, tenant.client_id, data[number % 4], bounds, salt, timeout=30
            ),
            "PostgreSQL: move the offset": advance,
            "make the answer": answer,
        },
    )
    await call.done_writing()
    return found


async def _call(bench: Bench, database: Database, channel: grpc.aio.Channel, stack: AsyncExitStack) -> Steps:
    tokens, campaign_id = await prepare(bench)
    redis = await MultiplexedRedis.open(bench.connections.redis_dsn, scripts=SCRIPTS)
    stack.push_async_callback(redis.close)
    count = max(100, round(CALLS * bench.scale))
    auth = Settings().auth
    fences = SessionFences(database, auth.session_ttl, auth.session_poll, lambda: None)
    authenticator = Authenticator(SessionStore(redis), fences, RateLimiter(redis), database, auth)
    stub = campaigns_rpc.CampaignServiceStub(channel)
    request = campaigns_pb.GetCampaignRequest(campaign_id=str(campaign_id))
    data = request.SerializeToString()
    headers = [f"Bearer {token}" for token in tokens]

    def header(number: int) -> str:
        return headers[number % len(headers)]

    endpoint = "mrm.campaigns.v1.CampaignService/GetCampaign"
    row = await campaigns.get(database, EVERYTHING, campaign_id)
    if row is None:
        raise RuntimeError("the campaign is gone")
    response = campaigns_pb.GetCampaignResponse(campaign=convert.campaign(row))
    principal = (await authenticator.admit(headers[0], endpoint, "LIGHT")).principal
    nowhere = io.TextIOWrapper(io.BytesIO())
    facts = {"method": endpoint, "code": "OK", "reason": "", "request_id": uuid7().hex, "principal": str(UUID(int=1))}

    def begin(_: int) -> None:
        logs.bind_request(uuid7().hex)

    def log(_: int) -> None:
        with redirect_stderr(nowhere):
            logs.access(ms=1.5, peer="ipv4:127.0.0.1:1", **facts)

    return await _timed(
        count,
        {
            _WHOLE: lambda number: stub.GetCampaign(request, metadata=(("authorization", header(number)),)),
            "read the request": lambda _: campaigns_pb.GetCampaignRequest.FromString(data),
            "request id": begin,
            "Redis: session and limit in one script; who calls": lambda number: authenticator.admit(
                header(number), endpoint, "LIGHT"
            ),
            "check the request": lambda _: validate(request),
            "PostgreSQL: the campaign within the caller's scope": lambda _: campaigns.get(
                database, principal.scope, campaign_id
            ),
            "make the message": lambda _: convert.campaign(row),
            "serialize the reply": lambda _: response.SerializeToString(),
            "access log": log,
        },
    )


async def _timed(count: int, steps: Mapping[str, Callable[[int], Awaitable[object] | object]]) -> Steps:
    """Microseconds of each step, which is given the number of its turn; the steps take turns."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(count):
        for name, step in steps.items():
            begun = time.perf_counter()
            result = step(number)
            if isawaitable(result):
                await result
            found[name].append(time.perf_counter() - begun)
    return {name: Spent(median(times) * 1e6, min(times) * 1e6) for name, times in found.items()}


def _show(title: str, steps: Steps) -> None:
    whole = steps.pop(_WHOLE)
    rest = Spent(*(total - sum(parts) for total, *parts in zip(whole, *steps.values(), strict=True)))
    table = Table(title, "us", "share", "least us", "share")
    for name, spent in (*steps.items(), ("gRPC on both sides, event loop, the caller", rest), (_WHOLE, whole)):
        pairs = zip(spent, whole, strict=True)
        table.add_row(name, *(text for part, total in pairs for text in (f"{part:,.0f}", f"{part / total:.1%}")))
    console.print(table)
