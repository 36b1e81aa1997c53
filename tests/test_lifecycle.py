"""Restarts, draining, stores that go away, credentials that end: what long-lived callers go through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

import mrm_client
from mrm.accounts.v1 import api_key_service_pb2, client_service_pb2, session_service_pb2
from mrm.campaigns.v1 import campaign_service_pb2
from mrm.common.v1 import options_pb2
from mrm.statistics.v1 import statistics_service_pb2
from server.app import Application
from server.rpc.health import PROCESS
from server.settings import Settings
from tests.chaos import Proxy
from tests.conftest import PASSWORD, Caller, Failing, World, failure_of, impression

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
STATISTICS = "mrm.statistics.v1.StatisticsService"
CAMPAIGNS = "mrm.campaigns.v1.CampaignService"
INGEST_AND_READ = (options_pb2.PERMISSION_STATISTICS_INGEST, options_pb2.PERMISSION_STATISTICS_READ)


@dataclass
class Fragile:
    """A second server on the same engines, each behind a proxy."""

    application: Application
    channel: grpc.aio.Channel
    postgres: Proxy
    redis: Proxy
    clickhouse: Proxy

    def caller(self, token: str) -> Caller:
        return Caller(self.channel, token)

    async def health(self, service: str) -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        return (await health_pb2_grpc.HealthStub(self.channel).Check(request)).status

    async def until_health(self, service: str, wanted: int) -> None:
        async with asyncio.timeout(20):
            while await self.health(service) != wanted:
                await asyncio.sleep(0.1)


@pytest.fixture
async def fragile(world: World) -> AsyncIterator[Fragile]:
    proxies = [
        Proxy(dsn)
        for dsn in (world.connections.postgres_dsn, world.connections.redis_dsn, world.connections.clickhouse_dsn)
    ]
    for proxy in proxies:
        await proxy.up()
    settings = world.settings.model_copy(deep=True)
    settings.postgres.dsn = SecretStr(proxies[0].dsn)
    settings.redis.durable_dsn = SecretStr(proxies[1].dsn)
    settings.clickhouse.dsn = SecretStr(proxies[2].dsn)
    application = Application(settings)
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        yield Fragile(application, channel, *proxies)
    for proxy in proxies:
        if proxy._server is None:
            await proxy.up()
    await application.stop()
    for proxy in proxies:
        await proxy.down()


async def test_without_redis_keys_work_and_sessions_wait(world: World, fragile: Fragile, failing: Failing) -> None:
    client = await world.client()
    key = fragile.caller((await world.key([client.client_id], options_pb2.PERMISSION_CLIENTS_READ)).token)
    person = fragile.caller(world.admin.token)
    get = client_service_pb2.GetClientRequest(client_id=client.client_id)
    await fragile.redis.down()
    failure = await failing(person.clients.GetClient(get, metadata=person.auth))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert failure.metadata["store"] == "redis"
    assert failure.retry_seconds
    login = session_service_pb2.LoginRequest(email="admin@example.com", password=PASSWORD)
    assert (await failing(person.sessions.Login(login))).code == grpc.StatusCode.UNAVAILABLE
    assert (await key.clients.GetClient(get, metadata=key.auth)).client.client_id == client.client_id
    await fragile.until_health(CAMPAIGNS, NOT_SERVING)
    await fragile.redis.up()
    await fragile.until_health(CAMPAIGNS, SERVING)
    assert (await person.clients.GetClient(get, metadata=person.auth)).client.client_id == client.client_id


async def test_without_postgres_writes_wait_and_nothing_leaks(world: World, fragile: Fragile, failing: Failing) -> None:
    person = fragile.caller(world.admin.token)
    await fragile.postgres.down()
    get = client_service_pb2.GetClientRequest(client_id=str(uuid4()))
    failure = await failing(person.clients.GetClient(get, metadata=person.auth))
    assert (failure.code, failure.metadata["store"]) == (grpc.StatusCode.UNAVAILABLE, "postgresql")
    assert "127.0.0.1" not in failure.message
    await fragile.postgres.up()
    await fragile.until_health("", SERVING)
    assert (await failing(person.clients.GetClient(get, metadata=person.auth))).code == grpc.StatusCode.NOT_FOUND


async def test_without_clickhouse_only_statistics_stop(world: World, fragile: Fragile, failing: Failing) -> None:
    client_id, [campaign_id] = await world.tenant()
    person = fragile.caller(world.admin.token)
    await fragile.clickhouse.down()
    await fragile.until_health(STATISTICS, NOT_SERVING)
    assert await fragile.health(CAMPAIGNS) == SERVING
    assert await fragile.health(PROCESS) == SERVING
    query = statistics_service_pb2.QueryStatisticsRequest(
        dates={"start_date": "2026-01-01", "end_date": "2026-01-02"},  # type: ignore[arg-type]
        granularity=1,  # type: ignore[arg-type]
        filter={"client_ids": [client_id]},  # type: ignore[arg-type]
    )
    failure = await failing(person.statistics.QueryStatistics(query, metadata=person.auth))
    assert (failure.code, failure.metadata["store"]) == (grpc.StatusCode.UNAVAILABLE, "clickhouse")
    get = campaign_service_pb2.GetCampaignRequest(campaign_id=campaign_id)
    assert (await person.campaigns.GetCampaign(get, metadata=person.auth)).campaign.campaign_id == campaign_id
    await fragile.clickhouse.up()
    await fragile.until_health(STATISTICS, SERVING)
    await person.statistics.QueryStatistics(query, metadata=person.auth)


async def test_a_producer_waits_out_clickhouse(world: World, fragile: Fragile) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await world.key([client_id], *INGEST_AND_READ)
    async with mrm_client.channel(f"127.0.0.1:{fragile.application.port}", key.token) as channel:
        async with mrm_client.Producer(channel, client_id, "steady") as producer:
            await producer.send([impression(campaign_id)])
            await producer.flush()
            await fragile.clickhouse.down()
            for _ in range(5):
                await producer.send([impression(campaign_id)])
            await asyncio.sleep(1)
            assert producer.acknowledged_position == 1
            await fragile.clickhouse.up()
        assert producer.acknowledged_position == 6


async def test_a_stream_ends_soon_after_its_session(world: World) -> None:
    client_id, _ = await world.tenant()
    user = await world.user("analyst", client_id)
    call = user.statistics.WatchMetrics(
        statistics_service_pb2.WatchMetricsRequest(client_id=client_id), metadata=user.auth
    )
    await call.read()
    await user.sessions.Logout(session_service_pb2.LogoutRequest(), metadata=user.auth)
    begun = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert failure_of(caught.value).reason == "CREDENTIALS_ENDED"
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert time.monotonic() - begun < 3


async def test_a_stream_ends_soon_after_its_key(world: World) -> None:
    client_id, _ = await world.tenant()
    key = await world.key([client_id], *INGEST_AND_READ)
    seen = await key.sessions.GetCurrentSession(session_service_pb2.GetCurrentSessionRequest(), metadata=key.auth)
    call = key.statistics.AppendEvents(metadata=key.auth)
    await call.write(statistics_service_pb2.AppendEventsRequest(client_id=client_id, stream_id="s"))
    await call.read()
    await world.admin.api_keys.RevokeApiKey(
        api_key_service_pb2.RevokeApiKeyRequest(api_key_id=seen.api_key_id), metadata=world.admin.auth
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(5):
            await call.read()
    assert failure_of(caught.value).reason == "CREDENTIALS_ENDED"


async def test_watcher_and_producer_survive_a_restart(world: World) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await world.key([client_id], *INGEST_AND_READ)
    settings = world.settings.model_copy(deep=True)
    first = Application(settings)
    await first.start()
    settings.grpc.port = first.port
    second = Application(settings)
    counts: list[int] = []
    watermarks: list[float] = []

    async def follow(channel: grpc.aio.Channel) -> None:
        async with aclosing(mrm_client.watch(channel, client_id, heartbeat=timedelta(seconds=1))) as states:
            async for state in states:
                figures = state.campaigns.get(campaign_id)
                counts.append(figures.metrics.impressions if figures else 0)
                if state.watermark:
                    watermarks.append(state.watermark.timestamp())

    target = f"127.0.0.1:{first.port}"
    async with (
        mrm_client.channel(target, key.token) as sending,
        mrm_client.channel(target, key.token, watch=True) as watching,
    ):
        follower = asyncio.create_task(follow(watching))
        try:
            async with mrm_client.Producer(sending, client_id, "through-a-restart") as producer:
                for number in range(60):
                    await producer.send([impression(campaign_id) for _ in range(10)])
                    if number == 30:
                        await first.stop()
                        await asyncio.sleep(0.5)
                        await second.start()
                    await asyncio.sleep(0.02)
            async with asyncio.timeout(20):
                while not counts or counts[-1] != 600:
                    await asyncio.sleep(0.1)
        finally:
            follower.cancel()
            with suppress(asyncio.CancelledError):
                await follower
            await second.stop()
    assert producer.counters.reconnects >= 1
    assert counts == sorted(counts), "a state older than one already seen was shown"
    assert watermarks == sorted(watermarks)


async def test_draining_fails_no_call(world: World) -> None:
    client = await world.client()
    settings = world.settings.model_copy(deep=True)
    settings.grpc.drain_delay = Settings().grpc.drain_delay
    application = Application(settings)
    await application.start()
    get = client_service_pb2.GetClientRequest(client_id=client.client_id)
    finished = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        person = Caller(channel, world.admin.token)
        calls = [person.clients.GetClient(get, metadata=person.auth) for _ in range(200)]
        await calls[0]
        stopping = asyncio.create_task(application.stop())
        for call in calls:
            finished += (await call).client.client_id == client.client_id
        await stopping
    assert finished == 200


async def test_health_watch_works(world: World) -> None:
    call = health_pb2_grpc.HealthStub(world.channel).Watch(health_pb2.HealthCheckRequest(service=STATISTICS))
    reply = await call.read()
    assert isinstance(reply, health_pb2.HealthCheckResponse)
    assert reply.status == SERVING
    call.cancel()


def test_secrets_are_masked() -> None:
    settings = Settings()
    settings.postgres.dsn = SecretStr("postgresql://mrm:hunter2@localhost/mrm")
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.model_dump())
