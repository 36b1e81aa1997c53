"""One Arrow IPC stream out of the whole ones that the engine gives for each chunk of a streamed result.

A stream is a schema message, batches, and an end mark; a schema message has no body, so its length stands in its head.
"""

_CONTINUATION = b"\xff\xff\xff\xff"
_END = _CONTINUATION + bytes(4)
_HEAD_BYTES = 8


class ArrowJoiner:
    """Joins chunks of one result: the first schema, all batches, one end mark."""

    def __init__(self) -> None:
        self.begun = False

    def join(self, chunk: bytes) -> bytes:
        """What of the next chunk belongs into the joined stream.

        Raises:
            RuntimeError: The chunk is not framed as expected.
        """
        if not chunk.startswith(_CONTINUATION) or not chunk.endswith(_END):
            raise RuntimeError("The engine gave a chunk that is no Arrow stream.")
        start = _HEAD_BYTES + int.from_bytes(chunk[4:_HEAD_BYTES], "little") if self.begun else 0
        self.begun = True
        return chunk[start : -len(_END)]

    def end(self) -> bytes:
        """The end of the joined stream; empty if it never began."""
        return _END if self.begun else b""
