"""Statistics in files, through the running service: on a directory, and on a server that speaks S3."""

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import pyarrow as pa
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pyarrow import parquet

from mrm.common.v1 import options_pb2, time_pb2
from mrm.statistics.v1 import snapshot_pb2
from mrm.statistics.v1 import statistics_file_service_pb2 as pb
from mrm.statistics.v1 import statistics_service_pb2 as statistics_pb
from server.app import Application
from server.statistics import rowfiles
from server.statistics.event_ids import derived_id
from server.statistics.rowfiles import CHUNK_ROWS, EventRows, RowFile
from storage.clickhouse.connect import ClickHouse
from storage.objects.store import Objects, client_prefix
from tests.conftest import Caller, Failing, World, settings_for
from tests.s3 import S3Server
from tests.statistics.conftest import until

pytestmark = pytest.mark.bar_b

READ, INGEST = options_pb2.PERMISSION_STATISTICS_READ, options_pb2.PERMISSION_STATISTICS_INGEST
LONG_AGO = datetime(2019, 5, 6, 7, 8, 9, 123456, UTC)
DONE, STORING, CHECKING = pb.IMPORT_PHASE_DONE, pb.IMPORT_PHASE_STORING, pb.IMPORT_PHASE_CHECKING


@dataclass
class Desk:
    """A client with campaigns on a service with one kind of storage."""

    world: World
    objects: Objects
    channel: grpc.aio.Channel
    client_id: str
    campaigns: list[str]
    program: Caller

    async def upload(self, data: bytes, name: str = "rows.parquet", piece: int = 500_000) -> pb.StatisticsFile:
        """A file through the service."""

        def requests() -> Iterable[pb.UploadStatisticsFileRequest]:
            yield pb.UploadStatisticsFileRequest(client_id=self.client_id, file_name=name)
            for start in range(0, len(data), piece):
                yield pb.UploadStatisticsFileRequest(data=data[start : start + piece])

        replies = [reply async for reply in self.program.files.UploadStatisticsFile(requests(), metadata=self.auth)]
        assert len(replies) == 1
        return replies[0].file

    async def events(self, key: str, token: str = "") -> list[pb.ImportEventsResponse]:
        """Imports events to the end."""
        request = pb.ImportEventsRequest(client_id=self.client_id, key=key, resume_token=token)
        return [reply async for reply in self.program.files.ImportEvents(request, metadata=self.auth)]

    async def metrics(self, key: str, **fields: Any) -> list[pb.ImportMetricsResponse]:
        """Imports snapshots to the end."""
        values = {"source": snapshot_pb2.METRICS_SOURCE_IMPORT, "version": 1, **fields}
        request = pb.ImportMetricsRequest(client_id=self.client_id, key=key, **values)
        return [reply async for reply in self.program.files.ImportMetrics(request, metadata=self.auth)]

    async def written(self, first: str, last: str, **fields: Any) -> pb.WriteStatisticsFileResponse:
        """Figures by day as a file."""
        replies = [
            reply
            async for reply in self.program.files.WriteStatisticsFile(
                writing(self.client_id, first, last, **fields), metadata=self.auth
            )
        ]
        assert [reply.HasField("file") for reply in replies] == [False] * (len(replies) - 1) + [True]
        return replies[-1]

    async def content(self, key: str, **where: Any) -> bytes:
        """Bytes of a file through the service."""
        request = pb.GetStatisticsFileContentRequest(key=key, **where)
        offset, data = request.offset, b""
        async for reply in self.program.files.GetStatisticsFileContent(request, metadata=self.auth):
            assert reply.offset == offset
            assert reply.HasField("file") == (offset == request.offset)
            data += reply.data
            offset += len(reply.data)
        return data

    async def stored(self) -> tuple[int, int]:
        """Events of the client and how many distinct ids they have, as ClickHouse holds them."""
        store = ClickHouse(self.world.connections.clickhouse_dsn, connections=2)
        try:
            [row] = await store.fetch(
                f"SELECT count(), uniqExact(event_id) FROM campaign_events FINAL WHERE client_id = '{self.client_id}'"
            )
        finally:
            await store.close()
        return row[0], row[1]

    @property
    def auth(self) -> tuple[tuple[str, str], ...]:
        return self.program.auth


