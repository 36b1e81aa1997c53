"""The floor of unary calls: a bare grpc.aio handler that fetches the same row and answers the same message."""

import asyncio
import os
import signal
from uuid import UUID

import asyncpg
import grpc
import uvloop

from mrm.campaigns.v1 import campaign_service_pb2 as pb
from mrm.campaigns.v1 import campaign_service_pb2_grpc as rpc
from server.app import CHANNEL_OPTIONS
from server.campaigns import convert
from storage.postgres import campaigns
from storage.postgres.database import _prepare_connection
from storage.scope import Scope

_SCOPE = Scope(everything=True)


class Bare(rpc.CampaignServiceServicer):
    """Nothing but the fetch."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def GetCampaign(self, request: pb.GetCampaignRequest, context: object) -> pb.GetCampaignResponse:  # type: ignore[override]
        """Fetches and converts."""
        row = await self._pool.fetchrow(campaigns._GET, *_SCOPE.args, UUID(request.campaign_id))
        return pb.GetCampaignResponse(campaign=convert.campaign(campaigns.Campaign(*row)))


async def main() -> None:
    """Serves until SIGTERM."""
    pool = await asyncpg.create_pool(
        os.environ["MRM_POSTGRES__DSN"], min_size=10, max_size=10, init=_prepare_connection
    )
    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    rpc.add_CampaignServiceServicer_to_server(Bare(pool), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)
    await pool.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
