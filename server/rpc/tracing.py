"""What the request path knows of traces: whose trace a call is part of, and whom to tell of the call."""

import re
from typing import Protocol

# https://www.w3.org/TR/trace-context: later versions may add fields behind these four.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


def trace_id_of(traceparent: str) -> str:
    """The trace that a W3C traceparent names; empty if it is none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (traceparent.startswith("00") and len(traceparent) != 55):
        return ""
    return found[1]


class CallSpan(Protocol):
    """One call in a trace.

    Attributes:
        trace_id: Names the trace in logs and collector.
    """

    trace_id: str

    def end(self, code: str, reason: str) -> None:
        """Tells how the call ended."""


class Tracer(Protocol):
    """Whom to tell of calls."""

    def begin(self, method: str, request_id: str, traceparent: str) -> CallSpan | None:
        """Begins the span of a call, of which those of the present task are part from then on; None: it is not traced.

        Args:
            method: Full name, such as ``/mrm.campaigns.v1.CampaignService/GetCampaign``.
            request_id: Id of the call.
            traceparent: What the caller said, if it is valid.
        """
