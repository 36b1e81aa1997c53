"""GetFeedbackStatistics against the same figures worked out one by one in Python."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrm.ai.v1 import feedback_pb2
from mrm.ai.v1 import feedback_service_pb2 as pb
from mrm.common.v1 import time_pb2
from server.intervals import wilson
from tests.conftest import Caller, Failing, World
from tests.feedback.asking import ACCEPTED, EDITED, REJECTED, Desk, batch, desk

pytestmark = pytest.mark.bar_g

Record = feedback_pb2.FeedbackRecord
PROMPT, VERSION, LABEL, CATEGORY, CLIENT, PROJECT, EXPERIMENT = range(1, 8)
ZONE = ZoneInfo("Asia/Vladivostok")
FIRST, LAST = date(2026, 9, 28), date(2026, 11, 2)


async def asked(caller: Caller, **fields: Any) -> pb.GetFeedbackStatisticsResponse:
    """Statistics."""
    request = pb.GetFeedbackStatisticsRequest(**fields)
    return await caller.feedback.GetFeedbackStatistics(request, metadata=caller.auth)


def decimal(value: Fraction | float) -> str:
    """A number in plain notation with at most two decimals, half to even."""
    exact = Decimal(value.numerator) / value.denominator if isinstance(value, Fraction) else Decimal(value)
    text = f"{exact.quantize(Decimal('0.01'), ROUND_HALF_EVEN):f}"
    return text.rstrip("0").rstrip(".")


def ranked(values: Sequence[Fraction], share: Fraction) -> str:
    """The least value that at least a share of them do not exceed."""
    return decimal(next(value for value in sorted(values) if sum(v <= value for v in values) >= share * len(values)))


def rate(hits: int, count: int) -> tuple[str, str, str]:
    """A share and its Wilson interval: where the score test does not refuse, from the roots of its quadratic."""
    z = 1.959963984540054**2
    a, b, c = count + z, -(2 * hits + z), hits**2 / count
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return decimal(Fraction(100 * hits, count)), decimal(max(0.0, 50 * (-b - root) / a)), decimal(50 * (-b + root) / a)


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """What statistics must say of some records."""
    by_action = [sum(record.action == action for record in records) for action in (ACCEPTED, EDITED, REJECTED)]
    percents = [Fraction(0) for record in records if record.action == ACCEPTED]
    percents += [Fraction(record.edit_percent) for record in records if record.edit_percent]
    found: dict[str, Any] = {"count": len(records), "measured_count": len(percents)}
    names = ("accepted_count", "edited_count", "rejected_count"), ("acceptance_rate", "edit_rate", "rejection_rate")
    for count, name, share in zip(by_action, *names, strict=True):
        found |= {name: count, share: rate(count, len(records)) if records else None}
    if percents:
        found |= {
            "mean_edit_percent": decimal(sum(percents) / len(percents)),
            "p50_edit_percent": ranked(percents, Fraction(1, 2)),
            "p90_edit_percent": ranked(percents, Fraction(9, 10)),
        }
    return found


def read(message: feedback_pb2.FeedbackFigures) -> dict[str, Any]:
    """What statistics say, in the form of `figures`."""
    counts = ("count", "accepted_count", "edited_count", "rejected_count", "measured_count")
    found: dict[str, Any] = {name: getattr(message, name) for name in counts}
    for name in ("acceptance_rate", "edit_rate", "rejection_rate"):
        told = getattr(message, name)
        found[name] = (told.percent, told.low_percent, told.high_percent) if message.HasField(name) else None
    for name in ("mean_edit_percent", "p50_edit_percent", "p90_edit_percent"):
        if message.HasField(name):  # type: ignore[arg-type]
            found[name] = getattr(message, name)
    return found


def local_day(record: Record) -> date:
    return record.action_time.ToDatetime(UTC).astimezone(ZONE).date()


def monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


@pytest.fixture(scope="module")
async def told(world: World) -> tuple[Desk, list[Record]]:
    """Feedback of one client: two versions, three labels, over five weeks, much of it near midnight."""
    made = await desk(world, versions=2, category="media_plan", settings={"time_zone": str(ZONE)})
    chance = random.Random(45)
    records = []
    for _ in range(400):
        action = chance.choice((ACCEPTED, ACCEPTED, EDITED, EDITED, REJECTED))
        day = datetime.combine(FIRST + timedelta(days=chance.randrange((LAST - FIRST).days)), datetime.min.time(), ZONE)
        record = made.record(
            action=action,
            prompt_version_id=chance.choice(made.versions),
            label=chance.choice(("", "production", "staging")),
            project_id=chance.choice(("", made.project_id)),
        )
        if action == EDITED and chance.random() < 0.8:
            record.edit_percent = f"{chance.randrange(1, 4000) / 100:.2f}"
        record.action_time.FromDatetime(day + timedelta(seconds=chance.choice((0, 1, 40_000, 86_399))))
        records.append(record)
    assert not any(result.HasField("status") for result in await batch(world.admin, *records))
    return made, records


Told = tuple[Desk, list[Record]]


@pytest.mark.parametrize(
    ("dimensions", "key", "shown"),
    [
        ([], lambda record: "", lambda group: ""),
        ([VERSION], lambda record: record.prompt_version_id, lambda group: group.prompt_version_id),
        (
            [LABEL, PROJECT],
            lambda record: (record.label, record.project_id),
            lambda group: (group.label, group.project_id),
        ),
        (
            [PROMPT, CATEGORY, CLIENT, EXPERIMENT],
            lambda record: record.client_id,
            lambda group: group.client_id,
        ),
    ],
    ids=["all", "version", "label-project", "others"],
)
async def test_groups_and_buckets_are_what_was_recorded(
    world: World,
    told: Told,
    dimensions: list[int],
    key: Callable[[Record], object],
    shown: Callable[[feedback_pb2.FeedbackGroup], object],
) -> None:
    made, records = told
    reply = await asked(
        world.admin,
        filter={"client_ids": [made.client_id]},
        dimensions=dimensions,
        dates=time_pb2.DateRange(start_date=str(FIRST), end_date=str(LAST)),
        trend_granularity=time_pb2.GRANULARITY_WEEK,
    )
    assert reply.time_zone == str(ZONE)
    wanted: dict[object, list[Record]] = {}
    for record in records:
        wanted.setdefault(key(record), []).append(record)
    assert {shown(group): read(group.figures) for group in reply.groups} == {k: figures(v) for k, v in wanted.items()}
    counts = [group.figures.count for group in reply.groups]
    assert counts == sorted(counts, reverse=True)
    assert read(reply.total.figures) == figures(records)
    weeks = [FIRST + timedelta(weeks=number) for number in range(6)]
    for group, mine in [(reply.total, records), *((group, wanted[shown(group)]) for group in reply.groups)]:
        trend = {bucket.start_date: read(bucket.figures) for bucket in group.buckets}
        assert trend == {str(week): figures([r for r in mine if monday(local_day(r)) == week]) for week in weeks}
    if PROMPT in dimensions:
        [group] = reply.groups
        assert (group.prompt_id, group.prompt_category) == (made.prompt_id, 2)
        assert group.prompt_name.startswith("prompt ")
    if VERSION in dimensions:
        numbers = {version_id: number for number, version_id in enumerate(made.versions, 1)}
        assert {group.prompt_version_id: group.prompt_version for group in reply.groups} == numbers


@pytest.mark.parametrize(
    ("fields", "keep"),
    [
        (
            {"dates": {"start_date": "2026-10-05", "end_date": "2026-10-05"}},
            lambda r: local_day(r) == date(2026, 10, 5),
        ),
        ({"filter": {"label": "staging", "actions": [EDITED]}}, lambda r: r.label == "staging" and r.action == EDITED),
        ({"filter": {"prompt_categories": [2]}}, lambda r: True),
        ({"filter": {"prompt_categories": [1]}}, lambda r: False),
        (
            {"time_zone": "UTC", "dates": {"start_date": "2026-10-05", "end_date": "2026-10-05"}},
            lambda r: r.action_time.ToDatetime().date() == date(2026, 10, 5),
        ),
    ],
    ids=["day", "label-action", "category", "other-category", "utc"],
)
async def test_what_is_filtered_does_not_count(
    world: World, told: Told, fields: dict[str, Any], keep: Callable[[Record], bool]
) -> None:
    made, records = told
    wanted = {**fields.get("filter", {}), "client_ids": [made.client_id]}
    reply = await asked(world.admin, **{**fields, "filter": wanted})
    assert read(reply.total.figures) == figures([record for record in records if keep(record)])
    assert len(reply.groups) == bool(reply.total.figures.count)


async def test_others_count_nothing_of_it(world: World, told: Told) -> None:
    made, _ = told
    analyst, stranger = await world.user("analyst", made.client_id), await world.user("analyst")
    assert (await asked(analyst, filter={"client_ids": [made.client_id]})).total.figures.count == 400
    assert (await asked(analyst)).total.figures.count == 400
    for fields in ({}, {"filter": {"client_ids": [made.client_id]}}, {"filter": {"prompt_id": made.prompt_id}}):
        assert (await asked(stranger, **fields)).total.figures.count == 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"trend_granularity": 3}, "dates"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"trend_granularity": 2}, "trend_granularity"),
        ({"dates": {"start_date": "9999-12-31", "end_date": "9999-12-31"}}, "dates"),
    ],
    ids=["trend-of-all-time", "zone", "hours", "end-of-time"],
)
async def test_questions_without_sense(world: World, failing: Failing, fields: dict[str, Any], field: str) -> None:
    failure = await failing(asked(world.admin, **fields))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.fields) == [field]


async def test_too_many_buckets(world: World, told: Told, failing: Failing) -> None:
    dates = {"start_date": "1990-01-01", "end_date": "2026-12-31"}
    failure = await failing(asked(world.admin, dates=dates, trend_granularity=time_pb2.GRANULARITY_DAY))
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUERY_TOO_LARGE")


@given(st.integers(1, 10**9).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_intervals_lie_around_their_share(counts: tuple[int, int]) -> None:
    hits, count = counts
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    assert low < high
