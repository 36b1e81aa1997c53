"""ExportStatistics on real engines, past the pipeline: a fake stream on one side."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from mrm.common.v1 import time_pb2
from mrm.statistics.v1 import statistics_service_pb2 as pb
from server.rpc.call import Call, Principal, StreamCall
from server.rpc.errors import Aborted, InvalidRequest, NotFound, ResourceExhausted, Unavailable
from server.rpc.tokens import TokenCodec
from server.settings import WatchSettings
from server.statistics import export
from server.statistics.export import ExportRpcs
from server.statistics.rules import QueryTooLarge
from storage.clickhouse import exports
from storage.clickhouse.arrow import ArrowCutter, Broken
from storage.clickhouse.connect import ClickHouse, ClickHouseError
from storage.clickhouse.metrics import Selection
from storage.errors import StoreUnavailable
from storage.postgres import campaigns
from storage.scope import EVERYTHING, Scope
from tests.statistics.conftest import Queries, Stores, until

CODEC = TokenCodec(b"k" * 32)
SOMEONE = UUID(int=1)
HOUR, DAY = time_pb2.GRANULARITY_HOUR, time_pb2.GRANULARITY_DAY
ARROW, ROWS = pb.EXPORT_FORMAT_ARROW, pb.EXPORT_FORMAT_ROWS
SCHEMA = pa.schema(
    pa.field(name, kind, nullable=False)
    for names, kind in (
        (("bucket_start",), pa.timestamp("s", "UTC")),
        (("client_id", "project_id", "campaign_id", "platform", "currency_code"), pa.string()),
        (("impressions", "clicks"), pa.uint64()),
        (("conversions", "cost", "revenue"), pa.decimal128(38, 6)),
    )
    for name in names
)


@dataclass
class Reader:
    """A caller's side of an export."""

    messages: list[pb.ExportStatisticsResponse] = field(default_factory=list)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    stop_after: int = 10**9
    on_message: Callable[[int], None] = lambda count: None

    async def write(self, message: bytes) -> None:
        if len(self.messages) >= self.stop_after:
            await asyncio.Event().wait()
        assert len(message) <= 2**20
        self.messages.append(pb.ExportStatisticsResponse.FromString(message))
        self.on_message(len(self.messages))

    def call(self, scope: Scope = EVERYTHING, principal_id: UUID = SOMEONE) -> StreamCall[Any, Any]:
        principal = Principal("user", principal_id, frozenset(), scope)
        return StreamCall("/x", "test", principal, requests=None, write=self.write, draining=self.draining)  # type: ignore[arg-type]

    def table(self) -> pa.Table:
        """What came, each message read on its own."""
        tables = [pa.ipc.open_stream(message.arrow).read_all() for message in self.messages]
        for message, table in zip(self.messages, tables, strict=True):
            assert table.num_rows == message.row_count
            assert table.schema == SCHEMA
        return pa.concat_tables(tables)

    def rows(self) -> list[Any]:
        return [row for message in self.messages for row in message.rows.rows]


@pytest.fixture
def rpcs(stores: Stores) -> ExportRpcs:
    return ExportRpcs(stores.database, stores.clickhouse, CODEC)


def asked(first: str, last: str, granularity: int = HOUR, **fields: Any) -> pb.ExportStatisticsRequest:
    days = time_pb2.DateRange(start_date=first, end_date=last)
    return pb.ExportStatisticsRequest(dates=days, granularity=granularity, **fields)  # type: ignore[arg-type]


def only(*client_ids: UUID) -> pb.StatisticsFilter:
    return pb.StatisticsFilter(client_ids=[str(each) for each in client_ids])


async def exported(rpcs: ExportRpcs, request: pb.ExportStatisticsRequest, **who: Any) -> Reader:
    reader = Reader()
    await rpcs.ExportStatistics(request, reader.call(**who))
    check_course(reader.messages)
    return reader


def check_course(messages: list[pb.ExportStatisticsResponse], offset: int = 0) -> None:
    """No gap, no duplicate, one end."""
    for message in messages:
        assert message.offset == offset
        offset += message.row_count
    assert [message.complete for message in messages] == [False] * (len(messages) - 1) + [True]


