"""Figures in bulk, resumed by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from datetime import UTC, date, datetime
from uuid import UUID

import grpc

from mrm.common.v1 import platform_pb2, time_pb2
from mrm.statistics.v1 import statistics_service_pb2 as service_pb2
from mrm.statistics.v1 import statistics_service_pb2_grpc
from mrm_client.errors import CallError
from mrm_client.retries import OnRetry, Retries

Part = service_pb2.ExportStatisticsResponse

# The server gives up on a statement that says nothing for five minutes.
_SILENCE_SECONDS = 330.0


async def export(
    channel: grpc.aio.Channel,
    *,
    start: date | datetime,
    end: date | datetime,
    daily: bool = False,
    client_ids: Iterable[UUID | str] = (),
    project_ids: Iterable[UUID | str] = (),
    campaign_ids: Iterable[UUID | str] = (),
    platforms: Iterable[platform_pb2.Platform.ValueType] = (),
    time_zone: str = "",
    rows: bool = False,
    resume_token: str = "",
    patience: float = 300.0,
    on_retry: OnRetry | None = None,
) -> AsyncGenerator[Part, None]:
    """Yields the figures of campaigns by hour or day in parts of at most 1 MiB, each row once.

    The stream is opened again after a failure and goes on where it stopped. `part.arrow` is an Arrow IPC stream of its
    own (`pyarrow.ipc.open_stream(part.arrow).read_all()`), `part.rows.rows` are messages. Close it when you leave
    early::

        async with contextlib.aclosing(mrm_client.export(channel, start=first, end=last)) as parts:
            async for part in parts:
                ...

    Args:
        channel: From `mrm_client.channel(...)`; its token needs the right STATISTICS_READ.
        start: First day, or first instant: a full hour with a time zone.
        end: Last day, or first instant after the last hour.
        daily: Days instead of hours.
        client_ids: Only these clients; all visible ones if empty.
        project_ids: Only these projects.
        campaign_ids: Only these campaigns.
        platforms: Only these platforms.
        time_zone: IANA name of the zone whose days count; see ExportStatisticsRequest.
        rows: Messages instead of Arrow.
        resume_token: `part.resume_token` of the last part of an earlier export of the same, to go on after it.
        patience: Seconds of failing in a row after which the last failure is raised.
        on_retry: Told of each failure and the pause before the next attempt.

    Raises:
        CallError: The server refused the export, or patience ran out. Reason ``EXPORT_OUTDATED`` after a disconnect
            means that figures were restated meanwhile: begin anew.
    """
    request = service_pb2.ExportStatisticsRequest(
        granularity=time_pb2.GRANULARITY_DAY if daily else time_pb2.GRANULARITY_HOUR,
        filter=service_pb2.StatisticsFilter(
            client_ids=map(str, client_ids),
            project_ids=map(str, project_ids),
            campaign_ids=map(str, campaign_ids),
            platforms=platforms,
        ),
        time_zone=time_zone,
        format=service_pb2.EXPORT_FORMAT_ROWS if rows else service_pb2.EXPORT_FORMAT_ARROW,
        resume_token=resume_token,
    )
    _set_period(request, start, end)
    retries = Retries(patience, on_retry)
    stub = statistics_service_pb2_grpc.StatisticsServiceStub(channel)
    while True:
        call = stub.ExportStatistics(request)
        try:
            while isinstance(part := await _read(call), Part):
                retries.succeeded()
                request.resume_token = part.resume_token
                yield part
                if part.complete:
                    return
            error = CallError(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")
        except grpc.aio.AioRpcError as failure:
            error = CallError.of_rpc(failure)
        except TimeoutError:
            error = CallError(grpc.StatusCode.UNAVAILABLE, "the server keeps silent")
        finally:
            call.cancel()
        await retries.pause_or_raise(error)


async def _read(call: grpc.aio.UnaryStreamCall[service_pb2.ExportStatisticsRequest, Part]) -> object:
    async with asyncio.timeout(_SILENCE_SECONDS):
        return await call.read()


def _set_period(request: service_pb2.ExportStatisticsRequest, start: date | datetime, end: date | datetime) -> None:
    if isinstance(start, datetime) and isinstance(end, datetime):
        request.times.start_time.FromDatetime(start.astimezone(UTC))
        request.times.end_time.FromDatetime(end.astimezone(UTC))
    elif isinstance(start, datetime) or isinstance(end, datetime):
        raise TypeError("start and end must both be days or both be instants")
    else:
        request.dates.start_date, request.dates.end_date = start.isoformat(), end.isoformat()
