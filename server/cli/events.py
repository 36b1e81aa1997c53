"""From rows of a file to events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from google.protobuf import timestamp_pb2

from mrm.statistics.v1 import event_pb2
from server.cli.rows import Row
from server.rpc.validation import violations
from server.statistics.event_ids import derived_id

COLUMNS = ("event_id", "event_time", "campaign_id", "event_type", "user_id", "cost", "revenue", "conversions")

_TYPES: dict[str, event_pb2.EventType.ValueType] = {
    "impression": event_pb2.EVENT_TYPE_IMPRESSION,
    "click": event_pb2.EVENT_TYPE_CLICK,
    "conversion": event_pb2.EVENT_TYPE_CONVERSION,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# 50 digits hold every amount the contract allows; one that would be rounded is an error.
_EXACT = Context(prec=50, traps=[Inexact, InvalidOperation])
_MICROS = Decimal(1_000_000)
_LARGEST = Decimal(2**63 - 1)


class BadRow(Exception):
    """The row is no event; the text names the column and the reason."""


class EventReader:
    """Turns rows of one file into events that keep the contract."""

    def __init__(self, source: str, zone: ZoneInfo | None = None) -> None:
        """See `derived_id`.

        Args:
            source: SHA-256 of the file in hexadecimal.
            zone: Zone of times that name none; without it they are errors.
        """
        self._source = source
        self._zone = zone

    def event(self, row: Row) -> event_pb2.Event:
        """The event of a row, checked against the contract.

        Raises:
            BadRow: It is none.
        """
        event = self.unchecked(row)
        broken = violations(event)
        if broken:
            raise BadRow(f"{broken[0].field}: {broken[0].description}")
        return event

    def unchecked(self, row: Row) -> event_pb2.Event:
        """The event of a row that is known to keep the contract; cheaper than `event`."""
        if row.fault:
            raise BadRow(row.fault)
        values = row.values
        kind = _column(values, "event_type", _event_type)
        event = event_pb2.Event(
            event_id=str(values.get("event_id") or derived_id(self._source, row.line, kind)).lower(),
            event_time=_column(values, "event_time", self._time),
            campaign_id=str(values.get("campaign_id", "")).lower(),
            event_type=kind,
        )
        if "cost" in values:
            event.cost_micros = _column(values, "cost", to_micros)
        if "revenue" in values:
            event.revenue_micros = _column(values, "revenue", to_micros)
        if "conversions" in values:
            event.conversions_micros = _column(values, "conversions", to_micros)
        try:
            if "user_id" in values:
                event.user_id = _plain_text(values["user_id"])
            for name, value in values.items():
                if name not in COLUMNS:
                    event.attributes[name] = _plain_text(value)
        except ValueError:
            raise BadRow("a value is neither plain text nor a number, or is no UTF-8") from None
        return event

    def _time(self, value: Any) -> timestamp_pb2.Timestamp:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
        if moment.tzinfo is None:
            if self._zone is None:
                raise ValueError("names no time zone; pass --time-zone if all mean the same")
            moment = moment.replace(tzinfo=self._zone)
        since = moment - _EPOCH
        return timestamp_pb2.Timestamp(seconds=since.days * 86400 + since.seconds, nanos=since.microseconds * 1000)


def _column(values: Mapping[str, Any], name: str, parse: Callable[[Any], Any]) -> Any:
    if name not in values:
        raise BadRow(f"{name}: is missing")
    try:
        return parse(values[name])
    except (ValueError, OverflowError) as error:
        raise BadRow(f"{name}: {error}") from None


def _event_type(value: Any) -> event_pb2.EventType.ValueType:
    found = _TYPES.get(str(value).strip().lower().removeprefix("event_type_"))
    if found is None:
        raise ValueError("is none of impression, click, conversion")
    return found


def to_micros(value: Any) -> int:
    """An amount in millionths, exactly.

    Raises:
        ValueError: It is no number, too large, or has more than six decimals.
    """
    # The shortest text that a binary float stands for is what its writer meant.
    return _micros(repr(value) if isinstance(value, float) else str(value).strip())


@lru_cache(maxsize=10_000)
def _micros(text: str) -> int:
    try:
        micros = _EXACT.multiply(_EXACT.create_decimal(text), _MICROS)
        if not micros.is_finite() or abs(micros) > _LARGEST:
            raise ValueError("is no amount, or too large")
        if micros != micros.to_integral_value():
            raise ValueError("has more than six decimals")
    except (InvalidOperation, Inexact):
        raise ValueError("is no decimal number") from None
    return int(micros)


def _plain_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float | Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    raise ValueError
