"""Records of feedback made durable: those of all callers that come together by one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final
from uuid import UUID

from mrm.ai.v1 import feedback_pb2 as pb
from server.campaigns.turns import in_turns
from server.feedback import edits, rules
from server.feedback.rules import Draft
from server.jobs.together import Together
from server.rpc import rights
from server.rpc.call import Call
from server.rpc.errors import DomainError, FailedPrecondition, InvalidRequest, NotFound
from storage.postgres import feedback
from storage.postgres.database import Database, Transaction
from storage.postgres.feedback import NewFeedback, Place, Standing, Stored

# Rows of a transaction at most: more save nothing, and the next ones would be checked only to wait.
_MOST: Final = 1500
_PERMISSION: Final = "FEEDBACK_WRITE"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Feedback that is durable.

    Attributes:
        edit_percent: How much of the answer was changed, as far as it is known.
        duplicate: The same record had been stored before.
    """

    id: UUID
    edit_percent: Decimal | None
    duplicate: bool


class FeedbackWriter:
    """Stores records. What comes while a transaction is on its way waits for the next one, whoever it is of.

    Args:
        database: Where feedback lives.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._add = Together(self._add_all, _MOST, len)
        self._comparing = asyncio.Semaphore(1)

    async def record(self, call: Call, records: Sequence[pb.FeedbackRecord], path: str) -> list[Recorded | DomainError]:
        """Stores those of the records that can be stored.

        Args:
            call: Who records, and where it may.
            records: The records, unchecked.
            path: What the request calls one, such as ``records[{}]``.

        Returns:
            What came of each, in their order; all that is not an error is durable.

        Raises:
            StoreError: It is not known whether any of them is stored: recording them again is safe.
        """
        outcomes: dict[int, Recorded | DomainError] = {}
        drafts: dict[int, Draft] = {}
        async for index, record in in_turns(list(enumerate(records))):
            try:
                drafts[index] = rules.read(record, path.format(index), call.principal)
            except DomainError as error:
                outcomes[index] = error
        standings = await self._standings(call, {draft.place for draft in drafts.values()})
        for index, draft in list(drafts.items()):
            fault = standings[draft.place]
            if fault is not None:
                outcomes[index] = fault
                del drafts[index]
        rows = await self._measured(list(drafts.values()))
        if rows:
            there = await self._add(rows)
            for index, row in zip(drafts, rows, strict=True):
                outcomes[index] = _outcome(row, there, path.format(index))
        return [outcomes[index] for index in range(len(records))]

    async def _standings(self, call: Call, places: set[Place]) -> dict[Place, DomainError | None]:
        """What is wrong with each place, if anything is."""
        if not places:
            return {}
        # Rights may have ended since a stream began, so they are asked for anew.
        asked = list(places)
        found = await feedback.standings(self._database, call.scope, asked)
        told: dict[Place, DomainError | None] = {}
        explained: dict[tuple[str, str], DomainError] = {}
        for place, standing in zip(asked, found, strict=True):
            missing = _missing(place, standing)
            if missing is None:
                told[place] = None
                continue
            if missing not in explained:
                error = NotFound.resource(*missing)
                explained[missing] = await rights.explained(self._database, call.principal, _PERMISSION, error)
            told[place] = explained[missing]
        return told

    async def _measured(self, drafts: Sequence[Draft]) -> list[NewFeedback]:
        """The rows of drafts, once their texts have been compared."""
        pairs = [draft.texts for draft in drafts if draft.texts is not None]
        percents = iter(await edits.percents(pairs, self._comparing))
        return [
            draft.row if draft.texts is None else draft.row._replace(edit_percent=next(percents)) for draft in drafts
        ]

    async def _add_all(self, batches: Sequence[Sequence[NewFeedback]]) -> list[Mapping[UUID, Stored | None]]:
        """Stores the rows of several requests; what `feedback.add_internal` says of them, for each."""
        rows = [row for batch in batches for row in batch]

        async def work(tx: Transaction) -> dict[UUID, Stored | None]:
            return await feedback.add_internal(tx, rows)

        there = await self._database.run("record_feedback", work)
        return [there] * len(batches)


def _missing(place: Place, standing: Standing) -> tuple[str, str] | None:
    """Kind and id of what a place names and what is not there for the caller."""
    if place.project_id is not None and not (standing.client and standing.project):
        return "project", str(place.project_id)
    if not standing.client:
        return "client", str(place.client_id)
    if not standing.prompt_version:
        return "prompt_version", str(place.prompt_version_id)
    if not standing.experiment:
        return "prompt_experiment", str(place.experiment_id)
    if not standing.user:
        return "user", str(place.user_id)
    return None


def _outcome(row: NewFeedback, there: Mapping[UUID, Stored | None], path: str) -> Recorded | DomainError:
    if row.id not in there:
        return Recorded(row.id, row.edit_percent, duplicate=False)
    stored = there[row.id]
    if stored is None:
        return FailedPrecondition.archived("client")
    if stored.content_hash not in (None, row.content_hash):
        return InvalidRequest.field(
            f"{path}.key", "KEY_REUSED", "is that of another record", error_reason="FEEDBACK_KEY_REUSED"
        )
    return Recorded(stored.id, stored.edit_percent, duplicate=True)
