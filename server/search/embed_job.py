"""The job that embeds what has changed."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from server.jobs.handling import JobContext, JobPostponed
from server.search.embedder import EmbedderUnavailable
from server.search.embedding import EmbeddingWork, drop_retired, erase_clients
from server.search.registry import KINDS
from storage.errors import StoreUnavailable
from storage.milvus.connect import STORE
from storage.postgres import embeddings
from storage.postgres.jobs import Job

TYPE: Final = "embed_items"
QUEUE: Final = "maintenance"
KEY: Final = "schedule:changed_texts"
"""Only one such job waits or runs at a time, whoever makes it, so nothing overtakes anything."""

_AWAY: Final = timedelta(seconds=5)
_UNCONFIGURED: Final = timedelta(minutes=10)


class EmbedItems(BaseModel):
    """Payload of an ``embed_items`` job: everything that was noted is done."""

    model_config = ConfigDict(extra="forbid", frozen=True)


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Embeds everything that was noted, of all kinds, and erases what is to be erased."""
    EmbedItems.model_validate(job.payload)
    stores = context.stores
    if stores.milvus is None:
        await embeddings.compact_internal(stores.database)
        raise JobPostponed(_UNCONFIGURED, "no Milvus is configured")
    try:
        erased = await erase_clients(stores)
        done: dict[str, int] = {}
        embedded = 0
        for kind in KINDS.values():
            work = EmbeddingWork(stores, kind, context.transaction, context.progress)
            done[kind.name] = await work.run()
            embedded += work.embedded
        dropped = await drop_retired(stores)
    except StoreUnavailable as error:
        if error.store != STORE:
            raise
        raise JobPostponed(_AWAY, "Milvus is away") from None
    except TimeoutError:
        raise JobPostponed(_AWAY, "Milvus does not answer in time") from None
    except EmbedderUnavailable as error:
        raise JobPostponed(timedelta(seconds=max(1.0, error.retry_after)), str(error)) from None
    return {"things": done, "embedded": embedded, "erased_clients": erased, "dropped_collections": dropped}
