"""Makes the jobs that read accounts on platforms. Whoever causes one needs no more than this."""

from collections.abc import Collection
from datetime import timedelta
from typing import Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from storage.postgres import integrations, jobs
from storage.postgres.database import Transaction
from storage.postgres.integrations import Integration
from storage.postgres.jobs import Job
from storage.postgres.sync_streams import StreamName

ENTITIES: Final = "sync_campaign"
STATISTICS: Final = "sync_statistics"
QUEUE: Final = "sync"
TYPES: Final[dict[StreamName, str]] = {"entities": ENTITIES, "statistics": STATISTICS}
# What Yandex Direct allows of one advertiser at the same time; a job asks one question after the other.
_AT_ONCE: Final = 5
# What somebody waits for goes before what comes by the clock.
_URGENT: Final = 10


class SyncJob(BaseModel):
    """Payload of a ``sync_campaign`` or ``sync_statistics`` job.

    Attributes:
        integration_id: Which account; None to make a job for each account whose time has come.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    integration_id: UUID | None = None


def hold_key(integration_id: UUID) -> str:
    """What holds all jobs of an account back."""
    return f"integration:{integration_id}"


async def enqueue(
    tx: Transaction,
    integration: Integration,
    stream: StreamName,
    *,
    requested_by: UUID | None = None,
    urgent: bool = False,
    trace_id: str = "",
) -> Job:
    """Makes the job that reads a stream of an account, unless there is one that waits or runs: then that one is it.

    Args:
        tx: The transaction of the cause.
        integration: The account.
        stream: What to read.
        requested_by: The user who wished it, if one did.
        urgent: Somebody waits for it.
        trace_id: Id of the request that causes it.
    """
    account = integration.platform_account_id or str(integration.id)
    return await jobs.enqueue_internal(
        tx,
        type=TYPES[stream],
        queue=QUEUE,
        payload=SyncJob(integration_id=integration.id).model_dump(mode="json"),
        client_id=integration.client_id,
        requested_by=requested_by,
        unique_key=f"{TYPES[stream]}:{integration.id}",
        priority=_URGENT if urgent else 0,
        max_attempts=5,
        backoff_base=timedelta(seconds=10),
        throttle_key=f"{integration.platform}:{account}",
        throttle_limit=_AT_ONCE,
        hold_key=hold_key(integration.id),
        trace_id=trace_id,
    )


async def push_soon(tx: Transaction, account_ids: Collection[UUID | None]) -> None:
    """Has accounts told soon of what has changed in the transaction; those that cannot be told now are left out."""
    for integration in await integrations.connected_internal(tx, {each for each in account_ids if each is not None}):
        await enqueue(tx, integration, "entities", urgent=True)
