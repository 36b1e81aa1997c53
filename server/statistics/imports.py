"""StatisticsFileService, the part that imports: a file is fetched, checked as a whole, then stored batch by batch."""

import asyncio
import hashlib
import re
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from mrm.statistics.v1 import statistics_file_service_pb2 as pb
from mrm.statistics.v1.statistics_service_pb2 import AppendMetricsRequest
from server.rpc import values
from server.rpc.call import StreamCall
from server.rpc.errors import EtagMismatch, InvalidRequest, Violation
from server.rpc.tokens import InvalidToken, TokenCodec
from server.settings import WatchSettings
from server.statistics import wire
from server.statistics.batches import BatchMalformed
from server.statistics.files import ClientFiles, Progress, binding, check_size, turn, workspace
from server.statistics.ingest import Deadline, Ingestor
from server.statistics.relay import CampaignDirectory
from server.statistics.rowfiles import Chunk, EventRows, FileFault, RowFile, RowReader, SnapshotRows, Spool, fault_at
from server.statistics.snapshots import SnapshotWriter
from storage import errors as store_errors
from storage.clickhouse.events import Bounds

_PURPOSE = "import"
# Rows stored, SHA-256 of the file.
_LAYOUT = struct.Struct(">Q32s")
_MOST_IMPORTS = 2
_MOST_FAULTS = 20
_PATIENCE_SECONDS = 30.0
_ROOM_SECONDS = 0.02
_SNAPSHOT_PATH = re.compile(r"snapshots\[(\d+)\]\.?(?:delivery\.|outcome\.)?(.*)")

ImportCall = StreamCall[Any, Any]


@dataclass(slots=True)
class _Source:
    """A file that was fetched.

    Attributes:
        path: Where it is.
        sha256: Digest of its bytes, in hexadecimal.
    """

    path: Path
    sha256: str


@dataclass(slots=True)
class _State:
    """How far an import is.

    Attributes:
        start: Rows that an earlier call has stored.
        total: Rows of the file.
        rows: Rows checked or stored.
        stored: Rows that this call stored.
        ignored: Rows that this call put aside or found stale.
    """

    start: int
    total: int
    rows: int = 0
    stored: int = 0
    ignored: int = 0
    campaigns: set[UUID] = field(default_factory=set)


Message = Callable[[_State, Any, str], Any]


