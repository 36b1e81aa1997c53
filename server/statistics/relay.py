"""Carries campaigns from PostgreSQL into ClickHouse's dictionary, where ingest and queries look them up."""

import asyncio
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

from server.monitoring.events import RELAYED_MESSAGES
from server.rpc import logs
from storage.clickhouse import campaigns_dim, erase
from storage.clickhouse.campaigns_dim import Dimension
from storage.clickhouse.connect import ClickHouse
from storage.errors import StoreError
from storage.postgres import campaigns, leases, metrics_state, outbox
from storage.postgres.campaigns import CampaignDimension
from storage.postgres.database import Database, Executor, Transaction
from storage.scope import EVERYTHING

CAMPAIGN_TOPIC = "campaign"
CLIENT_TOPIC = "client"
ERASURE_TOPIC = "client_erasure"
"""Clients whose measurements are to be deleted."""

_LEASE = "campaign_relay"
_BATCH = 500
_PAGE = 1000
_IDLE_SECONDS = 0.5
_FAILURE_SECONDS = 2.0
_PURGE_SECONDS = 600.0
# Delivered messages are kept this long, for whoever has to find out what happened.
_KEPT = timedelta(days=7)
# Versions of the dimension come from the sequence alone; they have no lease to order them.
_VERSION_EPOCH = 1


class CampaignDirectory:
    """Makes campaigns known to ClickHouse when a batch names one that the relay has not brought there yet.

    Args:
        database: PostgreSQL, the truth.
        clickhouse: Where the dictionary is.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._one_at_a_time = asyncio.Lock()

    async def resolve_unknown(self, campaign_ids: Collection[UUID]) -> dict[UUID, UUID]:
        """Makes sure ClickHouse knows those of the campaigns that exist.

        Calls queue up: the first one's reload mostly serves the others, and a flood of made-up ids reloads nothing.

        Returns:
            Campaign to client, for those that exist.
        """
        async with self._one_at_a_time:
            version = await metrics_state.next_version(self._database, _VERSION_EPOCH)
            existing = await _existing(self._database, campaign_ids)
            missing = await campaigns_dim.unknown(self._clickhouse, existing.keys())
            if missing:
                await campaigns_dim.write(self._clickhouse, (existing[id_] for id_ in missing), version)
                await campaigns_dim.reload(self._clickhouse)
        return {id_: dimension.client_id for id_, dimension in existing.items()}


class CampaignRelay:
    """Delivers outbox messages about campaigns and clients; one process at a time does.

    A message says only what has changed: what is written is what PostgreSQL holds now, so repeats and any order are
    harmless.

    Args:
        database: PostgreSQL, the truth.
        clickhouse: Where the dictionary is.
        holder: Name of this process that no other process ever has.
        lease_ttl: Seconds without a sign after which another process takes over.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse, *, holder: str, lease_ttl: float) -> None:
        self._database = database
        self._clickhouse = clickhouse
        self._holder = holder
        self._ttl = timedelta(seconds=lease_ttl)
        self._log = logs.get("campaign_relay")
        self._woken = asyncio.Event()
        self._purge_at = 0.0

    def wake(self) -> None:
        """Has a running relay look now; call it after a transaction that added a message."""
        self._woken.set()

    async def run(self) -> None:
        """Relays until cancelled. Survives the loss of either store."""
        while True:
            try:
                epoch = await leases.acquire(self._database, _LEASE, self._holder, self._ttl)
                if epoch is not None:
                    await self._lead(epoch)
            except (StoreError, TimeoutError) as error:
                self._log.warning("relay_failed", exc_info=error)
                await asyncio.sleep(_FAILURE_SECONDS)
            else:
                await asyncio.sleep(self._ttl.total_seconds() / 3)

    async def relay_once(self) -> int:
        """Delivers one batch of messages and returns how many it was."""
        delivered = await self._database.run("relay_campaigns", self._deliver)
        RELAYED_MESSAGES.inc(delivered)
        return delivered

    async def reconcile(self) -> int:
        """Writes every campaign that ClickHouse lacks or holds otherwise, and returns how many there were.

        Nothing of the kind happens while both stores keep their data; it heals a ClickHouse that was restored.
        """
        healed = 0
        after: UUID | None = None
        while True:
            version = await metrics_state.next_version(self._database, _VERSION_EPOCH)
            page = await campaigns.dimension_page_internal(self._database, limit=_PAGE, after=after)
            if not page:
                break
            after = page[-1].campaign_id
            outdated = await campaigns_dim.outdated(self._clickhouse, _converted(page))
            await campaigns_dim.write(self._clickhouse, outdated, version)
            healed += len(outdated)
        if healed:
            await campaigns_dim.reload(self._clickhouse)
        return healed

    async def _lead(self, epoch: int) -> None:
        """Relays as long as the lease holds."""
        try:
            healed = await self.reconcile()
            self._log.info("relay_leads", healed=healed)
            while await leases.renew(self._database, _LEASE, self._holder, epoch, self._ttl):
                await self._purge()
                self._woken.clear()
                if await self.relay_once():
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(_IDLE_SECONDS):
                        await self._woken.wait()
        except asyncio.CancelledError:
            with suppress(StoreError, TimeoutError):
                await asyncio.shield(leases.release(self._database, _LEASE, self._holder, epoch))
            raise

    async def _purge(self) -> None:
        """Forgets old messages, now and then."""
        now = time.monotonic()
        if now >= self._purge_at:
            self._purge_at = now + _PURGE_SECONDS
            await outbox.purge_processed(self._database, _KEPT)

    async def _deliver(self, tx: Transaction) -> int:
        about_campaigns = await outbox.take_batch(tx, CAMPAIGN_TOPIC, _BATCH)
        about_clients = await outbox.take_batch(tx, CLIENT_TOPIC, _BATCH)
        erasures = await outbox.take_batch(tx, ERASURE_TOPIC, _BATCH)
        messages = [*about_campaigns, *about_clients, *erasures]
        if not messages:
            return 0
        version = await metrics_state.next_version(tx, _VERSION_EPOCH)
        dimensions = await _existing(tx, _ids(message.key for message in about_campaigns))
        for client_id in _ids(message.key for message in about_clients):
            found = await campaigns.for_dimension(tx, EVERYTHING, client_id=client_id)
            dimensions.update((dimension.campaign_id, dimension) for dimension in _converted(found))
        if dimensions:
            await campaigns_dim.write(self._clickhouse, dimensions.values(), version)
        for client_id in _ids(message.key for message in erasures):
            await erase.erase_client_internal(self._clickhouse, client_id)
        if dimensions or erasures:
            await campaigns_dim.reload(self._clickhouse)
        await outbox.mark_processed(tx, [message.id for message in messages])
        return len(messages)


async def _existing(db: Executor, campaign_ids: Collection[UUID]) -> dict[UUID, Dimension]:
    found = await campaigns.dimensions_internal(db, list(campaign_ids))
    return {dimension.campaign_id: dimension for dimension in _converted(found)}


def _converted(rows: Iterable[CampaignDimension]) -> list[Dimension]:
    return [
        Dimension(
            campaign_id=row.campaign_id,
            client_id=row.client_id,
            project_id=row.project_id,
            platform=row.platform,
            currency=row.currency,
            time_zone=row.time_zone,
        )
        for row in rows
    ]


def _ids(keys: Iterable[str]) -> set[UUID]:
    """The keys that are ids; a key that is not one names nothing here."""
    ids = set()
    for key in keys:
        with suppress(ValueError):
            ids.add(UUID(key))
    return ids
