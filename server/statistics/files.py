"""StatisticsFileService, the part that keeps files: figures into Parquet, files in and out of object storage."""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from mrm.statistics.v1 import statistics_file_service_pb2 as pb
from mrm.statistics.v1 import statistics_service_pb2
from server.rpc import values
from server.rpc.call import Call, StreamCall
from server.rpc.errors import EtagMismatch, InvalidRequest, NotFound, ResourceExhausted, Unavailable
from server.rpc.paging import DEFAULT_PAGE, LARGEST_PAGE
from server.rpc.tokens import InvalidToken, TokenCodec
from server.rpc.validation import validate
from server.settings import ObjectsSettings, WatchSettings
from server.statistics.export import ExportPlanner, readable
from server.statistics.watermark import WatermarkReader
from storage import errors as store_errors
from storage.clickhouse.arrow import END
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.exports import Reading
from storage.objects.store import STORE, Objects, StoredObject, client_prefix, is_key
from storage.postgres import clients
from storage.postgres.database import Database
from storage.scope import Scope

SCHEMA_VERSION = "1"
PROGRESS_SECONDS = 0.5

_PURPOSE = "statistics_files"
_ROW_GROUP = 131_072
_MOST_WRITES = 2
_TURN_SECONDS = 20.0


class ClientFiles:
    """The files of clients, as callers may see them.

    Args:
        database: Knows rights.
        objects: Where files lie; None if the service was given no object storage.
        settings: Limits.
    """

    def __init__(self, database: Database, objects: Objects | None, settings: ObjectsSettings) -> None:
        self._database = database
        self._objects = objects
        self.settings = settings

    @property
    def objects(self) -> Objects:
        """The storage; raises Unavailable if there is none."""
        if self._objects is None:
            raise Unavailable("no object storage is configured: set MRM_OBJECTS__URL", metadata={"store": STORE})
        return self._objects

    async def check_client(self, scope: Scope, client_id: UUID) -> None:
        """Raises NotFound unless the caller sees the client as a whole."""
        if not await clients.visible_ids(self._database, scope, [client_id]):
            raise NotFound.resource("client", str(client_id))

    async def check_key(self, scope: Scope, key: str, client_id: UUID | None = None) -> None:
        """Raises NotFound unless a key lies under a client that the caller sees, or under the one given."""
        owner = _owner(key)
        if owner is None or client_id not in (None, owner):
            raise NotFound.resource("file", key)
        if not await clients.visible_ids(self._database, scope, [owner]):
            raise NotFound.resource("file", key)

    async def head(self, key: str) -> StoredObject:
        """A file that must be there."""
        try:
            return await self.objects.head(key)
        except store_errors.NotFound:
            raise NotFound.resource("file", key) from None

    async def described(self, key: str) -> pb.StatisticsFile:
        """A file with its checksum."""
        message = to_message(await self.head(key))
        message.sha256 = await self.objects.checksum(key)
        return message

    async def url(self, key: str) -> str:
        """Where anybody may download a file for a while; empty if the storage has no such thing."""
        return await self.objects.download_url(key, self.settings.download_lifetime)


