# ruff: noqa: S608 - what statements are put together from are constants, integers and UUID objects
"""Reads figures in bulk: one statement, streamed as Arrow, and a fingerprint that tells whether they changed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256
from zoneinfo import ZoneInfo

from storage.clickhouse import precedence
from storage.clickhouse.arrow import ArrowCutter, Batch, Broken
from storage.clickhouse.connect import ClickHouse, Setting, error_in
from storage.clickhouse.metrics import Selection
from storage.clickhouse.precedence import LONG_STATEMENT, Resolved, hours

BATCH_ROWS = 16_384
"""Rows of a batch: with LZ4 about 0.7 MB."""

# Own events decide alone within the period. Other sources are weighed by days of the client's zone, beyond its ends.
_MARGIN_SECONDS = 2 * 86_400
_STATE_SECONDS = 60.0
_LONGEST_ERROR = 1 << 20
_SETTINGS: dict[str, Setting] = {
    **LONG_STATEMENT,
    "output_format_arrow_compression_method": "lz4_frame",
    "output_format_arrow_low_cardinality_as_dictionary": 0,
    "output_format_arrow_string_as_string": 1,
    # The order of the table is the order asked for: rows flow through instead of being held and sorted.
    "optimize_read_in_order": 1,
    "optimize_aggregation_in_order": 1,
    "max_bytes_before_external_group_by": 512 * 2**20,
    "max_bytes_before_external_sort": 512 * 2**20,
}
_NAMES = """toString(client_id) AS client_text, toString(project_id) AS project_text,
  toString(campaign_id) AS campaign_text, toString(platform) AS platform_text, toString(currency) AS currency_code"""
_COLUMNS = """bucket_start, client_text AS client_id, project_text AS project_id, campaign_text AS campaign_id,
  platform_text AS platform, currency_code, impressions, clicks, conversions, cost, revenue"""


@dataclass(frozen=True, slots=True)
class Extract:
    """What to export.

    Attributes:
        selection: Which campaigns.
        start: Begin of the time in Unix seconds, a full hour.
        end: Its end, excluded.
        zone: Whose days are meant.
        days: Starts of the days in Unix seconds, ascending; None to export hours.
        mixed: Whether other sources than own events may have to be weighed.
    """

    selection: Selection
    start: int
    end: int
    zone: ZoneInfo
    days: Sequence[int] | None
    mixed: bool

    def sql(self, database: str, offset: int = 0) -> str:
        """The statement: one row per campaign and bucket that has data, by client, campaign and bucket."""
        covered = [] if self.days is None else precedence.covers([*self.days, self.end], self.zone)
        resolved = Resolved(
            database, self.selection.condition(), self.selection.clients, self.start, self.end, self.mixed, covered
        )
        relation = resolved.sql()
        if self.days is None and not self.mixed:
            # Each hour of a campaign is one row already.
            return f"""SELECT {_COLUMNS} FROM (
              SELECT toDateTime64(at, 0, 'UTC') AS bucket_start, {_NAMES},
                impressions, clicks, conversions, cost, revenue
              FROM {relation}
              ORDER BY client_id, campaign_id, at OFFSET {offset:d}
            ) FORMAT ArrowStream"""
        bucket = "at"
        if self.days is not None:
            starts = ", ".join(str(int(day)) for day in self.days)
            bucket = f"roundDown(at, [{starts}]::Array(UInt32))"
        return f"""SELECT {_COLUMNS} FROM (
          SELECT toDateTime64(bucket, 0, 'UTC') AS bucket_start, {_NAMES}, shown AS impressions, clicked AS clicks,
            converted AS conversions, spent AS cost, earned AS revenue
          FROM (
            SELECT client_id, campaign_id, project_id, platform, currency, {bucket} AS bucket,
              sum(impressions) AS shown, sum(clicks) AS clicked, sum(conversions) AS converted, sum(cost) AS spent,
              sum(revenue) AS earned
            FROM {relation}
            WHERE counts
            GROUP BY client_id, campaign_id, bucket, project_id, platform, currency
          )
          ORDER BY client_id, campaign_id, bucket OFFSET {offset:d}
        ) FORMAT ArrowStream"""


async def fingerprint(store: ClickHouse, extract: Extract) -> bytes:
    """16 bytes that are the same only as long as no row behind the extract was written, nor the extract is another.

    Taken before the rows are read, and again after a later reading of them has begun, it proves both readings equal.
    """
    margin = _MARGIN_SECONDS if extract.mixed else 0
    [(count, rows)] = await store.fetch(
        f"""SELECT count(), sum(cityHash64(campaign_id, source, grain, hour, state_version, has_delivery, has_outcome))
        FROM campaign_metrics_hourly FINAL
        WHERE {extract.selection.condition()} AND {hours(max(0, extract.start - margin), extract.end + margin)}""",
        extract.selection.parameters(),
        settings=LONG_STATEMENT,
        timeout=_STATE_SECONDS,
    )
    chosen = extract.selection
    parts = (chosen.clients, chosen.whole_clients, chosen.team_projects, chosen.projects, chosen.campaigns)
    names = [None if part is None else sorted(map(str, part)) for part in (*parts, chosen.platforms)]
    what = (count, rows, extract.mixed, extract.zone.key, extract.start, extract.end, extract.days is None, names)
    return sha256(repr(what).encode()).digest()[:16]


class Reading:
    """One reading of an extract.

    Args:
        store: Where to read.
        extract: What.
        offset: Rows to leave out at the beginning.
        batch_rows: Rows of a batch, roughly.

    Attributes:
        cutter: Has the schema once the first batch was given, or the reading ended.
    """

    def __init__(self, store: ClickHouse, extract: Extract, offset: int, batch_rows: int = BATCH_ROWS) -> None:
        self._store = store
        self._extract = extract
        self._offset = offset
        self._batch_rows = batch_rows
        self.cutter = ArrowCutter()

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """The batches. Nothing is read ahead of the caller; closing the generator ends the statement.

        Raises:
            StoreUnavailable: ClickHouse went away.
            ClickHouseError: It refuses.
        """
        sql = self._extract.sql(self._store.database, self._offset)
        settings = {**_SETTINGS, "max_block_size": self._batch_rows}
        pieces = self._store.stream(sql, self._extract.selection.parameters(), settings=settings)
        async with aclosing(pieces):
            try:
                async for piece in pieces:
                    for batch in self.cutter.feed(piece):
                        yield batch
                self.cutter.finish()
            except Broken as broken:
                text = broken.rest
                async for piece in pieces:
                    text += piece
                    if len(text) > _LONGEST_ERROR:
                        break
                raise error_in(text) from None
