"""Reads what platforms answer: every field is looked at before it is believed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from server.platforms.http import whole
from server.platforms.interface import Amount, Malformed, from_micros

_LARGEST = Decimal(10) ** 12
_NUMBER = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,19})?")
_SMALLEST_UNIT = Decimal("0.000001")


def items(holder: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A list of objects; empty if it is not there.

    Raises:
        Malformed: It is something else.
    """
    found = holder.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Malformed(f"{name} is no list of objects")
    return found


def part(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside another; empty if it is not there.

    Raises:
        Malformed: It is something else.
    """
    found = holder.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Malformed(f"{name} is no object")
    return found


def text(holder: Mapping[str, Any], name: str) -> str:
    """A text; empty if it is not there or something else."""
    found = holder.get(name)
    return found if isinstance(found, str) else ""


def identity(holder: Mapping[str, Any], name: str) -> str:
    """A platform's id, a positive number that may come as text.

    Raises:
        Malformed: It is not there or none.
    """
    number = whole(holder.get(name))
    if number is None or number <= 0:
        raise Malformed(f"{name} is no id")
    return str(number)


def count(value: object, name: str) -> int:
    """A count, which is never negative.

    Raises:
        Malformed: It is none.
    """
    number = whole(value)
    if number is None or number < 0:
        raise Malformed(f"{name} is no count")
    return number


def decimal(value: object, name: str) -> Decimal:
    """A number with or without a point, also as text, cut to millionths.

    Raises:
        Malformed: It is none, or beyond all measure.
    """
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        raise Malformed(f"{name} is no number")
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        raise Malformed(f"{name} is no number")
    number = Decimal(value)
    if not number.is_finite() or abs(number) >= _LARGEST:
        raise Malformed(f"{name} is beyond measure")
    return number.quantize(_SMALLEST_UNIT)


def money_micros(value: object, name: str, currency: str, vat: bool | None) -> Amount:
    """An amount in millionths.

    Raises:
        Malformed: It is none.
    """
    number = whole(value)
    if number is None or abs(number) >= _LARGEST.scaleb(6):
        raise Malformed(f"{name} is no amount")
    return Amount(from_micros(number), currency, vat)


def money_decimal(value: object, name: str, currency: str, vat: bool | None) -> Amount:
    """An amount with a decimal point.

    Raises:
        Malformed: It is none.
    """
    return Amount(decimal(value, name), currency, vat)


def day(value: object, name: str) -> date:
    """A calendar day, ISO 8601.

    Raises:
        Malformed: It is none.
    """
    try:
        return date.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise Malformed(f"{name} is no day") from None


def optional_day(value: object) -> date | None:
    """A calendar day, with or without a time behind it; None for anything else."""
    try:
        return date.fromisoformat(value[:10]) if isinstance(value, str) else None
    except ValueError:
        return None


def moment(value: object, zone: Any = UTC) -> datetime | None:
    """A point in time, `YYYY-MM-DD HH:MM:SS`, in a zone; None for anything else."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return None if found is None else found if found.tzinfo else found.replace(tzinfo=zone)
