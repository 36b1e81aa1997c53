"""The live table."""

import io
from datetime import UTC, datetime, timedelta

from rich.console import Console

from mrm.statistics.v1 import metrics_pb2
from mrm_client import WatchState
from server.cli.live import LiveFigures


def state(impressions: int, kind: str = "update") -> WatchState:
    metrics = metrics_pb2.Metrics(
        impressions=impressions, clicks=5, cost_micros=12_345_678, currency_code="RUB", ctr="0.4875"
    )
    campaign = metrics_pb2.CampaignMetrics(campaign_id="c1", metrics=metrics, state_version=impressions)
    return WatchState(
        kind=kind,
        campaigns={"c1": campaign},
        changed=frozenset({"c1"}),
        watermark=datetime.now(UTC) - timedelta(seconds=2),
    )


def drawn(figures: LiveFigures) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(figures.table())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rate_and_course_come_from_what_moved() -> None:
    now = [100.0]
    figures = LiveFigures({"c1": "Spring [sale]"}, clock=lambda: now[0])
    for impressions in (1000, 1050, 1050, 1150):
        figures.take(state(impressions))
        now[0] += 0.5
    assert figures.rate("c1") == 100.0
    assert figures.sparkline("c1") == "▄▁█"
    text = drawn(figures)
    assert "Spring [sale]" in text, "names are no markup"
    assert "0.49 %" in text
    assert "12.35 RUB" in text


def test_the_first_state_is_no_burst() -> None:
    figures = LiveFigures({})
    figures.take(state(1_000_000, kind="snapshot"))
    assert figures.rate("c1") == 0.0
    assert figures.sparkline("c1") == ""


def test_plain_lines_tell_the_age() -> None:
    figures = LiveFigures({"c1": "Spring"})
    figures.take(state(1000))
    (line,) = figures.lines()
    assert "Spring: 1,000 impressions, 5 clicks, CTR 0.49 %, cost 12.35 RUB" in line
    assert "age 2." in line


def test_nothing_yet() -> None:
    figures = LiveFigures({})
    assert "figures - old" in drawn(figures)
    assert figures.lines() == []
