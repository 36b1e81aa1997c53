"""EmbeddingService: how far the vectors are, and work on them on demand."""

from typing import Final
from uuid import UUID

from mrm.ai.v1 import embedding_pb2
from mrm.ai.v1 import embedding_service_pb2 as pb
from server.rpc.call import AuditEntry, Call, Mutation
from server.rpc.errors import InvalidRequest
from server.rpc.values import EnumWords, timestamp
from server.search import embed_job, reconcile_job
from server.search.embed_job import EmbedItems
from server.search.embedder import Embedders
from server.search.reconcile_job import ReconcileVectors
from server.search.registry import KINDS
from storage.errors import StoreUnavailable
from storage.milvus.connect import Milvus
from storage.postgres import embeddings, jobs
from storage.postgres.database import Database
from storage.postgres.embeddings import Collection, Counts
from storage.postgres.jobs import Job

_STATES: Final = EnumWords(embedding_pb2.EmbeddingCollectionState, "EMBEDDING_COLLECTION_STATE_")
# Before what runs by the clock.
_PRIORITY: Final = 5


class EmbeddingService:
    """Implements mrm.ai.v1.EmbeddingService.

    Args:
        database: Knows what waits.
        milvus: Where the vectors are, if anywhere.
        embedders: Knows the present model.
    """

    def __init__(self, database: Database, milvus: Milvus | None, embedders: Embedders) -> None:
        self._database = database
        self._milvus = milvus
        self._embedders = embedders

    async def GetEmbeddingStatus(
        self, request: pb.GetEmbeddingStatusRequest, call: Call
    ) -> pb.GetEmbeddingStatusResponse:
        """Tells how far everything is."""
        found = await embeddings.collections_internal(self._database)
        kinds = [
            _kind(name, await embeddings.counts_internal(self._database, name), [c for c in found if c.kind == name])
            for name in KINDS
        ]
        model = "" if self._milvus is None else self._embedders.present.model
        return pb.GetEmbeddingStatusResponse(kinds=kinds, model=model, available=await self._available())

    async def RunEmbedding(self, request: pb.RunEmbeddingRequest, call: Mutation) -> pb.RunEmbeddingResponse:
        """Makes the job that embeds what waits."""
        job = await jobs.enqueue_internal(
            call.tx,
            type=embed_job.TYPE,
            queue=embed_job.QUEUE,
            payload=EmbedItems().model_dump(),
            unique_key=embed_job.KEY,
            priority=_PRIORITY,
            requested_by=_person(call),
        )
        await call.record(AuditEntry("run", "embedding", job.id, None, None, None, request))
        return pb.RunEmbeddingResponse(job_id=str(job.id))

    async def ReconcileEmbeddings(
        self, request: pb.ReconcileEmbeddingsRequest, call: Mutation
    ) -> pb.ReconcileEmbeddingsResponse:
        """Makes the job that compares."""
        if request.kind:
            _check(request.kind)
        job = await self._reconcile(call, ReconcileVectors(kind=request.kind))
        await call.record(AuditEntry("reconcile", "embedding", job.id, None, None, None, request))
        return pb.ReconcileEmbeddingsResponse(job_id=str(job.id))

    async def ReembedKind(self, request: pb.ReembedKindRequest, call: Mutation) -> pb.ReembedKindResponse:
        """Makes the job that has all things of a kind embedded anew."""
        _check(request.kind)
        job = await self._reconcile(call, ReconcileVectors(kind=request.kind, anew=True))
        await call.record(AuditEntry("reembed", "embedding", job.id, None, None, None, request))
        return pb.ReembedKindResponse(job_id=str(job.id))

    async def _available(self) -> bool:
        if self._milvus is None:
            return False
        try:
            await self._milvus.ping()
        except StoreUnavailable:
            return False
        return True

    async def _reconcile(self, call: Mutation, wanted: ReconcileVectors) -> Job:
        return await jobs.enqueue_internal(
            call.tx,
            type=reconcile_job.TYPE,
            queue=reconcile_job.QUEUE,
            payload=wanted.model_dump(),
            unique_key=f"{reconcile_job.TYPE}:{wanted.kind}:{wanted.anew}",
            priority=_PRIORITY,
            requested_by=_person(call),
        )


def _person(call: Mutation) -> UUID | None:
    return call.principal.principal_id if call.principal.kind == "user" else None


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise InvalidRequest.field("kind", "KIND_UNKNOWN", f"must be one of {', '.join(KINDS)}")


def _kind(name: str, counts: Counts, found: list[Collection]) -> embedding_pb2.EmbeddingKind:
    return embedding_pb2.EmbeddingKind(
        name=name,
        waiting_count=counts.waiting,
        bulk_waiting_count=counts.bulk,
        oldest_wait_time=timestamp(counts.oldest_at),
        collections=[
            embedding_pb2.EmbeddingCollection(
                name=each.name,
                model=each.model,
                dimension=each.dimension,
                state=_STATES.number(each.state),
                vector_count=counts.vectors.get(each.name, 0),
                refused_count=counts.refused.get(each.name, 0),
                create_time=timestamp(each.created_at),
                serve_time=timestamp(each.served_at),
                check_time=timestamp(each.checked_at),
            )
            for each in found
        ],
    )