def writing(client_id: str, first: str, last: str, **fields: Any) -> pb.WriteStatisticsFileRequest:
    values = {"file_name": "days.parquet", "granularity": time_pb2.GRANULARITY_DAY, **fields}
    return pb.WriteStatisticsFileRequest(
        client_id=client_id, dates=time_pb2.DateRange(start_date=first, end_date=last), **values
    )


async def make_desk(world: World, channel: grpc.aio.Channel, objects: Objects, campaigns: int = 2) -> Desk:
    client_id, campaign_ids = await world.tenant(campaigns)
    key = await world.key([client_id], READ, INGEST)
    return Desk(world, objects, channel, client_id, campaign_ids, Caller(channel, key.token))


@pytest.fixture(scope="module")
async def s3_service(world: World, s3: S3Server) -> AsyncIterator[grpc.aio.Channel]:
    """A second process of the service, as far as the engines can tell: its files lie in S3."""
    settings = settings_for(world.connections)
    settings.objects = s3.settings()
    application = Application(settings)
    await application.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        yield channel
    await application.stop()


@pytest.fixture(params=["file", "s3"])
async def desk(
    request: pytest.FixtureRequest, world: World, s3: S3Server, s3_service: grpc.aio.Channel
) -> AsyncIterator[Desk]:
    if request.param == "file":
        assert world.settings.objects.url is not None
        objects, channel = Objects(world.settings.objects.url), world.channel
    else:
        objects, channel = Objects(s3.url, s3.access), s3_service
    yield await make_desk(world, channel, objects)
    await objects.close()


@pytest.fixture
async def local(world: World) -> AsyncIterator[Desk]:
    assert world.settings.objects.url is not None
    objects = Objects(world.settings.objects.url)
    yield await make_desk(world, world.channel, objects)
    await objects.close()


def as_parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def as_arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=1000)
    return sink.getvalue().to_pybytes()


def times(moments: Iterable[datetime]) -> pa.Array:
    return pa.array(list(moments), pa.timestamp("us", "UTC"))


def event_table(campaigns: list[str], count: int, start: datetime = LONG_AGO, **columns: Any) -> pa.Table:
    """Events a second apart."""
    return pa.table(
        {
            "event_time": times(start + timedelta(seconds=number) for number in range(count)),
            "campaign_id": pa.array([campaigns[number % len(campaigns)] for number in range(count)]),
            "event_type": pa.array(["impression"] * count).dictionary_encode(),
            **columns,
        }
    )


def days_table(campaigns: list[str], days: int) -> tuple[pa.Table, dict[tuple[str, date], tuple[Any, ...]]]:
    """Snapshots of days with figures that a float could not hold, and what they are."""
    chance = random.Random(5)
    figures = {}
    for campaign in campaigns:
        for day in range(days):
            figures[campaign, date(2020, 2, 1) + timedelta(days=day)] = (
                chance.randrange(10**12),
                chance.randrange(10**12),
                chance.randrange(10**15),
                chance.randrange(10**15),
                chance.randrange(10**15),
            )
    names = ("impressions", "clicks", "cost_micros", "conversions_micros", "revenue_micros")
    columns = dict(zip(names, zip(*figures.values(), strict=True), strict=True))
    table = pa.table(
        {
            "campaign_id": pa.array([campaign for campaign, _ in figures]),
            "date": pa.array([day for _, day in figures], pa.date32()),
            **{name: pa.array(values, pa.int64()) for name, values in columns.items()},
        }
    )
    return table, figures


