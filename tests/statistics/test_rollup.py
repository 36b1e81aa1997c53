"""The daily rollup on real engines: what it writes, what it leaves alone, and what it finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from server.jobs.handling import JobContext
from server.jobs.handling import Stores as Opened
from server.platforms.registry import Platforms
from server.sealing import KeyRing
from server.search.embedder import Embedders
from server.settings import Settings
from server.statistics import days, rollup_job
from server.statistics.rollup_job import Rollup, RollupDaily
from storage.postgres import jobs, rollups
from storage.postgres.campaigns import Campaign
from storage.scope import EVERYTHING
from tests.statistics.conftest import Stores
from tests.statistics.desk import ANALYTICS, DAY, PLATFORM, Desk, opened, snap

pytestmark = pytest.mark.bar_e

# Where any of the clients is, it is far from midnight.
NOW = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
ONE = timedelta(days=1)


@dataclass
class Ledger:
    """A client whose days are rolled up, by a clock of its own."""

    desk: Desk
    client_id: UUID
    campaigns: list[Campaign]
    opened: Opened
    zone: str
    now: datetime = NOW
    told: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def today(self) -> date:
        return self.now.astimezone(ZoneInfo(self.zone)).date()

    def ago(self, number: int) -> date:
        return self.today - ONE * number

    async def run(self, **payload: Any) -> dict[str, int]:
        """Rolls up; what it has done."""

        async def tell(done: int, total: int, note: str) -> None:
            self.told.append((done, total, note))

        [state] = await rollups.states_internal(self.opened.database, self.client_id)
        result = await Rollup(self.opened, state, uuid4(), self.now, tell).run(RollupDaily(**payload))
        return dict(result)

    async def rows(
        self, columns: str = "date, impressions, clicks, conversions, cost, revenue"
    ) -> list[tuple[Any, ...]]:
        found = await self.opened.database.fetch(
            f"SELECT {columns} FROM campaign_statistics s JOIN campaigns c ON c.id = s.campaign_id"
            " WHERE c.client_id = $1 ORDER BY date, campaign_id",
            self.client_id,
        )
        return [tuple(row) for row in found]

    async def restatements(self) -> list[rollups.Restatement]:
        return await rollups.list_restatements(self.opened.database, EVERYTHING, self.client_id, limit=1000)

    async def checks(self) -> dict[date, tuple[str, int, int]]:
        """State, stored clicks and measured clicks by day."""
        found = await rollups.list_checks(self.opened.database, EVERYTHING, self.client_id, limit=1000)
        return {each.day: (each.state, each.stored.clicks, each.measured.clicks) for each in found}

    async def put(self, version: int, *snapshots: Any, source: int = PLATFORM) -> None:
        await self.desk.put(self.client_id, source, version, *snapshots)


@pytest.fixture
async def desk(stores: Stores) -> AsyncIterator[Desk]:
    async with opened(stores) as made:
        yield made


async def ledger(desk: Desk, zone: str = "UTC", campaigns: int = 1, **rollup: object) -> Ledger:
    client_id, made = await desk.tenant(campaigns, zone)
    settings = Settings()
    settings.rollup = settings.rollup.model_copy(update=rollup)
    stores = Opened(
        desk.stores.database,
        desk.stores.clickhouse,
        None,
        KeyRing({}),
        desk.signals,
        settings,
        Platforms.open(settings.platforms),
        None,
        Embedders(settings.embedding),
    )
    return Ledger(desk, client_id, made, stores, zone)


@pytest.mark.parametrize(
    ("now", "zone", "grace", "expected"),
    [
        ("2025-11-20T20:59Z", "Europe/Moscow", 0, "2025-11-19"),
        ("2025-11-20T21:00Z", "Europe/Moscow", 0, "2025-11-20"),
        ("2025-11-20T23:59Z", "Europe/Moscow", 3, "2025-11-19"),
        ("2025-11-21T00:00Z", "Europe/Moscow", 3, "2025-11-20"),
        ("2025-11-21T02:59Z", "UTC", 3, "2025-11-19"),
        ("2025-11-21T03:00Z", "UTC", 3, "2025-11-20"),
        ("2025-11-20T16:59Z", "Asia/Vladivostok", 3, "2025-11-19"),
        ("2025-11-20T17:00Z", "Asia/Vladivostok", 3, "2025-11-20"),
        # The clocks go forward at two on the 9th and back at two on the 2nd: a grace of hours is one of real hours.
        ("2025-03-09T07:59Z", "America/New_York", 3, "2025-03-07"),
        ("2025-03-09T08:00Z", "America/New_York", 3, "2025-03-08"),
        ("2025-11-02T06:59Z", "America/New_York", 3, "2025-10-31"),
        ("2025-11-02T07:00Z", "America/New_York", 3, "2025-11-01"),
        ("2025-11-03T07:59Z", "America/New_York", 3, "2025-11-01"),
        ("2025-11-03T08:00Z", "America/New_York", 3, "2025-11-02"),
    ],
)
def test_a_day_is_closed_when_its_grace_is_over(now: str, zone: str, grace: int, expected: str) -> None:
    found = days.closed(datetime.fromisoformat(now), ZoneInfo(zone), timedelta(hours=grace))
    assert found == date.fromisoformat(expected)


def test_spans_of_days() -> None:
    first = date(2024, 2, 27)
    assert list(days.spans([])) == []
    assert list(days.spans([first, first + 3 * ONE, first + ONE])) == [
        (first, first + ONE),
        (first + 3 * ONE, first + 3 * ONE),
    ]
    cut = list(days.spans(days.between(first, first + 30 * ONE)))
    assert [(last - begin).days for begin, last in cut] == [13, 13, 2]
    assert sum(len(days.between(*each)) for each in cut) == 31
    assert days.between(first, first - ONE) == []
    assert days.months_before(date(2024, 2, 29), 24) == date(2022, 2, 28)
    assert days.months_before(date(2024, 1, 31), 1) == date(2023, 12, 31)
    assert days.months_before(date(2024, 12, 31), 1) == date(2024, 11, 30)
    # Samoa has skipped a day.
    kept, starts = days.starts(days.between(date(2011, 12, 29), date(2011, 12, 31)), ZoneInfo("Pacific/Apia"))
    assert kept == [date(2011, 12, 29), date(2011, 12, 31)]
    assert [b - a for a, b in pairwise(starts)] == [86_400, 86_400]


@pytest.mark.parametrize("zone", ["Europe/Moscow", "UTC", "Asia/Vladivostok", "America/New_York"])
async def test_what_is_stored_is_what_a_question_answers(desk: Desk, zone: str) -> None:
    """Hours of own events on both sides of midnight, days of a platform, fractions, millionths and zeros."""
    book = await ledger(desk, zone, campaigns=2)
    tracked, measured = book.campaigns
    begin = datetime.combine(book.ago(9), datetime.min.time(), ZoneInfo(zone))
    for hours in (-1, 0, 23, 24, 25, 47):
        await desk.stores.events(tracked, begin.astimezone(UTC) + timedelta(hours=hours), count=3, cost="0.000001")
    await desk.stores.events(
        tracked, begin.astimezone(UTC), kind="conversion", conversions="0.4", revenue="999999999.999999"
    )
    await desk.work()
    shown = snap(measured, book.ago(8).isoformat(), (1000, 50, 70), (3, 90))
    shown.delivery.cost_micros += 1
    # A day that was measured and brought nothing is a row, too.
    await book.put(1, shown, snap(measured, book.ago(7).isoformat(), (0, 0, 0), (0, 0)))
    await book.put(1, snap(measured, book.ago(8).isoformat(), None, (2, 40)), source=ANALYTICS)
    done = await book.run()
    answer = await desk.rows(book.client_id, DAY, book.ago(20).isoformat(), book.ago(1).isoformat(), zone=zone)
    stored: dict[str, tuple[Any, ...]] = {}
    for day, *figures in await book.rows():
        stored[day.isoformat()] = tuple(map(sum, zip(stored.get(day.isoformat(), (0,) * 5), figures, strict=True)))
    assert {
        day: (row[0], row[1], f"{row[2].normalize():f}", int(row[3]), int(row[4])) for day, row in stored.items()
    } == answer
    assert set(answer) == {book.ago(number).isoformat() for number in (10, 9, 8, 7)}
    assert stored[book.ago(9).isoformat()][2:] == (Decimal("0.4"), Decimal("0.000006"), Decimal("999999999.999999"))
    assert stored[book.ago(8).isoformat()] == (1009, 50, 2, Decimal("70.00001"), 40)
    assert stored[book.ago(7).isoformat()] == (0, 0, 0, 0, 0)
    assert done["drifted"] == done["restated"] == 0
    assert {row[0] for row in await book.rows("s.time_zone")} == {zone}
    spent = await book.opened.database.fetch(
        "SELECT c.id, c.budget_spent, c.revision, p.budget_spent, p.revision FROM campaigns c"
        " JOIN projects p ON p.id = c.project_id WHERE c.client_id = $1",
        book.client_id,
    )
    assert {row[0]: tuple(row)[1:] for row in spent} == {
        tracked.id: (Decimal("0.000018"), 1, Decimal("0.000018"), 1),
        measured.id: (Decimal("70.000001"), 1, Decimal("70.000001"), 1),
    }


async def test_only_what_changed_is_touched(desk: Desk) -> None:
    book = await ledger(desk)
    [campaign] = book.campaigns
    await book.put(1, *(snap(campaign, book.ago(number).isoformat(), (1000, 100, 10)) for number in range(1, 8)))
    assert (await book.run())["written"] == 7
    marks = "date, s.xmin::text, s.updated_at, s.revision, s.is_final"
    before = await book.rows(marks)
    assert [row[4] for row in before] == [True] * 4 + [False] * 3
    for payload in ({}, {"cause": "requested", "first": book.ago(7), "last": book.ago(1)}, {"cause": "new_reading"}):
        assert (await book.run(**payload))["written"] == 0
    assert await book.rows(marks) == before
    await book.put(2, snap(campaign, book.ago(6).isoformat(), (1000, 94, 10)))
    # The same figures again, by a later reading, are no change either.
    await book.put(2, snap(campaign, book.ago(5).isoformat(), (1000, 100, 10)))
    done = await book.run(cause="new_reading")
    assert done == {"days": 2, "written": 1, "restated": 1, "drifted": 0}
    after = await book.rows(marks)
    assert [row for row in after if row not in before] == [after[1]]
    assert after[1][3:] == (2, True)
    [told] = await book.restatements()
    assert (told.day, told.before.clicks, told.after.clicks, told.revision) == (book.ago(6), 100, 94, 2)
    assert (told.cause, told.delivery_source, told.outcome_source) == ("new_reading", "platform", "")
    assert await book.opened.database.fetchval(
        "SELECT diff->'restated_campaign_days' FROM audit_log WHERE action = 'restate' AND client_id = $1",
        book.client_id,
    ) == [None, 1]
    # A replay of the older reading changes nothing.
    await book.put(1, snap(campaign, book.ago(6).isoformat(), (1000, 100, 10)))
    assert (await book.run(cause="new_reading"))["written"] == 0
    assert await book.rows(marks) == after


async def test_the_trailing_window_and_the_end_of_days(desk: Desk) -> None:
    book = await ledger(desk, "Europe/Moscow", trailing_days=2, check_days=0)
    [campaign] = book.campaigns
    tomorrow = NOW.replace(hour=0) + ONE
    await book.put(1, *(snap(campaign, book.ago(number).isoformat(), (1, 1, 1)) for number in range(1, 6)))
    book.now = tomorrow
    assert (await book.run())["days"] >= 5
    [state] = await rollups.states_internal(book.opened.database, book.client_id)
    assert (state.rolled_through, state.rolled_zone) == (book.ago(1), "Europe/Moscow")
    book.told.clear()
    # The same evening, and the next day before its grace is over.
    for moment in (tomorrow, tomorrow + timedelta(hours=20)):
        book.now = moment
        await book.run()
    assert book.told == [(3, 3, "day_close")] * 2
    book.now, book.told = tomorrow + ONE, []
    await book.run()
    # After a pause of four days all of them are made good.
    book.now = tomorrow + ONE * 5
    await book.run()
    assert book.told == [(3, 3, "day_close"), (6, 6, "day_close")]
    assert await book.rows("date, is_final") == [
        (day, True) for day in sorted({row[0] for row in await book.rows("date")})
    ]


async def test_what_came_too_late_is_put_aside(desk: Desk) -> None:
    book = await ledger(desk)
    [campaign] = book.campaigns
    oldest = days.months_before(book.ago(1), 24)
    await book.put(1, *(snap(campaign, day.isoformat(), (5, 5, 5)) for day in (oldest - ONE, oldest)))
    assert (await book.run(cause="new_reading"))["written"] == 1
    assert [row[0] for row in await book.rows("date")] == [oldest]
    sql = "SELECT date, clicks, cost, reason FROM campaign_statistics_quarantine"
    assert [tuple(row) for row in await book.opened.database.fetch(sql)] == [(oldest - ONE, 5, 5, "too_old")]
    await book.put(2, snap(campaign, (oldest - ONE).isoformat(), (5, 4, 5)))
    await book.run(cause="new_reading")
    assert [row[1] for row in await book.opened.database.fetch(sql)] == [4]
    assert await book.opened.database.fetchval("SELECT count(*) FROM rollup_marks") == 0


async def test_a_wish_reaches_no_further_than_figures_are_kept(desk: Desk) -> None:
    book = await ledger(desk, keep_months=1)
    expected = (book.ago(1) - days.months_before(book.ago(1), 1)).days + 1
    assert (await book.run(cause="requested", first=date(1, 1, 1), last=book.today))["days"] == expected
    assert (await book.run(cause="requested", first=date(1, 1, 1), last=date(2020, 1, 1)))["days"] == 0


async def test_drift_is_found_and_healed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollup_job, "_MARK_SECONDS", 0.01)
    book = await ledger(desk, campaigns=2)
    one, other = book.campaigns
    database = book.opened.database
    await book.put(
        1, *(snap(each, book.ago(n).isoformat(), (9, 9, 9)) for each in book.campaigns for n in range(1, 12))
    )
    await book.run()
    await book.run(cause="new_reading")
    assert set((await book.checks()).values()) == {("matched", 18, 18)}
    # Within the trailing window, before it, and two that make up for each other in the day's sum.
    for number, campaign, clicks in ((1, one, 8), (9, one, 10), (10, one, 7), (10, other, 11)):
        await database.execute(
            "UPDATE campaign_statistics SET clicks = $3 WHERE campaign_id = $1 AND date = $2",
            campaign.id, book.ago(number), clicks,
        )  # fmt: skip
    await database.execute("DELETE FROM campaign_statistics WHERE campaign_id = $1 AND date = $2", one.id, book.ago(8))
    await database.execute("UPDATE campaigns SET budget_spent = 1 WHERE id = $1", one.id)
    # What was announced is no drift.
    await book.put(2, snap(one, book.ago(7).isoformat(), (9, 5, 9)))
    assert (await book.run())["drifted"] == 5
    found = await book.checks()
    healed = {day: each for day, each in found.items() if each[0] == "healed"}
    assert healed == {
        book.ago(1): ("healed", 17, 18),
        book.ago(8): ("healed", 9, 18),
        book.ago(9): ("healed", 19, 18),
        book.ago(10): ("healed", 18, 18),
    }
    assert set(found[book.ago(7)]) == {"matched", 14}
    assert {row[2] for row in await book.rows() if row[0] != book.ago(7)} == {9}
    assert await database.fetchval("SELECT budget_spent FROM campaigns WHERE id = $1", one.id) == 99
    drifted = await database.fetch(
        "SELECT diff->'drifted_dates'->1 FROM audit_log WHERE action = 'find_drift' ORDER BY seq"
    )
    assert sorted(day for row in drifted for day in row[0]) == [book.ago(n).isoformat() for n in (10, 9, 8, 1)]
    alerts = "SELECT status, severity, details->'rollup' FROM alerts WHERE kind = 'rollup_drift'"
    assert [tuple(row) for row in await database.fetch(alerts)] == [
        (
            "open",
            "warning",
            {"date": book.ago(8).isoformat(), "figure": "impressions", "expected": "18", "found": "9"},
        )
    ]
    # Nothing is found a second time; when it was found stays known.
    assert (await book.run())["drifted"] == 0
    assert {each[0] for each in (await book.checks()).values()} == {"matched"}
    assert [row[0] for row in await database.fetch(alerts)] == ["resolved"]
    assert await database.fetchval("SELECT count(*) FROM rollup_checks WHERE drifted_at IS NOT NULL") == 4


async def test_figures_that_nobody_measured_stay_and_are_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollup_job, "_MARK_SECONDS", 0.01)
    book = await ledger(desk)
    [campaign] = book.campaigns
    await book.put(
        1, snap(campaign, book.ago(2).isoformat(), (9, 9, 9)), snap(campaign, book.ago(1).isoformat(), (9, 9, 9))
    )
    await book.run()
    await book.run(cause="new_reading")
    await book.opened.clickhouse.execute(
        f"ALTER TABLE campaign_metrics_hourly DELETE WHERE toDate(hour) = '{book.ago(2)}' SETTINGS mutations_sync = 2"
    )
    assert (await book.run())["drifted"] == 1
    assert (await book.checks())[book.ago(2)] == ("drifted", 9, 0)
    assert len(await book.rows()) == 2
    alert = await book.opened.database.fetchrow("SELECT severity, summary, details->'rollup' FROM alerts")
    assert alert is not None
    assert tuple(alert) == (
        "critical",
        f"daily figures of 1 days were not what was measured, the first one on {book.ago(2)}",
        {"date": book.ago(2).isoformat(), "figure": "impressions", "expected": "0", "found": "9"},
    )


async def test_another_time_zone_is_another_calendar(desk: Desk) -> None:
    book = await ledger(desk, "UTC")
    [campaign] = book.campaigns
    late = datetime.combine(book.ago(6), datetime.min.time(), UTC) + timedelta(hours=22)
    await desk.stores.events(campaign, late, count=7)
    await desk.work()
    await book.run()
    assert await book.rows("date, impressions, time_zone") == [(book.ago(6), 7, "UTC")]
    await book.opened.database.execute(
        """UPDATE clients SET settings = settings || '{"timezone": "Asia/Vladivostok"}' WHERE id = $1""", book.client_id
    )
    assert (await book.run())["drifted"] == 0
    day = late.astimezone(ZoneInfo("Asia/Vladivostok")).date()
    assert await book.rows("date, impressions, time_zone") == [
        (book.ago(6), 0, "Asia/Vladivostok"),
        (day, 7, "Asia/Vladivostok"),
    ]
    [told] = await book.restatements()
    assert (told.day, told.before.impressions, told.after.impressions) == (book.ago(6), 7, 0)


async def test_late_events_reach_a_day_that_is_rolled_up(desk: Desk) -> None:
    book = await ledger(desk, "Europe/Moscow")
    [campaign] = book.campaigns
    noon = datetime.combine(book.ago(4), datetime.min.time(), ZoneInfo("Europe/Moscow")) + timedelta(hours=12)
    await desk.stores.events(campaign, noon.astimezone(UTC), count=5)
    await desk.work()
    await book.run()
    await book.run(cause="new_reading")
    await desk.stores.events(campaign, noon.astimezone(UTC), count=2)
    # What happens today waits for the end of the day.
    await desk.stores.events(campaign, datetime.now(UTC), count=2)
    await desk.work()
    waiting = await book.opened.database.fetch("SELECT DISTINCT date FROM rollup_marks")
    assert book.ago(4) in {row[0] for row in waiting}
    assert book.today not in {row[0] for row in waiting}
    pending = "SELECT count(*) FROM jobs WHERE type = 'rollup_daily' AND client_id = $1 AND status = 'pending'"
    # One before anybody took the marks, one since.
    assert await book.opened.database.fetchval(pending, book.client_id) == 2
    assert (await book.run(cause="new_reading"))["restated"] == 1
    assert (await book.rows("date, impressions"))[0] == (book.ago(4), 7)


async def test_marks_made_while_a_rollup_reads_are_not_lost(desk: Desk) -> None:
    """Readings come in while several workers roll up one client: in the end all say the same."""
    book = await ledger(desk, campaigns=3)
    stop = asyncio.Event()

    async def read() -> None:
        for version in range(1, 13):
            await book.put(
                version,
                *(
                    snap(each, book.ago(n).isoformat(), (100, version * n, n))
                    for each in book.campaigns
                    for n in (1, 2, 3)
                ),
            )
        stop.set()

    async def work() -> None:
        while not stop.is_set():
            await book.run(cause="new_reading")

    await asyncio.gather(read(), work(), work())
    left = await book.opened.database.fetchval("SELECT count(*) FROM rollup_marks")
    await book.run(cause="new_reading")
    assert left in (0, 3)
    assert sorted(row[2] for row in await book.rows()) == [12] * 3 + [24] * 3 + [36] * 3
    history = await book.restatements()
    for campaign in book.campaigns:
        chain = [each for each in history if (each.campaign_id, each.day) == (campaign.id, book.ago(1))]
        assert all(a.after == b.before for a, b in pairwise(chain))
        assert [each.revision for each in chain] == list(range(2, len(chain) + 2))
    assert await book.opened.database.fetchval("SELECT count(*) FROM campaign_statistics") == 9


async def test_a_rollup_that_fails_leaves_its_marks(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    book = await ledger(desk)
    [campaign] = book.campaigns
    await book.put(1, snap(campaign, book.ago(3).isoformat(), (5, 5, 5)))

    async def fail(*_: object) -> None:
        raise RuntimeError("the worker is lost")

    with monkeypatch.context() as broken:
        broken.setattr(rollups, "note_checks_internal", fail)
        with pytest.raises(RuntimeError):
            await book.run(cause="new_reading")
    assert await book.rows() == []
    assert (await book.run(cause="new_reading"))["written"] == 1
    assert await book.opened.database.fetchval("SELECT count(*) FROM rollup_marks") == 0


async def test_a_project_adds_up_one_currency_only(desk: Desk) -> None:
    book = await ledger(desk)
    [roubles] = book.campaigns
    euros = await desk.stores.campaign(book.client_id, roubles.project_id, currency="EUR")
    day = book.ago(2).isoformat()
    await book.put(1, snap(roubles, day, (1, 1, 70)), snap(euros, day, (1, 1, 900)))
    await book.run(cause="new_reading")
    spent = await book.opened.database.fetchrow(
        "SELECT p.budget_spent, (SELECT budget_spent FROM campaigns WHERE id = $2) FROM projects p WHERE p.id = $1",
        roubles.project_id, euros.id,
    )  # fmt: skip
    assert spent is not None
    assert tuple(spent) == (70, 900)
    checks = await rollups.list_checks(book.opened.database, EVERYTHING, book.client_id, limit=10)
    assert [(each.currency, each.stored.cost_micros, each.state) for each in checks] == [
        ("RUB", 70 * 10**6, "matched"),
        ("EUR", 900 * 10**6, "matched"),
    ]
    # What platforms take back is given back.
    await book.put(2, snap(roubles, day, (1, 1, 60)))
    await book.run(cause="new_reading")
    assert (
        await book.opened.database.fetchval("SELECT budget_spent FROM projects WHERE id = $1", roubles.project_id) == 60
    )


async def test_jobs_are_made_for_whoever_is_due(desk: Desk) -> None:
    book = await ledger(desk)
    await desk.tenant(0)
    now = datetime.now(UTC)
    assert await rollup_job.make_due(book.opened, now) == 1
    assert await rollup_job.make_due(book.opened, now) == 1
    [row] = await book.opened.database.fetch("SELECT id FROM jobs WHERE type = 'rollup_daily'")
    [job] = await jobs.claim_internal(book.opened.database, [row[0]], "test", timedelta(seconds=30))
    assert (job.queue, job.client_id, job.payload) == (
        "sync", book.client_id, {"client_id": str(book.client_id), "cause": "day_close"},
    )  # fmt: skip
    await rollup_job.handle(job, JobContext(book.opened, job, timedelta(seconds=30)))
    await jobs.complete_internal(book.opened.database, [(job.id, job.fence, {})])
    assert await rollup_job.make_due(book.opened, now) == 0
    assert await rollup_job.make_due(book.opened, now + ONE) == 1
    # Marks that nobody came for.
    await book.opened.database.execute(
        "INSERT INTO rollup_marks (client_id, date, marked_at) VALUES ($1, $2, now() - interval '2 minutes')",
        book.client_id, book.ago(3),
    )  # fmt: skip
    assert await rollup_job.make_due(book.opened, now) == 1
    causes = await book.opened.database.fetch("SELECT payload->>'cause' FROM jobs WHERE status = 'pending'")
    assert sorted(row[0] for row in causes) == ["day_close", "new_reading"]
