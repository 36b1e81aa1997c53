"""Keeps collections of vectors as what they stand for: embeds what was noted, fills those of new models, switches.

Of a kind there are at most two live collections, one that serves and one that is filling after the model changed. What
changes meanwhile goes to both. Everything here bears repeating: notes go only when all live collections have the
things.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import UUID

from server.jobs.handling import Stores
from server.rpc import logs
from server.search.embedder import Embedder, EmbedderUnavailable, TextRefused, Vectors
from server.search.kinds import Item, Kind
from storage.milvus import collections
from storage.milvus.collections import Row, collection_name
from storage.milvus.connect import CollectionMissing, Milvus
from storage.postgres import embeddings, outbox
from storage.postgres.database import Transaction
from storage.postgres.embeddings import Collection, Note, Stored

Transact: TypeAlias = Callable[[str], AbstractAsyncContextManager[Transaction]]
"""Opens a transaction by name; that of a job commits only while its try is the present one."""
Tell: TypeAlias = Callable[[int, int, str], Awaitable[None]]
"""Told how far the work is."""

_SLAB: Final = 4096
_PAGE: Final = 5000
_ERASURES: Final = 100
# Fewer than these are found well enough where they are; more are searched one by one until they are sealed.
_FLUSH_FROM: Final = 500

_log = logs.get("embedding")


@dataclass(frozen=True, slots=True)
class Live:
    """A collection that is to have everything, and what makes vectors for it.

    Attributes:
        collection: It.
        embedder: None if its model is out of reach: what it lacks is left to the one that is filling.
    """

    collection: Collection
    embedder: Embedder | None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a collection lacks of a chunk: rows with vectors, and items whose vectors are still to be made."""

    live: Live
    ready: list[Row]
    embedding: list[Item]
    refused: Mapping[UUID, str]


