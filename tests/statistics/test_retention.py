"""Months that leave their tables: nothing is lost however the work is interrupted, and what comes back is the same."""

from __future__ import annotations

import asyncio
import os
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from server.jobs.handling import JobFailed, JobPostponed
from server.retention.archiving import Archiver, Table, is_due, object_key
from server.settings import RetentionSettings
from storage.clickhouse import archived
from storage.objects.store import Objects
from storage.postgres import archives, metrics_state
from storage.postgres.archives import ArchivedDays
from storage.postgres.campaigns import Campaign
from tests.statistics.conftest import Stores

pytestmark = pytest.mark.bar_h

FULL = os.environ.get("MRM_BARS") == "full"
EVENTS = 1_000_000 if FULL else 20_000
KILLS = 10 if FULL else 4
MONTH = date(2024, 3, 1)
AT_ONCE = RetentionSettings(settle=timedelta(0))
AGGREGATES = """
SELECT campaign_id, event_type, toStartOfHour(event_time) AS hour, count(), uniqExact(user_id), sum(cost), sum(revenue),
  sum(conversions), groupBitXor(cityHash64(event_id, toString(attributes), ingest_time))
FROM campaign_events FINAL GROUP BY campaign_id, event_type, hour ORDER BY ALL"""


async def fill(stores: Stores, campaign: Campaign, rows: int, month: date = MONTH) -> None:
    """Events of all kinds over a month, some without a user, some with attributes, some of them twice."""
    for part in (rows, rows // 10):
        await stores.clickhouse.execute(
            f"""INSERT INTO campaign_events (client_id, campaign_id, event_time, event_id, project_id, platform,
              event_type, user_id, cost, revenue, conversions, currency, attributes, ingest_time)
            SELECT '{campaign.client_id}', '{campaign.id}',
              toDateTime64('{month:%Y-%m-%d} 00:00:00', 6, 'UTC')
                + toIntervalMicrosecond(number * 2600000000 % 2591999000000),
              reinterpretAsUUID(sipHash128('{campaign.id}', number)), '{campaign.project_id}', 'other', 1 + number % 3,
              if(number % 5 = 0, NULL, if(number % 5 = 1, '', toString(number % 977))),
              number % 1000 / 7, number % 77 / 3,
              if(number % 3 = 2, 1.5, 0), 'RUB', if(number % 4 = 0, map('a', 'ü', 'b', toString(number)), map()),
              toDateTime64('{month:%Y-%m-%d} 00:00:00', 3, 'UTC')
            FROM numbers({part})""",
            timeout=120,
        )


async def fill_days(stores: Stores, campaign: Campaign, month: date = MONTH, cost: str = "12.345678") -> None:
    """Daily figures of a month."""
    await stores.database.execute(
        """INSERT INTO campaign_statistics (id, campaign_id, date, impressions, clicks, conversions, cost, revenue,
             currency, time_zone, source_version, is_final)
           SELECT gen_random_uuid(), $1, day::date, 100, 7, 1.5, $3::numeric, 0.000001, 'RUB', 'Europe/Moscow', 5, true
           FROM generate_series($2::date, $2::date + 27, interval '1 day') AS day""",
        campaign.id, month, Decimal(cost),
    )  # fmt: skip


def archiver(stores: Stores, objects: Objects, table: Table, settings: RetentionSettings = AT_ONCE) -> Archiver:
    return Archiver(stores.database, objects, table, settings, _nothing)


async def _nothing(_done: int, _total: int) -> None:
    pass


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def objects(directory: Path) -> Objects:
    return Objects(directory.as_uri())


async def test_a_month_goes_and_comes_back_the_same(stores: Stores, objects: Objects, directory: Path) -> None:
    tenants = [await stores.tenant() for _ in range(2)]
    for _, [campaign] in tenants:
        await fill(stores, campaign, EVENTS // 2)
        await stores.events(campaign, datetime(2024, 4, 1, tzinfo=UTC), count=3)
    before = await stores.clickhouse.fetch(AGGREGATES, timeout=120)
    table = archived.events(stores.clickhouse)
    work = archiver(stores, objects, table)

    assert await work.let_go(MONTH) == "dropped"
    assert await metrics_state.get_raw_floor(stores.database) == datetime(2024, 4, 1, tzinfo=UTC)
    assert await table.months() == [date(2024, 4, 1)]
    found = await archives.get(stores.database, table.name, MONTH)
    assert found is not None
    assert (found.state, found.clients, found.rows) == ("dropped", 2, EVENTS)
    for client_id, [campaign] in tenants:
        path = directory / object_key(table.name, MONTH, client_id)
        assert parquet.read_metadata(path).num_rows == EVENTS // 2
        assert set(parquet.read_table(path, columns=["campaign_id"])["campaign_id"].to_pylist()) == {str(campaign.id)}

    assert await work.restore(MONTH) == EVENTS
    assert await stores.clickhouse.fetch(AGGREGATES, timeout=120) == before
    assert await archives.restored_months(stores.database, table.name) == {MONTH}
    # It leaves again the same way.
    assert await work.let_go(MONTH) == "dropped"
    assert await table.months() == [date(2024, 4, 1)]


async def test_killed_at_any_moment_nothing_is_lost(stores: Stores, objects: Objects) -> None:
    [campaign] = (await stores.tenant())[1]
    await fill(stores, campaign, EVENTS // 4)
    before = await stores.clickhouse.fetch(AGGREGATES, timeout=120)
    table = archived.events(stores.clickhouse)
    chance = random.Random(9)

    async def killed(work: asyncio.Task[object], within: float) -> bool:
        await asyncio.wait({work}, timeout=chance.uniform(0, within))
        work.cancel()
        [outcome] = await asyncio.gather(work, return_exceptions=True)
        return isinstance(outcome, asyncio.CancelledError)

    loop = asyncio.get_running_loop()
    begun = loop.time()
    await archiver(stores, objects, table).let_go(MONTH)
    one_way = loop.time() - begun
    await archiver(stores, objects, table).restore(MONTH)
    kills = 0
    for _ in range(KILLS):
        kills += await killed(asyncio.create_task(archiver(stores, objects, table).let_go(MONTH)), one_way)
        assert await archiver(stores, objects, table).let_go(MONTH) == "dropped"
        kills += await killed(asyncio.create_task(archiver(stores, objects, table).restore(MONTH)), one_way)
        assert await archiver(stores, objects, table).restore(MONTH) == EVENTS // 4
        assert await stores.clickhouse.fetch(AGGREGATES, timeout=120) == before
    assert kills > 0


async def test_daily_figures_go_and_come_back_and_what_was_spent_stays(stores: Stores, objects: Objects) -> None:
    client_id, [campaign] = await stores.tenant()
    await fill_days(stores, campaign)
    await fill_days(stores, campaign, date(2024, 4, 1), "1.5")
    table = ArchivedDays(stores.database)
    question = "SELECT s::text FROM campaign_statistics s ORDER BY date"
    before = await stores.database.fetch(question)
    work = archiver(stores, objects, table)
    assert await table.months() == [MONTH, date(2024, 4, 1)]
    assert await work.let_go(MONTH) == "dropped"
    assert await table.months() == [date(2024, 4, 1)]
    spent = "SELECT spent FROM archived_spend WHERE campaign_id = $1"
    assert str(await stores.database.fetchval(spent, campaign.id)) == "345.678984"
    assert await work.restore(MONTH) == 28
    assert await stores.database.fetch(question) == before
    assert await stores.database.fetchval(spent, campaign.id) == 0
    assert await work.restore(MONTH) == 28
    assert await work.let_go(MONTH) == "dropped"
    assert str(await stores.database.fetchval(spent, campaign.id)) == "345.678984"
    assert (await table.holdings(date(2024, 4, 1), client_id))[client_id].rows == 28


async def test_a_held_client_keeps_the_month(stores: Stores, objects: Objects) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, datetime(2024, 3, 5, tzinfo=UTC), count=3)
    table = archived.events(stores.clickhouse)
    async with stores.database.transaction("hold") as tx:
        await archives.set_hold(tx, client_id, "court", None)
    assert await archiver(stores, objects, table).let_go(MONTH) == "held"
    assert await table.months() == [MONTH]
    async with stores.database.transaction("lift") as tx:
        assert await archives.lift_hold(tx, client_id) is not None
    assert await archiver(stores, objects, table).let_go(MONTH) == "dropped"


async def test_a_month_waits_until_nothing_more_can_come(stores: Stores, objects: Objects) -> None:
    [campaign] = (await stores.tenant())[1]
    await stores.events(campaign, datetime(2024, 3, 5, tzinfo=UTC))
    table = archived.events(stores.clickhouse)
    with pytest.raises(JobPostponed) as wait:
        await archiver(stores, objects, table, RetentionSettings()).let_go(MONTH)
    assert timedelta(minutes=9) < wait.value.delay <= timedelta(minutes=10)
    assert await table.months() == [MONTH]


async def test_a_damaged_file_drops_nothing_and_restores_nothing(
    stores: Stores, objects: Objects, directory: Path
) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, datetime(2024, 3, 5, tzinfo=UTC), count=5)
    table = archived.events(stores.clickhouse)
    work = archiver(stores, objects, table)
    key = object_key(table.name, MONTH, client_id)
    async with stores.database.transaction("hold") as tx:
        await archives.set_hold(tx, client_id, "court", None)
    assert await work.let_go(MONTH) == "held"
    async with stores.database.transaction("lift") as tx:
        await archives.lift_hold(tx, client_id)
    # Archived and then lost: it is made anew before anything is dropped. Changed rows are archived anew as well.
    await objects.delete(key)
    await stores.events(campaign, datetime(2024, 3, 6, tzinfo=UTC))
    for reason in ("is made anew", "changed while"):
        with pytest.raises(JobPostponed, match=reason):
            await work.let_go(MONTH)
        if reason == "is made anew":
            await work._archive(await work._at(MONTH))
            await stores.events(campaign, datetime(2024, 3, 7, tzinfo=UTC))
    assert await work.let_go(MONTH) == "dropped"
    whole = (directory / key).read_bytes()
    (directory / key).write_bytes(whole[:-20] + bytes(20))
    with pytest.raises(JobFailed, match="is damaged"):
        await work.restore(MONTH)
    assert await table.months() == []
    (directory / key).write_bytes(whole)
    assert await work.restore(MONTH) == 7


async def test_files_expire_unless_somebody_is_held(stores: Stores, objects: Objects, directory: Path) -> None:
    client_id, [campaign] = await stores.tenant()
    await stores.events(campaign, datetime(2024, 3, 5, tzinfo=UTC))
    table = archived.events(stores.clickhouse)
    work = archiver(stores, objects, table)
    await work.let_go(MONTH)
    [found] = await archives.outdated_internal(stores.database, datetime.now(UTC))
    async with stores.database.transaction("hold") as tx:
        await archives.set_hold(tx, client_id, "court", None)
    assert not await work.expire(found)
    assert (directory / object_key(table.name, MONTH, client_id)).exists()
    async with stores.database.transaction("lift") as tx:
        await archives.lift_hold(tx, client_id)
    assert await work.expire(found)
    assert not (directory / object_key(table.name, MONTH, client_id)).exists()
    with pytest.raises(JobFailed, match="no archive"):
        await work.restore(MONTH)


@pytest.mark.parametrize(
    ("month", "today", "due"),
    [
        (date(2024, 3, 1), date(2025, 4, 3), True),
        (date(2024, 3, 1), date(2025, 4, 2), False),
        (date(2024, 12, 1), date(2026, 1, 3), True),
    ],
    ids=["march", "march_too_early", "december"],
)
def test_months_are_due_when_all_their_days_are(month: date, today: date, due: bool) -> None:
    assert is_due(month, 12, today) is due
