"""What can go wrong in a store, in terms that do not name the driver.

Texts carry no values, addresses or driver messages, so they may be logged. `TimeoutError` is not wrapped: a statement
that outlives the call's deadline (see `storage.deadline`) raises it.
"""

from __future__ import annotations


class StoreError(Exception):
    """Anything a store refuses or fails to do."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or cannot serve now; trying again later may succeed.

    Attributes:
        store: Name of the store, for example ``postgresql``.
        reason: Kind of failure, for logs; the name of the driver's error and nothing from its text.
    """

    def __init__(self, store: str, reason: str = "") -> None:
        super().__init__(f"{store} is unavailable" + (f" ({reason})" if reason else ""))
        self.store = store
        self.reason = reason


class NotFound(StoreError):
    """A row that must be there is not, or lies outside the caller's scope: the two are not told apart.

    Attributes:
        kind: What was looked for, for example ``client``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"{kind} not found")
        self.kind = kind


class Conflict(StoreError):
    """The change collides with another row: something that must be unique is taken, or rows still refer to this one.

    Attributes:
        constraint: Name of the violated constraint or unique index.
    """

    def __init__(self, constraint: str) -> None:
        super().__init__(f"conflicts with {constraint}")
        self.constraint = constraint


class Invalid(StoreError):
    """A value breaks a rule of the schema: a check, a missing value, a reference to nothing, a number out of range.

    Attributes:
        constraint: Name of the violated constraint, or of the column when the rule has no name.
    """

    def __init__(self, constraint: str) -> None:
        super().__init__(f"violates {constraint}")
        self.constraint = constraint


class Archived(StoreError):
    """The row belongs to an archived client, of which nothing may be changed."""


class StaleRevision(StoreError):
    """The row was changed by someone else since it was read.

    Attributes:
        expected: The revision the caller based its change on.
        found: The revision the row has now.
    """

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"revision is {found}, expected {expected}")
        self.expected = expected
        self.found = found


class FencedOut(StoreError):
    """A newer holder has taken over the lease or stream under which the caller acts; it must stop."""


class IdempotencyMismatch(StoreError):
    """The request id was already used by the same principal for a different request."""


class Contention(StoreError):
    """The transaction lost against concurrent ones each time it was tried; the caller may try again."""