@pytest.mark.parametrize("form", ["parquet", "arrow"])
async def test_snapshots_go_through_files_to_the_last_digit(desk: Desk, form: str) -> None:
    table, figures = days_table(desk.campaigns, 29)
    data = as_parquet(table) if form == "parquet" else as_arrow(table)
    file = await desk.upload(data, f"days.{form}")
    assert file.key == f"{client_prefix(UUID(desk.client_id))}imports/days.{form}"
    assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    for expected in ((len(figures), 0), (0, len(figures))):
        replies = await desk.metrics(file.key)
        last = replies[-1]
        assert (last.phase, last.row_count, last.total_row_count) == (DONE, len(figures), len(figures))
        assert (last.stored_count, last.stale_count) == expected
        assert last.sha256 == file.sha256
        assert replies[0].phase == CHECKING
        assert not replies[0].resume_token

    done = await desk.written("2020-02-01", "2020-02-29", time_zone="UTC")
    content = await desk.content(done.file.key)
    assert hashlib.sha256(content).hexdigest() == done.file.sha256
    assert (done.row_count, done.file.size_bytes) == (len(figures), len(content))
    read = parquet.read_table(pa.BufferReader(content))
    rows = {
        (row["campaign_id"], row["bucket_start"].date()): (
            row["impressions"], row["clicks"], row["cost"], row["conversions"], row["revenue"],
        )
        for row in read.to_pylist()
    }  # fmt: skip
    micros = Decimal("0.000001")
    assert rows == {
        key: (shown, clicked, spent * micros, converted * micros, earned * micros)
        for key, (shown, clicked, spent, converted, earned) in figures.items()
    }
    assert read.schema.field("cost").type == pa.decimal128(38, 6)
    metadata = read.schema.metadata
    assert json.loads(metadata[b"mrm.query"])["client_id"] == desk.client_id
    assert metadata[b"mrm.schema_version"] == b"1"
    watermark = datetime.fromisoformat(metadata[b"mrm.watermark"].decode())
    assert watermark == done.watermark_time.ToDatetime(tzinfo=UTC)
    assert parquet.ParquetFile(pa.BufferReader(content)).metadata.row_group(0).column(0).compression == "ZSTD"

    # From the middle, by the same etag only, and by URL where there is one.
    assert await desk.content(done.file.key, offset=100, etag=done.file.etag) == content[100:]
    assert await desk.content(done.file.key, offset=len(content)) == b""
    if done.download_url:
        assert await asyncio.to_thread(lambda: urllib.request.urlopen(done.download_url).read()) == content
    listed = await desk.program.files.ListStatisticsFiles(
        pb.ListStatisticsFilesRequest(client_id=desk.client_id, page_size=1), metadata=desk.auth
    )
    assert [each.key for each in listed.files] == [done.file.key]
    rest = await desk.program.files.ListStatisticsFiles(
        pb.ListStatisticsFilesRequest(client_id=desk.client_id, page_size=1, page_token=listed.next_page_token),
        metadata=desk.auth,
    )
    assert [each.key for each in rest.files] == [file.key]
    assert not rest.next_page_token
    await desk.written("2020-02-01", "2020-02-02", time_zone="UTC")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await desk.content(done.file.key, offset=100, etag=done.file.etag)
    assert caught.value.code() == grpc.StatusCode.ABORTED


async def test_nothing_measured_makes_an_empty_file_with_columns(local: Desk) -> None:
    done = await local.written("2020-02-01", "2020-02-02")
    table = parquet.read_table(pa.BufferReader(await local.content(done.file.key)))
    assert (done.row_count, table.num_rows, len(table.schema.names)) == (0, 0, 11)


