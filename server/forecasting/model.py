"""The statistics of forecasts. It knows no store and no contract: arrays of past weeks in, figures and intervals out.

What a unit of money buys is estimated by hierarchical credibility in its multiplicative form: each campaign's own
figures count by their volume against those of campaigns like it (Buehlmann and Straub 1970; Jewell 1975; Ohlsson 2008),
and weeks fade with a half-life of four (Gerber and Jones 1975). How far such estimates are off is not derived but
observed: at each past week the same estimate is made from what was known then, and compared with the weeks that
followed. A quantile of these errors, each divided by the size to be expected for its volume, is the width of the
interval: split conformal prediction with normalised absolute scores (Vovk et al. 2005; Lei et al. 2018), calibrated
at rolling origins because weeks are not exchangeable. Errors lose their sign: that prices have risen does not say that
they will go on to rise.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

IMPRESSIONS, CLICKS, CONVERSIONS, COST, REVENUE = range(5)
"""Where each figure stands in a panel."""

HALF_LIFE_WEEKS: Final = 4
"""Weeks after which a week counts half: as long as most flights."""
WINDOW_WEEKS: Final = 4
"""How far ahead errors are observed at least."""
BLOCKS: Final = (4, 2, 1)
"""Lengths of flights in weeks for which errors are observed, longest first."""
LEAST_SCORES: Final = 30
"""Errors of longer flights that must be known, or shorter ones are taken."""

# Where the spread between groups cannot be estimated: as large as the figure itself, so that own figures soon prevail.
_UNKNOWN_SPREAD = 1.0
_LEAST_WEEKS = 4
_HALF_EVENT = 0.5
# A series with figures of its own, one without, and one with that is treated as if it had none.
_KNOWN, _NEWCOMER, _AS_NEWCOMER = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure that is forecast as a multiple of another one; both by their place in a panel."""

    of: int
    per: int


YIELDS: Final = (
    Ratio(IMPRESSIONS, COST),
    Ratio(CLICKS, COST),
    Ratio(CONVERSIONS, COST),
    Ratio(REVENUE, COST),
)
"""What money buys."""
RATES: Final = (Ratio(CLICKS, IMPRESSIONS), Ratio(CONVERSIONS, CLICKS))
"""Click-through rate and conversion rate."""


@dataclass(frozen=True)
class Panel:
    """Past weeks of some series, each the campaign of a flight, or a part of one.

    Attributes:
        values: Figures by place, series and week, oldest first; amounts in units of one currency. The last week is the
            one that ended last.
        groups: For each series what it has in common with others, broadest first; all as long.
    """

    values: Floats
    groups: Sequence[tuple[Hashable, ...]]

    @property
    def weeks(self) -> int:
        """How many weeks it has."""
        return int(self.values.shape[2])

    @cached_property
    def levels(self) -> list[tuple[Whole, dict[tuple[Hashable, ...], int]]]:
        """Of each level the group of each series, and the numbers of the groups by all they have in common."""
        found = []
        for depth in range(1, len(self.groups[0]) + 1 if self.groups else 1):
            numbers: dict[tuple[Hashable, ...], int] = {}
            members = [numbers.setdefault(group[:depth], len(numbers)) for group in self.groups]
            found.append((np.array(members, dtype=np.int64), numbers))
        return found


@dataclass(frozen=True, slots=True)
class Fit:
    """What a unit of the denominator yields, as known at the begin of a week.

    Attributes:
        series: Of each series, its own figures included; NaN where nothing is known.
        others: Of each series, as if it had none.
        groups: Of each level and group.
        weights: Faded denominators by series: how much own evidence there is.
        series_credibility: Weight of each series' own figures against its group's, which says it all where series do
            not differ.
        series_volume: What that weight would be if they differed as much as figures are large: whether a series has
            figures to speak of.
        dispersion: Variance of a week's figure relative to its expectation, at an expectation of one.
    """

    series: Floats
    others: Floats
    groups: Sequence[Floats]
    weights: Floats
    series_credibility: Floats
    series_volume: Floats
    dispersion: float


