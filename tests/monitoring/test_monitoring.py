"""What a server tells of itself: metrics, spans, logs, usage, schemas."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import grpc
import httpx2
import pytest
import structlog
from aiohttp import web
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from mrm.campaigns.v1 import campaign_service_pb2
from mrm.common.v1 import options_pb2, time_pb2
from mrm.operations.v1 import system_service_pb2, usage_pb2, usage_service_pb2
from mrm.statistics.v1 import event_pb2, statistics_service_pb2
from server.app import Application
from server.cli import top
from server.cli.top import Overview, Reading, quantile
from server.errors import StartError
from server.jobs import retention
from server.jobs.handling import JobContext, Stores
from server.rpc import logs
from server.rpc.call import ANONYMOUS
from server.rpc.tracing import trace_id_of
from server.rpc.usage import Attribution
from storage.migrations import load
from storage.postgres import jobs
from storage.postgres.migrating import DIRECTORY
from storage.scope import Scope
from tests.conftest import Caller, Failing, World, impression
from tests.every_rpc.cases import METHODS

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
pytestmark = pytest.mark.bar_h

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass
class Collector:
    """An OpenTelemetry collector that keeps what it is sent."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        """Answers one export."""
        sent = ExportTraceServiceRequest.FromString(await request.read())
        self.spans += [span for each in sent.resource_spans for scope in each.scope_spans for span in scope.spans]
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def of_trace(self, trace: str, count: int) -> dict[str, Span]:
        """Spans of a trace by name, once there are so many."""
        async with asyncio.timeout(20):
            while len(found := [span for span in self.spans if span.trace_id.hex() == trace]) < count:
                await asyncio.sleep(0.02)
        return {span.name: span for span in found}


@dataclass
class Observed:
    """A server that tells everything, beside the one of all tests and on the same engines."""

    application: Application
    admin: Caller
    collector: Collector

    async def scrape(self) -> str:
        """What Prometheus would read."""
        async with httpx2.AsyncClient(trust_env=False) as http:
            reply = await http.get(f"http://127.0.0.1:{self.application.monitoring_port}/metrics")
        reply.raise_for_status()
        return reply.text

    async def reading(self) -> Reading:
        """The same, read."""
        reading = Reading(asyncio.get_running_loop().time())
        reading.take(await self.scrape())
        return reading


@pytest.fixture(scope="module")
async def observed(world: World) -> AsyncIterator[Observed]:
    patch = pytest.MonkeyPatch()
    patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    collector, app = Collector(), web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    settings = world.settings.model_copy(deep=True)
    settings.monitoring.port, settings.monitoring.interval = 0, 0.2
    settings.tracing.endpoint, settings.tracing.ratio = collector.url, 0.0
    application = Application(settings)
    try:
        await application.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
            yield Observed(application, Caller(channel, world.admin.token), collector)
    finally:
        await application.stop()
        await runner.cleanup()
        patch.undo()


async def get_campaign(caller: Caller, campaign_id: str, *metadata: tuple[str, str]) -> None:
    request = campaign_service_pb2.GetCampaignRequest(campaign_id=campaign_id)
    await caller.campaigns.GetCampaign(request, metadata=(*caller.auth, *metadata))


async def test_calls_are_counted_by_method_and_code(world: World, observed: Observed, failing: Failing) -> None:
    _, (campaign,) = await world.tenant()
    before = await observed.reading()
    for _ in range(3):
        await get_campaign(observed.admin, campaign)
    await failing(get_campaign(observed.admin, str(uuid4())))
    after = await observed.reading()
    method = frozenset({("grpc_service", "mrm.campaigns.v1.CampaignService"), ("grpc_method", "GetCampaign")})

    def grown(name: str, *labels: tuple[str, str]) -> float:
        key = name, method | set(labels)
        return after.counts[key] - before.counts[key]

    assert grown("grpc_server_started_total") == 4
    assert grown("grpc_server_handled_total", ("grpc_code", "OK")) == 3
    assert grown("grpc_server_handled_total", ("grpc_code", "NOT_FOUND")) == 1
    assert grown("grpc_server_handling_seconds_count") == 4
    assert grown("grpc_server_handling_seconds_bucket", ("le", "+Inf")) == 4
    assert 0 < grown("grpc_server_handling_seconds_sum") < 20
    calls = Overview(before, after).calls(("mrm.campaigns.v1.CampaignService", "GetCampaign"))
    assert calls.rate > 0 and calls.failed == 0
    assert calls.p50 is not None and calls.p99 is not None and calls.p50 <= calls.p99


async def test_no_label_names_a_tenant(world: World, observed: Observed) -> None:
    client, (campaign,) = await world.tenant()
    await get_campaign(observed.admin, campaign)
    await _ingest(await _key(world, observed, client), client, [impression(campaign)])
    text = await observed.scrape()
    assert "mrm_ingest_events_total" in text
    assert not _UUID.search(text)


async def test_open_streams_stores_queues_and_pools_are_told(world: World, observed: Observed) -> None:
    client, _ = await world.tenant()
    request = statistics_service_pb2.WatchMetricsRequest(
        client_id=client, window=statistics_service_pb2.WATCH_WINDOW_TODAY
    )
    watch = observed.admin.statistics.WatchMetrics(request, metadata=observed.admin.auth)
    await watch.read()
    reading = await observed.reading()
    assert reading.state("mrm_streams_open", grpc_method="WatchMetrics") == 1
    assert reading.total("mrm_watchers") == 1
    assert (reading.state("mrm_watch_lag_seconds") or 0) < 15
    watch.cancel()
    for store in ("postgresql", "redis", "clickhouse", "objects"):
        assert reading.state("mrm_store_up", store=store) == 1
    for queue in ("sync", "reports", "email", "maintenance"):
        assert reading.state("mrm_queue_jobs", queue=queue, state="due") is not None
        assert (reading.state("mrm_queue_age_seconds", queue=queue) or 0) >= 0
    used, limit = (
        reading.state("mrm_pool_connections", pool="background", state="used"),
        reading.state("mrm_pool_limit", pool="background"),
    )
    assert used is not None and limit == 4 and used <= limit
    assert reading.state("mrm_rebuild_lag_seconds") is not None
    assert reading.state("mrm_relay_lag_seconds") is not None
    assert reading.state("mrm_alerts", severity="critical", status="open") is not None
    assert (reading.state("process_resident_memory_bytes") or 0) > 1e7
    async with asyncio.timeout(10):
        while (await observed.reading()).total("mrm_streams_open"):
            await asyncio.sleep(0.05)


async def test_a_queue_that_waits_grows_old(world: World, observed: Observed) -> None:
    async with world.database.transaction("enqueue") as tx:
        # No worker runs here.
        job = await jobs.enqueue_internal(tx, type="apply_retention", queue="maintenance", payload={"table": "jobs"})
    assert job is not None
    await world.database.execute(
        "UPDATE jobs SET scheduled_at = clock_timestamp() - interval '1 hour' WHERE id = $1", job.id
    )
    try:
        async with asyncio.timeout(10):
            while (await _state(observed, "mrm_queue_age_seconds", queue="maintenance")) < 3600:
                await asyncio.sleep(0.1)
        assert await _state(observed, "mrm_queue_jobs", queue="maintenance", state="due") >= 1
    finally:
        await jobs.cancel_internal(world.database, job.id)


async def test_what_must_happen_again_and_again_leaves_a_time(world: World, observed: Observed, stores: Stores) -> None:
    async with world.database.transaction("enqueue") as tx:
        job = await jobs.enqueue_internal(tx, type="apply_retention", queue="maintenance", payload={"table": "emails"})
    assert job is not None
    begun = datetime.now(UTC).timestamp() - 1
    await retention.handle(job, JobContext(stores, job, timedelta(minutes=1)))
    async with asyncio.timeout(10):
        while await _state(observed, "mrm_milestone_timestamp_seconds", milestone="retention.emails") < begun:
            await asyncio.sleep(0.1)
    await jobs.cancel_internal(world.database, job.id)


async def test_metrics_are_off_unless_asked_for(world: World, observed: Observed) -> None:
    assert world.settings.monitoring.port is None
    assert world.application.monitoring_port == 0
    assert observed.application.monitoring_port


async def test_a_port_that_is_taken_is_said(world: World, observed: Observed) -> None:
    settings = world.settings.model_copy(deep=True)
    settings.monitoring.port = observed.application.monitoring_port
    with pytest.raises(StartError, match=f"127.0.0.1:{settings.monitoring.port}"):
        await Application(settings).start()


async def test_a_trace_goes_on_through_the_call_and_its_stores(world: World, observed: Observed) -> None:
    _, (campaign,) = await world.tenant()
    await get_campaign(observed.admin, campaign, ("traceparent", f"00-{TRACE}-{PARENT}-01"))
    spans = await observed.collector.of_trace(TRACE, 3)
    call = spans["mrm.campaigns.v1.CampaignService/GetCampaign"]
    assert call.parent_span_id.hex() == PARENT
    assert call.kind == Span.SPAN_KIND_SERVER
    assert {each.key: each.value.string_value for each in call.attributes}["rpc.response.status_code"] == "OK"
    stores = {name.partition(" ")[0]: span for name, span in spans.items() if span is not call}
    assert {"postgresql", "redis"} <= set(stores)
    for span in stores.values():
        assert span.parent_span_id == call.span_id
        assert call.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    # Values of parameters stay here.
    assert campaign not in str(spans) and observed.admin.token not in str(spans)


@pytest.mark.parametrize("flags", ["00", None], ids=["not-sampled", "none-given"])
async def test_calls_outside_the_share_leave_no_span(world: World, observed: Observed, flags: str | None) -> None:
    _, (campaign,) = await world.tenant()
    marker, unwanted = uuid4().hex, uuid4().hex
    metadata = [("traceparent", f"00-{unwanted}-{PARENT}-{flags}")] if flags else []
    before = len(observed.collector.spans)
    await get_campaign(observed.admin, campaign, *metadata)
    await get_campaign(observed.admin, campaign, ("traceparent", f"00-{marker}-{PARENT}-01"))
    await observed.collector.of_trace(marker, 3)
    assert {span.trace_id.hex() for span in observed.collector.spans[before:]} == {marker}


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (f"00-{TRACE}-{PARENT}-01", TRACE),
        (f"00-{TRACE}-{PARENT}-00", TRACE),
        (f"cc-{TRACE}-{PARENT}-01-more", TRACE),
        (f"00-{TRACE}-{PARENT}-01-more", ""),
        (f"ff-{TRACE}-{PARENT}-01", ""),
        (f"00-{'0' * 32}-{PARENT}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-{PARENT}-01", ""),
        ("", ""),
    ],
    ids=["sampled", "unsampled", "later", "long", "forbidden", "no-trace", "no-parent", "upper", "empty"],
)
def test_a_traceparent_is_read_as_the_w3c_says(traceparent: str, trace: str) -> None:
    assert trace_id_of(traceparent) == trace


async def test_every_line_of_a_call_names_request_and_trace(
    world: World, failing: Failing, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Also on a server that traces nothing: the ids are the caller's."""
    _, (campaign,) = await world.tenant()

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("server.campaigns.campaign_service.campaigns.get", broken)
    # Logs go where standard error was when the server was set up.
    written, configured = io.BytesIO(), structlog.get_config()
    logger = structlog.wrap_logger(
        structlog.BytesLogger(written), configured["processors"], configured["wrapper_class"], component="rpc"
    )
    monkeypatch.setattr(world.application._pipeline, "_log", logger)
    capfdbinary.readouterr()
    metadata = ("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "of-this-test")
    failure = await failing(get_campaign(world.admin, campaign, *metadata))
    assert failure.code == grpc.StatusCode.INTERNAL
    text = written.getvalue() + capfdbinary.readouterr().err
    lines = [json.loads(line) for line in text.splitlines() if line.startswith(b"{")]
    mine = [line for line in lines if line.get("request_id") == "of-this-test"]
    assert {line["event"] for line in mine} >= {"call", "call_failed"}
    assert {line["trace_id"] for line in mine} == {TRACE}


def test_logs_of_a_task_carry_its_ids() -> None:
    logs.bind_request("r-1", TRACE)
    assert logs.add_request_id(None, "", {}) == {"request_id": "r-1", "trace_id": TRACE}


async def test_usage_is_counted_by_client_and_day(world: World, observed: Observed, failing: Failing) -> None:
    client, (campaign,) = await world.tenant()
    other, _ = await world.tenant()
    key = await _key(world, observed, client)
    # The world's own server counts what made all this, and every look at the usage below.
    await _flushed(world.application)
    before = await _calls(world, client)
    event = impression(campaign)
    for _ in range(2):
        await _ingest(key, client, [event, impression(campaign)])
    for _ in range(3):
        await get_campaign(observed.admin, campaign)
    await failing(get_campaign(key, campaign))
    today = datetime.now(UTC).date().isoformat()
    export = statistics_service_pb2.ExportStatisticsRequest(
        dates=time_pb2.DateRange(start_date=today, end_date=today),
        granularity=time_pb2.GRANULARITY_DAY,
        filter=statistics_service_pb2.StatisticsFilter(client_ids=[client]),
    )
    async for _ in observed.admin.statistics.ExportStatistics(export, metadata=observed.admin.auth):
        pass
    await _flushed(observed.application)
    # One event was sent twice and is one; two appends, three reads, one export.
    assert await _calls(world, client) - before == 6
    async with asyncio.timeout(20):
        while (day := (await _usage(world, client))[-1]).event_count < 3:
            await asyncio.sleep(0.1)
    assert day.date == today
    assert (day.event_count, day.export_count) == (3, 1)
    assert day.call_count >= before + 6
    assert day.figure_row_count >= 1
    assert [each.call_count for each in await _usage(world, client)][:-1] == [0, 0]
    assert (await _usage(world, other))[-1].event_count == 0


@pytest.mark.parametrize("name", METHODS)
def test_calls_of_every_rpc_can_be_counted(name: str) -> None:
    """A reply that names nobody is of nobody, or of the client that the key is for."""
    method, client = METHODS[name], uuid4()
    attribution = Attribution.of(method)
    request, reply = (GetMessageClass(each)() for each in (method.input_type, method.output_type))
    assert attribution.clients(request, reply, ANONYMOUS) == ()
    key = replace(ANONYMOUS, scope=Scope(client_ids=(client,)))
    assert attribution.clients(request, reply, key) == (str(client),)
    page = next((field for field in method.output_type.fields if field.is_repeated), None)
    if page is not None and page.message_type is not None and not page.message_type.GetOptions().map_entry:
        getattr(reply, page.name).add()
        assert attribution.clients(request, reply, ANONYMOUS) == ()


async def test_managers_of_a_client_see_its_usage_and_others_do_not(world: World, failing: Failing) -> None:
    client, _ = await world.tenant()
    manager, stranger = await world.user("account_manager", client), await world.user("account_manager")
    analyst = await world.user("analyst", client)
    assert len(await _usage(world, client, manager)) == 3
    assert (await failing(_usage(world, client, stranger))).code == grpc.StatusCode.NOT_FOUND
    assert (await failing(_usage(world, client, analyst))).code == grpc.StatusCode.PERMISSION_DENIED


async def test_migrations_are_told_to_those_who_see_everything(world: World, failing: Failing) -> None:
    request = system_service_pb2.GetMigrationStatusRequest()
    reply = await world.admin.system.GetMigrationStatus(request, metadata=world.admin.auth)
    assert reply.complete and reply.build_version
    engines = {engine.engine: engine.migrations for engine in reply.engines}
    assert set(engines) == {"postgresql", "clickhouse"}
    assert [each.version for each in engines["postgresql"]] == [each.version for each in load(DIRECTORY)]
    assert all(each.state == system_service_pb2.MIGRATION_STATE_APPLIED for each in engines["clickhouse"])
    assert all(each.apply_time.seconds for each in engines["postgresql"])
    manager = await world.user("account_manager", (await world.client()).client_id)
    failure = await failing(manager.system.GetMigrationStatus(request, metadata=manager.auth))
    assert failure.code == grpc.StatusCode.PERMISSION_DENIED


async def test_top_says_in_a_line_how_the_service_does(
    world: World, observed: Observed, capsys: pytest.CaptureFixture[str]
) -> None:
    _, (campaign,) = await world.tenant()
    looking = asyncio.create_task(
        top.show([f"http://127.0.0.1:{observed.application.monitoring_port}/metrics"], every=0.5, once=True)
    )
    async with asyncio.timeout(20):
        while not looking.done():
            await get_campaign(observed.admin, campaign)
            await asyncio.sleep(0.02)
    await looking
    line = capsys.readouterr().out
    found = re.search(r"([\d,.]+) calls/s, p50 ([\d,.]+) ms, p99 ([\d,.]+) ms, 0\.0 failures/s", line)
    assert found and float(found[1]) > 1, line
    assert "maintenance" in line and "rebuild lag" in line and "postgresql DOWN" not in line


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, None),
        ({1.0: 0, float("inf"): 0}, 0.5, None),
        ({0.1: 10, 0.2: 20, float("inf"): 20}, 0.5, 0.1),
        ({0.1: 10, 0.2: 20, float("inf"): 20}, 0.75, 0.15),
        ({0.1: 0, float("inf"): 5}, 0.99, 0.1),
    ],
    ids=["nothing", "empty", "at-a-bound", "within", "beyond"],
)
def test_quantiles_are_those_of_prometheus(buckets: dict[float, float], share: float, expected: float | None) -> None:
    found = quantile(buckets, share)
    assert found == (None if expected is None else pytest.approx(expected))


