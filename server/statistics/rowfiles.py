"""Files of rows, Parquet or Arrow IPC, as messages of the contract. Everything here blocks: it belongs on a thread."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from mrm.statistics.v1 import event_pb2, snapshot_pb2, statistics_service_pb2
from server.rpc import validation
from server.rpc.errors import Violation
from server.statistics import batches
from server.statistics.event_ids import EVENT_TYPES, derived_id

CHUNK_ROWS = 5000
# As of any batch that is sent here: it must stay one block of ClickHouse.
MOST_BYTES = 3 * 2**20
_PARQUET, _ARROW = b"PAR1", b"ARROW1"
_READ_BUFFER = 1 << 20
_HEAD = struct.Struct("<II")
_TICKS = {"s": 1_000_000, "ms": 1000, "us": 1}
_DELIVERY = ("impressions", "clicks", "cost_micros")
_OUTCOME = ("conversions_micros", "revenue_micros")
_INT64 = range(-(2**63), 2**63)


class FileFault(Exception):
    """The file as a whole cannot be imported.

    Attributes:
        violations: Why.
    """

    def __init__(self, *violations: Violation) -> None:
        super().__init__("the file cannot be imported")
        self.violations = violations


class RowFault(FileFault):
    """One row of a file is at fault."""


@dataclass(slots=True)
class Chunk:
    """Some rows of a file as messages.

    Attributes:
        first_row: Number of its first row in the file, from 0.
        rows: How many they are.
        batches: The messages, serialized, in batches of a size that can be stored at once: count and bytes.
        campaigns: Campaigns that the rows name, each with the first row that does.
        violations: What is wrong with them.
    """

    first_row: int
    rows: int
    batches: list[tuple[int, bytes]] = field(default_factory=list)
    campaigns: dict[UUID, int] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)


class RowReader(Protocol):
    """Makes messages of rows."""

    columns: Mapping[str, str]
    """Column to its kind: text, integer, time, day or map."""
    required: Sequence[str]
    """Columns that must be there."""
    groups: Sequence[Sequence[str]]
    """Columns that are there together or not at all."""

    def message(self, row: int, values: Mapping[str, Any]) -> tuple[bytes, str]:
        """A row as one element of its serialized list, and its campaign; raises RowFault if it is no message."""


class RowFile:
    """A file of rows on this machine.

    Args:
        path: The file.
        reader: What its rows are.

    Attributes:
        total: Rows of the file.

    Raises:
        FileFault: It is damaged or of no known format, or its columns are not those of the reader.
    """

    def __init__(self, path: Path, reader: RowReader) -> None:
        # Imported here: most server processes never need its 40 MB.
        import pyarrow as pa

        self._reader = reader
        with path.open("rb") as file:
            magic = file.read(len(_ARROW))
        try:
            if magic[:4] == _PARQUET:
                self.total, schema, self._batches = _open_parquet(path)
            elif magic == _ARROW:
                self.total, schema, self._batches = _open_arrow(path)
            else:
                raise FileFault(Violation("key", "FORMAT", "is neither a Parquet nor an Arrow IPC file"))
        except (pa.ArrowException, OSError):
            raise _damaged() from None
        _check_columns(schema, reader)

    def chunks(self) -> Iterator[Chunk]:
        """The rows from the beginning; raises FileFault where the file is damaged."""
        import pyarrow as pa

        first = 0
        try:
            for batch in self._batches:
                # A file may lie about its own offsets and encodings.
                batch.validate(full=True)
                for start in range(0, batch.num_rows, CHUNK_ROWS):
                    part = batch.slice(start, CHUNK_ROWS)
                    yield self._chunk(first, part)
                    first += part.num_rows
        except (pa.ArrowException, OSError):
            raise _damaged() from None

    def _chunk(self, first: int, batch: Any) -> Chunk:
        chunk = Chunk(first, batch.num_rows)
        columns = {name: _values(batch.column(index)) for index, name in enumerate(batch.schema.names)}
        names = list(columns)
        pieces: list[bytes] = []
        size = 0
        for row, values in enumerate(zip(*columns.values(), strict=True), start=first):
            present = {name: value for name, value in zip(names, values, strict=True) if value is not None}
            try:
                data, campaign = self._reader.message(row, present)
            except RowFault as fault:
                chunk.violations += fault.violations
                continue
            chunk.campaigns.setdefault(UUID(campaign), row)
            if size + len(data) > MOST_BYTES:
                chunk.batches.append((len(pieces), b"".join(pieces)))
                pieces, size = [], 0
            pieces.append(data)
            size += len(data)
        if pieces:
            chunk.batches.append((len(pieces), b"".join(pieces)))
        return chunk


class EventRows:
    """Rows that are events.

    Args:
        sha256: Digest of the file, of which the ids of events without one are made.
        floor: Unix seconds before which events are refused.
    """

    columns: Mapping[str, str] = {
        "event_id": "text",
        "event_time": "time",
        "campaign_id": "text",
        "event_type": "text",
        "user_id": "text",
        "cost_micros": "integer",
        "revenue_micros": "integer",
        "conversions_micros": "integer",
        "attributes": "map",
    }
    required: Sequence[str] = ("event_time", "campaign_id", "event_type")
    groups: Sequence[Sequence[str]] = ()

    def __init__(self, sha256: str, floor: int) -> None:
        self._sha256 = sha256
        self._floor = floor

    def message(self, row: int, values: Mapping[str, Any]) -> tuple[bytes, str]:
        """See `RowReader`."""
        kind = EVENT_TYPES.get(values.get("event_type", ""))
        if kind is None:
            raise RowFault(fault_at(row, "event_type", "EVENT_TYPE", "is none of impression, click, conversion"))
        micros = values.get("event_time")
        if micros is None:
            raise RowFault(fault_at(row, "event_time", "REQUIRED", "is missing"))
        seconds, rest = divmod(micros, 1_000_000)
        if seconds > batches.SECONDS_MAX:
            raise RowFault(fault_at(row, "event_time", "TIME_OUT_OF_RANGE", "lies beyond the year 9999"))
        if seconds < self._floor:
            raise RowFault(
                fault_at(row, "event_time", "BEFORE_RAW_FLOOR", "lies before the raw floor: see GetFreshness")
            )
        event = event_pb2.Event(
            event_id=values.get("event_id", "").lower() or derived_id(self._sha256, row + 1, kind),
            campaign_id=values.get("campaign_id", "").lower(),
            event_type=kind,
        )
        try:
            event.event_time.seconds, event.event_time.nanos = seconds, rest * 1000
            for name in ("user_id", "cost_micros", "revenue_micros", "conversions_micros"):
                if name in values:
                    setattr(event, name, values[name])
            for name, value in values.get("attributes", ()):
                event.attributes[name] = value or ""
        except ValueError:
            raise RowFault(fault_at(row, "", "INT64", "holds a number beyond 64 bits")) from None
        _check_rules(row, event)
        return event_pb2.EventBatch(events=[event]).SerializeToString(), event.campaign_id


class SnapshotRows:
    """Rows that are snapshots of figures; as a list they are an `AppendMetricsRequest` without its other fields."""

    columns: Mapping[str, str] = {
        "campaign_id": "text",
        "hour": "time",
        "date": "day",
        **dict.fromkeys((*_DELIVERY, *_OUTCOME), "integer"),
    }
    required: Sequence[str] = ("campaign_id",)
    groups: Sequence[Sequence[str]] = (_DELIVERY, _OUTCOME)

    def message(self, row: int, values: Mapping[str, Any]) -> tuple[bytes, str]:
        """See `RowReader`."""
        if ("hour" in values) == ("date" in values):
            raise RowFault(fault_at(row, "hour", "BUCKET", "exactly one of hour and date must be there"))
        snapshot = snapshot_pb2.MetricsSnapshot(campaign_id=values.get("campaign_id", "").lower())
        try:
            if "date" in values:
                snapshot.date = values["date"].isoformat()
            else:
                seconds, rest = divmod(values["hour"], 1_000_000)
                snapshot.hour.CopyFrom(Timestamp(seconds=seconds, nanos=rest * 1000))
            for group, names in ((snapshot.delivery, _DELIVERY), (snapshot.outcome, _OUTCOME)):
                given = [name for name in names if name in values]
                for name in given:
                    setattr(group, name, values[name])
                if given and len(given) < len(names):
                    missing = next(name for name in names if name not in values)
                    raise RowFault(fault_at(row, missing, "REQUIRED", f"is missing beside {given[0]}"))
                if given:
                    group.SetInParent()
        except ValueError:
            raise RowFault(fault_at(row, "", "INT64", "holds a number beyond 64 bits")) from None
        _check_rules(row, snapshot)
        request = statistics_service_pb2.AppendMetricsRequest(snapshots=[snapshot])
        return request.SerializeToString(), snapshot.campaign_id


class Spool:
    """Batches of messages in a file, between checking and storing. Blocks.

    Args:
        path: The file; made by `write`.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("w+b")

    def write(self, batches: Sequence[tuple[int, bytes]]) -> None:
        """Appends batches."""
        for rows, data in batches:
            self._file.write(_HEAD.pack(rows, len(data)))
            self._file.write(data)

    def read(self) -> Iterator[tuple[int, bytes]]:
        """All batches from the beginning: rows and bytes of each."""
        self._file.seek(0)
        while head := self._file.read(_HEAD.size):
            rows, size = _HEAD.unpack(head)
            yield rows, self._file.read(size)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def fault_at(row: int, column: str, reason: str, description: str) -> Violation:
    """A fault of a row, counted from 0, or of one of its columns."""
    return Violation(f"rows[{row}].{column}" if column else f"rows[{row}]", reason, description)