class History:
    """Faded sums of a ratio's past, from which a fit at any week follows.

    Args:
        panel: The past.
        ratio: What is estimated.
    """

    def __init__(self, panel: Panel, ratio: Ratio) -> None:
        self.panel = panel
        self.ratio = ratio
        self.above = panel.values[ratio.of]
        self.below = panel.values[ratio.per]
        count, weeks = self.above.shape
        # Sums up to the begin of each week: denominators, numerators, squares of quotients, weeks.
        self._sums = np.zeros((4, count, weeks + 1))
        fade = 0.5 ** (1 / HALF_LIFE_WEEKS)
        known = self.below > 0
        squares = np.divide(self.above**2, self.below, out=np.zeros_like(self.above), where=known)
        parts = np.stack([np.where(known, self.below, 0), np.where(known, self.above, 0), squares, known])
        keep = np.array([fade, fade, fade, 1.0])[:, None]
        for week in range(weeks):
            self._sums[:, :, week + 1] = self._sums[:, :, week] * keep + parts[:, :, week]

    def at(self, week: int) -> Fit | None:
        """The fit from what was known at the begin of a week; None if that was nothing."""
        below, above, squares, weeks = self._sums[:, :, week]
        if not below.sum() or not above.sum():
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._fit(below, above, squares, weeks)

    def _fit(self, below: Floats, above: Floats, squares: Floats, weeks: Floats) -> Fit:
        dispersion = self._dispersion(below, above, squares, weeks)
        estimate = np.full(len(below), above.sum() / below.sum())
        others = (above.sum() - above) / (below.sum() - below)
        groups: list[Floats] = []
        for members, numbers in self.panel.levels:
            count = len(numbers)
            group_below = np.bincount(members, below, count).astype(np.float64)
            group_above = np.bincount(members, above, count).astype(np.float64)
            parent = np.zeros(count)
            parent[members] = estimate
            refined, weight = _credible(parent, group_below, group_above, dispersion)
            groups.append(refined)
            estimate = refined[members]
            # The same without the series itself: what would be said of a newcomer.
            rest_below, rest_above = group_below[members] - below, group_above[members] - above
            rest = np.where(rest_below > 1e-9 * group_below[members], rest_below * others, 0)
            share = np.where(rest > 0, rest / (rest + weight), 0)
            others = np.where(share > 0, others * (1 - share) + share * rest_above / rest_below, others)
        own, weight = _credible(estimate, below, above, dispersion)
        expected = below * estimate
        credibility = np.where(expected > 0, expected / (expected + weight), 0)
        volume = np.where(expected > 0, expected / (expected + dispersion / _UNKNOWN_SPREAD), 0)
        others = np.where(np.isfinite(others), others, np.nan)
        return Fit(np.where(below > 0, own, np.nan), others, groups, below, credibility, volume, dispersion)

    def _dispersion(self, below: Floats, above: Floats, squares: Floats, weeks: Floats) -> float:
        """Variance within series, relative to the mean of the narrowest group."""
        members, numbers = self.panel.levels[-1]
        mean = np.bincount(members, above, len(numbers)) / np.bincount(members, below, len(numbers))
        spread = (squares - np.where(below > 0, above**2 / below, 0)) / mean[members]
        freedom = np.maximum(weeks - 1, 0)
        known = np.isfinite(spread) & (freedom > 0)
        if not freedom[known].sum():
            return 1.0
        return max(float(spread[known].sum() / freedom[known].sum()), 1e-12)


def _credible(parent: Floats, below: Floats, above: Floats, dispersion: float) -> tuple[Floats, float]:
    """Refines what a broader level says by own figures; also the volume at which these count half."""
    expected = below * parent
    known = expected > 0
    ratio = np.where(known, above / np.where(known, expected, 1), 1.0)
    total, count = expected[known].sum(), int(known.sum())
    spread = _UNKNOWN_SPREAD
    if count > 1:
        mean = (expected[known] * ratio[known]).sum() / total
        between = (expected[known] * (ratio[known] - mean) ** 2).sum() - (count - 1) * dispersion
        room = total - (expected[known] ** 2).sum() / total
        spread = max(0.0, float(between / room)) if room > 0 else _UNKNOWN_SPREAD
    weight = dispersion / spread if spread > 0 else math.inf
    share = np.where(known, expected / (expected + weight), 0.0)
    return parent * (1 + share * (ratio - 1)), weight


@dataclass(frozen=True, slots=True)
class Scores:
    """Errors of past forecasts.

    Attributes:
        errors: Logarithms of what came over what was forecast, half an event added to both.
        expected: What was forecast, in events.
        origins: Week before whose begin each was forecast.
        starts: Week with which each flight began.
        kinds: Whether the series had figures of its own by then, and whether they were used.
        actual: What came.
        point: What was forecast.
    """

    errors: Floats
    expected: Floats
    origins: Whole
    starts: Whole
    kinds: Whole
    actual: Floats
    point: Floats

    def only(self, chosen: npt.NDArray[np.bool_]) -> Scores:
        """Some of them."""
        return Scores(*(getattr(self, name)[chosen] for name in self.__slots__))


