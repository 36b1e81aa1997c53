"""Changes as they happen, without a gap over disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta

import grpc

from mrm.operations.v1 import change_pb2, change_service_pb2, change_service_pb2_grpc
from mrm_client.errors import CallError
from mrm_client.retries import OnRetry, Retries

# Beyond the promised heartbeats this much silence is taken for a dead connection.
_SILENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """What one message brought.

    Attributes:
        changes: The next changes, in order; none in a checkpoint or heartbeat.
        resume_token: Keep it with the effects of the changes, and give it to `watch_changes` to go on behind them.
        lag: How long changes are being held back by now; zero if none are.
        reconnects: Times the stream broke and was opened again.
    """

    changes: tuple[change_pb2.Change, ...]
    resume_token: str
    lag: timedelta
    reconnects: int


async def watch_changes(
    channel: grpc.aio.Channel,
    filter: change_service_pb2.ChangeFilter | None = None,
    *,
    resume_token: str = "",
    heartbeat: timedelta = timedelta(seconds=10),
    patience: float = 300.0,
    on_retry: OnRetry | None = None,
) -> AsyncGenerator[ChangeBatch, None]:
    """Yields changes as they happen, for ever: each exactly once, over any number of disconnects.

    Args:
        channel: From `mrm_client.channel`; its token needs the right CHANGES_READ.
        filter: Which changes; all that the caller may see if None.
        resume_token: Of an earlier batch with the same filter, or of GetOldestChangeToken; empty to begin now.
        heartbeat: Longest silence the server keeps, 1 to 60 s.
        patience: Seconds of failing in a row after which the last failure is raised.
        on_retry: Told of each failure and the pause before the next attempt.

    Raises:
        CallError: The server refused the watch, or patience ran out. With reason ``CHANGES_GONE`` what follows the
            token is no longer kept: nothing is skipped silently.
    """
    request = change_service_pb2.WatchChangesRequest(filter=filter, resume_token=resume_token)
    request.heartbeat_interval.FromTimedelta(heartbeat)
    retries = Retries(patience, on_retry)
    stub = change_service_pb2_grpc.ChangeServiceStub(channel)
    silence = heartbeat.total_seconds() + _SILENCE_SECONDS
    reconnects = 0
    while True:
        call = stub.WatchChanges(request)
        try:
            while True:
                async with asyncio.timeout(silence):
                    response = await call.read()
                if not isinstance(response, change_service_pb2.WatchChangesResponse):
                    break
                retries.succeeded()
                request.resume_token = response.resume_token or request.resume_token
                yield ChangeBatch(
                    tuple(response.batch.changes), request.resume_token, response.lag.ToTimedelta(), reconnects
                )
            error = CallError(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")
        except grpc.aio.AioRpcError as failure:
            error = CallError.of_rpc(failure)
        except TimeoutError:
            error = CallError(grpc.StatusCode.UNAVAILABLE, "the server keeps silent")
        finally:
            call.cancel()
        await retries.pause_or_raise(error)
        reconnects += 1
