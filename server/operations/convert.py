"""Rows of the operations domain as messages."""

from typing import Any

from google.protobuf import json_format, struct_pb2

from mrm.operations.v1 import change_pb2
from server.rpc.values import EnumWords, timestamp
from storage.postgres.audit import REDACTED
from storage.postgres.changes import Change

ACTOR_KINDS = EnumWords(change_pb2.ChangeActorKind, "CHANGE_ACTOR_KIND_")
CAUSE_KINDS = EnumWords(change_pb2.ChangeCauseKind, "CHANGE_CAUSE_KIND_")


def change(row: Change) -> change_pb2.Change:
    """An entry of the record."""
    return change_pb2.Change(
        change_id=str(row.seq),
        change_time=timestamp(row.at),
        actor=change_pb2.ChangeActor(kind=ACTOR_KINDS.number(row.actor_kind), actor_id=_text(row.actor_id)),
        cause=change_pb2.ChangeCause(
            kind=CAUSE_KINDS.number(row.cause_kind), cause_id=row.cause_id, description=row.cause
        ),
        action=row.action,
        resource_type=row.resource_type,
        resource_id=row.resource_id,
        client_id=_text(row.client_id),
        project_id=_text(row.project_id),
        method=row.method,
        request_id=row.request_id,
        fields=[_field(path, pair) for path, pair in sorted(row.diff.items())],
    )


def _field(path: str, pair: Any) -> change_pb2.FieldChange:
    if pair is REDACTED:
        return change_pb2.FieldChange(path=path, redacted=True)
    before, after = pair
    return change_pb2.FieldChange(path=path, before=_value(before), after=_value(after))


def _value(plain: Any) -> struct_pb2.Value | None:
    return None if plain is None else json_format.ParseDict(plain, struct_pb2.Value())


def _text(value: object | None) -> str:
    return "" if value is None else str(value)
