"""observability.*: what being watched over costs a GetCampaign.

Metrics: calls a second of a server that answers Prometheus, read every second, against one that does not. Tracing that
is off costs less than rounds differ from each other, so it is measured by itself: microseconds of a call's begin and
end in the request path as it is, less those of the same without what traces need, as a share of the whole call, which
is the time between two calls of the server that was measured before.
"""

import asyncio
import io
import socket
import time
from contextlib import redirect_stderr
from statistics import median
from typing import Any

import grpc
import httpx2
from uuid_utils.compat import uuid7

from benchmarks.harness import Bench, Result, interleaved, server
from benchmarks.unary import calls_a_second, prepare
from mrm.campaigns.v1 import campaign_service_pb2 as pb
from server.rpc import logs
from server.rpc.pipeline import _REQUEST_ID, Context, Method, Pipeline, Trace, _method
from server.rpc.preference import HEADER

METRICS_BAR = 0.95
TRACING_BAR = 0.99
_SCRAPE_SECONDS = 1.0
# Begins and ends measured at a time, so that the clock's own cost does not count.
_AT_A_TIME = 200


async def run(bench: Bench) -> list[Result]:
    """Measures both."""
    tokens, campaign_id = await prepare(bench)
    calls = int(4000 * bench.scale)
    request = pb.GetCampaignRequest(campaign_id=str(campaign_id))
    port = _free_port()
    async with (
        server(bench, MRM_MONITORING__PORT=str(port)) as watched_target,
        server(bench) as plain_target,
        grpc.aio.insecure_channel(watched_target) as watched,
        grpc.aio.insecure_channel(plain_target) as plain,
    ):
        reading = asyncio.create_task(_read_again_and_again(port))
        try:
            value, floor, ratio = await interleaved(
                bench.rounds,
                lambda: calls_a_second(watched, request, tokens, calls),
                lambda: calls_a_second(plain, request, tokens, calls),
            )
        finally:
            reading.cancel()
    metrics = Result("observability.metrics", value, "calls/s", floor, ratio, METRICS_BAR, ratio >= METRICS_BAR)
    added, whole = added_microseconds(max(5, int(100 * bench.scale))), 1e6 / floor
    kept = 1 - max(0.0, added) / whole
    tracing = Result(
        "observability.tracing_off", max(added, 0.001), "us", whole, kept, TRACING_BAR, kept >= TRACING_BAR
    )
    return [metrics, tracing]


async def _read_again_and_again(port: int) -> None:
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as http:
        while True:
            (await http.get(f"http://127.0.0.1:{port}/metrics")).raise_for_status()
            await asyncio.sleep(_SCRAPE_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Untraced(Pipeline):
    """The request path as it would be if there were no traces."""

    def _enter(self, method: Method, context: Context) -> Trace:
        self._running += 1
        self._idle.clear()
        if method.meter is not None:
            method.meter.begin()
        authorization = given_id = reading = ""
        for name, value in context.invocation_metadata() or ():
            if name == "authorization":
                authorization = value if isinstance(value, str) else ""
            elif name == "x-request-id" and isinstance(value, str) and _REQUEST_ID.match(value):
                given_id = value
            elif name == HEADER and isinstance(value, str):
                reading = value
        trace = Trace(method, given_id or uuid7().hex, authorization, reading, context)
        context.set_trailing_metadata(trace.trailer)
        logs.bind_request(trace.request_id)
        return trace

    def _leave(self, trace: Trace) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()
        seconds = time.perf_counter() - trace.started
        if trace.method.meter is not None:
            trace.method.meter.end(trace.code, seconds)
        logs.access(
            method=trace.method.full_name,
            code=trace.code,
            reason=trace.reason,
            ms=round(seconds * 1000, 2),
            request_id=trace.request_id,
            principal=str(trace.principal.principal_id or ""),
            peer=trace.peer,
        )


class _Context:
    """What the begin and end of a call want of gRPC."""

    _METADATA = (("authorization", "Bearer mrms_" + "x" * 43), ("user-agent", "grpc-python-asyncio/1.85.1"))

    def invocation_metadata(self) -> Any:
        return self._METADATA

    def set_trailing_metadata(self, trailer: object) -> None:
        pass

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50000"


def added_microseconds(rounds: int) -> float:
    """What traces that are off add to a call: the median over rounds, in which both take turns."""

    class Servicer:
        async def GetCampaign(self) -> None:
            pass

    descriptor = pb.DESCRIPTOR.services_by_name["CampaignService"].methods_by_name["GetCampaign"]
    method, context = _method(descriptor, [Servicer()], None), _Context()
    nothing: Any = None
    traced, untraced = Pipeline(nothing, nothing, nothing), Untraced(nothing, nothing, nothing)
    found = []
    with redirect_stderr(io.TextIOWrapper(io.BytesIO())):
        for number in range(rounds):
            spent = {}
            for pipeline in (traced, untraced) if number % 2 else (untraced, traced):
                begun = time.perf_counter()
                for _ in range(_AT_A_TIME):
                    pipeline._leave(pipeline._enter(method, context))  # type: ignore[arg-type]
                spent[pipeline] = time.perf_counter() - begun
            found.append((spent[traced] - spent[untraced]) / _AT_A_TIME * 1e6)
    return median(found)