async def fill(stores: Stores, made: list[campaigns.Campaign], start: datetime, hours: int, version: int = 1) -> None:
    """Hourly figures as the rebuild writes them, different in every row."""
    for number, campaign in enumerate(made):
        await stores.clickhouse.execute(
            f"""INSERT INTO campaign_metrics_hourly (client_id, campaign_id, platform, source, grain, hour, project_id,
              currency, impressions, clicks, conversions, cost, revenue, event_count, version)
            SELECT '{campaign.client_id}', '{campaign.id}', '{campaign.platform}', 'events', 'hour',
              toDateTime({int(start.timestamp())} + number * 3600, 'UTC'), '{campaign.project_id}',
              '{campaign.currency}', cityHash64(number, {number}) % 100000, cityHash64(number, {number}, 1) % 1000,
              toDecimal128(cityHash64(number, {number}, 2) % 10000000, 0) / 1000000,
              toDecimal128(cityHash64(number, {number}, 3) % 1000000000000, 0) / 1000000,
              toDecimal128(cityHash64(number, {number}, 4) % 1000000000000, 0) / 1000000, 1, {version} + number
            FROM numbers({hours})"""
        )


@pytest.mark.parametrize(
    ("granularity", "zone"),
    [(HOUR, ""), (DAY, "UTC"), (DAY, "Europe/Moscow"), (DAY, "Asia/Vladivostok"), (DAY, "Europe/Berlin")],
)
async def test_it_says_what_a_query_says(stores: Stores, rpcs: ExportRpcs, granularity: int, zone: str) -> None:
    """Over the days on which Berlin's clocks change."""
    client_id, made = await stores.tenant(3)
    made.append(await stores.campaign(client_id, platform="vk_ads", currency="EUR"))
    await fill(stores, made, datetime(2025, 10, 24, tzinfo=UTC), 96)
    days = time_pb2.DateRange(start_date="2025-10-24", end_date="2025-10-27")
    query = pb.QueryStatisticsRequest(
        dates=days,
        granularity=granularity,  # type: ignore[arg-type]
        dimensions=[pb.DIMENSION_CLIENT, pb.DIMENSION_PROJECT, pb.DIMENSION_CAMPAIGN, pb.DIMENSION_PLATFORM],
        filter=only(client_id),
        time_zone=zone,
    )
    reply = await Queries(stores.database, stores.clickhouse).ask(
        query, Call("/x", "test", Principal("user", SOMEONE, frozenset(), EVERYTHING))
    )
    said = {(row.campaign_id, row.start_time.seconds): row for row in reply.rows if row.data_present}
    request = asked("2025-10-24", "2025-10-27", granularity, filter=only(client_id), time_zone=zone)
    table = (await exported(rpcs, request)).table()
    request.format = ROWS
    rows = (await exported(rpcs, request)).rows()
    assert {(row.campaign_id, row.start_time.seconds): row for row in rows} == said
    assert len(rows) == len(said) == table.num_rows > 12
    for row, arrow in zip(rows, table.to_pylist(), strict=True):
        figures = row.metrics
        assert arrow == {
            "bucket_start": row.start_time.ToDatetime(UTC),
            "client_id": row.client_id,
            "project_id": row.project_id,
            "campaign_id": row.campaign_id,
            "platform": "vk_ads" if figures.currency_code == "EUR" else "other",
            "currency_code": figures.currency_code,
            "impressions": figures.impressions,
            "clicks": figures.clicks,
            "conversions": Decimal(figures.conversions),
            "cost": Decimal(figures.cost_micros) / 1_000_000,
            "revenue": Decimal(figures.revenue_micros) / 1_000_000,
        }
    per_campaign: dict[str, list[int]] = {}
    for row in rows:
        per_campaign.setdefault(row.campaign_id, []).append(row.start_time.seconds)
    assert [row.campaign_id for row in rows] == [each for each, at in per_campaign.items() for _ in at]
    assert all(at == sorted(at) for at in per_campaign.values())


