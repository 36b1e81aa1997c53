"""Checks requests against the rules their protos declare (protovalidate)."""

from google.protobuf.message import Message
from protovalidate import Validator

from server.rpc.errors import InvalidRequest, Violation

_validator = Validator()


def violations(message: Message, prefix: str = "") -> list[Violation]:
    """All broken rules of a message; field paths start with `prefix`."""
    return [
        Violation(
            field=_path(found.proto.field, prefix),
            reason=(found.proto.rule_id or "invalid").upper().replace(".", "_"),
            description=found.proto.message or "is not valid",
        )
        for found in _validator.collect_violations(message)
    ]


def validate(message: Message, prefix: str = "") -> None:
    """Raises InvalidRequest that names every broken field."""
    found = violations(message, prefix)
    if found:
        raise InvalidRequest("; ".join(f"{v.field}: {v.description}" for v in found[:3]), violations=found)


def _path(field_path: object, prefix: str) -> str:
    parts = [prefix] if prefix else []
    for element in getattr(field_path, "elements", ()) or ():
        name = element.field_name
        subscript = element.subscript
        if subscript is not None:
            name += f"[{getattr(subscript, 'value', subscript)}]"
        parts.append(name)
    return ".".join(parts) or "request"
