"""Object storage: S3, or a local directory that behaves like it.

Keys are relative paths. What belongs to a tenant lies under `client_prefix`. Beside each object that is written here
lies its checksum, ``<key>.sha256`` in the format of `sha256sum`, so that anybody can verify what was stored.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import UUID

import obstore
from obstore import exceptions
from obstore.store import LocalStore, S3Store

from storage import deadline
from storage.errors import NotFound, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

STORE = "objects"
CHUNK_BYTES = 1 << 20
"""Most bytes of a piece that `Objects.get` gives."""

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*(/[A-Za-z0-9_][A-Za-z0-9._=-]*)*")
_LONGEST_KEY = 512
_CHECKSUM = ".sha256"
_DIGEST = re.compile(r"[0-9a-f]{64}")
# 10 000 parts are the most that S3 takes: 80 GB.
_PART_BYTES = 8 * 2**20
_PARTS_AT_ONCE = 2
_THREADS = 8
_SHORT_SECONDS = 15.0
_RETRY: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class S3Access:
    """How an S3 server is reached; the URL names only bucket and prefix.

    Attributes:
        endpoint: URL of the server; Amazon's own if empty.
        region: Its region.
        key_id: Public half of the credentials; without it the process's own (instance role, environment) count.
        secret: Secret half.
    """

    endpoint: str = ""
    region: str = "us-east-1"
    key_id: str = ""
    secret: str = ""

    def __repr__(self) -> str:
        return f"S3Access(endpoint={self.endpoint!r}, region={self.region!r})"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it is now.

    Attributes:
        key: Its key.
        size: Bytes.
        etag: Changes whenever the object does.
        modified: When it was written.
    """

    key: str
    size: int
    etag: str
    modified: datetime


def client_prefix(client_id: UUID) -> str:
    """Where all objects of a client lie, with the slash at its end."""
    return f"clients/{client_id}/"


def is_key(text: str) -> bool:
    """Whether a text can be a key: plain segments, no way out of its prefix, and not the name of a checksum."""
    return len(text) <= _LONGEST_KEY and bool(_KEY.fullmatch(text)) and not text.endswith(_CHECKSUM)


