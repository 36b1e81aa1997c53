"""Maps domain and store errors to google.rpc.Status."""

import math

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from server.rpc.errors import (
    Aborted,
    AlreadyExists,
    DomainError,
    EtagMismatch,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Unavailable,
    Violation,
)
from storage import errors as store_errors

DOMAIN = "mrm"
MAX_VIOLATIONS = 20
# Status details travel in trailing metadata, whose soft limit is 8 KiB; beyond it gRPC replaces the whole status.
MAX_TEXT = 200
MAX_DETAILS = 4096


def to_domain(error: Exception) -> DomainError:
    """The error a caller may see. Whatever is not foreseen becomes INTERNAL without any text of the exception."""
    match error:
        case DomainError():
            return error
        case store_errors.StoreUnavailable():
            return Unavailable.store(error.store)
        case store_errors.StaleRevision():
            return EtagMismatch()
        case store_errors.IdempotencyMismatch():
            return InvalidRequest(
                "this request_id was used before with another request",
                reason="REQUEST_ID_REUSED",
                violations=[Violation("request_id", "REQUEST_ID_REUSED", "was used before with another request")],
            )
        case store_errors.Conflict():
            return AlreadyExists("another resource has this unique value", metadata={"constraint": error.constraint})
        case store_errors.Invalid():
            return InvalidRequest("a value breaks a rule of the data", metadata={"constraint": error.constraint})
        case store_errors.Archived():
            return FailedPrecondition.archived("client")
        case store_errors.NotFound():
            return NotFound.resource(error.kind, "")
        case store_errors.FencedOut():
            return Aborted("somebody else has taken over")
        case store_errors.Contention():
            return Unavailable("too many changes at once, try again", retry_after=0.2)
        case _:
            return DomainError("internal error")


def to_status(error: DomainError, request_id: str) -> status_pb2.Status:
    """The full status of an error, its details small enough to travel."""
    status = status_pb2.Status(code=code_of(error).value[0], message=error.message[: MAX_TEXT * 2])
    _pack(
        status,
        error_details_pb2.ErrorInfo(
            reason=error.reason,
            domain=DOMAIN,
            metadata={key: value[:MAX_TEXT] for key, value in error.metadata.items()} | {"request_id": request_id},
        ),
    )
    if error.retry_after is not None:
        _pack(status, error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after)))
    if error.violations:
        _pack(status, _bad_request(error.violations))
    return status


def code_of(error: DomainError) -> grpc.StatusCode:
    """gRPC code of an error."""
    return grpc.StatusCode[error.code]


def _bad_request(violations: tuple[Violation, ...]) -> error_details_pb2.BadRequest:
    detail = error_details_pb2.BadRequest()
    for violation in violations[:MAX_VIOLATIONS]:
        detail.field_violations.add(
            field=violation.field[:MAX_TEXT],
            reason=violation.reason[:MAX_TEXT],
            description=violation.description[:MAX_TEXT],
        )
        if detail.ByteSize() > MAX_DETAILS:
            del detail.field_violations[-1]
            break
    return detail


def _pack(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _duration(seconds: float) -> duration_pb2.Duration:
    whole = math.floor(seconds)
    return duration_pb2.Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))
