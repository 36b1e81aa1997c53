"""Conditions on the scalar fields of a collection, as expressions that Milvus reads.

Templates with parameters would do the same, but the embedded engine does not know them. So values are written out here
and nowhere else, each by its type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

Value = str | int | UUID

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_ESCAPED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition; made by the functions of this module only.

    Attributes:
        expression: What Milvus reads.
    """

    expression: str


def equal(field: str, value: Value) -> Condition:
    """The field has this value."""
    return Condition(f"{_name(field)} == {literal(value)}")


def within(field: str, least: int | None = None, most: int | None = None) -> Condition | None:
    """The field is a number in a range, both ends included; None if neither end is given."""
    parts = [Condition(f"{_name(field)} >= {literal(least)}")] if least is not None else []
    parts += [Condition(f"{_name(field)} <= {literal(most)}")] if most is not None else []
    return every(parts) if parts else None


def one_of(field: str, values: Iterable[Value]) -> Condition:
    """The field has one of these values; nothing has one of none."""
    return Condition(f"{_name(field)} in [{', '.join(literal(value) for value in values)}]")


def holds_any(field: str, values: Sequence[Value]) -> Condition:
    """The field is a list with at least one of these values in it."""
    return Condition(f"array_contains_any({_name(field)}, [{', '.join(literal(value) for value in values)}])")


def holds_all(field: str, values: Sequence[Value]) -> Condition:
    """The field is a list with all of these values in it."""
    return Condition(f"array_contains_all({_name(field)}, [{', '.join(literal(value) for value in values)}])")


def every(conditions: Iterable[Condition]) -> Condition:
    """All of the conditions hold; there must be one at least."""
    return _joined(conditions, "and")


def either(conditions: Iterable[Condition]) -> Condition:
    """One of the conditions holds; there must be one at least."""
    return _joined(conditions, "or")


def after(field: str, value: str) -> Condition:
    """The field comes after this value in the order of text."""
    return Condition(f"{_name(field)} > {literal(value)}")


def literal(value: Value) -> str:
    """A value as an expression holds it.

    Raises:
        TypeError: It is of a type that no field has.
    """
    if isinstance(value, UUID):
        return f'"{value}"'
    if isinstance(value, str):
        # What is left of control characters no expression can hold, and no field either.
        return '"' + "".join(each for each in value if each.isprintable() or each in "\n\r\t").translate(_ESCAPED) + '"'
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"no field holds a {type(value).__name__}")


def _joined(conditions: Iterable[Condition], word: str) -> Condition:
    parts = [each.expression for each in conditions]
    if not parts:
        raise ValueError("no condition")
    return Condition(parts[0] if len(parts) == 1 else f" {word} ".join(f"({part})" for part in parts))


def _name(field: str) -> str:
    if not _NAME.fullmatch(field):
        raise ValueError("not the name of a field")
    return field
