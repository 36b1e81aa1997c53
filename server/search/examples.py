"""Answers of prompts that people took, found by what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from server.search.kinds import Item, Kind
from storage.milvus.collections import Field
from storage.postgres import feedback
from storage.postgres.database import Executor


async def load(db: Executor, feedback_ids: Sequence[UUID]) -> list[Item]:
    """Those of the feedback that can be found."""
    return [
        Item(row.id, row.client_id, row.text, {"category": row.category, "prompt": str(row.lineage_id)})
        for row in await feedback.examples_internal(db, feedback_ids)
    ]


async def page(db: Executor, after: UUID | None, limit: int) -> list[UUID]:
    """Ids of the feedback that can be found, a page by id."""
    return [row.id for row in await feedback.examples_after_internal(db, after, limit)]


KIND: Final = Kind("example", (Field("category", "text"), Field("prompt", "text")), load, page)
