"""From rows to events: exact or refused, never guessed."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from mrm.statistics.v1 import event_pb2
from server.cli.events import BadRow, EventReader, to_micros
from server.cli.rows import Row
from server.statistics.event_ids import derived_id

CAMPAIGN = "0198f000-0000-7000-8000-000000000001"
GOOD: dict[str, Any] = {
    "event_time": "2026-01-31T12:00:00.123456+03:00",
    "campaign_id": CAMPAIGN,
    "event_type": "click",
}


def read(zone: ZoneInfo | None = None, line: int = 2, **values: Any) -> event_pb2.Event:
    merged = {name: value for name, value in {**GOOD, **values}.items() if value is not None}
    return EventReader("abc", zone).event(Row(line, merged))


def test_every_column() -> None:
    event = read(
        event_id="0198F000-0000-7000-8000-00000000000A",
        event_type="Conversion",
        user_id="u1",
        cost="1.50",
        revenue=Decimal("1234567.890123"),
        conversions="0.4",
        region="Москва",
        position=3,
    )
    assert event.event_id == "0198f000-0000-7000-8000-00000000000a"
    assert event.event_time.ToDatetime(tzinfo=UTC) == datetime(2026, 1, 31, 9, 0, 0, 123456, UTC)
    assert event.event_type == event_pb2.EVENT_TYPE_CONVERSION
    assert (event.cost_micros, event.revenue_micros, event.conversions_micros) == (
        1_500_000,
        1_234_567_890_123,
        400_000,
    )
    assert event.user_id == "u1"
    assert dict(event.attributes) == {"region": "Москва", "position": "3"}


def test_absent_columns_stay_absent() -> None:
    event = read()
    assert not event.HasField("user_id")
    assert not event.HasField("conversions_micros")
    assert not event.attributes


def test_derived_ids_depend_on_file_line_and_type_only() -> None:
    assert read(line=2).event_id == read(line=2, cost="5").event_id == derived_id("abc", 2, event_pb2.EVENT_TYPE_CLICK)
    ids = {read(line=2).event_id, read(line=3).event_id, read(line=2, event_type="impression").event_id}
    assert len(ids) == 3
    assert {UUID(text).version for text in ids} == {5}


@pytest.mark.parametrize(
    ("value", "micros"),
    [("0", 0), ("1.500000", 1_500_000), (" 2 ", 2_000_000), (0.1, 100_000), (3, 3_000_000), ("1e-6", 1)],
)
def test_amounts_are_exact(value: Any, micros: int) -> None:
    assert to_micros(value) == micros


@pytest.mark.parametrize("value", ["", "abc", "nan", "inf", "1.0000001", "1e30", "1,5", 1e-7, True, "9" * 60])
def test_amounts_are_never_rounded(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        to_micros(value)


def test_times_without_a_zone_need_one_named() -> None:
    with pytest.raises(BadRow, match="time zone"):
        read(event_time="2026-01-31T12:00:00")
    event = read(ZoneInfo("Europe/Moscow"), event_time="2026-01-31 12:00:00")
    assert event.event_time.ToDatetime(tzinfo=UTC).hour == 9
    assert read(event_time="2026-01-31T12:00:00.123456789Z").event_time.nanos == 123_456_000


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"event_time": None}, "event_time: is missing"),
        ({"event_time": "yesterday"}, "event_time"),
        ({"event_type": "view"}, "event_type: is none of"),
        ({"campaign_id": "7"}, "campaign_id"),
        ({"campaign_id": None}, "campaign_id"),
        ({"event_id": "7"}, "event_id"),
        ({"cost": "-1"}, "cost_micros"),
        ({"cost": "much"}, "cost: is no decimal"),
        ({"conversions": "1"}, "conversions"),
        ({"user_id": "\udcff"}, "UTF-8"),
        ({"extra": {"nested": 1}}, "plain text"),
        ({"extra": "x" * 600}, "attributes"),
    ],
)
def test_bad_rows_say_why(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read(**values)
