"""The largest and the rest, totals, earlier buckets and rows, against what they are defined as."""

from collections.abc import Mapping
from datetime import date, timedelta
from itertools import pairwise
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import metrics_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.statistics import ranking, reply
from server.statistics.buckets import cut, day_start, earlier
from server.statistics.figures import to_message
from storage.clickhouse.metrics import NO_FIGURES, Combination, Figures, Sum

BUCKETS = range(0, 6 * 3600, 3600)
NOW = {0, 3600, 7200}

figures = st.builds(Figures, *[st.integers(0, 5)] * 2, *[st.integers(-(10**17), 10**17)] * 3)
combinations = st.builds(
    Combination,
    st.tuples(st.sampled_from([UUID(int=number) for number in range(6)])),
    st.sampled_from(["RUB", "USD"]),
)
series = st.dictionaries(st.sampled_from(BUCKETS), figures, min_size=1)
measured = st.dictionaries(combinations, series)
metrics = st.sampled_from(sorted(ranking.METRICS.values()))


def added(many: list[Figures]) -> Figures:
    return Figures(*(sum(each[place] for each in many) for place in range(5)))


def everything(found: Mapping[Combination, ranking.Series], currency: str) -> dict[int, Figures]:
    mine = [each for combination, each in found.items() if combination.currency == currency]
    return {
        bucket: added([each[bucket] for each in mine if bucket in each])
        for bucket in BUCKETS
        if any(bucket in each for each in mine)
    }


@given(measured, st.integers(1, 4), metrics)
def test_nothing_is_lost_between_the_largest_and_the_rest(
    found: dict[Combination, dict[int, Figures]], count: int, metric: str
) -> None:
    kept, rest = ranking.ranked(found, count, metric, NOW)
    for currency in {combination.currency for combination in found}:
        mine = {each: found[each] for each in found if each.currency == currency}
        chosen = {each for each in kept if each.currency == currency}
        assert len(chosen) == min(count, len(mine))
        assert (currency in rest) == (len(mine) > count)

        def size(each: Combination) -> int:
            figures = added([value for bucket, value in found[each].items() if bucket in NOW])
            return int(getattr(figures, metric))

        others = mine.keys() - chosen
        if others:
            worst, best = min(chosen, key=lambda each: (size(each), ranking.order(each))), max(map(size, others))
            assert size(worst) >= best
        whole = ranking.merged([*(kept[each] for each in chosen), rest.get(currency, {})])
        assert whole == everything(found, currency)


@given(measured)
def test_totals_are_sums_of_everything(found: dict[Combination, dict[int, Figures]]) -> None:
    totals = ranking.totals(found)
    assert list(totals) == sorted({combination.currency for combination in found})
    for currency, some in totals.items():
        assert some == everything(found, currency)
        assert (ranking.over(some, NOW) is None) == NOW.isdisjoint(some)
        assert (ranking.over(some, BUCKETS) or NO_FIGURES) == added(list(some.values()))


@given(measured)
def test_grouping_keeps_every_sum(found: dict[Combination, dict[int, Figures]]) -> None:
    sums = [Sum(bucket, each, value) for each, some in found.items() for bucket, value in some.items()]
    assert ranking.grouped(reversed(sums)) == found


def test_of_equals_the_first_is_kept() -> None:
    found = {Combination((UUID(int=number),), "RUB"): {0: Figures(1)} for number in (3, 1, 2)}
    kept, _ = ranking.ranked(found, 2, "impressions", {0})
    assert [each.values[0] for each in kept] == [UUID(int=1), UUID(int=2)]


ZONES = [ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Vladivostok", "Pacific/Apia")]
GRANULARITIES = [
    time_pb2.GRANULARITY_DAY, time_pb2.GRANULARITY_WEEK, time_pb2.GRANULARITY_MONTH, time_pb2.GRANULARITY_TOTAL,
]  # fmt: skip


@given(
    st.sampled_from(ZONES),
    st.sampled_from(GRANULARITIES),
    st.dates(date(2001, 1, 1), date(2030, 1, 1)),
    st.integers(1, 120),
)
def test_earlier_days_are_as_many_and_end_where_the_period_begins(
    zone: ZoneInfo, granularity: int, first: date, days: int
) -> None:
    buckets = cut(granularity, zone, day_start(first, zone), day_start(first + timedelta(days=days), zone))
    if buckets[-1].end == buckets[0].start:
        return
    before = earlier(buckets, zone)
    assert len(before) == len(buckets)
    assert before[-1].end == buckets[0].start
    assert before[0].start == day_start(first - timedelta(days=days), zone) or zone.key == "Pacific/Apia"
    assert all(one.end == next_one.start for one, next_one in pairwise(before))
    assert all(one.start <= one.end for one in before)
    if zone.key != "Pacific/Apia":
        for one, other in zip(buckets, before, strict=True):
            moved = date.fromisoformat(one.start_date) - timedelta(days=days)
            assert (other.start, other.start_date) == (day_start(moved, zone), moved.isoformat())


@given(st.sampled_from(ZONES), st.integers(300_000, 500_000), st.integers(1, 200))
def test_earlier_hours_are_as_many(zone: ZoneInfo, first: int, hours: int) -> None:
    buckets = cut(time_pb2.GRANULARITY_HOUR, zone, first * 3600, (first + hours) * 3600)
    assert [bucket.start - (hours * 3600) for bucket in buckets] == [bucket.start for bucket in earlier(buckets, zone)]


def test_before_1970_there_is_nothing() -> None:
    zone = ZoneInfo("UTC")
    buckets = cut(time_pb2.GRANULARITY_DAY, zone, day_start(date(1971, 1, 1), zone), day_start(date(1975, 1, 1), zone))
    assert min(bucket.start for bucket in earlier(buckets, zone)) == 0


@given(st.lists(st.tuples(st.sampled_from(["RUB", "USD"]), series), max_size=3), st.booleans())
def test_rows_say_what_was_measured(many: list[tuple[str, dict[int, Figures]]], compare: bool) -> None:
    zone = ZoneInfo("UTC")
    buckets = cut(time_pb2.GRANULARITY_HOUR, zone, 3 * 3600, 6 * 3600)
    before = earlier(buckets, zone) if compare else []
    head = metrics_pb2.MetricsRow(campaign_id="x", other=True)
    lines = [reply.Line(head.SerializeToString(), currency, some) for currency, some in many]
    parts = reply.serialized(reply.TOTALS, buckets, before, lines)
    rows = iter(pb.QueryStatisticsResponse.FromString(b"".join(parts)).totals)
    for number, bucket in enumerate(buckets):
        for currency, some in many:
            expected = metrics_pb2.MetricsRow(
                campaign_id="x",
                other=True,
                metrics=to_message(some.get(bucket.start, NO_FIGURES), currency),
                data_present=bucket.start in some,
            )
            expected.start_time.seconds, expected.end_time.seconds = bucket.start, bucket.end
            if compare and before[number].start in some:
                expected.previous_metrics.CopyFrom(to_message(some[before[number].start], currency))
            assert next(rows) == expected
    assert next(rows, None) is None


def test_what_does_not_fit_a_message_is_an_error() -> None:
    with pytest.raises(OverflowError):
        to_message(Figures(0, 0, 0, 2**63, 0), "RUB")
