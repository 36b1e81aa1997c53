"""What `mrm restatements` prints; the tour runs it, and `mrm rollup run`, as processes."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from mrm.statistics.v1 import metrics_pb2, rollup_pb2
from server.cli.rollup import changes, line, table

TOLD = rollup_pb2.Restatement(
    campaign_id="c1",
    date="2026-11-20",
    before=metrics_pb2.Metrics(impressions=5, clicks=1000, conversions="0.4", cost_micros=9_600_000_000),
    after=metrics_pb2.Metrics(impressions=5, clicks=940, conversions="0.35", cost_micros=9_023_999_999),
    cause=rollup_pb2.RESTATEMENT_CAUSE_NEW_READING,
    restate_time=Timestamp(seconds=1_800_000_000),
)


def test_only_what_differs_is_shown() -> None:
    assert changes(TOLD) == ["clicks 1000 -> 940", "conversions 0.4 -> 0.35", "cost 9600 -> 9023.999999"]
    assert line(TOLD) == (
        "2027-01-15T08:00:00Z 2026-11-20 campaign c1"
        " clicks 1000 -> 940, conversions 0.4 -> 0.35, cost 9600 -> 9023.999999"
    )


def test_the_table_says_why() -> None:
    console = Console(width=160, record=True)
    console.print(table([TOLD]))
    shown = console.export_text()
    assert "new reading" in shown
    assert "cost 9600 -> 9023.999999" in shown
