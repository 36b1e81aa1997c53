"""Collections: what their rows hold, and how one is made, filled, found and dropped.

A collection is of one kind of thing, one model and one dimension, so vectors of different models never meet. Its rows
are keyed by the thing's id and partitioned by its client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection as Several
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import numpy as np

from storage.milvus import conditions
from storage.milvus.conditions import Condition
from storage.milvus.connect import CollectionMissing, Milvus, MilvusError
from storage.milvus.wire import wire

FieldType = Literal["text", "number", "texts"]
Value = str | int | tuple[str, ...]

ID: Final = "id"
CLIENT: Final = "client_id"
VECTOR: Final = "vector"
CONTENT_HASH: Final = "content_hash"
FIELDS_HASH: Final = "fields_hash"
MODEL: Final = "embedding_model"
CREATED: Final = "created_at"
RESERVED: Final = (ID, CLIENT, VECTOR, CONTENT_HASH, FIELDS_HASH, MODEL, CREATED)
"""The fields that every collection has."""

_TEXT_BYTES: Final = 1024
_MOST_TEXTS: Final = 200
# Partitions of a real Milvus, between which clients are spread by hash.
_PARTITIONS: Final = 64
_INDEX: Final = {"index_type": "HNSW", "metric_type": "COSINE", "params": json.dumps({"M": 16, "efConstruction": 200})}
_WRITE_SECONDS: Final = 30.0
_BUILD_SECONDS: Final = 120.0
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Field:
    """A scalar field that searches filter by.

    Attributes:
        name: Its name.
        type: ``text``, ``number`` (a whole one of 64 bits) or ``texts`` (a list).
    """

    name: str
    type: FieldType


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a collection.

    Attributes:
        id: The thing's id.
        client_id: Whose it is.
        vector: Of unit length.
        content_hash: Of the text that was embedded, in hexadecimal.
        fields_hash: Of the scalar fields, in hexadecimal.
        created_ms: When it was embedded, in Unix milliseconds.
        fields: A value for each field of the kind.
    """

    id: UUID
    client_id: UUID
    vector: np.ndarray[Any, np.dtype[np.float32]]
    content_hash: str
    fields_hash: str
    created_ms: int
    fields: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Digest:
    """What tells whether a stored row is the one that should be there."""

    client_id: UUID
    content_hash: str
    fields_hash: str


def collection_name(kind: str, model: str, dimension: int) -> str:
    """What the collection of a kind, model and dimension is called."""
    slug = re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")
    return f"{kind}__{slug}_{dimension}"


def plain(text: str) -> str:
    """Text as a field can hold it: without control characters, and no longer than a field is."""
    shown = "".join(each for each in text if each.isprintable() or each in "\n\r\t")
    return shown.encode()[:_TEXT_BYTES].decode(errors="ignore")


async def create(milvus: Milvus, name: str, fields: Sequence[Field], dimension: int) -> None:
    """Makes a collection, indexed and ready to be searched; one that is there stays as it is.

    Args:
        milvus: Where.
        name: By `collection_name`.
        fields: What can be filtered by.
        dimension: Of its vectors.
    """
    if not await exists(milvus, name):
        messages, schema, common = wire()
        types = schema.DataType
        made = schema.CollectionSchema(name=name, enable_dynamic_field=False)
        _varchar(made, ID, is_primary_key=True, length=36)
        _varchar(made, CLIENT, is_partition_key=True, length=36)
        _varchar(made, CONTENT_HASH, length=64)
        _varchar(made, FIELDS_HASH, length=64)
        _varchar(made, MODEL, length=_TEXT_BYTES)
        made.fields.add(name=CREATED, data_type=types.Int64)
        for field in fields:
            if field.type == "number":
                made.fields.add(name=field.name, data_type=types.Int64)
            elif field.type == "text":
                _varchar(made, field.name, length=_TEXT_BYTES)
            else:
                added = made.fields.add(name=field.name, data_type=types.Array, element_type=types.VarChar)
                added.type_params.add(key="max_length", value=str(_TEXT_BYTES))
                added.type_params.add(key="max_capacity", value=str(_MOST_TEXTS))
        vector = made.fields.add(name=VECTOR, data_type=types.FloatVector)
        vector.type_params.add(key="dim", value=str(dimension))
        request = messages.CreateCollectionRequest(
            collection_name=name,
            schema=made.SerializeToString(),
            consistency_level=common.ConsistencyLevel.Bounded,
            num_partitions=_PARTITIONS,
        )
        try:
            await milvus.call("CreateCollection", request)
        except MilvusError:
            # Somebody else may have made it meanwhile.
            if not await exists(milvus, name):
                raise
    messages, _, common = wire()
    index = messages.CreateIndexRequest(collection_name=name, field_name=VECTOR, index_name=VECTOR)
    for key, value in _INDEX.items():
        index.extra_params.add(key=key, value=value)
    # Indexed already, which engines answer differently; a collection without an index cannot be loaded.
    with suppress(MilvusError):
        await milvus.call("CreateIndex", index, timeout=_BUILD_SECONDS)
    await load(milvus, name)