class EmbeddingWork:
    """The work on one kind.

    Args:
        stores: Where everything is; Milvus must be configured.
        kind: The kind.
        transact: Opens transactions.
        tell: Told how far it is.
    """

    def __init__(self, stores: Stores, kind: Kind, transact: Transact, tell: Tell) -> None:
        assert stores.milvus is not None
        self._stores = stores
        self._database = stores.database
        self._milvus: Milvus = stores.milvus
        self._kind = kind
        self._transact = transact
        self._tell = tell
        self._written: dict[str, int] = {}
        self.embedded = 0

    async def run(self) -> int:
        """Deals with all notes of the kind, and switches if that completes a collection; returns how many things.

        Raises:
            EmbedderUnavailable: No vectors can be had now.
            storage.errors.StoreUnavailable: Milvus or PostgreSQL is away.
        """
        live = await self.prepare()
        seen = 0
        while notes := await embeddings.take_internal(self._database, self._kind.name, _SLAB):
            seen += await self._slab(live, notes, seen)
        await self._flush()
        await self._switch(live)
        return seen

    async def prepare(self) -> list[Live]:
        """The live collections, of which the present model's is one; makes what is missing and has it filled."""
        kind, present = self._kind, self._stores.embedders.present
        name = collection_name(kind.collection_kind, present.model, present.dimension)
        known = [each for each in await self._collections() if each.state != "retired"]
        if name not in {each.name for each in known}:
            await collections.create(self._milvus, name, kind.fields, present.dimension)
            async with self._transact("add_collection") as tx:
                await embeddings.add_collection_internal(tx, name, kind.name, present.model, present.dimension)
                await self._note_all(tx, name)
            _log.info("collection_added", collection=name)
        elif any(each.name == name and each.state == "serving" for each in known):
            # The model was changed back.
            await embeddings.stop_filling_internal(self._database, kind.name)
        known = [each for each in await self._collections() if each.state != "retired"]
        for each in known:
            if not await collections.exists(self._milvus, each.name):
                await self.refill(each)
        return [Live(each, self._embedder(each)) for each in known]

    async def refill(self, collection: Collection) -> None:
        """Has a collection that is lost, or to be made anew, written again in place."""
        await collections.create(self._milvus, collection.name, self._kind.fields, collection.dimension)
        async with self._transact("refill_collection") as tx:
            await embeddings.forget_internal(tx, collection.name)
            await self._note_all(tx, collection.name)
        _log.warning("collection_refilled", collection=collection.name)

    async def _collections(self) -> list[Collection]:
        return await embeddings.collections_internal(self._database, self._kind.name)

    def _embedder(self, collection: Collection) -> Embedder | None:
        try:
            return self._stores.embedders.of(collection.model, collection.dimension)
        except EmbedderUnavailable:
            return None

    async def _note_all(self, tx: Transaction, name: str) -> None:
        after: UUID | None = None
        while ids := await self._kind.page(tx, after, _PAGE):
            await embeddings.note_internal(tx, self._kind.name, ids, bulk=True)
            after = ids[-1]
        await embeddings.fill_until_now_internal(tx, name)

    async def _slab(self, live: Sequence[Live], notes: Sequence[Note], before: int) -> int:
        """Works through notes in chunks: while one is embedded, the next is read and the one before is written."""
        by_item: dict[UUID, list[int]] = {}
        for note in notes:
            by_item.setdefault(note.item_id, []).append(note.id)
        ids = list(by_item)
        size = self._stores.embedders.present.batch
        chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
        reading = asyncio.create_task(self._read(live, chunks[0]))
        writing: asyncio.Task[None] | None = None
        try:
            for place, chunk in enumerate(chunks):
                items, wanted = await reading
                if place + 1 < len(chunks):
                    reading = asyncio.create_task(self._read(live, chunks[place + 1]))
                made = [await self._embed(each) for each in wanted]
                if writing is not None:
                    await writing
                gone = [id_ for id_ in chunk if id_ not in items]
                note_ids = [number for id_ in chunk for number in by_item[id_]]
                writing = asyncio.create_task(self._write(made, items, gone, note_ids))
                await self._tell(before + place * size + len(chunk), before + len(ids), self._kind.name)
            if writing is not None:
                await writing
        finally:
            # What failed has been heard of; what goes on must not outlive the try.
            for task in (reading, writing):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(task for task in (reading, writing) if task is not None), return_exceptions=True)
        return len(ids)

    async def _read(self, live: Sequence[Live], chunk: Sequence[UUID]) -> tuple[dict[UUID, Item], list[_Wanted]]:
        """The things of a chunk as they are now, and what each collection lacks of them."""
        items = {item.id: item for item in await self._kind.load(self._database, chunk)}
        return items, [await self._lacking(each, chunk, items) for each in live]

    async def _lacking(self, live: Live, chunk: Sequence[UUID], items: Mapping[UUID, Item]) -> _Wanted:
        """What a collection lacks, by what PostgreSQL remembers of it."""
        if live.embedder is None:
            return _Wanted(live, [], [], {})
        stored = await embeddings.stored_internal(self._database, live.collection.name, chunk)
        embedding, fields_only = [], []
        for item in items.values():
            was = stored.get(item.id)
            if was is None or was.content_hash != item.content_hash:
                embedding.append(item)
            elif was.fields_hash != item.fields_hash and not was.error:
                fields_only.append(item)
        vectors = await collections.vectors_internal(
            self._milvus, live.collection.name, [item.id for item in fields_only]
        )
        ready = []
        for item in fields_only:
            found = vectors.get(item.id)
            if found is not None and found[1] == item.content_hash:
                ready.append(_row(item, found[0]))
            else:
                embedding.append(item)
        return _Wanted(live, ready, embedding, {})

    async def _embed(self, wanted: _Wanted) -> _Wanted:
        """Makes the vectors that are lacking."""
        embedder, items = wanted.live.embedder, wanted.embedding
        if embedder is None or not items:
            return wanted
        refused: dict[UUID, str] = {}
        try:
            vectors: Vectors = await embedder.embed([item.text for item in items])
            rows = [_row(item, vector) for item, vector in zip(items, vectors, strict=True)]
        except TextRefused:
            # One of them spoils the others.
            rows = []
            for item in items:
                try:
                    rows.append(_row(item, (await embedder.embed([item.text]))[0]))
                except TextRefused as error:
                    refused[item.id] = str(error)
            _log.warning("texts_refused", kind=self._kind.name, count=len(refused))
        self.embedded += len(rows)
        return _Wanted(wanted.live, [*wanted.ready, *rows], items, refused)

    async def _write(
        self, wanted: Sequence[_Wanted], items: Mapping[UUID, Item], gone: Sequence[UUID], notes: Sequence[int]
    ) -> None:
        """Writes a chunk to Milvus, and then to PostgreSQL that it is there."""
        for each in wanted:
            name = each.live.collection.name
            if each.ready:
                await collections.upsert(self._milvus, name, self._kind.fields, each.live.collection.model, each.ready)
                self._written[name] = self._written.get(name, 0) + len(each.ready)
            await collections.delete(self._milvus, name, [*gone, *each.refused])
        async with self._transact("write_vectors") as tx:
            for each in wanted:
                name = each.live.collection.name
                rows = [Stored(r.id, r.client_id, r.content_hash, r.fields_hash) for r in each.ready]
                for id_, error in each.refused.items():
                    item = items[id_]
                    rows.append(Stored(id_, item.client_id, item.content_hash, item.fields_hash, error))
                await embeddings.put_internal(tx, name, rows)
                await embeddings.forget_internal(tx, name, gone)
            await embeddings.done_internal(tx, notes)

    async def _flush(self) -> None:
        for name, written in self._written.items():
            if written >= _FLUSH_FROM:
                await collections.flush(self._milvus, name)
        self._written.clear()

    async def _switch(self, live: Sequence[Live]) -> None:
        """Has a collection serve that has everything; the one before is kept for searches that are on their way."""
        for each in live:
            name = each.collection.name
            if each.collection.state == "filling":
                async with self._transact("switch_collection") as tx:
                    switched = await embeddings.switch_internal(tx, self._kind.name, name)
                if not switched:
                    continue
                _log.info("collection_switched", collection=name)
        serving = await embeddings.serving(self._database, self._kind.name)
        if serving is not None:
            # For people and other tools; searches of ours ask by name, which goes with its model.
            await collections.point(self._milvus, self._kind.name, serving.name)


