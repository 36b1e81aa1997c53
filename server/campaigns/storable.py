"""What PostgreSQL would refuse of a campaign, found before it is asked: one of a thousand must not fail the others."""

from decimal import Decimal
from typing import Any, Final

from server.rpc.errors import InvalidRequest

_TOO_MUCH: Final = Decimal(10**12)


def holds_nul(value: Any) -> bool:
    """Whether a text anywhere in some JSON holds a NUL character, which PostgreSQL cannot store."""
    if isinstance(value, dict):
        return any("\x00" in name or holds_nul(each) for name, each in value.items())
    if isinstance(value, list):
        return any(holds_nul(each) for each in value)
    return isinstance(value, str) and "\x00" in value


def check(columns: dict[str, Any]) -> None:
    """Looks at the columns that a caller may write.

    Raises:
        InvalidRequest: One of them cannot be stored.
    """
    for column, field in (
        ("name", "display_name"),
        ("external_id", "external_id"),
        ("configuration", "configuration"),
        ("settings", "settings"),
    ):
        value = columns[column]
        if value and holds_nul(value):
            raise InvalidRequest.field(f"campaign.{field}", "NUL_CHARACTER", "holds a NUL character")
        if isinstance(value, str) and not value.strip(" "):
            raise InvalidRequest.field(f"campaign.{field}", "BLANK", "must not be blank")
    for column, field in (("budget_daily", "daily_budget"), ("budget_total", "total_budget")):
        if columns[column] is not None and columns[column] >= _TOO_MUCH:
            raise InvalidRequest.field(f"campaign.{field}.micros", "AMOUNT_TOO_LARGE", "must be below 10^12 units")