async def test_events_count_once_however_often_they_are_imported(desk: Desk) -> None:
    count = 2 * CHUNK_ROWS + 7
    users = pa.array([None if number % 3 else f"user {number}" for number in range(count)])
    costs = pa.array([number * 1_000_001 % 10**12 for number in range(count)], pa.int64())
    marks = pa.array(
        [[("place", "top")] if number % 2 else [] for number in range(count)], pa.map_(pa.string(), pa.string())
    )
    table = event_table(desk.campaigns, count, user_id=users, cost_micros=costs, attributes=marks)
    # Put there by somebody else: nobody has noted its checksum.
    key = f"{client_prefix(UUID(desk.client_id))}imports/by-hand.arrow"
    data = as_arrow(table)
    await desk.objects.put(key, data)
    replies = await desk.events(key)
    assert (replies[-1].phase, replies[-1].stored_count, replies[-1].quarantined_count) == (DONE, count, 0)
    assert await desk.stored() == (count, count)
    again = await desk.events(key)
    assert again[-1].stored_count == count
    # Whoever comes back with the token repeats nothing at all.
    resumed = await desk.events(key, again[-1].resume_token)
    assert (resumed[-1].row_count, resumed[-1].stored_count) == (count, 0)
    assert await desk.stored() == (count, count)
    store = ClickHouse(desk.world.connections.clickhouse_dsn, connections=2)
    found = await store.fetch(
        "SELECT event_id, event_time, cost, user_id, attributes['place'] FROM campaign_events FINAL"
        f" WHERE client_id = '{desk.client_id}' ORDER BY event_time LIMIT 1 OFFSET 3"
    )
    await store.close()
    [(event_id, at, cost, user, place)] = found
    assert str(event_id) == derived_id(hashlib.sha256(data).hexdigest(), 4, 1)
    assert at.replace(tzinfo=UTC) == LONG_AGO + timedelta(seconds=3)
    assert (cost, place) == (Decimal("3.000003"), "top")
    assert len(user) == 32

    query = statistics_pb.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date="2019-05-01", end_date="2019-05-31"),
        granularity=time_pb2.GRANULARITY_TOTAL,
        filter=statistics_pb.StatisticsFilter(client_ids=[desk.client_id]),
    )

    async def counted() -> bool:
        reply = await desk.program.statistics.QueryStatistics(query, metadata=desk.auth)
        return [(row.metrics.impressions, row.metrics.cost_micros) for row in reply.rows] == [
            (count, sum(costs.to_pylist()))
        ]

    await until(counted)


async def test_what_lies_in_the_future_is_put_aside(local: Desk) -> None:
    moments = [LONG_AGO, datetime.now(UTC) + timedelta(days=400)]
    table = event_table(local.campaigns, 2, event_id=pa.array([str(uuid4()), str(uuid4())]))
    table = table.set_column(0, "event_time", times(moments))
    file = await local.upload(as_parquet(table))
    last = (await local.events(file.key))[-1]
    assert (last.stored_count, last.quarantined_count) == (1, 1)


