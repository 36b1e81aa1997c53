"""What is recorded of a change: who, why, and which fields differ."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from uuid import UUID

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from server.rpc.call import AuditEntry, AuditRecorder, Principal
from storage.postgres import audit
from storage.postgres.audit import BY_CALL, REDACTED, Cause, Record
from storage.postgres.database import Transaction

# They differ with every change.
_BOOKKEEPING = frozenset({"etag", "update_time"})
# Shown as one value: nobody reads a currency apart from its amount.
_VALUE_PACKAGES = ("google.protobuf", "mrm.common.v1")
_STRUCT = "google.protobuf.Struct"
_PLAIN_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes changes.

    Attributes:
        kind: What acts.
        id: Which user or key; None for the service itself.
    """

    kind: Literal["user", "api_key", "system"]
    id: UUID | None

    @classmethod
    def of(cls, principal: Principal) -> "Actor":
        """The caller of an RPC."""
        return cls("user" if principal.kind == "user" else "api_key", principal.principal_id)


SYSTEM = Actor("system", None)
"""The service itself: its jobs, its command line."""


def recorder(
    keep: Callable[[Record], Awaitable[None]],
    actor: Actor,
    *,
    cause: Cause = BY_CALL,
    method: str = "",
    request_id: str = "",
) -> AuditRecorder:
    """What records changes.

    Args:
        keep: Given each record, for example `append_to` of the changes' transaction.
        actor: Who makes them.
        cause: Why.
        method: Full name of the RPC, if one was called.
        request_id: The call's request id.
    """

    async def record(entry: AuditEntry) -> None:
        await keep(
            Record(
                actor_kind=actor.kind,
                actor_id=actor.id,
                action=entry.action,
                resource_type=entry.resource_type,
                resource_id=entry.resource_id,
                method=method,
                request_id=request_id,
                client_id=entry.client_id,
                project_id=entry.project_id,
                diff=audit_diff(entry.before, entry.after),
                cause=cause,
            )
        )

    return record


def append_to(tx: Transaction, announce: Callable[[], None] | None = None) -> Callable[[Record], Awaitable[None]]:
    """Appends each record at once.

    Args:
        tx: The transaction of the changes.
        announce: Told after the commit that there are new records.
    """

    async def append(record: Record) -> None:
        await audit.append(tx, record)
        if announce is not None:
            tx.after_commit(as_callback(announce))

    return append


def as_callback(announce: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    """What a transaction can be given to do after its commit."""

    async def announced() -> None:
        announce()

    return announced


def is_secret(field: FieldDescriptor) -> bool:
    """Whether the contract marks a field as a secret."""
    return bool(field.GetOptions().debug_redact)


def audit_diff(before: Message | None, after: Message | None) -> dict[str, Any]:
    """Fields of a resource that differ: path to ``[before, after]`` in JSON form, or to `REDACTED` for a secret.

    A field that is empty, or whose resource is missing, counts as None.
    """
    changes: dict[str, Any] = {}
    _compare(before, after, "", changes)
    return {path: changes[path] for path in sorted(changes)}


def _compare(before: Message | None, after: Message | None, prefix: str, changes: dict[str, Any]) -> None:
    old = {} if before is None else dict(before.ListFields())
    new = {} if after is None else dict(after.ListFields())
    for field in old | new:
        was, now = old.get(field), new.get(field)
        if was == now or (not prefix and field.name in _BOOKKEEPING):
            continue
        path = prefix + field.name
        if is_secret(field):
            changes[path] = REDACTED
        elif _has_parts(field):
            _compare(was, now, f"{path}.", changes)
        else:
            pair = _json(before, field) if was is not None else None, _json(after, field) if now is not None else None
            if _is_keyed(field):
                _compare_keys(*pair, f"{path}.", changes)
            else:
                changes[path] = list(pair)


def _compare_keys(before: Any, after: Any, prefix: str, changes: dict[str, Any]) -> None:
    old, new = before or {}, after or {}
    for key in old | new:
        if old.get(key) != new.get(key):
            name = key if _PLAIN_NAME.match(key) else f"`{key}`"
            changes[prefix + name] = [old.get(key), new.get(key)]


def _has_parts(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and not field.is_repeated and kind.file.package not in _VALUE_PACKAGES


def _is_keyed(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and (kind.GetOptions().map_entry or (kind.full_name == _STRUCT and not field.is_repeated))


def _json(message: Message | None, field: FieldDescriptor) -> Any:
    """One field of a message in JSON form, without the secrets in it."""
    assert message is not None
    only = type(message)()
    if field.is_repeated:
        getattr(only, field.name).MergeFrom(getattr(message, field.name))
    elif field.message_type is not None:
        getattr(only, field.name).CopyFrom(getattr(message, field.name))
    else:
        setattr(only, field.name, getattr(message, field.name))
    if field.message_type is not None and _holds_secrets(field.message_type):
        _strip(only)
    return MessageToDict(only, preserving_proto_field_name=True).get(field.name)


@lru_cache(maxsize=1024)
def _holds_secrets(kind: Descriptor) -> bool:
    seen: set[str] = set()
    waiting = [kind]
    while waiting:
        current = waiting.pop()
        if current.full_name in seen:
            continue
        seen.add(current.full_name)
        for field in current.fields:
            if is_secret(field):
                return True
            if field.message_type is not None:
                waiting.append(field.message_type)
    return False


def _strip(message: Message) -> None:
    for field, value in message.ListFields():
        if is_secret(field):
            message.ClearField(field.name)
        elif field.message_type is None:
            continue
        elif field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for each in value.values():
                    _strip(each)
        else:
            for each in value if field.is_repeated else [value]:
                _strip(each)
