"""Ids of new rows."""

from __future__ import annotations

from uuid import UUID

from uuid_utils.compat import uuid7


def new_id() -> UUID:
    """A time-ordered id (UUIDv7): new rows land at the end of an index, and ordering by id is ordering by age."""
    return uuid7()
