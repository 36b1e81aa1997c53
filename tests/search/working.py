"""The embedding job's work, done at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from server.jobs.handling import JobContext, Stores
from server.search import embed_job
from server.search.embed_job import EmbedItems
from server.search.kinds import Kind
from storage.milvus import searching
from storage.milvus.conditions import Condition
from storage.milvus.searching import Hit
from storage.postgres import embeddings, jobs
from storage.scope import EVERYTHING, Scope

LEASE = timedelta(seconds=60)


async def embed(stores: Stores) -> Mapping[str, Any]:
    """Does everything that was noted."""
    async with stores.database.transaction("test_embed") as tx:
        made = await jobs.enqueue_internal(
            tx, type=embed_job.TYPE, queue=embed_job.QUEUE, payload=EmbedItems().model_dump(), unique_key=embed_job.KEY
        )
    [job] = await jobs.claim_internal(stores.database, [made.id], "test", LEASE)
    try:
        done = await embed_job.handle(job, JobContext(stores, job, LEASE)) or {}
    except BaseException:
        await jobs.release_internal(stores.database, job.id, job.fence)
        raise
    await jobs.complete_internal(stores.database, [(job.id, job.fence, done)])
    return done


async def find(
    stores: Stores,
    kind: Kind,
    text: str,
    *,
    scope: Scope = EVERYTHING,
    where: Sequence[Condition] = (),
    limit: int = 10,
    **more: Any,
) -> list[Hit]:
    """Searches by a text."""
    assert stores.milvus is not None
    serving = await embeddings.serving(stores.database, kind.name)
    assert serving is not None
    [vector] = await stores.embedders.of(serving.model, serving.dimension).embed([text])
    return await searching.search(
        stores.milvus, stores.database, scope, serving.name, vector, limit=limit, where=where,
        of_projects=kind.of_projects, **more,
    )  # fmt: skip
