"""The recording of the demo, as it is in the repository."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.cli.console import CommandFailed
from server.cli.demo import _FILE
from server.cli.recording import Recording


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording.load(_FILE)


def test_the_totals_are_the_published_ones(recording: Recording) -> None:
    assert sum(shown for shown, _ in recording.totals.values()) == 40_000
    assert sum(clicked for _, clicked in recording.totals.values()) == 195
    assert recording.campaigns == ["all-bts", "all-random", "men-bts", "men-random"]


@pytest.mark.parametrize(
    "now",
    [
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 11, 23, 12, 34, tzinfo=UTC),
        datetime(2026, 3, 1, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
)
def test_the_last_event_lies_within_the_last_day_and_hours_keep_their_shape(now: datetime) -> None:
    recording = Recording.load(_FILE, now)
    assert timedelta(0) <= now - recording.end < timedelta(days=1)
    assert recording.shift == timedelta(days=recording.shift.days)


def test_a_click_is_an_impression_and_a_click(recording: Recording) -> None:
    clicked = next(row for row in recording.rows if row.clicked)
    impression, click = recording.events(clicked, {clicked.campaign: "c"})
    assert impression.event_id != click.event_id
    assert (impression.event_type, click.event_type) == (1, 2)
    assert impression.event_time == click.event_time
    assert set(impression.attributes) == {"item_id", "position"}
    assert impression.user_id == clicked.user


def test_event_ids_are_all_different(recording: Recording) -> None:
    campaigns = {name: name for name in recording.campaigns}
    ids = [event.event_id for row in recording.rows for event in recording.events(row, campaigns)]
    assert len(ids) == len(set(ids)) == 40_195


def test_the_clock_runs_from_the_first_row_to_the_last(recording: Recording) -> None:
    assert recording.rows_until(0) == 1
    assert recording.rows_until(1) == len(recording.rows)
    marks = [recording.rows_until(n / 100) for n in range(101)]
    assert marks == sorted(marks)


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "f.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(CommandFailed, match="columns"):
        Recording.load(other)