async def load(milvus: Milvus, name: str) -> None:
    """Makes a collection ready to be searched."""
    await milvus.call(
        "LoadCollection", wire().milvus.LoadCollectionRequest(collection_name=name), timeout=_BUILD_SECONDS
    )


async def exists(milvus: Milvus, name: str) -> bool:
    """Whether there is such a collection."""
    try:
        await milvus.call("DescribeCollection", wire().milvus.DescribeCollectionRequest(collection_name=name))
    except CollectionMissing:
        return False
    return True


async def drop(milvus: Milvus, name: str) -> None:
    """Drops a collection with all its vectors; harmless when there is none."""
    try:
        await milvus.call(
            "DropCollection", wire().milvus.DropCollectionRequest(collection_name=name), timeout=_WRITE_SECONDS
        )
    except CollectionMissing:
        return


async def point(milvus: Milvus, alias: str, name: str) -> None:
    """Makes an alias mean a collection, whatever it meant before."""
    messages = wire().milvus
    try:
        await milvus.call("AlterAlias", messages.AlterAliasRequest(collection_name=name, alias=alias))
    except MilvusError:
        await milvus.call("CreateAlias", messages.CreateAliasRequest(collection_name=name, alias=alias))


async def flush(milvus: Milvus, name: str) -> None:
    """Has what was written sealed and indexed: rows that are not are searched one by one."""
    await milvus.call("Flush", wire().milvus.FlushRequest(collection_names=[name]), timeout=_BUILD_SECONDS)


async def upsert(milvus: Milvus, name: str, fields: Sequence[Field], model: str, rows: Sequence[Row]) -> None:
    """Writes rows, each in place of what was there under its id.

    Raises:
        CollectionMissing: There is no such collection.
    """
    if not rows:
        return
    messages, schema, _ = wire()
    types = schema.DataType
    request = messages.UpsertRequest(collection_name=name, num_rows=len(rows))
    _texts(request, ID, [str(row.id) for row in rows])
    _texts(request, CLIENT, [str(row.client_id) for row in rows])
    _texts(request, CONTENT_HASH, [row.content_hash for row in rows])
    _texts(request, FIELDS_HASH, [row.fields_hash for row in rows])
    _texts(request, MODEL, [plain(model)] * len(rows))
    _numbers(request, CREATED, [row.created_ms for row in rows])
    for field in fields:
        values: list[Any] = [row.fields[field.name] for row in rows]
        if field.type == "number":
            _numbers(request, field.name, values)
        elif field.type == "text":
            _texts(request, field.name, [plain(value) for value in values])
        else:
            data = request.fields_data.add(type=types.Array, field_name=field.name)
            data.scalars.array_data.element_type = types.VarChar
            for value in values:
                data.scalars.array_data.data.add().string_data.data.extend(plain(each) for each in value[:_MOST_TEXTS])
    vectors = np.ascontiguousarray([row.vector for row in rows], dtype=np.float32)
    data = request.fields_data.add(type=types.FloatVector, field_name=VECTOR)
    data.vectors.dim = vectors.shape[1]
    data.vectors.float_vector.data.extend(vectors.ravel().tolist())
    await milvus.call("Upsert", request, timeout=_WRITE_SECONDS)


async def delete(milvus: Milvus, name: str, ids: Several[UUID]) -> None:
    """Deletes rows; harmless for those that are not there."""
    if ids:
        await _delete(milvus, name, conditions.one_of(ID, ids))


