"""Resume tokens of watches."""

import hashlib
import struct
from dataclasses import dataclass

from mrm.statistics.v1 import statistics_service_pb2
from server.rpc.call import Call
from server.rpc.errors import InvalidRequest
from server.rpc.tokens import InvalidToken, TokenCodec

_PURPOSE = "watch_metrics"
_LAYOUT = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class Position:
    """What a watcher has seen: a resumed watch never serves anything older.

    Attributes:
        watermark: Unix milliseconds.
        window_start: Begin of the window, Unix seconds.
    """

    watermark: int = 0
    window_start: int = 0


class ResumeTokens:
    """Tokens of one watch: they pass only for the same caller asking for the same thing, in any process.

    Args:
        codec: Authenticates them.
        request: What is watched.
        call: Who watches.
    """

    def __init__(self, codec: TokenCodec, request: statistics_service_pb2.WatchMetricsRequest, call: Call) -> None:
        self._codec = codec
        self._binding = _binding(request, call)

    def seal(self, position: Position) -> str:
        """The token of a position."""
        return self._codec.seal(_PURPOSE, self._binding, _LAYOUT.pack(position.watermark, position.window_start))

    def open(self, token: str) -> Position:
        """The position of a token; the first of all for an empty one.

        Raises:
            InvalidRequest: The token is damaged or belongs to another watch or caller.
        """
        if not token:
            return Position()
        try:
            return Position(*_LAYOUT.unpack(self._codec.open(_PURPOSE, self._binding, token)))
        except (InvalidToken, struct.error):
            raise InvalidRequest.field(
                "resume_token",
                "RESUME_TOKEN_INVALID",
                "is not a token of this watch",
                error_reason="RESUME_TOKEN_INVALID",
            ) from None


def _binding(request: statistics_service_pb2.WatchMetricsRequest, call: Call) -> bytes:
    watched = statistics_service_pb2.WatchMetricsRequest(
        client_id=request.client_id.lower(), campaign_ids=sorted({each.lower() for each in request.campaign_ids})
    )
    if request.HasField("times"):
        watched.times.CopyFrom(request.times)
    else:
        # Not set, unspecified and today are the same window.
        watched.window = request.window or statistics_service_pb2.WATCH_WINDOW_TODAY
    caller = f"{call.principal.kind}|{call.principal.principal_id}|".encode()
    return hashlib.sha256(caller + watched.SerializeToString(deterministic=True)).digest()
