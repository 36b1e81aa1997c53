"""campaigns.mutate_1000: MutateCampaigns of a thousand campaigns, against as many rows in an executemany of asyncpg."""

from __future__ import annotations

import itertools
import time
from decimal import Decimal
from uuid import UUID

import asyncpg
import grpc
from uuid_utils.compat import uuid7

from benchmarks.harness import Bench, Result, interleaved
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from mrm.campaigns.v1 import campaign_service_pb2_grpc as rpc
from server.rpc.auth import SESSION_PREFIX, digest, new_secret
from storage.postgres import campaigns, clients, projects, users
from storage.postgres.campaigns import draft
from storage.postgres.database import Database
from storage.postgres.ids import new_id
from storage.redis.multiplex import MultiplexedRedis
from storage.redis.sessions import SCRIPTS, SessionStore

CAMPAIGNS = 1000
BAR = 0.25

# What a change of the daily budget comes down to, without checks, records, replies and retries.
_UPDATE = "UPDATE campaigns SET budget_daily = $2 WHERE id = $1"

_micros = itertools.count(1_000_000)


async def run(bench: Bench) -> list[Result]:
    """Measures changes of the daily budget in campaigns a second, one call after another."""
    token, campaign_ids = await _prepare(bench)
    calls = max(1, int(5 * bench.scale))
    connection = await asyncpg.connect(bench.connections.postgres_dsn)
    try:
        async with grpc.aio.insecure_channel(bench.target) as channel:
            stub = rpc.CampaignServiceStub(channel)
            value, floor, ratio = await interleaved(
                bench.rounds,
                lambda: _served(stub, token, campaign_ids, calls),
                lambda: _bare(connection, campaign_ids, calls),
                settle=bench.settle / 4,
            )
    finally:
        await connection.close()
    return [Result("campaigns.mutate_1000", value, "campaigns/s", floor, ratio, BAR, ratio >= BAR)]


async def _prepare(bench: Bench) -> tuple[str, list[UUID]]:
    """Campaigns of one client, and a member of it with a session."""
    database = await Database.open(bench.connections.postgres_dsn)
    redis = await MultiplexedRedis.open(bench.connections.redis_dsn, scripts=SCRIPTS)
    client = await clients.create(database, name="bench", type="direct_advertiser")
    project = await projects.create(database, client_id=client.id, name="bench")
    made = await campaigns.create_many(
        database,
        [
            draft(
                campaign_id=new_id(),
                client_id=client.id,
                project_id=project.id,
                platform="other",
                name=f"bench {number}",
                currency="RUB",
                plan_lineage_id=None,
                plan_version=None,
                plan_channel_id=None,
                external_id=None,
                budget_daily=Decimal(1),
                budget_total=Decimal(1_000_000),
                configuration={},
                settings={},
            )
            for number in range(CAMPAIGNS)
        ],
    )
    user = await users.create(database, email=f"{new_id()}@example.com", password_hash="!", role="specialist")
    await clients.add_membership(database, user_id=user.id, client_id=client.id)
    token = new_secret(SESSION_PREFIX)
    await SessionStore(redis).create(digest(token), user.id, user.email, user.role)
    await redis.close()
    await database.close()
    return token, [campaign.id for campaign in made]


async def _served(stub: rpc.CampaignServiceAsyncStub, token: str, campaign_ids: list[UUID], calls: int) -> float:
    metadata = (("authorization", f"Bearer {token}"),)
    requests = [_request(campaign_ids) for _ in range(calls)]
    begun = time.perf_counter()
    for request in requests:
        reply = await stub.MutateCampaigns(request, metadata=metadata)
        assert reply.success_count == len(campaign_ids)
    return calls * len(campaign_ids) / (time.perf_counter() - begun)


def _request(campaign_ids: list[UUID]) -> pb.MutateCampaignsRequest:
    request = pb.MutateCampaignsRequest(request_id=str(uuid7()))
    for campaign_id in campaign_ids:
        change = request.operations.add().update
        change.update_mask.paths.append("daily_budget")
        change.campaign.campaign_id = str(campaign_id)
        change.campaign.daily_budget.currency_code = "RUB"
        change.campaign.daily_budget.micros = next(_micros)
    return request


async def _bare(connection: asyncpg.Connection, campaign_ids: list[UUID], calls: int) -> float:
    sets = [[(campaign_id, Decimal(next(_micros)).scaleb(-6)) for campaign_id in campaign_ids] for _ in range(calls)]
    begun = time.perf_counter()
    for rows in sets:
        await connection.executemany(_UPDATE, rows)
    return calls * len(campaign_ids) / (time.perf_counter() - begun)
