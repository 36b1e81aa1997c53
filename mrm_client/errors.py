"""What a call can fail with, read from the status and its google.rpc details."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from mrm.statistics.v1 import event_pb2

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS_KEY = "grpc-status-details-bin"
# What gRPC puts before the one thing worth knowing.
_UNREACHABLE = "failed to connect to all addresses; last error: "

# A later attempt may succeed without anybody changing anything.
TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
# May be a passing accident of the connection or a lasting defect: worth a few attempts.
DOUBTFUL = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED})


class CallError(Exception):
    """The server refused or failed a call.

    Attributes:
        code: The gRPC status code.
        reason: Name in ``mrm.common.v1.ErrorReason`` without its prefix, such as ``RATE_LIMITED``; empty if not told.
        message: Explanation for people.
        metadata: Dynamic values of the message, such as ``resource_id``.
        retry_after: Seconds to wait before the next attempt; zero if not told.
        violations: (field, explanation) of every broken rule of the request.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float = 0.0,
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.violations = tuple(violations)

    def __str__(self) -> str:
        broken = "".join(f"; {field}: {text}" for field, text in self.violations if field not in self.message)
        return f"{self.code.name}: {self.message}{broken}"

    @classmethod
    def of_rpc(cls, error: grpc.aio.AioRpcError) -> CallError:
        """Reads what a call of a generated stub raised."""
        status = _status_details(error.trailing_metadata())
        if status is None:
            return cls._typed(error.code(), (error.details() or "no explanation").removeprefix(_UNREACHABLE))
        return cls._of_details(error.code(), status)

    @classmethod
    def of_status(cls, status: status_pb2.Status) -> CallError:
        """Reads a status that came inside a message."""
        return cls._of_details(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status)

    @classmethod
    def _of_details(cls, code: grpc.StatusCode, status: status_pb2.Status) -> CallError:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        request = error_details_pb2.BadRequest()
        for detail in status.details:
            for message in (info, retry, request):
                detail.Unpack(message)
        return cls._typed(
            code,
            status.message or "no explanation",
            reason=info.reason,
            metadata=info.metadata,
            retry_after=retry.retry_delay.ToTimedelta().total_seconds(),
            violations=[(violation.field, violation.description) for violation in request.field_violations],
        )

    @staticmethod
    def _typed(code: grpc.StatusCode, message: str, **details: Any) -> CallError:
        kind: type[CallError] = CallError
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            kind = CredentialsRefused
        elif details.get("reason") == "STREAM_FENCED":
            kind = StreamFenced
        return kind(code, message, **details)


class CredentialsRefused(CallError):
    """The token is unknown, has ended, or lacks the right for this call."""


class StreamFenced(CallError):
    """Another producer has opened the same stream since; this one must not go on.

    What was not acknowledged may or may not be stored. Give each producer a stream of its own.
    """


class EventsInvalid(CallError):
    """The server found malformed events; nothing of their batch is stored, and the stream ends before it.

    Attributes:
        offset: Position of the batch's first event in the stream.
        event_errors: The malformed events, at most the first 100 of the batch. `index` counts from `offset`.
    """

    def __init__(self, cause: CallError, offset: int, event_errors: Iterable[event_pb2.EventError]) -> None:
        super().__init__(cause.code, cause.message, reason=cause.reason, metadata=cause.metadata)
        self.offset = offset
        self.event_errors = tuple(event_errors)

    def __str__(self) -> str:
        faults = "".join(f"; event {self.offset + e.index}: {e.field} {e.message}" for e in self.event_errors[:5])
        more = f"; and {len(self.event_errors) - 5} more" if len(self.event_errors) > 5 else ""
        return f"{super().__str__()}{faults}{more}"


class PositionLost(CallError):
    """The server's position in the stream does not fit what this producer sent, so going on would lose events.

    It lies before events that were acknowledged (the server was restored from a backup), or beyond everything sent
    (another producer writes to the stream). Begin again from the source with a new `Producer`, whose `position` tells
    the server's.
    """


def _status_details(metadata: Any) -> status_pb2.Status | None:
    for key, value in metadata or ():
        if key == _DETAILS_KEY:
            return status_pb2.Status.FromString(value)
    return None
