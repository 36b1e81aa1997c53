"""ExportStatistics: figures in bulk, as Arrow or as rows."""

import asyncio
import hashlib
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp

from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import metrics_pb2, statistics_service_pb2
from mrm_client.batches import varint
from server.rpc import values
from server.rpc.call import StreamCall
from server.rpc.errors import Aborted, InvalidRequest, ResourceExhausted, Unavailable
from server.rpc.tokens import InvalidToken, TokenCodec
from server.settings import WatchSettings
from server.statistics import figures, rules
from server.statistics.buckets import HOUR, Bucket, cut
from server.statistics.reach import Reach, ReachResolver
from server.statistics.watermark import WatermarkReader
from storage.clickhouse import precedence
from storage.clickhouse.arrow import END, Batch
from storage.clickhouse.connect import ClickHouse, ClickHouseError
from storage.clickhouse.exports import BATCH_ROWS, Extract, Reading, fingerprint
from storage.clickhouse.metrics import Figures
from storage.postgres.database import Database
from storage.scope import Scope

ExportCall = StreamCall[statistics_service_pb2.ExportStatisticsRequest, statistics_service_pb2.ExportStatisticsResponse]
Request = statistics_service_pb2.ExportStatisticsRequest
Response = statistics_service_pb2.ExportStatisticsResponse

_PURPOSE = "export_statistics"
# Offset, watermark, fingerprint.
_LAYOUT = struct.Struct(">QQ16s")
# The rest of a message is small, so that messages stay below 1 MiB.
_MOST_BYTES = 2**20 - 8192
_ROWS_BATCH = 2048
# Parts that wait for the caller, beside the one on its way.
_AHEAD = 2
# An export holds one of few connections for as long as its caller reads.
_MOST_EXPORTS = 3
_TURN_SECONDS = 20.0
# ClickHouse's own limits: TOO_MANY_ROWS, MEMORY_LIMIT_EXCEEDED, TOO_MANY_BYTES, TOO_MANY_ROWS_OR_BYTES.
_LIMIT_CODES = frozenset({158, 241, 307, 396})
_ROWS = statistics_service_pb2.EXPORT_FORMAT_ROWS

_ARROW_FIELD, _ROWS_FIELD = (
    bytes((Response.DESCRIPTOR.fields_by_name[name].number << 3 | 2,)) for name in ("arrow", "rows")
)


@dataclass(frozen=True, slots=True)
class Part:
    """Data of one message.

    Attributes:
        rows: How many rows it has.
        field: Tag of the field it belongs into.
        pieces: The field's bytes. Rows in the framing of `ExportRows` that follow one another are the message of all.
    """

    rows: int
    field: bytes
    pieces: tuple[bytes, ...]

    def message(self, head: Response) -> bytes:
        """The serialized message; the data is copied once, where a message object would copy it three times.

        Args:
            head: Everything beside the data.
        """
        head.row_count = self.rows
        return b"".join((head.SerializeToString(), self.field, varint(sum(map(len, self.pieces))), *self.pieces))


@dataclass(frozen=True, slots=True)
class Position:
    """How far an export has come, and what it is an export of.

    Attributes:
        offset: Rows sent.
        watermark: Unix milliseconds.
        state: Fingerprint of the rows behind it.
    """

    offset: int
    watermark: int
    state: bytes


