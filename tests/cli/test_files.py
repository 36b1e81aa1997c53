"""`mrm import` and `mrm export --to-objects` against the real server."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import parquet

from mrm.common.v1 import options_pb2

from .conftest import Mrm

if TYPE_CHECKING:
    from tests.conftest import World


async def test_files_go_in_and_come_out(world: World, mrm: Mrm, tmp_path: Path) -> None:
    client_id, [campaign] = await world.tenant()
    key = await world.key([client_id], options_pb2.PERMISSION_STATISTICS_INGEST, options_pb2.PERMISSION_STATISTICS_READ)
    common = ("--client", client_id, "--target", world.target)
    days = {"campaign_id": [campaign] * 2, "date": [date(2020, 1, 1), date(2020, 1, 2)]}
    figures = {"impressions": [5, 7], "clicks": [1, 0], "cost_micros": [1_000_001, 3]}
    parquet.write_table(pa.table({**days, **figures}), tmp_path / "days.parquet")
    metrics = ("import", tmp_path / "days.parquet", "--as", "metrics", "--version", 5)
    done = await mrm(*metrics, *common, MRM_TOKEN=key.token)
    assert done.code == 0, done.err
    assert "2 rows in" in done.out
    assert "2 stored, 0 stale" in done.out
    written = await mrm(
        "export", *common, "--from", "2020-01-01", "--to", "2020-01-02", "--to-objects", "days.parquet",
        MRM_TOKEN=key.token,
    )  # fmt: skip
    assert written.code == 0, written.err
    assert "2 rows, " in written.out
    assert f"clients/{client_id}/exports/days.parquet" in written.out

    moment = pa.array([datetime(2019, 1, 1, tzinfo=UTC)] * 2, pa.timestamp("us", "UTC"))
    events = {"event_time": moment, "campaign_id": [campaign] * 2, "event_type": ["click", "view"]}
    parquet.write_table(pa.table(events), tmp_path / "events.parquet")
    refused = await mrm("import", tmp_path / "events.parquet", *common, MRM_TOKEN=key.token)
    assert refused.code == 1
    assert "rows[1].event_type: is none of impression, click, conversion" in refused.err
    # What was uploaded stays under its key.
    again = await mrm("import", f"clients/{client_id}/imports/events.parquet", *common, MRM_TOKEN=key.token)
    assert "rows[1].event_type" in again.err