class FileRpcs:
    """Writes, lists, gives and takes files.

    Args:
        files: The files.
        database: Knows rights and the watermark.
        clickhouse: Holds the figures.
        codec: Authenticates page tokens.
        settings: How long a slow reader is waited for.
    """

    def __init__(
        self,
        files: ClientFiles,
        database: Database,
        clickhouse: ClickHouse,
        codec: TokenCodec,
        settings: WatchSettings | None = None,
    ) -> None:
        self._files = files
        self._clickhouse = clickhouse
        self._codec = codec
        self._write_timeout = (settings or WatchSettings()).write_timeout
        self._planner = ExportPlanner(database, clickhouse)
        self._watermark = WatermarkReader(database)
        self._turns = asyncio.Semaphore(_MOST_WRITES)

    async def WriteStatisticsFile(
        self,
        request: pb.WriteStatisticsFileRequest,
        call: StreamCall[pb.WriteStatisticsFileRequest, pb.WriteStatisticsFileResponse],
    ) -> None:
        """Writes the figures of a client into a Parquet file."""
        client_id = values.required_id(request.client_id, "client_id")
        await self._files.check_client(call.scope, client_id)
        objects = self._files.objects
        plan = await self._planner.plan(_export_request(request, client_id), call.scope)
        key = f"{client_prefix(client_id)}exports/{request.file_name}"
        async with turn(self._turns), workspace() as directory:
            path = directory / "figures.parquet"
            progress = Progress(call, self._write_timeout)
            with readable():
                extract = await self._planner.extract(plan)
                watermark = await self._watermark.millis()
                reading = Reading(self._clickhouse, extract, 0)
                figures = _FigureFile(path, _metadata(request, watermark))
                try:
                    async with aclosing(reading.batches()) as batches:
                        async for batch in batches:
                            await asyncio.to_thread(figures.add, reading.cutter.schema + batch.message + END)
                            await progress.tell(_written(figures.rows, watermark))
                    await asyncio.to_thread(figures.finish, reading.cutter.schema + END)
                finally:
                    figures.close()
            await objects.put(key, path)
        done = _written(figures.rows, watermark)
        done.file.CopyFrom(await self._files.described(key))
        done.download_url = await self._files.url(key)
        await progress.tell(done, at_once=True)

    async def GetStatisticsFile(self, request: pb.GetStatisticsFileRequest, call: Call) -> pb.GetStatisticsFileResponse:
        """Describes one file."""
        await self._files.check_key(call.scope, request.key)
        file = await self._files.described(request.key)
        return pb.GetStatisticsFileResponse(file=file, download_url=await self._files.url(request.key))

    async def ListStatisticsFiles(
        self, request: pb.ListStatisticsFilesRequest, call: Call
    ) -> pb.ListStatisticsFilesResponse:
        """Lists the files of a client."""
        client_id = values.required_id(request.client_id, "client_id")
        bound_to = binding(call, request.client_id.lower())
        try:
            after = self._codec.open(_PURPOSE, bound_to, request.page_token).decode() if request.page_token else ""
        except InvalidToken:
            raise InvalidRequest.field(
                "page_token", "PAGE_TOKEN_INVALID", "is not a token of this list", error_reason="PAGE_TOKEN_INVALID"
            ) from None
        await self._files.check_client(call.scope, client_id)
        size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
        found = await self._files.objects.list(client_prefix(client_id), after=after, limit=size + 1)
        more = len(found) > size
        return pb.ListStatisticsFilesResponse(
            files=[to_message(each) for each in found[:size]],
            next_page_token=self._codec.seal(_PURPOSE, bound_to, found[size - 1].key.encode()) if more else "",
        )

    async def GetStatisticsFileContent(
        self,
        request: pb.GetStatisticsFileContentRequest,
        call: StreamCall[pb.GetStatisticsFileContentRequest, pb.GetStatisticsFileContentResponse],
    ) -> None:
        """Streams the bytes of a file."""
        await self._files.check_key(call.scope, request.key)
        file = await self._files.described(request.key)
        if request.etag and request.etag != file.etag:
            raise EtagMismatch
        first = pb.GetStatisticsFileContentResponse(offset=request.offset, file=file)
        progress = Progress(call, self._write_timeout)
        offset = request.offset
        try:
            async with aclosing(self._files.objects.get(request.key, offset=offset, etag=file.etag)) as pieces:
                async for piece in pieces:
                    message = pb.GetStatisticsFileContentResponse(data=piece, offset=offset)
                    if offset == request.offset:
                        message.file.CopyFrom(file)
                    await progress.tell(message, at_once=True)
                    offset += len(piece)
        except store_errors.NotFound:
            # It was there a moment ago.
            raise EtagMismatch from None
        if offset == request.offset:
            await progress.tell(first, at_once=True)

    async def UploadStatisticsFile(
        self, call: StreamCall[pb.UploadStatisticsFileRequest, pb.UploadStatisticsFileResponse]
    ) -> None:
        """Takes a file."""
        first = await anext(call.requests, None)
        if first is None:
            return
        for name in ("client_id", "file_name"):
            if not getattr(first, name):
                raise InvalidRequest.field(name, "REQUIRED", "is required on the first request of a call")
        validate(first)
        client_id = UUID(first.client_id)
        await self._files.check_client(call.scope, client_id)
        objects = self._files.objects
        key = f"{client_prefix(client_id)}imports/{first.file_name}"
        async with workspace() as directory:
            path = directory / "upload"
            with path.open("wb") as file:
                await self._take(call, first, file)
            await objects.put(key, path)
        await call.write(pb.UploadStatisticsFileResponse(file=await self._files.described(key)))

    async def _take(
        self,
        call: StreamCall[pb.UploadStatisticsFileRequest, pb.UploadStatisticsFileResponse],
        first: pb.UploadStatisticsFileRequest,
        file: Any,
    ) -> None:
        """Everything that the caller sends, into a file."""
        size = 0
        request: pb.UploadStatisticsFileRequest | None = first
        while request is not None:
            validate(request)
            size += len(request.data)
            check_size(size, self._files.settings, "data")
            await asyncio.to_thread(file.write, request.data)
            check_serving(call)
            request = await anext(call.requests, None)


