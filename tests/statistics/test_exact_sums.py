"""Sums are exact to a millionth, however many events there are: against Python's integers."""

from __future__ import annotations

import os
import time
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest

import mrm_client
from benchmarks.events import CLICK, IMPRESSION, Traffic, zipf
from mrm.common.v1 import options_pb2
from mrm.statistics.v1 import event_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from tests.conftest import World
from tests.test_hazards import query

EVENTS = 10_000_000 if os.environ.get("MRM_BARS") == "full" else 200_000
BATCH = 20_000


@pytest.mark.bar_b
@pytest.mark.timeout(1500)
async def test_sums_are_exact_to_a_millionth(world: World) -> None:
    client_id, campaign_ids = await world.tenant(8)
    key = await world.key([client_id], options_pb2.PERMISSION_STATISTICS_INGEST, options_pb2.PERMISSION_STATISTICS_READ)
    now = int(time.time())
    traffic = Traffic(7, [UUID(each) for each in campaign_ids], zipf(range(8)), now - 40_000, now, "UTC", EVENTS)
    counted = np.zeros(EVENTS, bool)
    expected = {campaign_id: [0, 0, 0, 0, 0] for campaign_id in campaign_ids}
    async with mrm_client.channel(world.target, key.token) as channel:
        async with mrm_client.Producer(channel, client_id, "exact") as producer:
            for first in range(0, EVENTS, BATCH):
                await producer.send(event_pb2.EventBatch.FromString(traffic.batch(first, first + BATCH)))
                events = traffic.columns(first, first + BATCH)
                _, rows = np.unique(events.position, return_index=True)
                rows = rows[~counted[events.position[rows]]]
                counted[events.position[rows]] = True
                for campaign, campaign_id in enumerate(campaign_ids):
                    mine = rows[events.campaign[rows] == campaign]
                    figures = (
                        (events.kind[mine] == IMPRESSION).sum(),
                        (events.kind[mine] == CLICK).sum(),
                        events.conversions[mine].sum(),
                        events.cost[mine].sum(),
                        events.revenue[mine].sum(),
                    )
                    expected[campaign_id] = [
                        sum(pair) for pair in zip(expected[campaign_id], map(int, figures), strict=True)
                    ]
        assert producer.counters.acknowledged == EVENTS
    found = {
        row.campaign_id: [
            row.metrics.impressions,
            row.metrics.clicks,
            int(Decimal(row.metrics.conversions) * 10**6),
            row.metrics.cost_micros,
            row.metrics.revenue_micros,
        ]
        for row in await query(key, client_id, pb.DIMENSION_CAMPAIGN)
    }
    assert found == expected
    # What makes this a test: amounts whose last digit is a millionth, and events that came twice.
    assert any(figures[3] % 10 for figures in expected.values())
    assert 0 < counted.sum() < EVENTS
