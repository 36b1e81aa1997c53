"""The figures of a report, as they are kept: those that QueryStatistics gives, to the last digit.

All are sums of one statement, so that the parts of a report agree with each other also while figures are restated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from server.jobs.handling import JobFailed, Stores
from server.reports import explaining
from server.reports.days import REACH
from server.reports.explaining import Key
from server.reports.measures import metrics, summed
from server.statistics.buckets import day_start
from server.statistics.watermark import WatermarkReader
from storage.clickhouse import precedence, series
from storage.clickhouse.metrics import NO_FIGURES, Figures, Run, Selection
from storage.postgres import reports
from storage.postgres.reports import Report, Subject

SCHEMA: Final = 1
"""Grows with every change of what is kept that a reader has to know of."""

_DAY: Final = timedelta(days=1)
_MOST_CAMPAIGNS: Final = 2_000
_MOST_SUMS: Final = 1_000_000


async def gather(stores: Stores, report: Report) -> tuple[dict[str, Any], int | None]:
    """What a report says now, and the watermark of its figures in Unix milliseconds.

    Raises:
        JobFailed: These are too many figures.
    """
    zone = ZoneInfo(report.time_zone)
    length = (report.end - report.start).days + 1
    first = report.start - _DAY * length
    if report.type == "analytical_notes":
        # Unusual days want to be held against some weeks.
        first_day = min(first, report.start - REACH)
        days = [first_day + _DAY * n for n in range((report.end - first_day).days + 1)]
    else:
        # Of the days before only the sum is told.
        days = [first, *(report.start + _DAY * n for n in range(length))]
    starts = [day_start(day, zone) for day in [*days, report.end + _DAY]]
    # A zone that crossed the date line has a day without any instant.
    by_start = {start: day for day, (start, after) in zip(days, pairwise(starts), strict=True) if after > start}
    bounds = [*by_start, starts[-1]]
    # Read before the figures, which may be newer than it but never older.
    watermark = await WatermarkReader(stores.database).millis()
    found = await series.series(
        stores.clickhouse,
        Selection(clients=[report.client_id], projects=[report.project_id]),
        bounds,
        ["campaign_id", "platform"],
        _MOST_CAMPAIGNS + 1,
        mixed=await precedence.has_snapshots(stores.clickhouse, [report.client_id]),
        covered=precedence.covers(bounds, zone),
    )
    if len(found) > _MOST_CAMPAIGNS or sum(map(len, found.values())) > _MOST_SUMS:
        raise JobFailed("the project has too many figures in these days for one report: shorten the period", final=True)
    runs: dict[Key, Run] = {}
    for combination, run in found.items():
        campaign_id, platform = combination.values
        assert isinstance(campaign_id, UUID)
        assert isinstance(platform, str)
        if any(by_start[start] >= first for start in run.starts):
            runs[combination.currency, campaign_id, platform] = run
    names = await reports.campaign_names_internal(stores.database, list({key[1] for key in runs}))
    subject = await reports.subject_internal(stores.database, report.id)
    data = await asyncio.to_thread(_kept, report, subject, watermark, by_start, runs, names)
    if report.type == "analytical_notes":
        at = datetime.fromtimestamp(watermark / 1000, UTC) if watermark else datetime.now(UTC)
        pacing = await explaining.pacing(stores, report, at)
        over = at.astimezone(zone).date()
        await asyncio.to_thread(explaining.explain, data, report, by_start, runs, over, pacing)
    return data, watermark or None


def _kept(
    report: Report,
    subject: Subject,
    watermark: int,
    by_start: Mapping[int, date],
    runs: Mapping[Key, Run],
    names: Mapping[UUID, str],
) -> dict[str, Any]:
    length = (report.end - report.start).days + 1
    previous = report.start - _DAY * length
    currencies = sorted({key[0] for key in runs}, key=lambda each: (each != subject.project_currency, each))
    return {
        "schema": SCHEMA,
        "type": report.type,
        "client": {"client_id": str(report.client_id), "display_name": subject.client_name},
        "project": {"project_id": str(report.project_id), "display_name": subject.project_name},
        "dates": {"start_date": report.start.isoformat(), "end_date": report.end.isoformat()},
        "previous_dates": {
            "start_date": previous.isoformat(),
            "end_date": (report.start - _DAY).isoformat(),
        },
        "time_zone": report.time_zone,
        "watermark_time": datetime.fromtimestamp(watermark / 1000, UTC).isoformat() if watermark else None,
        "currencies": [
            _of_currency(
                each, report.start, previous, by_start, {key: run for key, run in runs.items() if key[0] == each}, names
            )
            for each in currencies or [subject.project_currency]
        ],
    }


def _of_currency(
    currency: str,
    first: date,
    previous: date,
    by_start: Mapping[int, date],
    runs: Mapping[Key, Run],
    names: Mapping[UUID, str],
) -> dict[str, Any]:
    """Everything in one currency: in all, by platform, by campaign and by day."""
    now: dict[tuple[UUID, str], Figures] = {}
    before: dict[tuple[UUID, str], Figures] = {}
    days = [day for day in by_start.values() if day >= first]
    place = {day: number for number, day in enumerate(days)}
    # By column, not by row: the sums of a year of forty campaigns are some ten thousand rows.
    daily, there = tuple([0] * len(days) for _ in Figures._fields), set[int]()
    for (_, campaign_id, platform), run in runs.items():
        dates = [by_start[start] for start in run.starts]
        inside = [row for row, day in enumerate(dates) if day >= first]
        earlier = [row for row, day in enumerate(dates) if previous <= day < first]
        for sums, rows in ((now, inside), (before, earlier)):
            if rows:
                sums[campaign_id, platform] = Figures(*(sum(map(column.__getitem__, rows)) for column in run.columns))
        places = [place[dates[row]] for row in inside]
        there.update(places)
        for total, column in zip(daily, run.columns, strict=True):
            for row, at in zip(inside, places, strict=True):
                total[at] += column[row]
    platforms = sorted({platform for _, platform in (*now, *before)})
    campaigns = sorted(
        {*now, *before}, key=lambda each: (-now.get(each, NO_FIGURES).cost_micros, names.get(each[0], ""), str(each[0]))
    )
    return {
        "currency_code": currency,
        **_both(now.values(), before.values(), currency),
        "platforms": [
            {
                "platform": platform,
                **_both(
                    [part for (_, each), part in now.items() if each == platform],
                    [part for (_, each), part in before.items() if each == platform],
                    currency,
                ),
            }
            for platform in platforms
        ],
        "campaigns": [
            {
                "campaign_id": str(key[0]),
                "display_name": names.get(key[0], ""),
                "platform": key[1],
                **_both(
                    [now[key]] if key in now else [],
                    [before[key]] if key in before else [],
                    currency,
                ),
            }
            for key in campaigns
        ],
        "days": [
            {"date": day.isoformat(), "metrics": metrics(Figures(*figures), currency) if at in there else None}
            for at, (day, *figures) in enumerate(zip(days, *daily, strict=True))
        ],
    }


def _both(now: Iterable[Figures], before: Iterable[Figures], currency: str) -> dict[str, Any]:
    return {
        name: metrics(summed(some), currency) if some else None
        for name, some in (("metrics", list(now)), ("previous_metrics", list(before)))
    }
