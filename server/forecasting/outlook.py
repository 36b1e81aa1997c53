"""Forecasts of media plans: from the client's past and benchmarks to figures, intervals, and what they rest on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from statistics import NormalDist
from typing import Final, Literal
from uuid import UUID

import numpy as np

from server.forecasting import model
from server.forecasting.model import CLICKS, CONVERSIONS, COST, IMPRESSIONS, REVENUE, Calibration, Floats, Ratio, Whole
from server.forecasting.past import Past
from storage.postgres.benchmarks import Benchmark

LEVELS: Final = (50, 80, 95)
"""Probabilities of intervals, in percent."""
JUDGED: Final = 80
"""The one that outlook and backtest go by."""
DRAWS: Final = 4_000

# Below this weight of the own past, its errors do not tell how far off benchmarks are.
_OWN_PREVAILS = 0.5
_BEYOND = 1.5
# Quartiles of a normal distribution lie so many standard deviations from its middle.
_QUARTILE = NormalDist().inv_cdf(0.75)
_LEAST_WEEKS = 12
# Beyond this variance of a logarithm a benchmark says nothing, and numbers end.
_WIDEST = 100.0
_PROBABLE_WEEKS = 4

Evidence = Literal["channel", "format", "channel_type", "platform", "none"]
Basis = Literal["", "own_errors", "benchmark_quartiles", "plan", "channels"]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PlannedChannel:
    """A channel whose money is to be forecast.

    Attributes:
        micros: Its money, in millionths of the currency.
        start: First day of its flight; None while not decided.
        industry: The client's line of business.
        benchmarks: The best one of each metric.
    """

    id: UUID
    platform: str
    channel_type: str
    format: str
    micros: int
    start: date | None
    end: date | None
    industry: str
    benchmarks: Mapping[str, Benchmark]

    @property
    def budget(self) -> float:
        """Its money in units of the currency."""
        return self.micros / 1e6

    @property
    def days(self) -> int:
        """How long it takes; four weeks while not decided."""
        return (self.end - self.start).days + 1 if self.start and self.end else 7 * _PROBABLE_WEEKS


@dataclass(slots=True)
class Figure:
    """What a figure will probably be.

    Attributes:
        draw: Draws what it may be, alike for what happens together; None without intervals. Hundreds of channels are
            not held in memory.
    """

    value: float
    intervals: dict[int, Interval] = field(default_factory=dict)
    basis: Basis = ""
    own_weight: float | None = None
    benchmark_ids: list[UUID] = field(default_factory=list)
    errors: int = 0
    unknown: list[UUID] = field(default_factory=list)
    draw: Callable[[], Floats] | None = None


@dataclass(slots=True)
class Outlook:
    """What a channel will probably reach: figures by their place in a panel, rates by what they are of and per."""

    channel: PlannedChannel
    figures: dict[int, Figure]
    rates: dict[Ratio, Figure]
    evidence: Evidence
    series: list[int]
    assumptions: list[str]


@dataclass(frozen=True, slots=True)
class Median:
    """A benchmark of a ratio, log-normally distributed: its middle and the deviation of its logarithm."""

    middle: float
    sigma: float
    ids: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class Fared:
    """How forecasts of a figure fared on past flights."""

    flights: int
    covered: float
    error: float | None


class Forecaster:
    """Forecasts plans of one client.

    Args:
        past: The client's past.
        channels: Every channel that will be forecast: how long the flights are whose errors count follows from them.
        key: What chance follows from, so that the same question gives the same answer.
    """

    def __init__(self, past: Past, channels: Sequence[PlannedChannel], key: str) -> None:
        self._past = past
        self._key = key
        paid = [each for each in channels if each.budget > 0]
        shortest = min((each.days for each in paid), default=7 * _PROBABLE_WEEKS)
        ahead = max((_weeks(past.today, each.end) for each in paid if each.end), default=_PROBABLE_WEEKS)
        weeks = past.panel.weeks
        self._window = max(model.WINDOW_WEEKS, min(ahead, weeks // 2))
        self._histories = {ratio: model.History(past.panel, ratio) for ratio in (*model.YIELDS, *model.RATES)}
        self._fits = {ratio: history.at(weeks) for ratio, history in self._histories.items()}
        self.block = 1
        for block in model.BLOCKS:
            if 7 * block <= shortest or block == 1:
                self._scores = {
                    ratio: model.rolled(history, block, self._window) for ratio, history in self._histories.items()
                }
                self.block = block
                if len(self._scores[model.YIELDS[0]].errors) >= model.LEAST_SCORES:
                    break
        self._calibrations = {
            (ratio, known): model.calibrated(self._scores[ratio], model.event_size(history), known)
            for ratio, history in self._histories.items()
            for known in (True, False)
        }
        rng = np.random.default_rng(_seed(key))
        drawn = rng.random(DRAWS)
        self._spans = {key: found.together(drawn) for key, found in self._calibrations.items() if found is not None}
        self._signs = rng.choice(np.array([-1.0, 1.0]), DRAWS)

    def channel(self, channel: PlannedChannel) -> Outlook:
        """What a channel will probably reach."""
        series, evidence, groups = self._alike(channel)
        figures: dict[int, Figure] = {}
        if channel.budget > 0:
            for ratio in model.YIELDS:
                figure = self._figure(channel, ratio, channel.budget, series, evidence, groups)
                if figure is not None:
                    figures[ratio.of] = figure
        figures[COST] = Figure(channel.budget, basis="plan")
        rates: dict[Ratio, Figure] = {}
        for ratio in model.RATES:
            volume = figures.get(ratio.per)
            if volume is not None and volume.value > 0:
                figure = self._figure(channel, ratio, volume.value, series, evidence, groups)
                if figure is not None:
                    bounds = {
                        level: (low / volume.value, high / volume.value)
                        for level, (low, high) in figure.intervals.items()
                    }
                    rates[ratio] = Figure(figure.value / volume.value, bounds, figure.basis)
        return Outlook(channel, figures, rates, evidence, series, self._assumptions(channel, figures, evidence, series))

    def total(self, outlooks: Sequence[Outlook]) -> dict[int, Figure]:
        """The channels together."""
        paid = [each for each in outlooks if each.channel.budget > 0]
        totals: dict[int, Figure] = {}
        for place in (IMPRESSIONS, CLICKS, CONVERSIONS, COST, REVENUE):
            known = [each.figures[place] for each in paid if place in each.figures]
            if not known:
                continue
            total = Figure(sum(each.value for each in known), basis="plan" if place == COST else "channels")
            total.unknown = [each.channel.id for each in paid if place not in each.figures]
            draws = [each.draw for each in known if each.draw is not None]
            if len(draws) == len(known):
                drawn = np.zeros(DRAWS)
                for draw in draws:
                    drawn += draw()
                total.draw = partial(_same, drawn)
                total.intervals = between(drawn)
            totals[place] = total
        return totals

    def fared(self) -> tuple[date, date, dict[int, Fared]] | None:
        """How the method would have fared on the last third of the past: its days, and each figure's result."""
        weeks, span = self._past.panel.weeks, model.WINDOW_WEEKS
        windows = weeks // 3 // span
        if weeks < _LEAST_WEEKS or not windows:
            return None
        origins = [weeks - span * back for back in range(windows, 0, -1)]
        found: dict[int, Fared] = {}
        for ratio in model.YIELDS:
            history = self._histories[ratio]
            scores = model.rolled(history, self.block, span)
            held = model.backtest(scores, model.event_size(history), span, self.block, JUDGED / 100, origins)
            if len(held.covered):
                error = float(np.median(held.off)) if len(held.off) else None
                found[ratio.of] = Fared(len(held.covered), float(held.covered.mean()), error)
        if not found:
            return None
        return self._past.week(origins[0]), self._past.week(weeks), found

    def _alike(self, channel: PlannedChannel) -> tuple[list[int], Evidence, tuple[int, int] | None]:
        """The series that tell of a channel, what they have in common with it, and their level and group."""
        own = [n for n, each in enumerate(self._past.campaigns) if each.channel_id == channel.id]
        if own:
            return own, "channel", None
        place = (channel.platform, channel.channel_type, channel.format)
        evidences: tuple[Evidence, ...] = ("platform", "channel_type", "format")
        for level in range(len(self._past.panel.levels) - 1, -1, -1):
            members, numbers = self._past.panel.levels[level]
            group = numbers.get(place[: level + 1])
            if group is not None:
                return np.flatnonzero(members == group).tolist(), evidences[level], (level, group)
        return [], "none", None

    def _figure(
        self,
        channel: PlannedChannel,
        ratio: Ratio,
        volume: float,
        series: Sequence[int],
        evidence: Evidence,
        group: tuple[int, int] | None,
    ) -> Figure | None:
        """What comes of a volume of the denominator; None if nothing tells."""
        benchmark, fit = of_benchmarks(channel.benchmarks, ratio), self._fits[ratio]
        own, weight = None, 0.0
        if fit is not None and series:
            evident = fit.weights[series]
            if group is not None:
                own = float(fit.groups[group[0]][group[1]])
            elif evident.sum() > 0:
                own = float((np.nan_to_num(fit.series[series]) * evident).sum() / evident.sum())
            if own is not None:
                weight = 1.0
                if benchmark is not None:
                    # Buehlmann: own volume, in events as the benchmark expects them, against how advertisers differ.
                    expected = float(evident.sum()) * benchmark.middle
                    spread = math.expm1(min(benchmark.sigma**2, _WIDEST))
                    weight = expected / (expected + fit.dispersion / spread) if spread > 0 else 0.0
        if own is None and benchmark is None:
            return None
        middle = (own or 0.0) * weight + (benchmark.middle * (1 - weight) if benchmark else 0.0)
        if own is not None and weight >= _OWN_PREVAILS and not self._measured(ratio, series, evidence):
            # Nobody has told what comes of the money. That is not a forecast of nothing.
            return None
        figure = Figure(middle * volume, own_weight=weight)
        figure.benchmark_ids = list(benchmark.ids) if benchmark is not None and weight < 1 else []
        share = min(1.0, 7 * self.block / channel.days)
        seed = f"{self._key}/{channel.id}/{ratio.of}/{ratio.per}"
        # Whoever has hardly begun is as uncertain as a newcomer.
        known = evidence == "channel" and fit is not None and self._volume(fit, series) >= _OWN_PREVAILS
        calibration = self._calibrations[ratio, known]
        if own is not None and weight >= _OWN_PREVAILS and calibration is not None:
            bounds = {level: calibration.interval(figure.value, level / 100, share) for level in LEVELS}
            figure.intervals = {level: bound for level, bound in bounds.items() if bound is not None}
        if figure.intervals and calibration is not None:
            figure.basis, figure.errors = "own_errors", len(calibration.scores)
            spans = self._spans[ratio, known]
            figure.draw = partial(_by_errors, calibration, figure.value, share, spans, self._signs, seed)
        elif benchmark is not None and benchmark.sigma > 0:
            figure.basis = "benchmark_quartiles"
            for level in LEVELS:
                reach = NormalDist().inv_cdf(0.5 + level / 200) * benchmark.sigma
                figure.intervals[level] = (figure.value * math.exp(-reach), figure.value * math.exp(reach))
            figure.draw = partial(_by_quartiles, figure.value, benchmark.sigma, seed)
        return figure

    def _measured(self, ratio: Ratio, series: Sequence[int], evidence: Evidence) -> bool:
        """Whether a figure of some series was ever more than nothing, or they are too small to tell."""
        history, fit = self._histories[ratio], self._fits[ratio]
        if fit is None or history.above[series].sum() > 0:
            return fit is not None
        return evidence == "channel" and self._volume(fit, series) < _OWN_PREVAILS

    @staticmethod
    def _volume(fit: model.Fit, series: Sequence[int]) -> float:
        """Whether a channel's own campaigns have figures to speak of: below a half they have hardly begun."""
        return float(fit.series_volume[series].max())

    def _assumptions(
        self, channel: PlannedChannel, figures: Mapping[int, Figure], evidence: Evidence, series: Sequence[int]
    ) -> list[str]:
        found = ["budget_spent", "proportional"]
        bases = {figure.basis for figure in figures.values()}
        if series:
            found.append("no_season")
        if not channel.start or not channel.end:
            found.append("four_weeks")
        away = _weeks(self._past.today, channel.end) if channel.end else _PROBABLE_WEEKS
        if "own_errors" in bases and (channel.days > 7 * self.block or away > self._window):
            found.append("errors_of_shorter_flights")
        if series:
            dearest = float(self._past.panel.values[COST][series].sum(axis=0).max()) / 7
            if channel.budget / channel.days > _BEYOND * dearest:
                found.append("beyond_past_spend")
        if "benchmark_quartiles" in bases:
            found.append("benchmarks_hold")
        return found


