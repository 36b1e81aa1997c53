"""Campaigns come from PostgreSQL into ClickHouse's dictionary, once, and stay as PostgreSQL has them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID, uuid4

import pytest

from server.statistics.relay import CAMPAIGN_TOPIC, CLIENT_TOPIC, CampaignRelay
from storage.clickhouse import campaigns_dim
from storage.errors import StoreUnavailable
from storage.postgres import leases, outbox
from tests.statistics.ingest.support import IngestWorld, Tenant


async def _zone(world: IngestWorld, campaign_id: UUID) -> str:
    """Time zone of a campaign in the dictionary; empty if it is not there."""
    rows = await world.clickhouse.fetch(
        "SELECT dictGetOrDefault({name:String}, 'time_zone', {id:UUID}, '')",
        {"name": f"{world.clickhouse.database}.campaigns_dict", "id": campaign_id},
    )
    return str(rows[0][0])


async def _drain(world: IngestWorld) -> None:
    while await world.relay.relay_once():
        pass


async def _move(world: IngestWorld, tenant: Tenant, zone: str) -> None:
    await world.database.execute(
        "UPDATE clients SET settings = settings || jsonb_build_object('timezone', $2::text) WHERE id = $1",
        tenant.client_id,
        zone,
    )
    await outbox.append(world.database, CLIENT_TOPIC, str(tenant.client_id))


async def _reloads(world: IngestWorld, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    real, calls = campaigns_dim.reload, []

    async def reload(db: object) -> None:
        calls.append(1)
        await real(world.clickhouse)

    monkeypatch.setattr(campaigns_dim, "reload", reload)
    return calls


async def test_messages_become_rows_with_one_reload(ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await _drain(ingest_world)
    tenant = await ingest_world.tenant(5)
    for key in [*tenant.campaign_ids, tenant.campaign_ids[0], uuid4(), "not-an-id"]:
        await outbox.append(ingest_world.database, CAMPAIGN_TOPIC, str(key))
    calls = await _reloads(ingest_world, monkeypatch)
    assert await ingest_world.relay.relay_once() == 8
    assert await ingest_world.relay.relay_once() == 0
    assert len(calls) == 1
    assert [await _zone(ingest_world, id_) for id_ in tenant.campaign_ids] == ["Europe/Moscow"] * 5


async def test_a_new_time_zone_reaches_all_campaigns_of_a_client(ingest_world: IngestWorld) -> None:
    tenant, other = await ingest_world.tenant(3), await ingest_world.tenant()
    for id_ in [*tenant.campaign_ids, *other.campaign_ids]:
        await outbox.append(ingest_world.database, CAMPAIGN_TOPIC, str(id_))
    await _drain(ingest_world)
    await _move(ingest_world, tenant, "Asia/Tokyo")
    await _drain(ingest_world)
    assert [await _zone(ingest_world, id_) for id_ in tenant.campaign_ids] == ["Asia/Tokyo"] * 3
    assert await _zone(ingest_world, other.campaign_ids[0]) == "Europe/Moscow"


async def test_messages_stay_while_clickhouse_refuses(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _drain(ingest_world)
    tenant = await ingest_world.tenant()
    await outbox.append(ingest_world.database, CAMPAIGN_TOPIC, str(tenant.campaign_ids[0]))

    async def write(*args: object) -> None:
        raise StoreUnavailable("clickhouse")

    with monkeypatch.context() as patch:
        patch.setattr(campaigns_dim, "write", write)
        with pytest.raises(StoreUnavailable):
            await ingest_world.relay.relay_once()
    assert await ingest_world.relay.relay_once() == 1
    assert await _zone(ingest_world, tenant.campaign_ids[0]) == "Europe/Moscow"


async def test_the_one_who_read_later_wins(ingest_world: IngestWorld) -> None:
    tenant = await ingest_world.tenant()
    id_ = tenant.campaign_ids[0]

    def row(zone: str) -> campaigns_dim.Dimension:
        return campaigns_dim.Dimension(id_, tenant.client_id, tenant.project_id, "vk_ads", "RUB", zone)

    await campaigns_dim.write(ingest_world.clickhouse, [row("Asia/Tokyo")], 8)
    await campaigns_dim.write(ingest_world.clickhouse, [row("UTC")], 7)
    await campaigns_dim.reload(ingest_world.clickhouse)
    assert await _zone(ingest_world, id_) == "Asia/Tokyo"


async def test_reconcile_heals_what_is_missing_or_stale(
    ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ingest_world.relay.reconcile()
    known, missing = await ingest_world.tenant(2), await ingest_world.tenant(2)
    await ingest_world.directory.resolve_unknown(known.campaign_ids)
    await ingest_world.database.execute(
        'UPDATE clients SET settings = settings || \'{"timezone": "UTC"}\' WHERE id = $1', known.client_id
    )
    calls = await _reloads(ingest_world, monkeypatch)
    assert await ingest_world.relay.reconcile() == 4
    assert await ingest_world.relay.reconcile() == 0
    assert len(calls) == 1
    assert await _zone(ingest_world, known.campaign_ids[1]) == "UTC"
    assert await _zone(ingest_world, missing.campaign_ids[1]) == "Europe/Moscow"


async def test_made_up_campaigns_reload_nothing(ingest_world: IngestWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = await ingest_world.tenant()
    calls = await _reloads(ingest_world, monkeypatch)
    invented = {uuid4() for _ in range(5000)}
    assert await ingest_world.directory.resolve_unknown(invented) == {}
    assert calls == []
    found = await ingest_world.directory.resolve_unknown([*invented, tenant.campaign_ids[0]])
    assert found == {tenant.campaign_ids[0]: tenant.client_id}
    assert await ingest_world.directory.resolve_unknown([tenant.campaign_ids[0]]) == found
    assert len(calls) == 1


@asynccontextmanager
async def _running(relay: CampaignRelay) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_one_relay_leads_and_the_next_takes_over(ingest_world: IngestWorld) -> None:
    def relay() -> CampaignRelay:
        return CampaignRelay(ingest_world.database, ingest_world.clickhouse, holder=uuid4().hex, lease_ttl=1.0)

    async def arrives() -> None:
        tenant = await ingest_world.tenant()
        await outbox.append(ingest_world.database, CAMPAIGN_TOPIC, str(tenant.campaign_ids[0]))
        first.wake()
        async with asyncio.timeout(20):
            while await _zone(ingest_world, tenant.campaign_ids[0]) != "Europe/Moscow":
                await asyncio.sleep(0.05)

    first, second = relay(), relay()
    async with _running(second):
        async with _running(first):
            await arrives()
            holder = await ingest_world.database.fetchval("SELECT holder FROM leases WHERE name = 'campaign_relay'")
        await arrives()
    # Whoever stops gives the lease back.
    assert holder
    assert await leases.acquire(ingest_world.database, "campaign_relay", "test", relay()._ttl)
