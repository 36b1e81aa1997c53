"""Search by vector, among what the caller may see and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import numpy as np

from storage.errors import StoreUnavailable
from storage.milvus import conditions
from storage.milvus.collections import CLIENT, ID, VECTOR, column
from storage.milvus.conditions import Condition
from storage.milvus.connect import STORE, CollectionMissing, Milvus
from storage.milvus.wire import wire
from storage.postgres import reach
from storage.postgres.database import Executor
from storage.scope import Scope

_SEARCH_SECONDS: Final = 5.0
_FLOAT_VECTOR: Final = 101


@dataclass(frozen=True, slots=True)
class Hit:
    """A thing that was found.

    Attributes:
        id: Its id.
        client_id: Whose it is.
        score: How near it is: the cosine, 1 at most.
        fields: The fields that were asked for.
    """

    id: UUID
    client_id: UUID
    score: float
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sight:
    """What of a kind a caller may see.

    Attributes:
        clients: These clients' things; None for everybody's.
        items: Things seen by themselves, with their clients.
    """

    clients: tuple[UUID, ...] | None
    items: Mapping[UUID, UUID]

    @property
    def nothing(self) -> bool:
        """Whether nothing can be found."""
        return self.clients == () and not self.items

    def condition(self) -> Condition | None:
        """What a row must meet; None if any may be seen."""
        if self.clients is None:
            return None
        parts = [conditions.one_of(CLIENT, self.clients)] if self.clients else []
        if self.items:
            owners = conditions.one_of(CLIENT, sorted(set(self.items.values())))
            parts.append(conditions.every([owners, conditions.one_of(ID, self.items)]))
        return conditions.either(parts)

    def holds(self, item_id: UUID, client_id: UUID) -> bool:
        """Whether a row may be seen."""
        return self.clients is None or client_id in self.clients or self.items.get(item_id) == client_id


async def sight(db: Executor, scope: Scope, *, client_id: UUID | None = None, of_projects: bool = False) -> Sight:
    """What a caller may see now, by PostgreSQL.

    Args:
        db: PostgreSQL.
        scope: What the caller may touch.
        client_id: Only things of this client itself.
        of_projects: The things are projects, which their teams see without seeing the client.
    """
    if scope.everything and client_id is None:
        return Sight(None, {})
    clients = tuple(await reach.clients(db, scope, None if client_id is None else [client_id]))
    items: dict[UUID, UUID] = {}
    if of_projects and scope.user_id is not None:
        items = {
            owner.project_id: owner.client_id
            for owner in await reach.team_projects(db, scope)
            if client_id in (None, owner.client_id)
        }
    return Sight(clients, items)


async def search(
    milvus: Milvus,
    db: Executor,
    scope: Scope,
    collection: str,
    vector: np.ndarray[Any, np.dtype[np.float32]],
    *,
    limit: int,
    client_id: UUID | None = None,
    where: Sequence[Condition] = (),
    fields: Sequence[str] = (),
    min_score: float = -1.0,
    of_projects: bool = False,
) -> list[Hit]:
    """The things nearest to a vector among those that the caller may see, nearest first.

    Whose things these are is decided here, from the scope, and is part of what Milvus is asked; no condition of the
    caller can widen it. What Milvus answers is held against it once more.

    Args:
        milvus: Milvus.
        db: PostgreSQL, which knows what the scope reaches.
        scope: What the caller may touch.
        collection: Name of the collection; its model must be the vector's.
        vector: What to look for, of unit length.
        limit: Most things to find.
        client_id: Only things of this client itself.
        where: Conditions on the fields of the kind; all must hold.
        fields: Fields to return.
        min_score: Least cosine.
        of_projects: The things are projects.

    Raises:
        storage.errors.StoreUnavailable: Milvus cannot be reached, or has lost the collection.
    """
    seen = await sight(db, scope, client_id=client_id, of_projects=of_projects)
    if seen.nothing:
        return []
    own = seen.condition()
    needed = [*([own] if own else []), *where]
    messages, _, common = wire()
    placeholders = common.PlaceholderGroup()
    placeholders.placeholders.add(
        tag="$0", type=_FLOAT_VECTOR, values=[np.ascontiguousarray(vector, dtype="<f4").tobytes()]
    )
    request = messages.SearchRequest(
        collection_name=collection,
        dsl=conditions.every(needed).expression if needed else "",
        dsl_type=common.DslType.BoolExprV1,
        placeholder_group=placeholders.SerializeToString(),
        output_fields=[CLIENT, *fields],
        nq=1,
        consistency_level=common.ConsistencyLevel.Bounded,
    )
    parameters = {
        "anns_field": VECTOR,
        "topk": str(limit),
        "metric_type": "COSINE",
        "round_decimal": "-1",
        "params": json.dumps({"ef": max(64, 2 * limit)}),
    }
    for key, value in parameters.items():
        request.search_params.add(key=key, value=value)
    try:
        reply = await milvus.call("Search", request, timeout=_SEARCH_SECONDS)
    except CollectionMissing:
        # Lost, and to be filled again.
        raise StoreUnavailable(STORE, "collection is missing") from None
    columns = {data.field_name: column(data) for data in reply.results.fields_data}
    hits = [
        Hit(UUID(id_), UUID(columns[CLIENT][place]), score, {name: columns[name][place] for name in fields})
        for place, (id_, score) in enumerate(zip(reply.results.ids.str_id.data, reply.results.scores, strict=True))
        if score >= min_score
    ]
    return [hit for hit in hits if seen.holds(hit.id, hit.client_id)]