def rolled(history: History, block: int, window: int) -> Scores:
    """Forecasts of all past flights from what was known before, and how far they were off.

    A flight is a run of weeks of a series that cost something. Each is forecast twice from every week of which it is no
    further away than the window: by its series' own past if it has any, and as if it had none.

    Args:
        history: The past of the ratio.
        block: Weeks of a flight.
        window: Weeks ahead in which flights end at most.
    """
    weeks = history.panel.weeks
    unit = event_size(history)
    sums_above, sums_below = _blocks(history.above, block), _blocks(history.below, block)
    found: list[tuple[Floats, ...]] = []
    for origin in range(min(_LEAST_WEEKS, weeks), weeks - block + 1):
        fit = history.at(origin)
        if fit is None:
            continue
        for start in range(origin, min(origin + max(window, block), weeks) - block + 1):
            below, above = sums_below[:, start], sums_above[:, start]
            past = fit.weights > 0
            for kind, among, estimate in (
                (_KNOWN, past, fit.series),
                (_AS_NEWCOMER, past, fit.others),
                (_NEWCOMER, ~past, fit.others),
            ):
                chosen = among & (below > 0) & np.isfinite(estimate)
                if chosen.any():
                    point = below[chosen] * estimate[chosen]
                    size = np.full(len(point), 1.0)
                    found.append((point, above[chosen], size * origin, size * start, size * kind))
    if not found:
        empty, none = np.zeros(0), np.zeros(0, dtype=np.int64)
        return Scores(empty, empty, none, none, none, empty, empty)
    point, actual, origins, starts, kinds = (np.concatenate(column) for column in zip(*found, strict=True))
    errors = np.log(actual / unit + _HALF_EVENT) - np.log(point / unit + _HALF_EVENT)
    return Scores(
        errors,
        point / unit,
        origins.astype(np.int64),
        starts.astype(np.int64),
        kinds.astype(np.int64),
        actual,
        point,
    )


def event_size(history: History) -> float:
    """What one event of the numerator is: 1 of counts, the revenue of a conversion."""
    if history.ratio.of != REVENUE:
        return 1.0
    revenue, conversions = (float(history.panel.values[place].sum()) for place in (REVENUE, CONVERSIONS))
    return revenue / conversions if revenue > 0 and conversions > 0 else 1.0