class Objects:
    """One bucket, or a prefix of one, or a directory.

    Calls raise StoreUnavailable when the storage cannot be reached or refuses our credentials, NotFound for a missing
    object, and TimeoutError beyond the call's deadline.

    Args:
        url: ``s3://bucket/prefix`` or ``file:///directory``.
        access: How the S3 server is reached.

    Raises:
        ValueError: The URL is neither.
    """

    def __init__(self, url: str, access: S3Access | None = None) -> None:
        self._store, self._ordered = _open(url, access or S3Access())
        # obstore's coroutines can abort the interpreter at exit; its blocking calls cannot. A pool of their own,
        # because calls to a server that is away block until they give up.
        self._threads = ThreadPoolExecutor(_THREADS, "objects")
        self._probing: asyncio.Future[Any] | None = None

    async def close(self) -> None:
        """Gives up whatever has not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def ping(self) -> None:
        """Returns if the storage answers; raises StoreUnavailable otherwise."""
        if self._probing is None or self._probing.done():
            # A prefix that nothing lies under: whoever may list may read.
            self._probing = asyncio.ensure_future(
                self._run(lambda: next(iter(obstore.list(self._store, "ping/")), None))
            )
        await asyncio.shield(self._probing)

    async def put(self, key: str, source: bytes | Path) -> str:
        """Stores an object as a whole, in parts if it is large; until then an older one of the same key stays.

        Args:
            key: Its key.
            source: Its bytes, or the file that has them; a file is read in pieces.

        Returns:
            SHA-256 of the bytes, in hexadecimal.
        """
        _check(key)

        def put() -> str:
            # An old checksum beside a new object would call it damaged, no checksum does not.
            with suppress(FileNotFoundError):
                obstore.delete(self._store, key + _CHECKSUM)
            digest = hashlib.sha256()
            if isinstance(source, Path) and source.stat().st_size > _PART_BYTES:
                with source.open("rb") as file:
                    obstore.put(
                        self._store,
                        key,
                        _hashed(file, digest),
                        chunk_size=_PART_BYTES,
                        max_concurrency=_PARTS_AT_ONCE,
                    )
            else:
                data = source if isinstance(source, bytes) else source.read_bytes()
                digest.update(data)
                obstore.put(self._store, key, data, use_multipart=False)
            obstore.put(self._store, key + _CHECKSUM, f"{digest.hexdigest()}  {key.rpartition('/')[2]}\n".encode())
            return digest.hexdigest()

        try:
            return await self._run(put)
        except NotFound:
            raise StoreUnavailable(STORE, "no such bucket") from None

    async def get(self, key: str, *, offset: int = 0, etag: str = "") -> AsyncGenerator[bytes, None]:
        """The bytes of an object from an offset on, in pieces of at most `CHUNK_BYTES`, never read ahead of the caller.

        Args:
            key: Its key.
            offset: Bytes to leave out; the size of the object gives nothing.
            etag: Only if this is still its etag.

        Raises:
            NotFound: There is no such object, or no longer with this etag.
        """
        _check(key)
        found = await self.head(key)
        if etag and found.etag != etag:
            raise NotFound("object")
        if offset >= found.size:
            return
        pieces: Iterator[Any] = await self._short(
            lambda: iter(
                obstore.get(self._store, key, options={"range": {"offset": offset}, "if_match": found.etag}).stream(
                    CHUNK_BYTES
                )
            )
        )
        while (piece := await self._run(lambda: next(pieces, None))) is not None:
            view = memoryview(piece)
            for start in range(0, len(view), CHUNK_BYTES):
                yield bytes(view[start : start + CHUNK_BYTES])

    async def head(self, key: str) -> StoredObject:
        """An object without its bytes; raises NotFound if there is none."""
        _check(key)
        return _stored(await self._short(lambda: obstore.head(self._store, key)))

    async def checksum(self, key: str) -> str:
        """SHA-256 that was noted when the object was written here; empty if others wrote it."""
        _check(key)
        try:
            text = await self._short(lambda: bytes(obstore.get(self._store, key + _CHECKSUM).bytes()))
        except NotFound:
            return ""
        found = _DIGEST.match(text[:64].decode("ascii", "replace"))
        return found.group() if found else ""

    async def list(self, prefix: str, *, after: str = "", limit: int) -> list[StoredObject]:
        """Objects under a prefix by key, without their checksums.

        Args:
            prefix: Whole segments, with a slash at the end.
            after: Only keys beyond this one.
            limit: Most objects to give.
        """

        def found() -> list[Any]:
            metas = (
                meta
                for chunk in obstore.list(self._store, prefix, offset=after or None)
                for meta in chunk
                if meta["path"] > after and is_key(meta["path"])
            )
            if self._ordered:
                return list(islice(metas, limit))
            return heapq.nsmallest(limit, metas, key=lambda meta: meta["path"])

        return [_stored(meta) for meta in await self._short(found)]

    async def delete(self, key: str) -> None:
        """Removes an object and its checksum; nothing happens if there is none."""
        _check(key)

        def delete() -> None:
            for each in (key, key + _CHECKSUM):
                with suppress(FileNotFoundError):
                    obstore.delete(self._store, each)

        await self._short(delete)

    async def download_url(self, key: str, lifetime: timedelta) -> str:
        """A URL by which anybody who has it reads the object for a while; empty if the storage is a directory."""
        _check(key)
        store = self._store
        if isinstance(store, LocalStore):
            return ""
        return await self._short(lambda: obstore.sign(store, "GET", key, lifetime))

    async def _short(self, work: Callable[[], T]) -> T:
        async with asyncio.timeout(deadline.remaining(_SHORT_SECONDS)):
            return await self._run(work)

    async def _run(self, work: Callable[[], T]) -> T:
        def translated_work() -> T:
            with _translated():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._threads, translated_work)


def _hashed(file: BinaryIO, digest: hashlib._Hash) -> Iterator[bytes]:
    """The pieces of a file, hashed on their way."""
    while piece := file.read(CHUNK_BYTES):
        digest.update(piece)
        yield piece


def _open(url: str, access: S3Access) -> tuple[LocalStore | S3Store, bool]:
    """The store of a URL, and whether it lists keys in their order."""
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        directory = Path(unquote(parts.path))
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return LocalStore(directory), False
    if parts.scheme == "s3" and parts.netloc and not (parts.query or parts.fragment or parts.username):
        config: S3Config = {"region": access.region}
        if access.endpoint:
            config["endpoint"] = access.endpoint
        if access.key_id:
            config["access_key_id"] = access.key_id
            config["secret_access_key"] = access.secret
        options: ClientConfig = {
            "connect_timeout": timedelta(seconds=3),
            "timeout": timedelta(seconds=30),
            # Only for an endpoint that says http:// itself.
            "allow_http": True,
        }
        store = S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            config=config,
            client_options=options,
            retry_config=_RETRY,
        )
        return store, True
    raise ValueError("the URL of the object storage must be s3://bucket/prefix or file:///directory")


def _check(key: str) -> None:
    if not is_key(key):
        raise NotFound("object")


def _stored(meta: Any) -> StoredObject:
    etag = meta["e_tag"] or f"{meta['size']}-{meta['last_modified'].timestamp()}"
    return StoredObject(meta["path"], meta["size"], etag, meta["last_modified"])


@contextmanager
def _translated() -> Iterator[None]:
    """Turns the library's errors into ours; their texts, which quote addresses, end here."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound("object") from None
    except exceptions.PreconditionError:
        raise NotFound("object") from None
    except (exceptions.BaseError, OSError) as error:
        raise StoreUnavailable(STORE, type(error).__name__) from None