class Progress:
    """Tells a caller how far its work is, not too often, and cuts off one that does not read.

    Args:
        call: The stream.
        write_timeout: Seconds until a reader that takes nothing is cut off.
    """

    def __init__(self, call: StreamCall[Any, Any], write_timeout: float) -> None:
        self._call = call
        self._write_timeout = write_timeout
        self._told = time.monotonic()

    async def tell(self, message: Message, *, at_once: bool = False) -> None:
        """Sends a message, unless one was sent a moment ago and this one may be left out.

        Raises:
            Unavailable: The server shuts down.
            ResourceExhausted: The caller does not read.
        """
        check_serving(self._call)
        now = time.monotonic()
        if not at_once and now - self._told < PROGRESS_SECONDS:
            return
        self._told = now
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._call.write(message)
        except TimeoutError:
            raise ResourceExhausted("the stream is not being read: read faster", reason="READER_TOO_SLOW") from None


class _FigureFile:
    """A Parquet file of figures. Its methods block, so they belong on a thread.

    Args:
        path: The file.
        metadata: What its key-value metadata say.

    Attributes:
        rows: Rows taken so far.
    """

    def __init__(self, path: Path, metadata: dict[str, str]) -> None:
        self._path = path
        self._metadata = metadata
        self._writer: Any = None
        self._held: list[Any] = []
        self._held_rows = 0
        self.rows = 0

    def add(self, stream: bytes) -> None:
        """Takes the rows of an Arrow stream."""
        # Imported here: most server processes never need its 40 MB.
        import pyarrow as pa

        table = pa.ipc.open_stream(stream).read_all()
        if self._writer is None:
            from pyarrow import parquet

            schema = table.schema.with_metadata(self._metadata)
            self._writer = parquet.ParquetWriter(self._path, schema, compression="zstd")
        self._held.append(table.replace_schema_metadata(self._metadata))
        self._held_rows += table.num_rows
        self.rows += table.num_rows
        if self._held_rows >= _ROW_GROUP:
            self._flush()

    def finish(self, empty: bytes) -> None:
        """Completes the file; `empty` is an Arrow stream without rows, for a file that would have no schema."""
        if self._writer is None:
            self.add(empty)
        self._flush()
        self._writer.close()

    def close(self) -> None:
        """Gives the file up unless it is complete."""
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        held, self._held, self._held_rows = self._held, [], 0
        self._writer.write_table(pa.concat_tables(held).combine_chunks(), row_group_size=2 * _ROW_GROUP)


