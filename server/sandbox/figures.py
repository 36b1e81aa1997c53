"""Plausible figures, which follow from seed, campaign and hour alone: asked again, they are the same.

They have an hour of day and a day of week, grow up to the present hour, and settle: of a day's clicks the platform
takes some back within three days, as fraud is found.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from server.sandbox.state import Campaign, Goal, State

ZONE = ZoneInfo("Europe/Moscow")
"""In which days are counted."""

_HOURS = (18, 12, 8, 6, 6, 9, 16, 28, 42, 54, 60, 62, 61, 58, 57, 58, 60, 64, 68, 70, 66, 58, 44, 30)
_WEEK = (104, 106, 105, 103, 100, 88, 84)
# What is still shown of the clicks that will be taken back, in thousandths of those that stay, by age in days.
_UNSETTLED = (42, 25, 9)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a campaign did."""

    impressions: int = 0
    clicks: int = 0
    cost_micros: int = 0


def _draw(seed: int, *parts: object) -> int:
    """A number below 2^32 that looks like chance."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def _between(low: int, high: int, seed: int, *parts: object) -> int:
    return low + _draw(seed, *parts) % (high - low + 1)


def hourly(state: State, campaign: Campaign, day: date) -> list[Figures]:
    """Figures of each hour of a day, as the platform shows them now."""
    start = datetime(day.year, day.month, day.day, tzinfo=ZONE)
    now = state.now()
    if start > now or not _ran(campaign, start, start + timedelta(days=1)):
        return [Figures()] * 24
    seed, number = state.seed, campaign.campaign_id
    size = _between(4_000, 40_000, seed, number, "size") * _WEEK[day.weekday()] // 100
    shown = size * _between(850, 1_150, seed, number, day) // 1_000
    rate = _between(8, 32, seed, number, "rate")
    price = _between(9_000_000, 48_000_000, seed, number, "price")
    age = (now.astimezone(ZONE).date() - day).days
    extra = _UNSETTLED[age] if age < len(_UNSETTLED) else 0
    restated = [each for each in state.restatements if (each.campaign_id, each.day) == (number, day)]
    hours = []
    for hour, weight in enumerate(_HOURS):
        began = start + timedelta(hours=hour)
        if began > now or not _ran(campaign, began, began + timedelta(hours=1)):
            hours.append(Figures())
            continue
        impressions = shown * weight // sum(_HOURS)
        clicks = impressions * rate * _between(90, 110, seed, number, day, hour) // 100_000
        cost = clicks * (price * _between(92, 108, seed, number, day, hour, "price") // 100 // 10_000 * 10_000)
        hours.append(Figures(impressions, clicks, cost))
    if extra:
        whole = sum(hour.clicks for hour in hours)
        hours = _scaled(hours, whole, whole + (whole * extra + 999) // 1_000)
    for each in restated:
        whole = sum(hour.clicks for hour in hours)
        target = each.clicks if each.clicks is not None else whole * each.thousandths // 1_000
        hours = _scaled(hours, whole, target)
    return hours


def daily(state: State, campaign: Campaign, day: date) -> Figures:
    """Figures of a day: the sum of its hours."""
    hours = hourly(state, campaign, day)
    return Figures(
        sum(each.impressions for each in hours),
        sum(each.clicks for each in hours),
        sum(each.cost_micros for each in hours),
    )


def reached(state: State, campaign: Campaign, goal: Goal, day: date, hour: int, clicks: int) -> tuple[int, int]:
    """How often an hour's clicks reached a goal, and what that was worth in millionths."""
    exact = clicks * goal.of_100_000
    chance = _draw(state.seed, campaign.campaign_id, goal.goal_id, day, hour) % 100_000
    times = (exact + chance) // 100_000
    worth = _between(70, 130, state.seed, goal.goal_id, day, hour) * goal.value_micros // 100 // 10_000 * 10_000
    return times, times * worth


def _ran(campaign: Campaign, first: datetime, end: datetime) -> bool:
    return any(run.since < end and (run.until is None or run.until > first) for run in campaign.runs)


def _scaled(hours: list[Figures], whole: int, target: int) -> list[Figures]:
    """The hours with so many clicks in all, costs and impressions in proportion; an empty day gets all in one hour."""
    if whole == 0:
        return [Figures(target * 50, target, target * 20_000_000) if hour == 12 else Figures() for hour in range(24)]
    scaled, given, seen = [], 0, 0
    for each in hours:
        seen += each.clicks
        clicks = seen * target // whole - given
        given += clicks
        cost = each.cost_micros * clicks // each.clicks if each.clicks else 0
        scaled.append(Figures(max(each.impressions, clicks), clicks, cost))
    return scaled
