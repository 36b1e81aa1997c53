"""Page and resume tokens of the record of changes. Both hold the number of a change."""

import struct
from dataclasses import dataclass

from server.rpc.errors import InvalidRequest, OutOfRange
from server.rpc.tokens import InvalidToken, TokenCodec

_LAYOUT = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class PositionTokens:
    """Tokens that hold a position and pass only for the same caller asking for the same thing.

    Attributes:
        codec: Authenticates them.
        purpose: Kind of token.
        bound_to: What is asked for by whom.
    """

    codec: TokenCodec
    purpose: str
    bound_to: bytes

    def seal(self, position: int) -> str:
        """The token of a position."""
        return self.codec.seal(self.purpose, self.bound_to, _LAYOUT.pack(position))

    def open(self, token: str, field: str) -> int | None:
        """The position of a token in a field of a request; None for an empty one.

        Raises:
            InvalidRequest: The token is damaged or belongs to another question or caller.
        """
        if not token:
            return None
        try:
            position: int = _LAYOUT.unpack(self.codec.open(self.purpose, self.bound_to, token))[0]
        except (InvalidToken, struct.error):
            raise InvalidRequest.field(
                field,
                f"{field.upper()}_INVALID",
                "is not a token of this question",
                error_reason=f"{field.upper()}_INVALID",
            ) from None
        return position


def gone() -> OutOfRange:
    """The error of a resume token that nothing can be resumed from."""
    return OutOfRange(
        "what follows this token is no longer kept: read the present state anew, then watch", reason="CHANGES_GONE"
    )
