"""Forecasts of channels and plans from a past that is made up."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import numpy as np
import pytest

from server.forecasting import convert
from server.forecasting.model import CLICKS, CONVERSIONS, COST, IMPRESSIONS, REVENUE, Panel
from server.forecasting.outlook import Forecaster, PlannedChannel
from server.forecasting.past import Past, place
from storage.postgres.benchmarks import Benchmark
from storage.postgres.forecasts import PastCampaign

TODAY = date(2026, 11, 23)
SERIES = 8


def past(weeks: int = 52) -> Past:
    """Campaigns of one kind, 100 a week; the first one earns nothing, the last one has hardly begun."""
    rng = np.random.default_rng(3)
    cost = np.full((SERIES, weeks), 100.0)
    cost[-1, :-1] = 0
    cost[-1, -1] = 0.1
    clicks = np.round(cost * rng.lognormal(1, 0.2, cost.shape))
    bought = np.round(clicks * 0.1)
    revenue = bought * 20
    revenue[0] = 0
    campaigns = [PastCampaign(uuid4(), f"c{n}", "vk_ads", uuid4(), uuid4(), "social", "") for n in range(SERIES)]
    panel = Panel(np.stack([clicks * 90, clicks, bought, cost, revenue]), [place(each) for each in campaigns])
    return Past(panel, campaigns, TODAY - timedelta(weeks=weeks), TODAY)


def channel(
    channel_id: UUID | None = None, days: int = 28, budget: float = 400.0, kind: str = "social"
) -> PlannedChannel:
    last = TODAY + timedelta(days=days - 1)
    return PlannedChannel(channel_id or uuid4(), "vk_ads", kind, "", round(budget * 1e6), TODAY, last, "", {})


def own(found: Past, number: int) -> UUID:
    channel_id = found.campaigns[number].channel_id
    assert channel_id is not None
    return channel_id


def test_what_was_never_measured_is_not_forecast() -> None:
    known = past()
    wanted = [channel(own(known, number)) for number in (0, 1, SERIES - 1)]
    forecaster = Forecaster(known, wanted, "key")
    silent, earning, begun = (forecaster.channel(each) for each in wanted)
    assert set(silent.figures) == {IMPRESSIONS, CLICKS, CONVERSIONS, COST}
    assert set(earning.figures) == {IMPRESSIONS, CLICKS, CONVERSIONS, COST, REVENUE}
    # Too small to tell: it is taken for one like the others.
    assert begun.figures[REVENUE].value > 0
    total = forecaster.total([silent, earning])
    assert total[REVENUE].unknown == [silent.channel.id] and not total[CLICKS].unknown
    assert total[REVENUE].value == earning.figures[REVENUE].value


@pytest.mark.parametrize(
    ("kind", "evidence"),
    [pytest.param("social", "format", id="same kind"), pytest.param("video", "platform", id="same platform")],
)
def test_a_newcomer_is_forecast_by_the_nearest(kind: str, evidence: str) -> None:
    known = past()
    wanted = [channel(kind=kind), channel(own(known, 1))]
    forecaster = Forecaster(known, wanted, "key")
    found, old = (forecaster.channel(each) for each in wanted)
    assert (found.evidence, old.evidence) == (evidence, "channel")
    assert len(found.series) == SERIES
    # 400 at e^1 clicks each, give or take.
    assert found.figures[CLICKS].value == pytest.approx(400 * np.e, rel=0.15)
    assert found.figures[CLICKS].basis == "own_errors"


def test_a_long_flight_is_no_surer_than_the_longest_that_was_seen() -> None:
    known = past()
    short, long = channel(own(known, 1)), channel(own(known, 1), days=280, budget=4000.0)
    forecaster = Forecaster(known, [short, long], "key")
    widths = []
    for each in (short, long):
        figure = forecaster.channel(each).figures[CLICKS]
        low, high = figure.intervals[80]
        widths.append((high - low) / figure.value)
    assert widths[0] == pytest.approx(widths[1], rel=0.02)
    assert "errors_of_shorter_flights" in forecaster.channel(long).assumptions


def test_assumptions_are_named() -> None:
    known = past()
    forecaster = Forecaster(known, [channel()], "key")
    near = forecaster.channel(channel(own(known, 1))).assumptions
    assert near == ["budget_spent", "proportional", "no_season"]
    dear = forecaster.channel(channel(own(known, 1), budget=4000.0)).assumptions
    assert dear == [*near, "beyond_past_spend"]


def test_who_has_hardly_begun_is_as_uncertain_as_a_newcomer() -> None:
    known = past()
    begun, fresh, old = channel(own(known, SERIES - 1)), channel(), channel(own(known, 1))
    forecaster = Forecaster(known, [begun, fresh, old], "key")
    errors = [forecaster.channel(each).figures[CLICKS].errors for each in (begun, fresh, old)]
    # A newcomer is also whoever began while errors were looked at.
    assert errors[0] == errors[1] != errors[2]


def test_a_benchmark_as_wide_as_the_world_says_little() -> None:
    wide = Benchmark(
        uuid4(), "", "vk_ads", "social", "", "", TODAY, TODAY, "cpc", Decimal("0.000001"), Decimal(1),
        Decimal(10**12), 5, "a survey", "RUB", "1",
    )  # fmt: skip
    alone = replace(channel(budget=1e12), platform="other", benchmarks={"cpc": wide})
    forecaster = Forecaster(past(), [alone], "key")
    figure = forecaster.channel(alone).figures[CLICKS]
    assert figure.basis == "benchmark_quartiles"
    low, high = figure.intervals[95]
    assert convert.decimal(low, 0) == "0" and len(convert.decimal(high, 0)) > 28
    beside = replace(channel(), benchmarks={"cpc": wide})
    assert forecaster.channel(beside).figures[CLICKS].own_weight == pytest.approx(1)


def test_a_short_past_gives_figures_but_no_intervals() -> None:
    known = past(weeks=3)
    forecaster = Forecaster(known, [channel()], "key")
    figure = forecaster.channel(channel()).figures[CLICKS]
    assert figure.value > 0 and not figure.intervals and figure.basis == ""
    assert forecaster.fared() is None
    assert forecaster.total([forecaster.channel(channel())])[CLICKS].intervals == {}
