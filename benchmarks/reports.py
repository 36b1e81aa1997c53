"""report.pdf, report.xlsx: the job of a report on a year of 40 campaigns, over drawing its file from the same figures.

The job is everything from its claim to its end: the statement over the figures of two years, keeping them, drawing the
file, storing it, making the report ready with its record and its e-mail. What it waits for a worker is left out, and so
is the queue's part, which jobs.throughput measures. Each report has a title of its own: a file that was drawn a moment
ago would come from the compiler's cache.
"""

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from benchmarks.harness import Bench, Result, engines, interleaved
from benchmarks.tenants import make_tenant
from server.jobs.handling import JobContext, Stores
from server.reports import making, pages, report_job, sheets
from server.rpc import logs
from server.stores import opened
from storage.clickhouse.connect import ClickHouse
from storage.postgres import jobs, reports, users
from storage.postgres.ids import new_id
from storage.scope import EVERYTHING

prepared = engines

CAMPAIGNS = 40
DAYS = 365
REPORTS = 4
BAR = 2.0
_LEASE = timedelta(seconds=60)

_numbers = itertools.count()


@dataclass(frozen=True)
class _Subject:
    """What is reported on, and who asks."""

    project_id: UUID
    client_id: UUID
    person: UUID
    first: date
    last: date


async def run(bench: Bench) -> list[Result]:
    """Measures milliseconds of one report, made one after another."""
    logs.configure("WARNING")
    settings = bench.settings.model_copy(deep=True)
    settings.objects.url = (bench.folder / "files").as_uri()
    async with opened(settings, "mrm-bench") as stores:
        subject = await _fill(bench, stores)
        count = max(1, int(REPORTS * bench.scale))
        results = []
        for format, draw in (("pdf", pages.pdf), ("xlsx", sheets.xlsx)):
            data = await _figures(stores, subject, format)
            value, floor, ratio = await interleaved(
                bench.rounds,
                partial(_made, stores, subject, format, count),
                partial(_drawn, draw, data, count),
                settle=bench.settle / 4,
            )
            results.append(Result(f"report.{format}", value, "ms", floor, ratio, BAR, ratio <= BAR))
    return results


async def _fill(bench: Bench, stores: Stores) -> _Subject:
    """Hours of two years, of which the second is reported on against the first."""
    tenant = await make_tenant(bench, CAMPAIGNS)
    days = max(7, int(DAYS * min(1.0, bench.scale * 5)))
    last = datetime.now(UTC).date() - timedelta(days=1)
    first = last - timedelta(days=days - 1)
    [project_id] = (
        await stores.database.fetchrow("SELECT id FROM projects WHERE client_id = $1", tenant.client_id) or ()
    )
    person = await users.create(stores.database, email="bench@example.com", password_hash="$argon2id$", role="admin")
    mine = ", ".join(f"'{campaign}'" for campaign in tenant.campaign_ids)
    hours = 2 * days * 24
    start = int(datetime.combine(first - timedelta(days=days), datetime.min.time(), UTC).timestamp())
    store = ClickHouse(bench.connections.clickhouse_dsn, connections=4)
    try:
        await store.execute(
            f"""INSERT INTO campaign_metrics_hourly (client_id, campaign_id, platform, source, grain, hour, project_id,
              currency, impressions, clicks, conversions, cost, revenue, event_count, version)
            SELECT toUUID('{tenant.client_id}'), arrayElement([{mine}]::Array(UUID), 1 + intDiv(number, {hours})),
              'other', 'events', 'hour', toDateTime({start} + number % {hours} * 3600, 'UTC'), toUUID('{project_id}'),
              'RUB', toUInt64(50 + rand(1) % 5000), toUInt64(rand(2) % 60), toDecimal128(rand(3) % 7, 6) / 2,
              toDecimal128(rand(4) % 90000000, 6) / 1000000, toDecimal128(rand(5) % 900000000, 6) / 1000000, 1, 1
            FROM numbers({hours * CAMPAIGNS})""",
            timeout=300.0,
        )
    finally:
        await store.close()
    return _Subject(project_id, tenant.client_id, person.id, first, last)


async def _asked(stores: Stores, subject: _Subject, format: str) -> tuple[UUID, UUID]:
    """A report that waits for its job, with a title that no other has, and the job."""
    report_id = new_id()
    async with stores.database.transaction("ask_for_report") as tx:
        await tx.execute("UPDATE projects SET name = $2 WHERE id = $1", subject.project_id, f"bench {next(_numbers)}")
        job = await making.enqueue(tx, report_id, subject.client_id, requested_by=subject.person, trace_id="")
        await reports.create(
            tx,
            EVERYTHING,
            report_id=report_id,
            project_id=subject.project_id,
            type="performance",
            start=subject.first,
            end=subject.last,
            format=format,
            language="ru",
            job_id=job.id,
            replaces_id=None,
            created_by=subject.person,
        )
    return report_id, job.id


async def _done(stores: Stores, job_id: UUID) -> None:
    [job] = await jobs.claim_internal(stores.database, [job_id], "bench", _LEASE)
    result = await report_job.handle(job, JobContext(stores, job, _LEASE))
    await jobs.complete_internal(stores.database, [(job.id, job.fence, result)])


async def _figures(stores: Stores, subject: _Subject, format: str) -> dict[str, Any]:
    """What a report keeps and its file is drawn from."""
    report_id, job_id = await _asked(stores, subject, format)
    await _done(stores, job_id)
    kept = await reports.kept_internal(stores.database, report_id)
    if kept is None or len(kept["currencies"][0]["campaigns"]) != CAMPAIGNS:
        raise RuntimeError("the figures are not there")
    return kept


async def _made(stores: Stores, subject: _Subject, format: str, count: int) -> float:
    spent = 0.0
    for _ in range(count):
        _, job_id = await _asked(stores, subject, format)
        begun = time.perf_counter()
        await _done(stores, job_id)
        spent += time.perf_counter() - begun
    return spent / count * 1000


async def _drawn(draw: Any, data: Mapping[str, Any], count: int) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        named = {**data, "project": {**data["project"], "display_name": f"bench {next(_numbers)}"}}
        await asyncio.to_thread(draw, named, "ru")
    return (time.perf_counter() - begun) / count * 1000
