"""ReportService on the running service: figures that stay as they were, files that are the same bytes each time."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import openpyxl
import pytest
from aiohttp import ClientSession
from google.protobuf.json_format import MessageToDict

from mrm.common.v1 import money_pb2, options_pb2, platform_pb2, time_pb2
from mrm.operations.v1 import change_service_pb2, job_service_pb2
from mrm.planning.v1 import report_pb2
from mrm.planning.v1 import report_service_pb2 as pb
from mrm.statistics.v1 import metrics_pb2, snapshot_pb2, statistics_service_pb2
from server.app import Application
from server.jobs.handling import JobContext, Stores
from server.reports import gathering, measures, pages, report_job, sheets
from server.stores import opened
from storage.clickhouse.metrics import Figures, Run
from storage.postgres import jobs, reports
from storage.postgres.reports import Report, Subject
from tests.conftest import Caller, World, settings_for
from tests.reports.making import LEASE, asked, downloaded, drawn, file, got
from tests.s3 import S3Server

pytestmark = pytest.mark.bar_f

FULL = os.environ.get("MRM_BARS") == "full"
JSON, PDF, XLSX = report_pb2.REPORT_FORMAT_JSON, report_pb2.REPORT_FORMAT_PDF, report_pb2.REPORT_FORMAT_XLSX
RU, EN = report_pb2.REPORT_LANGUAGE_RU, report_pb2.REPORT_LANGUAGE_EN
COMPARISON = report_pb2.REPORT_TYPE_CHANNEL_COMPARISON
DIMENSION = statistics_service_pb2.Dimension
TODAY = datetime.now(UTC).date()
FIRST, LAST = TODAY - timedelta(days=10), TODAY - timedelta(days=4)
DATES = time_pb2.DateRange(start_date=str(FIRST), end_date=str(LAST))
EARLIER = TODAY - timedelta(days=12)


class Place:
    """A project of its own with three campaigns in two currencies, on two platforms."""

    def __init__(self, world: World, client_id: str, project_id: str, campaigns: list[str], key: Caller) -> None:
        self.world, self.client_id, self.project_id = world, client_id, project_id
        self.campaigns, self.key = campaigns, key

    async def tell(self, version: int, cost: int) -> None:
        """Has a platform say what the campaigns reached, in the period and before it."""
        request = statistics_service_pb2.AppendMetricsRequest(
            client_id=self.client_id,
            source=snapshot_pb2.METRICS_SOURCE_PLATFORM,
            version=version,
            attribution_model=snapshot_pb2.ATTRIBUTION_MODEL_LAST_CLICK,
            snapshots=[
                snapshot_pb2.MetricsSnapshot(
                    campaign_id=campaign_id,
                    date=str(day),
                    delivery={"impressions": 3001 + number, "clicks": 70 + number, "cost_micros": cost + number},  # type: ignore[arg-type]
                    outcome={"conversions_micros": 3_400_000, "revenue_micros": 987_654_321},  # type: ignore[arg-type]
                )
                for number, campaign_id in enumerate(self.campaigns)
                for day in (EARLIER, FIRST, FIRST + timedelta(days=3), LAST)
            ],
        )
        await self.key.statistics.AppendMetrics(request, metadata=self.key.auth)

    async def query(self, granularity: int, *dimensions: int) -> list[metrics_pb2.MetricsRow]:
        """What QueryStatistics says of the period."""
        request = statistics_service_pb2.QueryStatisticsRequest(
            dates=DATES,
            granularity=granularity,  # type: ignore[arg-type]
            dimensions=dimensions,  # type: ignore[arg-type]
            filter={"project_ids": [self.project_id]},  # type: ignore[arg-type]
            time_zone="Europe/Moscow",
            compare_previous=True,
        )
        reply = await self.world.admin.statistics.QueryStatistics(request, metadata=self.world.admin.auth)
        return list(reply.rows)


@pytest.fixture(scope="module")
async def stores(world: World) -> AsyncIterator[Stores]:
    async with opened(world.settings, "mrm-test-reports") as found:
        yield found


async def make_place(world: World) -> Place:
    client = await world.client()
    project = await world.project(
        client.client_id,
        display_name="Осень <2026> #1 *жирно* =1+1",
        total_budget=money_pb2.Money(currency_code="RUB", micros=10**12),
    )
    kinds = ((platform_pb2.PLATFORM_YANDEX_DIRECT, "RUB"), (platform_pb2.PLATFORM_OTHER, "RUB"), (3, "USD"))
    campaigns = [
        (await world.campaign(project.project_id, platform=platform, currency_code=currency)).campaign_id
        for platform, currency in kinds
    ]
    return Place(world, client.client_id, project.project_id, campaigns, await world.key([client.client_id]))


@pytest.fixture(scope="module")
async def place(world: World) -> Place:
    made = await make_place(world)
    await made.tell(1, 1_234_567_891)
    return made


def plain(metrics: metrics_pb2.Metrics) -> dict[str, Any]:
    """A message as reports keep it."""
    kept = MessageToDict(metrics, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    whole = ("impressions", "clicks", "cost_micros", "revenue_micros")
    return {name: int(value) if name in whole else value for name, value in kept.items()}


async def test_the_figures_are_those_of_query_statistics_and_stay(world: World, stores: Stores) -> None:
    place = await make_place(world)
    await place.tell(1, 1_234_567_891)
    report = await drawn(world, stores, await asked(world.admin, place.project_id, dates=DATES))
    assert report.status == report_pb2.REPORT_STATUS_READY
    before = await file(world.admin, report.report_id)
    data = json.loads(before)
    assert [each["currency_code"] for each in data["currencies"]] == ["RUB", "USD"]

    async def compare(data: dict[str, Any]) -> None:
        kept = {each["currency_code"]: each for each in data["currencies"]}
        for row in await place.query(time_pb2.GRANULARITY_TOTAL):
            assert kept[row.metrics.currency_code]["metrics"] == plain(row.metrics)
            assert kept[row.metrics.currency_code]["previous_metrics"] == plain(row.previous_metrics)
        for row in await place.query(time_pb2.GRANULARITY_TOTAL, DIMENSION.DIMENSION_PLATFORM):
            [found] = [
                each["metrics"]
                for each in kept[row.metrics.currency_code]["platforms"]
                if each["platform"] == platform_pb2.Platform.Name(row.platform).removeprefix("PLATFORM_").lower()
            ]
            assert found == plain(row.metrics)
        rows = await place.query(time_pb2.GRANULARITY_TOTAL, DIMENSION.DIMENSION_CAMPAIGN)
        assert len(rows) == 3
        for row in rows:
            [found] = [
                each["metrics"]
                for each in kept[row.metrics.currency_code]["campaigns"]
                if each["campaign_id"] == row.campaign_id
            ]
            assert found == plain(row.metrics)
        for row in await place.query(time_pb2.GRANULARITY_DAY):
            [found] = [
                each["metrics"] for each in kept[row.metrics.currency_code]["days"] if each["date"] == row.start_date
            ]
            assert found == (plain(row.metrics) if row.data_present else None)

    await compare(data)
    # The platform changes its mind: the report does not, and one made anew does.
    await place.tell(2, 7_000_000_001)
    assert await file(world.admin, report.report_id) == before
    again = await world.admin.reports.RegenerateReport(
        pb.RegenerateReportRequest(report_id=report.report_id), metadata=world.admin.auth
    )
    assert again.report.previous_report_id == report.report_id
    newer = await drawn(world, stores, again.report)
    told = json.loads(await file(world.admin, newer.report_id))
    assert told["currencies"][0]["metrics"] != data["currencies"][0]["metrics"]
    await compare(told)
    assert await got(world.admin, report.report_id) == report


async def test_a_try_that_is_repeated_draws_what_the_first_one_kept(
    world: World, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = await make_place(world)
    await place.tell(1, 5_000_000)
    report = await asked(world.admin, place.project_id, dates=DATES)

    async def lost(*_: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as broken:
        broken.setattr(type(stores.objects), "put", lost)
        with pytest.raises(ConnectionError):
            await drawn(world, stores, report)
    await place.tell(2, 9_000_000)
    [job] = [await jobs.get_internal(world.database, UUID(report.job_id))]
    assert job is not None
    assert (await got(world.admin, report.report_id)).status == report_pb2.REPORT_STATUS_RUNNING
    await report_job.handle(job, JobContext(stores, job, LEASE))
    kept = json.loads(await file(world.admin, report.report_id))
    assert kept["currencies"][0]["platforms"][0]["metrics"]["cost_micros"] % 5_000_000 < 100
    # Once more: ready is ready.
    assert await report_job.handle(job, JobContext(stores, job, LEASE)) == {"outcome": "ready"}


@pytest.mark.parametrize("language", [RU, EN], ids=["ru", "en"])
@pytest.mark.parametrize("kind", [report_pb2.REPORT_TYPE_PERFORMANCE, COMPARISON], ids=["performance", "comparison"])
async def test_every_format_comes_whole_and_with_its_checksum(
    world: World, stores: Stores, place: Place, kind: int, language: int
) -> None:
    for form, magic in ((JSON, b"{"), (PDF, b"%PDF-"), (XLSX, b"PK")):
        report = await asked(world.admin, place.project_id, dates=DATES, format=form, type=kind, language=language)
        report = await drawn(world, stores, report)
        content = await file(world.admin, report.report_id)
        assert content.startswith(magic)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (report.size_bytes, report.sha256)


async def test_a_download_goes_on_where_it_stopped(world: World, stores: Stores, place: Place) -> None:
    report = await drawn(world, stores, await asked(world.admin, place.project_id, dates=DATES, format=XLSX))
    [whole] = await downloaded(world.admin, report.report_id)
    assert whole.report == report and whole.offset == 0
    [rest] = await downloaded(world.admin, report.report_id, 1000)
    assert rest.data == whole.data[1000:] and rest.offset == 1000
    for beyond in (report.size_bytes, report.size_bytes + 5):
        [end] = await downloaded(world.admin, report.report_id, beyond)
        assert not end.data and end.report == report
    # The storage of tests is a directory: no URL, and that is said by its absence.
    request = pb.GetReportDownloadUrlRequest(report_id=report.report_id)
    told = await world.admin.reports.GetReportDownloadUrl(request, metadata=world.admin.auth)
    assert told.download_url == "" and told.report.sha256 == report.sha256


async def kept(world: World, report: report_pb2.Report, data: dict[str, Any]) -> None:
    """Gives a report that is not made yet figures of a first try."""
    async with world.database.transaction("test") as tx:
        await reports.keep_internal(tx, UUID(report.report_id), data, None)


async def test_a_large_file_comes_in_pieces_and_goes_on_after_a_disconnect(
    world: World, stores: Stores, place: Place
) -> None:
    waiting = await asked(world.admin, place.project_id, dates=DATES)
    data = year(2_000, 2)
    await kept(world, waiting, data)
    report = await drawn(world, stores, waiting)
    assert report.size_bytes > 2 * 2**20
    request = pb.DownloadReportRequest(report_id=report.report_id)
    call = world.admin.reports.DownloadReport(request, metadata=world.admin.auth)
    first = await call.read()
    assert isinstance(first, pb.DownloadReportResponse)
    call.cancel()
    rest = await downloaded(world.admin, report.report_id, len(first.data))
    content = first.data + b"".join(each.data for each in rest)
    assert len(rest) > 1 and max(len(each.data) for each in (first, *rest)) <= 2**20
    assert [each.offset for each in rest] == [
        len(first.data) + sum(len(before.data) for before in rest[:number]) for number in range(len(rest))
    ]
    assert (first.offset, first.report, rest[0].report) == (0, report, report)
    assert hashlib.sha256(content).hexdigest() == report.sha256 and json.loads(content) == data


async def test_a_url_of_the_storage_brings_the_file_to_whoever_has_it_for_a_while(
    world: World, place: Place, s3: S3Server
) -> None:
    settings = settings_for(world.connections)
    settings.objects = s3.settings()
    application = Application(settings)
    await application.start()
    try:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel,
            opened(settings, "mrm-test-reports-s3") as stores,
            ClientSession() as http,
        ):
            admin = Caller(channel, world.admin.token)
            report = await drawn(world, stores, await asked(admin, place.project_id, dates=DATES, format=XLSX))
            request = pb.GetReportDownloadUrlRequest(report_id=report.report_id)
            told = await admin.reports.GetReportDownloadUrl(request, metadata=admin.auth)
            assert s3.access.secret not in told.download_url
            async with http.get(told.download_url) as answer:
                assert answer.status == 200
                content = await answer.read()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (report.size_bytes, report.sha256)
            assert content == await file(admin, report.report_id)
            # It opens this file, and only with its signature.
            for other in (
                told.download_url.partition("?")[0],
                told.download_url.replace(f"{report.report_id}.xlsx", f"{report.report_id}.pdf"),
            ):
                async with http.get(other) as answer:
                    assert answer.status in (401, 403)
            # The other process of the service knows the report, and has no such file.
            with pytest.raises(grpc.aio.AioRpcError):
                await downloaded(world.admin, report.report_id)
    finally:
        await application.stop()


async def test_sheets_hold_numbers_and_charts_under_frozen_headers(world: World, stores: Stores, place: Place) -> None:
    report = await drawn(
        world, stores, await asked(world.admin, place.project_id, dates=DATES, format=XLSX, language=EN)
    )
    book = openpyxl.load_workbook(io.BytesIO(await file(world.admin, report.report_id)))
    names = ("Summary", "Platforms", "Campaigns", "Days")
    assert book.sheetnames == [f"{name} {code}" for code in ("RUB", "USD") for name in names]
    days = book["Days RUB"]
    assert days.freeze_panes == "B2" and len(days._charts) == 1
    assert len(book["Platforms RUB"]._charts) == 2
    costs = [row[4].value for row in days.iter_rows(min_row=2, max_row=8)]
    assert costs[0] == pytest.approx(2 * 1234.567891 + 0.000001) and costs[1] == 0
    assert days["E2"].number_format == "#,##0.00"
    assert days["A2"].value == datetime.combine(FIRST, datetime.min.time())
    summary = book["Summary RUB"]
    # What somebody wrote is text, however it begins.
    assert summary["B3"].value == "Осень <2026> #1 *жирно* =1+1" and summary["B3"].data_type == "s"


async def test_the_state_is_what_the_job_says(world: World, stores: Stores, place: Place) -> None:
    admin = world.admin
    request_id = str(uuid4())
    report = await asked(admin, place.project_id, request_id=request_id)
    assert await asked(admin, place.project_id, request_id=request_id) == report
    assert report.status == report_pb2.REPORT_STATUS_QUEUED and report.creator_id == str(admin.user_id or "")
    for call in (
        admin.reports.GetReportDownloadUrl(
            pb.GetReportDownloadUrlRequest(report_id=report.report_id), metadata=admin.auth
        ),
        downloaded(admin, report.report_id),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    await admin.jobs.CancelJob(job_service_pb2.CancelJobRequest(job_id=report.job_id), metadata=admin.auth)
    assert (await got(admin, report.report_id)).status == report_pb2.REPORT_STATUS_CANCELLED
    failing = await asked(admin, place.project_id)
    [job] = await jobs.claim_internal(world.database, [UUID(failing.job_id)], "test", LEASE)
    await jobs.fail_internal(world.database, job.id, job.fence, "no luck", final=True)
    failed = await got(admin, failing.report_id)
    assert (failed.status, failed.error) == (report_pb2.REPORT_STATUS_FAILED, "no luck")
    ready = await drawn(world, stores, await asked(admin, place.project_id))
    listing = pb.ListReportsRequest(
        filter={"project_id": place.project_id, "statuses": ["REPORT_STATUS_FAILED", "REPORT_STATUS_CANCELLED"]}  # type: ignore[arg-type]
    )
    found = await admin.reports.ListReports(listing, metadata=admin.auth)
    assert [each.report_id for each in found.reports] == [failing.report_id, report.report_id]
    # A report that is ready stays one when its job is forgotten, and cannot be changed.
    await world.database.execute("UPDATE reports SET job_id = $2 WHERE id = $1", UUID(failing.report_id), uuid4())
    assert (await got(admin, failing.report_id)).status == report_pb2.REPORT_STATUS_FAILED
    with pytest.raises(Exception, match="reports_frozen"):
        await world.database.execute("UPDATE reports SET job_id = NULL WHERE id = $1", UUID(ready.report_id))
    changes = await admin.changes.ListChanges(
        change_service_pb2.ListChangesRequest(filter={"resource_id": ready.report_id}),  # type: ignore[arg-type]
        metadata=admin.auth,
    )
    assert {each.action for each in changes.changes} == {"create", "finish"}


async def test_who_may_not_read_figures_gets_none_in_a_report(world: World, place: Place) -> None:
    key = await world.key([place.client_id], options_pb2.PERMISSION_REPORTS_WRITE, options_pb2.PERMISSION_REPORTS_READ)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asked(key, place.project_id)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    specialist = await world.user("specialist", place.client_id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asked(specialist, place.project_id)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        dates = time_pb2.DateRange(start_date="2020-01-01", end_date="2026-01-01")
        await asked(world.admin, place.project_id, dates=dates)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def year(campaigns: int, days: int, kind: str = "performance") -> dict[str, Any]:
    """What is kept of so many campaigns and days; of none, too."""
    last = date(2026, 10, 31)
    first = last - timedelta(days=days - 1)
    report = Report(
        UUID(int=1), UUID(int=2), UUID(int=3), "Europe/Moscow", kind, first, last, "pdf", "ru", "running", None, "",
        None, None, None, None, None, None, None, datetime.now(UTC), "", 0, "", "",
    )  # fmt: skip
    all_days = [first + timedelta(days=number) for number in range(-days, days)]
    by_start = {int(datetime.combine(day, datetime.min.time(), UTC).timestamp()): day for day in all_days}
    runs, names = {}, {}
    for number in range(campaigns):
        campaign_id = UUID(int=100 + number)
        names[campaign_id] = f"Очень длинное название кампании #{number} «для всех»\n*not* [markup] $x$ @y \\z " * 2
        platform = ("yandex_direct", "vk_ads", "other")[number % 3]
        runs["RUB", campaign_id, platform] = Run.of(
            {
                start: Figures(5000 + at % 977, 90 + at % 31, at % 9 * 1_000_000, 10**9 + at % 10**7, 3 * 10**9)
                for at, start in enumerate(by_start, number * 7)
            }
        )
    subject = Subject("Проект " * 30, "RUB", "ООО «Заказчик» & Co")
    kept = gathering._kept(report, subject, 1_790_000_000_123, by_start, runs, names)
    return dict(json.loads(json.dumps(kept)))


@pytest.mark.parametrize("language", ["ru", "en"])
@pytest.mark.parametrize(
    ("campaigns", "days", "kind"),
    [
        (0, 1, "performance"),
        (0, 9, "channel_comparison"),
        (1, 1, "performance"),
        (40, 366, "performance"),
        (7, 90, "channel_comparison"),
        (65, 60, "performance"),
    ],
    ids=["nothing", "nothing-compared", "one-day", "year", "compared", "many"],
)  # fmt: skip
def test_the_same_figures_make_the_same_bytes(campaigns: int, days: int, kind: str, language: str) -> None:
    data = year(campaigns, days, kind)
    for draw in (pages.pdf, sheets.xlsx):
        assert draw(data, language) == draw(data, language)
    book = openpyxl.load_workbook(io.BytesIO(sheets.xlsx(data, language)))
    assert len(book.sheetnames) == (4 if kind == "performance" else 3)


def test_pages_say_what_was_kept() -> None:
    view = pages.view(year(65, 60), "en")
    [section] = view["sections"]
    assert [table["title"] for table in section["tables"]] == ["By week", "Platforms", "Campaigns"]
    campaigns = section["tables"][2]["rows"]
    assert len(campaigns) == 61 and campaigns[-1][0] == "Other campaigns"
    kept = year(65, 60)["currencies"][0]

    def clicks(rows: list[list[str]]) -> int:
        return sum(int(row[2].replace(",", "")) for row in rows)

    for table in section["tables"]:
        assert clicks(table["rows"]) == kept["metrics"]["clicks"] == clicks([table["total"]])
    unit, some = measures.spans(kept)
    assert unit == "week" and sum(span.metrics["clicks"] for span in some if span.metrics) == kept["metrics"]["clicks"]
    russian = pages.view(year(1, 1), "ru")["sections"][0]["cards"][0]
    assert russian["label"] == "Расход" and russian["value"].endswith("\u00a0₽") and "," in russian["value"]


def test_memory_stays_flat() -> None:
    """Resident memory of this process over many reports, after the first few."""
    data = year(40, 366) if FULL else year(4, 40)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    count, warm = (200, 50) if FULL else (35, 20)
    sizes = []
    for number in range(count):
        data["project"]["display_name"] = f"Project {number}"
        pages.pdf(data, "ru")
        sheets.xlsx(data, "ru")
        sizes.append(resident())
    assert sizes[-1] - sizes[warm - 1] < 30 * 2**20


async def test_drawing_lets_the_loop_go_on() -> None:
    data, gaps = year(40, 366), []
    drawing = asyncio.create_task(asyncio.to_thread(pages.pdf, data, "ru"))
    loop = asyncio.get_running_loop()
    while not drawing.done():
        begun = loop.time()
        await asyncio.sleep(0.001)
        gaps.append(loop.time() - begun)
    assert (await drawing).startswith(b"%PDF") and max(gaps) < 0.25
