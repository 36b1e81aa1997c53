"""unary.get_campaign: what the whole request path costs over a bare handler with the same row."""

import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from uuid import UUID

import grpc

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
SESSIONS = 1000
BAR = 0.75


async def run(bench: Bench) -> list[Result]:
    """Measures calls a second at concurrency 32, each call under the next of 1000 sessions."""
    tokens, campaign_id = await prepare(bench)
    calls = int(4000 * bench.scale)
    environment = {"MRM_POSTGRES__DSN": bench.connections.postgres_dsn}
    request = pb.GetCampaignRequest(campaign_id=str(campaign_id))
    with tempfile.NamedTemporaryFile() as log:
        async with (
            process(["benchmarks.bare"], environment, Path(log.name)) as port,
            grpc.aio.insecure_channel(bench.target) as ours,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as bare,
        ):
            value, floor, ratio = await interleaved(
                bench.rounds,
                lambda: calls_a_second(ours, request, tokens, calls),
                lambda: calls_a_second(bare, request, tokens, calls),
            )
    return [Result("unary.get_campaign", value, "calls/s", floor, ratio, BAR, ratio >= BAR)]


async def prepare(bench: Bench) -> tuple[list[str], UUID]:
    """A campaign, and users who see it as members of its client, each with a session."""
    database = await Database.open(bench.connections.postgres_dsn)
    redis = await MultiplexedRedis.open(bench.connections.redis_dsn, scripts=SCRIPTS)
    sessions = SessionStore(redis)
    client = await clients.create(database, name="bench", type="direct_advertiser")
    project = await projects.create(database, client_id=client.id, name="bench")
    campaign = await campaigns.create(
        database,
        client_id=client.id,
        project_id=project.id,
        platform="other",
        name="bench",
        currency="RUB",
        configuration={"strategy": "clicks"},
    )
    tokens = []
    for _ in range(bench.count(SESSIONS)):
        user = await users.create(database, email=f"{new_id()}@example.com", password_hash="!", role="specialist")
        await clients.add_membership(database, user_id=user.id, client_id=client.id)
        tokens.append(new_secret(SESSION_PREFIX))
        await sessions.create(digest(tokens[-1]), user.id, user.email, user.role)
    await redis.close()
    await database.close()
    return tokens, campaign.id


async def calls_a_second(
    channel: grpc.aio.Channel, request: pb.GetCampaignRequest, tokens: list[str], calls: int
) -> float:
    """One measurement: so many calls at concurrency 32, each under the next session."""
    stub = rpc.CampaignServiceStub(channel)
    metadata = itertools.cycle([(("authorization", f"Bearer {token}"),) for token in tokens])
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await stub.GetCampaign(request, metadata=next(metadata))

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return calls / (time.perf_counter() - begun)
