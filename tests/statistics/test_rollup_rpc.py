"""RollupService as callers meet it, and a restatement on its way through the running service and a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from mrm.common.v1 import options_pb2, time_pb2
from mrm.operations.v1 import job_pb2, job_service_pb2
from mrm.statistics.v1 import rollup_pb2, snapshot_pb2
from mrm.statistics.v1 import rollup_service_pb2 as pb
from mrm.statistics.v1 import statistics_service_pb2 as statistics
from server.jobs.worker import JobWorker
from server.settings import JobsSettings
from server.statistics import rollup_job
from server.stores import opened
from storage.postgres import jobs
from tests.conftest import Caller, Failing, World

RIGHTS = (options_pb2.PERMISSION_STATISTICS_INGEST, options_pb2.PERMISSION_STATISTICS_READ)
SECONDS = 5.0


def ago(number: int) -> str:
    return (datetime.now(UTC).date() - timedelta(days=number)).isoformat()


@pytest.fixture(scope="module")
async def worker(world: World) -> AsyncIterator[None]:
    """A worker that rolls up."""
    settings = world.settings.model_copy(update={"jobs": JobsSettings(concurrency={"sync": 2})})
    stop = asyncio.Event()
    # Days that other tests stated, and that nobody has rolled up yet, would all come first.
    waiting = await world.database.fetch("SELECT id FROM jobs WHERE queue = 'sync' AND status = 'pending'")
    for (job_id,) in waiting:
        await jobs.cancel_internal(world.database, job_id)
    async with opened(settings, "rollup-test") as stores:
        running = asyncio.create_task(JobWorker(stores, {rollup_job.TYPE: rollup_job.handle}, ()).run(stop))
        yield
        stop.set()
        await running


async def until(found: Callable[[], Awaitable[Any]], wanted: Any, seconds: float = 15.0) -> float:
    """Waits until something is as wanted; returns how long that took."""
    begun = time.monotonic()
    async with asyncio.timeout(seconds):
        while await found() != wanted:
            await asyncio.sleep(0.02)
    return time.monotonic() - begun


async def put(caller: Caller, client_id: str, version: int, campaigns: list[str], day: str, clicks: int) -> int:
    """States the clicks of a day; returns how many of the snapshots count."""
    request = statistics.AppendMetricsRequest(
        client_id=client_id, source=snapshot_pb2.METRICS_SOURCE_PLATFORM, version=version
    )
    for campaign_id in campaigns:
        snapshot = request.snapshots.add(campaign_id=campaign_id, date=day)
        snapshot.delivery.clicks, snapshot.delivery.cost_micros = clicks, clicks * 10**6
    return (await caller.statistics.AppendMetrics(request, metadata=caller.auth)).stored_count


async def stored(world: World, campaign_id: str) -> int | None:
    clicks: int | None = await world.database.fetchval(
        "SELECT clicks FROM campaign_statistics WHERE campaign_id = $1", UUID(campaign_id)
    )
    return clicks


async def restatements(caller: Caller, client_id: str, **fields: Any) -> pb.ListRestatementsResponse:
    request = pb.ListRestatementsRequest(client_id=client_id, **fields)
    return await caller.rollups.ListRestatements(request, metadata=caller.auth)


@pytest.mark.bar_e
@pytest.mark.usefixtures("worker")
async def test_a_restated_day_reaches_everybody_in_five_seconds(world: World) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await world.key([client_id], *RIGHTS)
    day = ago(2)
    query = statistics.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date=day, end_date=day),
        granularity=time_pb2.GRANULARITY_DAY,
        filter=statistics.StatisticsFilter(client_ids=[client_id]),
        time_zone="UTC",
    )

    async def asked() -> int:
        reply = await key.statistics.QueryStatistics(query, metadata=key.auth)
        return reply.rows[0].metrics.clicks

    async def live() -> int:
        message = await call.read()
        assert isinstance(message, statistics.WatchMetricsResponse)
        for each in (*message.snapshot.campaigns, *message.update.campaigns):
            shown[each.campaign_id] = each.metrics.clicks
        return shown.get(campaign_id, -1)

    async def pending() -> int:
        count: int = await world.database.fetchval(
            "SELECT count(*) FROM jobs WHERE client_id = $1 AND status IN ('pending', 'processing')", UUID(client_id)
        )
        return count

    shown: dict[str, int] = {}
    assert await put(key, client_id, 1, [campaign_id], day, 1000) == 1
    await until(lambda: stored(world, campaign_id), 1000)
    watch = statistics.WatchMetricsRequest(client_id=client_id, window=statistics.WATCH_WINDOW_LAST_7_DAYS)
    call = key.statistics.WatchMetrics(watch, metadata=key.auth)
    await until(live, 1000)
    assert await put(key, client_id, 2, [campaign_id], day, 940) == 1
    taken = await asyncio.gather(until(asked, 940), until(live, 940), until(lambda: stored(world, campaign_id), 940))
    assert max(taken) < SECONDS
    # The older reading again, and the same one.
    for version, clicks in ((1, 1000), (2, 940)):
        assert await put(key, client_id, version, [campaign_id], day, clicks) == 0
    await until(pending, 0)
    assert (await asked(), await stored(world, campaign_id)) == (940, 940)
    call.cancel()
    [told] = (await restatements(key, client_id)).restatements
    assert (told.date, told.before.clicks, told.after.clicks) == (day, 1000, 940)
    assert (told.cause, told.delivery_source, told.outcome_source) == (
        rollup_pb2.RESTATEMENT_CAUSE_NEW_READING,
        snapshot_pb2.METRICS_SOURCE_PLATFORM,
        snapshot_pb2.METRICS_SOURCE_UNSPECIFIED,
    )
    assert (told.before.cost_micros, told.after.cpc, told.revision) == (1000 * 10**6, "1", 2)


@pytest.mark.usefixtures("worker")
async def test_restatements_are_listed_once_and_can_be_followed(world: World, failing: Failing) -> None:
    client_id, campaigns = await world.tenant(3)
    key = await world.key([client_id], *RIGHTS)
    one, other = ago(3), ago(2)

    async def clicked() -> int:
        sums = "SELECT sum(s.clicks)::int FROM campaign_statistics s JOIN campaigns c ON c.id = s.campaign_id"
        total: int = await world.database.fetchval(f"{sums} WHERE c.client_id = $1", UUID(client_id))
        return total

    for version, clicks in enumerate((10, 9, 8), start=1):
        for day in (one, other):
            await put(key, client_id, version, campaigns, day, clicks)
        await until(clicked, clicks * 6)
    whole = (await restatements(key, client_id)).restatements
    assert len(whole) == 12
    found: list[rollup_pb2.Restatement] = []
    page = await restatements(key, client_id, page_size=5)
    while page.next_page_token:
        assert page.next_page_token == page.resume_token
        found += page.restatements
        page = await restatements(key, client_id, page_size=5, page_token=page.next_page_token)
    found += page.restatements
    assert found == list(whole)
    assert [each.after.clicks for each in found if (each.campaign_id, each.date) == (campaigns[0], one)] == [9, 8]
    # What comes later follows the last token, and nothing else does.
    assert not (await restatements(key, client_id, page_token=page.resume_token)).restatements
    await put(key, client_id, 9, campaigns[:1], one, 7)
    await until(clicked, 47)
    [told] = (await restatements(key, client_id, page_token=page.resume_token)).restatements
    assert (told.campaign_id, told.after.clicks) == (campaigns[0], 7)
    project_id = told.project_id
    for filter_, expected in (
        (pb.RestatementFilter(campaign_ids=campaigns[:2]), 9),
        (pb.RestatementFilter(dates=time_pb2.DateRange(start_date=other, end_date=other)), 6),
        (pb.RestatementFilter(since_time=told.restate_time), 1),
        (pb.RestatementFilter(project_id=project_id), 13),
        (pb.RestatementFilter(project_id=str(uuid4())), 0),
    ):
        assert len((await restatements(key, client_id, filter=filter_)).restatements) == expected
    other_id, _ = await world.tenant()
    stranger = await world.key([other_id], *RIGHTS)
    assert not (await restatements(stranger, client_id)).restatements
    refused = await failing(restatements(stranger, client_id, page_token=page.resume_token))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


@pytest.mark.usefixtures("worker")
async def test_a_rollup_on_demand(world: World, failing: Failing) -> None:
    client_id, [campaign_id] = await world.tenant()
    key = await world.key([client_id], *RIGHTS)
    analyst, planner = await world.user("analyst", client_id), await world.user("media_planner", client_id)
    day = ago(2)
    await put(key, client_id, 1, [campaign_id], day, 10)
    await until(lambda: stored(world, campaign_id), 10)

    def wish(first: str, last: str) -> pb.RunRollupRequest:
        return pb.RunRollupRequest(
            client_id=client_id, dates=time_pb2.DateRange(start_date=first, end_date=last), request_id=str(uuid4())
        )

    async def ended() -> int:
        request = job_service_pb2.GetJobRequest(job_id=reply.job_id)
        return (await analyst.jobs.GetJob(request, metadata=analyst.auth)).job.status

    request = wish(ago(4), ago(2))
    reply = await analyst.rollups.RunRollup(request, metadata=analyst.auth)
    assert reply == await analyst.rollups.RunRollup(request, metadata=analyst.auth)
    await until(ended, job_pb2.JOB_STATUS_COMPLETED)
    job = (await analyst.jobs.GetJob(job_service_pb2.GetJobRequest(job_id=reply.job_id), metadata=analyst.auth)).job
    assert dict(job.result) == {"days": 3, "written": 0, "restated": 0, "drifted": 0}
    assert job.requested_by == str(analyst.user_id)
    checks = await analyst.rollups.ListRollupChecks(
        pb.ListRollupChecksRequest(client_id=client_id), metadata=analyst.auth
    )
    [check] = checks.checks
    assert (check.date, check.state, check.stored.clicks) == (day, rollup_pb2.ROLLUP_CHECK_STATE_MATCHED, 10)
    assert check.stored == check.measured
    # What somebody has changed past the service is found.
    await world.database.execute("UPDATE campaign_statistics SET clicks = 3 WHERE campaign_id = $1", UUID(campaign_id))
    await world.database.execute(
        "UPDATE rollups SET rolled_through = $2, rolled_at = now(), time_zone = 'Europe/Moscow' WHERE client_id = $1",
        UUID(client_id), datetime.now(UTC).date() - timedelta(days=1),
    )  # fmt: skip
    reply = await analyst.rollups.RunRollup(wish(day, day), metadata=analyst.auth)
    await until(ended, job_pb2.JOB_STATUS_COMPLETED)
    assert await stored(world, campaign_id) == 10
    fresh = await key.statistics.GetFreshness(statistics.GetFreshnessRequest(client_id=client_id), metadata=key.auth)
    assert fresh.rolled_up_through_date == ago(1)
    assert fresh.HasField("rollup_time")

    for caller, wanted, code, reason in (
        (planner, wish(day, day), grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING"),
        (await world.user("analyst"), wish(day, day), grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"),
        (analyst, wish(day, ago(-1)), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS"),
        (analyst, wish("2026-02-30", "2026-02-31"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS"),
    ):
        refused = await failing(caller.rollups.RunRollup(wanted, metadata=caller.auth))
        assert (refused.code, refused.reason) == (code, reason)


async def test_checks_page_by_page(world: World) -> None:
    client_id, _ = await world.tenant()
    await world.database.execute(
        """INSERT INTO rollup_checks SELECT $1, date '2026-01-01' + n / 2, (ARRAY['EUR', 'RUB'])[n % 2 + 1],
          CASE WHEN n = 3 THEN 'healed' ELSE 'matched' END, 0, n, 0, 0, 0, 0, n, 0, 0, 0, 0, now(),
          CASE WHEN n = 3 THEN now() END
        FROM generate_series(0, 6) n""",
        UUID(client_id),
    )
    reader = await world.key([client_id], options_pb2.PERMISSION_STATISTICS_READ)

    async def listed(**fields: Any) -> list[int]:
        request, found = pb.ListRollupChecksRequest(client_id=client_id, **fields), []
        while True:
            page = await reader.rollups.ListRollupChecks(request, metadata=reader.auth)
            found += [check.stored.impressions for check in page.checks]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    assert await listed() == await listed(page_size=2) == [6, 5, 4, 3, 2, 1, 0]
    assert await listed(states=[rollup_pb2.ROLLUP_CHECK_STATE_HEALED]) == [3]
    assert await listed(dates=time_pb2.DateRange(start_date="2026-01-02", end_date="2026-01-03")) == [5, 4, 3, 2]
