"""Days unlike the others, by a robust rule, and days without any figures.

A day is held against the median of the same days of the week up to four weeks before and after it, of which there must
be three. The spread is the median absolute deviation (MAD) of all days around there from such medians of theirs, times
1.4826, which for normal errors estimates a standard deviation (Hampel's identifier); where it is zero, the mean of
these deviations times 1.2533 takes its place (Iglewicz and Hoaglin, 1993). A day is unlike the others if it is

- more than 3.5 such deviations away, the limit that Iglewicz and Hoaglin advise,
- and at least a fifth of what was to be expected, so that nobody is told of what matters to nobody,
- and, if it is a count, more than three times the square root of what was to be expected, which chance alone brings.

Medians are not moved by what they are to find, as means and standard deviations are. Days that are not over are neither
tested nor held against others, and neither are days without any figures: these are told as gaps.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from itertools import groupby
from math import isqrt
from typing import Any, Final
from uuid import UUID

from storage.clickhouse.metrics import Figures

REACH: Final = timedelta(days=28)
"""How far around a day are the days that it is held against."""
_LIMIT: Final = Decimal("3.5")
_TESTED: Final = ("cost", "clicks", "conversions")
_LEAST: Final = 3
_MICROS: Final = 10**6
_MOST: Final = 12

Days = Mapping[date, Figures]


def looked_at(days: Days, campaigns: Mapping[tuple[UUID, str], Days], first: date, over: date) -> dict[str, Any]:
    """Unlike days and gaps of a period.

    Args:
        days: Figures of all days that were read, those before the period among them; days without any are missing.
        campaigns: The same of each campaign on each platform.
        first: First day of the period.
        over: All days before this one are over.
    """
    known = sorted(day for day in days if day < over)
    found, tested = [], 0
    values = {metric: {day: _micros(days[day], metric) for day in known} for metric in _TESTED}
    for place in range(bisect_left(known, first), len(known)):
        day = known[place]
        ends = bisect_left(known, day - REACH), bisect_right(known, day + REACH)
        near = known[ends[0] : place] + known[place + 1 : ends[1]]
        weekdays = [[each for each in near if each.weekday() == weekday] for weekday in range(7)]
        if len(weekdays[day.weekday()]) >= _LEAST:
            tested += 1
            alike = [some for some in weekdays if len(some) >= _LEAST]
            for metric in _TESTED:
                told = _tested(values[metric], day, alike, metric != "cost")
                if told is not None:
                    found.append((abs(told[1]), day, metric, *told, weekdays[day.weekday()]))
    found.sort(key=lambda each: (-each[0], each[1], each[2]))
    anomalies = [
        {
            "date": day.isoformat(),
            "metric": metric,
            "value": _text(_micros(days[day], metric)),
            "expected": _text(expected),
            "deviations": _text(deviations, 1),
            **_mover(campaigns, metric, day, alike, upwards=deviations > 0),
        }
        for _, day, metric, expected, deviations, alike in sorted(found[:_MOST], key=lambda each: each[1:3])
    ]
    return {
        "tested_days": tested,
        "anomalies": anomalies,
        "more_anomalies": max(0, len(found) - _MOST),
        "gaps": _gaps(known, first),
    }


def _tested(
    values: Mapping[date, int], day: date, weekdays: Sequence[Sequence[date]], counted: bool
) -> tuple[int, int] | None:
    """What was to be expected of a day and how many deviations away it is, in millionths; None if it is like others.

    Args:
        values: The figure of each day.
        day: The day.
        weekdays: The days that it is held against, apart by day of the week.
        counted: Whether the figure is a count, which chance alone moves.
    """
    medians = {some[0].weekday(): _median([values[each] for each in some]) for some in weekdays}
    expected = medians[day.weekday()]
    away = values[day] - expected
    distances = [abs(values[each] - medians[each.weekday()]) for some in weekdays for each in some]
    spread = Decimal("1.4826") * _median(distances) or Decimal("1.2533") * sum(distances) / len(distances)
    if abs(away) * 5 < expected or not away or (spread and abs(away) <= _LIMIT * spread):
        return None
    if counted and abs(away) <= 3 * isqrt(max(expected, _MICROS) * _MICROS):
        return None
    # Where all others are the same, any number of deviations is as true: what is said is that it is beyond the limit.
    deviations = abs(away) / spread if spread else _LIMIT
    return expected, int(deviations.quantize(Decimal("0.1")) * _MICROS) * (1 if away > 0 else -1)


def _mover(
    campaigns: Mapping[tuple[UUID, str], Days], metric: str, day: date, alike: Sequence[date], *, upwards: bool
) -> dict[str, str]:
    """The campaign that moved a day the most, in the direction in which it went."""

    def away(days: Days) -> int:
        usual = _median([_micros(days[each], metric) if each in days else 0 for each in alike])
        here = _micros(days[day], metric) if day in days else 0
        return here - usual if upwards else usual - here

    moved = sorted(((away(days), key) for key, days in campaigns.items()), key=lambda each: (-each[0], str(each[1])))
    if not moved or moved[0][0] <= 0:
        return {}
    most, (campaign_id, platform) = moved[0]
    return {"campaign_id": str(campaign_id), "platform": platform, "moved": _text(most if upwards else -most)}


def _gaps(known: Sequence[date], first: date) -> list[dict[str, str]]:
    """Runs of days without any figures that have some before and after them."""
    if not known:
        return []
    there = set(known)
    begin = max(first, known[0])
    missing = [day for n in range((known[-1] - begin).days) if (day := begin + timedelta(days=n)) not in there]
    runs = []
    for _, group in groupby(enumerate(missing), lambda each: each[1] - timedelta(days=each[0])):
        some = [day for _, day in group]
        runs.append({"start_date": some[0].isoformat(), "end_date": some[-1].isoformat()})
    return runs


def _micros(figures: Figures, metric: str) -> int:
    if metric == "cost":
        return figures.cost_micros
    return figures.clicks * _MICROS if metric == "clicks" else figures.conversions_micros


def _median(values: Sequence[int]) -> int:
    """Of whole numbers, as one."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2


def _text(micros: int, digits: int = 6) -> str:
    number = Decimal(micros).scaleb(-6).quantize(Decimal(1).scaleb(-digits))
    return f"{number.normalize():f}" if number else "0"
