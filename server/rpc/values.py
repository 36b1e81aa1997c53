"""Shared value conversions between messages and rows: money, times, days, etags, masks."""

from collections.abc import Collection, Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mrm.common.v1 import money_pb2
from server.rpc.errors import EtagMismatch, InvalidRequest

Resource = TypeVar("Resource", bound=Message)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def money(amount: Decimal | None, currency: str) -> money_pb2.Money | None:
    """A message for an amount of at most six decimals; None stays None, so that the field stays absent."""
    return None if amount is None else money_pb2.Money(currency_code=currency, micros=int(amount.scaleb(6)))


def amount(value: money_pb2.Money) -> Decimal:
    """The exact amount of a message in currency units."""
    return Decimal(value.micros).scaleb(-6)


def optional_amount(message: Message, field: str, currency: str) -> Decimal | None:
    """The amount in a Money field of a resource, None if the field is absent.

    Raises:
        InvalidRequest: The amount is negative or in another currency than the resource.
    """
    if not message.HasField(field):
        return None
    value: money_pb2.Money = getattr(message, field)
    path = f"{message.DESCRIPTOR.name.lower()}.{field}"
    if value.currency_code != currency:
        raise InvalidRequest.field(f"{path}.currency_code", "CURRENCY_MISMATCH", f"must be {currency}")
    if value.micros < 0:
        raise InvalidRequest.field(f"{path}.micros", "NEGATIVE_AMOUNT", "must not be negative")
    return amount(value)


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A message for an instant; None stays None."""
    if moment is None:
        return None
    # A fifth of what FromDatetime takes; a row has several.
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86400 + since.seconds, nanos=since.microseconds * 1000)


def moment(stamp: Timestamp) -> datetime:
    """The instant of a message, in UTC.

    Raises:
        InvalidRequest: It is beyond the calendar, which the rules of protos cannot say.
    """
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest("a time of the request is not within the years 1 to 9999") from None


def day(text: str, field: str) -> date | None:
    """The calendar day in an ISO 8601 text, None for an empty one.

    Raises:
        InvalidRequest: There is no such day.
    """
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest.field(field, "DATE_INVALID", "is not a day of the calendar") from None


def json_of(message: Message, field: str) -> dict[str, Any]:
    """A message as plain JSON.

    Args:
        message: The message, for example a Struct.
        field: Its path in the request.

    Raises:
        InvalidRequest: It holds a number that JSON does not have, such as infinity.
    """
    try:
        return MessageToDict(message, preserving_proto_field_name=True)
    except (ValueError, SerializeToJsonError):
        raise InvalidRequest.field(field, "NUMBER_INVALID", "holds a number that JSON does not have") from None


def time_zone(name: str, field: str) -> ZoneInfo:
    """A time zone by IANA name, if its days can be cut out of UTC hours.

    Raises:
        InvalidRequest: The zone is unknown, or was off UTC by a part of an hour at some time since 2000.
    """
    try:
        zone = ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InvalidRequest.field(
            field, "TIME_ZONE_UNKNOWN", "is not an IANA time zone", error_reason="TIME_ZONE_UNSUPPORTED"
        ) from None
    if not _has_whole_hours(zone):
        raise InvalidRequest.field(
            field,
            "TIME_ZONE_NOT_WHOLE_HOURS",
            "has days that do not begin at a full UTC hour",
            error_reason="TIME_ZONE_UNSUPPORTED",
        )
    return zone


@lru_cache
def _has_whole_hours(zone: ZoneInfo) -> bool:
    noons = (datetime(year, month, 1, 12, tzinfo=zone) for year in range(2000, 2038) for month in (1, 4, 7, 10))
    return all((noon.utcoffset() or timedelta()) % timedelta(hours=1) == timedelta() for noon in noons)


def optional_id(value: str) -> UUID | None:
    """The UUID in a text that validation let through, None for an empty one."""
    return UUID(value) if value else None


def required_id(value: str, field: str) -> UUID:
    """The UUID in a text.

    Raises:
        InvalidRequest: The text is no UUID.
    """
    try:
        return UUID(value)
    except ValueError:
        raise InvalidRequest.field(field, "STRING_UUID", "must be a valid UUID") from None


def etag(revision: int) -> str:
    """The etag of a row's revision."""
    return f"r{revision}"


