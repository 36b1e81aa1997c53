"""List calls: page sizes and page tokens, which work only for the query and caller they were made for."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar
from uuid import UUID

from google.protobuf.message import Message

from server.rpc.call import Call
from server.rpc.errors import InvalidRequest
from server.rpc.tokens import InvalidToken, TokenCodec

DEFAULT_PAGE = 50
LARGEST_PAGE = 500


class Keyed(Protocol):
    """A row whose id grows with its creation time (UUIDv7), by which lists are ordered."""

    @property
    def id(self) -> UUID:
        """Its id."""


Row = TypeVar("Row", bound=Keyed)


class Pager:
    """Makes and reads page tokens.

    Args:
        codec: Authenticates them.
    """

    def __init__(self, codec: TokenCodec) -> None:
        self._codec = codec

    def start(self, request: Message, call: Call) -> "Page":
        """Reads `page_size` and `page_token` of a List request.

        Raises:
            InvalidRequest: The token is damaged or belongs to another query or caller.
        """
        size: int = request.page_size  # type: ignore[attr-defined]
        token: str = request.page_token  # type: ignore[attr-defined]
        query = _query(request, call)
        after, key = None, ""
        if token:
            try:
                data = self._codec.open("page", query, token)
            except InvalidToken:
                raise InvalidRequest.field(
                    "page_token",
                    "PAGE_TOKEN_INVALID",
                    "is not a token of this list",
                    error_reason="PAGE_TOKEN_INVALID",
                ) from None
            after, key = UUID(bytes=data[:16]), data[16:].decode()
        return Page(min(size or DEFAULT_PAGE, LARGEST_PAGE), after, query, self._codec, key)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list.

    Attributes:
        size: Rows to return; ask the store for one more to learn whether there are others.
        after: Id of the row after which the page begins; None for the first page.
        query: What its tokens are bound to.
        codec: Makes its tokens.
        after_key: What that row is ordered by before its id; empty where the id is all.
    """

    size: int
    after: UUID | None
    query: bytes
    codec: TokenCodec
    after_key: str = ""

    def cut(self, rows: list[Row], key: Callable[[Row], str] | None = None) -> tuple[list[Row], str]:
        """The rows of the page and the token of the next one, empty on the last.

        Args:
            rows: Those of the page, and one more if there are others.
            key: What rows are ordered by before their ids.
        """
        if len(rows) <= self.size:
            return rows, ""
        kept = rows[: self.size]
        return kept, self.token(kept[-1].id, "" if key is None else key(kept[-1]))

    def token(self, last_id: UUID, key: str = "") -> str:
        """The token of the page that follows a row."""
        return self.codec.seal("page", self.query, last_id.bytes + key.encode())


def _query(request: Message, call: Call) -> bytes:
    """What a token is bound to: the call, the caller and every field but the page's own."""
    bare = type(request)()
    bare.CopyFrom(request)
    bare.ClearField("page_token")
    bare.ClearField("page_size")
    text = f"{call.method}|{call.principal.lasting_id}|".encode()
    return hashlib.sha256(text + bare.SerializeToString(deterministic=True)).digest()
