"""plan.update: UpdateMediaPlan with all its checks, against one update of the same rows by asyncpg."""

from __future__ import annotations

import asyncio
import itertools
import time
from decimal import Decimal
from uuid import UUID

import asyncpg
import grpc
from uuid_utils.compat import uuid7

from benchmarks.harness import Bench, Result, interleaved
from mrm.planning.v1 import media_plan_pb2
from mrm.planning.v1 import media_plan_service_pb2 as pb
from mrm.planning.v1 import media_plan_service_pb2_grpc as rpc
from server.rpc.auth import SESSION_PREFIX, digest, new_secret
from storage.postgres import clients, media_plans, projects, users
from storage.postgres.database import Database
from storage.postgres.ids import new_id
from storage.redis.multiplex import MultiplexedRedis
from storage.redis.sessions import SCRIPTS, SessionStore

CONCURRENCY = 32
SESSIONS = 200
# Far more than calls at a time: neither side must wait for another's row.
PLANS = 500
CHANNELS = 10
BAR = 0.25

# What the service's own update comes down to, without its checks, records and decisions.
_UPDATE = "UPDATE media_plans SET name = $2, total_budget = $3, channels = $4 WHERE id = $1 RETURNING *"

_numbers = itertools.count(1)


async def run(bench: Bench) -> list[Result]:
    """Measures updates a second at concurrency 32, each with a request id of its own."""
    tokens, plan_ids = await _prepare(bench)
    calls = int(3000 * bench.scale)
    # As many connections as the server has.
    size = bench.settings.postgres.pool_max
    pool = await asyncpg.create_pool(bench.connections.postgres_dsn, min_size=size, max_size=size)
    async with pool, grpc.aio.insecure_channel(bench.target) as channel:
        stub = rpc.MediaPlanServiceStub(channel)
        request = pb.GetMediaPlanRequest(media_plan_id=str(plan_ids[0]))
        metadata = (("authorization", f"Bearer {tokens[0]}"),)
        content = (await stub.GetMediaPlan(request, metadata=metadata)).media_plan
        stored = await pool.fetchval("SELECT channels::text FROM media_plans WHERE id = $1", plan_ids[0])
        value, floor, ratio = await interleaved(
            bench.rounds,
            lambda: _served(stub, tokens, plan_ids, content, calls),
            lambda: _bare(pool, plan_ids, stored, calls),
            settle=bench.settle / 4,
        )
    return [Result("plan.update", value, "calls/s", floor, ratio, BAR, ratio >= BAR)]


async def _prepare(bench: Bench) -> tuple[list[str], list[UUID]]:
    """Drafts with the same channels, and planners of their client, each with a session."""
    database = await Database.open(bench.connections.postgres_dsn)
    redis = await MultiplexedRedis.open(bench.connections.redis_dsn, scripts=SCRIPTS)
    sessions = SessionStore(redis)
    client = await clients.create(database, name="bench", type="direct_advertiser")
    project = await projects.create(database, client_id=client.id, name="bench")
    channels = [
        {
            "channel_id": str(new_id()),
            "type": "search",
            "platform": "yandex_direct",
            "budget": 10**6,
            "kpis": [{"metric": "ctr", "target": "1.5"}, {"metric": "cpc", "target": "20"}],
        }
        for _ in range(CHANNELS)
    ]
    made = [
        await media_plans.create(
            database,
            project_id=project.id,
            name=f"bench {number}",
            total_budget=Decimal(CHANNELS),
            currency="RUB",
            channels=channels,
            targeting={},
        )
        for number in range(bench.count(PLANS))
    ]

    async def planner() -> str:
        user = await users.create(database, email=f"{new_id()}@example.com", password_hash="!", role="media_planner")
        await clients.add_membership(database, user_id=user.id, client_id=client.id)
        token = new_secret(SESSION_PREFIX)
        await sessions.create(digest(token), user.id, user.email, user.role)
        return token

    tokens = await asyncio.gather(*(planner() for _ in range(bench.count(SESSIONS))))
    await redis.close()
    await database.close()
    return list(tokens), [plan.id for plan in made]


async def _served(
    stub: rpc.MediaPlanServiceAsyncStub,
    tokens: list[str],
    plan_ids: list[UUID],
    content: media_plan_pb2.MediaPlan,
    calls: int,
) -> float:
    metadata = itertools.cycle([(("authorization", f"Bearer {token}"),) for token in tokens])
    targets, left = itertools.cycle(plan_ids), iter(range(calls))

    async def caller() -> None:
        for _ in left:
            request = pb.UpdateMediaPlanRequest(
                request_id=str(uuid7()),
                update_mask={"paths": ["display_name", "channels", "total_budget"]},  # type: ignore[arg-type]
            )
            request.media_plan.CopyFrom(content)
            request.media_plan.etag = ""
            request.media_plan.media_plan_id = str(next(targets))
            request.media_plan.display_name = f"bench {next(_numbers)}"
            await stub.UpdateMediaPlan(request, metadata=next(metadata))

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return calls / (time.perf_counter() - begun)


async def _bare(pool: asyncpg.Pool, plan_ids: list[UUID], channels: str, calls: int) -> float:
    targets, left = itertools.cycle(plan_ids), iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await pool.fetchrow(_UPDATE, next(targets), f"bench {next(_numbers)}", Decimal(CHANNELS), channels)

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return calls / (time.perf_counter() - begun)
