"""Cuts an Arrow IPC stream into its messages while it arrives, without looking at any row.

A stream is a schema message, record batches and an end mark. Each message is a continuation mark, the length of its
head, the head (a flatbuffer) and a body whose length the head names. So a batch can be put behind the schema again, as
a stream of its own, by copying bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

END = b"\xff\xff\xff\xff" + bytes(4)
"""The end mark of a stream."""

_CONTINUATION = b"\xff\xff\xff\xff"
_PREFIX = 8
# Members of the flatbuffers `Message` and `RecordBatch`, and values of the former's header type.
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3
_LENGTH = 0
_IS_SCHEMA, _IS_BATCH = 1, 3
# A head describes a dozen columns; more than this is no head.
_LONGEST_HEAD = 1 << 20


class Broken(Exception):
    """What arrived is no Arrow stream; it may be the text of an error.

    Attributes:
        rest: What came instead.
    """

    def __init__(self, rest: bytes) -> None:
        super().__init__("no arrow stream")
        self.rest = rest


class Batch(NamedTuple):
    """A record batch as an encapsulated message."""

    rows: int
    message: bytes


class ArrowCutter:
    """Takes pieces of a stream and gives its batches.

    Attributes:
        schema: The schema message; empty until it has arrived.
        ended: Whether the end mark has arrived.
    """

    def __init__(self) -> None:
        self.schema = b""
        self.ended = False
        self._held = bytearray()
        self._needed = _PREFIX

    def feed(self, piece: bytes) -> Iterator[Batch]:
        """The batches that are whole with this piece.

        Raises:
            Broken: It is no Arrow stream, or another than this understands.
        """
        self._held += piece
        while not self.ended and len(self._held) >= self._needed:
            if not self._held.startswith(_CONTINUATION):
                raise Broken(bytes(self._held))
            size = int.from_bytes(self._held[4:_PREFIX], "little")
            if size == 0:
                self.ended = True
                return
            if size > _LONGEST_HEAD:
                raise Broken(bytes(self._held))
            self._needed = _PREFIX + size
            if len(self._held) < self._needed:
                return
            kind, rows, body = _read_head(self._held[_PREFIX : self._needed])
            self._needed += body
            if len(self._held) < self._needed:
                return
            with memoryview(self._held) as held:
                message = bytes(held[: self._needed])
            del self._held[: self._needed]
            self._needed = _PREFIX
            if kind == _IS_BATCH and self.schema:
                yield Batch(rows, message)
            elif kind == _IS_SCHEMA and not self.schema:
                self.schema = message
            else:
                raise Broken(message)

    def finish(self) -> None:
        """Raises Broken if the stream did not arrive to its end."""
        if not self.ended:
            raise Broken(bytes(self._held))


def _read_head(head: bytearray) -> tuple[int, int, int]:
    """Kind, rows and length of the body of a message."""
    try:
        root = struct.unpack_from("<I", head)[0]
        kind = _scalar(head, root, _HEADER_TYPE, "<B")
        body = _scalar(head, root, _BODY_LENGTH, "<q")
        rows = 0
        if kind == _IS_BATCH:
            at = _member(head, root, _HEADER)
            rows = _scalar(head, at + struct.unpack_from("<I", head, at)[0], _LENGTH, "<q")
    except struct.error:
        raise Broken(bytes(head)) from None
    return kind, rows, body


def _member(head: bytearray, table: int, number: int) -> int:
    """Where a member of a flatbuffer table stands; 0 if it is left out, which means its default."""
    layout = table - struct.unpack_from("<i", head, table)[0]
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", head, layout)[0]:
        return 0
    offset = struct.unpack_from("<H", head, layout + place)[0]
    return table + offset if offset else 0


def _scalar(head: bytearray, table: int, number: int, form: str) -> int:
    at = _member(head, table, number)
    return int(struct.unpack_from(form, head, at)[0]) if at else 0