def _by_errors(
    calibration: Calibration, point: float, share: float, spans: tuple[Whole, Whole], signs: Floats, seed: str
) -> Floats:
    return calibration.draws(point, share, spans, signs, np.random.default_rng(_seed(seed)))


def _by_quartiles(point: float, sigma: float, seed: str) -> Floats:
    drawn: Floats = point * np.exp(np.random.default_rng(_seed(seed)).standard_normal(DRAWS) * sigma)
    return drawn


def _same(drawn: Floats) -> Floats:
    return drawn


def between(draws: Floats) -> dict[int, Interval]:
    """The middle of what was drawn, for each level."""
    tails = [(100 - level) / 200 for level in LEVELS]
    low, high = np.quantile(draws, tails), np.quantile(draws, [1 - tail for tail in tails])
    return {level: (float(low[n]), float(high[n])) for n, level in enumerate(LEVELS)}


def of_benchmarks(found: Mapping[str, Benchmark], ratio: Ratio) -> Median | None:
    """What benchmarks say of a ratio; None if nothing."""
    chains: dict[Ratio, tuple[tuple[tuple[str, int, float], ...], ...]] = {
        # Which metrics are multiplied, with their powers and factors; the first chain that is whole answers.
        Ratio(IMPRESSIONS, COST): ((("cpm", -1, 1000),), (("cpc", -1, 1), ("ctr", -1, 100))),
        Ratio(CLICKS, COST): ((("cpc", -1, 1),), (("cpm", -1, 1000), ("ctr", 1, 0.01))),
        Ratio(CONVERSIONS, COST): ((("cpa", -1, 1),), (("cpc", -1, 1), ("cr", 1, 0.01))),
        Ratio(REVENUE, COST): ((("roas", 1, 1),),),
        Ratio(CLICKS, IMPRESSIONS): ((("ctr", 1, 0.01),),),
        Ratio(CONVERSIONS, CLICKS): ((("cr", 1, 0.01),),),
    }
    for chain in chains[ratio]:
        rows = [found.get(name) for name, _, _ in chain]
        if any(row is None or row.p50 <= 0 for row in rows):
            continue
        middle, variance, ids = 1.0, 0.0, []
        for row, (_, power, factor) in zip(rows, chain, strict=True):
            assert row is not None
            middle *= float(row.p50) ** power * factor
            variance += _spread(row) ** 2
            ids.append(row.id)
        return Median(middle, math.sqrt(variance), tuple(ids))
    return None


def _spread(row: Benchmark) -> float:
    """Deviation of a benchmark's logarithm, from its quartiles; from the upper one alone where the lower is 0."""
    if row.p25 > 0:
        return math.log(row.p75 / row.p25) / (2 * _QUARTILE)
    return math.log(row.p75 / row.p50) / _QUARTILE


def _weeks(today: date, end: date) -> int:
    """Weeks from a day to the end of another, begun ones as whole."""
    return max(1, -(-((end - today).days + 1) // 7))


def _seed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