async def delete_client(milvus: Milvus, name: str, client_id: UUID) -> None:
    """Deletes all rows of a client."""
    await _delete(milvus, name, conditions.equal(CLIENT, client_id))


async def digests_internal(milvus: Milvus, name: str, ids: Several[UUID]) -> dict[UUID, Digest]:
    """What is stored under these ids, whosever it is."""
    if not ids:
        return {}
    return _digests(await _query(milvus, name, conditions.one_of(ID, ids), _DIGEST))


async def digest_page_internal(milvus: Milvus, name: str, after: UUID | None) -> dict[UUID, Digest]:
    """A page of what is stored, by id; empty at the end."""
    where = conditions.after(ID, str(after) if after else "")
    return _digests(await _query(milvus, name, where, _DIGEST, limit=_PAGE))


async def vectors_internal(
    milvus: Milvus, name: str, ids: Several[UUID]
) -> dict[UUID, tuple[np.ndarray[Any, np.dtype[np.float32]], str]]:
    """The stored vectors under these ids with the hashes of their texts, whosever they are."""
    if not ids:
        return {}
    found = await _query(milvus, name, conditions.one_of(ID, ids), (CONTENT_HASH, VECTOR))
    return {
        UUID(id_): (vector, content_hash)
        for id_, vector, content_hash in zip(found[ID], found[VECTOR], found[CONTENT_HASH], strict=True)
    }


async def count_internal(milvus: Milvus, name: str) -> int:
    """How many rows there are."""
    found = await _query(milvus, name, None, ("count(*)",))
    return int(found["count(*)"][0])


_DIGEST: Final = (CLIENT, CONTENT_HASH, FIELDS_HASH)


def _digests(found: Mapping[str, Sequence[Any]]) -> dict[UUID, Digest]:
    columns = zip(*(found[name] for name in (ID, *_DIGEST)), strict=True)
    return {UUID(id_): Digest(UUID(client), content, fields) for id_, client, content, fields in columns}


async def _delete(milvus: Milvus, name: str, where: Condition) -> None:
    request = wire().milvus.DeleteRequest(collection_name=name, expr=where.expression)
    await milvus.call("Delete", request, timeout=_WRITE_SECONDS)


async def _query(
    milvus: Milvus, name: str, where: Condition | None, output: Sequence[str], *, limit: int | None = None
) -> dict[str, Sequence[Any]]:
    """Columns of the rows that meet a condition, in the order of their ids if limited."""
    messages, _, common = wire()
    request = messages.QueryRequest(
        collection_name=name,
        expr=where.expression if where else "",
        output_fields=output if output == ("count(*)",) else [ID, *output],
        # What has been acknowledged must be seen: the answer decides what is written again.
        consistency_level=common.ConsistencyLevel.Strong,
    )
    if limit is not None:
        request.query_params.add(key="limit", value=str(limit))
        request.query_params.add(key="iterator", value="True")
    reply = await milvus.call("Query", request, timeout=_WRITE_SECONDS)
    found = {data.field_name: column(data) for data in reply.fields_data}
    return {each: found.get(each, ()) for each in request.output_fields}


def column(data: Any) -> Sequence[Any]:
    """The values of a column of a reply."""
    if data.HasField("vectors"):
        return list(np.asarray(data.vectors.float_vector.data, dtype=np.float32).reshape(-1, data.vectors.dim))
    kind = data.scalars.WhichOneof("data")
    if kind is None:
        return ()
    if kind == "array_data":
        return [tuple(each.string_data.data) for each in data.scalars.array_data.data]
    return list(getattr(data.scalars, kind).data)


def _varchar(schema: Any, name: str, *, length: int, **marks: bool) -> None:
    field = schema.fields.add(name=name, data_type=wire().schema.DataType.VarChar, **marks)
    field.type_params.add(key="max_length", value=str(length))


def _texts(request: Any, name: str, values: Sequence[str]) -> None:
    data = request.fields_data.add(type=wire().schema.DataType.VarChar, field_name=name)
    data.scalars.string_data.data.extend(values)


def _numbers(request: Any, name: str, values: Sequence[int]) -> None:
    data = request.fields_data.add(type=wire().schema.DataType.Int64, field_name=name)
    data.scalars.long_data.data.extend(values)
