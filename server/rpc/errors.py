"""Domain errors. This module knows no gRPC; `server.rpc.status` maps each error to a google.rpc.Status.

An error carries everything a caller may see. Nothing else of an exception ever reaches one: an exception that is not a
`DomainError` is answered as INTERNAL with the request id only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule of a request field.

    Attributes:
        field: Path of the field, such as ``campaign.daily_budget``.
        reason: Machine-readable rule in upper case, such as ``STRING_UUID``.
        description: Explanation for people; holds no value of the request.
    """

    field: str
    reason: str
    description: str


class DomainError(Exception):
    """Base of all errors that callers may see.

    Attributes:
        code: Name of the gRPC status code.
        reason: Name in ``mrm.common.v1.ErrorReason`` without its prefix.
        message: Explanation for people.
        metadata: Dynamic values of the message, for programs.
        retry_after: Seconds after which a retry makes sense, if it does.
        violations: Broken fields, for INVALID_ARGUMENT.
    """

    code = "INTERNAL"
    reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.violations = tuple(violations)


class InvalidRequest(DomainError):
    """Fields of the request break their rules."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELDS"

    @classmethod
    def field(cls, field: str, reason: str, description: str, *, error_reason: str | None = None) -> "InvalidRequest":
        """An error about one field; `error_reason` names another entry of the catalogue than INVALID_FIELDS."""
        violation = Violation(field, reason, description)
        return cls(f"{field}: {description}", reason=error_reason, violations=[violation])


class Unauthenticated(DomainError):
    """The caller is not known."""

    code = "UNAUTHENTICATED"
    reason = "CREDENTIALS_INVALID"


class PermissionDenied(DomainError):
    """The caller is known but lacks a right."""

    code = "PERMISSION_DENIED"
    reason = "PERMISSION_MISSING"


class NotFound(DomainError):
    """No such resource in the caller's scope."""

    code = "NOT_FOUND"
    reason = "RESOURCE_NOT_FOUND"

    @classmethod
    def resource(cls, resource_type: str, resource_id: str) -> "NotFound":
        """An error about one resource; alike whether it does not exist or is out of scope."""
        return cls(
            f"no {resource_type} with this id", metadata={"resource_type": resource_type, "resource_id": resource_id}
        )


class AlreadyExists(DomainError):
    """A unique value is taken."""

    code = "ALREADY_EXISTS"
    reason = "RESOURCE_EXISTS"


class EtagMismatch(DomainError):
    """The resource changed since it was read."""

    code = "ABORTED"
    reason = "ETAG_MISMATCH"

    def __init__(self) -> None:
        super().__init__("the etag is not the current one: read the resource again and retry")


class Aborted(DomainError):
    """Somebody else won."""

    code = "ABORTED"
    reason = "STREAM_FENCED"


class FailedPrecondition(DomainError):
    """The state of a resource forbids the change."""

    code = "FAILED_PRECONDITION"
    reason = "STATE_FORBIDS"

    @classmethod
    def transition(cls, resource_type: str, state: str, wanted: str) -> "FailedPrecondition":
        """An error about a step that does not lead from one state to another."""
        return cls(
            f"the {resource_type} is {state} and cannot become {wanted}",
            metadata={"resource_type": resource_type, "state": state, "wanted": wanted},
        )

    @classmethod
    def archived(cls, resource_type: str) -> "FailedPrecondition":
        """An error about something archived, or under something archived."""
        return cls(
            f"the {resource_type}, or an agency above it, is archived: nothing of it can be changed",
            metadata={"resource_type": resource_type, "state": "archived", "wanted": "active"},
        )


class OutOfRange(DomainError):
    """A position lies beyond what exists."""

    code = "OUT_OF_RANGE"
    reason = "OFFSET_GAP"


class ResourceExhausted(DomainError):
    """A limit is reached."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RATE_LIMITED"


class Unavailable(DomainError):
    """A store is down or the server ends; a retry may succeed."""

    code = "UNAVAILABLE"
    reason = "STORE_UNAVAILABLE"

    @classmethod
    def store(cls, name: str, retry_after: float = 1.0) -> "Unavailable":
        """An error about one store."""
        return cls(f"{name} is unavailable, try again", metadata={"store": name}, retry_after=retry_after)


class DeadlineExceeded(DomainError):
    """The call took too long."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE"
