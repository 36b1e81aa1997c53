"""A client with campaigns and a key, made straight in the stores, and batches of events for it."""

import asyncio
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

from benchmarks.harness import Bench
from mrm.statistics.v1 import event_pb2
from server.rpc.auth import KEY_PREFIX, digest, new_secret
from storage.clickhouse.connect import ClickHouse
from storage.postgres import api_keys, campaigns, clients, outbox, projects
from storage.postgres.database import Database

_KNOWN_SECONDS = 30.0


@dataclass(frozen=True)
class Tenant:
    """Who the events are of, and the key to send and watch them with."""

    client_id: UUID
    campaign_ids: list[UUID]
    secret: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        return (("authorization", f"Bearer {self.secret}"),)


async def make_tenant(bench: Bench, campaign_count: int, time_zone: str = "UTC") -> Tenant:
    """A client with campaigns."""
    database = await Database.open(bench.connections.postgres_dsn, min_size=1, max_size=2)
    try:
        client = await clients.create(
            database, name="bench", type="direct_advertiser", settings={"timezone": time_zone}
        )
        project = await projects.create(database, client_id=client.id, name="bench")
        made = []
        for number in range(campaign_count):
            campaign = await campaigns.create(
                database,
                client_id=client.id,
                project_id=project.id,
                platform="other",
                name=f"bench {number}",
                currency="RUB",
            )
            await outbox.append(database, "campaign", str(campaign.id))
            made.append(campaign.id)
        secret = new_secret(KEY_PREFIX)
        await api_keys.create(
            database,
            name="bench",
            key_hash=bytes.fromhex(digest(secret)),
            prefix=secret[:11],
            permissions=["STATISTICS_INGEST", "STATISTICS_READ"],
            client_ids=[client.id],
        )
        return Tenant(client.id, made, secret)
    finally:
        await database.close()


async def until_known(bench: Bench, tenant: Tenant) -> None:
    """Waits until ClickHouse knows the campaigns: a statement that runs without the server cannot look for them."""
    store = ClickHouse(bench.connections.clickhouse_dsn, connections=4)
    known = f"SELECT dictHas('campaigns_dict', tuple(toUUID('{tenant.campaign_ids[-1]}')))"
    try:
        async with asyncio.timeout(_KNOWN_SECONDS):
            while True:
                [(there,)] = await store.fetch(known)
                if there:
                    return
                await asyncio.sleep(0.1)
    finally:
        await store.close()


def batch(tenant: Tenant, size: int, span_seconds: int, seed: int) -> bytes:
    """A serialized EventBatch: mostly impressions, some clicks, few conversions, over the last `span_seconds`."""
    chance = random.Random(seed)
    now = datetime.now(UTC).timestamp()
    message = event_pb2.EventBatch()
    for _ in range(size):
        kind = chance.choices((1, 2, 3), (95, 4, 1))[0]
        event = message.events.add(
            event_id=str(uuid4()),
            campaign_id=str(chance.choice(tenant.campaign_ids)),
            event_type=kind,  # type: ignore[arg-type]
            user_id=f"{chance.getrandbits(64):016x}",
            cost_micros=chance.randrange(1000, 90_000) if kind == 1 else 0,
            revenue_micros=chance.randrange(10**6, 10**9) if kind == 3 else 0,
        )
        moment = now - chance.random() * span_seconds
        event.event_time.FromMicroseconds(int(moment * 1e6))
    return message.SerializeToString()
