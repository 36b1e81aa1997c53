# ruff: noqa: S608 - the statements are put together from constants of this package
"""Raw events: serialized batches go in as they came, ClickHouse itself parses and checks them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from storage.clickhouse import pseudonyms
from storage.clickhouse.connect import ClickHouse, ClickHouseError
from storage.clickhouse.pseudonyms import Salt
from storage.errors import StoreError

PROTOBUF_SCHEMA = """syntax = "proto3";
message Timestamp {
  int64 seconds = 1;
  int32 nanos = 2;
}
message Event {
  string event_id = 1;
  Timestamp event_time = 2;
  string campaign_id = 3;
  int32 event_type = 4;
  optional string user_id = 5;
  int64 cost_micros = 6;
  int64 revenue_micros = 7;
  optional int64 conversions_micros = 8;
  map<string, string> attributes = 9;
}
"""
"""Event and Timestamp of the contract, without package and imports, which ClickHouse cannot resolve.

`event_type` is a plain number here: read as an enum it would be cut to 8 bits before it is checked.
"""

GROUP_SCHEMA = (
    PROTOBUF_SCHEMA
    + """message Group {
  repeated Event events = 1;
  int32 scope = 2;
}
"""
)
"""Batches of several clients in one INSERT: a batch is the beginning of a Group, and its scope comes last."""

# What the fields of PROTOBUF_SCHEMA are read into. Ids come as text, or other spellings of a UUID would pass.
_FIELDS = {
    "event_id": "String",
    "event_time": "Tuple(seconds Int64, nanos Int32)",
    "campaign_id": "String",
    "event_type": "Int32",
    "user_id": "Nullable(String)",
    "cost_micros": "Int64",
    "revenue_micros": "Int64",
    "conversions_micros": "Nullable(Int64)",
    "attributes": "Map(LowCardinality(String), String)",
}
_INPUT = ", ".join(f"{name} {kind}" for name, kind in _FIELDS.items())
# The rows of one batch, and the rows of several: each group is a row with an array of events.
_BATCH_SOURCE = f"input('{_INPUT}')"
_GROUP_SOURCE = (
    f"(SELECT scope, {', '.join(f'item.{name} AS {name}' for name in _FIELDS)}"
    f" FROM input('events Array(Tuple({_INPUT})), scope Int32') ARRAY JOIN events AS item)"
)

# What is stored together must be one block, and so atomic in each partition: 16 MiB never unfold to this much.
_BLOCK_ROWS = 1_048_576
_BLOCK_BYTES = 256 * 2**20
_MEMORY_BYTES = 2**30

# The salts stand in the statement, so it is kept out of the server's log of queries.
_STATEMENT = """INSERT INTO {database}.campaign_events
(client_id, campaign_id, event_time, event_id, project_id, platform, event_type, user_id, cost, revenue, conversions,
 currency, attributes)
SELECT
    {client},
    campaign,
    fromUnixTimestamp64Micro(event_time.1 * 1000000 + intDiv(event_time.2, 1000), 'UTC'),
    event,
    known.2,
    known.3,
    CAST(event_type, 'Enum8(\\'impression\\' = 1, \\'click\\' = 2, \\'conversion\\' = 3)'),
    {pseudonym},
    reinterpret(cost_micros, 'Decimal64(6)'),
    reinterpret(revenue_micros, 'Decimal64(6)'),
    if(event_type = 3, reinterpret(ifNull(conversions_micros, 1000000), 'Decimal64(6)'), 0),
    known.4,
    attributes
