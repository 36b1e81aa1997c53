"""`mrm backfill`: daily figures of the past, summed by campaign and day, a month at a time."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import grpc
import typer
from rich.markup import escape
from rich.table import Table

from mrm.campaigns.v1 import campaign_service_pb2
from mrm.campaigns.v1.campaign_service_pb2_grpc import CampaignServiceStub
from mrm.statistics.v1 import backfill_pb2, snapshot_pb2
from mrm.statistics.v1 import backfill_service_pb2 as pb
from mrm.statistics.v1.backfill_service_pb2_grpc import BackfillServiceStub
from mrm_client import CallError
from mrm_client.retries import Retries
from server.cli import mapping, remote
from server.cli.console import CommandFailed, out, progress, say, tell_retry
from server.cli.events import to_micros
from server.cli.mapping import BadField, Columns, Faults
from server.cli.rows import Row, RowFile

_COUNTS = ("impressions", "clicks")
_AMOUNTS = ("cost", "conversions", "revenue")
_DELIVERY = ("impressions", "clicks", "cost")
_OUTCOME = ("conversions", "revenue")
FIELDS = ("campaign", "date", "year", "month", "day", *_COUNTS, *_AMOUNTS)
_PART = 5000
_MICROS = 10**6
_FIRST_DAY = date(1971, 1, 1)
_CALL_SECONDS = 60.0
_MONTHS = {
    name: number
    for number, names in enumerate(
        ("jan january", "feb february", "mar march", "apr april", "may", "jun june", "jul july", "aug august",
         "sep september", "oct october", "nov november", "dec december"), start=1
    )
    for name in names.split()
}  # fmt: skip

Key = tuple[str, date]


@remote.reaching
async def backfill(
    server: remote.Server,
    file: Annotated[Path, typer.Argument(help="CSV, NDJSON or Parquet; text may be .gz.")],
    client: Annotated[UUID, typer.Option(help="Client the campaigns belong to.")],
    columns: mapping.Map = None,
    constants: mapping.Constants = None,
    date_format: Annotated[str, typer.Option(help="How dates are written, as strptime has it.")] = "%Y-%m-%d",
    vat_included: Annotated[bool, typer.Option("--vat-included", help="Amounts include value added tax.")] = False,
    max_errors: mapping.MaxErrors = 0,
    rate: Annotated[float, typer.Option(min=1, help="Most days of campaigns to send a second.")] = 20_000,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Only check and sum, store nothing.")] = False,
    delimiter: mapping.Delimiter = ",",
    encoding: mapping.Encoding = "utf-8",
    patience: remote.Patience = 300,
) -> int:
    """Fill in daily figures of the past; safe to repeat, and goes on where it stopped.

    Columns: campaign (its id, or its id on the platform), date, or year, month (number or English name) and day; and
    impressions, clicks and cost, or conversions and revenue, or all of them. Several lines for a campaign and day are
    added up, exactly.

    The whole file is checked before anything is sent. At the end the stored figures are read back and compared with the
    file's own sums: exit code 0 only if they agree. The key needs STATISTICS_INGEST, and CAMPAIGNS_READ where campaigns
    are named by their platform's id.
    """
    reader = DayReader(Columns.of(FIELDS, columns, constants), date_format)
    source = RowFile.open(mapping.existing(file), mapping.dialect(delimiter, encoding))
    reader.check(source)
    days = await _read(source, reader)
    async with server.open() as channel:
        ids = await _resolve(channel, client, days)
        days.faults.show()
        bad = len(days.faults.lines)
        if bad > max_errors:
            raise CommandFailed(f"{bad:,} bad lines, --max-errors is {max_errors}: nothing was stored")
        figures = days.by_campaign(ids)
        if not figures:
            raise CommandFailed("the file has no figures")
        if validate_only:
            _report(days, figures, None)
            return 0
        # Whatever decides the figures: also which campaigns there were, for lines that were left out before.
        how = f"{source.sha256}|{date_format}|{vat_included}|{reader.columns.fingerprint()}|{sorted(ids.items())}"
        chunks = _Chunks(
            BackfillServiceStub(channel), client, hashlib.sha256(how.encode()).hexdigest(), file.name, patience
        )
        await chunks.send(figures, rate, vat_included=vat_included, reader=reader)
        stored = await chunks.stored()
    return 0 if _report(days, figures, stored.totals) else 1


@dataclass(slots=True)
class _Days:
    """What a file says.

    Attributes:
        rows: Rows that were added up.
        sums: Campaign, as the file names it, and day to figures in the order of `FIELDS`; amounts in millionths.
        lines: First line of each campaign.
        faults: Rows that are none.
    """

    faults: Faults
    rows: int = 0
    sums: dict[Key, list[int]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    def by_campaign(self, ids: Mapping[str, str]) -> dict[Key, list[int]]:
        """Figures by campaign id and day: a campaign may have two names in a file."""
        found: dict[Key, list[int]] = {}
        for (name, day), figures in self.sums.items():
            if name in ids:
                known = found.get((ids[name], day))
                found[ids[name], day] = figures if known is None else _added(known, figures)
        return found


class DayReader:
    """Turns rows of a file into figures of a campaign's day.

    Args:
        columns: Where their fields come from.
        date_format: How dates are written.
    """

    def __init__(self, columns: Columns, date_format: str) -> None:
        self.columns = columns
        self._date_format = date_format
        self.delivery = self.outcome = True
        # Tomorrow somewhere; where exactly, the server knows.
        self._last_day = date.fromordinal(date.today().toordinal() + 1)

    def check(self, source: RowFile) -> None:
        """Finds out what the file measures; raises CommandFailed if columns are missing."""
        there = set(source.columns())
        dated: tuple[str, ...] = ()
        if there:
            named = {each for each in FIELDS if each in self.columns.constants or self.columns.column(each) in there}
            self.delivery, self.outcome = bool(named & set(_DELIVERY)), bool(named & set(_OUTCOME))
            dated = ("date",) if "date" in named or not {"month", "day"} & named else ("year", "month", "day")
        figures = (*(_DELIVERY if self.delivery else ()), *(_OUTCOME if self.outcome else ()))
        self.columns.check(source, ("campaign", *dated, *(figures or _DELIVERY)))

    def day(self, row: Row) -> tuple[str, date, list[int]]:
        """Campaign, day and figures of a row.

        Raises:
            BadField: A field is not what it should be.
        """
        values = self.columns.values(row)
        campaign = str(values.get("campaign", ""))
        if not campaign:
            raise BadField("campaign", "is missing")
        return campaign, self._date(values), self._figures(values)

    def _date(self, values: Mapping[str, Any]) -> date:
        try:
            if "date" in values:
                day = _as_date(values["date"], self._date_format)
            else:
                day = date(*(_part(values, name) for name in ("year", "month", "day")))
        except (ValueError, OverflowError):
            raise BadField("date" if "date" in values else "day", "is no day of the calendar") from None
        if not _FIRST_DAY <= day <= self._last_day:
            raise BadField("date" if "date" in values else "year", f"must lie between {_FIRST_DAY} and tomorrow")
        return day

    def _figures(self, values: Mapping[str, Any]) -> list[int]:
        figures = []
        for name in (*_COUNTS, *_AMOUNTS):
            wanted = self.delivery if name in _DELIVERY else self.outcome
            if not wanted:
                figures.append(0)
                continue
            if name not in values:
                raise BadField(name, "is missing")
            try:
                micros = to_micros(values[name])
            except ValueError as error:
                raise BadField(name, str(error)) from None
            if micros < 0:
                raise BadField(name, "must not be negative")
            if name in _COUNTS and micros % _MICROS:
                raise BadField(name, "is no whole number")
            figures.append(micros // _MICROS if name in _COUNTS else micros)
        return figures


class _Chunks:
    """Sends figures by month.

    Args:
        stub: The service.
        client: The client.
        fingerprint: Of the file and how it is read.
        name: Of the file.
        patience: Seconds without an answer until it gives up.
    """

    def __init__(self, stub: Any, client: UUID, fingerprint: str, name: str, patience: float) -> None:
        self._stub = stub
        self._client = str(client)
        self._fingerprint = fingerprint
        self._name = name[:255]
        self._retries = Retries(patience, tell_retry)

    async def send(
        self, figures: Mapping[Key, list[int]], rate: float, *, vat_included: bool, reader: DayReader
    ) -> None:
        """Sends the chunks that are not stored, no faster than the rate."""
        known = {(chunk.month, chunk.part) for chunk in (await self.stored()).backfill.chunks}
        done, due = 0, time.monotonic()
        with progress("storing", len(figures), "days") as meter:
            for month, part, keys in _months(figures):
                if (month, part) not in known:
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    due = max(due, time.monotonic()) + len(keys) / rate
                    request = pb.StoreBackfillChunkRequest(
                        client_id=self._client,
                        fingerprint=self._fingerprint,
                        source_name=self._name,
                        month=month,
                        part=part,
                        vat_included=vat_included,
                        snapshots=[_snapshot(key, figures[key], reader) for key in keys],
                    )
                    await self._called(self._stub.StoreBackfillChunk, request)
                done += len(keys)
                meter(done)
        if known:
            say(f"{len(known):,} chunks were stored before")

    async def stored(self) -> pb.GetBackfillResponse:
        """What is stored of the file."""
        request = pb.GetBackfillRequest(client_id=self._client, fingerprint=self._fingerprint)
        reply: pb.GetBackfillResponse = await self._called(self._stub.GetBackfill, request)
        return reply

    async def _called(self, method: Any, request: Any) -> Any:
        while True:
            try:
                reply = await method(request, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                await self._retries.pause_or_raise(CallError.of_rpc(error))
            else:
                self._retries.succeeded()
                return reply


async def _read(source: RowFile, reader: DayReader) -> _Days:
    """Adds up the rows of a file."""
    days = _Days(Faults(reader.columns))
    with out.status(f"reading {escape(source.path.name)}"):
        for row in source.rows():
            try:
                campaign, day, figures = reader.day(row)
            except BadField as fault:
                days.faults.add(row.line, fault.field, str(fault))
                continue
            days.rows += 1
            days.lines.setdefault(campaign, row.line)
            known = days.sums.get((campaign, day))
            days.sums[campaign, day] = figures if known is None else _added(known, figures)
            if days.rows % 1000 == 0:
                # Lets Ctrl-C in.
                await asyncio.sleep(0)
    return days


async def _resolve(channel: grpc.aio.Channel, client: UUID, days: _Days) -> dict[str, str]:
    """Ids of the campaigns that a file names; one that the client does not have is a fault of its first line."""
    ids = {name: name.lower() for name in days.lines if _is_id(name)}
    wanted = days.lines.keys() - ids.keys()
    stub = CampaignServiceStub(channel)
    request = campaign_service_pb2.ListCampaignsRequest(page_size=500)
    request.filter.client_id = str(client)
    found: dict[str, set[str]] = {}
    if wanted:
        async for page in remote.pages(stub.ListCampaigns, request, _CALL_SECONDS):
            for campaign in page.campaigns:
                if campaign.external_id in wanted:
                    found.setdefault(campaign.external_id, set()).add(campaign.campaign_id)
    for name in wanted:
        match found.get(name, set()):
            case same if len(same) == 1:
                ids[name] = same.pop()
            case same:
                text = "several campaigns of the client have this id" if same else "the client has no such campaign"
                days.faults.add(days.lines[name], "campaign", text)
    return ids


def _months(figures: Mapping[Key, list[int]]) -> Iterator[tuple[str, int, list[Key]]]:
    """Month, part and keys of each chunk; always the same for the same figures."""
    months: dict[str, list[Key]] = {}
    for key in sorted(figures):
        months.setdefault(f"{key[1]:%Y-%m}", []).append(key)
    for month, keys in sorted(months.items()):
        for part, start in enumerate(range(0, len(keys), _PART)):
            yield month, part, keys[start : start + _PART]


def _snapshot(key: Key, figures: list[int], reader: DayReader) -> snapshot_pb2.MetricsSnapshot:
    impressions, clicks, cost, conversions, revenue = figures
    snapshot = snapshot_pb2.MetricsSnapshot(campaign_id=key[0], date=key[1].isoformat())
    if reader.delivery:
        snapshot.delivery.impressions, snapshot.delivery.clicks = impressions, clicks
        snapshot.delivery.cost_micros = cost
        snapshot.delivery.SetInParent()
    if reader.outcome:
        snapshot.outcome.conversions_micros, snapshot.outcome.revenue_micros = conversions, revenue
        snapshot.outcome.SetInParent()
    return snapshot


def _report(days: _Days, figures: Mapping[Key, list[int]], stored: backfill_pb2.BackfillTotals | None) -> bool:
    """Shows the file's sums beside what is stored; whether they agree."""
    sums = [sum(column) for column in zip(*figures.values(), strict=True)]
    ours = [len(figures), *sums]
    theirs = None if stored is None else [
        stored.snapshot_count, stored.impressions, stored.clicks,
        *(int(text) for text in (stored.cost_micros, stored.conversions_micros, stored.revenue_micros)),
    ]  # fmt: skip
    table = Table("", title="the file beside what is stored", title_justify="left", box=None, pad_edge=False)
    for heading in ("in the file", *(("stored", "") if theirs else ())):
        table.add_column(heading, justify="right")
    for index, name in enumerate(("days", *_COUNTS, *_AMOUNTS)):
        shown = [_shown(name, ours[index])]
        if theirs:
            verdict = "[green]agree[/]" if ours[index] == theirs[index] else "[red]DIFFER[/]"
            shown += [_shown(name, theirs[index]), verdict]
        table.add_row(name, *shown)
    out.print(table)
    say(f"{days.rows:,} rows, {len(days.faults.lines):,} bad lines left out")
    if theirs not in (None, ours):
        say("a file that was begun later has some of these days, or somebody else stored them under this file's name")
    return theirs in (None, ours)


def _shown(name: str, value: int) -> str:
    if name not in _AMOUNTS:
        return f"{value:,}"
    whole, rest = divmod(value, _MICROS)
    return f"{whole:,}.{rest:06d}".rstrip("0").rstrip(".")


def _added(known: list[int], figures: list[int]) -> list[int]:
    return [a + b for a, b in zip(known, figures, strict=True)]


def _as_date(value: Any, pattern: str) -> date:
    if isinstance(value, datetime):
        return value.date()
    return value if isinstance(value, date) else datetime.strptime(str(value), pattern).date()


def _part(values: Mapping[str, Any], name: str) -> int:
    if name not in values:
        raise BadField("date" if name == "year" else name, "is missing")
    text = str(values[name])
    return _MONTHS[text.lower()] if name == "month" and text.lower() in _MONTHS else int(text)


def _is_id(name: str) -> bool:
    try:
        UUID(name)
    except ValueError:
        return False
    return True