class ImportRpcs:
    """Imports events and snapshots.

    Args:
        files: The files.
        ingestor: Where events go.
        directory: Knows campaigns.
        snapshots: Where snapshots go.
        codec: Authenticates resume tokens.
        settings: How long a slow reader is waited for.
    """

    def __init__(
        self,
        files: ClientFiles,
        ingestor: Ingestor,
        directory: CampaignDirectory,
        snapshots: SnapshotWriter,
        codec: TokenCodec,
        settings: WatchSettings | None = None,
    ) -> None:
        self._files = files
        self._ingestor = ingestor
        self._directory = directory
        self._snapshots = snapshots
        self._codec = codec
        self._write_timeout = (settings or WatchSettings()).write_timeout
        self._turns = asyncio.Semaphore(_MOST_IMPORTS)

    async def ImportEvents(self, request: pb.ImportEventsRequest, call: ImportCall) -> None:
        """Stores the events of a file."""
        client_id = values.required_id(request.client_id, "client_id")
        bounds = await self._ingestor.import_bounds()

        async def check(chunk: Chunk, state: _State) -> Sequence[Violation]:
            return await self._foreign(client_id, chunk, state)

        async def store(rows: int, data: bytes, state: _State) -> None:
            outcome = await self._store_events(client_id, rows, data, bounds, state)
            state.stored += outcome[0]
            state.ignored += outcome[1]

        def message(state: _State, phase: Any, token: str) -> pb.ImportEventsResponse:
            return pb.ImportEventsResponse(
                phase=phase,
                row_count=state.rows,
                total_row_count=state.total,
                stored_count=state.stored,
                quarantined_count=state.ignored,
                resume_token=token,
            )

        work = _Work(client_id, lambda sha256: EventRows(sha256, bounds.lower), check, store, message)
        await self._import(request, call, work)

    async def ImportMetrics(self, request: pb.ImportMetricsRequest, call: ImportCall) -> None:
        """Stores the snapshots of a file."""
        client_id = values.required_id(request.client_id, "client_id")
        head = AppendMetricsRequest(
            client_id=str(client_id),
            source=request.source,
            version=request.version,
            vat_included=request.vat_included,
            attribution_model=request.attribution_model,
            goal_ids=request.goal_ids,
        )

        def readings(data: bytes) -> AppendMetricsRequest:
            reading = AppendMetricsRequest.FromString(data)
            reading.MergeFrom(head)
            return reading

        async def check(chunk: Chunk, state: _State) -> Sequence[Violation]:
            first = chunk.first_row
            for rows, data in chunk.batches:
                try:
                    await self._snapshots.check(readings(data), call.scope)
                except InvalidRequest as error:
                    return [_in_file(each, first) for each in error.violations]
                first += rows
            return ()

        async def store(rows: int, data: bytes, state: _State) -> None:
            reading = readings(data)
            stored = await self._snapshots.store(reading, await self._snapshots.check(reading, call.scope))
            state.stored += stored
            state.ignored += rows - stored

        def message(state: _State, phase: Any, token: str) -> pb.ImportMetricsResponse:
            return pb.ImportMetricsResponse(
                phase=phase,
                row_count=state.rows,
                total_row_count=state.total,
                stored_count=state.stored,
                stale_count=state.ignored,
                resume_token=token,
            )

        await self._import(request, call, _Work(client_id, lambda _: SnapshotRows(), check, store, message))

    async def _import(
        self, request: pb.ImportEventsRequest | pb.ImportMetricsRequest, call: ImportCall, work: "_Work"
    ) -> None:
        await self._files.check_client(call.scope, work.client_id)
        await self._files.check_key(call.scope, request.key, work.client_id)
        bound_to = _binding(request, call)
        begun = self._open(bound_to, request.resume_token) if request.resume_token else None
        progress = Progress(call, self._write_timeout)
        async with turn(self._turns), workspace() as directory:
            source = await self._fetch(request.key, directory, call)
            digest = bytes.fromhex(source.sha256)
            if begun is not None and begun[1] != digest:
                raise EtagMismatch
            state = _State(begun[0] if begun else 0, 0)

            async def tell(phase: Any, token: str, *, at_once: bool = False) -> None:
                message = work.message(state, phase, token)
                message.sha256 = source.sha256
                await progress.tell(message, at_once=at_once)

            async with _spool(directory / "batches") as spool:
                await self._check(source, work, state, spool, tell)
                batches = spool.read()
                state.rows = 0
                while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                    rows, data = batch
                    # Batches of a file are always the same.
                    if state.rows + rows > state.start:
                        await work.store(rows, data, state)
                    state.rows += rows
                    token = self._codec.seal(_PURPOSE, bound_to, _LAYOUT.pack(state.rows, digest))
                    await tell(pb.IMPORT_PHASE_STORING, token)
            token = self._codec.seal(_PURPOSE, bound_to, _LAYOUT.pack(state.rows, digest))
            await tell(pb.IMPORT_PHASE_DONE, token, at_once=True)

    async def _fetch(self, key: str, directory: Path, call: ImportCall) -> _Source:
        """Brings a file here; it is read twice, and not in the order of its bytes."""
        found = await self._files.head(key)
        check_size(found.size, self._files.settings, "key")
        path, digest, size = directory / "file", hashlib.sha256(), 0
        with path.open("wb") as file:
            try:
                async with aclosing(self._files.objects.get(key, etag=found.etag)) as pieces:
                    async for piece in pieces:
                        digest.update(piece)
                        size += len(piece)
                        await asyncio.to_thread(file.write, piece)
            except store_errors.NotFound:
                raise EtagMismatch from None
        noted = await self._files.objects.checksum(key)
        if size != found.size or noted not in ("", digest.hexdigest()):
            raise _refused([Violation("key", "DAMAGED", "the file is not what was once stored")])
        return _Source(path, digest.hexdigest())

    async def _check(self, source: _Source, work: "_Work", state: _State, spool: Spool, tell: Any) -> None:
        """Checks every row and leaves the batches in the spool; raises InvalidRequest if anything is at fault."""
        violations: list[Violation] = []
        try:
            file = await asyncio.to_thread(RowFile, source.path, work.reader(source.sha256))
            state.total = file.total
            await tell(pb.IMPORT_PHASE_CHECKING, "", at_once=True)
            chunks = file.chunks()
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                violations += chunk.violations or await work.check(chunk, state)
                if len(violations) >= _MOST_FAULTS:
                    break
                await asyncio.to_thread(spool.write, chunk.batches)
                state.rows += chunk.rows
                await tell(pb.IMPORT_PHASE_CHECKING, "")
        except FileFault as fault:
            violations += fault.violations
        if violations:
            raise _refused(violations)

    async def _foreign(self, client_id: UUID, chunk: Chunk, state: _State) -> list[Violation]:
        """Faults of campaigns that are not the client's; whether they exist elsewhere is not told."""
        new = chunk.campaigns.keys() - state.campaigns
        if not new:
            return []
        owners = await self._directory.resolve_unknown(new)
        own = {campaign for campaign in new if owners.get(campaign) == client_id}
        state.campaigns |= own
        return [
            fault_at(chunk.campaigns[campaign], "campaign_id", "UNKNOWN_CAMPAIGN", "no such campaign in this client")
            for campaign in sorted(new - own, key=chunk.campaigns.__getitem__)[:_MOST_FAULTS]
        ]

    async def _store_events(
        self, client_id: UUID, rows: int, data: bytes, bounds: Bounds, state: _State
    ) -> tuple[int, int]:
        patience = Deadline(asyncio.get_running_loop().time() + _PATIENCE_SECONDS)
        # Live producers go first.
        while not self._ingestor.has_room(client_id, len(data)) and not patience.over():  # noqa: ASYNC110 - others make room
            await asyncio.sleep(_ROOM_SECONDS)
        try:
            outcome = await self._ingestor.submit(client_id, wire.Batch(data, rows), patience, bounds)
        except BatchMalformed as error:
            # What the check let through and ClickHouse does not.
            raise _refused(
                [fault_at(state.rows + each.index, each.field, "EVENT", each.message) for each in error.errors]
            ) from None
        return outcome.stored, outcome.quarantined

    def _open(self, bound_to: bytes, token: str) -> tuple[int, bytes]:
        try:
            rows, digest = _LAYOUT.unpack(self._codec.open(_PURPOSE, bound_to, token))
        except (InvalidToken, struct.error):
            raise InvalidRequest.field(
                "resume_token",
                "RESUME_TOKEN_INVALID",
                "is not a token of this import",
                error_reason="RESUME_TOKEN_INVALID",
            ) from None
        return rows, digest


