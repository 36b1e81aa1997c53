"""What the jobs that read accounts have in common: whose turn it is, and what is asked of whom."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from server.jobs.handling import JobContext, JobFailed
from server.platforms.interface import PlatformError
from server.sealing import Unsealable
from server.sync import trouble
from server.sync.account import OpenAccount
from server.sync.making import SyncJob, enqueue
from storage.postgres import integrations, sync_streams
from storage.postgres.jobs import Job
from storage.postgres.sync_streams import StreamName
from storage.scope import EVERYTHING

Work = Callable[[Job, JobContext, OpenAccount], Awaitable[Mapping[str, Any]]]


async def read(job: Job, context: JobContext, stream: StreamName, work: Work) -> Mapping[str, Any]:
    """Reads a stream of the account of a job.

    Raises:
        JobFailed: It could not be read; `trouble` has acted upon that.
        JobPostponed: It has to wait.
    """
    stores, payload = context.stores, SyncJob.model_validate(job.payload)
    if payload.integration_id is None:
        return {"jobs": await make_due(context)}
    integration = await integrations.get(stores.database, EVERYTHING, payload.integration_id)
    if integration is None:
        raise JobFailed("there is no such account", final=True)
    if integration.status != "connected" or integration.paused:
        return {"skipped": "the client is archived" if integration.paused else f"the account is {integration.status}"}
    try:
        account = OpenAccount(stores.database, stores.keyring, stores.platforms, integration)
        try:
            return await work(job, context, account)
        finally:
            integration = account.integration
    except (PlatformError, Unsealable) as error:
        raise await trouble.met(error, job, context, integration, stream) from error


async def make_due(context: JobContext) -> int:
    """Makes a job for each stream whose time has come; returns how many streams those are."""
    stores, settings = context.stores, context.stores.settings.sync
    due = await sync_streams.due_internal(
        stores.database, stores.platforms.with_campaigns, settings.entities_every, settings.statistics_every
    )
    for each in due:
        async with context.transaction("sync_due") as tx:
            found = await integrations.connected_internal(tx, [each.integration_id])
            for integration in found:
                await enqueue(tx, integration, each.stream)
    return len(due)


def askable(ids: Iterable[str]) -> list[str]:
    """Those of some ids that a platform can be asked about: people may have linked anything, platforms know numbers."""
    return [each for each in ids if each.isascii() and each.isdigit() and 0 < int(each) < 2**63]
