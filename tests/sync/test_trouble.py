"""What becomes of an account and its jobs when a platform refuses, wants patience, is away, or answers nonsense."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import pytest

from mrm.accounts.v1 import integration_pb2, integration_service_pb2
from mrm.campaigns.v1 import sync_pb2
from mrm.common.v1 import options_pb2
from server.jobs.handling import Stores
from storage.postgres import jobs
from tests.conftest import Failing, World
from tests.sync.desk import ENTITIES, LEASE, STATISTICS, Office, Platform, ago, credentials, office

pytestmark = pytest.mark.bar_e

_CONNECTED, _ERROR = integration_pb2.INTEGRATION_STATUS_CONNECTED, integration_pb2.INTEGRATION_STATUS_ERROR


async def may_begin(desk: Office, job_id: UUID) -> bool:
    await desk.world.database.execute("UPDATE jobs SET scheduled_at = now() WHERE id = $1", job_id)
    async with desk.world.database.transaction("claim") as tx:
        claimed = await jobs.claim_limited_internal(tx, [job_id], "test", LEASE)
        for each in claimed:
            await jobs.release_internal(tx, each.id, each.fence)
    return bool(claimed)


@pytest.mark.parametrize("platform", ["yandex_direct", "vk_ads"])
async def test_a_token_that_has_ended_is_renewed_sealed_and_stored(
    world: World, stores: Stores, platform: Platform
) -> None:
    desk = await office(world, stores, platform, campaigns=1)
    before = await world.database.fetchval(
        "SELECT credentials FROM client_integrations WHERE id = $1", UUID(desk.integration_id)
    )
    desk.sandbox.expire(desk.key)
    # Both streams find it out at once, and the platform takes a refresh token once: one renews, the other waits.
    made = [await desk.make(each) for each in (ENTITIES, STATISTICS)]
    done = await asyncio.gather(*(desk.attempt(each) for each in made))
    assert [(each.status, each.error) for each in done] == [("completed", None)] * 2
    after = await world.database.fetchval(
        "SELECT credentials FROM client_integrations WHERE id = $1", UUID(desk.integration_id)
    )
    assert before["ciphertext"] != after["ciphertext"]
    assert not {token for token in desk.sandbox.state.tokens if token in str(after)}
    assert (await desk.integration()).status == _CONNECTED
    assert (await desk.sync(ENTITIES)).status == "completed"
    # A test of the credentials renews them, too, before it calls them refused.
    desk.sandbox.expire(desk.key)
    tested = await world.admin.integrations.TestIntegration(
        integration_service_pb2.TestIntegrationRequest(integration_id=desk.integration_id), metadata=world.admin.auth
    )
    assert tested.outcome == integration_service_pb2.TestIntegrationResponse.OUTCOME_ACCEPTED


async def test_a_refusal_holds_the_jobs_of_the_account_until_it_is_usable_again(
    world: World, stores: Stores, failing: Failing
) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=1)
    tokens = [token for token, each in desk.sandbox.state.tokens.items() if each.account == desk.key]
    desk.sandbox.revoke(desk.key)
    entities, statistics = await desk.make(ENTITIES), await desk.make(STATISTICS)
    refused = await desk.attempt(entities)
    # Not its fault: it waits, and has all its attempts left.
    assert (refused.status, refused.attempts) == ("pending", 0)
    assert "HTTP 4" in refused.held_because
    assert (await desk.integration()).status == _ERROR
    assert not await may_begin(desk, entities.id)
    assert not await may_begin(desk, statistics.id)
    assert await desk.alerts() == [("integration_error", "open")]
    told = await world.database.fetch(
        "SELECT action, actor_kind, cause FROM audit_log WHERE resource_id = $1 AND action = 'sync'",
        desk.integration_id,
    )
    assert [(row[0], row[1]) for row in told] == [("sync", "system")]
    status = await desk.status()
    assert [each.fault for each in status.streams] == [sync_pb2.SYNC_FAULT_AUTH_FAILED]
    assert (await failing(desk.make(ENTITIES))).reason == "STATE_FORBIDS"

    # Tested in vain, nothing changes; new credentials let go of what waits, which then runs by itself.
    test = integration_service_pb2.TestIntegrationRequest(integration_id=desk.integration_id)
    await world.admin.integrations.TestIntegration(test, metadata=world.admin.auth)
    assert not await may_begin(desk, entities.id)
    name = desk.key.partition(":")[2]
    fresh = credentials("vk_ads", name, desk.sandbox.open("vk_ads", name))
    rotate = integration_service_pb2.RotateIntegrationCredentialsRequest(
        integration_id=desk.integration_id, credentials=fresh
    )
    await world.admin.integrations.RotateIntegrationCredentials(rotate, metadata=world.admin.auth)
    assert await desk.alerts() == [("integration_error", "resolved")]
    # The sandbox repeats the token in its errors: nothing of that is kept anywhere.
    kept = await world.database.fetch(
        """SELECT j::text FROM jobs j WHERE client_id = $1 UNION ALL SELECT a::text FROM alerts a WHERE client_id = $1
        UNION ALL SELECT l::text FROM audit_log l WHERE client_id = $1 UNION ALL SELECT t::text FROM job_attempts t
        UNION ALL SELECT s::text FROM sync_streams s UNION ALL SELECT i::text FROM client_integrations i""",
        UUID(desk.client_id),
    )
    assert kept
    assert not [row for row in kept if any(token in row[0] for token in tokens)]
    for each in (entities, statistics):
        assert (await desk.attempt(each)).status == "completed"
    assert not any(each.error for each in (await desk.status()).streams)


async def test_a_disconnected_account_and_an_archived_client_rest(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=1)
    job = await desk.make(STATISTICS)
    await world.database.execute("UPDATE clients SET archived_at = now() WHERE id = $1", UUID(desk.client_id))
    done = await desk.attempt(job)
    assert done.result == {"skipped": "the client is archived"}
    await world.database.execute("UPDATE clients SET archived_at = NULL WHERE id = $1", UUID(desk.client_id))
    job = await desk.make(STATISTICS)
    request = integration_service_pb2.DisconnectIntegrationRequest(integration_id=desk.integration_id)
    await world.admin.integrations.DisconnectIntegration(request, metadata=world.admin.auth)
    assert (await desk.job(job.id)).status == "cancelled"


async def test_what_the_platform_wants_to_wait_for_costs_no_attempt(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=1)
    desk.sandbox.limit(desk.key, requests=0)
    begun = datetime.now(UTC)
    job = await desk.sync(STATISTICS)
    assert (job.status, job.attempts) == ("pending", 0)
    assert job.error == "VK Ads answers HTTP 429"
    # It says until when: the limit is one of the hour.
    assert 0 < (job.scheduled_at - begun).total_seconds() <= 3_601
    [stream] = (await desk.status()).streams
    assert (stream.fault, stream.failure_count) == (sync_pb2.SYNC_FAULT_WAITING, 0)


async def test_a_report_in_the_queue_is_waited_for_under_its_name(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "yandex_direct", campaigns=1)
    day = ago(2)
    desk.sandbox.restate(desk.external_ids[0], day.isoformat(), clicks=50)
    desk.sandbox.online_days = 0
    try:
        job = await desk.sync(STATISTICS)
        assert (job.status, job.attempts, job.error) == ("pending", 0, "Yandex Direct is making the report")
        assert await desk.clicks(day) == {}
        desk.sandbox.advance(5)
        done = await desk.attempt(job)
    finally:
        desk.sandbox.online_days = 31
        desk.sandbox.advance(-5)
    assert (done.status, done.attempts) == ("completed", 1)
    assert await desk.clicks(day) == {day.isoformat(): 50}
    reports = [each for each in desk.sandbox.state.reports.values() if each.account == desk.key.partition(":")[2]]
    assert len(reports) == 1


@pytest.mark.parametrize(("how", "fault"), [("garbage", "malformed"), ("503", "unavailable")])
async def test_what_goes_wrong_again_and_again_is_told(world: World, stores: Stores, how: str, fault: str) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=1)
    job = await desk.make(ENTITIES)
    desk.sandbox.misbehave(how, platform="vk_ads", path="ad_plans.json", times=-1)
    try:
        for attempt in (1, 2, 3):
            failed = await desk.attempt(job)
            assert (failed.status, failed.attempts) == ("pending", attempt)
            assert (await desk.alerts() == []) == (attempt < 3)
    finally:
        desk.sandbox.misbehave(how, platform="vk_ads", path="ad_plans.json", times=0)
    assert await desk.alerts() == [("job_failed", "open")]
    [stream] = (await desk.status()).streams
    assert (stream.fault, stream.failure_count) == (sync_pb2.SyncFault.Value(f"SYNC_FAULT_{fault.upper()}"), 3)
    assert (await desk.integration()).status == _CONNECTED
    assert (await desk.attempt(job)).status == "completed"
    assert await desk.alerts() == [("job_failed", "resolved")]


async def test_the_clock_makes_one_job_for_each_stream_that_is_due(world: World, stores: Stores) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=1)
    counter = await office(world, stores, "yandex_metrika", campaigns=0)
    await desk.sync(ENTITIES)

    async def made(client_id: str) -> list[str]:
        async with world.database.transaction("due") as tx:
            job = await jobs.enqueue_internal(tx, type="sync_campaign", queue="sync", payload={})
        await world.database.execute("UPDATE jobs SET scheduled_at = now() WHERE id = $1", job.id)
        claimed = await jobs.claim_internal(world.database, [job.id], "test", LEASE)
        from server.jobs.worker import HANDLERS, JobWorker

        await JobWorker(stores, HANDLERS, ())._attempt(claimed[0])
        rows = await world.database.fetch(
            "SELECT type FROM jobs WHERE client_id = $1 AND status = 'pending' ORDER BY type", UUID(client_id)
        )
        return [row[0] for row in rows]

    for _ in range(2):
        assert await made(desk.client_id) == ["sync_statistics"]
        assert await made(counter.client_id) == ["sync_statistics"]


async def test_only_who_may_has_accounts_read(world: World, stores: Stores, failing: Failing) -> None:
    desk = await office(world, stores, "vk_ads", campaigns=0)
    analyst = await world.user("analyst", desk.client_id)
    key = await world.key([desk.client_id], options_pb2.PERMISSION_CAMPAIGNS_SYNC)
    request = desk.request(ENTITIES)
    assert (await failing(analyst.syncs.SyncIntegration(request, metadata=analyst.auth))).reason == "PERMISSION_MISSING"
    assert len((await key.syncs.SyncIntegration(request, metadata=key.auth)).jobs) == 1
