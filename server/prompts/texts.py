r"""Texts of prompts: ``{{name}}`` stands for a variable, ``\{{`` for two plain braces; nothing else means anything.

There is nothing to run and so nothing to escape from. What is put in is never looked at again, so a value with braces
in it stays what it is.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, Final

from server.rpc.errors import InvalidRequest, Violation

LONGEST_TEXT: Final = 1_000_000
"""Most characters of a filled text: a few long values, put in many times, would come to gigabytes."""

_LARGEST_INTEGER: Final = 2**53
_MARK = re.compile(r"(?P<escape>\\\{\{)|\{\{\s*(?P<name>[a-z][a-z0-9_]{0,63})\s*\}\}|(?P<open>\{\{)")

Variable = Mapping[str, Any]
"""A declared variable as it is stored: ``name``, ``type`` and ``description``."""


def parts(template: str) -> Iterator[tuple[str, str]]:
    """The plain texts of a template, each with the name of the variable that follows; empty after the last.

    Raises:
        ValueError: Two braces begin no variable; holds their position.
    """
    plain, end = [], 0
    for mark in _MARK.finditer(template):
        plain.append(template[end : mark.start()])
        end = mark.end()
        if mark["open"]:
            raise ValueError(mark.start())
        if mark["escape"]:
            plain.append("{{")
            continue
        yield "".join(plain), mark["name"]
        plain = []
    yield "".join([*plain, template[end:]]), ""


def check(template: str, variables: Sequence[Variable], path: str) -> None:
    """Raises InvalidRequest unless a template names exactly the declared variables.

    Args:
        template: The text.
        variables: Those declared.
        path: Where both stand in the request.
    """
    try:
        named = {name for _, name in parts(template) if name}
    except ValueError as error:
        raise InvalidRequest.field(
            f"{path}.template",
            "BRACES_OPEN",
            rf"has two braces at character {error.args[0]} that begin no variable: write {{{{name}}}} or \{{{{",
        ) from None
    declared = [each["name"] for each in variables]
    broken = [
        Violation(f"{path}.template", "VARIABLE_UNDECLARED", f"names {name}, which is not declared")
        for name in sorted(named - set(declared))
    ]
    for number, name in enumerate(declared):
        field = f"{path}.variables[{number}].name"
        if name in declared[:number]:
            broken.append(Violation(field, "VARIABLE_TWICE", f"declares {name} again"))
        elif name not in named:
            broken.append(Violation(field, "VARIABLE_UNUSED", f"declares {name}, which the text does not name"))
    if broken:
        raise _refusal(broken)


def fill(template: str, variables: Sequence[Variable], values: Mapping[str, Any]) -> str:
    """A template with its variables put in.

    Args:
        template: A text that `check` let through.
        variables: Those declared.
        values: One for each, as plain JSON.

    Raises:
        InvalidRequest: One is missing, is not declared or has another type, or the text would become too long.
    """
    declared = {each["name"]: each["type"] for each in variables}
    broken = [
        _violation(name, "VARIABLE_MISSING", f"is missing: {declared[name]}") for name in declared.keys() - values
    ]
    broken += [_violation(name, "VARIABLE_UNKNOWN", "is not declared") for name in values.keys() - declared]
    texts: dict[str, str] = {}
    for name in declared.keys() & values.keys():
        text = _text(declared[name], values[name])
        if text is None:
            broken.append(_violation(name, "VARIABLE_TYPE", f"is not of type {declared[name]}"))
        else:
            texts[name] = text
    if broken:
        raise _refusal(sorted(broken, key=lambda each: each.field))
    pieces = [piece for plain, name in parts(template) for piece in (plain, texts[name] if name else "")]
    if sum(map(len, pieces)) > LONGEST_TEXT:
        raise InvalidRequest.field("variables", "TEXT_TOO_LONG", f"make a text of more than {LONGEST_TEXT} characters")
    return "".join(pieces)


def _text(kind: str, value: Any) -> str | None:
    """A value as it is put in; None if it is not of the kind."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "text" if isinstance(value, str):
            return value
        case "integer" if is_number and value == int(value) and abs(value) <= _LARGEST_INTEGER:
            return str(int(value))
        case "number" if is_number:
            return _plain(value)
        case "boolean" if isinstance(value, bool):
            return "true" if value else "false"
        case "date" if isinstance(value, str) and _is_day(value):
            return value
        case "json":
            return json.dumps(_whole(value), ensure_ascii=False, sort_keys=True)
        case _:
            return None


def _plain(value: float) -> str:
    text = f"{Decimal(repr(value)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _whole(value: Any) -> Any:
    """JSON whose whole numbers are written without a point."""
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_INTEGER:
        return int(value)
    return value


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _violation(name: str, reason: str, description: str) -> Violation:
    return Violation(f"variables.{name}", reason, description)


def _refusal(broken: Sequence[Violation]) -> InvalidRequest:
    told = "; ".join(f"{each.field}: {each.description}" for each in broken[:3])
    return InvalidRequest(told, violations=broken)
