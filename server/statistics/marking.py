"""Days whose measurements changed after they had ended: they are rolled up again at once."""

from collections.abc import Collection, Mapping
from datetime import date, timedelta
from typing import Final
from uuid import UUID

from storage.postgres import jobs, rollups
from storage.postgres.database import Transaction
from storage.postgres.jobs import Job

TYPE: Final = "rollup_daily"
QUEUE: Final = "sync"
# What people may be looking at goes before what runs by the clock.
_PRIORITY: Final = 10


async def announce(
    tx: Transaction,
    delay: timedelta,
    dates: Collection[tuple[UUID, date]] = (),
    instants: Collection[tuple[UUID, int]] = (),
) -> None:
    """Marks days of clients whose measurements have changed, and has them rolled up soon. Days that run are left out.

    Call it when the change can be seen in ClickHouse, and last in the transaction.

    Args:
        tx: A transaction; its commit is the announcement.
        delay: How long to wait for more.
        dates: Days, each in the time zone of its client.
        instants: Instants in Unix seconds, for the days on which they lie.
    """
    found = set(dates)
    if instants:
        found |= set(await rollups.ended_days_internal(tx, instants))
    if not found:
        return
    for client_id, takes in (await rollups.mark_internal(tx, found)).items():
        await enqueue(
            tx, client_id, {"cause": "new_reading"}, f"rollup:{client_id}:{takes}", priority=_PRIORITY, delay=delay
        )


async def enqueue(
    tx: Transaction,
    client_id: UUID,
    payload: Mapping[str, str],
    key: str,
    *,
    priority: int = 0,
    delay: timedelta = timedelta(0),
    requested_by: UUID | None = None,
) -> Job:
    """Makes a job that rolls up days of a client, unless there is one with the key.

    Args:
        tx: The transaction.
        client_id: The client.
        payload: The fields of `server.statistics.rollup_job.RollupDaily` but for the client.
        key: While a job with it waits or runs, that one is the job.
        priority: Higher is sooner.
        delay: How long to wait before it begins.
        requested_by: The user who wished it, if one did.
    """
    return await jobs.enqueue_internal(
        tx,
        type=TYPE,
        queue=QUEUE,
        payload={"client_id": str(client_id), **payload},
        client_id=client_id,
        unique_key=key,
        priority=priority,
        delay=delay,
        requested_by=requested_by,
    )