def replaced(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    index = table.schema.names.index(column)
    type_ = pa.string() if column == "event_type" else table.schema.types[index]
    values = table.column(column).to_pylist()
    values[row] = value
    return table.set_column(index, column, pa.array(values, type_))


async def test_a_file_at_fault_is_named_by_row_and_column_and_nothing_is_stored(local: Desk, failing: Failing) -> None:
    _, [foreign] = await local.world.tenant()
    good = event_table(local.campaigns, CHUNK_ROWS + 10)
    extra = pa.array([2] * good.num_rows, pa.int64())
    row = CHUNK_ROWS + 3
    faults: dict[str, tuple[pa.Table, dict[str, str]]] = {
        "foreign": (
            replaced(good, "campaign_id", row, foreign),
            {f"rows[{row}].campaign_id": "UNKNOWN_CAMPAIGN"},
        ),
        "id": (replaced(good, "campaign_id", 1, "nonsense"), {"rows[1].campaign_id": "STRING_UUID"}),
        "type": (replaced(good, "event_type", row, "view"), {f"rows[{row}].event_type": "EVENT_TYPE"}),
        "time": (replaced(good, "event_time", row, None), {f"rows[{row}].event_time": "REQUIRED"}),
        "floor": (
            replaced(good, "event_time", 2, datetime(1969, 1, 1, tzinfo=UTC)),
            {"rows[2].event_time": "BEFORE_RAW_FLOOR"},
        ),
        "conversions": (good.append_column("conversions_micros", extra), {"rows[0]": "EVENT_CONVERSIONS"}),
        "negative": (
            good.append_column("cost_micros", pa.array([-1] + [0] * (good.num_rows - 1))),
            {"rows[0].cost_micros": "INT64_GTE_LTE"},
        ),
        "unknown": (good.append_column("costs", extra), {"columns.costs": "COLUMN_UNKNOWN"}),
        "kind": (
            good.set_column(0, "event_time", good.column("event_time").cast(pa.string())),
            {"columns.event_time": "COLUMN_TYPE"},
        ),
        "naive": (
            good.set_column(0, "event_time", good.column("event_time").cast(pa.timestamp("us"))),
            {"columns.event_time": "COLUMN_TYPE"},
        ),
        "missing": (good.drop_columns(["event_type"]), {"columns.event_type": "COLUMN_MISSING"}),
    }
    for name, (table, expected) in faults.items():
        file = await local.upload(as_parquet(table))
        refused = await failing(local.events(file.key))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FILE_INVALID"), name
        assert expected.items() <= refused.fields.items(), name
    assert await local.stored() == (0, 0)

    whole, _ = days_table(local.campaigns, 3)
    for table, expected in (
        (replaced(whole, "campaign_id", 4, foreign), {"rows[4].campaign_id": "UNKNOWN_CAMPAIGN"}),
        (replaced(whole, "date", 4, None), {"rows[4].hour": "BUCKET"}),
        (replaced(whole, "date", 4, date(2020, 2, 1)), {"rows[4]": "DUPLICATE"}),
        (replaced(whole, "clicks", 4, None), {"rows[4].clicks": "REQUIRED"}),
        (replaced(whole, "clicks", 4, 10**13), {"rows[4].clicks": "INT64_LTE"}),
        (whole.drop_columns(["clicks"]), {"columns.clicks": "COLUMN_MISSING"}),
    ):
        file = await local.upload(as_parquet(table))
        refused = await failing(local.metrics(file.key))
        assert (refused.reason, refused.fields) == ("FILE_INVALID", expected)


async def test_damaged_files_are_refused(desk: Desk, failing: Failing) -> None:
    table = event_table(desk.campaigns, 3000, user_id=pa.array([uuid4().hex for _ in range(3000)]))
    whole, arrow = as_parquet(table), as_arrow(table)
    for data in (b"", b"PAR1", b"PAR1" * 5, whole[:-1], whole[: len(whole) // 2], arrow[:-200], b"event_time\n2020"):
        file = await desk.upload(data)
        refused = await failing(desk.events(file.key))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FILE_INVALID"), data[:20]
        assert list(refused.fields) == ["key"]
    # Pages in the middle that are something else.
    middle = len(whole) // 2
    file = await desk.upload(whole[: middle - 5000] + os.urandom(10_000) + whole[middle + 5000 :])
    refused = await failing(desk.events(file.key))
    assert refused.reason == "FILE_INVALID"
    assert await desk.stored() == (0, 0)


async def test_a_file_that_changed_where_it_lies_is_refused(local: Desk, failing: Failing) -> None:
    file = await local.upload(as_parquet(event_table(local.campaigns, 5)))
    assert local.world.settings.objects.url is not None
    directory = Path(local.world.settings.objects.url.removeprefix("file://"))
    (directory / file.key).write_bytes(as_parquet(event_table(local.campaigns, 6)))
    refused = await failing(local.events(file.key))
    assert (refused.reason, refused.fields) == ("FILE_INVALID", {"key": "DAMAGED"})
    assert await local.stored() == (0, 0)


async def test_keys_of_other_clients_do_not_exist(local: Desk, failing: Failing) -> None:
    done = await local.written("2020-02-01", "2020-02-02")
    stranger = await make_desk(local.world, local.channel, local.objects)
    own = await stranger.upload(b"")
    for key in (
        done.file.key,
        done.file.key.upper(),
        f"clients/{stranger.client_id}/../{local.client_id}/exports/days.parquet",
        f"clients/{stranger.client_id}/",
        f"clients/{stranger.client_id}/imports/none.parquet",
        "backups/x",
        f"{own.key}.sha256",
    ):
        for call in (
            stranger.content(key),
            stranger.events(key),
            stranger.metrics(key),
            stranger.program.files.GetStatisticsFile(pb.GetStatisticsFileRequest(key=key), metadata=stranger.auth),
        ):
            refused = await failing(call)
            assert (refused.code, refused.metadata["resource_type"]) == (grpc.StatusCode.NOT_FOUND, "file"), key
    stranger.client_id, owned = local.client_id, stranger.client_id
    for call in (
        stranger.written("2020-02-01", "2020-02-02"),
        stranger.upload(b""),
        stranger.events(own.key),
        stranger.program.files.ListStatisticsFiles(
            pb.ListStatisticsFilesRequest(client_id=local.client_id), metadata=stranger.auth
        ),
    ):
        assert (await failing(call)).code == grpc.StatusCode.NOT_FOUND
    stranger.client_id = owned

    # Who reaches both clients still cannot put one's figures, or events, among the other's.
    both = await local.world.key([local.client_id, owned], READ, INGEST)
    local.program = Caller(local.channel, both.token)
    refused = await failing(
        local.written("2020-02-01", "2020-02-02", filter=statistics_pb.StatisticsFilter(client_ids=[owned]))
    )
    assert list(refused.fields) == ["filter.client_ids"]
    assert (await failing(local.events(own.key))).code == grpc.StatusCode.NOT_FOUND

    for permission, calls in (
        (READ, [local.upload(b""), local.events(own.key), local.metrics(own.key)]),
        (INGEST, [local.content(own.key), local.written("2020-02-01", "2020-02-02")]),
    ):
        key = await local.world.key([local.client_id], permission)
        local.program = Caller(local.channel, key.token)
        for call in calls:
            assert (await failing(call)).code == grpc.StatusCode.PERMISSION_DENIED


async def test_an_import_cut_off_by_kill_9_counts_once_when_it_is_repeated(local: Desk) -> None:
    count = 12 * CHUNK_ROWS
    file = await local.upload(as_parquet(event_table(local.campaigns, count), row_group_size=count))
    connections, url = local.world.connections, local.world.settings.objects.url
    environment = {
        **os.environ,
        "MRM_POSTGRES__DSN": connections.postgres_dsn,
        "MRM_CLICKHOUSE__DSN": connections.clickhouse_dsn,
        "MRM_REDIS__DURABLE_DSN": connections.redis_dsn,
        "MRM_OBJECTS__URL": str(url),
    }
    server = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("mrm"), "serve", "--port", "0", env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert server.stderr is not None
        port = None
        while port is None:
            line = json.loads(await asyncio.wait_for(server.stderr.readline(), 60))
            port = line.get("port") if line["event"] == "serving" else None
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = pb.ImportEventsRequest(client_id=local.client_id, key=file.key)
            call = Caller(channel).files.ImportEvents(request, metadata=local.auth)
            token = ""
            with suppress(grpc.aio.AioRpcError):
                async for reply in call:
                    if reply.phase == STORING:
                        token = reply.resume_token
                        server.kill()
            assert call.done()
    finally:
        with suppress(ProcessLookupError):
            server.kill()
        await server.wait()
    stored, distinct = await local.stored()
    assert 0 < stored == distinct
    last = (await local.events(file.key, token))[-1]
    assert (last.phase, last.row_count) == (DONE, count)
    assert await local.stored() == (count, count)
    assert (await local.events(file.key))[-1].stored_count == count
    assert await local.stored() == (count, count)


async def test_tokens_of_another_import_or_file_are_refused(local: Desk, failing: Failing) -> None:
    first = await local.upload(as_parquet(event_table(local.campaigns, 5)), "a.parquet")
    second = await local.upload(as_parquet(event_table(local.campaigns, 5)), "b.parquet")
    token = (await local.events(first.key))[-1].resume_token
    for key, given in ((second.key, token), (first.key, token[:-2])):
        assert (await failing(local.events(key, given))).reason == "RESUME_TOKEN_INVALID"
    await local.upload(as_parquet(event_table(local.campaigns, 6)), "a.parquet")
    assert (await failing(local.events(first.key, token))).reason == "ETAG_MISMATCH"


async def test_s3_away_is_said_and_passes(world: World, tmp_path: Path, failing: Failing) -> None:
    s3 = S3Server(tmp_path / "s3")
    await s3.start()
    settings = settings_for(world.connections)
    settings.objects = s3.settings()
    application = Application(settings)
    await application.start()
    objects = Objects(s3.url, s3.access)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def serving(service: str) -> bool:
            reply = await health.Check(health_pb2.HealthCheckRequest(service=f"mrm.statistics.v1.{service}"))
            return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

        desk = await make_desk(world, channel, objects)
        file = await desk.upload(as_parquet(event_table(desk.campaigns, 5)))
        await s3.stop()
        calls = (
            desk.upload(b"x"),
            desk.events(file.key),
            desk.content(file.key),
            desk.written("2020-01-01", "2020-01-02"),
        )
        for refused in await asyncio.gather(*map(failing, calls)):
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert refused.metadata["store"] == "objects"
        await until(lambda: _not(serving("StatisticsFileService")))
        assert await serving("StatisticsService")
        await s3.start()
        await until(lambda: serving("StatisticsFileService"))
        assert (await desk.events(file.key))[-1].stored_count == 5
    await application.stop()
    await objects.close()
    await s3.stop()


async def _not(answer: Any) -> bool:
    return not await answer


_MEASURE = """
import resource, sys, pathlib
from server.statistics.rowfiles import EventRows, RowFile, Spool
path = pathlib.Path(sys.argv[1])
peaks = []
for name in ("small", "large"):
    spool = Spool(path / "spool")
    for chunk in RowFile(path / name, EventRows("0" * 64, 0)).chunks():
        assert not chunk.violations
        spool.write(chunk.batches)
    assert sum(rows for rows, _ in spool.read()) in (10_000, 150_000)
    spool.close()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(peaks[1] - peaks[0])
"""


@pytest.mark.parametrize("form", ["parquet", "arrow"])
async def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path: Path, form: str) -> None:
    for name, count in (("small", 10_000), ("large", 150_000)):
        users = pa.array([os.urandom(50).hex() for _ in range(count)])
        table = event_table([str(uuid4())], count, user_id=users, revenue_micros=pa.array(range(count)))
        (tmp_path / name).write_bytes(as_parquet(table, row_group_size=count) if form == "parquet" else as_arrow(table))
    assert (tmp_path / "large").stat().st_size > 7_000_000
    grown = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", _MEASURE, str(tmp_path)], check=True, capture_output=True, text=True
    )
    # MiB; the file alone holds 15 of user ids, as events they are 40.
    assert int(grown.stdout) < 16


def test_batches_stay_small_enough_for_one_insert(tmp_path: Path) -> None:
    wide = pa.array([[(f"k{each}", "v" * 500) for each in range(30)]] * 600, pa.map_(pa.string(), pa.string()))
    parquet.write_table(event_table([str(uuid4())], 600, attributes=wide), tmp_path / "wide")
    [chunk] = RowFile(tmp_path / "wide", EventRows("0" * 64, 0)).chunks()
    assert len(chunk.batches) > 1
    assert sum(rows for rows, _ in chunk.batches) == 600
    assert max(len(data) for _, data in chunk.batches) <= rowfiles.MOST_BYTES