@asynccontextmanager
async def workspace() -> AsyncIterator[Path]:
    """A directory for the length of a block."""
    directory = tempfile.TemporaryDirectory(prefix="mrm-files-", ignore_cleanup_errors=True)
    try:
        yield Path(directory.name)
    finally:
        directory.cleanup()


@asynccontextmanager
async def turn(turns: asyncio.Semaphore) -> AsyncIterator[None]:
    """Waits for one of few places; raises ResourceExhausted if none becomes free."""
    try:
        async with asyncio.timeout(_TURN_SECONDS):
            await turns.acquire()
    except TimeoutError:
        raise ResourceExhausted("too many files are being moved, try again", retry_after=5.0) from None
    try:
        yield
    finally:
        turns.release()


def check_serving(call: StreamCall[Any, Any]) -> None:
    """Raises Unavailable once the server shuts down."""
    if call.draining.is_set():
        raise Unavailable("the server shuts down, connect again", reason="SHUTTING_DOWN", retry_after=0.5)


def check_size(size: int, settings: ObjectsSettings, field: str) -> None:
    """Raises InvalidRequest if a file is larger than the service takes."""
    if size > settings.max_file_bytes:
        raise InvalidRequest.field(
            field,
            "FILE_TOO_LARGE",
            f"is a file of more than {settings.max_file_bytes} bytes",
            error_reason="FILE_INVALID",
        )


def binding(call: Call, what: str) -> bytes:
    """What tokens about files are bound to: the caller and what it asked for."""
    return hashlib.sha256(f"{call.principal.kind}|{call.principal.principal_id}|{what}".encode()).digest()


def to_message(stored: StoredObject) -> pb.StatisticsFile:
    """A file as callers see it, without its checksum."""
    return pb.StatisticsFile(
        key=stored.key, size_bytes=stored.size, etag=stored.etag, write_time=values.timestamp(stored.modified)
    )


def _owner(key: str) -> UUID | None:
    """The client a key belongs to, None if it is none of a client's file."""
    top, _, rest = key.partition("/")
    name, _, rest = rest.partition("/")
    if top != "clients" or not rest or not is_key(key):
        return None
    try:
        owner = UUID(name)
    except ValueError:
        return None
    # Other spellings of the same id are other keys.
    return owner if key.startswith(client_prefix(owner)) else None


def _export_request(
    request: pb.WriteStatisticsFileRequest, client_id: UUID
) -> statistics_service_pb2.ExportStatisticsRequest:
    """The same question as an export: of this client alone, whose members are who may read the file."""
    if any(UUID(each) != client_id for each in request.filter.client_ids):
        raise InvalidRequest.field("filter.client_ids", "OTHER_CLIENT", "may name the client of the file only")
    wanted = statistics_service_pb2.ExportStatisticsRequest(
        granularity=request.granularity, filter=request.filter, time_zone=request.time_zone
    )
    wanted.filter.client_ids[:] = [str(client_id)]
    if request.WhichOneof("period") == "times":
        wanted.times.CopyFrom(request.times)
    else:
        wanted.dates.CopyFrom(request.dates)
    return wanted


def _metadata(request: pb.WriteStatisticsFileRequest, watermark: int) -> dict[str, str]:
    return {
        "mrm.schema_version": SCHEMA_VERSION,
        "mrm.watermark": datetime.fromtimestamp(watermark / 1000, UTC).isoformat(),
        "mrm.query": MessageToJson(request, preserving_proto_field_name=True, indent=None),
    }


def _written(rows: int, watermark: int) -> pb.WriteStatisticsFileResponse:
    message = pb.WriteStatisticsFileResponse(row_count=rows)
    if watermark:
        message.watermark_time.FromMilliseconds(watermark)
    return message
