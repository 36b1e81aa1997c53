"""`mrm import campaigns` and `mrm backfill` against the real server: real data, resuming, and files at fault."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mrm.campaigns.v1 import campaign_service_pb2
from mrm.common.v1 import options_pb2, time_pb2
from mrm.statistics.v1 import statistics_service_pb2
from server.cli import mapping
from server.cli.backfill import FIELDS as DAY_FIELDS
from server.cli.backfill import DayReader
from server.cli.campaigns_file import FIELDS, REQUIRED, CampaignReader
from server.cli.console import CommandFailed
from server.cli.mapping import BadField, Columns
from server.cli.rows import Row, RowFile
from tests.campaigns.importing import bring

from .conftest import ROOT, Mrm

if TYPE_CHECKING:
    from tests.conftest import Caller, World

REAL = ROOT / "examples" / "data" / "online_advertising_performance.csv.gz"
# As the description of the data states them, and the rest by hand.
TOTALS = {
    "camp 1": (143_309_064, 1_409_126, "150688.1225", "230533.5216"),
    "camp 2": (45_492_269, 881_158, "17037.3496", "34890.4153"),
    "camp 3": (50_212_928, 202_541, "7466.7479", "10838.679"),
}


async def importer(world: World, client_id: str) -> Caller:
    return await world.key(
        [client_id],
        options_pb2.PERMISSION_CAMPAIGNS_IMPORT,
        options_pb2.PERMISSION_CAMPAIGNS_READ,
        options_pb2.PERMISSION_STATISTICS_INGEST,
        options_pb2.PERMISSION_STATISTICS_READ,
    )


async def campaigns_of(world: World, project_id: str) -> dict[str, Any]:
    request = campaign_service_pb2.ListCampaignsRequest(
        page_size=500, filter=campaign_service_pb2.CampaignFilter(project_id=project_id)
    )
    reply = await world.admin.campaigns.ListCampaigns(request, metadata=world.admin.auth)
    return {campaign.external_id: campaign for campaign in reply.campaigns}


async def totals_of(world: World, client_id: str) -> dict[str, tuple[int, int, str, str, str]]:
    """What QueryStatistics says of each campaign."""
    request = statistics_service_pb2.QueryStatisticsRequest(
        dates=time_pb2.DateRange(start_date="2020-01-01", end_date="2020-12-31"),
        granularity=time_pb2.GRANULARITY_TOTAL,
        dimensions=[statistics_service_pb2.DIMENSION_CAMPAIGN],
        filter=statistics_service_pb2.StatisticsFilter(client_ids=[client_id]),
    )
    reply = await world.admin.statistics.QueryStatistics(request, metadata=world.admin.auth)
    return {
        row.campaign_id: (
            row.metrics.impressions,
            row.metrics.clicks,
            str(Decimal(row.metrics.cost_micros) / 10**6),
            str(Decimal(row.metrics.revenue_micros) / 10**6),
            row.metrics.conversions,
        )
        for row in reply.rows
        if row.campaign_id
    }


@pytest.mark.bar_e
async def test_real_data_comes_in_exactly_however_often(world: World, mrm: Mrm) -> None:
    client = await world.client(settings={"time_zone": "Europe/Moscow"})
    project = await world.project(client.client_id)
    key = await importer(world, client.client_id)
    common = ("--target", world.target)
    bring = (
        "import", "campaigns", REAL, "--project", project.project_id, *common,
        "--map", "external_id=campaign_number", "--set", "platform=other", "--set", "currency=USD",
    )  # fmt: skip
    fill = (
        "backfill", REAL, "--client", client.client_id, *common, "--set", "year=2020",
        "--map", "campaign=campaign_number", "--map", "impressions=displays",
        "--map", "conversions=post_click_conversions",
    )  # fmt: skip
    made = await mrm(*bring, MRM_TOKEN=key.token)
    assert made.code == 0, made.err
    assert "15,403 rows in" in made.out
    assert "3 created, 0 updated, 15,400 skipped, 0 failed" in made.out
    campaigns = await campaigns_of(world, project.project_id)
    assert {c.display_name for c in campaigns.values()} == set(TOTALS)
    assert {c.currency_code for c in campaigns.values()} == {"USD"}

    versions = []
    for attempt in range(2):
        done = await mrm(*fill, MRM_TOKEN=key.token)
        assert done.code == 0, done.err
        assert "15,403 rows, 0 bad lines left out" in done.out
        assert "DIFFER" not in done.out
        assert ("3 chunks were stored before" in done.out) == bool(attempt)
        assert "175,192.22" in done.out and "276,262.6159" in done.out and "239,014,261" in done.out
        found = await totals_of(world, client.client_id)
        conversions = Decimal(0)
        for name, expected in TOTALS.items():
            *figures, converted = found[campaigns[name].campaign_id]
            assert (figures[0], figures[1], *map(Decimal, figures[2:])) == (*expected[:2], *map(Decimal, expected[2:]))
            conversions += Decimal(converted)
        assert conversions == 651_762
        versions.append(await world.database.fetch("SELECT * FROM backfill_chunks ORDER BY 1, 2"))
    assert versions[0] == versions[1], "the second time writes nothing"

    again = await mrm(*bring, MRM_TOKEN=key.token)
    assert again.code == 0, again.err
    assert "all of this file was taken before" in again.out
    assert await campaigns_of(world, project.project_id) == campaigns


async def test_a_later_file_wins(world: World, mrm: Mrm, tmp_path: Path) -> None:
    client_id, [campaign] = await world.tenant()
    key = await importer(world, client_id)
    for cost in ("10.000001", "7.5"):
        path = tmp_path / f"{cost}.csv"
        path.write_text(
            f"campaign,date,impressions,clicks,cost\n{campaign},2020-02-29,5,1,{cost}\n{campaign},2020-03-01,1,0,1\n"
        )
        done = await mrm("backfill", path, "--client", client_id, "--target", world.target, MRM_TOKEN=key.token)
        assert done.code == 0, done.err
        assert (await totals_of(world, client_id))[campaign][:3] == (6, 1, str(Decimal(cost) + 1))
    path.write_text(f"campaign,date,impressions,clicks,cost\n{campaign},2020-02-29,5,1,1\nnobody,2020-03-01,1,0,1\n")
    done = await mrm("backfill", path, "--client", client_id, "--target", world.target, MRM_TOKEN=key.token)
    assert done.code == 1
    assert "the client has no such campaign" in done.err and "nothing was stored" in done.err
    # What the first file says no longer counts, so comparing it tells.
    done = await mrm(
        "backfill", tmp_path / "10.000001.csv", "--client", client_id, "--target", world.target, MRM_TOKEN=key.token
    )
    assert done.code == 1
    assert "DIFFER" in done.out and "2 chunks were stored before" in done.out


async def test_a_file_of_campaigns_goes_on_and_says_what_is_wrong(world: World, mrm: Mrm, tmp_path: Path) -> None:
    client = await world.client()
    project = await world.project(client.client_id)
    pm = await world.user("pm", client.client_id)
    lines = [
        {"id": "1", "name": "Весна", "budget": 1.5, "configuration": {"strategy": "clicks"}},
        {"id": "2", "budget": "NaN"},
        {"id": "3", "budget": "1.0000001"},
        {"id": 4, "name": "x" * 300},
        {"id": "5", "platform": "vk_ads", "account": "unknown"},
        {"id": "6", "status": "running"},
        {"name": "nothing else"},
        {"id": "7", "configuration": "[1]"},
        {"id": "8", "budget": 10**20},
        {"id": "9", "currency": "usd", "status": "paused"},
    ]
    path = tmp_path / "old.jsonl.gz"
    text = "\n".join(json.dumps({"platform": "other", **line}) for line in lines)
    path.write_bytes(gzip.compress(text.encode()))
    command = (
        "import", "campaigns", path, "--project", project.project_id, "--target", world.target,
        "--map", "external_id=id", "--map", "total_budget=budget",
    )  # fmt: skip
    wrong = await mrm(*command, "--max-errors", 7, MRM_TOKEN=pm.token)
    assert wrong.code == 1
    told = [line.split(maxsplit=2) for line in wrong.err.splitlines() if line[:1].isdigit()]
    assert [(int(line), column) for line, column, _ in told] == [
        (2, "budget"), (3, "budget"), (4, "name"), (5, "account"), (6, "status"), (7, "id"), (8, "configuration"),
        (9, "budget"),
    ]  # fmt: skip
    assert await campaigns_of(world, project.project_id) == {}
    checked = await mrm(*command, "--max-errors", 8, "--validate-only", MRM_TOKEN=pm.token)
    assert checked.code == 0, checked.err
    assert "2 created" in checked.out
    assert await campaigns_of(world, project.project_id) == {}
    # As after a kill of the command behind the first line.
    read = Columns.of(FIELDS, ["external_id=id", "total_budget=budget"], None).fingerprint()
    fingerprint = hashlib.sha256(f"{RowFile.open(path).sha256}{read}".encode()).hexdigest()
    first = CampaignReader(Columns.of(FIELDS, ["external_id=id", "total_budget=budget"], None)).row(
        next(RowFile.open(path).rows())
    )
    await bring(pm, project.project_id, [[first]], fingerprint=fingerprint, last=False, on_duplicate=1)
    done = await mrm(*command, "--max-errors", 8, MRM_TOKEN=pm.token)
    assert done.code == 0, done.err
    assert "went on after 1 rows" in done.out
    found = await campaigns_of(world, project.project_id)
    assert {name: c.currency_code for name, c in found.items()} == {"1": "RUB", "9": "USD"}
    assert (found["1"].display_name, found["1"].total_budget.micros) == ("Весна", 1_500_000)
    assert found["1"].configuration["strategy"] == "clicks"
    updated = await mrm(
        "import", "campaigns", path, "--project", project.project_id, "--target", world.target,
        "--map", "external_id=id", "--set", "total_budget=3", "--set", "name=New", "--max-errors", 8,
        "--on-duplicate", "update", MRM_TOKEN=pm.token,
    )  # fmt: skip
    assert updated.code == 0, updated.err
    assert (await campaigns_of(world, project.project_id))["1"].total_budget.micros == 3_000_000


HEADER = "external_id,platform,name\n"
DAMAGED = gzip.compress((HEADER + "".join(f"{i},other,n{i}\n" for i in range(2000))).encode())
FILES: dict[str, tuple[str, bytes, tuple[str, ...], str]] = {
    "cut-gzip": ("f.csv.gz", DAMAGED[:-200], (), "damaged"),
    "no-gzip": ("f.csv.gz", b"external_id,platform\n1,other\n", (), "damaged"),
    "broken-gzip": ("f.csv.gz", DAMAGED[:500] + bytes([DAMAGED[500] ^ 255]) + DAMAGED[501:], (), "damaged"),
    "utf-16": ("f.csv", (HEADER + "1,other,x\n").encode("utf-16"), (), "--encoding"),
    "no-such-encoding": ("f.csv", b"a\n1\n", ("--encoding", "klingon"), "no encoding klingon"),
    "cp1251-as-utf-8": ("f.csv", (HEADER + "1,other,Весна\n").encode("cp1251"), (), "no text in the file's encoding"),
    "semicolons": ("f.csv", b"external_id;platform\n1;other\n", (), "--delimiter ';'"),
    "missing-column": ("f.csv", b"external_id,name\n1,x\n", (), "has no column platform; it has external_id, name"),
    "mapped-to-nothing": ("f.csv", HEADER.encode() + b"1,other,x\n", ("--map", "name=title"), "has no column title"),
    "no-field": ("f.csv", HEADER.encode() + b"1,other,x\n", ("--map", "budget=name"), "fields are external_id"),
    "column-twice": ("f.csv", b"external_id,external_id\n1,2\n", (), "each once"),
    "no-rows": ("f.csv", HEADER.encode(), (), "has no rows"),
    "empty": ("f.csv", b"", (), "must name the columns"),
    "huge-value": ("f.csv", HEADER.encode() + b'1,other,"' + b"x" * 2**21 + b'"\n2,other,y\n', (), "is no CSV"),
    "huge-line": ("f.jsonl", b'{"external_id": "' + b"x" * (2**24 + 5) + b'"}\n', (), "longer than a row"),
    "open-quote": ("f.csv", HEADER.encode() + b'1,other,"x\n', (), "is no CSV"),
    "infinity": (
        "f.jsonl",
        b'{"external_id": "1", "platform": "other", "daily_budget": Infinity}\n',
        (),
        "daily_budget",
    ),
    "long-name": (
        "f.jsonl",
        b'{"external_id": 1, "platform": "other", "name": "%s"}' % (b"x" * 2**23),
        (),
        "1 name must",
    ),
    "large-configuration": (
        "f.jsonl",
        b'{"external_id": 1, "platform": "other", "configuration": {"a": "%s"}}' % (b"x" * 2**17),
        (),
        "1 configuration is larger",
    ),
    "no-parquet": ("f.parquet", b"PAR1", (), "no Parquet"),
    "what-file": ("f.xls", b"", (), "expected a file ending in"),
}


def verdict(path: Path, *options: str) -> str:
    """What somebody is told of a file of campaigns before anything of it is sent; nothing for a good one."""
    given = dict(zip(options[::2], options[1::2], strict=True))
    try:
        source = RowFile.open(path, mapping.dialect(given.pop("--delimiter", ","), given.pop("--encoding", "utf-8")))
        reader = CampaignReader(Columns.of(FIELDS, [given[name] for name in given if name == "--map"], None))
        reader.columns.check(source, REQUIRED)
        return "; ".join(told(row, reader.row) for row in source.rows()).strip("; ")
    except CommandFailed as error:
        return str(error)


def told(row: Row, read: Callable[[Row], object]) -> str:
    """The fault of a row, by line and field."""
    try:
        read(row)
    except BadField as fault:
        return f"{row.line} {fault.field} {fault}"
    return ""


@pytest.mark.parametrize("name", FILES)
def test_a_file_at_fault_is_told_apart(tmp_path: Path, name: str) -> None:
    file, data, options, expected = FILES[name]
    path = tmp_path / file
    path.write_bytes(data)
    assert expected in verdict(path, *options)


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(";", "cp1251"), (",", "utf-8-sig"), ("\t", "utf-16")], ids=["cp1251", "bom", "utf-16"]
)
def test_what_spreadsheets_write_is_read(tmp_path: Path, delimiter: str, encoding: str) -> None:
    path = tmp_path / "f.csv"
    text = "external_id,platform,name\r\n1,other,Весна\r\n".replace(",", delimiter)
    path.write_bytes(text.encode(encoding))
    [row] = RowFile.open(path, mapping.dialect(delimiter, "utf-8" if "utf-8" in encoding else encoding)).rows()
    message = CampaignReader(Columns.of(FIELDS, None, None)).row(row)
    assert (message.line, message.external_id, message.display_name) == (2, "1", "Весна")


def test_noise_is_told_apart_from_files(tmp_path: Path) -> None:
    """Bytes of a good file changed at random: an answer in words, whatever they are."""
    good = (HEADER + "".join(f"{i},other,name {i}\n" for i in range(50))).encode()
    chance = random.Random(20261123)
    faulty = 0
    for number in range(300):
        data = bytearray(gzip.compress(good) if number % 2 else good)
        for _ in range(chance.randint(1, 20)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path = tmp_path / f"noise.csv{'.gz' if number % 2 else ''}"
        path.write_bytes(bytes(data))
        faulty += bool(verdict(path))
    assert faulty > 150


DAYS: dict[str, tuple[str, str]] = {
    "nan": ("c,2020-01-01,1,1,NaN", "2 cost is no amount"),
    "infinity": ("c,2020-01-01,1,1,Infinity", "2 cost is no amount"),
    "seven-decimals": ("c,2020-01-01,1,1,0.0000001", "2 cost has more than six"),
    "negative": ("c,2020-01-01,-1,1,0", "2 impressions must not be negative"),
    "half-a-click": ("c,2020-01-01,1,0.5,0", "2 clicks is no whole number"),
    "no-number": ("c,2020-01-01,1,two,0", "2 clicks is no decimal number"),
    "no-day": ("c,2020-02-30,1,1,0", "2 date is no day of the calendar"),
    "old": ("c,1970-12-31,1,1,0", "2 date must lie between 1971-01-01"),
    "future": ("c,9999-01-01,1,1,0", "2 date must lie between"),
    "other-format": ("c,31.12.2020,1,1,0", "2 date is no day"),
    "no-campaign": (",2020-01-01,1,1,0", "2 campaign is missing"),
    "empty-value": ("c,2020-01-01,1,,0", "2 clicks is missing"),
    "short-line": ("c,2020-01-01", "2  has 2 values for 5 columns"),
}


@pytest.mark.parametrize("name", DAYS)
def test_a_day_at_fault_is_told_by_line_and_column(tmp_path: Path, name: str) -> None:
    line, expected = DAYS[name]
    path = tmp_path / "days.csv"
    path.write_text(f"campaign,date,impressions,clicks,cost\n{line}\n")
    source, reader = RowFile.open(path), DayReader(Columns.of(DAY_FIELDS, None, None), "%Y-%m-%d")
    reader.check(source)
    assert expected in "".join(told(row, reader.day) for row in source.rows())
