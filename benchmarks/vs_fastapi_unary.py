"""unary.vs_fastapi: authenticated GetCampaign over the same lookup through FastAPI (benchmarks.fastapi_app).

Both servers are one process with uvloop on the same stores. The calls of both sides come from one further process, so
that the parent does not take part: it sends prepared bytes and leaves replies unread but for their status, over one
gRPC channel or over kept-alive HTTP connections.
"""

import asyncio
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import uvloop
from yarl import URL

from benchmarks.harness import Bench, Result, console, interleaved, process
from benchmarks.unary import CONCURRENCY, prepare
from mrm.campaigns.v1 import campaign_service_pb2 as pb

CALLS = 6000
BAR = 1.0
GET = "/mrm.campaigns.v1.CampaignService/GetCampaign"


async def run(bench: Bench) -> list[Result]:
    """Measures calls a second at concurrency 32, each call under the next of 1000 sessions."""
    tokens, campaign_id = await prepare(bench)
    calls = int(CALLS * bench.scale)
    shares: dict[str, list[float]] = defaultdict(list)
    with tempfile.NamedTemporaryFile() as log:
        async with (
            process(["benchmarks.fastapi_app"], bench.environment, Path(log.name)) as port,
            _load_process(
                {
                    "grpc": bench.target,
                    "http": f"http://127.0.0.1:{port}",
                    "tokens": tokens,
                    "campaign_id": str(campaign_id),
                }
            ) as load,
        ):

            async def rate(side: str) -> float:
                figures = await load({"side": side, "calls": calls})
                shares[side].append(figures["client_cpu"])
                return figures["rate"]

            value, floor, ratio = await interleaved(
                bench.rounds, lambda: rate("grpc"), lambda: rate("http"), settle=min(0.5, bench.settle)
            )
    for side, found in shares.items():
        console.print(f"  the client of {side} took {statistics.median(found):.0%} of one processor")
    return [Result("unary.vs_fastapi", value, "calls/s", floor, ratio, BAR, ratio >= BAR)]


@asynccontextmanager
async def _load_process(setup: dict[str, object]) -> AsyncIterator[Callable[[dict[str, object]], Awaitable[dict]]]:
    """A process that makes calls when it is told to; both sides speak one JSON object a line."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None

    async def load(order: dict[str, object]) -> dict:
        child.stdin.write(json.dumps(order).encode() + b"\n")
        await child.stdin.drain()
        line = await child.stdout.readline()
        if not line:
            raise RuntimeError("the load process died")
        return json.loads(line)

    try:
        child.stdin.write(json.dumps(setup).encode() + b"\n")
        yield load
    finally:
        child.stdin.close()
        await child.wait()


async def _serve_load() -> None:
    """The load process."""
    setup = json.loads(await asyncio.to_thread(sys.stdin.readline))
    tokens = setup["tokens"]
    request = pb.GetCampaignRequest(campaign_id=setup["campaign_id"]).SerializeToString()
    url = URL(f"{setup['http']}/campaigns/{setup['campaign_id']}")
    metadata = itertools.cycle([(("authorization", f"Bearer {token}"),) for token in tokens])
    headers = itertools.cycle([{"authorization": f"Bearer {token}"} for token in tokens])
    async with (
        grpc.aio.insecure_channel(setup["grpc"]) as channel,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as http,
    ):
        get = channel.unary_unary(GET)

        async def through_grpc() -> bytes:
            return await get(request, metadata=next(metadata))

        async def through_http() -> bytes:
            async with http.get(url, headers=next(headers)) as reply:
                if reply.status != 200:
                    raise RuntimeError(f"{reply.status} {await reply.text()}"[:500])
                return await reply.read()

        campaign = pb.GetCampaignResponse.FromString(await through_grpc()).campaign
        found = json.loads(await through_http())
        if not campaign.campaign_id == found["id"] == setup["campaign_id"] or found["name"] != campaign.display_name:
            raise RuntimeError("the sides answer differently")
        sides = {"grpc": through_grpc, "http": through_http}
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            figures = await _rate(sides[order["side"]], order["calls"])
            print(json.dumps(figures), flush=True)


async def _rate(call: Callable[[], Awaitable[bytes]], calls: int) -> dict[str, float]:
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await call()

    used, begun = _processor_seconds(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    seconds = time.perf_counter() - begun
    return {"rate": calls / seconds, "client_cpu": (_processor_seconds() - used) / seconds}


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_load())
