"""Ids of events that their source gives none. The command line derives them too: nothing slow to load belongs here."""

from uuid import NAMESPACE_OID, uuid5

from mrm.statistics.v1 import event_pb2

EVENT_TYPES: dict[str, event_pb2.EventType.ValueType] = {
    "impression": event_pb2.EVENT_TYPE_IMPRESSION,
    "click": event_pb2.EVENT_TYPE_CLICK,
    "conversion": event_pb2.EVENT_TYPE_CONVERSION,
}
"""The types by their names in files of rows."""
_NAMES: dict[int, str] = {number: name for name, number in EVENT_TYPES.items()}


def derived_id(source: str, line: int, event_type: int) -> str:
    """The id of an event that its source gives none: the same for the same file, line and type, always.

    Args:
        source: SHA-256 of the file in hexadecimal.
        line: Line of the row, or its number, from 1.
        event_type: Its type; one row may stand for several events of different types.
    """
    return str(uuid5(NAMESPACE_OID, f"{source}:{line}:{_NAMES[event_type]}"))
