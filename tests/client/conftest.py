"""A small server that keeps the contract of the statistics streams in memory, and fails on demand."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

import mrm_client
from mrm.statistics.v1 import event_pb2, metrics_pb2, statistics_service_pb2, statistics_service_pb2_grpc

TOKEN = "t0ken"
CLIENT_ID = "0198f000-0000-7000-8000-000000000001"
Reply = statistics_service_pb2.AppendEventsResponse
Watched = statistics_service_pb2.WatchMetricsResponse


def status(code: grpc.StatusCode, reason: str, retry_after: float = 0.0) -> status_pb2.Status:
    """A status as the server makes them."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="mrm")]
    if retry_after:
        delay = duration_pb2.Duration(nanos=int(retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=f"because {reason}", details=packed)


class FakeStatistics(statistics_service_pb2_grpc.StatisticsServiceServicer):
    """Stores events per stream.

    Attributes:
        streams: Events by stream id.
        batch_sizes: Events of each stored batch.
        failures: What to do with the next batches instead: a status to answer in-band, a number of seconds to sit on
            the batch first, or "drop" to store it and break the call without a reply.
        opened: Calls so far.
    """

    def __init__(self) -> None:
        self.streams: dict[str, list[str]] = {}
        self.batch_sizes: list[int] = []
        self.failures: list[Any] = []
        self.opened = 0
        self.tokens: list[str] = []
        self.watch_script: list[list[Any]] = []
        self.watch_requests: list[statistics_service_pb2.WatchMetricsRequest] = []

    async def AppendEvents(self, requests: Any, context: Any) -> None:
        self.opened += 1
        metadata = dict(context.invocation_metadata())
        self.tokens.append(metadata.get("authorization", ""))
        if metadata.get("authorization") != f"Bearer {TOKEN}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown token")
        stream: list[str] | None = None
        async for request in requests:
            if stream is None:
                assert request.client_id == CLIENT_ID
                stream = self.streams.setdefault(request.stream_id, [])
            reply = Reply(offset=request.offset, next_offset=len(stream))
            if not request.HasField("batch"):
                await context.write(reply)
            elif not await self._append(stream, request, reply, context):
                return

    async def _append(self, stream: list[str], request: Any, reply: Reply, context: Any) -> bool:
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, status_pb2.Status):
            reply.error.CopyFrom(failure)
            if failure.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]:
                reply.event_errors.add(index=2, field="event_id", message="is no UUID")
            await context.write(reply)
            return False
        if isinstance(failure, float):
            await asyncio.sleep(failure)
        end = request.offset + len(request.batch.events)
        if request.offset > len(stream):
            reply.error.CopyFrom(status(grpc.StatusCode.OUT_OF_RANGE, "OFFSET_GAP"))
        elif end <= len(stream):
            reply.error.CopyFrom(status(grpc.StatusCode.ALREADY_EXISTS, "OFFSET_ALREADY_STORED"))
        else:
            stream[request.offset :] = [event.event_id for event in request.batch.events]
            self.batch_sizes.append(len(request.batch.events))
            reply.stored_count = len(request.batch.events)
        if failure == "drop":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection broke")
        reply.next_offset = len(stream)
        await context.write(reply)
        return reply.error.code in (0, grpc.StatusCode.ALREADY_EXISTS.value[0])

    IngestEvents = QueryStatistics = GetFreshness = None  # nobody calls them here

    async def WatchMetrics(self, request: Any, context: Any) -> None:
        self.watch_requests.append(request)
        for step in self.watch_script.pop(0) if self.watch_script else []:
            if isinstance(step, grpc.StatusCode):
                await context.abort(step, "as scripted")
            elif isinstance(step, status_pb2.Status):
                trailer = (("grpc-status-details-bin", step.SerializeToString()),)
                await context.abort(_code(step.code), step.message, trailer)
            else:
                await context.write(step)


def _code(number: int) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == number)


def campaign(name: str, impressions: int, version: int) -> metrics_pb2.CampaignMetrics:
    """State of one campaign."""
    metrics = metrics_pb2.Metrics(impressions=impressions)
    return metrics_pb2.CampaignMetrics(campaign_id=name, metrics=metrics, state_version=version, data_present=True)


def events(first: int, count: int, padding: int = 0) -> list[event_pb2.Event]:
    """Events with their number as id."""
    attributes = {"padding": "x" * padding} if padding else {}
    return [event_pb2.Event(event_id=str(n), attributes=attributes) for n in range(first, first + count)]


class Running:
    """The fake behind a port that can be closed and opened again."""

    def __init__(self) -> None:
        self.fake = FakeStatistics()
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        statistics_service_pb2_grpc.add_StatisticsServiceServicer_to_server(cast(Any, self.fake), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop(None)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    server = Running()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def fake(running: Running) -> FakeStatistics:
    return running.fake


@pytest.fixture
async def channel(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with mrm_client.channel(f"127.0.0.1:{running.port}", TOKEN) as channel:
        yield channel