async def test_other_sources_count_as_in_a_query(stores: Stores, rpcs: ExportRpcs) -> None:
    client_id, made = await stores.tenant(2)
    start = datetime(2025, 10, 24, tzinfo=UTC)
    await fill(stores, made, start, 48)
    campaign = made[0]
    await stores.clickhouse.execute(
        f"""INSERT INTO campaign_metrics_hourly (client_id, campaign_id, platform, source, grain, hour, project_id,
          currency, impressions, clicks, conversions, cost, revenue, event_count, version, has_outcome)
        VALUES ('{client_id}', '{campaign.id}', 'other', 'platform', 'day', toDateTime('2025-10-25 00:00:00', 'UTC'),
          '{campaign.project_id}', 'RUB', 7, 5, 0, 12.5, 0, 0, 9, false)"""
    )
    await stores.clickhouse.execute(f"INSERT INTO snapshot_campaigns VALUES ('{client_id}', '{campaign.id}')")
    rows = (await exported(rpcs, asked("2025-10-24", "2025-10-25", DAY, filter=only(client_id), format=ROWS))).rows()
    [weighed] = [row for row in rows if row.campaign_id == str(campaign.id) and row.start_date == "2025-10-25"]
    assert len(rows) == 4
    assert (weighed.metrics.impressions, weighed.metrics.cost_micros) == (7, 12_500_000)
    assert weighed.metrics.revenue_micros > 0
    hours = (await exported(rpcs, asked("2025-10-24", "2025-10-25", filter=only(client_id)))).table().to_pylist()
    assert len(hours) == 96
    assert all(
        row["impressions"] == 0
        for row in hours
        if row["campaign_id"] == str(campaign.id) and row["bucket_start"].day == 25
    )


async def test_nothing_is_one_empty_part(stores: Stores, rpcs: ExportRpcs) -> None:
    client_id, _ = await stores.tenant()
    for form in (ARROW, ROWS):
        reader = await exported(rpcs, asked("2025-10-24", "2025-10-25", filter=only(client_id), format=form))
        [message] = reader.messages
        assert message.row_count == 0
        if form == ARROW:
            assert reader.table().num_rows == 0
    with pytest.raises(NotFound):
        await exported(rpcs, asked("2025-10-24", "2025-10-25", filter=only(client_id)), scope=Scope())


