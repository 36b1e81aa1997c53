"""Projects, found by their briefs and media plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from server.search.kinds import Item, Kind
from storage.milvus.collections import Field
from storage.postgres import project_texts
from storage.postgres.database import Executor
from storage.postgres.project_texts import ProjectText

UNKNOWN: Final = -1
"""Stands for a budget or rating that nobody has given: no range that starts at zero holds it."""

_FIELDS: Final = (
    Field("industry", "text"),
    Field("status", "text"),
    Field("budget_micros", "number"),
    Field("currency", "text"),
    Field("channels", "texts"),
    Field("performance_rating", "number"),
)
_BRIEF: Final = ("objective", "audience", "message", "constraints")


async def load(db: Executor, project_ids: Sequence[UUID]) -> list[Item]:
    """Those of the projects that can be found."""
    return [item(row) for row in await project_texts.load_internal(db, project_ids)]


def item(row: ProjectText) -> Item:
    """A project as its collection holds it."""
    return Item(
        row.id,
        row.client_id,
        text(row),
        {
            "industry": row.industry.casefold(),
            "status": row.status,
            "budget_micros": UNKNOWN if row.budget is None else int(row.budget.scaleb(6)),
            "currency": row.currency,
            "channels": tuple(sorted(set(_channels(row.plans)))),
            "performance_rating": UNKNOWN if row.rating is None else row.rating,
        },
    )


def text(row: ProjectText) -> str:
    """What stands for a project: what people wrote, and which channels were planned."""
    brief = (row.brief.get(name, "") for name in _BRIEF)
    parts = [row.name, row.description, *brief, *_words(row.brief.get("extra", {})), row.industry]
    for plan in row.plans:
        channels = [
            " ".join(entry.get(name, "").replace("_", " ") for name in ("type", "platform", "format")).strip()
            for entry in plan["channels"]
        ]
        parts += [plan["name"], ", ".join(dict.fromkeys(channels)), *_words(plan["targeting"])]
    return "\n".join(part.strip() for part in parts if part and part.strip())


def _channels(plans: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Types and platforms of planned channels, as filters name them."""
    for plan in plans:
        for entry in plan["channels"]:
            yield from (entry[name] for name in ("type", "platform") if name in entry)


def _words(value: Any) -> Iterator[str]:
    """The texts anywhere in a structure."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _words(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _words(each)


KIND: Final = Kind("project", _FIELDS, load, project_texts.page_internal, of_projects=True)
