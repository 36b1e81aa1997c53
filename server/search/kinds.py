"""What a kind of thing that is found by meaning consists of; `server.search.registry` lists them.

A kind says which things there are, what text stands for one, and which fields searches filter by. Triggers of its
tables (or its services, with `storage.postgres.embeddings.note_internal`) note what has changed;
`server.search.embedding` does the rest, for every kind alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from server.search.embedder import MOST_CHARACTERS
from storage.milvus.collections import Field, Value
from storage.postgres.database import Executor


@dataclass(frozen=True, slots=True)
class Item:
    """A thing that can be found.

    Attributes:
        id: Its id.
        client_id: Whose it is.
        text: What stands for it.
        fields: A value for each field of its kind.
    """

    id: UUID
    client_id: UUID
    text: str
    fields: Mapping[str, Value]

    @property
    def content_hash(self) -> str:
        """Tells one text from another."""
        return hashlib.sha256(self.text[:MOST_CHARACTERS].encode()).hexdigest()

    @property
    def fields_hash(self) -> str:
        """Tells values of the fields from others."""
        parts = [str(self.client_id), *(f"{name}={self.fields[name]!r}" for name in sorted(self.fields))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing.

    Attributes:
        name: Names it in notes, and its alias in Milvus.
        fields: What searches filter by. Raise `revision` when they change: that makes a new collection.
        load: Those of the given things that can be found now; the others are taken out of the collections.
        page: Ids of all things that can be found, in order: after an id, at most so many.
        of_projects: The things are projects, which their teams see without seeing the client.
        revision: Number of the present form of the fields.
    """

    name: str
    fields: tuple[Field, ...]
    load: Callable[[Executor, Sequence[UUID]], Awaitable[Sequence[Item]]]
    page: Callable[[Executor, UUID | None, int], Awaitable[Sequence[UUID]]]
    of_projects: bool = False
    revision: int = 1

    @property
    def collection_kind(self) -> str:
        """The kind as its collections name it."""
        return self.name if self.revision == 1 else f"{self.name}_r{self.revision}"