class ExportTokens:
    """Tokens of one export: they pass only for the same caller asking for the same thing, in any process.

    Args:
        codec: Authenticates them.
        request: What is exported.
        call: Who exports.
    """

    def __init__(self, codec: TokenCodec, request: Request, call: ExportCall) -> None:
        self._codec = codec
        self._binding = _binding(request, call)

    def seal(self, position: Position) -> str:
        """The token of a position."""
        payload = _LAYOUT.pack(position.offset, position.watermark, position.state)
        return self._codec.seal(_PURPOSE, self._binding, payload)

    def open(self, token: str) -> Position:
        """The position of a token.

        Raises:
            InvalidRequest: The token is damaged or belongs to another export or caller.
        """
        try:
            return Position(*_LAYOUT.unpack(self._codec.open(_PURPOSE, self._binding, token)))
        except (InvalidToken, struct.error):
            raise InvalidRequest.field(
                "resume_token",
                "RESUME_TOKEN_INVALID",
                "is not a token of this export",
                error_reason="RESUME_TOKEN_INVALID",
            ) from None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request covers.

    Attributes:
        reach: The campaigns.
        start: Begin of the time in Unix seconds.
        end: Its end, excluded.
        zone: Whose days are meant.
        buckets: The days; none for hours.
    """

    reach: Reach
    start: int
    end: int
    zone: ZoneInfo
    buckets: Sequence[Bucket]


class ExportPlanner:
    """Finds out what an export covers, whatever becomes of it.

    Args:
        database: Knows rights.
        clickhouse: Holds the figures.
    """

    def __init__(self, database: Database, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._reach = ReachResolver(database)

    async def plan(self, request: Request, scope: Scope) -> Plan:
        """What a request covers within a scope; the rules of its fields are checked."""
        reached = await self._reach.resolve(scope, rules.read_filter(request.filter))
        zone = values.time_zone(request.time_zone or reached.time_zone or "UTC", "time_zone")
        if request.WhichOneof("period") == "times":
            start, end = rules.times(request.times, "times")
        else:
            start, end = rules.dates(request.dates, zone)
        hourly = request.granularity == time_pb2.GRANULARITY_HOUR
        return Plan(reached, start, end, zone, [] if hourly else cut(request.granularity, zone, start, end))

    async def extract(self, plan: Plan) -> Extract:
        """The rows to read."""
        selection = plan.reach.selection
        mixed = await precedence.has_snapshots(self._clickhouse, selection.clients)
        days = [bucket.start for bucket in plan.buckets] or None
        return Extract(selection, plan.start, plan.end, plan.zone, days, mixed)


@contextmanager
def readable() -> Iterator[None]:
    """Raises QueryTooLarge where ClickHouse refuses to read so much."""
    try:
        yield
    except ClickHouseError as error:
        if error.code in _LIMIT_CODES:
            raise rules.QueryTooLarge("this reads too much: shorten the period or narrow the filter") from None
        raise


class ExportRpcs:
    """RPCs that give figures in bulk.

    Args:
        database: Knows rights and the watermark.
        clickhouse: Holds the figures.
        codec: Authenticates resume tokens.
        settings: Limits.
    """

    def __init__(
        self, database: Database, clickhouse: ClickHouse, codec: TokenCodec, settings: WatchSettings | None = None
    ) -> None:
        self._clickhouse = clickhouse
        self._codec = codec
        self._write_timeout = (settings or WatchSettings()).write_timeout
        self._planner = ExportPlanner(database, clickhouse)
        self._watermark = WatermarkReader(database)
        self._turns = asyncio.Semaphore(_MOST_EXPORTS)

    async def ExportStatistics(self, request: Request, call: ExportCall) -> None:
        """Streams the figures of campaigns by hour or day, all as of one watermark."""
        tokens = ExportTokens(self._codec, request, call)
        begun = tokens.open(request.resume_token) if request.resume_token else None
        plan = await self._planner.plan(request, call.scope)
        async with self._turn():
            with readable():
                extract = await self._planner.extract(plan)
                position = begun or Position(
                    0, await self._watermark.millis(), await fingerprint(self._clickhouse, extract)
                )
                as_rows = request.format == _ROWS
                reading = Reading(self._clickhouse, extract, position.offset, _ROWS_BATCH if as_rows else BATCH_ROWS)
                exporter = Exporter(call, reading, tokens, position, self._write_timeout)
                if begun is not None:
                    exporter.before_first = lambda: self._check(extract, begun)
                await exporter.run(_RowMaker(plan.buckets) if as_rows else None)

    async def _check(self, extract: Extract, begun: Position) -> None:
        """Raises Aborted if what was sent before is not what is being read now."""
        if await fingerprint(self._clickhouse, extract) != begun.state:
            raise Aborted("figures of the export were restated since it began: begin anew", reason="EXPORT_OUTDATED")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise ResourceExhausted("too many exports run at this time, try again", retry_after=5.0) from None
        try:
            yield
        finally:
            self._turns.release()


class Exporter:
    """Sends one caller what a reading gives.

    Args:
        call: The stream.
        reading: Gives the batches.
        tokens: Makes resume tokens.
        position: Where the reading begins.
        write_timeout: A reader that takes nothing for this long is cut off.

    Attributes:
        before_first: Awaited once the reading has begun and before anything is sent.
    """

    def __init__(
        self, call: ExportCall, reading: Reading, tokens: ExportTokens, position: Position, write_timeout: float
    ) -> None:
        self._call = call
        self._reading = reading
        self._tokens = tokens
        self._position = position
        self._write_timeout = write_timeout
        self._parts: asyncio.Queue[Part | None] = asyncio.Queue(_AHEAD)
        self.before_first: Any = None

    async def run(self, maker: "_RowMaker | None") -> None:
        """Streams to the end.

        Args:
            maker: Makes rows; None for Arrow.

        Raises:
            Unavailable: The server shuts down.
            ResourceExhausted: The caller does not read.
        """
        pump = asyncio.create_task(self._pump(maker))
        drained = asyncio.create_task(self._call.draining.wait())
        try:
            part = await self._next(pump, drained)
            if self.before_first is not None:
                # The reading has its snapshot of the tables by now.
                await self.before_first()
            if part is None:
                part = self._nothing(maker)
            while part is not None:
                following = await self._next(pump, drained)
                await self._send(part, following is None)
                part = following
        finally:
            for task in (pump, drained):
                task.cancel()
            await asyncio.gather(pump, drained, return_exceptions=True)

    async def _next(self, pump: "asyncio.Task[None]", drained: "asyncio.Task[Any]") -> Part | None:
        """The next part, None at the end; raises what the reading failed with."""
        if self._call.draining.is_set():
            raise _shutting_down()
        if self._parts.empty():
            if pump.done():
                pump.result()
                return None
            getter = asyncio.ensure_future(self._parts.get())
            try:
                await asyncio.wait({getter, pump, drained}, return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    return getter.result()
            finally:
                getter.cancel()
            return await self._next(pump, drained)
        return self._parts.get_nowait()

    async def _pump(self, maker: "_RowMaker | None") -> None:
        async with aclosing(self._reading.batches()) as batches:
            async for batch in batches:
                async for part in self._cut(batch, maker):
                    await self._parts.put(part)
        await self._parts.put(None)

    async def _cut(self, batch: Batch, maker: "_RowMaker | None") -> AsyncGenerator[Part, None]:
        """A batch in parts that fit a message each."""
        pieces = (self._reading.cutter.schema, batch.message, END)
        if maker is not None:
            for part in await asyncio.to_thread(maker.parts, b"".join(pieces)):
                yield part
        elif sum(map(len, pieces)) <= _MOST_BYTES:
            yield Part(batch.rows, _ARROW_FIELD, pieces)
        else:
            for part in await asyncio.to_thread(_smaller, b"".join(pieces)):
                yield part

    def _nothing(self, maker: "_RowMaker | None") -> Part:
        if maker is not None:
            return Part(0, _ROWS_FIELD, ())
        return Part(0, _ARROW_FIELD, (self._reading.cutter.schema, END))

    async def _send(self, part: Part, complete: bool) -> None:
        before, after = self._position, self._position.offset + part.rows
        self._position = Position(after, before.watermark, before.state)
        head = Response(offset=before.offset, resume_token=self._tokens.seal(self._position), complete=complete)
        if before.watermark:
            head.watermark_time.FromMilliseconds(before.watermark)
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._call.write(part.message(head))
        except TimeoutError:
            raise ResourceExhausted(
                "the stream is not being read: read faster and resume", reason="READER_TOO_SLOW"
            ) from None


class _RowMaker:
    """Makes rows of batches; blocks, so it belongs on a thread.

    Args:
        buckets: The days; none for hours.
    """

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._buckets = {bucket.start: bucket for bucket in buckets}

    def parts(self, stream: bytes) -> list[Part]:
        """The rows of an Arrow stream, in parts that fit a message each."""
        # Imported here and below: most server processes never need its 40 MB.
        import pyarrow as pa

        table = pa.ipc.open_stream(stream).read_all()
        columns = [table.column("bucket_start").cast(pa.int64()), *table.columns[1:]]
        parts: list[Part] = []
        messages: list[bytes] = []
        size = 0
        for row in zip(*(column.to_pylist() for column in columns), strict=True):
            # One row in the framing of a field of `ExportRows`.
            data = statistics_service_pb2.ExportRows(rows=[self._row(*row)]).SerializeToString()
            if size + len(data) > _MOST_BYTES:
                parts.append(Part(len(messages), _ROWS_FIELD, tuple(messages)))
                messages, size = [], 0
            messages.append(data)
            size += len(data)
        if messages:
            parts.append(Part(len(messages), _ROWS_FIELD, tuple(messages)))
        return parts

    def _row(
        self,
        start: int,
        client_id: str,
        project_id: str,
        campaign_id: str,
        platform: str,
        currency: str,
        impressions: int,
        clicks: int,
        *amounts: Decimal,
    ) -> metrics_pb2.MetricsRow:
        bucket = self._buckets.get(start) or Bucket(start, start + HOUR, "")
        conversions, cost, revenue = (int(amount * figures.MICROS) for amount in amounts)
        return metrics_pb2.MetricsRow(
            start_time=Timestamp(seconds=bucket.start),
            end_time=Timestamp(seconds=bucket.end),
            start_date=bucket.start_date,
            client_id=client_id,
            project_id=project_id,
            campaign_id=campaign_id,
            platform=rules.PLATFORMS.number(platform),
            metrics=figures.to_message(Figures(impressions, clicks, conversions, cost, revenue), currency),
            data_present=True,
        )


def _smaller(stream: bytes) -> list[Part]:
    """An Arrow stream of one batch in parts that fit a message each; blocks, so it belongs on a thread."""
    import pyarrow as pa

    batch = pa.ipc.open_stream(stream).read_next_batch()
    waiting, parts = [batch], []
    while waiting:
        batch = waiting.pop()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_batch(batch)
        data = sink.getvalue()
        if data.size <= _MOST_BYTES or batch.num_rows == 1:
            parts.append(Part(batch.num_rows, _ARROW_FIELD, (data.to_pybytes(),)))
        else:
            half = batch.num_rows // 2
            waiting += [batch.slice(half), batch.slice(0, half)]
    return parts


def _binding(request: Request, call: ExportCall) -> bytes:
    wanted = Request()
    wanted.CopyFrom(request)
    wanted.ClearField("resume_token")
    wanted.format = request.format or statistics_service_pb2.EXPORT_FORMAT_ARROW
    chosen = wanted.filter
    for ids in (chosen.client_ids, chosen.project_ids, chosen.campaign_ids):
        ids[:] = sorted({each.lower() for each in ids})
    chosen.platforms[:] = sorted(chosen.platforms)
    caller = f"{call.principal.kind}|{call.principal.lasting_id}|".encode()
    return hashlib.sha256(caller + wanted.SerializeToString(deterministic=True)).digest()


def _shutting_down() -> Unavailable:
    return Unavailable("the server shuts down, connect again and resume", reason="SHUTTING_DOWN", retry_after=0.5)
