"""Client helper of the MRM data service: channels, a resumable event producer, live figures, exports.

It needs nothing of the server: grpcio, protobuf and the generated stubs (`mrm`). Everything else of the API is called
through the stubs themselves, on a channel from `channel`::

    import mrm_client
    from mrm.campaigns.v1.campaign_service_pb2 import GetCampaignRequest
    from mrm.campaigns.v1.campaign_service_pb2_grpc import CampaignServiceStub

    async with mrm_client.channel("127.0.0.1:50051", token) as channel:
        reply = await CampaignServiceStub(channel).GetCampaign(GetCampaignRequest(campaign_id=...), timeout=3)

A stub raises `grpc.aio.AioRpcError`; `CallError.of_rpc(error)` reads the machine-readable reason, the broken fields and
the pause before a retry out of it. `Producer` appends events, `batches` cuts them for `IngestEvents`, `watch` follows
the figures, `watch_changes` who changed what, `export` gets figures in bulk; all of them raise `CallError` and its
kinds.
"""

from mrm_client.batches import MAX_BATCH_BYTES, MAX_BATCH_EVENTS, batches
from mrm_client.changes import ChangeBatch, watch_changes
from mrm_client.channels import channel, is_local
from mrm_client.errors import CallError, CredentialsRefused, EventsInvalid, PositionLost, StreamFenced
from mrm_client.exporting import export
from mrm_client.producer import Counters, Producer
from mrm_client.watching import WatchState, watch

__all__ = [
    "MAX_BATCH_BYTES",
    "MAX_BATCH_EVENTS",
    "CallError",
    "ChangeBatch",
    "Counters",
    "CredentialsRefused",
    "EventsInvalid",
    "PositionLost",
    "Producer",
    "StreamFenced",
    "WatchState",
    "batches",
    "channel",
    "export",
    "is_local",
    "watch",
    "watch_changes",
]