def _check_rules(row: int, message: Message) -> None:
    """Raises RowFault if a row breaks rules of its message."""
    broken = validation.violations(message)
    if broken:
        raise RowFault(*(_located(row, each) for each in broken))


def _located(row: int, found: Violation) -> Violation:
    """A broken rule of a message by the column it came from."""
    column = "" if found.field == "request" else found.field
    for group in ("delivery.", "outcome."):
        column = column.removeprefix(group)
    return fault_at(row, column, found.reason, found.description)


def _damaged() -> FileFault:
    return FileFault(Violation("key", "DAMAGED", "the file is damaged or not whole"))


def _open_parquet(path: Path) -> tuple[int, Any, Iterator[Any]]:
    from pyarrow import parquet

    # Read page by page: a row group as a whole may be larger than memory.
    file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BUFFER, memory_map=False)
    return file.metadata.num_rows, file.schema_arrow, file.iter_batches(CHUNK_ROWS, use_threads=False)


def _open_arrow(path: Path) -> tuple[int, Any, Iterator[Any]]:
    import pyarrow as pa

    file = pa.ipc.open_file(pa.memory_map(str(path)))
    return file.count_rows(), file.schema, (file.get_batch(number) for number in range(file.num_record_batches))


def _check_columns(schema: Any, reader: RowReader) -> None:
    """Raises FileFault that names every column at fault."""
    violations = [
        Violation(f"columns.{name}", "COLUMN_DUPLICATE", "is there more than once")
        for name in sorted({name for name in schema.names if schema.names.count(name) > 1})
    ]
    for name in schema.names:
        kind = reader.columns.get(name)
        if kind is None:
            known = ", ".join(reader.columns)
            violations.append(Violation(f"columns.{name}", "COLUMN_UNKNOWN", f"is none of {known}"))
        elif not _is_kind(schema.field(schema.names.index(name)).type, kind):
            violations.append(Violation(f"columns.{name}", "COLUMN_TYPE", f"must hold {_KINDS[kind]}"))
    missing = set(reader.required) - set(schema.names)
    for group in reader.groups:
        given = set(group) & set(schema.names)
        missing |= set(group) - given if given else set()
    violations += [Violation(f"columns.{name}", "COLUMN_MISSING", "is missing") for name in sorted(missing)]
    if violations:
        raise FileFault(*violations)


_KINDS = {
    "text": "text",
    "integer": "integers",
    "time": "timestamps with a time zone",
    "day": "dates",
    "map": "maps of text to text",
}


def _is_kind(type_: Any, kind: str) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(type_):
        type_ = type_.value_type
    match kind:
        case "text":
            return bool(types.is_string(type_) or types.is_large_string(type_))
        case "integer":
            return bool(types.is_integer(type_))
        case "time":
            return bool(types.is_timestamp(type_) and type_.tz)
        case "day":
            return bool(types.is_date(type_))
        case _:
            return bool(types.is_map(type_) and _is_kind(type_.key_type, "text") and _is_kind(type_.item_type, "text"))


def _values(column: Any) -> list[Any]:
    """Python values of a column; instants as microseconds since 1970, finer digits cut."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_timestamp(column.type):
        values: list[Any] = column.to_pylist()
        return values
    unit = column.type.unit
    ticks = column.cast(pa.int64()).to_pylist()
    if unit == "ns":
        return [None if tick is None else tick // 1000 for tick in ticks]
    return [None if tick is None else tick * _TICKS[unit] for tick in ticks]
