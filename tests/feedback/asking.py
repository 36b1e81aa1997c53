"""Prompts to give feedback on, and feedback on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from mrm.ai.v1 import feedback_pb2
from mrm.ai.v1 import feedback_service_pb2 as pb
from tests.conftest import Caller, World
from tests.prompts import writing

ACCEPTED = feedback_pb2.FEEDBACK_ACTION_ACCEPTED
EDITED = feedback_pb2.FEEDBACK_ACTION_EDITED
REJECTED = feedback_pb2.FEEDBACK_ACTION_REJECTED


@dataclass(frozen=True)
class Desk:
    """A client with a project, and versions of a prompt that work for it.

    Attributes:
        prompt_id: The prompt.
        versions: Its versions, in order.
    """

    client_id: str
    project_id: str
    prompt_id: str
    versions: list[str]

    def record(self, **fields: Any) -> feedback_pb2.FeedbackRecord:
        """An accepted answer of the first version, unless fields say otherwise."""
        values: dict[str, Any] = {
            "key": uuid4().hex,
            "client_id": self.client_id,
            "prompt_version_id": self.versions[0],
            "action": ACCEPTED,
            **fields,
        }
        return feedback_pb2.FeedbackRecord(**values)


async def desk(world: World, *, versions: int = 1, category: str = "brief", **client_fields: object) -> Desk:
    """A client of its own, and an agency's prompt of its own."""
    client = await world.client(**client_fields)
    project = await world.project(client.client_id)
    first = await writing.create(world.admin, category=category)
    later = [await writing.version(world.admin, first.prompt_id) for _ in range(versions - 1)]
    return Desk(
        client.client_id, project.project_id, first.prompt_id, [each.prompt_version_id for each in (first, *later)]
    )


async def said(caller: Caller, record: feedback_pb2.FeedbackRecord) -> pb.RecordFeedbackResponse:
    """One record, recorded."""
    return await caller.feedback.RecordFeedback(pb.RecordFeedbackRequest(record=record), metadata=caller.auth)


async def batch(caller: Caller, *records: feedback_pb2.FeedbackRecord) -> list[feedback_pb2.RecordFeedbackResult]:
    """Records, recorded at once."""
    request = pb.BatchRecordFeedbackRequest(records=records)
    reply = await caller.feedback.BatchRecordFeedback(request, metadata=caller.auth)
    assert reply.success_count == sum(not result.HasField("status") for result in reply.results)
    return list(reply.results)


async def got(caller: Caller, feedback_id: str) -> feedback_pb2.Feedback:
    """Feedback as it is now."""
    request = pb.GetFeedbackRequest(feedback_id=feedback_id)
    return (await caller.feedback.GetFeedback(request, metadata=caller.auth)).feedback
