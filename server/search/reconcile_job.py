"""The job that compares what Milvus holds with what should be there. What differs is noted, and embedded anew."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from server.jobs.handling import JobContext, JobFailed, JobPostponed
from server.rpc import logs
from server.search.kinds import Kind
from server.search.registry import KINDS
from storage.errors import StoreUnavailable
from storage.milvus import collections
from storage.milvus.collections import Digest
from storage.milvus.connect import STORE, CollectionMissing
from storage.postgres import embeddings
from storage.postgres.embeddings import Collection, Stored
from storage.postgres.jobs import Job

TYPE: Final = "reconcile_vectors"
QUEUE: Final = "maintenance"

_PAGE: Final = 1000
_AWAY: Final = timedelta(seconds=5)
_UNCONFIGURED: Final = timedelta(hours=24)

_log = logs.get("reconciliation")


class ReconcileVectors(BaseModel):
    """Payload of a ``reconcile_vectors`` job.

    Attributes:
        kind: Only this kind; all if empty.
        anew: Everything is embedded anew, whatever is there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = ""
    anew: bool = False


@dataclass(slots=True)
class Found:
    """What was wrong with a collection.

    Attributes:
        missing: Things without a vector that should have one.
        stale: Vectors of something else than what the thing says now.
        orphaned: Vectors of things that cannot be found any more, or of which PostgreSQL does not know.
        compared: Things that were looked at.
    """

    missing: int = 0
    stale: int = 0
    orphaned: int = 0
    compared: int = 0


async def handle(job: Job, context: JobContext) -> Mapping[str, Any]:
    """Compares, or has everything embedded anew."""
    wanted = ReconcileVectors.model_validate(job.payload)
    if wanted.kind and wanted.kind not in KINDS:
        raise JobFailed(f"there is no kind {wanted.kind}", final=True)
    if context.stores.milvus is None:
        raise JobPostponed(_UNCONFIGURED, "no Milvus is configured")
    found: dict[str, dict[str, int]] = {}
    try:
        for kind in KINDS.values():
            if wanted.kind in ("", kind.name):
                check = _Check(context, kind)
                found |= await (check.anew() if wanted.anew else check.run())
    except StoreUnavailable as error:
        if error.store != STORE:
            raise
        raise JobPostponed(_AWAY, "Milvus is away") from None
    except TimeoutError:
        raise JobPostponed(_AWAY, "Milvus does not answer in time") from None
    await embeddings.compact_internal(context.stores.database)
    return {"collections": found}


class _Check:
    """The comparison of one kind. It repairs nothing itself: only one job writes to Milvus, so none overtakes it."""

    def __init__(self, context: JobContext, kind: Kind) -> None:
        assert context.stores.milvus is not None
        self._context = context
        self._database = context.stores.database
        self._milvus = context.stores.milvus
        self._kind = kind

    async def run(self) -> dict[str, dict[str, int]]:
        """What was wrong, by collection."""
        result = {}
        for collection in await self._live():
            found = Found()
            try:
                await self._things(collection, found)
                await self._rows(collection, found)
                # Changes by the handful are never enough for a flush of their own.
                await collections.flush(self._milvus, collection.name)
            except CollectionMissing:
                # The next job that embeds makes it again and fills it.
                await self._note(await self._kind.page(self._database, None, 1))
                found.missing += 1
            if found.missing or found.stale or found.orphaned:
                _log.warning("vectors_differed", collection=collection.name, **asdict(found))
            await embeddings.checked_internal(self._database, collection.name)
            result[collection.name] = asdict(found)
        return result

    async def anew(self) -> dict[str, dict[str, int]]:
        """Has everything of the kind embedded again, in the collections where it is."""
        result = {}
        live = await self._live()
        after: UUID | None = None
        noted = 0
        while ids := await self._kind.page(self._database, after, _PAGE):
            for collection in live:
                await embeddings.forget_internal(self._database, collection.name, ids)
            await self._note(ids)
            after, noted = ids[-1], noted + len(ids)
            await self._context.progress(noted, 0, self._kind.name)
        for collection in live:
            result[collection.name] = {"noted": noted}
        return result

    async def _live(self) -> list[Collection]:
        known = await embeddings.collections_internal(self._database, self._kind.name)
        return [each for each in known if each.state != "retired"]

    async def _things(self, collection: Collection, found: Found) -> None:
        """From PostgreSQL's side: everything that can be found has its vector."""
        after: UUID | None = None
        while ids := await self._kind.page(self._database, after, _PAGE):
            items = {item.id: item for item in await self._kind.load(self._database, ids)}
            stored = await embeddings.stored_internal(self._database, collection.name, ids)
            held = await collections.digests_internal(self._milvus, collection.name, ids)
            again, forget = [], []
            for id_, item in items.items():
                known, there = stored.get(id_), held.get(id_)
                if known is not None and known.error and known.content_hash == item.content_hash:
                    continue
                if known is None or there is None:
                    found.missing += 1
                elif there != _digest(known) or _digest(known) != Digest(
                    item.client_id, item.content_hash, item.fields_hash
                ):
                    found.stale += 1
                else:
                    continue
                again.append(id_)
                if known is not None and there != _digest(known):
                    # What is remembered would keep it from being written.
                    forget.append(id_)
            await embeddings.forget_internal(self._database, collection.name, forget)
            await self._note(again)
            after, found.compared = ids[-1], found.compared + len(ids)
            await self._context.progress(found.compared, 0, collection.name)

    async def _rows(self, collection: Collection, found: Found) -> None:
        """From Milvus's side: everything that is there can be found."""
        after: UUID | None = None
        while held := await collections.digest_page_internal(self._milvus, collection.name, after):
            ids = list(held)
            items = {item.id for item in await self._kind.load(self._database, ids)}
            orphans = [id_ for id_ in ids if id_ not in items]
            found.orphaned += len(orphans)
            await self._note(orphans)
            after = ids[-1]
            await self._context.heartbeat()
        after = None
        while known := await embeddings.stored_page_internal(self._database, collection.name, after, _PAGE):
            ids = [each.item_id for each in known]
            items = {item.id for item in await self._kind.load(self._database, ids)}
            # What is remembered of things that are gone goes with them.
            await self._note([id_ for id_ in ids if id_ not in items])
            after = ids[-1]
            await self._context.heartbeat()

    async def _note(self, ids: Sequence[UUID]) -> None:
        if ids:
            await embeddings.note_internal(self._database, self._kind.name, ids, bulk=True)


def _digest(stored: Stored) -> Digest:
    return Digest(stored.client_id, stored.content_hash, stored.fields_hash)
