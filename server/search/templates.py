"""Templates, found by their names and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from server.search.kinds import Item, Kind
from server.search.vocabulary import plain
from storage.milvus.collections import Field
from storage.postgres import templates
from storage.postgres.database import Executor
from storage.postgres.templates import Template


async def load(db: Executor, template_ids: Sequence[UUID]) -> list[Item]:
    """Those of the templates that can be found."""
    return [
        Item(row.id, row.client_id, text(row), {"artifact_type": row.artifact_type})
        for row in await templates.load_internal(db, template_ids)
    ]


def text(row: Template) -> str:
    """What stands for a template. Its sample does not: what a file says is not what it is."""
    columns = ", ".join(plain(column["name"]) or column["name"] for column in row.columns)
    return f"{row.name}\n{row.artifact_type.replace('_', ' ')}\n{columns}"


KIND: Final = Kind("template", (Field("artifact_type", "text"),), load, templates.page_internal)