FROM
(
    SELECT
        *,
        toUUID(event_id) AS event,
        toUUID(campaign_id) AS campaign,
        dictGet('{database}.campaigns_dict', ('client_id', 'project_id', 'platform', 'currency'), campaign) AS known
    FROM {source}
)
WHERE throwIf(known.1 != {client} OR {stray}, 'MRM_REJECT:campaign')
    + throwIf(
        event_time.1 NOT BETWEEN {lower} AND {upper} OR event_time.2 NOT BETWEEN 0 AND 999999999,
        'MRM_REJECT:time')
    + throwIf(
        length(event_id) != 36 OR length(campaign_id) != 36
        OR event = toUUID('00000000-0000-0000-0000-000000000000')
        OR event_type NOT BETWEEN 1 AND 3
        OR cost_micros NOT BETWEEN 0 AND 1000000000000000
        OR revenue_micros NOT BETWEEN 0 AND 1000000000000000
        OR isNotNull(conversions_micros)
            AND (event_type != 3 OR assumeNotNull(conversions_micros) NOT BETWEEN 0 AND 1000000000000),
        'MRM_REJECT:value')
    + throwIf(
        ifNull(lengthUTF8(user_id) > 128, 0)
        OR length(attributes) > 32
        OR arrayExists(key -> empty(key) OR lengthUTF8(key) > 64, mapKeys(attributes))
        OR arrayExists(value -> lengthUTF8(value) > 512, mapValues(attributes)),
        'MRM_REJECT:text')
    = 0
SETTINGS
    format_schema_source = 'string',
    format_schema = '{schema}',
    format_schema_message_name = '{message}',
    log_queries = 0,
    input_format_allow_errors_num = 0,
    input_format_allow_errors_ratio = 0,
    async_insert = 0,
    distributed_foreground_insert = 1,
    insert_deduplicate = 0,
    deduplicate_blocks_in_dependent_materialized_views = 0,
    materialized_views_ignore_errors = 0,
    optimize_on_insert = 0,
    max_threads = 1,
    max_insert_threads = 1,
    max_insert_block_size = {block_rows},
    min_insert_block_size_rows = {block_rows},
    min_insert_block_size_bytes = {block_bytes},
    max_partitions_per_insert_block = 0,
    max_memory_usage = {memory_bytes},
    max_execution_time = {seconds}