@dataclass(frozen=True, slots=True)
class _Work:
    """What differs between imports.

    Attributes:
        client_id: Whose file it is.
        reader: Reads the rows of a file with this checksum.
        check: What is wrong with rows that are messages by themselves.
        store: Stores a batch.
        message: Tells how far the import is.
    """

    client_id: UUID
    reader: Callable[[str], RowReader]
    check: Any
    store: Any
    message: Message


@asynccontextmanager
async def _spool(path: Path) -> AsyncIterator[Spool]:
    spool = Spool(path)
    try:
        yield spool
    finally:
        spool.close()


def _refused(violations: list[Violation]) -> InvalidRequest:
    first = violations[0]
    return InvalidRequest(
        f"the file is refused: {first.field}: {first.description}", reason="FILE_INVALID", violations=violations
    )


def _in_file(violation: Violation, first: int) -> Violation:
    """A fault of a snapshot of a request as one of the file's row."""
    found = _SNAPSHOT_PATH.fullmatch(violation.field)
    if found is None:
        return violation
    return fault_at(first + int(found[1]), found[2], violation.reason, violation.description)


def _binding(request: pb.ImportEventsRequest | pb.ImportMetricsRequest, call: ImportCall) -> bytes:
    bare = type(request).FromString(request.SerializeToString())
    bare.ClearField("resume_token")
    bare.client_id = bare.client_id.lower()
    return binding(call, f"{call.method}|{bare.SerializeToString(deterministic=True).hex()}")
