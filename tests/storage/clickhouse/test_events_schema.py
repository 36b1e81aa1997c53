"""The schema that ClickHouse reads events by is the contract's, and the statement keeps one batch one block."""

import re
from uuid import UUID

from google.protobuf.descriptor import FieldDescriptor

from mrm.statistics.v1 import event_pb2
from storage.clickhouse import events
from storage.clickhouse.pseudonyms import Salt

_FIELD = re.compile(r"^  (optional )?(map<string, string>|\w+) (\w+) = (\d+);$", re.MULTILINE)
_TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_INT32: "int32",
    # Read as a number and checked as one; an enum would be cut to 8 bits first.
    FieldDescriptor.TYPE_ENUM: "int32",
}


def _type(field: FieldDescriptor) -> str:
    if field.message_type is None:
        return _TYPES[field.type]
    if field.message_type.GetOptions().map_entry:
        key, value = (_type(field.message_type.fields_by_name[name]) for name in ("key", "value"))
        return f"map<{key}, {value}>"
    return str(field.message_type.name)


def _optional(field: FieldDescriptor) -> str:
    return "optional" if field.has_presence and field.message_type is None else ""


def _written(message: str) -> set[tuple[str, str, str, int]]:
    text = re.search(rf"message {message} {{\n(.*?)\n}}", events.PROTOBUF_SCHEMA, re.DOTALL)
    assert text is not None
    found = _FIELD.findall(text[1])
    assert len(found) == len(text[1].splitlines())
    return {(optional.strip(), kind, name, int(number)) for optional, kind, name, number in found}


def test_the_schema_is_that_of_the_contract() -> None:
    event = event_pb2.Event.DESCRIPTOR
    for message in (event, event.fields_by_name["event_time"].message_type):
        assert message is not None
        declared = {
            (
                "optional" if field.has_presence and field.message_type is None else "",
                _type(field),
                field.name,
                field.number,
            )
            for field in message.fields
        }
        assert _written(message.name) == declared


def test_the_batch_is_a_list_of_events_and_nothing_else() -> None:
    fields = event_pb2.EventBatch.DESCRIPTOR.fields
    assert [(field.name, field.number) for field in fields] == [("events", 1)]
    assert fields[0].is_repeated
    assert fields[0].message_type is event_pb2.Event.DESCRIPTOR


def test_all_columns_of_the_input_are_fields_of_the_schema() -> None:
    names = re.findall(r"(?:^|, )([a-z_]+) [A-Z]", re.sub(r"\([^()]*(\([^()]*\))?[^()]*\)", "", events._INPUT))
    assert names == [field.name for field in event_pb2.Event.DESCRIPTOR.fields]


def test_the_body_is_the_statement_and_behind_it_length_and_batch() -> None:
    batch = b"\x0a\x00" * 100
    client_id = UUID("0190c8f0-0000-7000-8000-000000000001")
    body = events.insert_body("mrm", client_id, batch, events.Bounds(1, 2), Salt(1, 2), 30.0)
    head, _, data = body.partition(b"FORMAT ProtobufList\n")
    assert data == b"\xc8\x01" + batch
    assert str(client_id).encode() in head
    assert b"BETWEEN 1 AND 2 " in head
    for setting in (b"async_insert = 0", b"insert_deduplicate = 0", b"materialized_views_ignore_errors = 0"):
        assert setting in head


def test_groups_are_batches_with_their_scope_last() -> None:
    clients = [UUID(int=number) for number in (1, 2)]
    groups = [events.Group(client_id, b"\x0a\x00" * 2, Salt(1, 2)) for client_id in clients]
    body = events.group_body("mrm", groups, events.Bounds(1, 2), 30.0)
    head, _, data = body.partition(b"FORMAT ProtobufList\n")
    assert data == b"\x10" + b"".join(b"\x0a\x06" + b"\x0a\x00" * 2 + b"\x10" + scope for scope in (b"\x01", b"\x02"))
    assert f"arrayElement([toUUID('{clients[0]}'), toUUID('{clients[1]}')], scope)".encode() in head
    assert b"scope NOT BETWEEN 1 AND 2" in head
    # Nothing that only the statement for one batch has.
    assert head.replace(b"input('events", b"").count(b"input(") == 0


def test_lengths_are_varints() -> None:
    assert [events._varint(number) for number in (0, 127, 128, 300, 2**32)] == [
        b"\x00",
        b"\x7f",
        b"\x80\x01",
        b"\xac\x02",
        b"\x80\x80\x80\x80\x10",
    ]