FORMAT ProtobufList
"""

# The codes with which reading the input fails, always before a row is written: CANNOT_PARSE_TEXT,
# CANNOT_PARSE_INPUT_ASSERTION_FAILED, ATTEMPT_TO_READ_AFTER_EOF, CANNOT_READ_ALL_DATA, INCORRECT_DATA,
# CANNOT_PARSE_UUID, PROTOBUF_BAD_CAST, UNKNOWN_PROTOBUF_FORMAT.
_PARSE_CODES = frozenset({6, 27, 32, 33, 117, 376, 436, 444})

_QUARANTINE_COLUMNS = {
    "client_id": "UUID",
    "campaign_id": "UUID",
    "event_time": "DateTime64(6, 'UTC')",
    "event_id": "UUID",
    "reason": "Enum8('too_old' = 1, 'in_future' = 2)",
    "event": "String",
}
# What DateTime64 can hold: the years 1900 to 2299.
_TIME_MIN_MICROS = -2_208_988_800_000_000
_TIME_MAX_MICROS = 10_413_791_999_999_999


class BatchRejected(StoreError):
    """ClickHouse found a fault in a batch and stored nothing of it.

    Attributes:
        kind: ``campaign``, ``time``, ``value``, ``text`` or ``parse``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"batch rejected: {kind}")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Bounds:
    """Event times that count, in whole seconds of Unix time, both included."""

    lower: int
    upper: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An event put aside because of its time.

    Attributes:
        event_time: Microseconds of Unix time.
        reason: ``too_old`` or ``in_future``.
        event: The event as serialized.
    """

    campaign_id: UUID
    event_time: int
    event_id: UUID
    reason: str
    event: bytes


@dataclass(frozen=True, slots=True)
class Group:
    """What one client has in an INSERT that several share.

    Attributes:
        client_id: The client whose campaigns the events must belong to.
        batch: A serialized list of events, known to be well-formed: else it could swallow the next group.
        salt: Key of the client's pseudonyms.
    """

    client_id: UUID
    batch: bytes
    salt: Salt


def insert_body(database: str, client_id: UUID, batch: bytes, bounds: Bounds, salt: Salt, timeout: float) -> bytes:
    """The whole INSERT: statement, settings, and the batch behind its length.

    Args:
        database: Where the tables are.
        client_id: The client whose campaigns the events must belong to.
        batch: A serialized list of events, known to be well-formed.
        bounds: Event times to accept.
        salt: Key of the client's pseudonyms.
        timeout: Seconds after which the server gives up.
    """
    statement = _statement(
        database,
        bounds,
        timeout,
        client=_uuid(client_id),
        stray="0",
        pseudonym=pseudonyms.expression(f"toUInt64({salt.first})", f"toUInt64({salt.second})"),
        source=_BATCH_SOURCE,
        schema=PROTOBUF_SCHEMA,
        message="Event",
    )
    return b"".join((statement, _varint(len(batch)), batch))


def group_body(database: str, groups: Sequence[Group], bounds: Bounds, timeout: float) -> bytes:
    """As `insert_body` for several clients: each event must belong to the client of its own group."""
    data: list[bytes] = []
    for scope, group in enumerate(groups, 1):
        # Of a field that occurs twice the last one counts, so a scope that a producer forged would lose.
        own = b"\x10" + _varint(scope)
        data += (b"\x0a", _varint(len(group.batch) + len(own)), group.batch, own)
    statement = _statement(
        database,
        bounds,
        timeout,
        client=_by_scope(_uuid(group.client_id) for group in groups),
        # Outside the array an element reads as the nil id, which is also what an unknown campaign's client reads as.
        stray=f"scope NOT BETWEEN 1 AND {len(groups)}",
        pseudonym=pseudonyms.expression(
            _by_scope(f"toUInt64({group.salt.first})" for group in groups),
            _by_scope(f"toUInt64({group.salt.second})" for group in groups),
        ),
        source=_GROUP_SOURCE,
        schema=GROUP_SCHEMA,
        message="Group",
    )
    return b"".join((statement, _varint(sum(map(len, data))), *data))


async def insert(db: ClickHouse, client_id: UUID, batch: bytes, bounds: Bounds, salt: Salt, *, timeout: float) -> None:
    """Stores all events of a batch, and returns once they are durable. Doing it again changes nothing.

    Raises:
        BatchRejected: Some event is at fault; nothing is stored.
        StoreError: It is not known whether anything is stored: do it again. So it is after TimeoutError.
    """
    await _send(db, insert_body(db.database, client_id, batch, bounds, salt, timeout), timeout)


async def insert_groups(db: ClickHouse, groups: Sequence[Group], bounds: Bounds, *, timeout: float) -> None:
    """Stores the batches of several clients at once; raises as `insert`, for all of them together."""
    await _send(db, group_body(db.database, groups, bounds, timeout), timeout)


async def _send(db: ClickHouse, body: bytes, timeout: float) -> None:
    try:
        await db.insert_statement(body, timeout=timeout)
    except ClickHouseError as error:
        if error.rejection is not None:
            raise BatchRejected(error.rejection) from None
        if error.code in _PARSE_CODES:
            raise BatchRejected("parse") from None
        raise


async def quarantine(db: ClickHouse, client_id: UUID, events: Sequence[Quarantined], *, timeout: float) -> None:
    """Puts events aside. They count in no figure; doing it again changes nothing."""
    rows = [
        (
            client_id,
            event.campaign_id,
            min(max(event.event_time, _TIME_MIN_MICROS), _TIME_MAX_MICROS),
            event.event_id,
            event.reason,
            event.event,
        )
        for event in events
    ]
    await db.insert_rows("campaign_events_quarantine", _QUARANTINE_COLUMNS, rows, timeout=timeout)


def _statement(database: str, bounds: Bounds, timeout: float, **parts: str) -> bytes:
    return _STATEMENT.format(
        database=database,
        lower=bounds.lower,
        upper=bounds.upper,
        block_rows=_BLOCK_ROWS,
        block_bytes=_BLOCK_BYTES,
        memory_bytes=_MEMORY_BYTES,
        seconds=int(timeout) + 1,
        **parts,
    ).encode()


def _uuid(value: UUID) -> str:
    return f"toUUID('{value}')"


def _by_scope(values: Iterable[str]) -> str:
    return f"arrayElement([{', '.join(values)}], scope)"


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