async def erase_clients(stores: Stores) -> int:
    """Erases the vectors of purged clients, whatever PostgreSQL remembers of them; returns how many clients."""
    milvus = stores.milvus
    assert milvus is not None
    async with stores.database.transaction("erase_vectors") as tx:
        messages = await outbox.take_batch(tx, embeddings.ERASURE_TOPIC, _ERASURES)
        names = [each.name for each in await embeddings.collections_internal(tx)]
        for client_id in {UUID(message.key) for message in messages}:
            for name in names:
                try:
                    await collections.delete_client(milvus, name, client_id)
                except CollectionMissing:
                    continue
            await embeddings.forget_client_internal(tx, client_id)
        await outbox.mark_processed(tx, [message.id for message in messages])
    return len(messages)


async def drop_retired(stores: Stores) -> int:
    """Drops collections that have not served for a while; returns how many."""
    assert stores.milvus is not None
    retired = await embeddings.retired_internal(stores.database, stores.settings.embedding.retired_for)
    for each in retired:
        await collections.drop(stores.milvus, each.name)
        await embeddings.remove_internal(stores.database, each.name)
        _log.info("collection_dropped", collection=each.name)
    return len(retired)


def _row(item: Item, vector: Any) -> Row:
    return Row(
        item.id, item.client_id, vector, item.content_hash, item.fields_hash, int(time.time() * 1000), item.fields
    )
