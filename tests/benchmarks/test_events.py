"""The generator of the benchmarks: the same events each time, and such as an agency would see."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np

from benchmarks.events import CLICK, CONVERSION, DUPLICATES, IMPRESSION, LATE, Traffic, zipf
from mrm.statistics.v1 import event_pb2

START = 1_760_000_400 - 1_760_000_400 % 86_400
CAMPAIGNS = [UUID(int=number) for number in range(1, 21)]


def traffic(seed: int = 1, count: int = 100_000, zone: str = "Europe/Moscow", days: int = 14) -> Traffic:
    return Traffic(seed, CAMPAIGNS, zipf(range(len(CAMPAIGNS))), START, START + days * 86_400, zone, count)


def test_any_range_gives_the_same_events_again() -> None:
    assert traffic().batch(500, 700) == traffic().batch(500, 700)
    assert traffic().batch(500, 700) == traffic().batch(500, 600) + traffic().batch(600, 700)
    assert not {*_ids(traffic().batch(0, 1000))} & {*_ids(traffic(seed=2).batch(0, 1000))}


def test_batches_are_what_the_contract_would_write() -> None:
    columns, data = traffic().columns(0, 50_000), traffic().batch(0, 50_000)
    batch = event_pb2.EventBatch.FromString(data)
    assert batch.SerializeToString() == data
    assert [event.event_type for event in batch.events] == columns.kind.tolist()
    assert [event.cost_micros for event in batch.events] == columns.cost.tolist()
    assert [event.revenue_micros for event in batch.events] == columns.revenue.tolist()
    assert [event.campaign_id for event in batch.events] == [str(CAMPAIGNS[each]) for each in columns.campaign]
    assert [event.event_time.ToMicroseconds() for event in batch.events] == columns.moment.tolist()
    conversions = [event for event in batch.events if event.event_type == CONVERSION]
    counted = [event.conversions_micros if event.HasField("conversions_micros") else 10**6 for event in conversions]
    assert counted == columns.conversions[columns.kind == CONVERSION].tolist()
    assert 0 < sum(each < 10**6 for each in counted) < len(counted)


def test_repeats_have_the_identity_of_what_they_repeat() -> None:
    columns = traffic().columns(0, 100_000)
    identities = {(*map(bytes, columns.event_id[[row]]), columns.moment[row]) for row in range(len(columns.kind))}
    assert len(identities) == len(np.unique(columns.position))
    assert abs(1 - len(identities) / 100_000 - DUPLICATES) < 0.005


def test_traffic_has_the_shape_of_an_agencys() -> None:
    columns = traffic().columns(0, 100_000)
    popular = np.bincount(columns.campaign)
    assert popular[0] > 1.6 * popular[1] > 2 * popular[3] > 4 * popular[19] > 0
    impressions, clicks, conversions = (int((columns.kind == kind).sum()) for kind in (IMPRESSION, CLICK, CONVERSION))
    assert 0.005 < clicks / impressions < 0.03
    assert 0.01 < conversions / clicks < 0.1
    assert columns.cost.min() == 0 < columns.cost.max() < 500_000_000
    assert set(np.unique(columns.kind[columns.revenue > 0])) == {CONVERSION}
    assert len(np.unique(columns.user)) > 20_000
    # It comes in the order of time, but for what is late.
    late = np.maximum.accumulate(columns.moment) - columns.moment > 60_000_000
    assert abs(late.mean() - LATE - DUPLICATES) < 0.015
    assert columns.moment.min() >= START * 10**6
    assert columns.moment.max() < (START + 14 * 86_400) * 10**6


def test_nights_and_weekends_are_the_clients() -> None:
    for zone in ("Europe/Moscow", "Asia/Vladivostok"):
        moments = traffic(zone=zone).columns(0, 100_000).moment
        local = [datetime.fromtimestamp(each / 1e6, UTC).astimezone(ZoneInfo(zone)) for each in moments.tolist()]
        hours, weekdays = Counter(each.hour for each in local), Counter(each.weekday() for each in local)
        assert max(hours, key=lambda hour: hours[hour]) in (19, 20, 21)
        assert min(hours, key=lambda hour: hours[hour]) in (2, 3, 4)
        assert max(weekdays[5], weekdays[6]) < min(weekdays[day] for day in range(5))


def _ids(data: bytes) -> list[str]:
    return [event.event_id for event in event_pb2.EventBatch.FromString(data).events]
