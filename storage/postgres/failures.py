"""From asyncpg's errors to the ones of `storage.errors`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from storage.errors import Archived, Conflict, Contention, Invalid, StoreError, StoreUnavailable

STORE = "postgresql"
_ARCHIVED = "client_archived"


class StalePlan(Contention):
    """A statement was prepared against a schema that has changed since; a second try prepares it anew."""


_CONTENTION = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_STALE_PLAN = (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError)
# A restrict violation means that rows still refer to the one being deleted; a foreign key violation, that a written
# row refers to nothing.
_CONFLICT = (asyncpg.UniqueViolationError, asyncpg.ExclusionViolationError, asyncpg.RestrictViolationError)
_INVALID = (asyncpg.IntegrityConstraintViolationError, asyncpg.exceptions.DataError)
_UNAVAILABLE = (
    asyncpg.PostgresConnectionError,
    # What a statement meets on a connection that the server is just ending.
    asyncpg.InternalClientError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ReadOnlySQLTransactionError,
    OSError,
)


def translate(error: BaseException) -> BaseException:
    """The `storage.errors` error that tells what `error` means; `error` itself when it is none of the driver's."""
    if isinstance(error, StoreError | TimeoutError):
        return error
    if isinstance(error, asyncpg.QueryCanceledError | asyncpg.LockNotAvailableError):
        return TimeoutError("the database cancelled the statement")
    if isinstance(error, _STALE_PLAN):
        return StalePlan("statement prepared against an older schema")
    if isinstance(error, _CONTENTION):
        return Contention("lost against concurrent transactions")
    if isinstance(error, _CONFLICT):
        return Conflict(error.constraint_name or "")
    if isinstance(error, _INVALID) or (isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)):
        rule = _rule_of(error)
        return Archived("the client is archived") if rule == _ARCHIVED else Invalid(rule)
    if isinstance(error, _UNAVAILABLE) or _is_closed(error):
        return StoreUnavailable(STORE, type(error).__name__)
    return error


def _is_closed(error: BaseException) -> bool:
    """Whether it is asyncpg's complaint about a closed connection or pool, which has no class of its own.

    A lent connection that is lost goes back to the pool by itself, so its borrower hears that it was released.
    """
    return isinstance(error, asyncpg.InterfaceError) and any(word in str(error) for word in ("clos", "released"))


def _rule_of(error: BaseException) -> str:
    """Name of the broken rule; asyncpg's own refusals of an argument know none."""
    for attribute in ("constraint_name", "column_name"):
        if name := getattr(error, attribute, None):
            return str(name)
    return "value"


@contextmanager
def translated() -> Iterator[None]:
    """Translates what the block raises. The original is not chained: its text holds values and addresses."""
    try:
        yield
    except Exception as error:
        meaning = translate(error)
        if meaning is error:
            raise
        raise meaning from None
