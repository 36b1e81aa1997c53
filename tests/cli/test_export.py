"""`mrm export` and `mrm_client.export` against the real server."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import grpc
import pyarrow as pa
from pyarrow import csv, parquet

import mrm_client
from mrm.statistics.v1 import statistics_service_pb2_grpc
from mrm_client import CallError

from .conftest import Mrm

if TYPE_CHECKING:
    import pytest

    from tests.conftest import World

# Two hours ago, in the time zone of clients: what was then is within the days asked for at every hour of the day.
MOMENT = datetime.now(UTC) - timedelta(hours=2)
TODAY = MOMENT.astimezone(ZoneInfo("Europe/Moscow")).date()


async def filled(world: World, mrm: Mrm, folder: Path) -> str:
    """A client whose one campaign has 100 impressions of one kopeck."""
    client_id, [campaign] = await world.tenant()
    key = await world.key([client_id])
    moment = MOMENT.isoformat()
    file = folder / "events.csv"
    file.write_text("event_time,campaign_id,event_type,cost\n" + f"{moment},{campaign},impression,0.01\n" * 100)
    sent = await mrm("ingest", file, "--client", client_id, "--target", world.target, MRM_TOKEN=key.token)
    assert sent.code == 0, sent.err
    async with asyncio.timeout(30):
        while [row["impressions"] for row in await rows(world, client_id)] != [100]:
            await asyncio.sleep(0.2)
    return client_id


async def rows(world: World, client_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with mrm_client.channel(world.target, world.admin.token) as channel:
        first = TODAY - timedelta(days=1)
        async with aclosing(mrm_client.export(channel, start=first, end=TODAY, client_ids=[client_id])) as parts:
            async for part in parts:
                found += pa.ipc.open_stream(part.arrow).read_all().to_pylist()
    return found


async def test_an_export_is_a_file(world: World, mrm: Mrm, tmp_path: Path) -> None:
    client_id = await filled(world, mrm, tmp_path)
    common = ("--client", client_id, "--from", TODAY - timedelta(days=1), "--to", TODAY, "--target", world.target)
    for name in ("figures.parquet", "figures.arrow", "figures.csv"):
        done = await mrm("export", *common, "--out", tmp_path / name, MRM_TOKEN=world.admin.token)
        assert done.code == 0, done.err
        assert "1 rows in" in done.out
    tables = (
        parquet.read_table(tmp_path / "figures.parquet"),
        pa.ipc.open_file(tmp_path / "figures.arrow").read_all(),
        csv.read_csv(tmp_path / "figures.csv"),
    )
    for table in tables:
        assert table.column("impressions").to_pylist() == [100]
        assert [Decimal(str(cost)) for cost in table.column("cost").to_pylist()] == [Decimal(1)]
    assert sorted(each.name for each in tmp_path.glob("*figures*")) == [
        "figures.arrow", "figures.csv", "figures.parquet"
    ]  # fmt: skip
    refused = await mrm("export", *common, "--out", tmp_path / "figures.xls", MRM_TOKEN=world.admin.token)
    assert refused.code == 1
    assert ".parquet, .arrow, .csv" in refused.err


async def test_the_helper_goes_on_after_a_break(
    world: World, mrm: Mrm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_id = await filled(world, mrm, tmp_path)
    broken: list[Any] = []

    class Broken:
        """A call whose connection is lost after its first part, of which more was to come."""

        def __init__(self, call: Any) -> None:
            self._call = call
            self.cancel = call.cancel

        async def read(self) -> Any:
            if broken:
                raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
            part = await self._call.read()
            part.complete = False
            broken.append(part)
            return part

    class Breaking(statistics_service_pb2_grpc.StatisticsServiceStub):
        """Loses the first call."""

        def __init__(self, channel: grpc.aio.Channel) -> None:
            super().__init__(channel)  # type: ignore[call-arg]
            inner: Any = self.ExportStatistics
            self.ExportStatistics = lambda request: inner(request) if broken else Broken(inner(request))  # type: ignore

    monkeypatch.setattr(statistics_service_pb2_grpc, "StatisticsServiceStub", Breaking)
    told: list[CallError] = []
    found: list[Any] = []
    async with mrm_client.channel(world.target, world.admin.token) as channel:
        parts = mrm_client.export(
            channel,
            start=TODAY - timedelta(days=1),
            end=TODAY,
            daily=True,
            client_ids=[client_id],
            rows=True,
            on_retry=lambda error, pause: told.append(error),
        )
        async for part in parts:
            found += part.rows.rows
    assert len(broken) == len(told) == 1
    assert [row.metrics.impressions for row in found] == [100]
