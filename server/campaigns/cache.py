"""The list of a project's campaigns, out of a cache that never shows what is over.

PostgreSQL is asked by every call, and in one statement: may the caller see the project, and in which state are its
campaigns. An entry of the cache names the state it was made in, and only one of exactly that state is used. So nothing
has to be deleted or announced after a commit, and it is all the same who wrote and in which process: a change that has
committed before a call began is in the state that the call reads. What the cache saves is reading, converting and
encoding the campaigns. The list is the same for everybody who sees the project.
"""

from __future__ import annotations

import asyncio
import contextvars
import struct
from bisect import bisect_right
from dataclasses import dataclass
from uuid import UUID

from mrm.campaigns.v1 import campaign_service_pb2 as pb
from server.campaigns import convert
from storage.errors import StoreError
from storage.postgres import campaigns
from storage.postgres.campaigns import ProjectState
from storage.postgres.database import Database
from storage.redis.campaign_cache import CampaignListStore
from storage.scope import EVERYTHING, Scope

MOST_CAMPAIGNS = 500
"""Larger projects are read page by page."""

_HEAD = struct.Struct(">qq")
_ENTRY = struct.Struct(">16sI")


@dataclass(frozen=True, slots=True)
class CampaignList:
    """The campaigns of a project, oldest first.

    Attributes:
        ids: Their ids.
        parts: Each as a ListCampaignsResponse that holds nothing else, encoded; joined they make one of many.
    """

    ids: list[UUID]
    parts: list[bytes]

    def page(self, after: UUID | None, size: int) -> tuple[list[bytes], UUID | None]:
        """Up to `size` parts that come after an id, and the id of the last one if there are more."""
        begin = 0 if after is None else bisect_right(self.ids, after)
        end = begin + size
        return self.parts[begin:end], self.ids[end - 1] if end < len(self.ids) else None


class CampaignCache:
    """Reads lists of projects' campaigns.

    Args:
        database: Where campaigns live.
        store: Where lists are kept.
    """

    def __init__(self, database: Database, store: CampaignListStore) -> None:
        self._database = database
        self._store = store
        self._filling: dict[tuple[UUID, ProjectState], asyncio.Task[CampaignList]] = {}

    async def read(self, scope: Scope, project_id: UUID) -> CampaignList | None:
        """The campaigns of a project; none for one that the caller does not see.

        Returns:
            None if they are to be read from PostgreSQL: the project is large, or Redis away.
        """
        state = await campaigns.project_state(self._database, scope, project_id, MOST_CAMPAIGNS + 1)
        if state is None:
            return CampaignList([], [])
        if state.number > MOST_CAMPAIGNS:
            return None
        try:
            kept = await self._store.read(project_id)
        except (StoreError, TimeoutError):
            return None
        found = None if kept is None else _decoded(kept, state)
        return found or await self._filled(project_id, state)

    async def _filled(self, project_id: UUID, state: ProjectState) -> CampaignList:
        """Makes an entry; those who found the same state wait for one and the same.

        States never come back, so whatever is read after one was seen is of that state or a later one.
        """
        task = self._filling.get((project_id, state))
        if task is None:
            # In a context of its own: the deadline of whoever came first is not that of the others.
            task = asyncio.create_task(self._fill(project_id), context=contextvars.Context())
            self._filling[project_id, state] = task
            task.add_done_callback(lambda _: self._filling.pop((project_id, state), None))
        return await asyncio.shield(task)

    async def _fill(self, project_id: UUID) -> CampaignList:
        state, rows = await campaigns.all_of_project(self._database, EVERYTHING, project_id, MOST_CAMPAIGNS + 1)
        parts = [pb.ListCampaignsResponse(campaigns=[convert.campaign(row)]).SerializeToString() for row in rows]
        made = CampaignList([row.id for row in rows], parts)
        if len(rows) <= MOST_CAMPAIGNS:
            await self._store.write(project_id, _encoded(made, state))
        return made


def _encoded(made: CampaignList, state: ProjectState) -> bytes:
    pieces = [_HEAD.pack(state.number, state.digest)]
    for campaign_id, part in zip(made.ids, made.parts, strict=True):
        pieces += (_ENTRY.pack(campaign_id.bytes, len(part)), part)
    return b"".join(pieces)


def _decoded(kept: bytes, state: ProjectState) -> CampaignList | None:
    """An entry, if it is of this state and whole."""
    if len(kept) < _HEAD.size or _HEAD.unpack_from(kept) != (state.number, state.digest):
        return None
    found = CampaignList([], [])
    at = _HEAD.size
    while at + _ENTRY.size <= len(kept):
        data, length = _ENTRY.unpack_from(kept, at)
        at += _ENTRY.size
        found.ids.append(UUID(bytes=data))
        found.parts.append(kept[at : at + length])
        at += length
    return found if at == len(kept) and len(found.ids) == state.number else None
