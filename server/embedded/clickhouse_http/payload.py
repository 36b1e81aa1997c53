"""Request bodies: decompression, and a file the engine can read them from without a copy on disk."""

import os
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any

import lz4.frame
from backports import zstd

from server.embedded.clickhouse_http.failures import Failure

MAX_BODY_BYTES = 1 << 30


class Payload:
    """The data of one INSERT as a path; close it when the statement has ended."""

    def __init__(self, chunks: Sequence[bytes | memoryview]) -> None:
        self._name = ""
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("insert", os.MFD_CLOEXEC)
            self.path = f"/proc/self/fd/{self._descriptor}"
        else:
            self._descriptor, self._name = tempfile.mkstemp(prefix="mrm-insert-")
            self.path = self._name
        try:
            for chunk in chunks:
                _write_all(self._descriptor, chunk)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Frees the memory; safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            if self._name:
                os.unlink(self._name)


def _write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def decompress(encoding: str, body: bytes) -> bytes:
    """Undoes a Content-Encoding.

    Raises:
        Failure: The encoding is unknown, the bytes are damaged, or the result is larger than 1 GiB.
    """
    parts, total = [], 0
    try:
        while body:
            decoder = _decoder(encoding)
            # One byte more than allowed, to tell "exactly full" from "too much".
            part = decoder.decompress(body, MAX_BODY_BYTES + 1 - total)
            total += len(part)
            if total > MAX_BODY_BYTES:
                raise Failure(184, "QUERY_IS_TOO_LARGE", "The decompressed body is larger than 1 GiB.")
            if not decoder.eof:
                raise Failure(3, "UNEXPECTED_END_OF_FILE", "The compressed body is cut off.")
            parts.append(part)
            body = decoder.unused_data
    except (RuntimeError, zlib.error, zstd.ZstdError, EOFError, ValueError) as error:
        raise Failure(271, "CANNOT_DECOMPRESS", f"The body is not valid {encoding}.") from error
    return b"".join(parts)


def _decoder(encoding: str) -> Any:
    if encoding == "lz4":
        return lz4.frame.LZ4FrameDecompressor()
    if encoding == "zstd":
        return zstd.ZstdDecompressor()
    if encoding in ("gzip", "deflate"):
        return zlib.decompressobj(47)
    raise Failure(48, "NOT_IMPLEMENTED", "Content-Encoding must be lz4, zstd, gzip or deflate.")
