"""mutation.idempotent: what claiming a request id, storing the reply and recording the change cost a mutation."""

import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from uuid import UUID

import grpc
from uuid_utils.compat import uuid7

from benchmarks.harness import Bench, Result, interleaved, process
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from mrm.campaigns.v1 import campaign_service_pb2_grpc as rpc
from server.rpc.auth import SESSION_PREFIX, digest, new_secret
from storage.postgres import campaigns, clients, projects, users
from storage.postgres.database import Database
from storage.postgres.ids import new_id
from storage.redis.multiplex import MultiplexedRedis
from storage.redis.sessions import SCRIPTS, SessionStore

CONCURRENCY = 32
SESSIONS = 200
# Far more than calls at a time: calls must not wait for one another's rows.
CAMPAIGNS = 1000
BAR = 0.6

_micros = itertools.count(1_000_000)


async def run(bench: Bench) -> list[Result]:
    """Measures UpdateCampaign calls a second at concurrency 32, each with a request id of its own."""
    tokens, campaign_ids = await _prepare(bench)
    calls = int(3000 * bench.scale)
    with tempfile.NamedTemporaryFile() as log:
        async with (
            process(["benchmarks.plain_mutations"], bench.environment, Path(log.name)) as port,
            grpc.aio.insecure_channel(bench.target) as ours,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as plain,
        ):
            value, floor, ratio = await interleaved(
                bench.rounds,
                lambda: _rate(ours, tokens, campaign_ids, calls),
                lambda: _rate(plain, tokens, campaign_ids, calls),
                settle=bench.settle / 4,
            )
    return [Result("mutation.idempotent", value, "calls/s", floor, ratio, BAR, ratio >= BAR)]


async def _prepare(bench: Bench) -> tuple[list[str], list[UUID]]:
    """Campaigns of one client, and its members, each with a session."""
    database = await Database.open(bench.connections.postgres_dsn)
    redis = await MultiplexedRedis.open(bench.connections.redis_dsn, scripts=SCRIPTS)
    sessions = SessionStore(redis)
    client = await clients.create(database, name="bench", type="direct_advertiser")
    project = await projects.create(database, client_id=client.id, name="bench")
    made = await asyncio.gather(
        *(
            campaigns.create(
                database,
                client_id=client.id,
                project_id=project.id,
                platform="other",
                name=f"bench {number}",
                currency="RUB",
            )
            for number in range(bench.count(CAMPAIGNS))
        )
    )

    async def member() -> str:
        user = await users.create(database, email=f"{new_id()}@example.com", password_hash="!", role="specialist")
        await clients.add_membership(database, user_id=user.id, client_id=client.id)
        token = new_secret(SESSION_PREFIX)
        await sessions.create(digest(token), user.id, user.email, user.role)
        return token

    tokens = await asyncio.gather(*(member() for _ in range(bench.count(SESSIONS))))
    await redis.close()
    await database.close()
    return list(tokens), [campaign.id for campaign in made]


async def _rate(channel: grpc.aio.Channel, tokens: list[str], campaign_ids: list[UUID], calls: int) -> float:
    stub = rpc.CampaignServiceStub(channel)
    metadata = itertools.cycle([(("authorization", f"Bearer {token}"),) for token in tokens])
    targets = itertools.cycle(campaign_ids)
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            request = pb.UpdateCampaignRequest(request_id=str(uuid7()), update_mask={"paths": ["daily_budget"]})  # type: ignore[arg-type]
            request.campaign.campaign_id = str(next(targets))
            request.campaign.daily_budget.currency_code = "RUB"
            request.campaign.daily_budget.micros = next(_micros)
            await stub.UpdateCampaign(request, metadata=next(metadata))

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return calls / (time.perf_counter() - begun)
