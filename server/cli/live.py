"""Live figures as a table, with what moved lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

from rich.markup import escape
from rich.table import Table

from mrm.statistics.v1 import metrics_pb2
from mrm_client import WatchState

_BARS = "▁▂▃▄▅▆▇█"
_TICKS = 24
_RATE_TICKS = 6


class LiveFigures:
    """Keeps the newest state and the course of the last ticks.

    Args:
        names: Display names by campaign id; grows while watching if somebody fills it.
        clock: Monotonic seconds.
    """

    tick_seconds = 0.5

    def __init__(self, names: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._names = names
        self._clock = clock
        self._courses: dict[str, deque[tuple[float, int]]] = {}
        self._sampled = 0.0
        self.state = WatchState()
        self.note = ""

    def take(self, state: WatchState) -> None:
        """Notes a new state."""
        self.state = state
        self.note = ""
        self.sample()

    def sample(self) -> None:
        """Notes where the figures stand now, once a tick; call it often."""
        now = self._clock()
        if now - self._sampled < self.tick_seconds:
            return
        self._sampled = now
        for campaign_id, campaign in self.state.campaigns.items():
            course = self._courses.setdefault(campaign_id, deque(maxlen=_TICKS + 1))
            course.append((now, campaign.metrics.impressions))

    def rate(self, campaign_id: str) -> float:
        """Impressions a second over the last few ticks."""
        course = list(self._courses.get(campaign_id, ()))[-_RATE_TICKS:]
        if len(course) < 2 or course[-1][0] <= course[0][0]:
            return 0.0
        return (course[-1][1] - course[0][1]) / (course[-1][0] - course[0][0])

    def sparkline(self, campaign_id: str) -> str:
        """Impressions of each tick, as bars."""
        course = list(self._courses.get(campaign_id, ()))
        steps = [max(0, after[1] - before[1]) for before, after in pairwise(course)]
        top = max(steps, default=0)
        return "".join(_BARS[step * (len(_BARS) - 1) // top] if top else _BARS[0] for step in steps)

    def age(self) -> str:
        """How old the newest figures are."""
        if self.state.watermark is None:
            return "-"
        return f"{max(0.0, (datetime.now(UTC) - self.state.watermark).total_seconds()):.1f} s"

    def name(self, campaign_id: str) -> str:
        """Display name of a campaign, or its id."""
        return self._names.get(campaign_id, campaign_id)

    def by_name(self) -> list[tuple[str, metrics_pb2.CampaignMetrics]]:
        """(name, state) of every campaign, in order of the names."""
        named = [(self.name(key), value) for key, value in self.state.campaigns.items()]
        return sorted(named, key=lambda pair: pair[0])

    def table(self) -> Table:
        """The whole state, to be drawn again and again."""
        self.sample()
        table = Table(box=None, pad_edge=False, caption=self._caption(), caption_justify="left", caption_style="dim")
        table.add_column("campaign")
        for heading in ("impressions", "clicks", "CTR", "cost", "per s"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("lately", min_width=_TICKS, no_wrap=True)
        for name, campaign in self.by_name():
            figures = campaign.metrics
            table.add_row(
                escape(name),
                f"{figures.impressions:,}",
                f"{figures.clicks:,}",
                percent(figures),
                money(figures),
                f"{self.rate(campaign.campaign_id):,.0f}",
                self.sparkline(campaign.campaign_id),
            )
        return table

    def lines(self) -> list[str]:
        """One plain line for each campaign that the newest message changed."""
        now = datetime.now().astimezone().strftime("%H:%M:%S")
        return [
            f"{now} {name}: {c.metrics.impressions:,} impressions, {c.metrics.clicks:,} clicks,"
            f" CTR {percent(c.metrics)}, cost {money(c.metrics)}, {self.rate(c.campaign_id):,.0f}/s, age {self.age()}"
            for name, c in self.by_name()
            if c.campaign_id in self.state.changed
        ]

    def _caption(self) -> str:
        state = self.state
        facts = [f"figures {self.age()} old"]
        if state.window_start and state.window_end:
            facts.append(f"window {state.window_start:%Y-%m-%d %H:%M} to {state.window_end:%Y-%m-%d %H:%M} UTC")
        if state.reconnects:
            facts.append(f"{state.reconnects} reconnects")
        return escape(", ".join([*facts, self.note] if self.note else facts))


def percent(figures: metrics_pb2.Metrics) -> str:
    """Click-through rate with two digits."""
    return f"{Decimal(figures.ctr):.2f} %" if figures.HasField("ctr") else "-"


def money(figures: metrics_pb2.Metrics) -> str:
    """Cost with its currency, to the cent."""
    return f"{Decimal(figures.cost_micros) / 1_000_000:,.2f} {figures.currency_code}"