@pytest.mark.parametrize("form", [ARROW, ROWS])
async def test_resumed_anywhere_it_goes_on_exactly_there(
    stores: Stores, rpcs: ExportRpcs, form: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BATCH_ROWS", 100)
    monkeypatch.setattr(export, "_ROWS_BATCH", 100)
    client_id, made = await stores.tenant(3)
    await fill(stores, made, datetime(2025, 10, 1, tzinfo=UTC), 480)
    request = asked("2025-10-01", "2025-10-20", filter=only(client_id), format=form)
    whole = await exported(rpcs, request)
    assert len(whole.messages) >= 10
    assert sum(message.row_count for message in whole.messages) == 3 * 480

    def content(reader: Reader) -> Any:
        return reader.table().to_pylist() if form == ARROW else reader.rows()

    for at in (0, 4, len(whole.messages) - 1):
        request.resume_token = whole.messages[at].resume_token
        rest = Reader()
        await rpcs.ExportStatistics(request, rest.call())
        check_course(rest.messages, whole.messages[at].offset + whole.messages[at].row_count)
        joined = Reader(messages=[*whole.messages[: at + 1], *rest.messages])
        assert content(joined) == content(whole)
        assert {message.watermark_time.seconds for message in rest.messages} == {
            whole.messages[0].watermark_time.seconds
        }

    other = (await stores.tenant())[0]
    for wrong, who in (
        (asked("2025-10-01", "2025-10-19", filter=only(client_id), format=form), {}),
        (asked("2025-10-01", "2025-10-20", filter=only(other), format=form), {}),
        (request, {"principal_id": UUID(int=2)}),
    ):
        wrong.resume_token = whole.messages[1].resume_token
        with pytest.raises(InvalidRequest) as refused:
            await exported(rpcs, wrong, **who)
        assert refused.value.reason == "RESUME_TOKEN_INVALID"

    await stores.clickhouse.execute("OPTIMIZE TABLE campaign_metrics_hourly FINAL")
    request.resume_token = whole.messages[4].resume_token
    merged = Reader()
    await rpcs.ExportStatistics(request, merged.call())
    assert merged.messages[-1].complete, "merging changes nothing"

    await fill(stores, made[:1], datetime(2025, 10, 3, tzinfo=UTC), 1, version=10_000)
    restated = Reader()
    with pytest.raises(Aborted) as outdated:
        await rpcs.ExportStatistics(request, restated.call())
    assert outdated.value.reason == "EXPORT_OUTDATED"
    assert restated.messages == []


async def test_draining_ends_it_between_messages(
    stores: Stores, rpcs: ExportRpcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BATCH_ROWS", 100)
    client_id, made = await stores.tenant(2)
    await fill(stores, made, datetime(2025, 10, 1, tzinfo=UTC), 480)
    request = asked("2025-10-01", "2025-10-20", filter=only(client_id))
    reader = Reader()
    reader.on_message = lambda count: reader.draining.set() if count == 3 else None
    with pytest.raises(Unavailable) as ended:
        await rpcs.ExportStatistics(request, reader.call())
    assert ended.value.reason == "SHUTTING_DOWN"
    assert len(reader.messages) == 3
    request.resume_token = reader.messages[-1].resume_token
    rest = Reader()
    await rpcs.ExportStatistics(request, rest.call())
    check_course([*reader.messages, *rest.messages])


async def running(clickhouse: ClickHouse) -> int:
    rows = await clickhouse.fetch(
        "SELECT count() FROM system.processes WHERE query LIKE '%ArrowStream%' AND query NOT LIKE '%system.processes%'"
    )
    return int(rows[0][0])


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError


async def test_a_reader_that_stops_holds_nothing_up(stores: Stores) -> None:
    """Half a million rows: ClickHouse waits for the reader, memory stays flat, leaving ends the statement."""
    client_id, [campaign] = await stores.tenant()
    await stores.clickhouse.execute(
        f"""INSERT INTO campaign_metrics_hourly (client_id, campaign_id, platform, source, grain, hour, project_id,
          currency, impressions, clicks, conversions, cost, revenue, event_count, version)
        SELECT '{client_id}', reinterpretAsUUID(sipHash128(intDiv(number, 700))), 'other', 'events', 'hour',
          toDateTime(1759276800 + number % 700 * 3600, 'UTC'), '{campaign.project_id}', 'RUB', number, 1,
          1.5, toDecimal128(cityHash64(number) % 1000000000, 0) / 1000000, 2.5, 1, 1
        FROM numbers(560000)"""
    )
    request = asked("2025-10-01", "2025-10-31", filter=only(client_id))
    rpcs = ExportRpcs(stores.database, stores.clickhouse, CODEC, WatchSettings(write_timeout=1.0))  # type: ignore[call-arg]

    stuck = Reader(stop_after=2)
    before = resident()
    task = asyncio.create_task(rpcs.ExportStatistics(request, stuck.call()))
    await until(lambda: _true(len(stuck.messages) == 2))
    await asyncio.sleep(0.5)
    assert await running(stores.clickhouse) == 1
    with pytest.raises(ResourceExhausted) as slow:
        await task
    assert slow.value.reason == "READER_TOO_SLOW"
    await until(lambda: _none_running(stores.clickhouse))

    left = Reader(stop_after=1)
    task = asyncio.create_task(rpcs.ExportStatistics(request, left.call()))
    await until(lambda: _true(len(left.messages) == 1))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: _none_running(stores.clickhouse))

    total = 0
    reader = Reader()

    def count(_: int) -> None:
        nonlocal total
        message = reader.messages[-1]
        total += pa.ipc.open_stream(message.arrow).read_all().num_rows
        message.arrow = b""

    reader.on_message = count
    await rpcs.ExportStatistics(request, reader.call())
    assert total == 560_000
    assert resident() - before < 100 * 2**20


async def _true(value: bool) -> bool:
    return value


async def _none_running(clickhouse: ClickHouse) -> bool:
    return await running(clickhouse) == 0


async def test_batches_that_do_not_fit_a_message_are_cut(
    stores: Stores, rpcs: ExportRpcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_MOST_BYTES", 20_000)
    client_id, made = await stores.tenant(2)
    await fill(stores, made, datetime(2025, 10, 1, tzinfo=UTC), 480)
    for form in (ARROW, ROWS):
        reader = await exported(rpcs, asked("2025-10-01", "2025-10-20", filter=only(client_id), format=form))
        assert len(reader.messages) > 3
        assert all(message.ByteSize() <= 21_000 for message in reader.messages)
        count = reader.table().num_rows if form == ARROW else len(reader.rows())
        assert count == 960


async def test_only_so_many_run_at_one_time(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_MOST_EXPORTS", 1)
    monkeypatch.setattr(export, "_TURN_SECONDS", 0.2)
    rpcs = ExportRpcs(stores.database, stores.clickhouse, CODEC)
    client_id, made = await stores.tenant()
    await fill(stores, made, datetime(2025, 10, 1, tzinfo=UTC), 24)
    request = asked("2025-10-01", "2025-10-01", filter=only(client_id))
    first = Reader(stop_after=0)
    task = asyncio.create_task(rpcs.ExportStatistics(request, first.call()))
    await asyncio.sleep(0.1)
    with pytest.raises(ResourceExhausted) as waited:
        await exported(rpcs, request)
    assert waited.value.retry_after == 5.0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await exported(rpcs, request)).table().num_rows == 24


async def test_away_and_refused_are_told_apart(
    stores: Stores, rpcs: ExportRpcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors that come before the answer, in the middle of it, and instead of it."""
    client_id, made = await stores.tenant()
    await fill(stores, made, datetime(2025, 10, 1, tzinfo=UTC), 24)
    request = asked("2025-10-01", "2025-10-01", filter=only(client_id))
    monkeypatch.setitem(exports._SETTINGS, "max_memory_usage", 1000)
    with pytest.raises(QueryTooLarge):
        await exported(rpcs, request)
    late = "SELECT throwIf(number = 900000, 'too far') FROM numbers(1000000) FORMAT ArrowStream"
    monkeypatch.undo()
    monkeypatch.setattr(exports.Extract, "sql", lambda *_: late)
    whole = exports.Extract(Selection(clients=(client_id,)), 0, 3600, ZoneInfo("UTC"), None, False)
    reading = exports.Reading(stores.clickhouse, whole, 0)
    with pytest.raises(ClickHouseError) as broken:
        async for _ in reading.batches():
            pass
    assert broken.value.code == 395
    nowhere = ClickHouse("http://mrm:x@127.0.0.1:9/mrm")
    with pytest.raises(StoreUnavailable):
        async for _ in nowhere.stream("SELECT 1 FORMAT ArrowStream"):
            pass


def test_the_cutter_takes_any_pieces() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"at": [datetime(2025, 1, 1) + timedelta(hours=n) for n in range(50)], "text": ["x" * 9] * 50})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=20)
    stream = sink.getvalue().to_pybytes()
    for size in (1, 7, 64, 100_000):
        cutter = ArrowCutter()
        batches = [batch for at in range(0, len(stream), size) for batch in cutter.feed(stream[at : at + size])]
        cutter.finish()
        assert [batch.rows for batch in batches] == [20, 20, 10]
        joined = cutter.schema + b"".join(batch.message for batch in batches) + b"\xff\xff\xff\xff\0\0\0\0"
        assert pa.ipc.open_stream(joined).read_all() == table
    cutter = ArrowCutter()
    with pytest.raises(Broken):
        list(cutter.feed(stream[:-8] + b"\r\n__exception__ Code: 241. DB::Exception"))
    with pytest.raises(Broken):
        ArrowCutter().finish()