def _blocks(values: Floats, block: int) -> Floats:
    """Sums over each run of so many weeks."""
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    whole: Floats = sums[:, block:] - sums[:, :-block]
    return whole


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far forecasts of one kind are off.

    Attributes:
        scores: Errors divided by their expected size.
        ranked: The same without their sign, ascending.
        starts: The week of each, ascending, so that errors of one week stay together.
        drift: Variance that no volume takes away.
        noise: Variance of a single event.
        unit: What one event is.
        largest: Events of the largest forecast among them. What is known of it is taken for still larger ones.
    """

    scores: Floats
    ranked: Floats
    starts: Whole
    drift: float
    noise: float
    unit: float
    largest: float

    @classmethod
    def of(cls, scores: Scores, unit: float) -> Calibration | None:
        """From past errors; None if there are none."""
        if not len(scores.errors):
            return None
        drift, noise = _variance(scores.errors**2, 1 / (scores.expected + _HALF_EVENT))
        normal = scores.errors / np.sqrt(drift + noise / (scores.expected + _HALF_EVENT))
        order = np.argsort(scores.starts, kind="stable")
        return cls(
            normal[order],
            np.sort(np.abs(normal)),
            scores.starts[order],
            drift,
            noise,
            unit,
            float(scores.expected.max()),
        )

    def sigma(self, point: float, share: float = 1.0) -> float:
        """Size of an error that is to be expected, as a logarithm.

        Args:
            point: The forecast.
            share: The part of the flight that is as long as those whose errors are known. Errors of single events
                cancel out over a longer flight, those of a drift do not, and nobody has seen how far it goes.
        """
        events = min(point * share / self.unit, self.largest)
        return math.sqrt(self.drift + self.noise / (events + _HALF_EVENT))

    def interval(self, point: float, level: float, share: float = 1.0) -> tuple[float, float] | None:
        """The interval around a forecast; None if there are too few errors for its level."""
        rank = math.ceil((len(self.scores) + 1) * level)
        if rank > len(self.scores):
            return None
        reach, half = float(self.ranked[rank - 1]) * self.sigma(point, share), _HALF_EVENT * self.unit
        low, high = ((point + half) * math.exp(each) - half for each in (-reach, reach))
        return max(0.0, low), high

    def together(self, weeks: Floats) -> tuple[Whole, Whole]:
        """Where the errors of drawn weeks begin and how many they are; of a week that has none, all errors.

        Args:
            weeks: For each draw a number from 0 to 1, the same for everything that happens together.
        """
        first, last = int(self.starts[0]), int(self.starts[-1])
        drawn = first + np.floor(weeks * (last - first + 1)).astype(np.int64)
        begin, end = np.searchsorted(self.starts, drawn, "left"), np.searchsorted(self.starts, drawn, "right")
        empty = end == begin
        return np.where(empty, 0, begin), np.where(empty, len(self.starts), end - begin)

    def draws(
        self,
        point: float,
        share: float,
        together: tuple[Whole, Whole],
        signs: Floats,
        rng: np.random.Generator,
    ) -> Floats:
        """What may come: an error of the drawn week for each draw.

        Args:
            point: The forecast.
            share: As for `sigma`.
            together: From `together`.
            signs: For each draw 1 or -1, likewise: errors keep their signs against each other only.
            rng: Where chance comes from.
        """
        begin, count = together
        scores = self.scores[begin + np.floor(rng.random(len(begin)) * count).astype(np.int64)] * signs
        half = _HALF_EVENT * self.unit
        moved: Floats = np.maximum(0.0, (point + half) * np.exp(scores * self.sigma(point, share)) - half)
        return moved


def _variance(squares: Floats, inverse: Floats) -> tuple[float, float]:
    """Drift and noise, neither negative, that fit squared errors best."""
    (drift, noise), *_ = np.linalg.lstsq(np.stack([np.ones_like(inverse), inverse], axis=1), squares, rcond=None)
    if noise < 0:
        drift, noise = squares.mean(), 0.0
    elif drift < 0:
        drift, noise = 0.0, (squares * inverse).sum() / (inverse**2).sum()
    # Errors that were all zero leave an interval of no width, but scores that are numbers.
    return (float(drift), float(noise)) if drift + noise > 0 else (1e-12, 0.0)


def calibrated(scores: Scores, unit: float, known: bool) -> Calibration | None:
    """How far forecasts of series with, or without, figures of their own are off."""
    return Calibration.of(scores.only((scores.kinds == _KNOWN) == known), unit)


@dataclass(frozen=True, slots=True)
class Held:
    """How forecasts of past flights fared that were made without them.

    Attributes:
        covered: Whether each flight's figure lay within the interval.
        off: By how much the forecast was off, as a part of what came; of flights where something came.
    """

    covered: npt.NDArray[np.bool_]
    off: Floats


def backtest(scores: Scores, unit: float, weeks: int, block: int, level: float, origins: Sequence[int]) -> Held:
    """Forecasts flights after some weeks, with estimates and errors known before them only.

    Args:
        scores: Of the whole past, from `rolled` with a window that spans from one origin to the next.
        unit: What one event is.
        weeks: Weeks after the last origin that are forecast.
        block: Weeks of a flight.
        level: Of the interval.
        origins: Weeks before whose begin is forecast, ascending.
    """
    covered: list[bool] = []
    off: list[float] = []
    ends = scores.starts + block
    for origin, following in zip(origins, [*origins[1:], origins[-1] + weeks] if origins else [], strict=True):
        before = scores.only(ends <= origin)
        held = (scores.origins == origin) & (ends <= following) & ((scores.starts - origin) % block == 0)
        for known, kind in ((True, _KNOWN), (False, _NEWCOMER)):
            calibration = calibrated(before, unit, known)
            flights = scores.only(held & (scores.kinds == kind))
            for point, actual in zip(flights.point.tolist(), flights.actual.tolist(), strict=True):
                interval = calibration.interval(point, level) if calibration else None
                if interval is not None:
                    covered.append(interval[0] <= actual <= interval[1])
                    if actual > 0:
                        off.append(abs(point - actual) / actual)
    return Held(np.array(covered, dtype=np.bool_), np.array(off, dtype=np.float64))