def check_etag(given: str, revision: int) -> None:
    """Raises EtagMismatch if the caller names another state than the present one; an empty etag matches all."""
    if given and given != etag(revision):
        raise EtagMismatch


def apply_mask(
    current: Resource, wanted: Resource, mask: FieldMask, writable: Collection[str], resource: str
) -> Resource:
    """The current resource with the masked fields of the wanted one.

    Args:
        current: The resource as stored; it is not changed.
        wanted: The resource of the request.
        mask: Fields to take over; ``*`` means every writable one.
        writable: Top-level fields that may be named.
        resource: Name of the resource field in the request, for error paths.

    Raises:
        InvalidRequest: The mask is empty, names an unknown field or one that is not writable.
    """
    paths = sorted(writable) if list(mask.paths) == ["*"] else list(mask.paths)
    if not paths:
        raise InvalidRequest.field("update_mask", "MASK_EMPTY", "names no field")
    for path in paths:
        top = path.partition(".")[0]
        if top not in current.DESCRIPTOR.fields_by_name:
            raise InvalidRequest.field("update_mask", "FIELD_UNKNOWN", f"{resource} has no field {path[:60]!r}")
        if top not in writable:
            raise InvalidRequest.field("update_mask", "FIELD_NOT_WRITABLE", f"{resource}.{top} cannot be changed")
    cleaned = FieldMask(paths=paths)
    if not cleaned.IsValidForDescriptor(current.DESCRIPTOR):  # type: ignore[arg-type]
        raise InvalidRequest.field("update_mask", "FIELD_UNKNOWN", f"names a field that {resource} does not have")
    merged = type(current)()
    merged.CopyFrom(current)
    for path in paths:
        _clear(merged, path)
    cleaned.MergeMessage(wanted, merged, replace_message_field=True, replace_repeated_field=True)
    return merged


def check_read_mask(mask: FieldMask, resource: type[Message]) -> None:
    """Raises InvalidRequest if a mask names a field that the resource does not have."""
    if not mask.IsValidForDescriptor(resource.DESCRIPTOR):  # type: ignore[arg-type]
        raise InvalidRequest.field(
            "read_mask", "FIELD_UNKNOWN", f"names a field that {resource.__name__} does not have"
        )


def masked(message: Resource, mask: FieldMask) -> Resource:
    """The fields of a message that a mask names; all of them if it names none."""
    if not mask.paths:
        return message
    part = type(message)()
    mask.MergeMessage(message, part)
    return part


def _clear(message: Message, path: str) -> None:
    """Empties a field, so that an absent value in the request means absent."""
    head, _, rest = path.partition(".")
    if rest:
        _clear(getattr(message, head), rest)
    else:
        message.ClearField(head)


class EnumWords:
    """Translates between the values of a proto enum and the lower-case words that rows hold.

    Args:
        enum: The generated enum.
        prefix: What its value names begin with, such as ``CLIENT_TYPE_``.
    """

    def __init__(self, enum: Any, prefix: str) -> None:
        self._words: dict[int, str] = {
            number: name.removeprefix(prefix).lower()
            for name, number in enum.items()
            if not name.endswith("UNSPECIFIED")
        }
        self._numbers = {word: number for number, word in self._words.items()}

    def word(self, number: int) -> str:
        """The word of a value that validation let through."""
        return self._words[number]

    def optional_word(self, number: int) -> str | None:
        """The word of a value, None for the unspecified one."""
        return self._words.get(number)

    def optional_words(self, numbers: Iterable[int]) -> list[str] | None:
        """The words of several values, None for none at all: no filter."""
        return [self._words[number] for number in numbers] or None

    def number(self, word: str) -> Any:
        """The value of a word; the unspecified one for a word that this contract does not know yet."""
        return self._numbers.get(word, 0)
