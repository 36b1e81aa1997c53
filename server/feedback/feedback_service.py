"""FeedbackService: keeps what people did with the answers of prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from mrm.ai.v1 import feedback_pb2
from mrm.ai.v1 import feedback_service_pb2 as pb
from server.feedback import convert
from server.feedback.writing import FeedbackWriter, Recorded
from server.rpc.call import Call, StreamCall
from server.rpc.errors import DomainError, InvalidRequest, NotFound, Unavailable
from server.rpc.paging import Pager
from server.rpc.status import to_status
from storage.postgres import feedback
from storage.postgres.database import Database
from storage.postgres.feedback import Feedback

# Requests of one stream that may wait for their answers before reading pauses, and of all streams that are worked on.
_AHEAD: Final = 4
_AT_ONCE: Final = 16
_MOST_RECORDS: Final = 1000

_Request = pb.RecordFeedbackStreamRequest
_Response = pb.RecordFeedbackStreamResponse
_Answers = asyncio.Queue[asyncio.Task[_Response] | None]


class FeedbackService:
    """Implements mrm.ai.v1.FeedbackService but for its statistics.

    Args:
        database: Where feedback lives.
        pager: Makes page tokens.
    """

    def __init__(self, database: Database, pager: Pager) -> None:
        self._database = database
        self._pager = pager
        self._writer = FeedbackWriter(database)
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def RecordFeedback(self, request: pb.RecordFeedbackRequest, call: Call) -> pb.RecordFeedbackResponse:
        """Records what a person did with one answer."""
        [outcome] = await self._writer.record(call, [request.record], "record")
        if isinstance(outcome, DomainError):
            raise outcome
        row = await self._found(outcome.id, call)
        return pb.RecordFeedbackResponse(feedback=convert.feedback(row), duplicate=outcome.duplicate)

    async def BatchRecordFeedback(
        self, request: pb.BatchRecordFeedbackRequest, call: Call
    ) -> pb.BatchRecordFeedbackResponse:
        """Records many at once."""
        outcomes = await self._writer.record(call, request.records, "records[{}]")
        return pb.BatchRecordFeedbackResponse(results=_results(outcomes, call), success_count=_success_count(outcomes))

    async def RecordFeedbackStream(self, call: StreamCall[_Request, _Response]) -> None:
        """Records any number."""
        slots, answers = asyncio.Semaphore(_AHEAD), _Answers()
        reader = asyncio.create_task(self._read(call, slots, answers))
        answer = None
        try:
            while (answer := await answers.get()) is not None:
                await call.write(await answer)
                slots.release()
            await reader
        finally:
            reader.cancel()
            await asyncio.wait((reader,))
            left = [answer, *_waiting(answers)]
            for task in filter(None, left):
                task.cancel()
            await asyncio.gather(*filter(None, left), return_exceptions=True)

    async def GetFeedback(self, request: pb.GetFeedbackRequest, call: Call) -> pb.GetFeedbackResponse:
        """Reads one."""
        row = await self._found(UUID(request.feedback_id), call)
        return pb.GetFeedbackResponse(feedback=convert.feedback(row))

    async def ListFeedback(self, request: pb.ListFeedbackRequest, call: Call) -> pb.ListFeedbackResponse:
        """Lists feedback."""
        page = self._pager.start(request, call)
        rows, next_token = page.cut(
            await feedback.list_page(
                self._database, call.scope, convert.selection(request.filter), limit=page.size + 1, after=page.after
            )
        )
        return pb.ListFeedbackResponse(feedback=map(convert.feedback, rows), next_page_token=next_token)

    async def _read(self, call: StreamCall[_Request, _Response], slots: asyncio.Semaphore, answers: _Answers) -> None:
        """Reads requests and begins to store them; what ends the stream is raised when those before it are answered."""
        draining = asyncio.create_task(call.draining.wait())
        try:
            while True:
                # Not reading on is what holds the caller back.
                await slots.acquire()
                reading = asyncio.ensure_future(anext(call.requests, None))
                try:
                    await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    reading.cancel()
                if not reading.done():
                    raise Unavailable("the server shuts down, connect again", reason="SHUTTING_DOWN", retry_after=0.5)
                request = reading.result()
                if request is None:
                    return
                _check(request)
                answers.put_nowait(asyncio.create_task(self._stored(request, call)))
        finally:
            draining.cancel()
            answers.put_nowait(None)

    async def _stored(self, request: _Request, call: StreamCall[_Request, _Response]) -> _Response:
        async with self._turns:
            outcomes = await self._writer.record(call, request.records, "records[{}]")
        return _Response(
            sequence=request.sequence, results=_results(outcomes, call), success_count=_success_count(outcomes)
        )

    async def _found(self, feedback_id: UUID, call: Call) -> Feedback:
        row = await feedback.get(self._database, call.scope, feedback_id)
        if row is None:
            raise NotFound.resource("feedback", str(feedback_id))
        return row


def _check(request: _Request) -> None:
    if len(request.records) > _MOST_RECORDS:
        raise InvalidRequest.field("records", "REPEATED_MAX_ITEMS", f"must not hold more than {_MOST_RECORDS} items")


def _results(outcomes: Sequence[Recorded | DomainError], call: Call) -> list[feedback_pb2.RecordFeedbackResult]:
    return [
        feedback_pb2.RecordFeedbackResult(status=to_status(outcome, call.request_id))
        if isinstance(outcome, DomainError)
        else feedback_pb2.RecordFeedbackResult(
            feedback_id=str(outcome.id),
            edit_percent=convert.percent(outcome.edit_percent),
            duplicate=outcome.duplicate,
        )
        for outcome in outcomes
    ]


def _success_count(outcomes: Sequence[Recorded | DomainError]) -> int:
    return sum(isinstance(outcome, Recorded) for outcome in outcomes)


def _waiting(answers: _Answers) -> list[asyncio.Task[_Response]]:
    """Takes out what was not answered."""
    left = []
    while not answers.empty():
        if (task := answers.get_nowait()) is not None:
            left.append(task)
    return left
