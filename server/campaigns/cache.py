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
MOST_BYTES = 3 * 2**20
"""Of the campaigns of one reply, which holds 4 MiB; and of a list that is kept."""

_HEAD = struct.Struct(">qq")
_ENTRY = struct.Struct(">16sI")
# Shorter than any entry.
_TOO_LONG = b"-"


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
        """Up to `size` parts after an id that fit into a reply, and the id of the last one if there are more."""
        begin = end = 0 if after is None else bisect_right(self.ids, after)
        room = MOST_BYTES
        for part in self.parts[begin : begin + size]:
            room -= len(part)
            if room < 0 and end > begin:
                break
            end += 1
        return self.parts[begin:end], self.ids[end - 1] if begin < end < len(self.ids) else None


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
            None if they are to be read from PostgreSQL: there are many, they are large, or Redis is away.
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
        if kept is None or not kept.startswith(_head(state)):
            found = await self._filled(project_id, state)
            return found if _keepable(found) else None
        return _decoded(kept)

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
            # Of a list that is too long the head alone is kept: nobody makes it again in vain.
            await self._store.write(project_id, _head(state) + (_encoded(made) if _keepable(made) else _TOO_LONG))
        return made


def _head(state: ProjectState) -> bytes:
    return _HEAD.pack(state.number, state.digest)


def _keepable(made: CampaignList) -> bool:
    return sum(map(len, made.parts)) <= MOST_BYTES


def _encoded(made: CampaignList) -> bytes:
    pieces: list[bytes] = []
    for campaign_id, part in zip(made.ids, made.parts, strict=True):
        pieces += (_ENTRY.pack(campaign_id.bytes, len(part)), part)
    return b"".join(pieces)


def _decoded(kept: bytes) -> CampaignList | None:
    """The list of an entry; None if it was too long to be kept."""
    if kept[_HEAD.size :] == _TOO_LONG:
        return None
    found = CampaignList([], [])
    at = _HEAD.size
    while at < len(kept):
        data, length = _ENTRY.unpack_from(kept, at)
        at += _ENTRY.size
        found.ids.append(UUID(bytes=data))
        found.parts.append(kept[at : at + length])
        at += length
    return found