def test_names_and_kinds_are_well_formed(exposition: list[str]) -> None:
    names = Counter(family.name for family in text_string_to_metric_families("\n".join(exposition) + "\n"))
    assert not [name for name, count in names.items() if count > 1]


@pytest.fixture
async def exposition(observed: Observed) -> list[str]:
    return (await observed.scrape()).splitlines()


async def _state(observed: Observed, name: str, **labels: str) -> float:
    return (await observed.reading()).state(name, **labels) or 0.0


async def _key(world: World, observed: Observed, client: str) -> Caller:
    key = await world.key([client], options_pb2.PERMISSION_STATISTICS_INGEST, options_pb2.PERMISSION_CLIENTS_READ)
    return Caller(observed.admin.channel, key.token)


async def _ingest(caller: Caller, client: str, events: list[event_pb2.Event]) -> None:
    request = statistics_service_pb2.IngestEventsRequest(client_id=client, batch=event_pb2.EventBatch(events=events))
    await caller.statistics.IngestEvents(request, metadata=caller.auth)


async def _usage(world: World, client: str, caller: Caller | None = None) -> list[usage_pb2.UsageDay]:
    caller, today = caller or world.admin, datetime.now(UTC).date()
    dates = time_pb2.DateRange(start_date=(today - timedelta(days=2)).isoformat(), end_date=today.isoformat())
    request = usage_service_pb2.GetUsageRequest(client_id=client, dates=dates)
    return list((await caller.usage.GetUsage(request, metadata=caller.auth)).days)


async def _flushed(application: Application) -> None:
    """Has the server add up now what it would in seconds."""
    usage = application._pipeline._usage
    assert usage is not None
    await usage.flush()


async def _calls(world: World, client: str) -> int:
    """What has been added up so far, without a call that would be counted."""
    calls: int = await world.database.fetchval(
        "SELECT COALESCE(sum(calls), 0)::int FROM client_usage WHERE client_id = $1", UUID(client)
    )
    return calls
