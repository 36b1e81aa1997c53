"""Resume tokens of watches."""

import hashlib
import struct
from typing import NamedTuple

from mrm.statistics.v1 import statistics_service_pb2
from server.rpc.call import Call
from server.rpc.errors import InvalidRequest
from server.rpc.tokens import InvalidToken, TokenCodec
from server.statistics import frames

_PURPOSE = "watch_metrics"
_LAYOUT = struct.Struct(">QQ")


class Position(NamedTuple):
    """What a watcher has seen: a resumed watch never serves anything older.

    Attributes:
        watermark: Unix milliseconds.
        window_start: Begin of the window, Unix seconds.
    """

    watermark: int = 0
    window_start: int = 0


class ResumeTokens:
    """Tokens of equal watches: they pass only for the same caller asking for the same thing, in any process.

    Args:
        codec: Authenticates them.
        watch: What is watched by whom, as `binding` says it.
    """

    def __init__(self, codec: TokenCodec, watch: bytes) -> None:
        self._codec = codec
        self._binding = watch
        self._trailer: tuple[Position, bytes] = (Position(), frames.trailer(self.seal(Position()), 0))

    def trailer(self, position: Position) -> bytes:
        """What every message at a position carries beside its kind. Equal watches mostly stand at one position."""
        if self._trailer[0] != position:
            self._trailer = (position, frames.trailer(self.seal(position), position.watermark))
        return self._trailer[1]

    def seal(self, position: Position) -> str:
        """The token of a position."""
        return self._codec.seal(_PURPOSE, self._binding, _LAYOUT.pack(*position))

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


def binding(request: statistics_service_pb2.WatchMetricsRequest, call: Call) -> bytes:
    """A hash of what is watched by whom; where to resume and how often to hear is no part of it."""
    watched = statistics_service_pb2.WatchMetricsRequest(
        client_id=request.client_id.lower(),
        campaign_ids=sorted({each.lower() for each in request.campaign_ids}),
        project_ids=sorted({each.lower() for each in request.project_ids}),
        platforms=sorted(set(request.platforms)),
    )
    if request.HasField("times"):
        watched.times.CopyFrom(request.times)
    else:
        # Not set, unspecified and today are the same window.
        watched.window = request.window or statistics_service_pb2.WATCH_WINDOW_TODAY
    caller = f"{call.principal.kind}|{call.principal.lasting_id}|".encode()
    return hashlib.sha256(caller + watched.SerializeToString(deterministic=True)).digest()
