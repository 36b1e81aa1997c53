"""AppendMetrics as a sync meets it: over the network, with rights."""

import grpc

from mrm.common.v1 import options_pb2, time_pb2
from mrm.statistics.v1 import snapshot_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from tests.conftest import Failing, World


async def test_rights_rules_and_figures(world: World, failing: Failing) -> None:
    client_id, [campaign_id] = await world.tenant()
    other_id, [foreign_id] = await world.tenant()
    snapshot = snapshot_pb2.MetricsSnapshot(campaign_id=campaign_id, date="2025-11-20")
    snapshot.delivery.impressions = 1000
    request = pb.AppendMetricsRequest(
        client_id=client_id, source=snapshot_pb2.METRICS_SOURCE_PLATFORM, version=1, snapshots=[snapshot]
    )
    reader = await world.key([client_id], options_pb2.PERMISSION_STATISTICS_READ)
    stranger = await world.key([other_id])
    refused = await failing(reader.statistics.AppendMetrics(request, metadata=reader.auth))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING")
    refused = await failing(stranger.statistics.AppendMetrics(request, metadata=stranger.auth))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")

    sync = await world.key([client_id, other_id])
    for changes in ({"source": snapshot_pb2.METRICS_SOURCE_EVENTS}, {"version": 0}):
        wrong = pb.AppendMetricsRequest()
        wrong.CopyFrom(request)
        for name, value in changes.items():
            setattr(wrong, name, value)
        refused = await failing(sync.statistics.AppendMetrics(wrong, metadata=sync.auth))
        assert (refused.code, list(refused.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, list(changes))
    foreign = pb.AppendMetricsRequest()
    foreign.CopyFrom(request)
    foreign.snapshots.add(campaign_id=foreign_id, date="2025-11-20")
    refused = await failing(sync.statistics.AppendMetrics(foreign, metadata=sync.auth))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "EVENTS_INVALID")
    assert refused.fields == {"snapshots[1].campaign_id": "UNKNOWN_CAMPAIGN"}

    for expected in ((1, 0), (0, 1)):
        reply = await sync.statistics.AppendMetrics(request, metadata=sync.auth)
        assert (reply.stored_count, reply.stale_count) == expected
    query = pb.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date="2025-11-20", end_date="2025-11-20"),
        granularity=time_pb2.GRANULARITY_DAY,
        filter=pb.StatisticsFilter(client_ids=[client_id]),
    )
    answer = await reader.statistics.QueryStatistics(query, metadata=reader.auth)
    assert [row.metrics.impressions for row in answer.rows] == [1000]
