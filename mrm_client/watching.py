"""Live figures as one merged state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from uuid import UUID

import grpc
from google.protobuf import timestamp_pb2

from mrm.common.v1 import platform_pb2
from mrm.statistics.v1 import metrics_pb2, statistics_service_pb2_grpc
from mrm.statistics.v1 import statistics_service_pb2 as service_pb2
from mrm_client.errors import CallError
from mrm_client.retries import OnRetry, Retries

Window = service_pb2.WatchWindow
Response = service_pb2.WatchMetricsResponse

# Beyond the promised heartbeats this much silence is taken for a dead connection.
_SILENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WatchState:
    """Everything known about the watched campaigns.

    Attributes:
        kind: What brought this state: ``snapshot``, ``update``, ``checkpoint`` or ``heartbeat``.
        campaigns: Newest figures by campaign id. Read-only; each state has its own.
        changed: Ids of the campaigns whose figures this message brought.
        window_start: First instant of the watched window.
        window_end: First instant after it.
        watermark: Everything acknowledged before this instant is in the figures.
        resume_token: Give it to `watch` to go on later, in another process too.
        skipped_count: States the server skipped since the last message because this reader was slow.
        reconnects: Times the stream broke and was opened again.
    """

    kind: str = ""
    campaigns: Mapping[str, metrics_pb2.CampaignMetrics] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()
    window_start: datetime | None = None
    window_end: datetime | None = None
    watermark: datetime | None = None
    resume_token: str = ""
    skipped_count: int = 0
    reconnects: int = 0


async def watch(
    channel: grpc.aio.Channel,
    client_id: UUID | str,
    *,
    campaign_ids: Iterable[UUID | str] = (),
    project_ids: Iterable[UUID | str] = (),
    platforms: Iterable[platform_pb2.Platform.ValueType] = (),
    window: Window.ValueType = service_pb2.WATCH_WINDOW_TODAY,
    times: tuple[datetime, datetime] | None = None,
    resume_token: str = "",
    heartbeat: timedelta = timedelta(seconds=10),
    patience: float = 300.0,
    on_retry: OnRetry | None = None,
) -> AsyncGenerator[WatchState, None]:
    """Yields the state of a client's campaigns whenever it is heard of, for ever.

    Snapshots that come in several messages, updates, resets and reconnects are merged: each state is whole. The first
    one is a snapshot, and after a reconnect no state is older than the last. Close it when you leave early::

        async with contextlib.aclosing(mrm_client.watch(channel, client_id)) as states:
            async for state in states:
                ...

    Args:
        channel: From `mrm_client.channel(..., watch=True)`; its token needs the right STATISTICS_READ.
        client_id: The client whose campaigns are watched.
        campaign_ids: Only these; all of them, later ones too, if empty.
        project_ids: Only campaigns of these projects, later ones too; all if empty.
        platforms: Only campaigns on these platforms; all if empty.
        window: Span of time that moves with the clock.
        times: Fixed span instead, first instant and first instant after it, full hours with a time zone.
        resume_token: From an earlier state of the same watch, to be sure of nothing older.
        heartbeat: Longest silence the server keeps, 1 to 60 s.
        patience: Seconds of failing in a row after which the last failure is raised.
        on_retry: Told of each failure and the pause before the next attempt.

    Raises:
        CallError: The server refused the watch, or patience ran out.
    """
    request = service_pb2.WatchMetricsRequest(
        client_id=str(client_id),
        campaign_ids=[str(campaign_id) for campaign_id in campaign_ids],
        project_ids=[str(project_id) for project_id in project_ids],
        platforms=platforms,
        resume_token=resume_token,
    )
    _set_period(request, window, times)
    request.heartbeat_interval.FromTimedelta(heartbeat)
    retries = Retries(patience, on_retry)
    merger = _Merger(WatchState(resume_token=resume_token))
    stub = statistics_service_pb2_grpc.StatisticsServiceStub(channel)
    silence = heartbeat.total_seconds() + _SILENCE_SECONDS
    while True:
        call = stub.WatchMetrics(request)
        try:
            while isinstance(response := await _read(call, silence), Response):
                retries.succeeded()
                if (state := merger.take(response)) is not None:
                    yield state
            error = CallError(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")
        except grpc.aio.AioRpcError as failure:
            error = CallError.of_rpc(failure)
        except TimeoutError:
            error = CallError(grpc.StatusCode.UNAVAILABLE, "the server keeps silent")
        finally:
            call.cancel()
        # A token only promises freshness: without it the watch begins at the present state.
        forget = error.reason == "RESUME_TOKEN_INVALID" and bool(request.resume_token)
        await retries.pause_or_raise(error, retriable=forget)
        merger.reconnecting()
        request.resume_token = "" if forget else merger.state.resume_token


async def _read(call: grpc.aio.UnaryStreamCall[service_pb2.WatchMetricsRequest, Response], seconds: float) -> object:
    async with asyncio.timeout(seconds):
        return await call.read()


class _Merger:
    """Turns messages into whole states."""

    def __init__(self, state: WatchState) -> None:
        self.state = state
        self._partial: dict[str, metrics_pb2.CampaignMetrics] = {}
        self._reconnecting = False

    def reconnecting(self) -> None:
        """A half-received snapshot is worth nothing; the next call begins with another."""
        self._partial = {}
        self._reconnecting = True

    def take(self, response: Response) -> WatchState | None:
        """Merges a message; returns the new state unless it is still incomplete."""
        if self._reconnecting:
            self._reconnecting = False
            self.state = replace(self.state, reconnects=self.state.reconnects + 1)
        kind = response.WhichOneof("kind")
        if kind == "snapshot":
            return self._take_snapshot(response)
        if kind == "reset" or kind is None:
            self._partial = {}
            return None
        known = self.state.campaigns
        newer = {}
        if kind == "update":
            newer = {c.campaign_id: c for c in response.update.campaigns if _is_newer(c, known.get(c.campaign_id))}
        return self._become(
            response,
            kind=kind,
            campaigns=MappingProxyType({**known, **newer}) if newer else known,
            changed=frozenset(newer),
            skipped_count=response.update.skipped_count,
        )

    def _take_snapshot(self, response: Response) -> WatchState | None:
        snapshot = response.snapshot
        self._partial.update((campaign.campaign_id, campaign) for campaign in snapshot.campaigns)
        if not snapshot.complete:
            return None
        whole, self._partial = self._partial, {}
        return self._become(
            response,
            kind="snapshot",
            campaigns=MappingProxyType(whole),
            changed=frozenset(whole),
            window_start=_instant(snapshot.window_start_time),
            window_end=_instant(snapshot.window_end_time),
            skipped_count=0,
        )

    def _become(self, response: Response, **fields: object) -> WatchState:
        # A server that has just started may not know its watermark yet.
        known = response.watermark_time.seconds > 0
        watermark = _instant(response.watermark_time) if known else self.state.watermark
        token = response.resume_token or self.state.resume_token
        self.state = replace(self.state, watermark=watermark, resume_token=token, **fields)  # type: ignore[arg-type]
        return self.state


def _is_newer(campaign: metrics_pb2.CampaignMetrics, known: metrics_pb2.CampaignMetrics | None) -> bool:
    return known is None or campaign.state_version >= known.state_version


def _instant(timestamp: timestamp_pb2.Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


def _set_period(
    request: service_pb2.WatchMetricsRequest, window: Window.ValueType, times: tuple[datetime, datetime] | None
) -> None:
    if times is None:
        request.window = window
        return
    request.times.start_time.FromDatetime(times[0].astimezone(UTC))
    request.times.end_time.FromDatetime(times[1].astimezone(UTC))
