"""The job that has all stores forget somebody, and notes for each that it has."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from server.jobs.handling import JobContext, JobFailed, JobPostponed, Stores
from server.statistics.relay import ERASURE_TOPIC
from storage.clickhouse import erase
from storage.errors import StoreUnavailable
from storage.objects.store import client_prefix
from storage.postgres import archives, embeddings, erasures, jobs
from storage.postgres.database import Transaction
from storage.postgres.erasures import Erasure, Subject
from storage.postgres.jobs import Job
from storage.redis import campaign_cache, sessions

TYPE: Final = "erase_subject"
QUEUE: Final = "maintenance"

_PAGE: Final = 500
_AGAIN: Final = timedelta(seconds=5)
# Every process has taken another salt by then, and stored what it had hashed under the old one.
_SALT_FORGOTTEN: Final = timedelta(minutes=3)


class EraseSubject(BaseModel):
    """Payload of an ``erase_subject`` job: names what is to be erased, and says nothing of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    erasure_id: UUID


class _Waits(Exception):
    """A store cannot give its receipt yet."""


async def request(tx: Transaction, subject: Subject, subject_id: UUID, within: timedelta) -> Erasure:
    """Has all stores forget somebody, in the transaction that decides it.

    Args:
        tx: The transaction.
        subject: What kind of somebody.
        subject_id: Id of the client or user.
        within: By when; later an alert is raised.
    """
    made = await erasures.request(tx, subject, subject_id, within)
    await jobs.enqueue_internal(
        tx, type=TYPE, queue=QUEUE, payload=EraseSubject(erasure_id=made.id).model_dump(mode="json"),
        unique_key=f"erase:{made.id}", max_attempts=20,
    )  # fmt: skip
    return made


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Asks each store that has not given its receipt; those that are away are asked again later."""
    stores = context.stores
    wanted = await erasures.get_internal(stores.database, EraseSubject.model_validate(job.payload).erasure_id)
    if wanted is None:
        raise JobFailed("there is no such erasure", final=True)
    done = {each.store for each in wanted.receipts}
    waiting: list[str] = []
    for store in erasures.STORES[wanted.subject]:
        if store in done:
            continue
        try:
            note = await _erased(stores, wanted, store)
        except _Waits as reason:
            waiting.append(f"{store}: {reason}")
        except (StoreUnavailable, TimeoutError):
            waiting.append(f"{store} is away")
        else:
            async with context.transaction("erasure_receipt") as tx:
                await erasures.note_internal(tx, wanted.id, store, note)
    if waiting:
        raise JobPostponed(_AGAIN, "; ".join(waiting))
    async with context.transaction("erasure_complete") as tx:
        await erasures.complete_internal(tx, wanted.id)
    return {"stores": list(erasures.STORES[wanted.subject])}


async def _erased(stores: Stores, wanted: Erasure, store: str) -> str:
    """What a store's receipt says; raises _Waits if it is too early for one."""
    match wanted.subject:
        case "client":
            return await _client_erased(stores, wanted.subject_id, store)
        case "user":
            if store == "redis":
                await sessions.forget(stores.settings.redis.durable_dsn.get_secret_value(), wanted.subject_id)
                return "no session of the user is there"
            return "name, address, messages to it and words of feedback went with the user"
        case _:
            if store != "postgresql" and datetime.now(UTC) - wanted.requested_at < _SALT_FORGOTTEN:
                raise _Waits("servers still know the salt for a moment")
            return "the salt is gone: no pseudonym that is stored leads to a user id any more"


async def _client_erased(stores: Stores, client_id: UUID, store: str) -> str:
    match store:
        case "postgresql":
            if await erasures.at_work_internal(stores.database, client_id):
                raise _Waits("a job of the client is at work")
            deleted = await erasures.forget_client_internal(stores.database, client_id)
            return f"{deleted} rows deleted; in backups until these expire"
        case "clickhouse":
            if await erasures.is_waiting_internal(stores.database, ERASURE_TOPIC, client_id):
                raise _Waits("the relay has not come to it")
            left = await erase.left_internal(stores.clickhouse, client_id)
            if left:
                raise _Waits(f"{left} rows are still being deleted")
            await erase.rewrite_internal(stores.clickhouse)
            return "no row is left, and the parts that held them are rewritten"
        case "archives":
            deleted = await _archives_erased(stores, client_id)
            return f"{deleted} files deleted"
        case "objects":
            if stores.objects is None:
                return "no object storage is configured"
            deleted = 0
            while found := await stores.objects.list(client_prefix(client_id), limit=_PAGE):
                for each in found:
                    await stores.objects.delete(each.key)
                deleted += len(found)
            return f"{deleted} files deleted"
        case "milvus":
            if stores.milvus is None:
                return "no Milvus is configured"
            if await erasures.is_waiting_internal(stores.database, embeddings.ERASURE_TOPIC, client_id):
                raise _Waits("the job that embeds has not come to it")
            return "vectors deleted"
        case _:
            projects = await erasures.project_ids_internal(stores.database, client_id)
            dsn = stores.settings.redis.volatile_dsn or stores.settings.redis.durable_dsn
            await campaign_cache.forget(dsn.get_secret_value(), projects)
            return (
                f"what was cached is gone, or will be within {campaign_cache.KEPT_SECONDS // 60} minutes of the purge"
            )


async def _archives_erased(stores: Stores, client_id: UUID) -> int:
    files = await archives.of_client_internal(stores.database, client_id)
    for each in files:
        if stores.objects is None:
            raise _Waits("the object storage that has files of it is not configured")
        await stores.objects.delete(each.object_key)
        await archives.forget_internal(stores.database, each.partition_id, [client_id])
    return len(files)
