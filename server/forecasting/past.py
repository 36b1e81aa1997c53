"""The past of a client's campaigns in whole weeks, as QueryStatistics would tell it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np

from server.forecasting.model import COST, Floats, Panel
from server.statistics.buckets import day_start
from storage.clickhouse import precedence, series
from storage.clickhouse.connect import ClickHouse
from storage.clickhouse.metrics import Run, Selection
from storage.postgres.forecasts import PastCampaign

MOST_WEEKS: Final = 52
"""Weeks that are looked at."""
MOST_CAMPAIGNS: Final = 2000
"""Campaigns that are looked at, the newest ones."""
# Errors of more campaigns than these tell nothing that is not known yet, and take seconds.
_MOST_SERIES: Final = 300
_MICROS: Final = 1e6
_WEEK: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Past:
    """What is known.

    Attributes:
        panel: The figures by campaign and week, from the first week that cost something.
        campaigns: The campaigns of the panel.
        first: First day of the first week.
        today: The day after the last week.
    """

    panel: Panel
    campaigns: Sequence[PastCampaign]
    first: date
    today: date

    def week(self, number: int) -> date:
        """First day of a week of the panel."""
        return self.first + _WEEK * number


def place(campaign: PastCampaign) -> tuple[str, str, str]:
    """What a campaign has in common with others: platform, kind of advertising, format."""
    return campaign.platform, campaign.channel_type, campaign.format


async def read(
    clickhouse: ClickHouse,
    client_id: UUID,
    campaigns: Sequence[PastCampaign],
    channels: Collection[UUID],
    today: date,
    zone: ZoneInfo,
) -> Past:
    """Reads the weeks before a day.

    Args:
        clickhouse: Knows the figures.
        client_id: The client.
        campaigns: Its campaigns, all of one currency.
        channels: Channels whose campaigns are kept, however little they cost.
        today: The day.
        zone: The client's time zone.
    """
    nothing = Past(Panel(np.zeros((5, 0, 0)), []), [], today, today)
    if not campaigns:
        return nothing
    days = [today - _WEEK * back for back in range(MOST_WEEKS, -1, -1)]
    bounds = [day_start(day, zone) for day in days]
    found = await series.series(
        clickhouse,
        Selection(clients=[client_id], campaigns=[each.id for each in campaigns]),
        bounds,
        ["campaign_id"],
        MOST_CAMPAIGNS,
        mixed=await precedence.has_snapshots(clickhouse, [client_id]),
        covered=precedence.covers(bounds, zone),
    )
    runs = {combination.values[0]: run for combination, run in found.items()}
    numbers = {start: number for number, start in enumerate(bounds[:-1])}
    kept = [each for each in campaigns if each.id in runs]
    values = np.zeros((5, len(kept), MOST_WEEKS))
    for index, campaign in enumerate(kept):
        _fill(values[:, index], runs[campaign.id], numbers)
    # Those of the plan first, then the dearest; ids make the order the same each time.
    costs = values[COST].sum(axis=1)
    order = sorted(
        (index for index in range(len(kept)) if costs[index] > 0),
        key=lambda index: (kept[index].channel_id not in channels, -costs[index], kept[index].id),
    )[:_MOST_SERIES]
    if not order:
        return nothing
    values, kept = values[:, order], [kept[index] for index in order]
    begin = int(np.flatnonzero(values[COST].sum(axis=0))[0])
    return Past(Panel(values[:, :, begin:], [place(each) for each in kept]), kept, days[begin], today)


def _fill(values: Floats, run: Run, numbers: dict[int, int]) -> None:
    for start, figures in run.items():
        number = numbers[start]
        values[:, number] = (
            figures.impressions,
            figures.clicks,
            figures.conversions_micros / _MICROS,
            figures.cost_micros / _MICROS,
            figures.revenue_micros / _MICROS,
        )
